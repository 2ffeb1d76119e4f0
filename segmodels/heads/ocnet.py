"""OCNet: object context by dense or interlaced sparse self-attention (Yuan et al., IJCV 2021, arXiv:1809.00916).

We follow the paper where the authors' code differs, with these exceptions. ρ is followed by batch norm and ReLU, and
1x1 convolutions before a norm have no bias, as in the code of interlaced attention, whose size the published costs
have; and the attention of ASP-OC works on a pooled map, which the paper does not mention and its costs need. Padded
cells are no keys: in the code they are, see `mask_padding`. Tiles that do not divide the map are as equal as can be: in
the code the last has the rest, see `even_tiles`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmodels.checks import choose, pair, positive
from segmodels.heads.context_head import ContextHead
from segmodels.heads.interlaced import ORDERS, InterlacedAttention
from segmodels.heads.lean import recomputed, recording
from segmodels.heads.maps import Maps
from segmodels.heads.object_attention import SelfAttention
from segmodels.heads.pyramid_head import sizes
from segmodels.layers import ConvNormReLU, dropout_classifier, known
from segmodels.upsampling import bilinear

SCHEMES: dict[str, int] = {"base": 1, "pyramid": 1, "asp": 2}  # by what the widths of the attention are divided
ATTENTIONS: dict[str, Callable[..., nn.Module]] = {"sa": SelfAttention, "isa": InterlacedAttention}


class Pooled(nn.Module):
    """A unit on a map max-pooled pool x pool cells at a time, and its result bilinearly back at the map's size.

    Maps on request are those of the unit, at the pooled size.

    Args:
        unit: `SelfAttention` or `InterlacedAttention`.
        pool: cells per side that are one.
        late_norm: the norm and ReLU of the unit's last ρ come after the way back, as in the authors' code; its 1x1
            convolution, which commutes with that, before.

    Shape: (B, C, H, W) -> (B, C, H, W).

    Raises:
        ValueError: in `forward`, a map smaller than the pool.
    """

    gives_maps = True

    def __init__(self, unit: SelfAttention | InterlacedAttention, pool: int, *, late_norm: bool = True) -> None:
        super().__init__()
        self.unit, self.pool = unit, pool
        self.last.bare = late_norm and pool > 1

    @property
    def last(self) -> SelfAttention:
        """The unit, or its last stage."""
        return cast("SelfAttention", self.unit if isinstance(self.unit, SelfAttention) else self.unit.units[-1])

    def forward(self, x: Tensor, maps: Maps | None = None) -> Tensor:
        if self.pool == 1:
            return self.unit(x, maps)
        height, width = x.shape[-2:]
        if known((height, width)) and min(height, width) < self.pool:
            raise ValueError(
                f"pool is {self.pool}, but the map has {(height, width)} cells; allowed: at most its smaller side. "
                "Lower pool, or enlarge the crop or image"
            )
        y = bilinear(self.unit(F.max_pool2d(x, self.pool), maps), (height, width))
        if not self.last.bare:
            return y
        _, norm, relu = self.last.out
        return relu(norm(y))


class BaseOC(nn.Module):
    """Base-OC: the context next to x, fused by a 1x1 convolution.

    Shape: (B, C, H, W) -> (B, C, H, W).
    """

    gives_maps = True

    def __init__(self, unit: nn.Module, channels: int) -> None:
        super().__init__()
        self.unit = unit
        self.fuse = ConvNormReLU(2 * channels, channels, 1)

    def forward(self, x: Tensor, maps: Maps | None = None) -> Tensor:
        return self.fuse(torch.cat([self.unit(x, maps), x], 1))


class PyramidOC(nn.Module):
    """Pyramid-OC: a unit per scale, shared by its k x k tiles, next to x widened to as many channels; 1x1 fused.

    Where `set_recompute` says it, the fusion in training is a sum over the units and over C channels of the widened x
    at a time, each of which is computed again for the backward pass; neither they nor their concatenation are kept.

    Args:
        units: one for each scale, which take the number of tiles per side.
        scales: k of each.
        channels: C.
        even_tiles: see `tiled`.

    Maps on request are those of the scale 1, if there is one.

    Programs are traced for one size: as formulas of a free one, the places of cells within tiles keep PyTorch's
    exporter busy for minutes, and with interlaced attention, which cuts tiles again, for longer than anybody waited.

    Shape: (B, C, H, W) -> (B, C, H, W).
    """

    gives_maps = True
    one_size_programs = True
    recompute = False

    def __init__(
        self, units: Sequence[nn.Module], scales: Sequence[int], channels: int, *, even_tiles: bool = True
    ) -> None:
        super().__init__()
        self.units, self.scales = nn.ModuleList(units), tuple(scales)
        for unit in cast("Sequence[SelfAttention | InterlacedAttention]", self.units):
            unit.even_tiles = even_tiles
        self.widen = nn.ModuleList(ConvNormReLU(channels, channels, 1) for _ in scales)
        self.fuse = ConvNormReLU(2 * len(scales) * channels, channels, 1)

    def forward(self, x: Tensor, maps: Maps | None = None) -> Tensor:
        if maps is not None or not self.recompute or not recording(self, x):
            parts = zip(self.units, self.scales, strict=True)
            contexts = [unit(x, maps if tiles == 1 else None, tiles=tiles) for unit, tiles in parts]
            return self.fuse(torch.cat([*contexts, *(widen(x) for widen in self.widen)], 1))
        conv, norm, relu = self.fuse
        branches = [*zip(self.units, self.scales, strict=True), *((widen, None) for widen in self.widen)]
        weights = cast("Tensor", conv.weight).chunk(len(branches), 1)
        y = sum(fused(*branch, x, weight) for branch, weight in zip(branches, weights, strict=True))
        return relu(norm(y))


def fused(branch: nn.Module, tiles: int | None, x: Tensor, weight: Tensor) -> Tensor:
    """A branch's part of the fusion, before its norm; as little as possible is kept for the backward pass."""
    if isinstance(branch, SelfAttention):
        return branch.fused(x, weight, tiles or 1)
    keywords = {} if tiles is None else {"tiles": tiles}
    return recomputed(lambda x, weight: F.conv2d(branch(x, **keywords), weight), branch, x, weight)


