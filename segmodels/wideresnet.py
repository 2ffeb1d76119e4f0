"""Wider ResNet-38: few, wide pre-activation blocks at output stride 8 (Wu et al., 2016, arXiv:1611.10080).

Structure of the segmentation codes (openseg, NVIDIA's), the "A2" form of Mapillary's: two poolings, one stride, then
dilation. As in openseg, the blocks have no dropout. The poolings round down, as in NVIDIA's and Mapillary's codes;
openseg's round up (`ceil_mode`), which differs where a pooling meets an even side: a crop of 512 gives maps of 65 cells
there and 64 here, like all other trunks and ⌈512/8⌉, by which heads are bound to their crop. At the papers' odd crops
(513, 769) both are the same. The names of layers are theirs, with batch norm and ReLU as a pair,
so that their weights load.
"""

from collections import OrderedDict
from typing import ClassVar

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn


class WiderResNet(nn.Module):
    """Wider ResNet-38 without its classifier; 105.07 M parameters.

    The maps are mod3, mod4, mod6 and mod7. The third, which auxiliary heads read, is mod6 as in openseg;
    PyTorch-Encoding taps mod5 (1024). Only the last is normalised: blocks begin with their norms.

    Args:
        width: of the first layer; 64 in the paper.

    Attributes:
        channels, strides: of the four maps.
        mean, std: of ImageNet.

    Shape: (B, 3, H, W) -> four maps of 256, 512, 2048 and 4096 channels at strides 4, 8, 8, 8.
    """

    strides: ClassVar[tuple[int, ...]] = (4, 8, 8, 8)
    mean: ClassVar[tuple[float, ...]] = IMAGENET_DEFAULT_MEAN
    std: ClassVar[tuple[float, ...]] = IMAGENET_DEFAULT_STD

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        w = width
        self.channels: tuple[int, ...] = (4 * w, 8 * w, 32 * w, 64 * w)
        self.mod1 = nn.Sequential(OrderedDict(conv1=conv(3, w, 3)))
        self.pool2 = nn.MaxPool2d(3, stride=2, padding=1)
        self.mod2 = blocks(3, w, (2 * w, 2 * w))
        self.pool3 = nn.MaxPool2d(3, stride=2, padding=1)
        self.mod3 = blocks(3, 2 * w, (4 * w, 4 * w))
        self.mod4 = blocks(6, 4 * w, (8 * w, 8 * w), stride=2)
        self.mod5 = blocks(3, 8 * w, (8 * w, 16 * w), dilation=2)
        self.mod6 = blocks(1, 16 * w, (8 * w, 16 * w, 32 * w), dilation=4)
        self.mod7 = blocks(1, 32 * w, (16 * w, 32 * w, 64 * w), dilation=4)
        self.bn_out = norm_relu(64 * w)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.mod2(self.pool2(self.mod1(x)))
        third = self.mod3(self.pool3(x))
        fourth = self.mod4(third)
        sixth = self.mod6(self.mod5(fourth))
        return [third, fourth, sixth, self.bn_out(self.mod7(sixth))]


class Block(nn.Module):
    """A pre-activation residual block: two 3x3 convolutions, or with three widths 1x1, 3x3, 1x1.

    Where width or stride change, a 1x1 convolution of the activated input takes the place of the input itself.

    Args:
        in_channels: width of the input.
        widths: of the two or three convolutions.
        stride: of the first convolution.
        dilation: of the 3x3 convolutions, in cells.

    Shape: (B, in_channels, H, W) -> (B, widths[-1], ⌈H/stride⌉, ⌈W/stride⌉).
    """

    def __init__(self, in_channels: int, widths: tuple[int, ...], stride: int, dilation: int) -> None:
        super().__init__()
        self.bn1 = norm_relu(in_channels)
        kernels = (3, 3) if len(widths) == 2 else (1, 3, 1)
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=conv(in_channels, widths[0], kernels[0], stride, dilation)
        )
        for i, kernel in enumerate(kernels[1:], 1):
            layers[f"bn{i + 1}"] = norm_relu(widths[i - 1])
            layers[f"conv{i + 1}"] = conv(widths[i - 1], widths[i], kernel, 1, dilation)
        self.convs = nn.Sequential(layers)
        changes = stride != 1 or in_channels != widths[-1]
        self.proj_conv = conv(in_channels, widths[-1], 1, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(x)
        return self.convs(y) + (x if self.proj_conv is None else self.proj_conv(y))


def blocks(
    count: int, in_channels: int, widths: tuple[int, ...], *, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    """`count` blocks, the first of which changes width and stride."""
    first = Block(in_channels, widths, stride, dilation)
    rest = [Block(widths[-1], widths, 1, dilation) for _ in range(count - 1)]
    return nn.Sequential(OrderedDict((f"block{i}", block) for i, block in enumerate([first, *rest], 1)))


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """A convolution without bias whose sides round up; a 1x1 kernel has no dilation."""
    dilation = dilation if kernel > 1 else 1
    return nn.Conv2d(in_channels, out_channels, kernel, stride, dilation * (kernel // 2), dilation, bias=False)


def norm_relu(channels: int) -> nn.Sequential:
    """Batch norm and ReLU."""
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
