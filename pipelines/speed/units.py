"""The contexts of the heads, each with its peer: the public code's form, which computes the same from its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from segmodels.heads.a2 import DoubleAttention
from segmodels.heads.ann import AsymmetricBlock
from segmodels.heads.apcnet import AdaptiveContext
from segmodels.heads.ccnet import CrissCross
from segmodels.heads.cfnet import CoOccurrence
from segmodels.heads.cgnl import CompactNonLocal
from segmodels.heads.ctnet import ctnet_head
from segmodels.heads.danet import ChannelAttention, PositionAttention
from segmodels.heads.dmnet import DynamicConv
from segmodels.heads.efficient import EfficientAttention
from segmodels.heads.emanet import ExpectationMaximisation
from segmodels.heads.encnet import EncModule
from segmodels.heads.glore import GlobalReasoning
from segmodels.heads.interlaced import InterlacedAttention
from segmodels.heads.latentgnn import LatentGraph
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
from segmodels.plain.ccnet import ccnet_plain
from segmodels.plain.cfnet import cfnet_plain
from segmodels.plain.cgnl import cgnl_plain
from segmodels.plain.ctnet import ctnet_plain
from segmodels.plain.danet import cam_plain, pam_plain
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
        training: in training mode; False where the peer knows only evaluation.
    """

    build: Callable[[int, Size], nn.Module]
    plain: Callable[..., Tensor]
    inputs: Inputs = lambda c, size: ((c, size),)
    ours: Callable[..., Tensor] = lambda module, *inputs: module(*inputs)
    gpu: tuple[int, int, int, int] = (4, 512, 64, 64)
    goal: bool = False
    training: bool = True


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


def pyramid(c: int, size: Size) -> nn.Module:
    """Pyramid-OC of dense attentions."""
    return PyramidOC([SelfAttention(c, c // 2, c // 2, 2) for _ in PYRAMID], PYRAMID, c)


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
UNITS: Mapping[str, Unit] = {
    "tgm+trm": Unit(TensorContext, lambda m, x: reconet_plain(m.tgm, m.trm, x), gpu=(16, 512, 64, 64), goal=True),
    "sa": Unit(lambda c, size: SelfAttention(c, c // 2, c // 2, 2), self_attention_plain, gpu=DENSE, goal=True),
    "isa": Unit(interlaced(False), ocnet_plain, gpu=DENSE),
    "isa-padded": Unit(interlaced(False), ocnet_plain, odd, gpu=DENSE),
    "isa-masked": Unit(interlaced(True), masked_plain, odd, gpu=DENSE),
    "pyramid-oc": Unit(pyramid, pyramid_plain, gpu=(4, 512, 96, 96), goal=True),
    "nl": Unit(lambda c, size: NonLocal(c, c // 2), nonlocal_plain, goal=True),
    "pam": Unit(lambda c, size: PositionAttention(c, c // 8), pam_plain, goal=True),
    "cam": Unit(lambda c, size: ChannelAttention(), cam_plain),
    "rcca": Unit(lambda c, size: CrissCross(c, c // 8, 2), ccnet_plain, goal=True),
    "emau": Unit(
        lambda c, size: ExpectationMaximisation(c, 64, 3, momentum=0.9, gradient=False), emanet_plain
    ),
    "acm": Unit(lambda c, size: AdaptiveContext(4 * c, c, 6, fusion=True), apcnet_plain, WIDE),
    "acf": Unit(lambda c, size: CoOccurrence(c, 8, 1, pooling=True, dropout=0.0), cfnet_plain),
    "encoding": Unit(lambda c, size: EncModule(c, 32), encnet_plain),
    "a2": Unit(lambda c, size: DoubleAttention(c, c // 2, c // 2), a2_plain),
    "efficient": Unit(lambda c, size: EfficientAttention(c, c // 2, c // 2, 8), efficient_plain),
    "sr": Unit(lambda c, size: SqueezeReasoning(c), srnet_plain),
    "cgnl": Unit(lambda c, size: CompactNonLocal(c, embed_channels=c // 2, groups=8), cgnl_plain),
    "glore": Unit(lambda c, size: GlobalReasoning(c), glore_plain),
    "latentgnn": Unit(lambda c, size: LatentGraph(c), latentgnn_plain, training=False),
    "psa-collect": Unit(points(True), psanet_plain),
    "psa-distribute": Unit(points(False), psanet_plain),
    "ocr": Unit(lambda c, size: ObjectContext(c, c // 2), ocr_plain, lambda c, size: ((c, size), (CLASSES, size))),
    "ctnet": Unit(tandem, ctnet_plain, WIDE, ours=lambda m, x: m([x])["logits"]),
    "dcm": Unit(lambda c, size: DynamicConv(4 * c, c, 7, fusion=True), dmnet_plain, WIDE),
    "afnb": Unit(
        lambda c, size: asymmetric(2 * c, 4 * c, c, shared=False), ann_plain,
        lambda c, size: ((4 * c, size), (2 * c, size)),
    ),
    "apnb": Unit(lambda c, size: asymmetric(c, c, c, shared=True), ann_plain),
}  # fmt: skip


def wake(module: nn.Module) -> nn.Module:
    """The module with all that starts at zero (gates, last norms) near 1, so that the context is seen."""
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.uniform_(parameter, 0.5, 1.5)
    return module
