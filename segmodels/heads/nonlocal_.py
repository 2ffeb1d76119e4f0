"""Non-local: every pixel gathers from every pixel (Wang et al., CVPR 2018, arXiv:1711.07971).

The embedded Gaussian of the paper, which has no scale, without subsampling. The convolutions have no bias, as in the
published cost of the block as a segmentation head. Here are also the pieces that other attentions share.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmodels.checks import positive
from segmodels.heads.context_head import ContextHead
from segmodels.heads.maps import Maps

EXPLICIT_BYTES = 2**28


def tokens(x: Tensor) -> Tensor:
    """The cells of a map as rows of memory: (B, C, H, W) -> (B, H, W, C), a mere view of a channels-last map.

    Fused attention and fast products of matrices need the channels of a cell side by side.
    """
    return x.permute(0, 2, 3, 1).contiguous()


def relation(q: Tensor, k: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """What `scaled_dot_product_attention` multiplies the values by, for a few queries, in float32 or better.

    Args:
        q: (…, M, E).
        k: (…, S, E).
        scale: factor of the products.
        mask: true where a key counts; broadcast to (…, M, S).

    Shape: -> (…, M, S).
    """
    logits = scale * (q @ k.mT)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (logits if mask is None else logits.masked_fill(~mask, -torch.inf)).softmax(-1)


def softmax(x: Tensor, dim: int) -> Tensor:
    """Softmax in float32 or better, over thousands of cells too; the result in the precision of x."""
    return x.softmax(dim, dtype=torch.promote_types(x.dtype, torch.float32)).to(x.dtype)


def few_keys(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """The weights of attention with few keys: the softmax over the S keys of scale kᵀ q, of every cell.

    For tens or hundreds of keys they are fewer bytes than the copies that a fused kernel wants of a map, and no slower.

    Shape: (B, E, N), (B, E, S) -> (B, S, N), to be multiplied from the left by values (B, V, S).
    """
    return softmax((scale * k).mT @ q, 1)


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """`scaled_dot_product_attention`, but its explicit form where that is faster, see `explicit`.

    Args:
        q, k, v: (…, M, E), (…, S, E), (…, S, V).
        mask: true where a key counts; broadcast to (…, M, S).
        scale: factor of the products; E^-½ if None.
        dropout: probability that a weight is dropped.

    Shape: -> (…, M, V).
    """
    if not explicit(q.device.type, q.dtype, 4 * q[..., 0].numel() * k.shape[-2] if q.is_cuda else 0):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
    logits = ((q.shape[-1] ** -0.5 if scale is None else scale) * q) @ k.mT
    weights = (logits if mask is None else logits.masked_fill(~mask, -torch.inf)).softmax(-1)
    return F.dropout(weights, dropout) @ v


def explicit(device: str, dtype: torch.dtype, relation: int) -> bool:
    """Whether to write softmax(qkᵀ)v out: on a GPU in float32, whose fused kernels were seen to take 3 times as long.

    Not where `relation`, the bytes of all weights, is more than `EXPLICIT_BYTES`: there memory is what bounds the crop.
    With half precision, under autocast too, and on a CPU the fused kernels are faster and hold no weights.
    """
    return device == "cuda" and dtype == torch.float32 and relation <= EXPLICIT_BYTES


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
            row, column = maps.cell((height, width))
            cell = row * width + column
            maps.add("relation", relation(theta[:, 0, cell : cell + 1], phi[:, 0], 1.0).view(-1, height, width))
        y = attention(theta, phi, g, scale=1.0)
        return x + self.w_z(y.squeeze(1).unflatten(1, (height, width)).permute(0, 3, 1, 2))


def nonlocal_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 512,
    embed_channels: int = 0,
    dropout: float = 0.1,
) -> ContextHead:
    """The non-local block in the common frame.

    Args:
        in_channels: widths of the stages; the last is read.
        num_classes: K.
        channels: C, width of the context.
        embed_channels: width of θ, φ and g; 0 for the paper's C/2.
        dropout: probability that a channel is dropped before the classifier.

    Raises:
        ValueError: a width below 1.
    """
    positive("channels", channels)
    width = positive("embed_channels", embed_channels or max(channels // 2, 1))
    return ContextHead(in_channels, num_classes, NonLocal(channels, width), channels, dropout=dropout)
