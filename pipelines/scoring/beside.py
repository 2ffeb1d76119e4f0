"""Published rows with what was measured of them beside them: for a terminal, as Markdown, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.published.printed import conditions, contradictions, marked, row_words
from pipelines.published.results import COMPARED, NAMES, QUANTITIES, ResultTable, result_tables
from pipelines.recipes.tasks import TASKS
from pipelines.scoring.intervals import Interval, t_interval
from pipelines.scoring.measured import Measured, Row

METRICS = {task.metric for task in TASKS.values()}
FIELDS = (
    "paper", "table", "row", "quantity", "published", "published elsewhere", "published column",
    "published conditions", "measured", "half width", "seeds", "split", "rows", "protocol", "same scales", "changes",
    "runs",
)  # fmt: skip


@dataclass(frozen=True)
class Score:
    """The mean over the seeds of one training under one protocol, in percent, with its 95 % t-interval."""

    first: Measured
    interval: Interval
    runs: tuple[str, ...]

    def words(self, other: bool) -> str:
        """In words.

        Args:
            other: whether the published number was tested at another number of scales.
        """
        mean, half, n = self.interval.mean, self.interval.half, self.interval.n
        value = f"{mean:.2f}" if half is None else f"{mean:.2f} ± {half:.2f}"
        first = self.first
        parts = [
            f"{first.quantity} {value} ({n} seed{'s' * (n > 1)}): {first.split}, {first.rows} rows, {first.protocol}"
        ]
        parts += ["OTHER SCALES THAN PUBLISHED"] * other + [f"trained with {first.changes}"] * bool(first.changes)
        return "; ".join([*parts, f"run{'s' * (len(self.runs) > 1)} {', '.join(self.runs)}"])


def scores_beside(found: Sequence[Measured], table: ResultTable, row: Row) -> list[Score]:
    """What was measured of a row: one for each training, protocol and quantity; of a seed the last run counts."""
    groups: dict[tuple[str, ...], dict[str, Measured]] = {}
    for m in found:
        if m.table == table.id and m.row is row:
            groups.setdefault((m.quantity, m.protocol, m.split, m.rows, m.changes), {})[m.seed] = m
    return [
        Score(first, t_interval([m.value for m in seeds.values()]), tuple(m.run for m in seeds.values()))
        for seeds in groups.values()
        for first in [next(iter(seeds.values()))]
    ]


def other_scales(table: ResultTable, row: Row, score: Score) -> bool:
    """Whether all printed numbers of the quantity were tested at another number of scales."""
    said = {table.scales(row, column) for column in table.columns_of(score.first.quantity)}
    return "" not in said and score.first.scales not in said


def beside(found: Sequence[Measured], table: ResultTable, row: Row) -> list[str]:
    """A row's measurements in words."""
    return [score.words(other_scales(table, row, score)) for score in scores_beside(found, table, row)]


def left_out(found: Sequence[Measured], table: ResultTable) -> list[str]:
    """Measurements that name the table and stand next to no row, with the reason."""
    lines = [
        f"not set beside a row: {m.run}, {m.quantity} {m.value:.2f} ({m.split}, {m.rows} rows, {m.protocol}): {m.why}"
        for m in found
        if m.table == table.id and m.row is None and m.why and m.quantity in METRICS
    ]
    return list(dict.fromkeys(lines))


def markdown(papers: Sequence[str], found: Sequence[Measured], place: str) -> str:
    """All tables of papers that are compared, each row with what was measured of it."""
    parts = ["# Published and measured", f"Published numbers are as printed. Measured: {place}."]
    for paper in papers:
        citation, tables, _ = result_tables(paper)
        parts.append(f"## {NAMES[paper]}\n\n{citation}")
        for table in (table for table in tables if table.compared):
            columns = [column for column in table.columns if column != "per_class"]
            lines = [[*columns, "measured here"], ["---"] * (len(columns) + 1)]
            lines += [
                [*(marked(table, row, column) for column in columns), "<br>".join(beside(found, table, row))]
                for row in table.rows
            ]
            body = ["| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines]
            parts.append(f"### {table.name}: {table.title}\n\n{conditions(table)}\n\n" + "\n".join(body))
            parts += [f"- {line}" for line in (*contradictions(table), *left_out(found, table))]
    return "\n\n".join(parts) + "\n"


def rows_of(papers: Sequence[str], found: Sequence[Measured]) -> Iterator[dict[str, Any]]:
    """A line for each published number and each measurement of it; one without any has empty cells there."""
    for paper in papers:
        for table in (table for table in result_tables(paper)[1] if table.compared):
            for row in table.rows:
                scores = scores_beside(found, table, row)
                for column in (c for c in table.columns if QUANTITIES.get(c) in COMPARED):
                    published = {
                        "paper": NAMES[paper], "table": table.id, "row": row_words(table, row),
                        "quantity": QUANTITIES[column], "published": row[column], "published column": column,
                        "published conditions": conditions(table), "published elsewhere": table.elsewhere(row, column),
                    }  # fmt: skip
                    own = [score for score in scores if belongs(table, row, column, score)]
                    yield from (published | numbers(table, row, column, score) for score in own)
                    if not own:
                        yield published


def belongs(table: ResultTable, row: Row, column: str, score: Score) -> bool:
    """Whether a score is of a column; where a table has one for single and one for multi scale, of that which fits."""
    several = len(table.columns_of(score.first.quantity)) > 1
    fits = not several or table.scales(row, column) in ("", score.first.scales)
    return QUANTITIES[column] == score.first.quantity and fits


def numbers(table: ResultTable, row: Row, column: str, score: Score) -> dict[str, Any]:
    """The measured cells of a line."""
    first, said = score.first, table.scales(row, column)
    return {
        "measured": f"{score.interval.mean:.4f}", "seeds": score.interval.n, "split": first.split, "rows": first.rows,
        "half width": "" if score.interval.half is None else f"{score.interval.half:.4f}",
        "protocol": first.protocol, "same scales": {"": "not stated"}.get(said, str(said == first.scales).lower()),
        "changes": first.changes, "runs": " ".join(score.runs),
    }  # fmt: skip


def csv_text(papers: Sequence[str], found: Sequence[Measured]) -> str:
    """`rows_of` as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, restval="")
    writer.writeheader()
    writer.writerows(rows_of(papers, found))
    return text.getvalue()
