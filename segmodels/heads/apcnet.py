"""APCNet: pixels mix the averages of regions, by affinities that see the whole image (He et al., CVPR 2019).

The layout of mmsegmentation, as the authors published no code; affinities are sigmoids, so a pixel's need not sum to 1.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from segmodels.checks import positive
from segmodels.heads.pyramid_head import PyramidHead, sizes
from segmodels.layers import ConvNormReLU, check_norm_batch


class AdaptiveContext(nn.Module):
    """ACM: relu(y + W z), z_i = Σ_j σ(α_ij) p_j over the s² regions j, each with its own affinity to pixel i.

    y is x reduced, p_j the reduced average of x over region j, and α_i a 1x1 convolution of y_i + g, where g is the
    transformed average of y: the global guide. The sum is one product of matrices, (B, C, s²) by (B, s², N).

    Args:
        in_channels: width of x.
        channels: C.
        scale: s.
        fusion: have a 1x1 convolution at the end.

    Shape: (B, in_channels, H, W) -> (B, C, H, W).

    Raises:
        ValueError: in `forward`, one image in training: its guide and its average have one value per channel.
    """

    def __init__(self, in_channels: int, channels: int, scale: int, *, fusion: bool) -> None:
        super().__init__()
        self.side = scale
        self.reduce = ConvNormReLU(in_channels, channels, 1)
        self.pooled = ConvNormReLU(in_channels, channels, 1)
        self.guide = ConvNormReLU(channels, channels, 1)
        self.affinity = nn.Conv2d(channels, scale**2, 1)
        self.residual = ConvNormReLU(channels, channels, 1)
        self.fuse = ConvNormReLU(channels, channels, 1) if fusion else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        check_norm_batch(self.guide[1], x, "the global guide of the adaptive context module")
        p = self.pooled(F.adaptive_avg_pool2d(x, self.side)).flatten(2)
        y = self.reduce(x)
        affinity = self.affinity(y + self.guide(y.mean((2, 3), keepdim=True))).sigmoid()
        z = (p @ affinity.flatten(2)).view(y.shape)
        return self.fuse(F.relu(y + self.residual(z)))


def apcnet_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 512,
    scales: tuple[int, ...] = (1, 2, 3, 6),
    fusion: bool = True,
    dropout: float = 0.1,
) -> PyramidHead:
    """APCNet's head: one adaptive context module per scale, next to the map itself.

    Args:
        in_channels: widths of the stages; the last is read.
        num_classes: K.
        channels: width of every module and of the fused map.
        scales: s of every module, which averages s x s regions.
        fusion: see `AdaptiveContext`.
        dropout: probability that a channel is dropped before the classifier.

    Raises:
        ValueError: no scales, a scale or channels below 1, or a bad dropout.
    """
    width, inner = in_channels[-1], positive("channels", channels)
    modules = [AdaptiveContext(width, inner, scale, fusion=fusion) for scale in sizes("scales", scales)]
    return PyramidHead(in_channels, num_classes, modules, inner, dropout=dropout)
