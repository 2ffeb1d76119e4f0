"""What a study writes: its table as text, Markdown, HTML and JSON, its plots, and the name of the best trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.base.errors import InputError
from pipelines.base.files import to_json, write_text
from pipelines.driver.planned import PlannedStage
from pipelines.recipes.model import how
from pipelines.recipes.reading import make_recipe
from pipelines.recipes.tasks import metric_of
from pipelines.studies.plots import draw
from pipelines.studies.study import StudyPlan, Trial
from pipelines.studies.table import build, html, markdown, numbers, text
from pipelines.studies.trial import TrialContext, row_of


@dataclass(frozen=True)
class Numbers:
    """Published numbers of a study's variants, in percent, and where they are printed; empty where there are none.

    Attributes:
        values: by variant.
        label: the table, its column and protocol, and what is printed otherwise elsewhere.
        elsewhere: variant -> what another place of the papers says of its number.
        classes: variant -> IoU of each class, in the benchmark's order, where the table prints it.
    """

    values: Mapping[str, float | None]
    label: str
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    classes: Mapping[str, Sequence[float]] = field(default_factory=dict)


def published_of(plan: StudyPlan) -> Numbers:
    """The published numbers of the variants.

    Raises:
        InputError: no such table, column or row.
    """
    given = plan.study.published
    if given is None:
        return Numbers({}, "")
    from pipelines.published.results import published_values, results_table

    try:
        rows = {name: variant.published for name, variant in plan.study.variants.items()}
        metric = metric_of(make_recipe(plan.page).task)
        values, table = published_values(given.table, given.column, rows, metric), results_table(given.table)
        found = {name: table.row(where) for name, where in rows.items() if where is not None}
        others = {name: says for name, row in found.items() if (says := table.elsewhere(row, given.column))}
        said = "".join(f"; * of {name} elsewhere: {says}" for name, says in others.items())
        classes = {name: row["per_class"] for name, row in found.items() if row.get("per_class") is not None}
        return Numbers(values, table.label(given.column) + said, others, classes)
    except ValueError as error:
        raise InputError(f"published: {error}") from None


def write_files(
    plan: StudyPlan,
    place: TrialContext,
    trials: Sequence[Trial],
    protocol: str | Mapping[str, str],
    published: Numbers,
    caption: str,
    confidence: float,
) -> tuple[dict[str, Path], str | None]:
    """Write table and plots of the trials that have ended so far; print the table.

    Returns:
        The files by their names as artifacts, and the name of the trial with the highest score where one has any.
    """
    rows = [row_of(t.variant, t.seed, t.recipe, place.trial(t.name)) for t in trials]
    study, folder = plan.study, place.study
    table = build(
        study.title,
        settings_of(plan, place, trials),
        rows,
        protocol,
        baseline=study.baseline,
        published=published.values,
        published_as=published.label,
        elsewhere=published.elsewhere,
        published_classes=published.classes,
        curve=study.curve,
        notes=" ".join(filter(None, [study.notes.strip(), caption])),
        confidence=confidence,
        metric=metric_of(make_recipe(plan.page).task),
    )
    forms = {"txt": text, "md": markdown, "html": html, "json": lambda table: to_json(numbers(table), indent=1)}
    for suffix, form in forms.items():
        write_text(folder.table(suffix), form(table))
    print("\n" + text(table), flush=True)
    files = {path.name: path for path in (*map(folder.table, forms), folder.page)}
    files |= {f"plots/{name}": Path(path) for name, path in draw(table, folder.plots).items()}
    scored = [(row["miou"], trial.name) for row, trial in zip(rows, trials, strict=True) if row["miou"] is not None]
    return files, max(scored, key=lambda pair: pair[0])[1] if scored else None


def settings_of(plan: StudyPlan, place: TrialContext, trials: Sequence[Trial]) -> dict[str, dict[str, Any]]:
    """The settings of each variant; of a search each trial's point, and the share of the steps that a part reached."""
    if plan.study.search is None:
        return {name: variant.set for name, variant in plan.study.variants.items()}
    return {trial.name: place.point(trial.name) | place.share(trial.name) for trial in trials}


def protocol_of(planned: Sequence[PlannedStage], trial: Trial) -> str:
    """How the scores of a study were measured: split, rows, way to predict, length of the training."""
    split, rows = [(stage.stage.val, stage.val.rows) for stage in planned if stage.val][-1]
    steps = " + ".join(f"{stage.steps} steps of {trial.recipe.batch} ({stage.stage.name})" for stage in planned)
    return f"{split}, {rows} rows, {how(trial.recipe)}; {steps}"
