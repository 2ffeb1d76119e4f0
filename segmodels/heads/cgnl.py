"""CGNL: compact non-local attention over positions and channels (Yue et al., NeurIPS 2018, arXiv:1810.13125).

The dot-product kernel of the public code, without its initialisation at zero for blocks in a pre-trained trunk.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segmodels.heads.context_head import ContextHead, Refined
from segmodels.heads.srnet import part


class CompactNonLocal(nn.Module):
    """x + GN(W_z(a · t)) with a = <p, g>, one number per group of channels, summed over its channels and positions.

    t, p and g are 1x1 convolutions, stacked into one that reads x once. The group norm cancels the size of a, up to its
    epsilon: only the sign of a is left.

    Args:
        channels: C.
        embed_channels: k, width of t, p and g.
        groups: G of t, p, g, W_z and the norm.
        scale: divide a by the square root of the number of its terms.

    Shape: (B, C, H, W) -> (B, C, H, W).

    Raises:
        ValueError: a width that does not divide by `groups`.
    """

    def __init__(self, channels: int, *, embed_channels: int = 256, groups: int = 1, scale: bool = False) -> None:
        super().__init__()
        part("channels", channels, "groups", groups)
        self.width = part("embed_channels", embed_channels, "groups", groups)
        self.groups, self.scale = groups, scale
        self.project = nn.Conv2d(channels, 3 * embed_channels, 1, bias=False)
        self.restore = nn.Conv2d(embed_channels, channels, 1, groups=groups, bias=False)
        self.norm = nn.GroupNorm(groups, channels)

    def forward(self, x: Tensor) -> Tensor:
        t, p, g = self.project(x).chunk(3, 1)
        wide = torch.promote_types(p.dtype, torch.float32)  # up to a million products nearly cancel
        a = (p.to(wide) * g.to(wide)).unflatten(1, (self.groups, -1)).sum((2, 3, 4))
        if self.scale:
            a = a * (self.width * x.shape[2] * x.shape[3]) ** -0.5
        y = t * a.to(t.dtype).repeat_interleave(self.width, 1)[:, :, None, None]
        return self.norm(self.restore(y)) + x


def cgnl_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 512,
    embed_channels: int = 256,
    groups: int = 1,
    scale: bool = False,
    second_conv: bool = False,
    dropout: float = 0.1,
) -> ContextHead:
    """CGNL in the common frame, with one group, as by its cost in SRNet's table; its own paper prefers 8.

    Args:
        in_channels: widths of the stages; the last is read.
        num_classes: K.
        channels: C.
        embed_channels, groups, scale: see `CompactNonLocal`.
        second_conv: a 3x3 convolution after the context, as in SRNet's comparison.
        dropout: probability that a channel is dropped before the classifier.

    Raises:
        ValueError: a bad width, number of groups or dropout.
    """
    context: nn.Module = CompactNonLocal(channels, embed_channels=embed_channels, groups=groups, scale=scale)
    if second_conv:
        context = Refined(context, channels)
    return ContextHead(in_channels, num_classes, context, channels, dropout=dropout)
