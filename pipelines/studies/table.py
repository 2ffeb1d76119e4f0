"""A study's results as one table: published next to measured numbers, gains with intervals, and costs.

Published numbers have columns of their own and never enter a mean. The metric, mIoU unless the task is another than
segmentation, is a fraction in rows and percent in tables; gains are in percentage points.
"""

from __future__ import annotations

import html as markup
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.base.text import padded
from pipelines.runs.mlflow_lines import metric_names
from pipelines.runs.results import Result
from pipelines.scoring.intervals import Interval, Summary, summarise
from pipelines.studies.class_tables import in_html, in_markdown, in_text
from pipelines.studies.scores import Further, further, short

PUBLISHED = ("published", "gain published", "difference of gains")  # left out where nothing is published
COMPARED = ("gain measured", "verdict")  # left out without a baseline
UNITS = {
    "parameters": "parameters, M", "gmacs": "GMACs", "activation_mib": "activations, MiB",
    "memory_mib": "GPU peak, MiB", "images_per_s": "images/s",
}  # fmt: skip
STYLE = (
    "body{font:15px system-ui,sans-serif;margin:2em;color:#222}table{border-collapse:collapse}"
    "th,td{border-bottom:1px solid #ccc;padding:.3em .8em;text-align:right;white-space:nowrap}"
    "th{border-bottom:2px solid #444;vertical-align:bottom}td.text,th.text{text-align:left}"
    "td.text{white-space:normal}.published{background:#f3efe3}p{max-width:65em}"
)
WORDS = ("variant", "settings", "verdict", "note")  # columns of text, flush left


@dataclass(frozen=True)
class Line:
    """One variant: its settings (dotted key -> value), its published number in percent, its measurements.

    `elsewhere` is what another place of the papers says of the published number, which is marked then.
    """

    variant: str
    settings: Mapping[str, Any]
    published: float | None
    published_gain: float | None
    summary: Summary | None
    elsewhere: str = ""


@dataclass(frozen=True)
class StudyTable:
    """All that table and plots show; `others` are variants with another protocol than `protocol`. See `build`."""

    title: str
    lines: tuple[Line, ...]
    protocol: str
    others: Mapping[str, str]
    baseline: str | None
    published_as: str
    curve: str | None
    notes: str
    confidence: float
    further: Further = field(default_factory=Further)
    metric: str = Result.metric


