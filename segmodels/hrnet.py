"""HRNetV2: four resolutions kept side by side to the end, then one map of all at stride 4 (Wang et al., TPAMI 2021)."""

from collections.abc import Iterable
from typing import Any, ClassVar

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmodels.upsampling import bilinear


class HRNet(nn.Module):
    """timm's HRNet without what classification adds: its layers under its names, our forward pass.

    With `features_only` and nothing else, timm widens the maps by blocks of the classifier (128, 256, 512, 1024): these
    are not the features that segmentation reads. timm also enlarges coarse maps by fixed factors, which fails on sides
    that are no multiple of 32; here they take the finer map's size, which is the same wherever timm runs. In the trunk
    we enlarge by nearest neighbours, like timm, whose weights were trained so; HRNet's segmentation code does it
    bilinearly.

    Args:
        tag: timm's model, with or without the tag of its weights.
        output_stride: always 4; a parameter because all of timm's trunks are built with the same arguments.
        pretrained: download timm's weights.

    Attributes:
        channels, strides: of the four maps.

    Shape: (B, 3, H, W) -> four maps: the first at stride 4, the second at stride 8 and, twice, the four enlarged
    bilinearly to stride 4 and put side by side (w48: 48, 96, 720, 720). Twice, so that an auxiliary head on stage 3
    reads what it reads in HRNet's code, all 720.
    """

    strides: ClassVar[tuple[int, ...]] = (4, 8, 4, 4)

    def __init__(self, tag: str, output_stride: int = 4, pretrained: bool = False) -> None:
        super().__init__()
        net: Any = timm.create_model(
            tag, pretrained=pretrained, features_only=True, feature_location="", out_indices=(1, 2, 3, 4)
        )
        self.conv1: nn.Module = net.conv1
        self.bn1: nn.Module = net.bn1
        self.conv2: nn.Module = net.conv2
        self.bn2: nn.Module = net.bn2
        self.layer1: nn.Module = net.layer1
        self.transition1, self.stage2 = net.transition1, net.stage2
        self.transition2, self.stage3 = net.transition2, net.stage3
        self.transition3, self.stage4 = net.transition3, net.stage4
        widths = net.feature_info.channels()
        self.channels: tuple[int, ...] = (widths[0], widths[1], sum(widths), sum(widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        maps = stage(self.transition1, self.stage2, [self.layer1(x)])
        maps = stage(self.transition2, self.stage3, maps)
        maps = stage(self.transition3, self.stage4, maps)
        size = maps[0].shape[-2:]
        # Not `resize`: its test for equal sizes would bind an exported program.
        coarse = (bilinear(m, size) for m in maps[1:])
        together = torch.cat([maps[0], *coarse], 1)
        return [maps[0], maps[1], together, together]


def stage(transition: Iterable[nn.Module], modules: Iterable[Any], maps: list[Tensor]) -> list[Tensor]:
    """Add one resolution: the maps go on as they are, and a transition with layers starts from the coarsest."""
    maps = [maps[i] if isinstance(t, nn.Identity) else t(maps[-1]) for i, t in enumerate(transition)]
    for module in modules:
        maps = exchange(module.fuse_layers, [branch(m) for branch, m in zip(module.branches, maps, strict=True)])
    return maps


def exchange(fuse_layers: Iterable[Any], maps: list[Tensor]) -> list[Tensor]:
    """Every resolution becomes the sum of all, each brought to its width and size."""
    fused = []
    for i, layers in enumerate(fuse_layers):
        parts = [layers[j](maps[j]) for j in range(i + 1)]
        for j in range(i + 1, len(maps)):
            reduce, norm, _ = layers[j]
            parts.append(F.interpolate(norm(reduce(maps[j])), maps[i].shape[-2:]))
        fused.append(F.relu(sum(parts[1:], start=parts[0])))
    return fused
