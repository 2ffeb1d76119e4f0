"""CBAM as in its public code: pooling kernels over the whole map, the MLP twice, maxima with their places."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segmodels.heads.cbam import CBAM


def cbam_plain(module: CBAM, x: Tensor) -> Tensor:
    """What `segmodels.heads.cbam.CBAM` with both gates computes, from its weights."""
    size, mlp, gate = x.shape[2:], module.channel.mlp, module.spatial
    assert gate is not None
    average, greatest = (pool(x, size, stride=size).flatten(1) for pool in (F.avg_pool2d, F.max_pool2d))
    x = x * (mlp(average) + mlp(greatest)).sigmoid()[:, :, None, None].expand_as(x)
    pooled = torch.cat([x.max(1)[0].unsqueeze(1), x.mean(1).unsqueeze(1)], 1)
    return x * gate.norm(gate.conv(pooled)).sigmoid()