def build(
    title: str,
    variants: Mapping[str, Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    protocol: str | Mapping[str, str],
    *,
    baseline: str | None = None,
    published: Mapping[str, float | None] | None = None,
    published_as: str = "",
    elsewhere: Mapping[str, str] | None = None,
    published_classes: Mapping[str, Sequence[float]] | None = None,
    curve: str | None = None,
    notes: str = "",
    confidence: float = 0.95,
    metric: str = Result.metric,
) -> StudyTable:
    """Put trials and published numbers together, a line per variant in the order of the page.

    Args:
        title: of the study.
        variants: name -> settings, dotted keys with their values. A variant without a trial has a line too.
        rows: one trial each, see `intervals.summarise` and `scores.further`.
        protocol: how the metric was measured: split, rows, whole or slide, scales, flip, length of training. One for
            all, or one for each variant, by name.
        baseline: the variant that gains are measured against. Without one, lines are sorted, the best first.
        published: name -> percent, as printed.
        published_as: where that is printed and under which protocol.
        elsewhere: name -> what another place says of that number.
        published_classes: name -> percent of each class, as printed, in the order of the classes.
        curve: the dotted key whose values are the x axis of a curve.
        notes: of the study's page.
        confidence: of every interval.
        metric: the score that is compared, by its name.

    Raises:
        ValueError: rows of a variant that is not named, an unknown baseline, a variant without its protocol, or rows
            that cannot be summarised.
    """
    if strange := sorted({row["variant"] for row in rows} - set(variants)):
        raise ValueError(f"trials of {', '.join(strange)}; the study has the variants {', '.join(variants)}")
    if baseline is not None and baseline not in variants:
        raise ValueError(f"baseline is {baseline!r}; the study has the variants {', '.join(variants)}")
    measured = any(row["variant"] == baseline for row in rows)
    found = {s.variant: s for s in summarise(rows, baseline if measured else None, confidence)}
    printed = dict(published or {})
    reference = printed.get(baseline or "")
    lines = [
        Line(
            name,
            settings,
            value,
            gain_of(value, reference) if name != baseline else None,
            found.get(name),
            (elsewhere or {}).get(name, ""),
        )
        for name, settings in variants.items()
        for value in [printed.get(name)]
    ]
    if baseline is None:
        lines.sort(key=lambda line: -line.summary.mean.mean if line.summary and line.summary.mean else 1.0)
    common, others = protocols(variants, protocol, baseline)
    more = replace(further(rows, confidence, metric), printed=published_classes)
    return StudyTable(
        title, tuple(lines), common, others, baseline, published_as, curve, notes, confidence, more, metric
    )


def protocols(
    variants: Mapping[str, Any], protocol: str | Mapping[str, str], baseline: str | None
) -> tuple[str, dict[str, str]]:
    """The protocol of the baseline, or else of the first variant, and those of the variants that have another."""
    if isinstance(protocol, str):
        return protocol, {}
    if missing := [name for name in variants if name not in protocol]:
        raise ValueError(f"no protocol for {', '.join(missing)}; every score needs one")
    common = protocol[baseline or next(iter(variants))] if variants else ""
    return common, {name: protocol[name] for name in variants if protocol[name] != common}


def gain_of(value: float | None, reference: float | None) -> float | None:
    """Published gain in percentage points, without the digits that floats add."""
    return None if value is None or reference is None else round(value - reference, 6)


def names_of(table: StudyTable) -> list[str]:
    """The variants, in the order of the table."""
    return [line.variant for line in table.lines]


def cells(table: StudyTable) -> list[dict[str, str]]:
    """Column -> text for every line; columns that a table has no use for are left out."""
    rows = [line_cells(line, table.further) for line in table.lines]
    for column in (
        *PUBLISHED * all(line.published is None for line in table.lines),
        *COMPARED * (table.baseline is None),
        *("settings",) * (table.baseline is not None),
        *("note",) * (not any(row["note"] for row in rows)),
        *(unit for unit in UNITS.values() if all(row[unit] == "-" for row in rows)),
    ):
        for row in rows:
            row.pop(column, None)
    return rows


def columns_of(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The columns of `cells`; before a search has begun, the two that every table has."""
    return list(rows[0]) if rows else ["variant", "measured"]


def line_cells(line: Line, more: Further) -> dict[str, str]:
    """All columns of one line."""
    own = line.summary
    gain = own.gain if own else None
    return {
        "variant": line.variant,
        "settings": ", ".join(f"{key}={setting(value)}" for key, value in line.settings.items()),
        "published": "-" if line.published is None else f"{line.published:g}" + "*" * bool(line.elsewhere),
        "measured": "-" if own is None or own.mean is None else measured(own.mean),
        **{score.heading: short(score.cells.get(line.variant)) for score in more.scores},
        "gain published": "-" if line.published_gain is None else f"{line.published_gain:+.2f}",
        "gain measured": "-" if gain is None else points(gain.mean * 100, gain),
        "difference of gains": "-"
        if gain is None or line.published_gain is None
        else points(gain.mean * 100 - line.published_gain, gain),
        "verdict": "no trial" if own is None else own.verdict,
        **{unit: cost(key, own.costs[key] if own else None) for key, unit in UNITS.items()},
        "note": own.note if own else "",
    }


def setting(value: Any) -> str:
    """A setting's value; a drawn number in four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def measured(mean: Interval) -> str:
    """Percent: "43.21 ± 1.10 (3 seeds)"."""
    if mean.half is None:
        return f"{mean.mean * 100:.2f} ({mean.n} seed)"
    return f"{mean.mean * 100:.2f} ± {mean.half * 100:.2f} ({mean.n} seeds)"


def points(value: float, interval: Interval) -> str:
    """Percentage points with the interval's half width: "+1.20 ± 0.35"."""
    return f"{value:+.2f}" if interval.half is None else f"{value:+.2f} ± {interval.half * 100:.2f}"


def cost(key: str, value: float | None) -> str:
    """A cost in its column's unit."""
    if value is None:
        return "-"
    return {"parameters": f"{value / 1e6:.3f}", "gmacs": f"{value:.3f}"}.get(key, f"{value:.1f}")


def caption(table: StudyTable) -> list[str]:
    """What a reader must know to trust the table, one paragraph each."""
    level = f"{table.confidence:.0%}".replace("%", " %")
    other = "".join(f" But {name}: {protocol}." for name, protocol in table.others.items())
    how = f"{table.metric} in percent, {table.protocol}"
    parts = [f"Measured: {how}.{other} ± is half of the {level} t-interval over the seeds."]
    if table.further.words:
        tests = "".join(f" {name}: {words}." for name, words in table.further.words.items())
        parts.append(f"The same trainings, scored once more with the best weights of each:{tests}")
    if table.baseline is not None:
        parts.append(
            f"Gains are percentage points over {table.baseline}, paired by seed. Where their {level} interval holds "
            "zero the verdict is 'no difference shown'. Intervals are not widened for the number of variants."
        )
    if any(line.published is not None for line in table.lines):
        parts.append(f"Published: as printed, {table.published_as}. Nothing published enters a measured number.")
    if any(line.summary and any(line.summary.costs.values()) for line in table.lines):
        parts.append(
            "Costs: GMACs of convolutions and matrix products, and activations (outputs of leaf modules in float32), "
            "both of one training crop; images/s of training, the median of trials that may have shared their machine."
        )
    return [*parts, *([table.notes.strip()] if table.notes.strip() else [])]


def numbers(table: StudyTable) -> dict[str, Any]:
    """The table for programs: the metric in percent, gains in percentage points, null where there is no number."""
    return {
        "title": table.title, "metric": table.metric, "protocol": table.protocol, "other_protocols": dict(table.others),
        "baseline": table.baseline, "confidence": table.confidence, "published_as": table.published_as,
        "protocols": dict(table.further.words or {}),
        "variants": [
            line_numbers(line, table.metric) | further_numbers(line.variant, table.further) for line in table.lines
        ],
    }  # fmt: skip


def further_numbers(variant: str, more: Further) -> dict[str, Any]:
    """A variant's further scores in percent: `scores`, by metric, with half widths; `iou`, by protocol and class."""
    scores: dict[str, float | None] = {}
    for score in more.scores:
        if (cell := score.cells.get(variant)) is not None:
            scores |= {score.metric: hundred(cell.mean), f"{score.metric}_half_width": hundred(cell.half)}
    iou = {
        name: {label: hundred(cells[variant].mean) for label, cells in classes.items() if variant in cells}
        for name, classes in (more.classes or {}).items()
    }
    return {"scores": scores, "iou": iou} if scores else {}


def line_numbers(line: Line, metric: str) -> dict[str, Any]:
    """One variant: its mean over the seeds and the half width of its interval, and the same of its gain."""
    own = line.summary
    mean, gain = (own.mean, own.gain) if own else (None, None)
    return {
        "variant": line.variant, "settings": dict(line.settings), "seeds": mean.n if mean else 0,
        metric: hundred(mean.mean if mean else None), f"{metric}_half_width": hundred(mean.half if mean else None),
        "gain": hundred(gain.mean if gain else None), "gain_half_width": hundred(gain.half if gain else None),
        "verdict": own.verdict if own else "no trial", "note": own.note if own else "",
        "published": line.published, "published_gain": line.published_gain, "published_elsewhere": line.elsewhere,
        "costs": dict(own.costs) if own else {},
    }  # fmt: skip


def hundred(value: float | None) -> float | None:
    """A share in percent."""
    return None if value is None else value * 100


def metrics_of(page: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a study, of a table as `numbers` gives it: `mIoU/VARIANT` or what else is compared, `gain/VARIANT`
    and their half widths.

    No metric is the score of a single seed where there are several, so that none is taken for the study's result.
    """
    lines, metric = page["variants"], page.get("metric", Result.metric)  # up to 0.7 a table did not say it
    names = metric_names([line["variant"] for line in lines])
    found = {
        f"{key}/{name}": line[key]
        for key in (metric, f"{metric}_half_width", "gain", "gain_half_width", "seeds")
        for name, line in zip(names, lines, strict=True)
    }
    for name, line in zip(names, lines, strict=True):
        found |= {f"{key}/{name}": value for key, value in line.get("scores", {}).items()}
    return {key: float(value) for key, value in found.items() if value is not None}


def text(table: StudyTable) -> str:
    """The table for a terminal."""
    rows = cells(table)
    columns = columns_of(rows)
    lines = [columns, *([row[c] for c in columns] for row in rows)]
    right = [i for i, column in enumerate(columns) if column not in WORDS]
    shown = ["  ".join(line).rstrip() for line in padded(lines, right)]
    below = [line for part in caption(table) for line in textwrap.wrap(part, 120)]
    return "\n".join([table.title, *shown, "", *below, *in_text(table.further, names_of(table))]) + "\n"


def markdown(table: StudyTable) -> str:
    """The table for a README or MLflow."""
    rows = cells(table)
    head = columns_of(rows)
    lines = [head, [":---" if c in WORDS else "---:" for c in head], *(list(row.values()) for row in rows)]
    body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return (
        "\n".join(
            [
                f"# {table.title}",
                "",
                *body,
                "",
                "\n\n".join(caption(table)),
                *in_markdown(table.further, names_of(table)),
            ]
        )
        + "\n"
    )


def html(table: StudyTable) -> str:
    """The table as a page of its own."""
    rows = cells(table)

    def cell(tag: str, column: str, value: str) -> str:
        kind = "text" if column in WORDS else "published" if column in PUBLISHED[:2] else "measured"
        return f'<{tag} class="{kind}">{markup.escape(value)}</{tag}>'

    body = ["".join(cell("th", column, column) for column in columns_of(rows))]
    body += ["".join(cell("td", column, value) for column, value in row.items()) for row in rows]
    title = markup.escape(table.title)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        f"<h1>{title}</h1><table>"
        + "".join(f"<tr>{row}</tr>\n" for row in body)
        + "</table>"
        + "".join(f"<p>{markup.escape(part)}</p>" for part in caption(table))
        + "".join(in_html(table.further, names_of(table)))
        + "</html>\n"
    )
