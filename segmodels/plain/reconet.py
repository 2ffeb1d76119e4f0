"""TGM and TRM as in RecoNet's public code: one set of gates and one whole rank-1 tensor after the other, added up."""

from __future__ import annotations

import torch
from torch import Tensor

from segmodels.heads.reconet import TensorGeneration, TensorReconstruction


def reconet_plain(tgm: TensorGeneration, trm: TensorReconstruction, x: Tensor) -> Tensor:
    """What `trm(x, *tgm(x))` computes at the gates' own size, from their weights: (B, C, H, W) -> (B, C, H, W)."""
    b, c, h, w = x.shape
    u_c, u_h, u_w = x.mean((2, 3)), x.mean((1, 3)), x.mean((1, 2))
    lambdas = trm.weight.softmax(0)
    a = torch.zeros_like(x)
    ranks = zip(*(layer.weight.chunk(tgm.rank) for layer in (tgm.c, tgm.h, tgm.w)), strict=True)
    for lambda_, (w_c, w_h, w_w) in zip(lambdas, ranks, strict=True):
        v_c = torch.sigmoid(u_c @ w_c.T).view(b, c, 1)
        v_h = torch.sigmoid(u_h @ w_h.T).view(b, 1, h)
        v_w = torch.sigmoid(u_w @ w_w.T).view(b, 1, w)
        plane = torch.bmm(v_c, v_h).view(b, c * h, 1)
        a = a + lambda_ * torch.bmm(plane, v_w).view(b, c, h, w)
    return x * a
