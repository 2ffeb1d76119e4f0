"""Position and channel attention as in DANet's public code: the N × N softmax, and the row's maximum expanded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segmodels.heads.danet import ChannelAttention, DANet, PositionAttention
from segmodels.plain.ocnet import run


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


def danet_plain(module: DANet, x: Tensor) -> Tensor:
    """All outputs of `segmodels.heads.danet.DANet` with both branches side by side, from its weights."""
    attended = []
    forms: dict[str, Any] = {"pam": pam_plain, "cam": cam_plain}
    for name, form in forms.items():
        y = form(module.attend[name], run([module.reduce[name]], x))
        attended.append(run([module.after[name]], y))
    outputs = [module.classify(attended[0] + attended[1])]
    if module.training:
        outputs += [module.classify_branch[name](y) for name, y in zip(("pam", "cam"), attended, strict=True)]
    return torch.cat(outputs, 1)
