"""What MLflow shows above a run's numbers: what it is, what it reached, at what cost, and whether it may be shipped.

A note is made of the run's folder alone, so that a replay writes the same one. Published numbers have a table of their
own and enter no other.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pipelines.base.text import duration
from pipelines.recipes.recipe import Recipe, Stage
from pipelines.runs.doubts import doubts
from pipelines.runs.folder import RunFolder, StageFolder
from pipelines.runs.mlflow_lines import CURVES, metric_names, values_of
from pipelines.runs.record import read_record
from pipelines.runs.results import About, Result, final_weights, percent, score_of_class
from pipelines.runs.subject import subject
from pipelines.runs.where import address_of, is_bucket


@dataclass(frozen=True)
class Told:
    """What the folder says of a stage.

    `values` are its metrics, as they were last; `workers`, from which step on how many workers trained, as a change.
    """

    stage: Stage
    place: StageFolder
    about: About | None
    result: Result | None
    values: Mapping[str, float]
    workers: Sequence[tuple[int, int]] = ()


def read_stage(place: StageFolder, stage: Stage) -> Told:
    """All that there is of a stage so far."""
    about = About.read(place.about) if place.about.exists() else None
    lines = read_record(place.record)[0]
    names = metric_names(about.classes) if about else []
    values = {k: v for line in lines for k, v in values_of(line, names).items()} if about else {}
    values = {**about.costs, **values} if about else {}
    result = Result.read(place.result) if place.result.exists() else None
    starts = [(line["step"], line["workers"]) for line in lines if "workers" in line]
    changes = [start for i, start in enumerate(starts) if i == 0 or start[1] != starts[i - 1][1]]
    return Told(stage, place, about, result, values, changes)


def write_up(
    recipe: Recipe,
    folder: RunFolder,
    stages: Sequence[Stage],
    origin: Mapping[str, str],
    runs: Mapping[str, str],
    run: str,
    error: str = "",
) -> str:
    """The note on some stages of a chain, or on all, in Markdown.

    Args:
        folder: of the chain.
        stages: what the run in MLflow shows.
        origin: where the run comes from, as `provenance` gives it.
        runs: stage -> id of its run, whose pictures are shown.
        run: id of the run that has the note.
        error: what ended it, if it failed.
    """
    told = [read_stage(folder.stage(stage.name), stage) for stage in stages]
    origin = {**origin, **{key: value for t in told if t.about for key, value in t.about.tags.items()}}
    parts = [
        f"**Failed:** {error}" if error else "",
        headline(told),
        what(recipe, stages),
        weights(recipe, told),
        scores(told),
        tests(told),
        classes_of(told),
        published(recipe),
        cost(recipe, told, origin),
        workers(told),
        shipping(recipe, told, origin),
        data(told),
        again(recipe, folder, origin),
        checkpoints(told),
        pictures(recipe, told, runs, run),
    ]
    text = "\n\n".join(part for part in parts if part)
    return text.replace(str(folder.path), address_of(recipe).partition("?")[0]) if is_bucket(recipe.output) else text


def what(recipe: Recipe, stages: Sequence[Stage]) -> str:
    """The experiment in a few lines."""
    tags = subject(recipe, stages[0] if len(stages) == 1 else None)
    options = ", ".join(f"{k}={v}" for k, v in recipe.head.items() if k != "name")
    task = f"{tags['task']}, " if "task" in tags else ""
    paper = f", {tags['paper']}" if "paper" in tags else ""
    head = f"{task}head `{tags['head']}`" + (f" ({options})" if options else "") + paper
    given = recipe.weights or recipe.backbone.weights
    start = f"weights `{given}`" if given else "random weights"
    trunk = f"trunk `{recipe.backbone.name}` at output stride {recipe.backbone.output_stride} from {start}"
    text = f"**What:** {head}; {trunk}; on **{tags['benchmark']}**, seed {recipe.seed}, batch {recipe.batch}."
    names = [stage.name for stage in recipe.stages]
    if len(stages) > 1:
        return f"{text} Stages, each from the weights of the one before: {' → '.join(names)}."
    at = names.index(stages[0].name)
    return text + (f" Stage {at + 1} of {len(names)}, from the weights of {names[at - 1]}." if at else "")


def weights(recipe: Recipe, told: Sequence[Told]) -> str:
    """What of the file of weights was taken; empty where there was none, and up to 0.6."""
    params = next((t.about.params for t in told if t.about), {})
    key, source = ("weights", recipe.weights) if recipe.weights else ("backbone.weights", recipe.backbone.weights)
    given = {what: params.get(f"{key}.{what}") for what in ("taken", "left", "missing")}
    if not given["taken"]:
        return ""
    parts = "; ".join(f"{what}: {plain(str(text))}" for what, text in given.items())
    return f"**Weights** of `{source}`: {parts}."


def headline(told: Sequence[Told]) -> str:
    """The result in a line, with its protocol: the page shows little more until one asks for it."""
    scored = [(t.stage, t.result) for t in told if t.result and t.result.miou is not None]
    if not scored:
        return "**Result:** no score." if all(t.result for t in told) else "**Result:** none yet."
    stage, last = scored[-1]
    where = f"all {last.val_rows} rows of {stage.val}"
    return f"**Result: {percent(last.miou)} % {last.metric}** after {last.stage}, on {where} ({last.protocol})."


def scores(told: Sequence[Told]) -> str:
    """The scores of the stages that have ended."""
    if not (rows := [result_row(t.result) for t in told if t.result]):
        return ""
    first = next(t.result for t in told if t.result)
    metric, whole = first.metric, ", from one confusion matrix over the rows" if first.metric == Result.metric else ""
    head = ["stage", "rows trained on", "steps", f"{metric} before", f"{metric} after", "best (step)", "val rows"]
    line = f"**Stages**, {metric} in percent, {first.protocol}{whole}; – where there are no such rows:"
    return f"{line}\n\n{table(head, rows)}"


def result_row(done: Result) -> list[str]:
    """A stage's line of the table."""
    best = f"{percent(done.best)} ({done.best_step})" if done.best is not None and done.val_rows else "–"
    return [done.stage, str(done.rows), str(done.steps), percent(done.miou_before), percent(done.miou), best,
            str(done.val_rows or "–")]  # fmt: skip


