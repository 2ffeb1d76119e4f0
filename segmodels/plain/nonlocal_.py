"""The non-local block as the public code runs it: three convolutions and the N x N relation in memory."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from segmodels.heads.nonlocal_ import NonLocal


def nonlocal_plain(module: NonLocal, x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H, W)."""
    theta, phi, g = (F.conv2d(x, weight).flatten(2) for weight in module.theta_phi_g.weight.chunk(3))
    weights = (theta.mT @ phi).softmax(-1)
    y = (weights @ g.mT).mT.contiguous().unflatten(2, x.shape[2:])
    return x + module.w_z(y)
