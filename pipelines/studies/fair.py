"""What makes a comparison fair, and what can be found wrong with any of its trials before the first one starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from pipelines.base.errors import InputError, users_message
from pipelines.driver.checks import check_model
from pipelines.driver.planned import Guard, PlannedStage, plan_stages
from pipelines.recipes.recipe import Recipe, flatten, to_page
from pipelines.studies.study import Search, StudyPlan, Trial, ablated

# Ablated keys that change which samples a trial sees, or how many: then "same samples, same steps" cannot hold.
SAMPLES = ("batch", "data", "stages", "view")


def expand(plan: StudyPlan, guard: Guard = nullcontext) -> list[Trial]:
    """Variants x seeds, the seeds of a variant one after the other; nothing for a search, whose points come later.

    Args:
        plan: the study.
        guard: is around each variant.

    Raises:
        InputError: a variant with a key or a value that the recipe refuses.
    """
    trials = []
    for variant, spec in plan.study.variants.items():
        with guard():
            for seed in plan.study.seeds:
                name = f"{variant}-seed{seed}"
                try:
                    recipe = plan.recipe(name, spec.set, seed)
                except InputError as error:
                    raise InputError(f"variant {variant!r}: {error}") from None
                trials.append(Trial(name, variant, seed, recipe))
    return trials


def check_models(plan: StudyPlan, trials: Sequence[Trial]) -> None:
    """Build the model of every variant, or of the corners of a search's space, without memory.

    Raises:
        InputError: all that cannot be built, each with its reason.
    """
    recipes = {f"variant {trial.variant!r}": trial.recipe for trial in trials}
    wrong = []
    if plan.study.search:
        for point in corners(plan.study.search):
            text = ", ".join(f"{key}={value}" for key, value in point.items())
            try:
                recipes[f"point {text}"] = plan.recipe("corner", point, plan.study.seeds[0])
            except InputError as error:
                wrong.append(f"point {text}: {error}")
    for name, recipe in recipes.items():
        try:
            check_model(recipe)
        except InputError as error:
            wrong.append(f"{name}: {error}")
    if wrong:
        raise InputError(
            f"{len(wrong)} of {len(recipes)} cannot be built, nothing was started:\n  " + "\n  ".join(wrong)
        )


def corners(search: Search) -> Iterator[dict[str, Any]]:
    """Each choice and each end of a range, the other keys at their first value."""
    values = {key: next(iter(spec.values())) for key, spec in search.space.items()}
    first = {key: listed[0] for key, listed in values.items()}
    for key, listed in values.items():
        for value in listed:
            yield first | {key: value}


def check_fair(plan: StudyPlan, trials: Sequence[Trial]) -> None:
    """Trials may differ in the ablated keys and in their seed, in nothing else.

    Raises:
        InputError: they differ in another key.
    """
    allowed = (*ablated(plan.study), "seed", "name")
    pages = {trial.name: page_of(trial.recipe) for trial in trials}
    if not pages:
        return
    (first, base), *others = pages.items()
    for name, page in others:
        for key in sorted(base.keys() | page.keys()):
            if base.get(key) != page.get(key) and not covered(key, allowed):
                raise InputError(
                    f"unfair: {name} has {key} = {page.get(key)!r}, {first} has {base.get(key)!r}, and the study does "
                    f"not ablate it (it ablates {', '.join(ablated(plan.study))}). Put it under the study's `set`"
                )


def page_of(recipe: Recipe) -> dict[str, Any]:
    """A recipe's page with dotted keys; stages by their place, as their names may differ."""
    page = to_page(recipe)
    page["stages"] = {str(place): stage for place, stage in enumerate(page["stages"])}
    return flatten(page)


def covered(key: str, allowed: Sequence[str]) -> bool:
    """Whether a key of a page, or a mapping that holds it, is among those that may differ; stages go by any name."""
    for name in allowed:
        own, given = key.split("."), name.split(".")
        if key == name or key.startswith(f"{name}.") or name.startswith(f"{key}."):
            return True
        if own[0] == given[0] == "stages" and (len(given) < 3 or own[2:3] == given[2:3]):
            return True
    return False


def check_samples(plan: StudyPlan, trials: Sequence[Trial], root: str) -> tuple[dict[str, list[PlannedStage]], str]:
    """Open the shards of every variant, and make sure that equal seeds mean equal samples in equal order.

    Args:
        plan: the study.
        trials: its trials; for a search a trial of its first corner.
        root: folder or URI of the shards.

    Returns:
        The stages of each variant, and a sentence for the table's caption, empty where all see the same.

    Raises:
        DataError, InputError: shards that are missing or do not fit, or samples that differ though nothing that
            decides them is ablated.
    """
    planned: dict[str, list[PlannedStage]] = {}
    opened: dict[str, list[PlannedStage]] = {}
    for trial in trials:
        if trial.variant not in planned:
            key = repr((trial.recipe.stages, trial.recipe.batch, trial.recipe.view, trial.recipe.head,
                        trial.recipe.inference, trial.recipe.validation, trial.recipe.optim.warmup))  # fmt: skip
            if key not in opened:
                opened[key] = open_stages(trial, root)
            planned[trial.variant] = opened[key]
    streams = {trial.variant: stream(trial.recipe, planned[trial.variant]) for trial in trials}
    distinct = {repr(value): value for value in streams.values()}
    if len(distinct) < 2:
        return planned, ""
    keys = [key for key in ablated(plan.study) if key.split(".")[0] in SAMPLES]
    if not keys:
        raise InputError(
            f"unfair: the variants do not train on the same samples for the same steps ({'; '.join(distinct)}), and "
            f"none of the ablated keys ({', '.join(ablated(plan.study))}) says so"
        )
    return planned, f"The variants do not see the same samples: {', '.join(keys)} decide(s) them, and is ablated."


def open_stages(trial: Trial, root: str) -> list[PlannedStage]:
    """The stages of a trial with their shards opened; an error names the variant."""
    try:
        return plan_stages(trial.recipe, root)
    except Exception as error:
        if message := users_message(error):
            raise type(error)(f"variant {trial.variant!r}: {message}") from None
        raise


def stream(recipe: Recipe, planned: Sequence[PlannedStage]) -> list[Mapping[str, Any]]:
    """What decides, with the seed, which samples each stage sees in which order, and how often."""
    view = dataclasses.asdict(recipe.view)
    return [{"shards": stage.train.hash, "batch": recipe.batch, "steps": stage.steps, **view} for stage in planned]
