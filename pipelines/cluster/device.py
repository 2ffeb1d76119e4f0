"""On what a process computes, and in which precision, for every door."""

from __future__ import annotations

import torch

from pipelines.base.errors import InputError
from segmodels.precision import settle_precision


def device_of(gpus: int) -> torch.device:
    """The GPU that this process was given, or the CPU where it was given none.

    Args:
        gpus: of a worker, 0 or 1; a machine's GPU is not touched without being asked for.
    """
    if not gpus:
        return torch.device("cpu")
    import ray.train.torch

    device: torch.device = ray.train.torch.get_device()
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
