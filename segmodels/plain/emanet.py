"""EMAU as in EMANet's public code: no gradient through bases and responsibilities, Ẑ held beside Z."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segmodels.heads.emanet import EPSILON, ExpectationMaximisation


def emanet_plain(module: ExpectationMaximisation, x: Tensor) -> Tensor:
    """What `ExpectationMaximisation` computes, from its weights; its sums are not kept.

    With `gradient=True` the outputs are the same, but the first convolution gets no gradient here.
    """
    b, c, h, w = x.shape
    points = module.before(x).view(b, c, h * w)
    mu = module.bases.repeat(b, 1, 1)
    with torch.no_grad():
        for _ in range(module.iterations):
            z = torch.bmm(points.permute(0, 2, 1), mu.to(points.dtype)).softmax(2)
            shares = z / (EPSILON + z.sum(1, keepdim=True))
            mu = torch.bmm(points, shares.to(points.dtype))
            mu = mu / (EPSILON + mu.norm(dim=1, keepdim=True))
    y = torch.matmul(mu.to(points.dtype), z.permute(0, 2, 1).to(points.dtype)).view(b, c, h, w)
    return F.relu(module.behind(F.relu(y)) + x)
