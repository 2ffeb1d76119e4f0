"""What a study leaves: its table as text, Markdown and a page, its pictures, and which trial did best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import study_table
from pipelines.preflight import Leg
from pipelines.recipe import RecipeError
from pipelines.record import write_text
from pipelines.stages import how
from pipelines.study import Plan, Trial
from pipelines.trials import Place, row_of


@dataclass(frozen=True)
class Numbers:
    """What is published of a study's variants, in percent, and where; empty where nothing is."""

    values: Mapping[str, float | None]
    label: str


def published_of(plan: Plan) -> Numbers:
    """The published numbers of the variants.

    Raises:
        RecipeError: no such table, column or row.
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
        raise RecipeError(f"published: {error}") from None


def write_files(
    plan: Plan,
    place: Place,
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
    study, folder = plan.study, place.folder
    table = study_table.build(
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
    write_text(folder / "table.txt", study_table.text(table))
    write_text(folder / "table.md", study_table.markdown(table))
    write_text(folder / "table.html", study_table.html(table))
    print("\n" + study_table.text(table), flush=True)
    files = {name: folder / name for name in ("table.txt", "table.md", "table.html", "study.yaml")}
    files |= {f"plots/{name}": Path(path) for name, path in study_table.plots(table, folder / "plots").items()}
    scored = [(row["miou"], trial.name) for row, trial in zip(rows, trials, strict=True) if row["miou"] is not None]
    return files, max(scored, key=lambda pair: pair[0])[1] if scored else None


def settings_of(plan: Plan, place: Place, trials: Sequence[Trial]) -> dict[str, dict[str, Any]]:
    """What each variant sets; of a search each trial's point, and the share of the steps that a part reached."""
    if plan.study.search is None:
        return {name: variant.set for name, variant in plan.study.variants.items()}
    return {trial.name: place.point(trial.name) | place.share(trial.name) for trial in trials}


def protocol_of(legs: Sequence[Leg], trial: Trial) -> str:
    """How the scores of a study came about: split, rows, way to predict, length of the training."""
    split, rows = [(leg.stage.val, leg.val.rows) for leg in legs if leg.val][-1]
    steps = " + ".join(f"{leg.steps} steps of {trial.recipe.batch} ({leg.stage.name})" for leg in legs)
    return f"{split}, {rows} rows, {how(trial.recipe)}; {steps}"