class AspOCHead(nn.Module):
    """ASP-OC: ASPP with attention in the place of its image pooling, on the trunk's last map.

    Args:
        in_channels: widths of the stages; the last is read.
        num_classes: K.
        unit: from (B, channels, H, W) to the same.
        channels: width of every branch and of the fused map.
        rates: dilations of the 3x3 branches, in cells.
        dropout: probability that a channel is dropped before the classifier.

    Shape: list of maps, the last (B, in_channels[-1], H, W) -> {"logits": (B, K, H, W)}.
    """

    gives_maps = True

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        unit: nn.Module,
        channels: int,
        rates: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__()
        width = in_channels[-1]
        self.reduce, self.unit = ConvNormReLU(width, channels, 3), unit
        self.branches = nn.ModuleList(
            [
                ConvNormReLU(width, channels, 1),
                *(ConvNormReLU(width, channels, 3, dilation=rate) for rate in rates),
            ]
        )
        self.fuse = ConvNormReLU((1 + len(self.branches)) * channels, channels, 1)
        self.classify = dropout_classifier(channels, num_classes, dropout)

    def forward(self, features: Sequence[Tensor], maps: Maps | None = None) -> dict[str, Tensor]:
        x = features[-1]
        branches = [self.unit(self.reduce(x), maps), *(branch(x) for branch in self.branches)]
        return {"logits": self.classify(self.fuse(torch.cat(branches, 1)))}