def tests(told: Sequence[Told]) -> str:
    """The scores of the protocols that a stage was tested under, with their intervals where there are any."""
    rows = []
    for t in told:
        for key, value in t.values.items():
            if found := re.fullmatch(r"test/(.+)/mIoU", key):
                low, high = (t.values.get(f"{key}_{end}") for end in ("low", "high"))
                interval = f"{low:.2f} to {high:.2f}" if low is not None and high is not None else "not computed"
                words = t.result.tests.get(found[1], {}).get("protocol", "") if t.result else ""
                rows.append([t.stage.name, found[1], f"{value:.2f}", interval, words])
    if not rows:
        return ""
    return "**Tested by protocol**, the best weights:\n\n" + table(
        ["stage", "protocol", "mIoU %", "interval", "how"], rows
    )


def classes_of(told: Sequence[Told]) -> str:
    """The weakest and the strongest classes of the last scores."""
    scored = [t.result for t in told if t.result and any(v is not None for v in t.result.iou)]
    if not scored:
        return ""
    pairs = [(v, name) for v, name in zip(scored[-1].iou, scored[-1].classes, strict=False) if v is not None]
    ranked = [f"{plain(name)} {percent(value)}" for value, name in sorted(pairs)]
    after = f"({score_of_class(scored[-1].metric)} in percent, after {scored[-1].stage})"
    if len(ranked) < 7:
        return f"**Classes** {after}: {', '.join(ranked)}."
    return f"**Weakest classes** {after}: {', '.join(ranked[:3])}; strongest: {', '.join(ranked[-3:])}."


def published(recipe: Recipe) -> str:
    """The published table that the recipe names, in a table of its own."""
    if not recipe.published:
        return ""
    from pipelines.published.printed import cell, conditions
    from pipelines.published.results import NAMES, results_table

    try:
        source = results_table(recipe.published)
    except ValueError as error:
        return f"**Published:** {error}"
    columns = [column for column in source.columns if column != "per_class"]
    own = [row for row in source.rows if NAMES[source.id.partition("/")[0]] in str(row.get("method", ""))]
    rows = [[plain(cell(row[column])) for column in columns] for row in own or source.rows]
    line = f"**Published, for comparison:** {source.name}, {plain(conditions(source))}."
    return f"{line} As printed; nothing of it was measured here.\n\n{table(columns, rows)}"


