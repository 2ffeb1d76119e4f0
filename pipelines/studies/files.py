"""What a study leaves: its table as text, Markdown and a page, its pictures, and which trial did best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.base.errors import InputError
from pipelines.base.files import write_text
from pipelines.driver.planned import PlannedStage
from pipelines.recipes.model import how
from pipelines.studies.plots import draw
from pipelines.studies.study import StudyPlan, Trial
from pipelines.studies.table import build, html, markdown, text
from pipelines.studies.trial import TrialContext, row_of


@dataclass(frozen=True)
class Numbers:
    """What is published of a study's variants, in percent, and where; empty where nothing is."""

    values: Mapping[str, float | None]
    label: str


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
        return Numbers(
            published_values(given.table, given.column, rows), results_table(given.table).label(given.column)
        )
    except ValueError as error:
        raise InputError(f"published: {error}") from None


def write_files(
    plan: StudyPlan,
    place: TrialContext,
    trials: Sequence[Trial],
    protocol: str | Mapping[str, str],
    numbers: Numbers,
    caption: str,
    confidence: float,
) -> tuple[dict[str, Path], str | None]:
    """Table and pictures of what has ended so far; prints the table.

    Returns:
        The files by their names as artifacts, and the best trial's name where one was scored.
    """
    rows = [row_of(t.variant, t.seed, t.recipe, place.trial(t.name)) for t in trials]
    study, folder = plan.study, place.study
    table = build(
        study.title,
        settings_of(plan, place, trials),
        rows,
        protocol,
        baseline=study.baseline,
        published=numbers.values,
        published_as=numbers.label,
        curve=study.curve,
        notes=" ".join(filter(None, [study.notes.strip(), caption])),
        confidence=confidence,
    )
    forms = {"txt": text, "md": markdown, "html": html}
    for suffix, form in forms.items():
        write_text(folder.table(suffix), form(table))
    print("\n" + text(table), flush=True)
    files = {path.name: path for path in (*map(folder.table, forms), folder.page)}
    files |= {f"plots/{name}": Path(path) for name, path in draw(table, folder.plots).items()}
    scored = [(row["miou"], trial.name) for row, trial in zip(rows, trials, strict=True) if row["miou"] is not None]
    return files, max(scored, key=lambda pair: pair[0])[1] if scored else None


def settings_of(plan: StudyPlan, place: TrialContext, trials: Sequence[Trial]) -> dict[str, dict[str, Any]]:
    """What each variant sets; of a search each trial's point, and the share of the steps that a part reached."""
    if plan.study.search is None:
        return {name: variant.set for name, variant in plan.study.variants.items()}
    return {trial.name: place.point(trial.name) | place.share(trial.name) for trial in trials}


def protocol_of(planned: Sequence[PlannedStage], trial: Trial) -> str:
    """How the scores of a study came about: split, rows, way to predict, length of the training."""
    split, rows = [(stage.stage.val, stage.val.rows) for stage in planned if stage.val][-1]
    steps = " + ".join(f"{stage.steps} steps of {trial.recipe.batch} ({stage.stage.name})" for stage in planned)
    return f"{split}, {rows} rows, {how(trial.recipe)}; {steps}"
