"""CFNet's module as in PyTorch-Encoding: the attention of every head and mixture written out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segmodels.heads.cfnet import CoOccurrence


def cfnet_plain(module: CoOccurrence, x: Tensor) -> Tensor:
    """`module(x)`, its weights, with explicit softmaxes; keys and values each pool the map.

    Shape: (B, C, H, W) -> (B, C, H, W), through (B · heads · mixtures, N, N/4).
    """
    batch, _, height, width = x.shape
    mixtures, groups = module.mixtures, batch * module.heads
    q = module.query_key(x).reshape(groups, -1, height * width)
    k = module.query_key(module.pool(x)).flatten(2).reshape(groups, q.shape[1], -1)
    v = module.value(module.pool(x)).flatten(2).reshape(groups, -1, k.shape[2])
    parts = q.reshape(groups * mixtures, -1, q.shape[2]).transpose(1, 2)
    weights = torch.bmm(parts, k.reshape(groups * mixtures, -1, k.shape[2])) / q.shape[1] ** 0.5
    weights = F.dropout(weights.softmax(2), module.dropout, module.training)
    if module.prior is not None:
        pi = torch.matmul(module.prior.weight, q.mean(2, keepdim=True)).softmax(1).view(groups * mixtures, 1, 1)
        weights = (weights * pi).view(groups, mixtures, *weights.shape[1:]).sum(1)
    y = torch.bmm(weights, v.transpose(1, 2)).transpose(1, 2).contiguous().view(batch, -1, height, width)
    return module.norm(module.out(y)) + x
