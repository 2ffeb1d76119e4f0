"""Squeeze-and-excitation: the map's average gates its channels (Hu et al., CVPR 2018, arXiv:1709.01507)."""

from collections.abc import Sequence

from torch import Tensor, nn

from segmodels.checks import positive
from segmodels.heads.context_head import ContextHead, Refined


class SqueezeExcitation(nn.Module):
    """x · σ(W_2 relu(W_1 z)), where z is x averaged over the map: Eq. (2) to (4).

    Args:
        channels: C.
        reduction: r; the gate is computed through C/r values.

    Shape: (B, C, H, W) -> (B, C, H, W).

    Raises:
        ValueError: r does not divide C.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        inner = bottleneck(channels, reduction)
        self.gate = nn.Sequential(nn.Linear(channels, inner), nn.ReLU(inplace=True), nn.Linear(inner, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3))).sigmoid()[:, :, None, None]


def bottleneck(channels: int, reduction: int) -> int:
    """C/r, the width between two layers.

    Raises:
        ValueError: r does not divide C, or one is below 1.
    """
    if positive("channels", channels) % positive("reduction", reduction):
        raise ValueError(f"reduction is {reduction}; allowed: a divisor of channels, which is {channels}")
    return channels // reduction


def se_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 512,
    reduction: int = 16,
    second_conv: bool = False,
    dropout: float = 0.1,
) -> ContextHead:
    """Squeeze-and-excitation in the common frame.

    Args:
        in_channels: widths of the stages; the last is read.
        num_classes: K.
        channels: C, width of the context.
        reduction: r, see `SqueezeExcitation`.
        second_conv: a 3x3 convolution after the context, as in SRNet's comparison.
        dropout: probability that a channel is dropped before the classifier.

    Raises:
        ValueError: a bad width, or a reduction that does not divide it.
    """
    context: nn.Module = SqueezeExcitation(channels, reduction)
    if second_conv:
        context = Refined(context, channels)
    return ContextHead(in_channels, num_classes, context, channels, dropout=dropout)
