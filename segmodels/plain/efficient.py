"""Efficient attention as the public code runs it: three convolutions and a loop over the heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segmodels.heads.efficient import EfficientAttention


def efficient_plain(module: EfficientAttention, x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H, W)."""
    weights, biases = (parameter.split(module.widths) for parameter in module.qkv.parameters())
    parts = [
        F.conv2d(x, weight, bias).flatten(2).chunk(module.heads, 1)
        for weight, bias in zip(weights, biases, strict=True)
    ]
    attended = []
    for q, k, v in zip(*parts, strict=True):
        context = k.softmax(2) @ v.mT
        attended.append(context.mT @ q.softmax(1))
    return x + module.project(torch.cat(attended, 1).unflatten(2, x.shape[2:]))
