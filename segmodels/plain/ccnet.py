"""Criss-cross attention as in CCNet's public code: copies of rows and columns, and a matrix of −∞ on diagonals."""

from __future__ import annotations

import torch
from torch import Tensor

from segmodels.heads.ccnet import CrissCross


def ccnet_plain(module: CrissCross, x: Tensor) -> Tensor:
    """What `segmodels.heads.ccnet.CrissCross` computes, from its weights."""
    for _ in range(module.recurrences):
        x = step(module, x)
    return x


def step(module: CrissCross, x: Tensor) -> Tensor:
    """One recurrence: (B, C, H, W) -> (B, C, H, W)."""
    b, _, h, w = x.shape
    q, k, v = module.query(x), module.key(x), module.value(x)
    q_h, k_h, v_h = (y.permute(0, 3, 1, 2).contiguous().view(b * w, -1, h) for y in (q, k, v))
    q_w, k_w, v_w = (y.permute(0, 2, 1, 3).contiguous().view(b * h, -1, w) for y in (q, k, v))
    infinity = torch.diag(torch.tensor(float("inf"), device=x.device).repeat(h), 0).unsqueeze(0).repeat(b * w, 1, 1)
    energy_h = (torch.bmm(q_h.permute(0, 2, 1), k_h) - infinity).view(b, w, h, h).permute(0, 2, 1, 3)
    energy_w = torch.bmm(q_w.permute(0, 2, 1), k_w).view(b, h, w, w)
    weights = torch.cat([energy_h, energy_w], 3).softmax(3)
    weights_h = weights[..., :h].permute(0, 2, 1, 3).contiguous().view(b * w, h, h).to(v.dtype)
    weights_w = weights[..., h:].contiguous().view(b * h, w, w).to(v.dtype)
    out_h = torch.bmm(v_h, weights_h.permute(0, 2, 1)).view(b, w, -1, h).permute(0, 2, 3, 1)
    out_w = torch.bmm(v_w, weights_w.permute(0, 2, 1)).view(b, h, -1, w).permute(0, 2, 1, 3)
    context = out_h + out_w
    return x + (context if module.gamma is None else module.gamma * context)
