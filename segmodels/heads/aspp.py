"""DeepLabV3: atrous spatial pyramid pooling (Chen et al., 2017, arXiv:1706.05587).

The layout of PyTorch-Encoding: dropout after the projection, and one 3x3 convolution before the classifier, which
the paper and the OCNet and SRNet papers' comparisons do not have (`final_conv: false`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segmodels.checks import positive, probability
from segmodels.heads.maps import Maps
from segmodels.heads.pyramid_head import PooledBranch, sizes
from segmodels.layers import ConvNormReLU, dropout_classifier


class SeparableConv(nn.Sequential):
    """A convolution per channel, then a 1x1 convolution over the channels, each with batch norm and ReLU.

    Shape: (B, in, H, W) -> (B, out, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, dilation: int = 1) -> None:
        super().__init__(
            ConvNormReLU(in_channels, in_channels, kernel, dilation=dilation, groups=in_channels),
            ConvNormReLU(in_channels, out_channels, 1),
        )


class ASPP(nn.Module):
    """A 1x1 convolution, one dilated 3x3 per rate and the image's average, side by side; a 1x1 convolution fuses.

    Args:
        in_channels: width of the map.
        channels: width of every branch and of the fused map.
        rates: dilations, in cells.
        separable: split the dilated convolutions, see `SeparableConv`.

    Shape: (B, in_channels, H, W) -> (B, channels, H, W).

    Raises:
        ValueError: in `forward`, one image in training: the image's average has one value per channel.
    """

    def __init__(self, in_channels: int, channels: int, rates: Sequence[int], *, separable: bool = False) -> None:
        super().__init__()
        conv = SeparableConv if separable else ConvNormReLU
        self.branches = nn.ModuleList(
            [
                ConvNormReLU(in_channels, channels, 1),
                *(conv(in_channels, channels, 3, dilation=rate) for rate in rates),
                PooledBranch(in_channels, channels, 1),
            ]
        )
        self.fuse = ConvNormReLU(len(self.branches) * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(torch.cat([branch(x) for branch in self.branches], 1))


class ASPPHead(nn.Module):
    """ASPP on the trunk's last map, a 3x3 convolution if wanted, dropout and the classifier.

    Shape: list of maps, the last (B, in_channels[-1], H, W) -> {"logits": (B, K, H, W)}.
    """

    def __init__(self, context: ASPP, final: nn.Module, classify: nn.Module) -> None:
        super().__init__()
        self.context, self.final, self.classify = context, final, classify

    def forward(self, features: Sequence[Tensor], maps: Maps | None = None) -> dict[str, Tensor]:
        return {"logits": self.classify(self.final(self.context(features[-1])))}


def aspp_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 256,
    rates: tuple[int, ...] = (12, 24, 36),
    final_conv: bool = True,
    project_dropout: float = 0.5,
    dropout: float = 0.1,
) -> ASPPHead:
    """DeepLabV3's head.

    Args:
        in_channels: widths of the stages; the last is read.
        num_classes: K.
        channels: width of every branch.
        rates: dilations in cells: (12, 24, 36) at output stride 8, (6, 12, 18) at 16.
        final_conv: have a 3x3 convolution before the classifier.
        project_dropout: probability that a channel is dropped between the projection and that convolution; without
            it there is only `dropout`.
        dropout: probability that a channel is dropped before the classifier.

    Raises:
        ValueError: no rates, a rate or channels below 1, or a bad dropout.
    """
    context = ASPP(in_channels[-1], positive("channels", channels), sizes("rates", rates))
    between = nn.Dropout2d(probability("project_dropout", project_dropout))
    final = nn.Sequential(between, ConvNormReLU(channels, channels, 3)) if final_conv else nn.Identity()
    return ASPPHead(context, final, dropout_classifier(channels, num_classes, dropout))
