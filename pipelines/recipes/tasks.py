"""What a recipe's `task` may be, the score of each, and what of a recipe it leaves alone."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.base.errors import InputError


@dataclass(frozen=True)
class Task:
    """`metric`: the score of which the best weights have most. `heads`: names that its recipes give; empty for all of
    `segmodels.heads.catalog`. `beside`: other scores that a study's table shows, those that papers print."""

    metric: str
    heads: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


SEGMENTATION = "segmentation"
TASKS = {
    SEGMENTATION: Task("mIoU"),
    "classification": Task("top-1", ("classifier",), ("top-5",)),
    "detection": Task(
        "box AP",
        ("mask_rcnn", "cascade_mask_rcnn"),
        ("box AP50", "box AP75", "mask AP", "mask AP50", "mask AP75"),
    ),
    "panoptic": Task("PQ", ("panoptic_fpn",), ("PQ things", "PQ stuff")),
}
# Keys that only segmentation has; other tasks leave them as they are by default.
OWN = ("aux", "loss", "protocols", "measures", "validation", "inference.mode", "inference.window", "inference.stride",
       "inference.scales", "inference.flip", "view.rotate", "view.brightness", "view.contrast",
       "view.saturation", "view.hue")  # fmt: skip

# Benchmarks whose shards have what a task learns; beside them the bundled sample's.
SOURCES = {
    "classification": ("imagenet",),
    "detection": ("coco_instances",),
    "panoptic": ("coco_panoptic",),
}


def metric_of(task: str) -> str:
    """The name of a task's score."""
    return TASKS[task].metric


def beside(metric: str) -> tuple[str, ...]:
    """Other scores that stand beside a task's own in the tables of studies."""
    return next(task.beside for task in TASKS.values() if task.metric == metric)


def refuse_task(task: str, what: str) -> None:
    """Refuse what only segmentation can.

    Args:
        task: of the checkpoint or recipe.
        what: the beginning of the message, such as `explain best.pt:`.

    Raises:
        InputError: the task is another.
    """
    if task != SEGMENTATION:
        raise InputError(
            f"{what} only models of task: {SEGMENTATION} are taken, which give every pixel a class; this one is of "
            f"task: {task}. `predict` and `evaluate` take it"
        )