def cost(recipe: Recipe, told: Sequence[Told], origin: Mapping[str, str]) -> str:
    """Parameters and multiply-accumulates of the model, time and memory of the training."""
    known = next((t.about.params for t in reversed(told) if t.about), {})
    parts = []
    if "cost.parameters" in known:
        parts.append(f"{known['cost.parameters'] / 1e6:.2f} M parameters")
        parts.append(f"{known['cost.macs'] / 1e9:.3g} GMACs at {known['cost.size']} ({known['cost.convention']})")
    sizes = {k: v for t in told for k, v in t.values.items() if k.startswith("cost/GMACs@")}
    parts += [f"{v:.4g} GMACs at {k.partition('@')[2]}" for k, v in sizes.items()]
    done = [t.result for t in told if t.result and t.result.images_per_s > 0]
    if done:
        seconds = sum(r.steps * recipe.batch / r.images_per_s for r in done)
        on = f" on {origin['hardware']}" if "hardware" in origin else ""
        parts.append(f"{duration(seconds)} of training without validation, {done[-1].images_per_s:.1f} images/s{on}")
    if peak := max((t.values.get("speed/gpu_peak_mib", 0.0) for t in told), default=0.0):
        parts.append(f"{peak:.0f} MiB of GPU memory at most")
    return f"**Cost:** {'; '.join(parts)}." if parts else ""


def workers(told: Sequence[Told]) -> str:
    """With how many workers stages trained in which the number changed; empty where it never did."""
    texts = [
        f"{t.stage.name} with {t.workers[0][1]}"
        + "".join(f", from step {step} on with {count}" for step, count in t.workers[1:])
        for t in told
        if len(t.workers) > 1
    ]
    if not texts:
        return ""
    return f"**Workers:** {'; '.join(texts)}. The batches are the same, their sums are rounded otherwise."


def shipping(recipe: Recipe, told: Sequence[Told], origin: Mapping[str, str]) -> str:
    """What speaks against using the weights."""
    if not all(t.result for t in told):
        return ""
    found = [*doubts(recipe, [(t.stage, t.about, t.result) for t in told if t.result], origin)]
    if not found:
        return "**May I ship it?** Nothing that was looked at speaks against it."
    return "\n".join(["**May I ship it?** Know before you do:", "", *(f"- {doubt}" for doubt in found)])


def pictures(recipe: Recipe, told: Sequence[Told], runs: Mapping[str, str], run: str) -> str:
    """The curves of the run, and what the last stage that was scored sees, from their artifacts.

    Args:
        runs: stage -> id of its run, which has the validation's pictures.
        run: id of the run that has the curves.
    """
    scored = [t for t in told if t.result and t.result.miou is not None and t.stage.name in runs]
    if not scored:
        return ""
    last = scored[-1]
    val = [line for line in read_record(last.place.record)[0] if line["kind"] == "val"][-1]
    overlays = [f"overlays/{'/'.join(Path(overlay).parts[-2:])}" for overlay in val["overlays"][:1]]
    shown = [(CURVES, run), *((overlay, runs[last.stage.name]) for overlay in overlays)]
    links = [f"![{path}](get-artifact?path={quote(path, safe='')}&run_uuid={owner})" for path, owner in shown]
    rows = "some rows" if recipe.task == "classification" else "a row"
    line = f"**Pictures:** curves; image, truth and prediction of {rows} after {last.stage.name}."
    return "\n\n".join([line, *links])


def data(told: Sequence[Told]) -> str:
    """The splits that were read, by their hash."""
    rows: dict[tuple[str, str], list[str]] = {}
    for t in told:
        for part, name in (("train", t.stage.train), ("val", t.stage.val)):
            params = t.about.params if t.about else {}
            if name and f"shards.{part}" in params:
                row = [name, part, str(params[f"shards.{part}.rows"]), f"`{params[f'shards.{part}.hash'][:12]}`"]
                rows[name, part] = [*row, f"`{params[f'shards.{part}']}`"]
    return "**Data:**\n\n" + table(["split", "for", "rows", "hash", "where"], list(rows.values())) if rows else ""


def again(recipe: Recipe, folder: RunFolder, origin: Mapping[str, str]) -> str:
    """The command that makes the same run anew."""
    words = shlex.join(["python", "-m", "pipelines.train", str(folder.recipe), f"name={recipe.name}-again"])
    commit = origin.get("mlflow.source.git.commit")
    at = f" of commit {commit[:12]}" if commit else ""
    version = f" (version {origin['version']}{at})" if "version" in origin else ""
    where = "the page is the artifact `recipe.yaml`, of a stage its parent's"
    return f"**Reproduce**{version}; {where}:\n\n```\n{words}\n```"


def checkpoints(told: Sequence[Told]) -> str:
    """Where the weights are, and what scores them."""
    lines = []
    for t in told:
        if t.result:
            path = final_weights(t.place)
            lines.append(f"- {t.stage.name}: `{path}`, artifact `checkpoint/{path.name}` of its run")
    return "\n".join(["**Checkpoints:**", "", *lines]) if lines else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def plain(text: str) -> str:
    """A name or a value within Markdown."""
    return re.sub(r"([|*_`<\[\]\\])", r"\\\1", text)
