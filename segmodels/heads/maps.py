"""Context maps: what a head computed on its way, handed out on request and never computed twice."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segmodels.heads.attention import gather, relation

PIXEL = "the asked pixel's relation to every cell, (B, H, W)"
PARTS = "a map for each part of the context, (B, parts, H, W)"
CLASSES = "a map for each class, (B, K, H, W)"
SINGLE = "one map for all pixels, (B, H, W) or (B, 1, H, W)"
FEATURES = "features, (B, C, H, W)"
VECTORS = "vectors, not a map"

KINDS: dict[str, str] = {
    "relation": PIXEL, "global": PIXEL, "local": PIXEL, "dense": PIXEL,
    "position": PIXEL, "cross": PIXEL, "collect": PIXEL, "distribute": PIXEL,
    "sub_attention": PARTS, "nodes": PARTS, "responsibilities": PARTS, "assignment": PARTS,
    "class_relation": CLASSES, "regions": CLASSES,
    "attention": SINGLE, "spatial_gate": SINGLE, "full_attention": SINGLE, "attended": SINGLE,
    "unit_input": FEATURES, "unit_output": FEATURES,
    "v_c": VECTORS, "v_h": VECTORS, "v_w": VECTORS, "lambda_": VECTORS, "node_channels": VECTORS,
}  # fmt: skip
"""Name of a map -> what it is; the docstring of the module that fills it says the rest."""


@dataclass(frozen=True)
class Gathered:
    """What every cell gathers of `Maps.shares`, (B, V, h, w) each, by three relations between the same cells.

    relation: by the head's.
    even: by equal weights; of a relation in two stages, in each.
    true: by weights in proportion to how much two cells' values agree, their scalar product; 0 where none agrees. Of a
        relation in two stages, over all cells.
    """

    relation: Tensor
    even: Tensor
    true: Tensor


class Maps(dict[str, Tensor]):
    """Name, a key of `KINDS`, -> tensor, filled by one forward pass: `head(features, maps=Maps(pixel=(0.5, 0.5)))`.

    A head without context maps leaves it empty. The tensors are detached; their shapes are in the docstring of the
    module that fills them.

    Args:
        pixel: (row, column) of the pixel whose relation to all others is asked for, in fractions of the map, 0 to 1.
        shares: (B, V, h, w), averaged to the size of a relation's map, for all cells to gather by the relation. The
            classes' shares of each cell tell how much of a relation lies on which class. None gathers nothing.

    Attributes:
        gathered: name of a relation -> what was gathered by it; of heads whose relations join all cells, or, as
            OCNet's interlaced ones, groups of them.

    Raises:
        ValueError: `pixel` is outside of the map.
    """

    def __init__(self, pixel: tuple[float, float] = (0.5, 0.5), shares: Tensor | None = None) -> None:
        super().__init__()
        if not all(0 <= part <= 1 for part in pixel):
            raise ValueError(f"pixel is {pixel}; allowed: (row, column) in fractions of the map, each from 0 to 1")
        self.pixel, self.shares = pixel, shares
        self.gathered: dict[str, Gathered] = {}

    def cell(self, size: tuple[int, int]) -> tuple[int, int]:
        """The cell (row, column) of `pixel` in a map of `size` (h, w)."""
        row, column = (min(int(part * side), side - 1) for part, side in zip(self.pixel, size, strict=True))
        return row, column

    def add(self, name: str, value: Tensor) -> None:
        """Keep a detached tensor under a name."""
        self[name] = value.detach()

    def relate(self, name: str, q: Tensor, k: Tensor, scale: float, size: tuple[int, int]) -> None:
        """Keep the asked pixel's row of softmax(scale · q kᵀ), and what all cells gather by it: (B, N, E) each."""
        row, column = self.cell(size)
        at = row * size[1] + column
        self.add(name, relation(q[:, at : at + 1], k, scale).view(-1, *size))
        if self.shares is not None:
            values = self.shares_at(size).flatten(2).mT
            found = gather(q, k, values, scale), even(values), agreeing(values)
            self.gathered[name] = Gathered(*(t.detach().mT.unflatten(2, size) for t in found))

    def shares_at(self, size: tuple[int, int]) -> Tensor:
        """`shares` averaged to a map of `size`: (B, V, h, w)."""
        if self.shares is None:
            raise ValueError("shares is None; allowed here: a tensor (B, V, h, w)")
        return F.adaptive_avg_pool2d(self.shares, size)


def even(values: Tensor, keys: Tensor | None = None) -> Tensor:
    """The mean of all rows, for every row: (…, N, V) -> (…, N, V).

    Args:
        values: the rows.
        keys: true for the rows that count, (…, N), at least one of them; all if None.
    """
    if keys is None:
        return values.mean(-2, keepdim=True).expand_as(values)
    weights = keys.unsqueeze(-1).to(values.dtype)
    return ((weights * values).sum(-2, keepdim=True) / weights.sum(-2, keepdim=True)).expand_as(values)


def agreeing(values: Tensor) -> Tensor:
    """Σ_j w_ij v_j with w_ij = v_i · v_j / Σ_k v_i · v_k, without the N x N weights: (…, N, V) -> (…, N, V)."""
    total = values @ values.sum(-2).unsqueeze(-1)
    gathered = values @ (values.mT @ values)
    return torch.where(total > 0, gathered / total.clamp(min=torch.finfo(total.dtype).tiny), 0)
