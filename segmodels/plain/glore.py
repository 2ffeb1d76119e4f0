"""The GloRe unit as its public code has it: two convolutions of x, and permuted copies."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segmodels.heads.glore import GlobalReasoning


def glore_plain(module: GlobalReasoning, x: Tensor) -> Tensor:
    """`GlobalReasoning` on (B, C, H, W), with its weights."""
    n, states = x.shape[0], module.split[0]
    weight: Any = module.project.weight
    bias: Any = module.project.bias
    s = F.conv2d(x, weight[:states], bias[:states]).view(n, states, -1)
    p = F.conv2d(x, weight[states:], bias[states:]).view(n, module.split[1], -1)
    v = torch.matmul(s, p.permute(0, 2, 1))
    if module.normalize:
        v = v * (1.0 / s.size(2))
    v = module.adjacency(v.permute(0, 2, 1).contiguous()).permute(0, 2, 1) + v
    v = module.update(F.relu(v))
    return x + module.norm(module.extend(torch.matmul(v, p).view(n, states, *x.shape[2:])))
