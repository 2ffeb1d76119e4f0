"""DeepLabV3+: ASPP refined at stride 4 by an early map (Chen et al., ECCV 2018, arXiv:1802.02611).

With `separable` the dilated convolutions and the decoder's are split per channel, as in the paper's Xception model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segmodels.checks import positive, probability
from segmodels.heads.aspp import ASPP, SeparableConv
from segmodels.heads.maps import Maps
from segmodels.heads.pyramid_head import sizes
from segmodels.layers import ConvNormReLU, dropout_classifier
from segmodels.upsampling import bilinear


class DeepLabV3PlusHead(nn.Module):
    """ASPP, upsampled to the first stage's map, next to that map, reduced; two 3x3 convolutions and the classifier.

    Args: see `deeplabv3plus_head`.

    Shape: list of maps, the first (B, in_channels[0], h, w) and the last (B, in_channels[-1], H, W) ->
    {"logits": (B, K, h, w)}: at the first map's size.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int,
        low_channels: int,
        rates: Sequence[int],
        *,
        separable: bool,
        project_dropout: float,
        dropout: float,
    ) -> None:
        super().__init__()
        conv = SeparableConv if separable else ConvNormReLU
        context = ASPP(in_channels[-1], channels, rates, separable=separable)
        self.context = nn.Sequential(context, nn.Dropout2d(probability("project_dropout", project_dropout)))
        self.low = ConvNormReLU(in_channels[0], low_channels, 1)
        self.decode = nn.Sequential(conv(channels + low_channels, channels, 3), conv(channels, channels, 3))
        self.classify = dropout_classifier(channels, num_classes, dropout)

    def forward(self, features: Sequence[Tensor], maps: Maps | None = None) -> dict[str, Tensor]:
        low = self.low(features[0])
        high = bilinear(self.context(features[-1]), low.shape[2:])
        return {"logits": self.classify(self.decode(torch.cat([high, low], 1)))}


def deeplabv3plus_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 256,
    low_channels: int = 48,
    rates: tuple[int, ...] = (12, 24, 36),
    separable: bool = False,
    project_dropout: float = 0.1,
    dropout: float = 0.1,
) -> DeepLabV3PlusHead:
    """DeepLabV3+'s encoder end and decoder.

    Args:
        in_channels: widths of the stages; the first and the last are read.
        num_classes: K.
        channels: width of ASPP's branches and of the decoder.
        low_channels: width to which the first stage's map is reduced.
        rates: dilations in cells: (12, 24, 36) at output stride 8, (6, 12, 18) at 16.
        separable: split every 3x3 convolution, see `SeparableConv`.
        project_dropout: probability that a channel is dropped after ASPP, 0.1 in the authors' code.
        dropout: probability that a channel is dropped before the classifier.

    Raises:
        ValueError: a single stage, no rates, a rate or width below 1, or a bad dropout.
    """
    if len(in_channels) < 2:
        raise ValueError(
            f"deeplabv3plus got stages of widths {list(in_channels)}; allowed: two or more, as it joins the first with "
            "the last. Use it as the head, or as the auxiliary head from stage 2 on"
        )
    return DeepLabV3PlusHead(
        in_channels,
        num_classes,
        positive("channels", channels),
        positive("low_channels", low_channels),
        sizes("rates", rates),
        separable=separable,
        project_dropout=project_dropout,
        dropout=dropout,
    )
