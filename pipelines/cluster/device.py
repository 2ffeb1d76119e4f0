"""On what a process computes, and in which precision: one rule for every door."""

from __future__ import annotations

import torch

from pipelines.base.errors import InputError

WISHES = ("auto", "bf16", "fp32")


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


def settle_precision(wish: str, device: torch.device) -> str:
    """`bf16` or `fp32`; `auto` is bf16 where a GPU computes in it.

    Args:
        wish: one of `WISHES`.
        device: on which it is.

    Raises:
        InputError: bf16 is asked of a GPU that only emulates it.
    """
    # of older GPUs PyTorch says that they have bf16, which it then emulates: slower than fp32, in much more memory
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if wish == "bf16" and device.type == "cuda" and not native:
        raise InputError(
            f"precision bf16: {torch.cuda.get_device_name(device)} only emulates it, which is slow and needs more "
            "memory; allowed there: fp32, and auto, which takes it (GPUs from Ampere on compute in bf16)"
        )
    return "bf16" if wish == "bf16" or (wish == "auto" and native) else "fp32"


def named(device: torch.device) -> str:
    """A device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
