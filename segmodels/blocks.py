"""Context in the blocks of a ResNet: what the papers do with their modules outside of segmentation heads.

Three places. `blocks`: a gate where squeeze-and-excitation stands, on the last norm of every block, before the shortcut
is added (SRNet, Sec. IV-E). `layer4`: a residual unit on the output of every block of the last stage (SRNet, Sec.
III-D). `before_last_of_layer3`: one residual unit before the last block of stage 3 (OCNet, Sec. 4.5; Wang et al., CVPR
2018, arXiv:1711.07971). The modules are those of the heads.

A residual unit starts as the identity, the batch norm of its last layer at 0, as the non-local block's authors have it:
so a trunk that was trained without it begins as it was. The other papers do not say how theirs start.
"""

from collections.abc import Callable, Mapping
from typing import Any

from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from segmodels.checks import check_keywords, choose, keywords_of, pair, positive
from segmodels.heads.cbam import CBAM
from segmodels.heads.interlaced import InterlacedAttention
from segmodels.heads.nonlocal_ import NonLocal
from segmodels.heads.se import SqueezeExcitation
from segmodels.heads.srnet import REASONINGS, SqueezeReasoning, part

STAGES = ("layer1", "layer2", "layer3", "layer4")


class ReasonedGate(nn.Module):
    """x · σ(reason(g)), g the mean of x over the map: squeeze-and-excitation by SRNet's graph reasoning.

    Node k of K owns the k-th run of d = C/K channels. Sec. IV-E says that the two fully connected layers are replaced
    and that the squeeze is plain average pooling; the sigmoid stays.

    Args:
        channels: C.
        nodes: K.
        reasoning: "gcn" (after Eq. 5, as in the authors' code), "eq5" (Eq. 5 as printed) or "sa" (Eq. 6).

    Shape: (B, C, H, W) -> (B, C, H, W).

    Raises:
        ValueError: an unknown reasoning, or K does not divide C.
    """

    def __init__(self, channels: int, nodes: int, reasoning: str) -> None:
        super().__init__()
        states = part("channels", channels, "nodes", nodes)
        kinds = {name: REASONINGS[name] for name in ("gcn", "eq5", "sa")}
        self.nodes, self.reason = nodes, choose(kinds, reasoning, "reasoning")(nodes, states, 1)

    def forward(self, x: Tensor) -> Tensor:
        g = self.reason(x.mean((2, 3)).unflatten(1, (self.nodes, -1)))
        return x * g.flatten(1).sigmoid()[:, :, None, None]


class ResidualAttention(nn.Module):
    """x + BN(W a), a the interlaced attention of x: one object context pooling as a block of a trunk, like non-local.

    OCNet concatenates a and x in its heads; in a trunk, whose width must stay, Sec. 4.5 says only where it stands.

    Args:
        channels: C.
        embed_channels: width of query, key and value.
        attention: keywords of `InterlacedAttention`.

    Shape: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, embed_channels: int, **attention: Any) -> None:
        super().__init__()
        self.attention = InterlacedAttention(channels, embed_channels, embed_channels, 1, **attention)
        self.restore = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.restore(self.attention(x)))


def se_gate(channels: int, *, reduction: int = 16) -> nn.Module:
    """Squeeze-and-excitation, see `SqueezeExcitation`."""
    return SqueezeExcitation(channels, reduction)


def cbam_gate(channels: int, *, reduction: int = 16, kernel: int = 7, spatial: bool = True) -> nn.Module:
    """CBAM, see `CBAM`."""
    return CBAM(channels, reduction, kernel, spatial=spatial)


def sr_gate(channels: int, *, nodes: int = 16, reasoning: str = "gcn") -> nn.Module:
    """SRNet's reasoning in place of the layers of squeeze-and-excitation, see `ReasonedGate`."""
    return ReasonedGate(channels, nodes, reasoning)


def sr_unit(
    channels: int, *, squeeze: str = "ghp", reasoning: str = "gcn", nodes: int = 16, ratio: int = 64
) -> nn.Module:
    """SRNet's unit, see `SqueezeReasoning`; C/64 channels give the 0.56 GMACs that Table IX prints for three blocks."""
    unit = SqueezeReasoning(channels, squeeze=squeeze, reasoning=reasoning, nodes=nodes, ratio=ratio)
    nn.init.zeros_(unit.norm.weight)  # type: ignore[arg-type]  # of a batch norm, which has one
    return unit


