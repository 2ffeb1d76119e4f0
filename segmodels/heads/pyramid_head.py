"""The frame of the heads that read the trunk's map at several scales: branches, fuse, classify."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmodels.checks import positive
from segmodels.heads.maps import Maps
from segmodels.layers import ConvNormReLU, check_norm_batch, dropout_classifier
from segmodels.upsampling import bilinear


class PyramidHead(nn.Module):
    """The map and what every branch makes of it, side by side; a 3x3 convolution fuses them.

    Unlike `ContextHead` it does not reduce first: the branches work on the trunk's full width.

    Args:
        in_channels: widths of the backbone's stages; the last is read.
        num_classes: K.
        branches: modules from (B, in_channels[-1], H, W) to (B, channels, H, W).
        channels: width of every branch and of the fused map.
        dropout: probability that a channel is dropped before the classifier.

    Shape: list of maps, the last (B, in_channels[-1], H, W) -> {"logits": (B, K, H, W)}.

    Raises:
        ValueError: a bad dropout.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        branches: Sequence[nn.Module],
        channels: int,
        *,
        dropout: float,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.fuse = ConvNormReLU(in_channels[-1] + len(branches) * channels, channels, 3)
        self.classify = dropout_classifier(channels, num_classes, dropout)

    def forward(self, features: Sequence[Tensor], maps: Maps | None = None) -> dict[str, Tensor]:
        x = features[-1]
        return {"logits": self.classify(self.fuse(torch.cat([x, *(branch(x) for branch in self.branches)], 1)))}


class PooledBranch(nn.Module):
    """The map's averages over bins x bins regions, projected and spread over the map again, bilinearly.

    Regions are PyTorch's adaptive ones: region i of n spans the rows from floor(iH/n) to ceil((i+1)H/n).

    Shape: (B, in_channels, H, W) -> (B, channels, H, W).

    Raises:
        ValueError: one bin and one image in training, whose batch norm needs several values per channel.
    """

    def __init__(self, in_channels: int, channels: int, bins: int) -> None:
        super().__init__()
        self.bins = bins
        self.project = ConvNormReLU(in_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(x, self.bins)
        if self.bins == 1:
            check_norm_batch(self.project[1], y, "the image pooling branch")
            return self.project(y).expand(-1, -1, *x.shape[2:])
        # Not `resize`: its test for equal sizes would bind an exported program to other sizes than the bins'.
        return bilinear(self.project(y), x.shape[2:])


def sizes(name: str, values: Sequence[int]) -> tuple[int, ...]:
    """The values as a tuple (YAML has lists), if they are one or more integers of at least 1.

    Raises:
        ValueError: they are not.
    """
    if not isinstance(values, list | tuple) or not values:
        raise ValueError(f"{name} is {values!r}; allowed: a list of one or more integers, each at least 1")
    return tuple(positive(name, value) for value in values)
