"""LatentGNN: non-local relations through a few latent nodes (Zhang et al., ICML 2019, arXiv:1905.11634).

We follow the public code: one asymmetric kernel, l2 norms, a softmax affinity among the latent nodes, and a gate γ.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmodels.checks import positive
from segmodels.heads.context_head import ContextHead, Refined
from segmodels.heads.srnet import part
from segmodels.layers import ConvNormReLU


class LatentGraph(nn.Module):
    """Positions to d latent nodes, messages among them, back to the positions: x + γ · BN(conv(Lᵀ Ψ')), γ from 0.

    x is reduced twice, with l2-normalised channels: the first reduction gives the features f and Ψ (d x N, rows of norm
    1), the second Ψ' (columns of norm 1). L = Ψ fᵀ, then L ← softmax(L̂ L̂ᵀ) L with L̂ of l2-normalised rows. Both
    reductions come from one convolution, and L, with its C/stride columns, is divided by the norms of Ψ's rows instead.

    Args:
        channels: C.
        latent: d, number of latent nodes.
        stride: C over the width of the reductions.

    Shape: (B, C, H, W) -> (B, C, H, W).

    Raises:
        ValueError: C does not divide by the stride.
    """

    def __init__(self, channels: int, *, latent: int = 100, stride: int = 4) -> None:
        super().__init__()
        inner = part("channels", channels, "stride", stride)
        positive("latent", latent)
        self.reduce = nn.Sequential(nn.Conv2d(channels, 2 * inner, 1, bias=False), nn.BatchNorm2d(2 * inner))
        self.to_latent = ConvNormReLU(inner, latent, 1)
        self.to_visible = ConvNormReLU(inner, latent, 1)
        self.restore = nn.Sequential(nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        f, f_back = (unit(y, 1) for y in self.reduce(x).chunk(2, 1))
        psi, psi_back = self.to_latent(f).flatten(2), unit(self.to_visible(f_back), 1).flatten(2)  # (B, d, N)
        norms = torch.linalg.vector_norm(wide(psi), dim=2, keepdim=True).clamp(min=EPSILON)
        nodes = wide(psi @ f.flatten(2).mT) / norms  # L, (B, d, C/stride)
        directions = F.normalize(nodes, dim=2)
        nodes = (directions @ directions.mT).softmax(2) @ nodes
        back = nodes.mT.to(psi_back.dtype) @ psi_back
        return x + self.gamma * self.restore(back.unflatten(2, x.shape[2:]))


EPSILON = 1e-12  # of PyTorch's normalize


def wide(x: Tensor) -> Tensor:
    """x in float32 or better, as sums of squares need."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit(x: Tensor, dim: int) -> Tensor:
    """x with vectors of l2 norm 1 along `dim`, in the type of x."""
    return F.normalize(wide(x), dim=dim, eps=EPSILON).to(x.dtype)


def latentgnn_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 512,
    latent: int = 100,
    stride: int = 4,
    second_conv: bool = False,
    dropout: float = 0.1,
) -> ContextHead:
    """LatentGNN in the common frame.

    Args:
        in_channels: widths of the stages; the last is read.
        num_classes: K.
        channels: C.
        latent, stride: see `LatentGraph`.
        second_conv: a 3x3 convolution after the context, as in SRNet's comparison.
        dropout: probability that a channel is dropped before the classifier.

    Raises:
        ValueError: a bad width or dropout.
    """
    context: nn.Module = LatentGraph(channels, latent=latent, stride=stride)
    if second_conv:
        context = Refined(context, channels)
    return ContextHead(in_channels, num_classes, context, channels, dropout=dropout)
