"""Pyramid-OC as OCNet's public code has it: query, key and value of the whole map, then a loop over the tiles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segmodels.heads.object_attention import SelfAttention, borders
from segmodels.heads.ocnet import PyramidOC
from segmodels.plain.ocnet import run


def pyramid_plain(module: PyramidOC, x: Tensor) -> Tensor:
    """`PyramidOC` of units `SelfAttention`, with its weights: (B, C, H, W) -> (B, C, H, W)."""
    units: Any = module.units
    contexts = [tiled_plain(unit, x, tiles) for unit, tiles in zip(units, module.scales, strict=True)]
    wide = torch.cat([run([layer], x) for layer in module.widen], 1)
    return run([module.fuse], torch.cat([*contexts, wide], 1))


def tiled_plain(module: SelfAttention, x: Tensor, tiles: int) -> Tensor:
    """SA inside of each of tiles x tiles parts, their explicit softmax one after the other."""
    q, k, v = run(module.query, x), run(module.key, x), module.value(x)
    rows, columns = (borders(n, tiles, module.even_tiles) for n in x.shape[2:])
    lines = []
    for top, bottom in rows:
        parts = [tuple(t[:, :, top:bottom, left:right] for t in (q, k, v)) for left, right in columns]
        lines.append(torch.cat([attend(*part) for part in parts], 3))
    return run([module.out], torch.cat(lines, 2))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One tile: (B, E, h, w) twice, (B, V, h, w) -> (B, V, h, w)."""
    queries, keys, values = (t.flatten(2) for t in (q, k, v))
    weights = (queries.mT @ keys * keys.shape[1] ** -0.5).softmax(-1)
    return (weights @ values.mT).mT.contiguous().unflatten(2, v.shape[2:])
