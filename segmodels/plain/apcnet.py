"""APCNet's module as in mmsegmentation: pixels moved last and back, each time by a copy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segmodels.heads.apcnet import AdaptiveContext
from segmodels.upsampling import bilinear


def apcnet_plain(module: AdaptiveContext, x: Tensor) -> Tensor:
    """`module(x)`, its weights, the product of matrices with pixels as rows.

    Shape: (B, in, H, W) -> (B, C, H, W).
    """
    pooled = module.pooled(F.adaptive_avg_pool2d(x, module.side))
    y = module.reduce(x)
    batch, channels, height, width = y.shape
    pooled = pooled.view(batch, channels, -1).permute(0, 2, 1).contiguous()
    guide = module.guide(F.adaptive_avg_pool2d(y, 1))
    guide = bilinear(guide, (height, width))
    affinity = module.affinity(y + guide).permute(0, 2, 3, 1).reshape(batch, height * width, -1)
    z = torch.matmul(torch.sigmoid(affinity), pooled).permute(0, 2, 1).contiguous()
    z = module.residual(z.view(batch, channels, height, width))
    return module.fuse(F.relu(z + y))
