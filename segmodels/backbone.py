"""Trunks: four feature maps each, of timm's networks and of our own, with the mean and std that their weights want.

`resnet50s`, `resnet101s` and `resnet152s` are the papers' trunks: a stem of three 3x3 convolutions (64, 64, 128) in
place of the 7x7. timm's `c` (stem 32, 32, 64) and `d` (average-pool shortcuts) do not have the papers' printed costs.
The plain ResNets have the 7x7; their tags are torchvision's weights, from which PyTorch code bases start. `resnet10t`
has a block per stage and a stem of three 3x3 (24, 32, 64), `test_resnet` a block per stage of a few dozen channels:
they are in no paper, and are for trials without a GPU. All else that timm has is `timm/NAME`, see `timm_trunks.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
from timm.models import is_model
from timm.models.resnet import ResNet
from torch import Tensor, nn

from segmodels.blocks import add_context
from segmodels.checks import TIMM, nearest, positive
from segmodels.dfnet import DF1, DF2, DFNet
from segmodels.hrnet import HRNet
from segmodels.timm_trunks import colours, left_out, output_strides, plan, pyramid_of, tag_of, timm_trunk
from segmodels.weights import load_weights
from segmodels.wideresnet import WiderResNet
from segmodels.xception import Xception


@dataclass(frozen=True)
class Kind:
    """Where a trunk comes from.

    Attributes:
        tag: timm's model and the tag of its ImageNet weights; None for a trunk of our own, without a download.
        build: (tag, output stride, whether to download) -> a module with `channels` and `strides`; without a tag it
            takes nothing, and has `mean` and `std` too.
        output_strides: those that it can have.
        classifier: prefixes of keys that a file of its weights may have and the trunk does not.
    """

    tag: str | None
    build: Callable[..., Any]
    output_strides: tuple[int, ...] = (8, 16, 32)
    classifier: tuple[str, ...] = ("fc.", "classifier.")


def resnet(tag: str, output_stride: int, pretrained: bool) -> nn.Module:
    """timm's ResNet: maps at strides 4, 8, 16 and 32, the latter two at most the output stride."""
    trunk: Any = timm.create_model(
        tag,
        pretrained=pretrained,
        features_only=True,
        out_indices=(1, 2, 3, 4),  # 0 is the stem
        output_stride=output_stride,
    )
    trunk.channels, trunk.strides = tuple(trunk.feature_info.channels()), tuple(trunk.feature_info.reduction())
    return trunk


HRNET_EXTRA = ("incre_modules.", "downsamp_modules.", "final_layer.", "classifier.")
# The names in a recipe.
BACKBONES: dict[str, Kind] = {
    "test_resnet": Kind("test_resnet.r160_in1k", resnet),
    "resnet10t": Kind("resnet10t.c3_in1k", resnet),
    "resnet18": Kind("resnet18.tv_in1k", resnet),
    "resnet34": Kind("resnet34.tv_in1k", resnet),
    "resnet50": Kind("resnet50.tv_in1k", resnet),
    "resnet101": Kind("resnet101.tv_in1k", resnet),
    "resnet152": Kind("resnet152.tv_in1k", resnet),
    "resnet50s": Kind("resnet50s.gluon_in1k", resnet),
    "resnet101s": Kind("resnet101s.gluon_in1k", resnet),
    "resnet152s": Kind("resnet152s.gluon_in1k", resnet),
    "hrnet_w48": Kind("hrnet_w48.ms_in1k", HRNet, (4,), HRNET_EXTRA),
    "xception65": Kind("xception65.tf_in1k", Xception, classifier=("head.",)),
    "wideresnet38": Kind(None, WiderResNet, (8,)),
    "df1": Kind(None, partial(DFNet, DF1), (32,)),
    "df2": Kind(None, partial(DFNet, DF2), (32,)),
}


def kind_of(name: str) -> Kind:
    """Where a trunk comes from: a key of `BACKBONES`, or `timm/NAME`.

    Raises:
        ValueError: neither; or a network of timm that cannot be a trunk.
    """
    if name.startswith(TIMM):
        tag = tag_of(name)
        if tag.startswith("hrnet"):  # what segmentation reads of it is not what timm gives
            return Kind(tag, HRNet, (4,), HRNET_EXTRA)
        return Kind(tag, timm_trunk, output_strides(tag), left_out(tag))
    if name not in BACKBONES:
        timms = f"{TIMM}{name}" if is_model(name) else f"{TIMM}NAME for any of timm's networks"
        hint = nearest(name, BACKBONES)
        raise ValueError(f"unknown backbone {name!r}; allowed: {', '.join(BACKBONES)}, and {timms}.{hint}")
    return BACKBONES[name]


