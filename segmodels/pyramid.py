"""Four maps of the one that a plain ViT has (ViTDet; Li et al., ECCV 2022, arXiv:2203.16527, Sec. 3)."""

from timm.layers import LayerNorm2d
from torch import Tensor, nn

STRIDES = (4, 8, 16, 32)  # of the four maps of a trunk, at most the output stride
LEAST = 64  # channels of a map


class Pyramid(nn.Module):
    """The simple feature pyramid: each map is made of a ViT's last one, the only one that is used.

    A finer map comes of 2x2 deconvolutions of stride 2, each of half the channels, with norm and GELU between two; a
    coarser one of max pooling. ViTDet adds a 1x1 and a 3x3 convolution to 256 channels: here the head's first layer
    is that.

    Args:
        channels: C of the map.
        stride: of the map, a power of two.
        output_stride: the most of the four strides.

    Attributes:
        channels, strides: of the four maps.

    Shape: (B, C, h, w), and the image's (H, W) -> four maps (B, channels[i], ⌈H/strides[i]⌉, ⌈W/strides[i]⌉).
    """

    def __init__(self, channels: int, stride: int, output_stride: int) -> None:
        super().__init__()
        self.strides: tuple[int, ...] = tuple(min(s, output_stride) for s in STRIDES)
        made = [level(channels, stride, wanted) for wanted in self.strides]
        self.levels = nn.ModuleList([layers for layers, _ in made])
        self.channels: tuple[int, ...] = tuple(width for _, width in made)

    def forward(self, x: Tensor, height: int, width: int) -> list[Tensor]:
        maps = zip(self.levels, self.strides, strict=True)
        return [layers(x)[..., : -(-height // s), : -(-width // s)] for layers, s in maps]


def level(channels: int, stride: int, wanted: int) -> tuple[nn.Sequential, int]:
    """Layers from one stride to another, and the channels that they give."""
    layers: list[nn.Module] = []
    while stride > wanted:
        if layers:
            layers += [LayerNorm2d(channels), nn.GELU()]
        half = max(channels // 2, LEAST)
        layers.append(nn.ConvTranspose2d(channels, half, 2, 2))
        channels, stride = half, stride // 2
    if stride < wanted:
        layers.append(nn.MaxPool2d(wanted // stride, ceil_mode=True))
    return nn.Sequential(*layers), channels


def power_of_two(side: int) -> int:
    """The least power of two that is at least `side`."""
    return 1 << (side - 1).bit_length()
