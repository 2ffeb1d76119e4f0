"""Padding of timm's layers in a form that a program of free size can be traced from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch.nn.functional as F
from timm.layers import AvgPool2dSame, Conv2dSame
from torch import Tensor, nn


class Same(nn.Module):
    """TensorFlow's padding of a convolution whose stride is above 1: as timm's `Conv2dSame`, to the last bit.

    timm writes it with `max` and `ceil` of the image's size, whose cases a tracer takes minutes to tell apart; here it
    is a remainder.

    Shape: (B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer, pads = self.layer, list[int]()
        for axis in (1, 0):  # `pad` begins with the last
            stride = layer.stride[axis]
            missing = -x.shape[2 + axis] % stride + (layer.kernel_size[axis] - 1) * layer.dilation[axis] + 1 - stride
            pads += [missing // 2, missing - missing // 2]
        return F.conv2d(F.pad(x, pads), layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)


def constant(pool: AvgPool2dSame) -> nn.Sequential:
    """An average pooling of stride 1 with a constant padding: a `.pt2` file cannot hold timm's `math.ceil`."""
    before, after = zip(*(((k - 1) // 2, k // 2) for k in pool.kernel_size[::-1]), strict=True)  # type: ignore[index]
    pad = nn.ZeroPad2d((before[0], after[0], before[1], after[1]))
    return nn.Sequential(pad, nn.AvgPool2d(pool.kernel_size, 1, 0, pool.ceil_mode, pool.count_include_pad))


def traceable(layer: nn.Module) -> nn.Module | None:
    """What stands for a layer while it is traced; None where that is the layer itself."""
    if isinstance(layer, AvgPool2dSame) and layer.stride == (1, 1):  # shortcuts of dilated ResNets
        return constant(layer)
    if isinstance(layer, Conv2dSame):
        wide = all(k >= s for k, s in zip(layer.kernel_size, layer.stride, strict=True))
        return Same(layer) if wide else None  # else there may be nothing to pad, which `max` says
    return None


@contextlib.contextmanager
def traceable_padding(model: nn.Module) -> Iterator[None]:
    """The body with layers that can be traced."""
    children = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    found = [(*place, other) for place in children if (other := traceable(place[2])) is not None]
    for parent, name, _, other in found:
        setattr(parent, name, other)
    try:
        yield
    finally:
        for parent, name, child, _ in found:
            setattr(parent, name, child)
