"""Non-local: every pixel gathers from every pixel (Wang et al., CVPR 2018, arXiv:1711.07971).

The embedded Gaussian of the paper, which has no scale, without subsampling. The convolutions have no bias, as in the
published cost of the block as a segmentation head.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from segmodels.checks import positive
from segmodels.heads.attention import attention, tokens
from segmodels.heads.context_head import ContextHead, Refined
from segmodels.heads.maps import Maps


class NonLocal(nn.Module):
    """Non-local block: y = softmax(θ(x)ᵀ φ(x)) g(x), Eq. (1) with Eq. (3), then z = W_z y + x, Eq. (6).

    The batch norm of W_z starts at 0, so that the block starts as the identity. On request it gives the map
    "relation", (B, H, W): row (pixel) of the softmax.

    Args:
        channels: C.
        embed_channels: E, width of θ, φ and g.

    Shape: (B, C, H, W) -> (B, C, H, W).
    """

    gives_maps = True

    def __init__(self, channels: int, embed_channels: int) -> None:
        super().__init__()
        self.theta_phi_g = nn.Conv2d(channels, 3 * embed_channels, 1, bias=False)  # one pass over x instead of three
        norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(norm.weight)
        self.w_z = nn.Sequential(nn.Conv2d(embed_channels, channels, 1, bias=False), norm)

    def forward(self, x: Tensor, maps: Maps | None = None) -> Tensor:
        height, width = x.shape[-2:]
        theta, phi, g = tokens(self.theta_phi_g(x)).flatten(1, 2).unsqueeze(1).chunk(3, -1)  # (B, 1, N, E)
        if maps is not None:
            maps.relate("relation", theta[:, 0], phi[:, 0], 1.0, (height, width))
        y = attention(theta, phi, g, scale=1.0)
        return x + self.w_z(y.squeeze(1).unflatten(1, (height, width)).permute(0, 3, 1, 2))


def nonlocal_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 512,
    embed_channels: int = 0,
    second_conv: bool = False,
    dropout: float = 0.1,
) -> ContextHead:
    """The non-local block in the common frame.

    Args:
        in_channels: widths of the stages; the last is read.
        num_classes: K.
        channels: C, width of the context.
        embed_channels: width of θ, φ and g; 0 for the paper's C/2.
        second_conv: a 3x3 convolution after the context, as in SRNet's comparison.
        dropout: probability that a channel is dropped before the classifier.

    Raises:
        ValueError: a width below 1.
    """
    positive("channels", channels)
    width = positive("embed_channels", embed_channels or max(channels // 2, 1))
    context: nn.Module = NonLocal(channels, width)
    if second_conv:
        context = Refined(context, channels)
    return ContextHead(in_channels, num_classes, context, channels, dropout=dropout)
