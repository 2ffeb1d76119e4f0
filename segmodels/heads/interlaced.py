"""Interlaced sparse self-attention: the unit ISA of OCNet (arXiv:1809.00916), in two sparse stages."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmodels.checks import choose
from segmodels.heads.attention import attention, gather, relation, tokens
from segmodels.heads.maps import Gathered, Maps, agreeing, even
from segmodels.heads.object_attention import SelfAttention, tiled
from segmodels.layers import Size, divides, known

ORDERS: dict[str, tuple[str, ...]] = {
    "global_local": ("global", "local"),
    "local_global": ("local", "global"),
    "global": ("global",),
    "local": ("local",),
}


class Regrouping:
    """A map of H x W = (P_h Q_h) x (P_w Q_w) cells, padded if need be, as an image of P = P_h P_w by Q = Q_h Q_w.

    Its row p holds the cells of one place in all P_h x P_w tiles, which are P_h and P_w apart: a group of the global
    stage. Its column q holds one tile: a group of the local stage. So one copy serves both stages, and 1x1
    convolutions do not mind. Half of the padding, rounded down, is on top and left, as in the authors' code.

    Args:
        size: (H, W).
        partition: (P_h, P_w).
        maps: keep the relations of its pixel.
    """

    def __init__(self, size: Size, partition: tuple[int, int], maps: Maps | None = None) -> None:
        self.known = known(size)
        self.size, self.partition, self.maps = size, partition, maps
        self.steps = tuple((n + p - 1) // p for n, p in zip(size, partition, strict=True))  # Q_h, Q_w
        # In an export sizes are formulas, which it may rewrite until it cannot solve them: there the start is a tensor.
        sides: Any = size if self.known else [torch.scalar_tensor(n, dtype=torch.int64) for n in size]
        self.start: tuple[Any, ...] = tuple(-n % p // 2 for n, p in zip(sides, partition, strict=True))
        self.padded = not divides(size, partition)
        self.tables: dict[str, Tensor] = {}
        self.carried: tuple[Tensor, ...] | None = None

    def split(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, P, Q, C), zeros where there is padding."""
        if not self.known:
            rows, columns = self.sources(x.device)
            cells = tokens(x)[:, rows.clamp(0, self.size[0] - 1), columns.clamp(0, self.size[1] - 1)]
            return cells * self.real(x.device).unsqueeze(2)
        if self.padded:
            (top, left), (down, across) = self.start, (-n % p for n, p in zip(self.size, self.partition, strict=True))
            x = F.pad(x, (left, across - left, top, down - top))
        x = x.permute(0, 2, 3, 1)
        x = x.unflatten(2, (-1, self.partition[1])).unflatten(1, (-1, self.partition[0]))
        return x.permute(0, 2, 4, 1, 3, 5).contiguous().flatten(3, 4).flatten(1, 2)

    def join(self, x: Tensor) -> Tensor:
        """(B, P, Q, …) -> (B, …, H, W), without the padding."""
        if not self.known:
            row, column = (torch.arange(n, device=x.device) + s for n, s in zip(self.size, self.start, strict=True))
            x = x[:, self.place(row[:, None], column), self.group(row[:, None], column)]
        else:
            x = x.unflatten(2, self.steps).unflatten(1, self.partition)
            x = x.movedim((3, 1, 4, 2), (1, 2, 3, 4)).flatten(3, 4).flatten(1, 2)
            if self.padded:
                x = x.narrow(1, self.start[0], self.size[0]).narrow(2, self.start[1], self.size[1])
        x = x.movedim((1, 2), (-2, -1))
        return x if self.known else x.contiguous()  # as in `dense`

    def place(self, row: Any, column: Any) -> Any:
        """p of a cell of the padded map."""
        return row % self.partition[0] * self.partition[1] + column % self.partition[1]

    def group(self, row: Any, column: Any) -> Any:
        """q of a cell of the padded map."""
        return row // self.partition[0] * self.steps[1] + column // self.partition[1]

    def sources(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(P, Q) each: row and column of the map's cell that is at (p, q); outside of the map for padding."""
        p = torch.arange(self.partition[0] * self.partition[1], device=device).unsqueeze(1)
        q = torch.arange(self.steps[0] * self.steps[1], device=device)
        rows = q // self.steps[1] * self.partition[0] + p // self.partition[1] - self.start[0]
        return rows, q % self.steps[1] * self.partition[1] + p % self.partition[1] - self.start[1]

    def real(self, device: torch.device) -> Tensor:
        """(P, Q), true where a cell belongs to the map."""
        rows, columns = self.sources(device)
        return (rows >= 0) & (rows < self.size[0]) & (columns >= 0) & (columns < self.size[1])

    def attend(self, stage: str, q: Tensor, k: Tensor, v: Tensor, *, masked: bool = True) -> Tensor:
        """Attention inside of each group of a stage: (B, P, Q, E), the same, (B, P, Q, V) -> (B, P, Q, V)."""
        keys = self.real(q.device) if masked and self.padded else None  # (P, Q)
        if stage == "local":
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            if not self.known:  # an exported program's strides are those of its example otherwise
                q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
            keys = None if keys is None else keys.mT
        if keys is not None:  # a group of only padding, cropped away later, may see itself: no division 0 / 0
            keys = (keys | ~keys.any(1, keepdim=True))[None, :, None]  # (1, P, 1, Q): fused kernels take four axes
        if self.maps is not None:
            self.keep(stage, q, k, keys, self.maps)
            if self.maps.shares is not None:
                self.carry(stage, q, k, keys, self.maps)
        if stage == "global" and keys is None:
            # Every group as an image, not a head: then all kernels give the result in the layout of the inputs.
            q, k, y = (t.flatten(0, 1).unsqueeze(1) for t in (q, k, v))
            return attention(q, k, y).reshape(v.shape)
        y = attention(q, k, v, keys)
        return y.transpose(1, 2) if stage == "local" else y

    def keep(self, stage: str, q: Tensor, k: Tensor, keys: Tensor | None, maps: Maps) -> None:
        """Keep, as (B, P, Q), the relations of the cells that share the asked pixel's place in their groups.

        Of the global stage: entry (p, q) relates (p, q0) to (p, q); of the local one, (p0, q) to (p, q).
        """
        at = self.cell(maps)[stage == "global"]
        table = relation(q[:, :, at : at + 1], k, q.shape[-1] ** -0.5, keys).squeeze(2)
        self.tables[stage] = table.mT if stage == "local" else table

    def carry(self, stage: str, q: Tensor, k: Tensor, keys: Tensor | None, maps: Maps) -> None:
        """Let the stage's groups gather the values, and also what the stage before has gathered of them."""
        scale, local = q.shape[-1] ** -0.5, stage == "local"
        plain = self.split(maps.shares_at((self.size[0], self.size[1])))  # (B, P, Q, V)
        own, *before = (t.transpose(1, 2) if local else t for t in (plain, *(self.carried or (plain, plain))))
        counted = None if keys is None else keys[:, :, 0]
        found = gather(q, k, own, scale, keys), even(own, counted), agreeing(own)
        maps.gathered[stage] = Gathered(*(self.join(t.transpose(1, 2) if local else t).detach() for t in found))
        carried = gather(q, k, before[0], scale, keys), even(before[1], counted)
        self.carried = tuple(t.transpose(1, 2) if local else t for t in carried)

    def cell(self, maps: Maps) -> tuple[int, int]:
        """(p0, q0) of the asked pixel."""
        cell = [n + s for n, s in zip(maps.cell((self.size[0], self.size[1])), self.start, strict=True)]
        return self.place(*cell), self.group(*cell)

    def add_maps(self, maps: Maps) -> None:
        """Fill "global", "local" and "dense", see `InterlacedAttention`."""
        p0, q0 = self.cell(maps)
        own = {stage: torch.zeros_like(table) for stage, table in self.tables.items()}
        for stage, sparse in own.items():
            line = (slice(None), p0) if stage == "global" else (slice(None), slice(None), q0)
            sparse[line] = self.tables[stage][line]
            maps.add(stage, self.join(sparse))
        if len(own) == 2:
            first, second = own
            lines = own[second].sum(2 if second == "local" else 1, keepdim=True)
            maps.add("dense", self.join(self.tables[first] * lines))
            if self.carried is not None:
                true = agreeing(maps.shares_at((self.size[0], self.size[1])).flatten(2).mT).mT.unflatten(2, self.size)
                by_relation, by_even = (self.join(t).detach() for t in self.carried)
                maps.gathered["dense"] = Gathered(by_relation, by_even, true)


class InterlacedAttention(nn.Module):
    """ISA: self-attention in two sparse stages, Sec. 3.3 and Alg. 1.

    The global stage relates cells P_h rows and P_w columns apart, the local stage the cells of a P_h x P_w tile; one
    after the other they relate all cells, at a cost of N² (1 / (P_h P_w) + 1 / (Q_h Q_w)) entries instead of N².

    On request it gives the asked pixel's relations, (B, H, W): "global", nothing but a checkerboard of period P, as
    all cells between belong to other groups; "local", nothing but its tile; and with both stages "dense", their
    product: the second stage's relation to every cell times that cell's relations in the first, of sum 1.

    Args:
        channels: C.
        key_channels, value_channels, qk_layers: of each stage's `SelfAttention`; the stages share no weights.
        partition: (P_h, P_w): a tile has P_h x P_w cells, and the global stage has as many groups.
        order: the stages, a key of `ORDERS`.
        mask_padding: where P does not divide the map, relate only true cells; our own option. Without it padded cells,
            zeros in x, are keys as in the authors' code, and count in the batch norms' statistics in training.

    Shape: (B, C, H, W) -> (B, C, H, W); with `tiles`, each of the tiles x tiles parts by itself.

    Raises:
        ValueError: in `forward` in training, a map, or tiles of it, smaller than the partition. In testing a narrow
            image's map is padded.
    """

    gives_maps = True
    even_tiles = True  # see `tiled`

    def __init__(
        self,
        channels: int,
        key_channels: int,
        value_channels: int,
        qk_layers: int,
        partition: tuple[int, int] = (8, 8),
        order: str = "global_local",
        mask_padding: bool = True,
    ) -> None:
        super().__init__()
        self.partition, self.mask_padding = partition, mask_padding
        self.order = choose(ORDERS, order, "order")
        self.units = nn.ModuleList(SelfAttention(channels, key_channels, value_channels, qk_layers) for _ in self.order)

    def forward(self, x: Tensor, maps: Maps | None = None, *, tiles: int = 1) -> Tensor:
        whole = Regrouping(x.shape[-2:], self.partition, maps) if tiles == 1 else None
        sides = (tiles * self.partition[0], tiles * self.partition[1])
        if self.training and (x.shape[-2] < sides[0] or x.shape[-1] < sides[1]):
            parts = f"cut into {tiles} x {tiles} tiles " if tiles > 1 else ""
            raise ValueError(
                f"partition is {self.partition}, but the map {parts}has {tuple(x.shape[-2:])} cells; allowed in "
                f"training: at most {x.shape[-2] // tiles} and {x.shape[-1] // tiles}"
            )
        if self.mask_padding and not divides(x.shape[-2:], sides):
            for stage, unit in self.stages:
                # Computed again, queries and keys would take more time than the regrouping of three maps leaves.
                attend = partial(tiled, partial(self.masked, stage, whole), tiles=tiles, even=self.even_tiles)
                x = unit.gather(x, attend, lean=False)
        else:
            x = tiled(partial(self.regrouped, whole), x, tiles=tiles, even=self.even_tiles)
        if maps is not None and whole is not None:
            whole.add_maps(maps)
        return x

    @property
    def stages(self) -> Iterator[tuple[str, SelfAttention]]:
        """Name and unit of each stage; an exported program could not spell a module called "global"."""
        return zip(self.order, cast("Iterable[SelfAttention]", self.units), strict=True)

    def regrouped(self, whole: Regrouping | None, x: Tensor) -> Tensor:
        """All stages on the regrouped image, whose padding, if any, takes part."""
        cut = whole or Regrouping(x.shape[-2:], self.partition)
        x = cut.split(x).permute(0, 3, 1, 2)
        for stage, unit in self.stages:
            x = unit.gather(x, partial(self.lines, stage, cut))
        return cut.join(tokens(x))

    def lines(self, stage: str, cut: Regrouping, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One stage's attention in the regrouped image."""
        return cut.attend(stage, tokens(q), tokens(k), tokens(v), masked=False).permute(0, 3, 1, 2)

    def masked(self, stage: str, whole: Regrouping | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One stage's attention on a map whose padding no layer sees: it enters after the convolutions and norms."""
        cut = whole or Regrouping(q.shape[-2:], self.partition)
        return cut.join(cut.attend(stage, cut.split(q), cut.split(k), cut.split(v)))
