"""What speaks against using a run's weights, as far as its folder tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from datasets.text import named
from pipelines.recipes.recipe import Recipe, Stage
from pipelines.runs.results import About, Result

Ended = tuple[Stage, About | None, Result]


def doubts(recipe: Recipe, stages: Sequence[Ended], origin: Mapping[str, str]) -> Iterator[str]:
    """Sentences for people, the gravest first; of stages that have ended.

    Args:
        origin: where the run comes from, as `provenance` gives it.
    """
    yield from unscored(stages)
    if recipe.data == Recipe.data:
        yield "the images are the bundled sample's, which are generated: the score says nothing of photographs"
    for stage, about, result in stages:
        if about:
            yield from of_rows(stage, about)
        if result.best is not None and chosen(recipe, stage, result):
            yield f"`best.pt` of {result.stage} was chosen by the rows that its score is of: expect less on others"
    if recipe.backbone.weights is None and recipe.weights is None:
        yield "the trunk began with random weights"
    if origin.get("git.uncommitted_changes") == "True":
        yield "the code had changes that no commit has"
    yield "it is one training under one seed: how far another seed would be from it, only a study over seeds shows"


def unscored(stages: Sequence[Ended]) -> Iterator[str]:
    """Weights that nothing is known of."""
    scored = [result.stage for _, _, result in stages if result.miou is not None]
    last = stages[-1][2].stage
    if not scored:
        yield "no weights of it were scored: nothing says how good they are"
    elif last not in scored:
        yield f"the weights of {last} were not scored; the score above is of {scored[-1]}, before these were trained on"


def of_rows(stage: Stage, about: About) -> Iterator[str]:
    """Splits that are not whole, or hold what a split should not."""
    for part, name in (("train", stage.train), ("val", stage.val)):
        facts = about.shards.get(part, {})
        if facts.get("partial"):
            whole = f" of {facts['official_rows']}" if facts.get("official_rows") else ""
            yield f"{name} has only {facts['rows']}{whole} rows of its benchmark's split"
        if facts.get("skipped"):
            yield f"{facts['skipped']} damaged row(s) were left out of {name}"
        if facts.get("duplicates"):
            yield f"{facts['duplicates']} row(s) of {name} have the image of another"
        if part == "val" and (unseen := facts.get("classes_without_a_pixel")):
            yield f"{len(unseen)} class(es) have no pixel in {name} ({named(unseen)}): of these the score says nothing"


def chosen(recipe: Recipe, stage: Stage, result: Result) -> bool:
    """Whether several validations of the stage competed for the best weights."""
    return result.steps * recipe.batch / result.rows > stage.val_every > 0
