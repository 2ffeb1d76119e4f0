"""CBAM: gates over the channels, then over the pixels (Woo et al., ECCV 2018, arXiv:1807.06521).

We follow the authors' code, which has a batch norm after the spatial gate's convolution; Eq. (3) has none.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segmodels.checks import positive
from segmodels.heads.context_head import ContextHead
from segmodels.heads.maps import Maps
from segmodels.heads.se import bottleneck


def largest(x: Tensor, dim: int) -> Tensor:
    """The maximum along a dimension; where several values are the greatest, one of them gets its gradient.

    So it is in the authors' code. `amax` shares the gradient among them, which takes its backward pass five times as
    long; without one it is the faster.
    """
    return x.max(dim).values if x.requires_grad and torch.is_grad_enabled() else x.amax(dim)


class ChannelGate(nn.Module):
    """x · σ(MLP(mean of x) + MLP(maximum of x)) over the map: Eq. (2), one MLP for both.

    Shape: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        inner = bottleneck(channels, reduction)
        self.mlp = nn.Sequential(nn.Linear(channels, inner), nn.ReLU(inplace=True), nn.Linear(inner, channels))

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.stack([x.mean((2, 3)), largest(x.flatten(2), 2)])
        return x * self.mlp(pooled).sum(0).sigmoid()[:, :, None, None]


class SpatialGate(nn.Module):
    """x · σ(norm(conv of [maximum of x, mean of x])) over the channels: Eq. (3).

    Fills `maps` with "spatial_gate" (B, 1, H, W), in (0, 1).

    Args:
        kernel: side of the convolution in cells, odd.

    Shape: (B, C, H, W) -> (B, C, H, W).

    Raises:
        ValueError: an even kernel.
    """

    def __init__(self, kernel: int) -> None:
        super().__init__()
        if positive("kernel", kernel) % 2 == 0:
            raise ValueError(f"kernel is {kernel}; allowed: odd sizes, as only they keep the map's size")
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=0.01)  # as in the authors' code

    def forward(self, x: Tensor, maps: Maps | None = None) -> Tensor:
        pooled = torch.stack([largest(x, 1), x.mean(1)], 1)
        gate = self.norm(self.conv(pooled)).sigmoid()
        if maps is not None:
            maps.add("spatial_gate", gate)
        return x * gate


class CBAM(nn.Module):
    """The channel gate, then the spatial gate.

    Args:
        channels: C.
        reduction: r of the channel gate, which is computed through C/r values.
        kernel: side of the spatial gate's convolution in cells, odd.
        spatial: whether to have the spatial gate. Without it there are no maps.

    Shape: (B, C, H, W) -> (B, C, H, W).
    """

    gives_maps = True

    def __init__(self, channels: int, reduction: int, kernel: int, *, spatial: bool) -> None:
        super().__init__()
        self.channel = ChannelGate(channels, reduction)
        self.spatial = SpatialGate(kernel) if spatial else None

    def forward(self, x: Tensor, maps: Maps | None = None) -> Tensor:
        x = self.channel(x)
        return x if self.spatial is None else self.spatial(x, maps)


def cbam_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 512,
    reduction: int = 16,
    kernel: int = 7,
    spatial: bool = True,
    dropout: float = 0.1,
) -> ContextHead:
    """CBAM in the common frame.

    Args:
        in_channels: widths of the stages; the last is read.
        num_classes: K.
        channels: C, width of the context.
        reduction, kernel, spatial: see `CBAM`.
        dropout: probability that a channel is dropped before the classifier.

    Raises:
        ValueError: a bad width, a reduction that does not divide it, or an even kernel.
    """
    context = CBAM(channels, reduction, kernel, spatial=spatial)
    return ContextHead(in_channels, num_classes, context, channels, dropout=dropout)
