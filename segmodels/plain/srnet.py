"""SRNet's SR unit as its public code has it: a product of matrices per squeezed channel, one convolution per map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segmodels.heads.srnet import SqueezeReasoning


def srnet_plain(module: SqueezeReasoning, x: Tensor) -> Tensor:
    """`SqueezeReasoning` on (B, C, H, W), with its weights; "ghp" or "gap"."""
    branches = [F.conv2d(x, weight) for weight in module.project.weight.chunk(module.branches)]
    t, (b, c, h, w) = branches[0], branches[0].shape
    if len(branches) == 1:
        g = F.adaptive_avg_pool2d(t, 1).view(b, c)
    else:
        lefts, rights = (torch.split(y, 1, dim=1) for y in branches[-2:])
        pairs = zip(lefts, rights, strict=True)
        sums = [torch.bmm(p.reshape(b, 1, h * w), q.reshape(b, h * w, 1)) for p, q in pairs]
        g = torch.cat(sums, dim=1).view(b, c) / (1 if module.ghp_sum else h * w)
    out = module.reason(g.view(b, module.nodes, -1)).reshape(b, c, 1, 1)
    return module.norm(module.restore(out * t)) + x
