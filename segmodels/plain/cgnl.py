"""The CGNL block as its public code has it: a loop over groups with two products of matrices each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segmodels.heads.cgnl import CompactNonLocal


def cgnl_plain(module: CompactNonLocal, x: Tensor) -> Tensor:
    """`CompactNonLocal` on (B, C, H, W), with its weights."""
    t, p, g = (F.conv2d(x, weight) for weight in module.project.weight.chunk(3))
    b, _, h, w = t.shape
    size = module.width * h * w
    parts = []
    for ts, ps, gs in zip(*(torch.split(y, module.width, dim=1) for y in (t, p, g)), strict=True):
        att = torch.bmm(ps.reshape(b, 1, size), gs.reshape(b, size, 1))
        if module.scale:
            att = att.div(size**0.5)
        parts.append(torch.bmm(att, ts.reshape(b, 1, size)).view(b, module.width, h, w))
    return module.norm(module.restore(torch.cat(parts, dim=1))) + x
