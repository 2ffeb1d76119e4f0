"""The contexts of the heads, each with its peer: the public code's form, which computes the same from its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segmodels.heads.a2 import DoubleAttention
from segmodels.heads.ann import AsymmetricBlock
from segmodels.heads.apcnet import AdaptiveContext
from segmodels.heads.cbam import CBAM
from segmodels.heads.ccnet import CrissCross
from segmodels.heads.cfnet import CoOccurrence
from segmodels.heads.cgnl import CompactNonLocal
from segmodels.heads.ctnet import ctnet_head
from segmodels.heads.danet import ChannelAttention, PositionAttention, danet_head
from segmodels.heads.dmnet import DynamicConv
from segmodels.heads.efficient import EfficientAttention
from segmodels.heads.emanet import ExpectationMaximisation
from segmodels.heads.encnet import EncModule
from segmodels.heads.glore import GlobalReasoning
from segmodels.heads.interlaced import InterlacedAttention
from segmodels.heads.latentgnn import LatentGraph
from segmodels.heads.lean import set_recompute
from segmodels.heads.nonlocal_ import NonLocal
from segmodels.heads.object_attention import SelfAttention
from segmodels.heads.ocnet import PyramidOC
from segmodels.heads.ocr import ObjectContext
from segmodels.heads.psanet import PointAttention
from segmodels.heads.reconet import TensorGeneration, TensorReconstruction
from segmodels.heads.srnet import SqueezeReasoning
from segmodels.plain.a2 import a2_plain
from segmodels.plain.ann import ann_plain
from segmodels.plain.apcnet import apcnet_plain
from segmodels.plain.cbam import cbam_plain
from segmodels.plain.ccnet import ccnet_plain
from segmodels.plain.cfnet import cfnet_plain
from segmodels.plain.cgnl import cgnl_plain
from segmodels.plain.ctnet import ctnet_plain
from segmodels.plain.danet import cam_plain, danet_plain, pam_plain
from segmodels.plain.dmnet import dmnet_plain
from segmodels.plain.efficient import efficient_plain
from segmodels.plain.emanet import emanet_plain
from segmodels.plain.encnet import encnet_plain
from segmodels.plain.glore import glore_plain
from segmodels.plain.latentgnn import latentgnn_plain
from segmodels.plain.masked import masked_plain
from segmodels.plain.nonlocal_ import nonlocal_plain
from segmodels.plain.ocnet import ocnet_plain, self_attention_plain
from segmodels.plain.ocr import ocr_plain
from segmodels.plain.psanet import psanet_plain
from segmodels.plain.pyramid import pyramid_plain
from segmodels.plain.reconet import reconet_plain
from segmodels.plain.srnet import srnet_plain

CLASSES = 21  # of the units that read logits
RANK = 64
PYRAMID, GRIDS = (1, 2, 3, 6), (1, 3, 6, 8)
Size = tuple[int, int]
Inputs = Callable[[int, Size], tuple[tuple[int, Size], ...]]


@dataclass(frozen=True)
class Unit:
    """One context: how to build it, its peer, and what it reads.

    Attributes:
        build: from C and (H, W) in cells to the module.
        plain: the peer, `plain(module, *inputs)`.
        inputs: from C and (H, W) to the width and size of every input; one map of C channels if None.
        ours: how to call the module, where not `module(*inputs)`.
        gpu: (B, C, H, W) that is timed on a GPU unless told otherwise.
        goal: to be 2x faster or 4x smaller than its peer; all others, no slower and no larger.
        training: in training mode too; False where the peer knows only evaluation.
        settings: what a row of the table has to name beside C: widths, layers, partitions, what is off.
    """

    build: Callable[[int, Size], nn.Module]
    plain: Callable[..., Tensor]
    inputs: Inputs = lambda c, size: ((c, size),)
    ours: Callable[..., Tensor] = lambda module, *inputs: module(*inputs)
    gpu: tuple[int, int, int, int] = (4, 512, 64, 64)
    goal: bool = False
    training: bool = True
    settings: str = ""


class TensorContext(nn.Module):
    """TGM and TRM, as `RecoNet` chains them.

    Shape: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, size: Size) -> None:
        super().__init__()
        self.tgm, self.trm = TensorGeneration(channels, size, RANK), TensorReconstruction(RANK)

    def forward(self, x: Tensor) -> Tensor:
        return self.trm(x, *self.tgm(x))


