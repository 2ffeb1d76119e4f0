"""The LatentGNN block as its public code has it: two reductions, and l2 norms of whole maps."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segmodels.heads.latentgnn import LatentGraph


def latentgnn_plain(module: LatentGraph, x: Tensor) -> Tensor:
    """`LatentGraph` on (B, C, H, W), with its weights; in evaluation, where the reductions' norm can be cut in two."""
    conv: Any = module.reduce[0]
    norm: Any = module.reduce[1]
    statistics = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    maps = []
    for weight, *values in zip(conv.weight.chunk(2), *(v.chunk(2) for v in statistics), strict=True):
        mean, var, scale, shift = values
        y = F.batch_norm(F.conv2d(x, weight), mean, var, scale, shift, eps=norm.eps)
        maps.append(F.normalize(y, dim=1))
    b, c, h, w = maps[0].shape
    v2l = F.normalize(module.to_latent(maps[0]).view(b, -1, h * w), dim=2)
    l2v = F.normalize(module.to_visible(maps[1]).view(b, -1, h * w), dim=1)
    latent = torch.bmm(v2l, maps[0].view(b, c, h * w).permute(0, 2, 1))
    directions = F.normalize(latent, dim=-1)
    affinity = F.softmax(torch.bmm(directions, directions.permute(0, 2, 1)), dim=-1)
    latent = torch.bmm(affinity, latent)
    visible = torch.bmm(latent.permute(0, 2, 1), l2v).view(b, -1, h, w)
    return x + module.restore(visible) * module.gamma
