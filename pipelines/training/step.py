"""One step of training: batch, outputs, loss, gradients, update."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelines.feed.batch import Batch, Target
from pipelines.feed.blank import blank_target
from pipelines.recipes.model import train_mode
from pipelines.training.learner import Learner
from segmodels.optim import rate_factor, set_lr


def train_step(learner: Learner, batch: Batch, step: int, asked: int = 0) -> tuple[Tensor, Tensor]:
    """One update of the weights, from this worker's share of a batch.

    Args:
        batch: the share, on the host.
        step: number of the step, from 0.
        asked: what rank 0 asks of all, see `Notice.word`; 0 on the others.

    Returns:
        This worker's part of the global loss and, after it, of each unweighted term (1 + T,), and what is
        asked as all workers know it; both on the device.
    """
    job, recipe, world = learner.job, learner.job.recipe, learner.world
    torch.manual_seed(dropout_seed(recipe.seed, step, learner.rank))  # dropout needs no state in checkpoints
    set_lr(learner.optimizer, rate_factor(step, job.steps, job.schedule, warmup=job.warmup))
    batch = batch.to(learner.device, learner.channels_last)
    labelled, ending = over_workers(count_labelled(batch.target, learner.device), asked, world)
    learner.optimizer.zero_grad(set_to_none=True)
    losses = []
    for part, last in micro_batches(batch, learner.micro):
        # Shares of the GLOBAL batch's labelled pixels and images; DDP averages, hence the number of workers.
        pixels = count_labelled(part.target, learner.device) / labelled * world
        images = len(part) / recipe.batch * world
        with synchronise(learner.net, last):
            loss, terms = learner.losses(part.image, part.target, pixels, images)
        scaled = learner.scaling.scaled(loss) if learner.scaling else loss
        scaled.backward()
        losses.append(torch.stack([loss.detach(), *terms.values()]) / world)
    if learner.scaling:
        learner.scaling.step(learner.optimizer)
    else:
        learner.optimizer.step()
    after_step(learner.model)
    if learner.average:
        learner.average.update(learner.model, step=step + 1)
    return sum(losses[1:], start=losses[0]), ending


def rehearse(learner: Learner) -> None:
    """Let DDP settle the order in which it adds up gradients, before a step counts.

    It orders its buckets by the first backward pass of a process, and from three workers on sums are rounded by that
    order: without a rehearsal, a stage that was resumed would add up otherwise than one that was not.
    """
    if learner.world < 3:
        return
    model, recipe = learner.model, learner.job.recipe
    kept = [buffer.clone() for buffer in model.buffers()]
    image = torch.zeros(learner.micro, 3, *recipe.view.crop, dtype=torch.uint8)
    batch = Batch(image, blank_target(recipe, learner.micro)).to(learner.device, learner.channels_last)
    train_mode(model, learner.frozen)
    shares = torch.ones((), device=learner.device), learner.micro / recipe.batch * learner.world
    learner.losses(batch.image, batch.target, *shares)[0].backward()
    learner.optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), kept, strict=True):
            buffer.copy_(before)


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """The seed of a worker's dropout at a step, 0 to 2^63 − 1; drawn as the views' are, by SHA-256."""
    digest = hashlib.sha256(f"dropout {seed} {step} {rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def micro_batches(batch: Batch, size: int) -> Iterator[tuple[Batch, bool]]:
    """Parts of a batch, each with whether it is the last."""
    for first in range(0, len(batch), size):
        yield batch.part(slice(first, first + size)), first + size >= len(batch)


def synchronise(net: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Gradients travel between workers only with the last part of an accumulated batch."""
    return contextlib.nullcontext() if last or not hasattr(net, "no_sync") else net.no_sync()  # type: ignore[operator]


def after_step(model: nn.Module) -> None:
    """Let modules move what no gradient moves: EMANet's bases, averaged over the workers."""
    for module in model.modules():
        if callable(move := getattr(module, "after_step", None)):
            move()


def count_labelled(target: Target, device: torch.device) -> Tensor:
    """Labelled pixels of masks, on the device; 0 for a target that is none: those losses count images."""
    if isinstance(target, Tensor) and target.ndim == 3:
        return (target != 255).sum().float()
    return torch.zeros((), device=device)


def over_workers(labelled: Tensor, asked: int, world: int) -> tuple[Tensor, Tensor]:
    """Labelled pixels of all workers, at least 1, and what rank 0 asks, or 0; never a host sync."""
    both = torch.stack([labelled, torch.full_like(labelled, asked)])
    if world > 1:
        dist.all_reduce(both)
    return both[0].clamp(min=1.0), both[1]
