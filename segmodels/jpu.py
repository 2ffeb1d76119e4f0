"""JPU: joint pyramid upsampling, a map at stride 8 from a trunk at stride 32 (Wu et al., 2019, arXiv:1903.11816)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from segmodels.checks import choose, positive
from segmodels.layers import ConvNormReLU
from segmodels.upsampling import bilinear

DILATIONS = (1, 2, 4, 8)


class JPU(nn.Module):
    """A neck in place of dilation: the maps at strides 8, 16 and 32 side by side, seen at four dilations.

    As in the authors' code, FastFCN: a 3x3 convolution brings each of the three to `width`, the two coarse ones are
    enlarged, and four separable convolutions with dilations 1, 2, 4, 8 read all three; a batch norm without ReLU is
    between the depthwise and the pointwise convolution.

    Args:
        channels: widths of the trunk's four maps.
        strides: their strides in pixels, which must be 4, 8, 16 and 32.
        width: of each of the four outputs, which are side by side.

    Attributes:
        channels, strides: of the four maps that it hands on: the trunk's, and its own in place of the last.

    Shape: four maps -> four maps, the last (B, 4 width, H/8, W/8), the size of the second.

    Raises:
        ValueError: other strides, or a bad width.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], width: int = 512) -> None:
        super().__init__()
        if tuple(strides) != (4, 8, 16, 32):
            raise ValueError(
                f"neck 'jpu' got maps at strides {tuple(strides)}; allowed: (4, 8, 16, 32). "
                "Set the backbone's output_stride: 32, or neck: null for a trunk that has no such stride"
            )
        self.channels: tuple[int, ...] = (*channels[:-1], len(DILATIONS) * positive("width", width))
        self.strides: tuple[int, ...] = (*strides[:-1], strides[1])
        self.reduce = nn.ModuleList([ConvNormReLU(given, width, 3) for given in channels[1:]])
        joined = len(self.reduce) * width
        self.pyramid = nn.ModuleList([separable(joined, width, dilation) for dilation in DILATIONS])

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        size = features[1].shape[-2:]
        fine, *coarse = (reduce(x) for reduce, x in zip(self.reduce, features[1:], strict=True))
        # Not `resize`: its test for equal sizes would bind an exported program.
        x = torch.cat([fine, *(bilinear(x, size) for x in coarse)], 1)
        return [*features[:-1], torch.cat([layer(x) for layer in self.pyramid], 1)]


def separable(in_channels: int, out_channels: int, dilation: int) -> nn.Sequential:
    """Depthwise 3x3 with dilation, batch norm; pointwise, batch norm, ReLU."""
    depthwise = nn.Conv2d(
        in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=False
    )
    return nn.Sequential(depthwise, nn.BatchNorm2d(in_channels), *ConvNormReLU(in_channels, out_channels, 1))


# A neck is built from the trunk's widths and strides, and has its own as attributes.
NECKS: dict[str, Callable[[Sequence[int], Sequence[int]], JPU]] = {"jpu": JPU}


def build_neck(name: str, channels: Sequence[int], strides: Sequence[int]) -> JPU:
    """Build a neck of `NECKS` on the maps of a trunk.

    Raises:
        ValueError: an unknown name, or a trunk whose maps do not fit.
    """
    return choose(NECKS, name, "neck")(channels, strides)
