"""Whether a device computes what it should: shared by `bench gpu` and the tests that need a GPU.

Each check takes any device, so that a CPU can rehearse it.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pipelines.feed.batch import Batch
from pipelines.speed.lone import drawn_batch
from pipelines.speed.rounds import difference, exact
from pipelines.training.learner import Learner
from pipelines.training.step import train_step


@contextlib.contextmanager
def no_waits(device: torch.device) -> Iterator[None]:
    """Within the body, an operation that waits for the GPU is an error.

    Raises:
        RuntimeError: one does.
    """
    if device.type != "cuda":
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode says of itself that it is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def quiet_step(learner: Learner) -> tuple[float, int]:
    """A training step without a wait, after one that warms up.

    Returns:
        The loss of the second step, and the number of parameters without a finite gradient.

    Raises:
        RuntimeError: the step waits for the GPU.
    """
    batch = drawn_batch(learner)
    train_step(learner, batch, 0)
    with no_waits(learner.device):
        losses, _ = train_step(learner, batch, 1)
    wrong = [
        p for p in learner.model.parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())
    ]
    return losses[0].item(), len(wrong)


def parity(model: nn.Module, image: Tensor, device: torch.device) -> dict[str, float]:
    """How far a model in evaluation is from itself in float64 on a CPU, relative to its greatest logit.

    Args:
        model: on any device; it is copied.
        image: uint8 (B, 3, H, W).
        device: which computes in float32 (TF32 off) and, by autocast, in bfloat16.
    """
    fresh = copy.deepcopy(model).cpu().eval()
    with torch.no_grad():
        wanted = copy.deepcopy(fresh).double()(image)["logits"]
        there, moved = fresh.to(device), image.to(device)
        found = {}
        with exact():
            found["fp32"] = there(moved)["logits"]
        with torch.autocast(device.type, torch.bfloat16):
            found["bf16"] = there(moved)["logits"]
    return {name: apart(logits, wanted) for name, logits in found.items()}


def apart(found: Tensor, wanted: Tensor) -> float:
    """As `difference`, of tensors of any devices and types."""
    return difference(found.cpu().double(), wanted.cpu().double())


def after_steps(learner: Learner, steps: int) -> dict[str, Tensor]:
    """The weights after some steps, each on a batch of its own."""
    for step in range(steps):
        train_step(learner, drawn_batch(learner, seed=step), step)
    return {name: value.detach().cpu().clone() for name, value in learner.model.state_dict().items()}


def unlike(a: dict[str, Tensor], b: dict[str, Tensor]) -> int:
    """How many numbers of two models' weights differ, bit for bit."""
    return sum(int((a[name] != b[name]).sum()) for name in a)


@contextlib.contextmanager
def deterministic(wanted: bool = True) -> Iterator[None]:
    """Within the body PyTorch takes only kernels that give the same twice, and searches for none by their speed.

    On CUDA the environment must have CUBLAS_WORKSPACE_CONFIG=:4096:8 from before the first product on.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark and not wanted
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def moved(batch: Batch, learner: Learner) -> Batch:
    """A batch on the learner's device, in its layout."""
    return batch.to(learner.device, learner.channels_last)