def interlaced(mask: bool) -> Callable[[int, Size], nn.Module]:
    """ISA of 8 x 8 groups, as Base-OC has it, with padding that is masked or, as in the public code, is not."""
    return lambda c, size: InterlacedAttention(c, c // 2, c // 2, 2, mask_padding=mask)


def odd(c: int, size: Size) -> tuple[tuple[int, Size], ...]:
    """A map that 8 x 8 groups do not divide, where they divide `size`."""
    return ((c, (size[0] - 3, size[1] - 5)),)


def pyramid(recompute: bool) -> Callable[[int, Size], nn.Module]:
    """Pyramid-OC of dense attentions."""

    def build(c: int, size: Size) -> nn.Module:
        module = PyramidOC([SelfAttention(c, c // 2, c // 2, 2) for _ in PYRAMID], PYRAMID, c)
        set_recompute(module, recompute)
        return module

    return build


def expectation(gradient: bool) -> Callable[[int, Size], nn.Module]:
    """EMAU of 64 bases in three steps."""
    return lambda c, size: ExpectationMaximisation(c, 64, 3, momentum=0.9, gradient=gradient)


def whole_danet(c: int, size: Size) -> nn.Module:
    """DANet's head; dropout off, as two forms cannot draw the same."""
    return danet_head((4 * c,), CLASSES, channels=c, key_channels=c // 8, dropout=0.0)


def side_by_side(module: nn.Module, x: Tensor) -> Tensor:
    """All maps that a head gives, (B, maps K, H, W)."""
    return torch.cat(list(module([x]).values()), 1)


def points(collect: bool) -> Callable[[int, Size], nn.Module]:
    """A branch of PSA on a map of half the size, as its head has it."""
    return lambda c, size: PointAttention(c, c, ((size[0] - 1) // 2 + 1, (size[1] - 1) // 2 + 1), collect=collect)


def asymmetric(low: int, high: int, c: int, *, shared: bool) -> nn.Module:
    """AFNB or APNB with the published widths at C = 512; dropout off, as two forms cannot draw the same."""
    return AsymmetricBlock(low, high, high, c // 2, c // 2, GRIDS, shared=shared, rectify=shared, dropout=0.0)


def tandem(c: int, size: Size) -> nn.Module:
    """CTNet, whole: its peer is."""
    return ctnet_head(
        (4 * c,), CLASSES, channels=c, key_channels=c // 4, kernels=tuple(k for k in (9, 17, 33, 65) if k <= c)
    )


WIDE: Inputs = lambda c, size: ((4 * c, size),)  # noqa: E731
DENSE = (4, 512, 128, 128)
HALVES = "keys and values C/2, 2 layers"
ISA = f"{HALVES}, partition 8 x 8"
TILES = f"{HALVES}, tiles 1, 2, 3, 6, {{}}"
UNITS: Mapping[str, Unit] = {
    "tgm+trm": Unit(
        TensorContext, lambda m, x: reconet_plain(m.tgm, m.trm, x), gpu=(16, 512, 64, 64), goal=True,
        settings="rank 64",
    ),
    "sa": Unit(
        lambda c, size: SelfAttention(c, c // 2, c // 2, 2), self_attention_plain, gpu=DENSE, goal=True, settings=HALVES
    ),
    "isa": Unit(interlaced(False), ocnet_plain, gpu=DENSE, settings=ISA),
    "isa-padded": Unit(interlaced(False), ocnet_plain, odd, gpu=DENSE, settings=f"{ISA}, padding takes part"),
    "isa-masked": Unit(interlaced(True), masked_plain, odd, gpu=DENSE, settings=f"{ISA}, padding masked"),
    "pyramid-oc": Unit(pyramid(False), pyramid_plain, gpu=(4, 512, 96, 96), settings=TILES.format("all kept")),
    "pyramid-oc-again": Unit(
        pyramid(True), pyramid_plain, gpu=(4, 512, 96, 96), goal=True, settings=TILES.format("recompute")
    ),
    "nl": Unit(lambda c, size: NonLocal(c, c // 2), nonlocal_plain, goal=True, settings="embedding C/2"),
    "pam": Unit(lambda c, size: PositionAttention(c, c // 8), pam_plain, goal=True, settings="keys C/8"),
    "cam": Unit(lambda c, size: ChannelAttention(), cam_plain),
    "danet-head": Unit(whole_danet, danet_plain, WIDE, ours=side_by_side, settings="whole head of 4C, keys C/8"),
    "cbam": Unit(lambda c, size: CBAM(c, 16, 7, spatial=True), cbam_plain, settings="reduction 16, kernel 7"),
    "rcca": Unit(lambda c, size: CrissCross(c, c // 8, 2), ccnet_plain, goal=True, settings="keys C/8, 2 rounds"),
    "emau": Unit(expectation(True), emanet_plain, settings="64 bases, 3 steps; plain has no gradient through them"),
    "emau-frozen": Unit(expectation(False), emanet_plain, settings="64 bases, 3 steps, no gradient through them"),
    "acm": Unit(
        lambda c, size: AdaptiveContext(4 * c, c, 6, fusion=True), apcnet_plain, WIDE, settings="of 4C, 6 x 6, fusion"
    ),
    "acf": Unit(
        lambda c, size: CoOccurrence(c, 8, 1, pooling=True, dropout=0.0), cfnet_plain, settings="8 heads, pooling"
    ),
    "encoding": Unit(lambda c, size: EncModule(c, 32), encnet_plain, settings="32 codewords"),
    "a2": Unit(lambda c, size: DoubleAttention(c, c // 2, c // 2), a2_plain, settings="both widths C/2"),
    "efficient": Unit(
        lambda c, size: EfficientAttention(c, c // 2, c // 2, 8), efficient_plain,
        settings="keys and values C/2, 8 heads",
    ),
    "sr": Unit(lambda c, size: SqueezeReasoning(c), srnet_plain, settings="16 nodes, ratio 2, GHP, GCN"),
    "cgnl": Unit(
        lambda c, size: CompactNonLocal(c, embed_channels=c // 2, groups=8), cgnl_plain,
        settings="embedding C/2, 8 groups",
    ),
    "glore": Unit(lambda c, size: GlobalReasoning(c), glore_plain, settings="as its head"),
    "latentgnn": Unit(lambda c, size: LatentGraph(c), latentgnn_plain, training=False, settings="as its head"),
    "psa-collect": Unit(points(True), psanet_plain, settings="map of half the size"),
    "psa-distribute": Unit(points(False), psanet_plain, settings="map of half the size"),
    "ocr": Unit(
        lambda c, size: ObjectContext(c, c // 2), ocr_plain, lambda c, size: ((c, size), (CLASSES, size)),
        settings="keys C/2, 21 classes",
    ),
    "ctnet": Unit(
        tandem, ctnet_plain, WIDE, ours=lambda m, x: m([x])["logits"], settings="whole head of 4C, keys C/4, 21 classes"
    ),
    "dcm": Unit(
        lambda c, size: DynamicConv(4 * c, c, 7, fusion=True), dmnet_plain, WIDE, settings="of 4C, 7 x 7, fusion"
    ),
    "afnb": Unit(
        lambda c, size: asymmetric(2 * c, 4 * c, c, shared=False), ann_plain,
        lambda c, size: ((4 * c, size), (2 * c, size)), settings="of 4C and 2C, grids 1, 3, 6, 8",
    ),
    "apnb": Unit(lambda c, size: asymmetric(c, c, c, shared=True), ann_plain, settings="grids 1, 3, 6, 8"),
}  # fmt: skip


def wake(module: nn.Module) -> nn.Module:
    """The module with all that starts at zero (gates, last norms) near 1, so that the context is seen."""
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.uniform_(parameter, 0.5, 1.5)
    return module