def nonlocal_unit(channels: int, *, embed_channels: int = 0) -> nn.Module:
    """The non-local block, see `NonLocal`; a width of 0 is C/2."""
    return NonLocal(channels, positive("embed_channels", embed_channels or max(channels // 2, 1)))


def isa_unit(
    channels: int,
    *,
    embed_channels: int = 0,
    partition: tuple[int, int] = (8, 8),
    order: str = "global_local",
    mask_padding: bool = True,
) -> nn.Module:
    """Interlaced sparse self-attention as a residual block, see `ResidualAttention`; a width of 0 is C/2."""
    width = positive("embed_channels", embed_channels or max(channels // 2, 1))
    options = {"partition": pair("partition", partition), "order": order, "mask_padding": mask_padding}
    return ResidualAttention(channels, width, **options)


GATES: dict[str, Callable[..., nn.Module]] = {"se": se_gate, "cbam": cbam_gate, "sr": sr_gate}
UNITS: dict[str, Callable[..., nn.Module]] = {"sr": sr_unit, "nonlocal": nonlocal_unit, "isa": isa_unit}
PLACES = {"blocks": GATES, "layer4": UNITS, "before_last_of_layer3": UNITS}


def add_context(trunk: nn.Module, name: str, context: Mapping[str, Any]) -> tuple[str, ...]:
    """Put context into the blocks of one of timm's ResNets; names of the weights that it has already stay.

    Args:
        trunk: with `layer1` to `layer4`.
        name: of the trunk, for messages.
        context: `name`, in `GATES` for the place `blocks`, else in `UNITS`; `place`, in `PLACES`; and the keywords of
            the builder.

    Returns:
        How the names of the added weights begin, within the trunk.

    Raises:
        ValueError: the trunk is no ResNet, or has gates of its own; an unknown name, place or keyword; a bad value.
    """
    blocks = blocks_of(trunk, name)
    place, kind = context.get("place", ""), context.get("name", "")
    builders = choose(PLACES, place, "place of backbone.context")
    builder = choose(builders, kind, f"name of backbone.context in {place}")
    keywords = {key: value for key, value in context.items() if key not in ("name", "place")}
    check_keywords(keywords, keywords_of(builder), f"backbone.context {kind!r} in {place}")
    added = []
    for path in chosen(blocks, place, name):
        block: Any = blocks[path]
        last = "act3" if isinstance(block, Bottleneck) else "act2"
        module = builder(block.get_submodule("conv3" if last == "act3" else "conv2").out_channels, **keywords)
        if place == "blocks":
            if block.se is not None:
                raise ValueError(f"backbone.context is in blocks, but those of {name} have gates already; name another")
            block.se = module
        else:  # behind the last ReLU: so it works on the block's output, and the block's own weights keep their names
            setattr(block, last, nn.Sequential(getattr(block, last), module))
        added.append(f"{path}.se." if place == "blocks" else f"{path}.{last}.1.")
    return tuple(added)


def blocks_of(trunk: nn.Module, name: str) -> dict[str, nn.Module]:
    """Path -> residual block of a ResNet, in their order.

    Raises:
        ValueError: the trunk is none.
    """
    own = dict(trunk.named_modules())
    if not all(stage in own for stage in STAGES):
        raise ValueError(f"backbone.context is for ResNets; allowed for {name}, which is none: null")
    blocks = {f"{stage}.{place}": block for stage in STAGES for place, block in own[stage].named_children()}
    if not all(isinstance(block, BasicBlock | Bottleneck) for block in blocks.values()):
        raise ValueError(f"backbone.context is for ResNets; allowed for {name}, whose blocks are others: null")
    return blocks


def chosen(blocks: Mapping[str, nn.Module], place: str, name: str) -> list[str]:
    """Paths of the blocks that get context.

    Raises:
        ValueError: stage 3 has one block, so nothing is before its last.
    """
    if place == "blocks":
        return list(blocks)
    if place == "layer4":
        return [path for path in blocks if path.startswith("layer4.")]
    third = [path for path in blocks if path.startswith("layer3.")]
    if len(third) < 2:
        raise ValueError(f"backbone.context is {place}, but layer3 of {name} has one block; name a deeper ResNet")
    return third[-2:-1]
