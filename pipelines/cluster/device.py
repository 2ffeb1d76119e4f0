"""On what a process computes, and in which precision, for every door."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator

import torch
import torch.distributed as dist

from pipelines.base.errors import InputError
from segmodels.precision import default_device, settle_precision


def device_of(gpus: int) -> torch.device:
    """The GPU that this worker was given, or the CPU where it was given none.

    Args:
        gpus: of a worker, 0 or 1; a machine's GPU is not touched without being asked for.
    """
    if not gpus:
        return torch.device("cpu")
    import ray.train.torch

    device: torch.device = ray.train.torch.get_device()
    return device


def device_here(gpus: int | None = None) -> torch.device:
    """On what a process computes that is no worker.

    Args:
        gpus: 0 for the CPU; None for a GPU where there is one, 1 for that too.

    Raises:
        InputError: a GPU is asked for, and there is none.
    """
    if gpus == 0:
        return torch.device("cpu")
    if (device := default_device()).type == "cpu" and gpus:
        raise InputError("gpus = 1: this process sees no GPU; allowed here: 0, or leave it out")
    return device


def precision_of(wish: str, device: torch.device) -> str:
    """As `settle_precision`, which a user's wish may not suit.

    Raises:
        InputError: bf16 is asked of a GPU that only emulates it.
    """
    try:
        return settle_precision(wish, device)
    except ValueError as error:
        raise InputError(str(error)) from None


def named(device: torch.device) -> str:
    """A device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def named_together(device: torch.device, world: int) -> str:
    """The devices of all workers in words, such as `3 x NVIDIA L4, 1 x NVIDIA A10G`; every worker asks at once."""
    names: list[str] = [named(device)] * world
    if world > 1 and device.type == "cuda":
        dist.all_gather_object(names, named(device))
    kinds = Counter(names)
    return names[0] if len(kinds) == 1 else ", ".join(f"{count} x {name}" for name, count in kinds.items())


def fix_order(fixed: bool) -> None:
    """Whether PyTorch takes only kernels that add up in a fixed order; asked before a process multiplies on a GPU."""
    if fixed:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when its first handle is made
    torch.use_deterministic_algorithms(fixed)
    torch.backends.cudnn.deterministic = fixed


@contextlib.contextmanager
def disorder_refused() -> Iterator[None]:
    """Turn PyTorch's complaint about an operation without a fixed order into ours.

    Raises:
        InputError: the body has met one.
    """
    try:
        yield
    except RuntimeError as error:
        if "use_deterministic_algorithms" not in str(error):
            raise
        first = str(error).strip().splitlines()[0].partition(", but you set")[0]
        raise InputError(
            f"workers.deterministic = true: {first}. Train without it (workers.deterministic=false), where a run ends "
            "at the same weights within rounding, or with another head, trunk or loss"
        ) from error
