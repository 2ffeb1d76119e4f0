"""DFSeg: a light decoder of the last three maps, for trunks made for speed (Li et al., CVPR 2019, arXiv:1903.03777).

We follow SFSegNets, the public code of SRNet's authors: with DF2 18.83 M parameters as in SRNet's Table V, and 18.87 M
with the SR unit. That code halves the image before the trunk at test time, which we do not. From DF1 it takes the maps
at strides 16, 32 and 32, which gives the table's 9.37 M; we take those at 8, 16 and 32, as from DF2: 9.35 M.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmodels.checks import choose, positive, probability
from segmodels.heads.maps import Maps
from segmodels.heads.pyramid_head import sizes
from segmodels.heads.srnet import SqueezeReasoning
from segmodels.layers import ConvNormReLU, check_norm_batch, dropout_classifier
from segmodels.upsampling import bilinear

READ = 3  # maps


class LinearPyramid(nn.Module):
    """Pyramid pooling whose levels have no ReLU, fused by a 1x1 convolution and dropout of whole channels.

    Args:
        in_channels: width of the map.
        channels: width of every level and of the output.
        bins: n of every level, which averages n x n regions.
        dropout: probability that an output channel is dropped.

    Shape: (B, in_channels, H, W) -> (B, channels, H, W).

    Raises:
        ValueError: no bins or one below 1, a bad dropout; in `forward`, one image in training, of which a level of
            one region has one value per channel.
    """

    def __init__(self, in_channels: int, channels: int, bins: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.bins = sizes("bins", bins)
        self.project = nn.ModuleList([nn.Conv2d(in_channels, channels, 1, bias=False) for _ in self.bins])
        self.norm = nn.ModuleList([nn.BatchNorm2d(channels) for _ in self.bins])
        self.fuse = ConvNormReLU(in_channels + len(self.bins) * channels, channels, 1)
        self.dropout = nn.Dropout2d(probability("dropout", dropout))

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for side, project, norm in zip(self.bins, self.project, self.norm, strict=True):
            level = project(F.adaptive_avg_pool2d(x, side))
            if side == 1:
                check_norm_batch(norm, level, "the image pooling branch")
            parts.append(bilinear(norm(level), x.shape[2:]))
        return self.dropout(self.fuse(torch.cat([*parts, x], 1)))


class FusionNode(nn.Module):
    """The enlarged coarse map, next to the fine one, through a 3x3 convolution with neither norm nor ReLU.

    Shape: (B, C, h, w), (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * channels, channels, 3, padding=1, bias=False)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        # Not `resize`: its test for equal sizes would bind an exported program.
        coarse = bilinear(coarse, fine.shape[-2:])
        return self.mix(torch.cat([coarse, fine], 1))


class DFSeg(nn.Module):
    """Context on the coarsest map, lateral 1x1 convolutions, two fusion nodes, and a classifier at the finest.

    Args:
        in_channels: widths of the trunk's maps; the last three are read.
        num_classes: K.
        context: a module on the last map, and its output's width. One whose class attribute `gives_maps` is true
            takes `maps` as its second argument and fills it.
        channels: width of the lateral maps and of the fusion nodes.
        out_channels: width of the map that is classified.
        dropout: probability that a channel is dropped before the classifier.

    Shape: list of maps, the last three read -> {"logits": (B, K, H, W)} at the size of the finest of those.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        context: tuple[nn.Module, int],
        *,
        channels: int,
        out_channels: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.context, width = context
        self.gives_maps: bool = getattr(self.context, "gives_maps", False)
        widths = [width, *reversed(in_channels[-READ:-1])]
        self.lateral = nn.ModuleList([nn.Conv2d(given, channels, 1) for given in widths])
        self.nodes = nn.ModuleList([FusionNode(channels) for _ in widths[1:]])
        # With a bias, though a norm follows: the public code and the published parameters have it.
        wide = nn.Conv2d(channels, positive("out_channels", out_channels), 3, padding=1)
        self.refine = nn.Sequential(wide, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))
        self.classify = dropout_classifier(out_channels, num_classes, dropout)

    def forward(self, features: Sequence[Tensor], maps: Maps | None = None) -> dict[str, Tensor]:
        *fine, x = features[-READ:]
        wants = maps is not None and self.gives_maps
        x = self.lateral[0](self.context(x, maps) if wants else self.context(x))
        for lateral, node, side in zip(self.lateral[1:], self.nodes, reversed(fine), strict=True):
            x = node(x, lateral(side))
        return {"logits": self.classify(self.refine(x))}


def dfseg_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    context: str = "ppm",
    channels: int = 128,
    out_channels: int = 256,
    bins: tuple[int, ...] = (1, 2, 3, 6),
    squeeze: str = "ghp",
    reasoning: str = "gcn",
    nodes: int = 16,
    ratio: int = 2,
    dropout: float = 0.1,
) -> DFSeg:
    """DFSeg's decoder with pyramid pooling or, as in SRNet's Table V, the SR unit in its place.

    Args:
        in_channels: widths of the stages; the last three are read.
        num_classes: K.
        context: "ppm", or "sr" on the last map as it is.
        channels: width of the lateral maps, the pyramid's levels and its output.
        out_channels: width of the map that is classified.
        bins: of "ppm": n of every level. A level of 1 needs two images per device in training.
        squeeze, reasoning, nodes, ratio: of "sr", see `SqueezeReasoning`.
        dropout: probability that a channel is dropped before the classifier, and after "ppm".

    Raises:
        ValueError: an unknown name, a bad value, or fewer than three maps.
    """
    if len(in_channels) < READ:
        raise ValueError(
            f"head 'dfseg' got {len(in_channels)} maps; allowed: 3 or 4, as it fuses the last three. "
            "As an auxiliary head it needs stage: 3 or 4"
        )
    positive("channels", channels)
    width = in_channels[-1]

    def pyramid() -> tuple[nn.Module, int]:
        return LinearPyramid(width, channels, bins, dropout), channels

    def reasoned() -> tuple[nn.Module, int]:
        unit = SqueezeReasoning(width, squeeze=squeeze, reasoning=reasoning, nodes=nodes, ratio=ratio)
        return unit, width

    contexts: dict[str, Callable[[], tuple[nn.Module, int]]] = {"ppm": pyramid, "sr": reasoned}
    chosen = choose(contexts, context, "context")()
    return DFSeg(in_channels, num_classes, chosen, channels=channels, out_channels=out_channels, dropout=dropout)
