"""ISA whose padded cells are no keys, written plainly: −∞ on the whole relation of every group, and a copy into groups.

The public code has no mask; its padding takes part, see `plain/ocnet.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segmodels.heads.interlaced import InterlacedAttention
from segmodels.plain.ocnet import run


def masked_plain(module: InterlacedAttention, x: Tensor) -> Tensor:
    """`InterlacedAttention` with `mask_padding`, with its weights: (B, C, H, W) -> (B, C, H, W)."""
    for stage, unit in module.stages:
        q, k, v = run(unit.query, x), run(unit.key, x), unit.value(x)
        x = run([unit.out], attend(stage, module.partition, q, k, v))
    return x


def attend(stage: str, partition: tuple[int, int], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One stage on padded copies: (B, E, H, W) twice, (B, V, H, W) -> (B, V, H, W)."""
    (height, width), (p_h, p_w) = v.shape[2:], partition
    down, right = -height % p_h, -width % p_w
    pad = (right // 2, right - right // 2, down // 2, down - down // 2)
    real = F.pad(torch.ones_like(v[:1, :1]), pad)
    q, k, v = (F.pad(t, pad) for t in (q, k, v))
    queries, keys, values, cells = (groups(stage, partition, t) for t in (q, k, v, real))
    logits = queries @ keys.mT * keys.shape[-1] ** -0.5
    padding = cells.mT == 0
    padding = (padding & ~padding.all(-1, keepdim=True)).repeat(len(logits) // len(padding), 1, 1)
    y = logits.masked_fill(padding, -torch.inf).softmax(-1) @ values
    q_h, q_w = v.shape[2] // p_h, v.shape[3] // p_w
    if stage == "global":
        y = y.view(-1, p_h, p_w, q_h, q_w, y.shape[-1]).permute(0, 5, 3, 1, 4, 2)
    else:
        y = y.view(-1, q_h, q_w, p_h, p_w, y.shape[-1]).permute(0, 5, 1, 3, 2, 4)
    y = y.reshape(v.shape)
    return y[:, :, down // 2 : down // 2 + height, right // 2 : right // 2 + width]


def groups(stage: str, partition: tuple[int, int], x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B · groups, cells of a group, C)."""
    parts = x.unflatten(3, (-1, partition[1])).unflatten(2, (-1, partition[0]))  # (B, C, Q_h, P_h, Q_w, P_w)
    order = (0, 3, 5, 2, 4, 1) if stage == "global" else (0, 2, 4, 3, 5, 1)
    return parts.permute(order).flatten(3, 4).flatten(0, 2).contiguous()
