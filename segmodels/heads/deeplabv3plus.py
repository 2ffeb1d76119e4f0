"""DeepLabV3+: ASPP refined at stride 4 by an early map (Chen et al., ECCV 2018, arXiv:1802.02611).

With `separable` the dilated convolutions and the decoder's are split per channel, as in the paper's Xception model.
With `sr` an SR unit works on ASPP's map: section IV-C of SRNet has a DeepLabV3+ on Wider-ResNet-38, and does not say
where in it SR stands.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segmodels.checks import positive, probability
from segmodels.heads.aspp import ASPP, SeparableConv
from segmodels.heads.maps import Maps
from segmodels.heads.pyramid_head import sizes
from segmodels.heads.srnet import SqueezeReasoning
from segmodels.layers import ConvNormReLU, dropout_classifier
from segmodels.upsampling import bilinear


class DeepLabV3PlusHead(nn.Module):
    """ASPP, upsampled to the first stage's map, next to that map, reduced; two 3x3 convolutions and the classifier.

    `reason` is a module on ASPP's map, or None. Fills `maps` with what that gives.

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
        reason: nn.Module | None,
        *,
        separable: bool,
        project_dropout: float,
        dropout: float,
    ) -> None:
        super().__init__()
        conv = SeparableConv if separable else ConvNormReLU
        context = ASPP(in_channels[-1], channels, rates, separable=separable)
        self.context = nn.Sequential(context, nn.Dropout2d(probability("project_dropout", project_dropout)))
        self.reason, self.gives_maps = reason, reason is not None
        self.low = ConvNormReLU(in_channels[0], low_channels, 1)
        self.decode = nn.Sequential(conv(channels + low_channels, channels, 3), conv(channels, channels, 3))
        self.classify = dropout_classifier(channels, num_classes, dropout)

    def forward(self, features: Sequence[Tensor], maps: Maps | None = None) -> dict[str, Tensor]:
        low, (pyramid, drop) = self.low(features[0]), self.context
        context = pyramid(features[-1])
        if self.reason is not None:
            context = self.reason(context, maps)
        high = bilinear(drop(context), low.shape[2:])
        return {"logits": self.classify(self.decode(torch.cat([high, low], 1)))}


def deeplabv3plus_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 256,
    low_channels: int = 48,
    rates: tuple[int, ...] = (12, 24, 36),
    separable: bool = False,
    sr: bool = False,
    squeeze: str = "ghp",
    reasoning: str = "gcn",
    nodes: int = 16,
    ratio: int = 2,
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
        sr: an SR unit on ASPP's map, before its dropout.
        squeeze, reasoning, nodes, ratio: of the SR unit, see `SqueezeReasoning`.
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
    positive("channels", channels)
    reason = SqueezeReasoning(channels, squeeze=squeeze, reasoning=reasoning, nodes=nodes, ratio=ratio) if sr else None
    return DeepLabV3PlusHead(
        in_channels,
        num_classes,
        channels,
        positive("low_channels", low_channels),
        sizes("rates", rates),
        reason,
        separable=separable,
        project_dropout=project_dropout,
        dropout=dropout,
    )
