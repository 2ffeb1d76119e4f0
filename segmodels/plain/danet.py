"""Position and channel attention as in DANet's public code: the N × N softmax, and the row's maximum expanded."""

from __future__ import annotations

import torch
from torch import Tensor

from segmodels.heads.danet import ChannelAttention, PositionAttention


def pam_plain(module: PositionAttention, x: Tensor) -> Tensor:
    """What `segmodels.heads.danet.PositionAttention` computes, from its weights."""
    b, c, h, w = x.shape
    q = module.query(x).view(b, -1, h * w).permute(0, 2, 1)
    k = module.key(x).view(b, -1, h * w)
    v = module.value(x).view(b, -1, h * w)
    attention = torch.bmm(q, k).softmax(-1).to(v.dtype)
    return module.alpha * torch.bmm(v, attention.permute(0, 2, 1)).view(b, c, h, w) + x


def cam_plain(module: ChannelAttention, x: Tensor) -> Tensor:
    """What `segmodels.heads.danet.ChannelAttention` computes, from its weights."""
    b, c, h, w = x.shape
    f = x.view(b, c, -1)
    energy = torch.bmm(f, f.permute(0, 2, 1))
    attention = (energy.max(-1, keepdim=True)[0].expand_as(energy) - energy).softmax(-1)
    return module.beta * torch.bmm(attention.to(f.dtype), f).view(b, c, h, w) + x
