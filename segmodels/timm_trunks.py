"""Any of timm's networks as a trunk, `timm/NAME`: four maps, under timm's own names of weights.

Maps are taken by `forward_intermediates`, which timm's networks have. Layers that no map needs (the classifier,
EfficientNet's last 1x1 convolution, the last norm) are left out, so the file of timm's whole network is the trunk and
what is left out. `plan` tries a network on the meta device, where nothing is computed and nothing downloaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_pretrained_cfg, is_model, is_model_pretrained, list_models, list_pretrained
from torch import Tensor, nn

from segmodels.checks import TIMM, nearest
from segmodels.pyramid import STRIDES, Pyramid, power_of_two
from segmodels.upsampling import bilinear

OUTPUT_STRIDES = (8, 16, 32)
# How networks that are bound to a size are told to follow the image's: most are not; plain ViTs; Swin.
FREE_SIZE: tuple[dict[str, Any], ...] = ({}, {"dynamic_img_size": True}, {"strict_img_size": False})


@dataclass(frozen=True)
class Taps:
    """How maps are taken from one of timm's networks.

    Attributes:
        options: of `timm.create_model`.
        indices: of the maps among those that the network has; one for a network at one stride.
        channels, strides: of these maps.
        multiple: what an image's sides are filled up to, with the mean colour; 1 where all maps round up by themselves.
        patch: pixels per side of a patch of a network at one stride (a ViT), else 0. Where this is no power of two,
            the image is resized so that a patch is as many pixels of the image as the next one: at 14/16 of its size,
            14 pixels are 16 of the image.
    """

    options: Mapping[str, Any]
    indices: tuple[int, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    multiple: int = 1
    patch: int = 0

    @property
    def bound(self) -> bool:
        """Whether its positions or windows depend on the image's size, so that a program holds one size alone."""
        asked = {key for free in FREE_SIZE for key in free}
        return bool(asked & self.options.keys()) or self.patch > 0 or self.multiple > self.strides[-1]

    def __call__(self, net: Any, x: Tensor) -> list[Tensor]:
        """The maps of an image (B, 3, H, W): (B, channels[i], ⌈H/strides[i]⌉, ⌈W/strides[i]⌉)."""
        height, width = x.shape[-2:]
        if self.multiple > 1:
            x = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple))  # normalised, the mean is 0
        if self.patch and self.patch != self.strides[0]:
            size = [side // self.strides[0] * self.patch for side in x.shape[-2:]]
            x = bilinear(x, size, align_corners=False)
        maps = net.forward_intermediates(
            x, indices=list(self.indices), norm=self.patch > 0, output_fmt="NCHW", intermediates_only=True
        )
        if self.multiple > 1:
            maps = [m[..., : -(-height // s), : -(-width // s)] for m, s in zip(maps, self.strides, strict=True)]
        return list(maps)


def tag_of(name: str) -> str:
    """timm's name of a trunk `timm/NAME`, with or without the tag of its weights.

    Raises:
        ValueError: timm has no such network, or no such weights of it.
    """
    tag = name.removeprefix(TIMM)
    network = tag.partition(".")[0]
    if not is_model(network):
        known = list_models()
        raise ValueError(
            f"unknown backbone {name!r}: none of the {len(known):,} networks of timm {timm.__version__} is "
            f"{network!r}.{nearest(network, known)} `python -m segmodels {TIMM}WORD` lists those with a word"
        )
    tags = list_pretrained(f"{network}.*") if tag != network else []
    if tag != network and tag not in tags:
        raise ValueError(f"unknown backbone {name!r}; timm's weights of {network}: {', '.join(tags) or 'none'}")
    return tag


def colours(tag: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std that the network's weights want; ImageNet's where timm has no weights."""
    config = get_pretrained_cfg(tag)
    if config is None:
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return tuple(config.mean), tuple(config.std)


def created(tag: str, options: Mapping[str, Any]) -> Any:
    """A network on the meta device, or None where timm does not make one with these options."""
    try:
        with torch.device("meta"):
            return timm.create_model(tag, **options).eval()
    except Exception:  # each family has its own: TypeError, AssertionError, NotImplementedError, ValueError
        return None


def strides_of(net: Any) -> tuple[int, ...]:
    """Pixels per cell of each map that a network can give; empty where it gives none."""
    if not hasattr(net, "forward_intermediates"):
        return ()
    return tuple(info["reduction"] for info in net.feature_info)


def options_of(output_stride: int) -> dict[str, Any]:
    """The option of an output stride; 32 is what networks have without it."""
    return {} if output_stride == STRIDES[-1] else {"output_stride": output_stride}


@cache
def at_one_stride(tag: str) -> bool:
    """Whether all maps of a network have one stride, as those of ViTs."""
    return len(set(strides_of(created(tag, {})))) == 1


@cache
def output_strides(tag: str) -> tuple[int, ...]:
    """The output strides that a network can have.

    Raises:
        ValueError: none, since it gives no four maps.
    """
    if at_one_stride(tag):
        return OUTPUT_STRIDES
    found = []
    for stride in OUTPUT_STRIDES:
        given = strides_of(created(tag, options_of(stride)))
        if given[-4:] == tuple(min(s, stride) for s in STRIDES):
            found.append(stride)
    if not found:
        strides = strides_of(created(tag, {}))
        what = f"maps at strides {', '.join(map(str, strides))}" if strides else "no maps"
        raise ValueError(
            f"{TIMM}{tag} gives {what}; allowed: a network whose last four are at strides 4, 8, 16 and 32, or all at "
            "one stride, as a ViT's. Name another"
        )
    return tuple(found)


@cache
def plan(tag: str, output_stride: int) -> Taps:
    """How maps are taken from a network, tried on the meta device at odd sides.

    Raises:
        ValueError: its maps follow no image's size.
    """
    for free in FREE_SIZE:
        options = free if at_one_stride(tag) else free | options_of(output_stride)
        net = created(tag, options)
        if net is None:
            continue
        taps = taps_of(net, options)
        cut(net, taps)
        sides = (taps.multiple, power_of_two(max(taps.strides)), net.pretrained_cfg["input_size"][-1])
        for multiple in dict.fromkeys(sides):
            tried = replace(taps, multiple=multiple)
            if keeps_promise(net, tried):
                return tried
    raise ValueError(
        f"{TIMM}{tag}: its maps do not follow an image's size, since timm's network is bound to the size of its "
        "training or drops what lies at the border; name another network"
    )


def taps_of(net: Any, options: Mapping[str, Any]) -> Taps:
    """The taps of a network: its last four maps, or, of a network at one stride, the last."""
    strides, widths = strides_of(net), tuple(info["num_chs"] for info in net.feature_info)
    last = len(strides)
    if len(set(strides)) == 1:
        stride = power_of_two(strides[0])
        return Taps(options, (last - 1,), widths[-1:], (stride,), stride, strides[0])
    return Taps(options, tuple(range(last - 4, last)), widths[-4:], strides[-4:])


def cut(net: Any, taps: Taps) -> None:
    """Take the layers out of a network that no map needs."""
    net.prune_intermediate_layers(list(taps.indices), prune_norm=not taps.patch, prune_head=True)


def keeps_promise(net: Any, taps: Taps) -> bool:
    """Whether the maps of images of odd sides are the promised ones; and of a filled one, which has none to cut off."""
    filled = [(taps.multiple, 2 * taps.multiple)] * (taps.multiple > 1)
    for size in ((65, 131), (33, taps.multiple + 41), *filled):
        promised = [
            (1, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(taps.channels, taps.strides, strict=True)
        ]
        try:
            with torch.no_grad():
                maps = taps(net, torch.zeros(1, 3, *size, device="meta"))
        except Exception:  # whatever a network raises at a size that it does not take
            return False
        if [tuple(m.shape) for m in maps] != promised:
            return False
    return True


@cache
def left_out(tag: str) -> tuple[str, ...]:
    """How the keys begin that a file of timm's whole network has and the trunk does not."""
    net = created(tag, {})
    keys = list(net.state_dict())
    cut(net, taps_of(net, {}))
    kept = set(net.state_dict())
    parts = {key.partition(".")[0] for key in kept}
    gone = ((key, key.partition(".")[0]) for key in keys if key not in kept)
    return tuple(dict.fromkeys(key if part in parts else f"{part}." for key, part in gone))


def timm_trunk(tag: str, output_stride: int, pretrained: bool) -> nn.Module:
    """timm's network without the layers that no map needs; `plan` says how to take the maps.

    Raises:
        ValueError: its maps follow no image's size; or timm has no weights of it to download.
    """
    if pretrained and not is_model_pretrained(tag):
        raise ValueError(f"weights is 'hub', but timm has none of {tag} to download; give a file, or null for none")
    taps = plan(tag, output_stride)
    net: Any = timm.create_model(tag, pretrained=pretrained, **taps.options)
    cut(net, taps)
    return net


def pyramid_of(taps: Taps, output_stride: int) -> Pyramid | None:
    """What makes four maps of the one that a network at one stride gives; None for all others."""
    return Pyramid(taps.channels[0], taps.strides[0], output_stride) if taps.patch else None
