"""DMNet: every image makes the filters for its own map, at several sizes (He et al., ICCV 2019).

The layout of mmsegmentation, as the authors published no code, but with the paper's 1x1 convolution after every
filter, which is off there.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmodels.checks import positive
from segmodels.heads.pyramid_head import PyramidHead, sizes
from segmodels.layers import ConvNormReLU, known


class DynamicConv(nn.Module):
    """DCM: x, reduced, filtered channel by channel with k x k filters made from x averaged over k x k regions.

    All images at once: one grouped convolution over B · C maps of one channel each.

    Args:
        in_channels: width of x.
        channels: C.
        size: k, odd.
        fusion: have a 1x1 convolution over the channels at the end.

    Shape: (B, in_channels, H, W) -> (B, C, H, W).

    Raises:
        ValueError: an even size.
    """

    def __init__(self, in_channels: int, channels: int, size: int, *, fusion: bool) -> None:
        super().__init__()
        if size % 2 == 0:
            raise ValueError(f"filter_sizes has {size}; allowed: odd sizes, as only they keep the map's size")
        self.side = size
        self.filters = nn.Conv2d(in_channels, channels, 1)
        self.reduce = ConvNormReLU(in_channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        self.fuse = ConvNormReLU(channels, channels, 1) if fusion else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        filters = self.filters(F.adaptive_avg_pool2d(x, self.side))  # (B, C, k, k)
        return self.fuse(F.relu(self.norm(filter_channels(self.reduce(x), filters))))


def filter_channels(x: Tensor, filters: Tensor) -> Tensor:
    """Correlate every channel of every image with a filter of its own, padded with zeros.

    Shape: (B, C, H, W), (B, C, k, k) -> (B, C, H, W).
    """
    batch, channels = x.shape[:2]
    if not known((batch, channels)):  # ONNX takes only a fixed number of groups
        side, (height, width) = filters.shape[-1], x.shape[2:]
        padded = F.pad(x, [side // 2] * 4)
        places = [(i, j) for i in range(side) for j in range(side)]
        parts = (padded[:, :, i : i + height, j : j + width] * filters[:, :, i : i + 1, j : j + 1] for i, j in places)
        return sum(parts, torch.zeros_like(x))
    flat = x.flatten(0, 1).unsqueeze(0)
    y = F.conv2d(flat, filters.flatten(0, 1).unsqueeze(1), padding=filters.shape[-1] // 2, groups=batch * channels)
    return y.reshape(x.shape)


def dmnet_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 512,
    filter_sizes: tuple[int, ...] = (1, 3, 5, 7),
    fusion: bool = True,
    dropout: float = 0.1,
) -> PyramidHead:
    """DMNet's head: one dynamic convolution per filter size, next to the map itself.

    Args:
        in_channels: widths of the stages; the last is read.
        num_classes: K.
        channels: width of every module and of the fused map.
        filter_sizes: k of every module, in cells, odd.
        fusion: see `DynamicConv`.
        dropout: probability that a channel is dropped before the classifier.

    Raises:
        ValueError: no or even filter sizes, channels below 1, or a bad dropout.
    """
    width, inner = in_channels[-1], positive("channels", channels)
    modules = [DynamicConv(width, inner, size, fusion=fusion) for size in sizes("filter_sizes", filter_sizes)]
    return PyramidHead(in_channels, num_classes, modules, inner, dropout=dropout)
