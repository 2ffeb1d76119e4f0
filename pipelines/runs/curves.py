"""Loss and score of a chain's stages over one axis of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.base.pictures import drawable, new_figure
from pipelines.runs.results import Result, score_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSS, SCORE = "#d1730b", "#3b6ea5"  # told apart by colour-blind people too, and by their marks
Lines = Sequence[Mapping[str, Any]]


def curves_figure(stages: Mapping[str, tuple[int, Lines]]) -> Figure:
    """Training loss on the left axis, the validations' score on the right one; a rule where a stage begins.

    Args:
        stages: name -> the chain's steps before it, and the lines of its record.
    """
    figure, left = new_figure(8, 3.2)
    metric = next((score_of(x) for _, lines in stages.values() for x in lines if x["kind"] == "val"), Result.metric)
    right = left.twinx()
    for name, (before, lines) in stages.items():
        train = [(before + line["step"], line["loss"]) for line in lines if line["kind"] == "train"]
        val = [(before + x["step"], x["miou"] * 100) for x in lines if x["kind"] == "val" and x["miou"] is not None]
        if train:
            left.plot(*zip(*train, strict=True), color=LOSS, linewidth=1.2)
        if val:
            right.plot(*zip(*val, strict=True), "o-", color=SCORE, linewidth=1.2, markersize=4)
        if len(stages) > 1:
            left.axvline(before, color="#999999", linewidth=0.8, linestyle=":")
            at, look = left.get_xaxis_transform(), {"rotation": 90, "va": "top", "fontsize": 8}
            left.text(before, 0.98, drawable(name), transform=at, parse_math=False, **look)
    left.set_xlabel("steps of the chain" if len(stages) > 1 else "steps")
    left.set_ylabel("training loss (line)", color=LOSS)
    right.set_ylabel(f"validation {metric}, percent (dots)", color=SCORE)
    left.set_ylim(0, 1.05 * max((x["loss"] for _, lines in stages.values() for x in lines if "loss" in x), default=1))
    right.set_ylim(0, 100)
    return figure
