"""DF1 and DF2: trunks found for speed by partial order pruning (Li et al., CVPR 2019, arXiv:1903.03777).

Structure and names of layers as in SFSegNets, the public code of SRNet's authors, so that its files of weights load.
"""

from collections.abc import Mapping
from typing import ClassVar

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

# Layer -> blocks, width, stride of the first block; and the layers that end the maps at strides 8, 16 and 32.
DF1 = {"stage2": (3, 64, 2), "stage3": (3, 128, 2), "stage4": (3, 256, 2), "stage5": (1, 512, 1)}
DF2 = {
    "stage2_1": (2, 64, 2),
    "stage2_2": (1, 128, 1),
    "stage3_1": (10, 128, 2),
    "stage3_2": (1, 256, 1),
    "stage4_1": (4, 256, 2),
    "stage4_2": (2, 512, 1),
}


class DFNet(nn.Module):
    """A stem of two strided 3x3 convolutions and layers of basic residual blocks, without a classifier.

    Args:
        layers: name -> (number of blocks, width, stride of the first block).

    Attributes:
        channels, strides: of the four maps, each the last one of its stride.
        mean, std: of ImageNet.

    Shape: (B, 3, H, W) -> four maps at strides 4, 8, 16, 32, of 64, 64, 128, 512 channels (DF1) or 64, 128, 256, 512
    (DF2).
    """

    strides: ClassVar[tuple[int, ...]] = (4, 8, 16, 32)
    mean: ClassVar[tuple[float, ...]] = IMAGENET_DEFAULT_MEAN
    std: ClassVar[tuple[float, ...]] = IMAGENET_DEFAULT_STD

    def __init__(self, layers: Mapping[str, tuple[int, int, int]]) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(
            *(conv3x3(3, 32, 2), nn.BatchNorm2d(32), nn.ReLU(inplace=True)),
            *(conv3x3(32, 64, 2), nn.BatchNorm2d(64), nn.ReLU(inplace=True)),
        )
        self.stride_of = {name: stride for name, (_, _, stride) in layers.items()}
        given, widths = 64, [64]
        for name, (count, width, stride) in layers.items():
            widths = [*widths, width] if stride > 1 else [*widths[:-1], width]
            blocks = [BasicBlock(given, width, stride)] + [BasicBlock(width, width) for _ in range(count - 1)]
            self.add_module(name, nn.Sequential(*blocks))
            given = width
        self.channels: tuple[int, ...] = tuple(widths)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.stage1(x)]
        for name, stride in self.stride_of.items():
            x = self.get_submodule(name)(maps[-1])
            maps = [*maps, x] if stride > 1 else [*maps[:-1], x]
        return maps


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a 1x1 convolution where width or stride change.

    Shape: (B, in_channels, H, W) -> (B, channels, ⌈H/stride⌉, ⌈W/stride⌉).
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(in_channels, channels, stride), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = conv3x3(channels, channels), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias whose sides round up."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