def ocnet_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 512,
    scheme: str = "base",
    attention: str = "isa",
    partition: tuple[int, int] = (8, 8),
    order: str = "global_local",
    mask_padding: bool = True,
    key_channels: int = 256,
    value_channels: int = 0,
    qk_layers: int = 2,
    pool: int = 2,
    late_norm: bool = True,
    rates: tuple[int, ...] = (12, 24, 36),
    pyramid: tuple[int, ...] = (1, 2, 3, 6),
    even_tiles: bool = True,
    dropout: float = 0.05,
) -> nn.Module:
    """OCNet: object context by dense or interlaced sparse self-attention (Yuan et al., IJCV 2021, arXiv:1809.00916).

    Base-OC, Pyramid-OC or ASP-OC, each with dense (SA) or interlaced sparse (ISA) self-attention. An exported program
    of free size takes maps, and tiles, with more cells per side than the partition has, and more than one.

    Args:
        in_channels: widths of the stages; the last is read.
        num_classes: K.
        channels: C, width of the context. ASP-OC, whose context is one branch of five, has half of it and of the
            widths below: 256, keys 128.
        scheme: "base", "pyramid" or "asp".
        attention: "sa" or "isa".
        partition: (P_h, P_w) of ISA: cells of a local group, and number of global groups. At most the training crop's
            map, or each tile of it; in testing, a smaller map, of a narrow image, is padded.
        order: of ISA: "global_local", "local_global", or only one stage: "global", "local".
        mask_padding: of ISA where `partition` does not divide the map: relate only true cells. False reproduces the
            authors' code.
        key_channels: width of query and key.
        value_channels: width of the value; 0 for that of the key. ISA in the authors' code, and in the published
            costs of Base-OC and ASP-OC, has 512.
        qk_layers: 1x1 convolutions of query and key, 1 or 2; the published costs of Base-OC have 1.
        pool: of ASP-OC: its attention works on a map max-pooled pool x pool cells at a time; 1 for none.
        late_norm: of ASP-OC with a pool above 1: the norm and ReLU of ρ come after the map is back at its size, as in
            the authors' code; the paper says nothing of a pool. False, as weights of version 0.6.0 and before were
            trained, is cheaper: the norm sees the pooled cells alone.
        rates: of ASP-OC: dilations, in cells.
        pyramid: of Pyramid-OC: k of each scale, which has k x k tiles.
        even_tiles: of Pyramid-OC on a map that k does not divide: tiles as equal as can be. The paper does not state
            their borders; in the authors' code (false) all but the last have ⌊H/k⌋ rows, which leaves the last of 6
            tiles of 65 rows 15 of them, and the others 10.
        dropout: probability that a channel is dropped before the classifier.

    Raises:
        ValueError: an unknown scheme, attention or order, or a number out of its range; in `forward`, a map smaller
            than `pyramid` or `pool` or, in training, than `partition`.
    """
    share = choose(SCHEMES, scheme, "scheme")
    keys = positive("key_channels", key_channels)
    value = positive("value_channels", value_channels or keys)
    widths = part("channels", channels, share), part("key_channels", keys, share), part("value_channels", value, share)
    interlaced = {"partition": pair("partition", partition), "order": order, "mask_padding": mask_padding}
    choose(ORDERS, order, "order")
    make = partial(choose(ATTENTIONS, attention, "attention"), *widths, layers(qk_layers))
    if attention == "isa":
        make = partial(make, **interlaced)
    scales, rates, pool = sizes("pyramid", pyramid), sizes("rates", rates), positive("pool", pool)
    if scheme == "asp":
        unit = Pooled(cast("Any", make()), pool, late_norm=late_norm)
        return AspOCHead(in_channels, num_classes, unit, widths[0], rates, dropout)
    if scheme == "base":
        context: nn.Module = BaseOC(make(), channels)
    else:
        context = PyramidOC([make() for _ in scales], scales, channels, even_tiles=even_tiles)
    return ContextHead(in_channels, num_classes, context, channels, dropout=dropout)


def sa2x_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 512,
    key_channels: int = 256,
    value_channels: int = 0,
    qk_layers: int = 2,
    pool: int = 2,
    late_norm: bool = True,
    dropout: float = 0.05,
) -> ContextHead:
    """SA-2x: dense self-attention on a map of half the size (Yuan et al., IJCV 2021, arXiv:1809.00916).

    OCNet's comparison: Base-OC with a pooled attention.

    Args:
        in_channels: widths of the stages; the last is read.
        num_classes: K.
        channels: C, width of the context.
        key_channels: width of query and key.
        value_channels: width of the value; 0 for that of the key.
        qk_layers: 1x1 convolutions of query and key, 1 or 2.
        pool: the map is max-pooled pool x pool cells at a time; the paper says only "down-sample".
        late_norm: see `ocnet_head`.
        dropout: probability that a channel is dropped before the classifier.

    Raises:
        ValueError: a width or pool below 1, or other layers; in `forward`, a map smaller than `pool`.
    """
    keys = positive("key_channels", key_channels)
    value = positive("value_channels", value_channels or keys)
    unit = SelfAttention(positive("channels", channels), keys, value, layers(qk_layers))
    context = BaseOC(Pooled(unit, positive("pool", pool), late_norm=late_norm), channels)
    return ContextHead(in_channels, num_classes, context, channels, dropout=dropout)


def part(name: str, width: int, share: int) -> int:
    """The `share`-th part of a width."""
    if positive(name, width) % share:
        raise ValueError(f"{name} is {width}; allowed with scheme 'asp', which halves it: even numbers")
    return width // share


def layers(qk_layers: int) -> int:
    """`qk_layers` itself, if it is 1 or 2."""
    if qk_layers not in (1, 2):
        raise ValueError(f"qk_layers is {qk_layers!r}; allowed: 1, as in the published costs, or 2, as in the paper")
    return qk_layers
