"""PSANet: point-wise spatial attention, collected and distributed (Zhao et al., ECCV 2018, not on arXiv).

We follow the public code: the weights of a target pixel pass through a softmax over its sources, where the paper
divides a plain sum by their number. Its own operator, which reads the over-complete maps, is a view of their memory
here.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmodels.checks import choose, pair, positive
from segmodels.heads.attention import tokens
from segmodels.heads.maps import Maps
from segmodels.layers import ConvNormReLU, dropout_classifier, resize

KINDS = {"bi": ("collect", "distribute"), "collect": ("collect",), "distribute": ("distribute",)}


class PointAttention(nn.Module):
    """One branch of PSA: pixel i predicts, for each of (2h − 1)(2w − 1) offsets, how it relates to the pixel there.

    Collecting, i is the target and gathers from all sources; distributing, i is the source and gives to all targets.
    Each target's weights sum to 1. The part of the over-complete map that stays on the map is read in place, see
    `windows`.

    Args:
        in_channels: width of the input.
        channels: width of the branch.
        size: (h, w) in cells at which the attention works.
        collect: collect, else distribute.

    Maps: "collect" (B, h, w): the weights with which the asked pixel gathers from all; or "distribute" (B, h, w): the
    weights with which all gather from the asked pixel, which need not sum to 1.

    Shape: (B, in_channels, H, W) -> (B, channels, h, w).
    """

    def __init__(self, in_channels: int, channels: int, size: tuple[int, int], *, collect: bool) -> None:
        super().__init__()
        self.size, self.collect = size, collect
        self.reduce = ConvNormReLU(in_channels, channels, 1)
        self.offsets = nn.Sequential(
            ConvNormReLU(channels, channels, 1),
            nn.Conv2d(channels, (2 * size[0] - 1) * (2 * size[1] - 1), 1, bias=False),
        )

    def forward(self, x: Tensor, maps: Maps | None = None) -> Tensor:
        x = resize(self.reduce(x), self.size)
        # The last convolution as a product of matrices, which puts all offsets of a pixel side by side.
        weight = cast("Tensor", self.offsets[1].weight).flatten(1)
        overcomplete = F.linear(tokens(self.offsets[0](x)), weight)  # (B, h, w, offsets)
        weights = windows(overcomplete, self.size).softmax(2 if self.collect else 1)
        if maps is not None:
            row, column = maps.cell(self.size)
            pixel = weights[:, row * self.size[1] + column].unflatten(1, self.size)
            maps.add("collect" if self.collect else "distribute", pixel)
        values = x.flatten(2)
        y = values @ (weights.mT if self.collect else weights).to(values.dtype)  # (B, C, target)
        return y.view_as(x)


class PSANet(nn.Module):
    """The attention of all branches, projected to the backbone's width, next to the backbone's map.

    Shape: list of maps, the last (B, in_channels[-1], H, W) -> {"logits": (B, K, H, W)}.

    Raises:
        ValueError: in `forward`, a map of another size than `feature_size`.
    """

    gives_maps = True

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: int,
        kinds: Sequence[str],
        feature_size: tuple[int, int],
        shrink: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.feature_size = feature_size = pair("feature_size", feature_size)
        height, width = ((side - 1) // shrink + 1 for side in feature_size)
        self.branches = nn.ModuleList(
            PointAttention(in_channels, channels, (height, width), collect=kind == "collect") for kind in kinds
        )
        self.project = ConvNormReLU(len(kinds) * channels, in_channels, 1)
        self.fuse = ConvNormReLU(2 * in_channels, channels, 3)
        self.classify = dropout_classifier(channels, num_classes, dropout)

    def forward(self, features: Sequence[Tensor], maps: Maps | None = None) -> dict[str, Tensor]:
        x = features[-1]
        if tuple(x.shape[2:]) != self.feature_size:
            raise ValueError(
                f"the head got a map of {tuple(x.shape[2:])} cells; allowed: {self.feature_size}, to which its "
                "attention is bound. Slide windows of the training crop over the image"
            )
        y = self.project(torch.cat([branch(x, maps) for branch in self.branches], 1))
        y = self.fuse(torch.cat([x, resize(y, x.shape[2:])], 1))
        return {"logits": self.classify(y)}


def psanet_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 512,
    kind: str = "bi",
    shrink: int = 2,
    dropout: float = 0.1,
    feature_size: tuple[int, int] | None = None,
) -> PSANet:
    """PSANet, bound to its crop.

    The attention works on a map of (h − 1) // shrink + 1 rows and likewise columns, and its result is resized to the
    backbone's map. The public code takes only maps for which shrink divides h − 1 and w − 1, such as those of crops of
    8k + 1 pixels; for these the result is the same. Other maps are our own extension: the attention's cells fall
    between theirs.

    Args:
        in_channels: widths of the stages; the last is read.
        num_classes: K.
        channels: width of the attention, and before the classifier.
        kind: "bi", "collect" or "distribute".
        shrink: factor by which the map is shrunk for the attention.
        dropout: probability that a channel is dropped before the classifier.
        feature_size: (h, w) in cells of the training crop's map.

    Raises:
        ValueError: no `feature_size`, an unknown kind, a width, side or `shrink` below 1, or a bad dropout.
    """
    kinds = choose(KINDS, kind, "kind")
    if feature_size is None:
        raise ValueError("feature_size is None; allowed: (h, w) in cells, as each offset has weights")
    height, width = feature_size
    size = positive("feature_size", height), positive("feature_size", width)
    channels, shrink = positive("channels", channels), positive("shrink", shrink)
    return PSANet(in_channels[-1], num_classes, channels, kinds, size, shrink, dropout)


def windows(overcomplete: Tensor, size: tuple[int, int]) -> Tensor:
    """The offsets that each pixel needs, of its (2h − 1)(2w − 1): those that stay on the map.

    They are a window of h x w offsets, which moves against the pixel: one row or column less down or right for each
    that the pixel is further. So steps from pixel to pixel, shortened by one offset, read all windows without an index.

    Shape: (B, h, w, (2h − 1)(2w − 1)), contiguous -> (B, i, j), the relation of pixel i to pixel j.
    """
    (height, width), offsets = size, overcomplete.shape[3]
    line = 2 * width - 1  # offsets of one row
    steps = (height * width * offsets, width * offsets - line, offsets - 1, line, 1)
    first = (height - 1) * line + width - 1  # the offset (0, 0): of the first pixel to itself
    shape = (overcomplete.shape[0], height, width, height, width)
    return overcomplete.as_strided(shape, steps, first).flatten(3).flatten(1, 2)
