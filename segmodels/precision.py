"""On which device, and in which precision: one rule for training, scoring and prediction."""

import torch

PRECISIONS = ("auto", "bf16", "fp16", "fp32")
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def default_device() -> torch.device:
    """The first GPU of this process, or the CPU where it has none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def settle_precision(wish: str, device: torch.device) -> str:
    """`bf16`, `fp16` or `fp32`; `auto` is bf16 where a GPU computes in it, and fp32 elsewhere.

    Args:
        wish: one of `PRECISIONS`.
        device: on which it is.

    Raises:
        ValueError: another word, or bf16 is asked of a GPU that only emulates it.
    """
    if wish not in PRECISIONS:
        raise ValueError(f"precision is {wish!r}; allowed: {', '.join(PRECISIONS)}")
    # of older GPUs PyTorch says that they have bf16, which it then emulates: slower than fp32, in much more memory
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if wish == "bf16" and device.type == "cuda" and not native:
        raise ValueError(
            f"precision bf16: {torch.cuda.get_device_name(device)} only emulates it, which is slow and needs more "
            "memory; allowed there: fp16, fp32, and auto, which takes fp32 (GPUs from Ampere on compute in bf16)"
        )
    return ("bf16" if native else "fp32") if wish == "auto" else wish


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a network computes.

    Args:
        precision: as `settle_precision` gives it.
    """
    return torch.autocast(device.type, TYPES.get(precision, torch.bfloat16), enabled=precision in TYPES)
