"""In which precision a device computes: one rule for training, scoring and prediction."""

import torch

PRECISIONS = ("auto", "bf16", "fp32")


def settle_precision(wish: str, device: torch.device) -> str:
    """`bf16` or `fp32`; `auto` is bf16 where a GPU computes in it.

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
            "memory; allowed there: fp32, and auto, which takes it (GPUs from Ampere on compute in bf16)"
        )
    return "bf16" if wish == "bf16" or (wish == "auto" and native) else "fp32"
