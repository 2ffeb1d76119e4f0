"""What a recipe's step takes of each worker, and whether its GPU has that."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence

from pipelines.base.errors import InputError
from pipelines.cluster.gpus import Found, gpus_here, gpus_of_nodes
from pipelines.cluster.sizes import Sizes
from pipelines.recipes.model import frozen_norms, meta_model, pretrained_by
from pipelines.recipes.recipe import Recipe, micro_batch
from pipelines.recipes.tasks import SEGMENTATION
from segmodels.gpus import CONTEXT_BYTES, known_gpu
from segmodels.heads.lean import set_recompute
from segmodels.losses import Objective
from segmodels.optim import STATES
from segmodels.step_cost import StepCost, step_cost

GIB = 2**30
KNOWN: dict[str, StepCost] = {}  # of the last model


def estimate(recipe: Recipe, classes: int, world: int, precision: str, micro: int | None = None) -> StepCost:
    """A step of one of `world` workers, of a segmentor.

    Args:
        classes: K.
        precision: `bf16`, `fp16` or `fp32`.
        micro: images of a forward pass; None as the recipe says.

    Raises:
        ValueError: the model does not take such a batch, or the task is another.
    """
    if recipe.task != SEGMENTATION:
        raise ValueError(f"a step of task: {recipe.task} is not estimated, only those of task: {SEGMENTATION}")
    images = micro or micro_batch(recipe, world)
    passes = max(1, recipe.batch // world // images)
    parts = (recipe.backbone, recipe.weights, recipe.view.crop, recipe.head, recipe.aux, recipe.loss,
             recipe.optim.ema > 0, recipe.optim.freeze_norm, recipe.optim.name, recipe.workers.recompute, classes,
             images, passes, world > 1, precision)  # fmt: skip
    if repr(parts) not in KNOWN:
        if len(KNOWN) > 16:
            KNOWN.clear()
        model = meta_model(recipe, classes)
        KNOWN[repr(parts)] = step_cost(
            model, Objective(recipe.loss), recipe.view.crop, images, precision=precision, passes=passes, world=world,
            average=recipe.optim.ema > 0, states=STATES[recipe.optim.name],
            frozen=frozen_norms(model, recipe, pretrained_by(recipe)),
        )  # fmt: skip
    return KNOWN[repr(parts)]


def precision_on(recipe: Recipe, gpu: str) -> str:
    """In what a GPU would compute: `auto` is bf16 where it has that."""
    wish, known = recipe.workers.precision, known_gpu(gpu)
    if wish != "auto":
        return wish
    return "fp32" if known and not known.bf16 else "bf16"


def check_memory(recipe: Recipe, classes: int, sizes: Sizes, gpus: Sequence[Found]) -> str:
    """Whether a step has room on the smallest GPU that a worker may get.

    Args:
        classes: K, of the stage with the most.
        gpus: kinds of GPUs; nothing is checked where none is known.

    Returns:
        A warning where it is close, else nothing.

    Raises:
        InputError: it has none; the message says what would.
    """
    known = [gpu for gpu in gpus if not math.isnan(gpu[1])]
    if not sizes.gpus or not known or recipe.task != SEGMENTATION:  # other tasks are not estimated
        return ""
    name, gib = min(known, key=lambda gpu: gpu[1])
    world, precision = max(1, sizes.count), precision_on(recipe, name)
    try:
        cost = estimate(recipe, classes, world, precision)
    except ValueError as error:
        raise InputError(f"{error} (batch, workers.count, workers.micro_batch)") from None
    what = f"{told(cost, recipe, classes)} needs {cost.peak / GIB:.1f} GiB on each GPU"
    if fits(cost, gib, 0.5):
        close = "" if fits(cost, gib * 0.9, 1.0) else f"{what}, and {name} has {gib:.1f} GiB: that is close"
        return f"{close}. {cure(recipe, classes, world, precision, cost, gib)}" if close else ""
    raise InputError(
        f"{what}, beside what CUDA itself takes, and {name} has {gib:.1f} GiB. "
        f"{cure(recipe, classes, world, precision, cost, gib)}"
    )


def check_gpus(recipe: Recipe, classes: int, sizes: Sizes) -> None:
    """As `check_memory`, of the GPUs that this machine or the Ray session has; a close fit is told on the screen."""
    import ray

    if not sizes.gpus:
        return
    if close := check_memory(recipe, classes, sizes, gpus_of_nodes() if ray.is_initialized() else gpus_here()):
        print(f"warning: {close}", file=sys.stderr, flush=True)


def fits(cost: StepCost, gib: float, context: float = 1.0) -> bool:
    """Whether a step has room beside CUDA's context.

    Args:
        gib: of the GPU.
        context: how much of `CONTEXT_BYTES` is needed at least.
    """
    return cost.peak + context * CONTEXT_BYTES <= gib * GIB


def told(cost: StepCost, recipe: Recipe, classes: int) -> str:
    """A step in words."""
    h, w = recipe.view.crop
    images = "1 image" if cost.images == 1 else f"{cost.images} images"
    return f"a training step of {images} of {h}x{w} at a time, with {classes} classes in {cost.precision},"


def cure(recipe: Recipe, classes: int, world: int, precision: str, cost: StepCost, gib: float) -> str:
    """What would have room: a head that computes again, fewer images at a time, more workers; else a smaller crop."""
    share = recipe.batch // world
    again = dataclasses.replace(recipe, workers=dataclasses.replace(recipe.workers, recompute=True))
    if not recipe.workers.recompute and set_recompute(meta_model(recipe, classes), False):
        lower = estimate(again, classes, world, precision, cost.images)
        if fits(lower, gib):
            return (
                f"Give workers.recompute=true: {lower.peak / GIB:.1f} GiB, for a longer step of the same numbers; or "
                "fewer images at a time (workers.micro_batch), more workers (workers.count), or a smaller view.crop"
            )
    for micro in (size for size in range(cost.images - 1, 0, -1) if share % size == 0):
        try:
            smaller = estimate(recipe, classes, world, precision, micro)
        except ValueError:  # a single image, which a norm of the head refuses
            break
        if fits(smaller, gib):
            return (
                f"Give workers.micro_batch={micro}: {smaller.peak / GIB:.1f} GiB, gradients add up to the same batch, "
                f"and norms see {micro} image(s) of a worker at a time; or share the batch among "
                f"{recipe.batch // micro} workers (workers.count), or lower view.crop"
            )
    return "No number of images fits: lower view.crop, take a smaller trunk, or GPUs with more memory"


def memory_cure(recipe: Recipe, classes: int, sizes: Sizes, on_gpu: bool) -> str:
    """What to do where a worker ran out of memory, with what it was expected to need."""
    from pipelines.cluster.nodes import LACKS_MEMORY

    world = max(1, sizes.count)
    wish = recipe.workers.precision
    precision = wish if wish != "auto" else "bf16" if on_gpu else "fp32"
    try:
        cost = estimate(recipe, classes, world, precision)
        expected = f" Expected was: {told(cost, recipe, classes)} holds {cost.peak / GIB:.2f} GiB."
    except Exception:  # nothing may hide that memory ran out
        expected = ""
    if not on_gpu:
        return f"{LACKS_MEMORY}.{expected}"
    share = recipe.batch // world
    now = micro_batch(recipe, world)
    fewer = max((size for size in range(1, now) if share % size == 0), default=0)
    images = f"workers.micro_batch={fewer} holds fewer images at once, for the same batch; " if fewer else ""
    return (
        f"To use less memory on each GPU: {images}a smaller view.crop; more workers (workers.count), each with a "
        f"smaller share of the batch; inference.batch where it was a validation.{expected}"
    )
