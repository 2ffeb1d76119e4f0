"""APNB and AFNB as in ANN's public code: the N × 110 softmax written out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segmodels.heads.ann import AsymmetricBlock


def ann_plain(module: AsymmetricBlock, x: Tensor, low: Tensor | None = None) -> Tensor:
    """What `segmodels.heads.ann.AsymmetricBlock` computes, from its weights; keys are of `low`, if given (AFNB)."""
    source = x if low is None else low

    def sample(y: Tensor) -> Tensor:
        return torch.cat([F.adaptive_avg_pool2d(y, s).flatten(2) for s in module.sizes], -1)

    query = module.query(x)
    q, k = query.flatten(2).permute(0, 2, 1), sample(query if module.key is None else module.key(source))
    v = sample(module.value(source)).permute(0, 2, 1)
    weights = (torch.matmul(q, k) * k.shape[1] ** -0.5).softmax(-1).to(v.dtype)
    context = torch.matmul(weights, v).permute(0, 2, 1).contiguous().view(x.shape[0], -1, *x.shape[2:])
    if module.fuse is None:
        return module.project(context) + x
    return module.fuse(torch.cat([module.project(context), x], 1))
