"""Self-attention between all cells of a map, or of each tile of it: the unit SA of OCNet (arXiv:1809.00916)."""

import contextlib
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmodels.heads.attention import attention, tokens
from segmodels.heads.lean import LeanConvNormReLU, plainly, recomputed
from segmodels.heads.maps import Maps
from segmodels.layers import divides, known


class SelfAttention(nn.Module):
    """SA: Z = ρ(softmax(θ(x) φ(x)ᵀ / √E) g(x)), the dense relation of objects; ρ, like θ and φ, has norm and ReLU.

    No residual: the context goes next to x and is not added to it. On request it gives the map "relation", (B, H, W):
    the asked pixel's row of the softmax.

    Args:
        channels: C.
        key_channels: E, width of query and key.
        value_channels: width of the value.
        qk_layers: 1x1 convolutions of the query and of the key.

    Shape: (B, C, H, W) -> (B, C, H, W); with `tiles`, each of the tiles x tiles parts by itself.
    """

    gives_maps = True
    even_tiles = True  # see `tiled`
    bare = False  # leave ρ's norm and ReLU to the caller

    def __init__(self, channels: int, key_channels: int, value_channels: int, qk_layers: int) -> None:
        super().__init__()
        widths = [channels] + qk_layers * [key_channels]
        self.query, self.key = (
            nn.Sequential(*(LeanConvNormReLU(*pair) for pair in pairwise(widths))) for _ in range(2)
        )
        self.value = nn.Conv2d(channels, value_channels, 1, bias=False)
        self.out = LeanConvNormReLU(value_channels, channels)

    def forward(self, x: Tensor, maps: Maps | None = None, *, tiles: int = 1) -> Tensor:
        return self.gather(x, partial(tiled, partial(dense, maps=maps), tiles=tiles, even=self.even_tiles))

    def gather(self, x: Tensor, attend: Callable[..., Tensor], *, lean: bool = True) -> Tensor:
        """The unit with the keys of each query chosen by `attend`: maps of query, key and value -> their context.

        Without `lean` nothing before `attend` is computed again.
        """
        # a compiler computes nothing again by itself, and cannot follow `plainly`
        with contextlib.nullcontext() if lean or torch.compiler.is_compiling() else plainly():
            parts = self.query(x), self.key(x), self.value(x)
        y = attend(*parts)
        return self.out[0](y) if self.bare else self.out(y)

    def fused(self, x: Tensor, weight: Tensor, tiles: int) -> Tensor:
        """A 1x1 convolution of the unit's result; of the maps on the way only those of the attention are kept."""
        q, k, v = recomputed(lambda x: (self.query(x), self.key(x), self.value(x)), self, x)
        context = tiled(dense, q, k, v, tiles=tiles, even=self.even_tiles)
        return recomputed(lambda context, weight: F.conv2d(self.out(context), weight), self.out, context, weight)


def dense(q: Tensor, k: Tensor, v: Tensor, maps: Maps | None = None) -> Tensor:
    """softmax(qᵀ k / √E) v over all cells: maps (B, E, H, W), the same, (B, V, H, W) -> (B, V, H, W)."""
    size = (q.shape[2], q.shape[3])
    q, k, v = (tokens(t).flatten(1, 2).unsqueeze(1) for t in (q, k, v))  # (B, 1, N, …)
    if maps is not None:
        maps.relate("relation", q[:, 0], k[:, 0], q.shape[-1] ** -0.5, size)
    y = attention(q, k, v).squeeze(1).unflatten(1, size).permute(0, 3, 1, 2)
    return y if known(size) else y.contiguous()  # an export cannot always order the strides of free sizes


def borders(size: int, tiles: int, even: bool) -> list[tuple[int, int]]:
    """First row of each tile and the row after its last: as equal as can be, or all of the rest in the last."""
    ends = [size * i // tiles if even else i * (size // tiles) for i in range(tiles)]
    return list(pairwise([*ends, size]))


def tiled(attend: Callable[..., Tensor], *inputs: Tensor, tiles: int, even: bool = True) -> Tensor:
    """`attend` on each of tiles x tiles parts.

    Tiles of one size are a batch; else `attend` is called for each.

    Args:
        attend: from parts of the inputs to the context of one.
        inputs: maps.
        tiles: k, per side.
        even: where k does not divide the map, tile i spans the rows from floor(iH/k) to floor((i+1)H/k); without, all
            but the last have floor(H/k) rows, as in OCNet's public code.

    Shape: maps (B, …, H, W), which `attend` takes -> (B, V, H, W), if `attend` keeps the size.

    Raises:
        ValueError: the map has fewer than `tiles` rows or columns.
    """
    if tiles == 1:
        return attend(*inputs)
    height, width = inputs[0].shape[-2:]
    if known((height, width)) and min(height, width) < tiles:
        raise ValueError(
            f"pyramid has {tiles} x {tiles} tiles, but the map has {(height, width)} cells; allowed: at most one tile "
            "per row and column. Lower pyramid, or enlarge the crop or image"
        )
    if divides((height, width), (tiles, tiles)):
        y = attend(*(fold(x, tiles) for x in inputs))
        y = y.unflatten(0, (-1, tiles, tiles)).permute(0, 1, 4, 2, 5, 3)  # (B, k, H/k, k, W/k, V)
        return y.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)
    rows, columns = (borders(n, tiles, even) for n in (height, width))
    return torch.cat(
        [torch.cat([attend(*(x[:, :, a:b, c:d] for x in inputs)) for c, d in columns], 3) for a, b in rows], 2
    )


def fold(x: Tensor, tiles: int) -> Tensor:
    """(B, C, H, W) -> (B·k·k, C, H/k, W/k), channels last in memory."""
    x = x.permute(0, 2, 3, 1).unflatten(2, (tiles, -1)).unflatten(1, (tiles, -1))
    return x.transpose(2, 3).contiguous().flatten(0, 2).permute(0, 3, 1, 2)
