"""Xception-65 as DeepLabV3+ uses it, aligned and with dilation in place of stride (Chen et al., ECCV 2018)."""

from typing import Any

import timm
from torch import Tensor, nn


class Xception(nn.Module):
    """timm's aligned Xception without its classifier: its layers under its names, so that its weights load.

    A map is taken where timm takes it: inside a block that strides or would, before its last convolution.

    Args:
        tag: timm's model, with or without the tag of its weights.
        output_stride: pixels per cell of the last map: 8, 16 or 32.
        pretrained: download timm's weights.

    Attributes:
        channels, strides: of the four maps.

    Shape: (B, 3, H, W) -> four maps of 256, 728, 1024 and 2048 channels at strides 4, 8, 16 and 32, the latter two at
    most the output stride.
    """

    def __init__(self, tag: str, output_stride: int = 32, pretrained: bool = False) -> None:
        super().__init__()
        net: Any = timm.create_model(
            tag, pretrained=pretrained, num_classes=0, global_pool="", output_stride=output_stride
        )
        self.stem: nn.Module = net.stem
        self.blocks: nn.Sequential = net.blocks
        info = net.feature_info[-4:]  # the one before is at stride 2
        self.channels: tuple[int, ...] = tuple(level["num_chs"] for level in info)
        self.strides: tuple[int, ...] = tuple(level["reduction"] for level in info)
        self.taps: set[int] = {int(level["module"].split(".")[1]) for level in info[:-1]}

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        x = self.stem(x)
        block: Any
        for i, block in enumerate(self.blocks):
            if i in self.taps:
                maps.append(block.stack[:-1](x))
                x = block.stack[-1](maps[-1]) + block.shortcut(x)
            else:
                x = block(x)
        return [*maps, x]
