"""What the heads' attentions share: cells as rows of memory, softmaxes in float32, and the attention itself."""

import torch
import torch.nn.functional as F
from torch import Tensor

EXPLICIT_BYTES = 2**28  # of all weights; with more, a fused kernel computes them
GATHER_BYTES = 2**26


def tokens(x: Tensor) -> Tensor:
    """The cells of a map as rows of memory: (B, C, H, W) -> (B, H, W, C), only a view if the map is channels-last.

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


def gather(q: Tensor, k: Tensor, values: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """`relation(q, k, scale, mask) @ values` for all queries, some at a time: with `GATHER_BYTES` of weights at once.

    Args:
        q, k, scale, mask: as of `relation`; the mask is the same for all queries.
        values: (…, S, V).

    Shape: -> (…, M, V), in float32 or better.
    """
    row = q[..., :1, :1].numel() * k.shape[-2] * torch.promote_types(q.dtype, torch.float32).itemsize
    values = values.to(torch.promote_types(q.dtype, torch.float32))
    parts = q.split(max(1, GATHER_BYTES // row), -2)
    return torch.cat([relation(part, k, scale, mask) @ values for part in parts], -2)


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
    """Whether to write softmax(qkᵀ)v out: on a GPU in float32, whose fused kernels were measured at 3 times the time.

    Not where `relation`, the bytes of all weights, is more than `EXPLICIT_BYTES`: there memory limits the crop. In half
    precision, under autocast too, and on a CPU the fused kernels are faster and hold no weights.
    """
    return device == "cuda" and dtype == torch.float32 and relation <= EXPLICIT_BYTES
