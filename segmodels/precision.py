"""On which device, and in which precision: one rule for training, scoring and prediction."""

import torch
from torch import Tensor, nn

from segmodels.layers import without_autocast

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


class Float32Conv:
    """A convolution that computes in float32 whatever its surroundings compute in; `spare_grouped` puts it first."""

    def forward(self, x: Tensor) -> Tensor:
        """As of the layer's own class; x and the result are float32."""
        with without_autocast(x):
            result: Tensor = super().forward(x.float())  # type: ignore[misc]
        return result


def spare_grouped(model: nn.Module, device: torch.device, precision: str) -> None:
    """Leave a model's grouped convolutions in float32 on a CPU: PyTorch's gradients of them in bf16 are slow there.

    A training step of EfficientNet-Lite0 takes half the time so. Names of weights and their types stay.
    """
    if device.type != "cpu" or precision not in TYPES:
        return
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.groups > 1 and not isinstance(layer, Float32Conv):
            kind = type(layer)
            layer.__class__ = type(f"Float32{kind.__name__}", (Float32Conv, kind), {})
