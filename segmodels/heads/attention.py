"""What the heads' attentions share: cells as rows of memory, softmaxes in float32, and the attention itself."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

EXPLICIT_BYTES = 2**28  # of all weights; with more, a fused kernel computes them
GATHER_BYTES = 2**26
# On a CPU, by measurement of both passes (`bench heads`, RESULTS.md): groups of so few keys keep their weights in its
# caches; with many keys the time of the fused kernel grows with 2.7 times the wider of query and value, whose width all
# three must have, and that of the explicit form with the sum of both widths and, for the weights in memory, 300 more,
# or 190 up to 32 MiB: larger tensors come from the system each time, page by page.
FEW_KEYS = 256
WIDER, HELD, HELD_SMALL, SMALL_BYTES = 2.7, 300, 190, 2**25

FUSED: ContextVar[Callable[..., Tensor] | None] = ContextVar("FUSED", default=None)  # `fused_only`


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
    widths, pairs = (q.shape[-1], v.shape[-1]), 4 * q[..., 0].numel() * k.shape[-2]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if not explicit(q.device.type, q.dtype, pairs, k.shape[-2], widths):
        if q.device.type == "cpu" and widths[0] < widths[1]:  # else its kernel would write all weights
            q, k = (F.pad(part, (0, widths[1] - widths[0])) for part in (q, k))
        q, k, v = (rows(part) for part in (q, k, v))
        kernel = fused() or F.scaled_dot_product_attention
        return kernel(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
    logits = (q if scale == 1 else scale * q) @ k.mT
    weights = (logits if mask is None else logits.masked_fill(~mask, -torch.inf)).softmax(-1)
    if v.stride(-2) == 1 and not torch.is_grad_enabled():  # a channel after the other, as what it is added to
        return (v.mT @ F.dropout(weights, dropout).mT).mT
    return F.dropout(weights, dropout) @ v


def rows(x: Tensor) -> Tensor:
    """x itself, if the values of a cell lie side by side, as fused kernels need it; else a copy where they do."""
    last = x.stride(-1)
    return x if isinstance(last, int) and last == 1 else x.contiguous()


def explicit(device: str, dtype: torch.dtype, relation: int, keys: int, widths: tuple[int, int]) -> bool:
    """Whether to write softmax(qkᵀ)v out: the one rule for all heads.

    On a GPU in float32, whose fused kernels were measured at 3 times the time; in half precision, under autocast too,
    these are the faster and hold no weights. On a CPU with few keys, or with values so much wider than queries and keys
    that the fused kernel, which wants one width, would multiply zeros. Never where the weights are more than
    `EXPLICIT_BYTES`: there memory limits the crop. Nor where sizes are formulas, in an export, nor within `fused_only`.

    Args:
        device, dtype: of the queries.
        relation: bytes of all weights in float32.
        keys: S of each query.
        widths: of the queries and of the values.
    """
    if fused() or not isinstance(relation, int) or not isinstance(keys, int) or relation > EXPLICIT_BYTES:
        return False
    if device == "cuda":
        return dtype == torch.float32
    if device != "cpu" or dtype not in (torch.float32, torch.float64):
        return False
    held = HELD_SMALL if relation <= SMALL_BYTES else HELD
    return keys <= FEW_KEYS or WIDER * max(widths) > held + sum(widths)


def fused() -> Callable[..., Tensor] | None:
    """The kernel of `fused_only`; none under a compiler: PyTorch 2.11's does not trace a context variable."""
    return None if torch.compiler.is_compiling() else FUSED.get()


@contextlib.contextmanager
def fused_only(kernel: Callable[..., Tensor] | None = None) -> Iterator[None]:
    """Within it attention is left to fused kernels: for counts of what other machines hold, on a CPU's tensors.

    Args:
        kernel: takes its place, also where it is computed again in a backward pass, which no mode of PyTorch's sees.
    """
    token = FUSED.set(kernel or F.scaled_dot_product_attention)
    try:
        yield
    finally:
        FUSED.reset(token)
