"""APNB as in ANN's public code: the N × 110 softmax written out."""

import torch
import torch.nn.functional as F
from torch import Tensor

from segmodels.heads.ann import AsymmetricBlock


def ann_plain(module: AsymmetricBlock, x: Tensor) -> Tensor:
    """What `segmodels.heads.ann.AsymmetricBlock` with shared queries and keys computes, from its weights."""

    def sample(y: Tensor) -> Tensor:
        return torch.cat([F.adaptive_avg_pool2d(y, s).flatten(2) for s in module.sizes], -1)

    shared = module.query(x)
    q, k = shared.flatten(2).permute(0, 2, 1), sample(shared)
    v = sample(module.value(x)).permute(0, 2, 1)
    weights = (torch.matmul(q, k) * k.shape[1] ** -0.5).softmax(-1).to(v.dtype)
    context = torch.matmul(weights, v).permute(0, 2, 1).contiguous().view(x.shape[0], -1, *x.shape[2:])
    return module.fuse(torch.cat([module.project(context), x], 1))
