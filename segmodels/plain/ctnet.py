"""CTNet's head as its public code has it: an explicit softmax over N x n and transposed copies."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segmodels.heads.ctnet import CTNet


def ctnet_plain(module: CTNet, x: Tensor) -> Tensor:
    """The logits of `CTNet` in the arrangement "ctnet" with average pooling, on (B, in, H, W), with its weights."""
    x = module.reduce(x)
    b, c, h, w = x.shape
    c_m = torch.sigmoid(module.ccm.gate(F.adaptive_avg_pool2d(x, 1).view(b, c))).view(b, c, 1)
    prior = F.softmax(module.ccm.prior(c_m.unsqueeze(3)).view(b, -1, 1), dim=1)
    matrix = F.relu(torch.bmm(c_m, prior.transpose(1, 2))).unsqueeze(3)
    x = x * c_m.view(b, c, 1, 1).expand_as(x)
    scm: Any = module.scm
    query = scm.query(x).flatten(2).transpose(1, 2).contiguous()
    key, value = scm.key(matrix).flatten(2), scm.value(matrix).flatten(2).transpose(1, 2).contiguous()
    relation = F.softmax(scm.scale * torch.bmm(query, key), dim=-1)
    context = torch.bmm(relation, value).transpose(1, 2).contiguous().view(b, -1, h, w)
    context = scm.fuse(scm.up(context) + x)
    return module.classify(module.fuse(torch.cat([context, module.local(x)], dim=1)))
