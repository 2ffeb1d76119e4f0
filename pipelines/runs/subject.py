"""What a run is about, as tags by which MLflow's page filters and sorts."""

from __future__ import annotations

from pipelines.base.addresses import locate
from pipelines.recipes.model import how
from pipelines.recipes.recipe import Recipe, Stage
from pipelines.recipes.tasks import SEGMENTATION
from segmodels.cards import paper_of
from segmodels.heads.catalog import HEADS


def subject(recipe: Recipe, stage: Stage | None = None) -> dict[str, str]:
    """Paper of the head, head, trunk, benchmark, protocol and published table of a stage, or of a whole chain.

    Args:
        stage: of the recipe; None for the chain, whose benchmark is that of the last stage that is validated.
    """
    shown = stage or ([s for s in recipe.stages if s.val] or recipe.stages)[-1]
    tags = {
        "task": recipe.task if recipe.task != SEGMENTATION else "",
        "paper": paper(recipe.head["name"]),
        "head": recipe.head["name"],
        "trunk": recipe.backbone.name,
        "benchmark": benchmark(recipe, shown),
        "protocol": how(recipe) if shown.val else "",
        "published": recipe.published or "",
    }
    return {key: value for key, value in tags.items() if value}


def paper(head: str) -> str:
    """Where a head comes from: authors, venue and year, arXiv's number; empty for a head that is not in the table."""
    if head not in HEADS:
        return ""
    found = paper_of(HEADS[head])
    return ", ".join(filter(None, [found.authors, found.venue, found.arxiv and f"arXiv:{found.arxiv}"]))


def benchmark(recipe: Recipe, stage: Stage) -> str:
    """The folder of the split that a stage is validated on, else trained on: `prepare` names it as the benchmark."""
    parts = locate(recipe.data, stage.val or stage.train).partition("?")[0].rstrip("/").split("/")
    return parts[-2] if len(parts) > 1 and parts[-2] else parts[-1]