class Backbone(nn.Module):
    """A trunk without its classifier.

    From the output stride on, stages of a ResNet dilate instead of striding; timm gives the first block of such a
    stage the dilation of the stage before (at 8: 1, 2, 2, … in stage 3 and 2, 4, 4 in stage 4), as PyTorch-Encoding
    does.

    Args:
        name: a key of `BACKBONES`, or `timm/NAME`.
        output_stride: pixels per cell of the last map; one of the trunk's `output_strides`.
        pretrained: download timm's weights.
        multi_grid: see `set_multi_grid`; None leaves the dilations above.
        context: what stands in the blocks of a ResNet besides, see `blocks.add_context`; None for nothing.

    Attributes:
        trunk: what has weights in a file.
        taps: how four maps are taken from one of timm's networks; else None, as the trunk gives them.
        pyramid: makes four maps of a ViT's one; else None. Its weights are in no file, and learn at the heads' rate.
        channels: widths of the four maps.
        strides: pixels per cell of the four maps.
        one_size_programs: whether an exported program takes images of one size alone.
        context: how the names of the context's weights begin, within the trunk; a plain trunk's file lacks them.
        mean, std: what an image in 0..1 is normalised with, per channel of RGB.

    Shape: normalised image (B, 3, H, W) -> list of four maps (B, channels[i], ⌈H/strides[i]⌉, ⌈W/strides[i]⌉).
    """

    def __init__(
        self,
        name: str,
        output_stride: int = 8,
        *,
        pretrained: bool = False,
        multi_grid: Sequence[int] | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        kind = kind_of(name)
        trunk = kind.build() if kind.tag is None else kind.build(kind.tag, output_stride, pretrained)
        self.trunk: nn.Module = trunk
        self.taps = plan(str(kind.tag), output_stride) if kind.build is timm_trunk else None
        self.pyramid = None if self.taps is None else pyramid_of(self.taps, output_stride)
        self.one_size_programs = bool(self.taps and self.taps.bound)
        source = self.pyramid or self.taps or trunk
        self.channels: tuple[int, ...] = source.channels
        self.strides: tuple[int, ...] = source.strides
        mean, std = (trunk.mean, trunk.std) if kind.tag is None else colours(kind.tag)
        self.mean: tuple[float, ...] = tuple(mean)
        self.std: tuple[float, ...] = tuple(std)
        if multi_grid is not None:
            set_multi_grid(self, multi_grid)
        self.context = () if context is None else add_context(trunk, name, context)

    def forward(self, x: Tensor) -> list[Tensor]:
        if self.taps is None:
            return self.trunk(x)
        maps = self.taps(self.trunk, x)
        return maps if self.pyramid is None else self.pyramid(maps[0], *x.shape[-2:])


def set_multi_grid(backbone: Backbone, multi_grid: Sequence[int]) -> None:
    """Give every block of a ResNet's last stage a dilation of its own: all 3x3 convolutions of the block.

    These are the dilations themselves, in cells, since papers mean different things by the grid: at output stride 8
    EMANet's grid of 1, 2, 4 means 2, 8, 16 (the first block keeps the dilation of the stage before), DANet's test
    script 4, 8, 16.

    Raises:
        ValueError: the trunk is no ResNet; its last stage strides; there is not one dilation per block; or one is
            below 1.
    """
    if not (kind_of(backbone.name).build is resnet or isinstance(backbone.trunk, ResNet)):
        raise ValueError(f"multi_grid is {multi_grid}; allowed for {backbone.name}, which is no ResNet: null")
    if backbone.strides[3] == 32:
        raise ValueError(
            f"multi_grid is {multi_grid}, but at output_stride 32 the last stage strides and does not dilate; "
            "set output_stride: 8 or 16, or multi_grid: null"
        )
    blocks: Any = backbone.trunk.get_submodule("layer4")
    if not isinstance(multi_grid, list | tuple) or len(multi_grid) != len(blocks):
        raise ValueError(
            f"multi_grid is {multi_grid}; allowed: one dilation for each of the {len(blocks)} blocks of "
            f"{backbone.name}'s last stage, such as {[2, 8, 16][: len(blocks)]}"
        )
    for block, dilation in zip(blocks, multi_grid, strict=True):
        positive("multi_grid", dilation)
        for module in block.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                module.dilation = module.padding = (dilation, dilation)


def build_backbone(
    name: str,
    output_stride: int = 8,
    weights: str | None = None,
    *,
    multi_grid: Sequence[int] | None = None,
    context: Mapping[str, Any] | None = None,
) -> Backbone:
    """Build a trunk of `BACKBONES`, or any of timm's networks.

    Args:
        name: a key of `BACKBONES`, or `timm/NAME`.
        output_stride: pixels per cell of the last map: 8, 16 or 32; HRNet has only 4, Wider ResNet 8, DF-Nets 32,
            timm's networks what timm offers.
        weights: None for random weights; a file (.pth, .pt, .bin, .safetensors); or "hub", timm's download.
        multi_grid: dilations of the blocks of a ResNet's last stage, see `set_multi_grid`; None for timm's.
        context: what stands in a ResNet's blocks besides: `name`, `place` and keywords of `blocks.add_context`; None
            for nothing. A file of weights may have its weights, or be a plain trunk's: then they stay fresh.

    Raises:
        ValueError: an unknown name; an output stride, multi-grid or context that the trunk cannot have; a file whose
            weights are not this trunk's, or a download of a trunk that timm does not have.
        FileNotFoundError: no such file.
    """
    kind = kind_of(name)
    allowed = kind.output_strides
    if output_stride not in allowed:
        close = min(allowed, key=lambda s: abs(s - output_stride))
        cure = f"Did you mean {close}?" if len(allowed) > 1 else f"{name} has no other: set output_stride: {close}"
        raise ValueError(f"output_stride is {output_stride}; allowed: {', '.join(map(str, allowed))}. {cure}")
    if weights == "hub" and kind.tag is None:
        raise ValueError(f"weights is 'hub', but timm has no {name} to download; give a file, or null for none")
    backbone = Backbone(name, output_stride, pretrained=weights == "hub", multi_grid=multi_grid, context=context)
    if weights is not None and weights != "hub":
        load_weights(backbone.trunk, weights, name, kind.classifier, backbone.context)
    return backbone
