"""OCNet's attentions as the public code runs them: the map copied into groups, an explicit softmax in each."""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from segmodels.heads.interlaced import InterlacedAttention
from segmodels.heads.object_attention import SelfAttention


def self_attention_plain(module: SelfAttention, x: Tensor) -> Tensor:
    """SA with the N x N relation in memory: (B, C, H, W) -> (B, C, H, W)."""
    q, k = run(module.query, x).flatten(2).mT, run(module.key, x).flatten(2)
    v = module.value(x).flatten(2).mT
    weights = (q @ k * k.shape[1] ** -0.5).softmax(-1)
    context = (weights @ v).mT.contiguous().unflatten(2, x.shape[2:])
    return run([module.out], context)


def ocnet_plain(module: InterlacedAttention, x: Tensor) -> Tensor:
    """ISA with padding that takes part, one copy of the full width into groups and one back for each stage."""
    height, width = x.shape[2:]
    (p_h, p_w), down, right = module.partition, -height % module.partition[0], -width % module.partition[1]
    x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
    batch, channels = x.shape[:2]
    q_h, q_w = x.shape[2] // p_h, x.shape[3] // p_w
    for stage, unit in module.stages:
        x = x.reshape(batch, channels, q_h, p_h, q_w, p_w)
        if stage == "global":
            groups = x.permute(0, 3, 5, 1, 2, 4).reshape(-1, channels, q_h, q_w)
            y = self_attention_plain(unit, groups).reshape(batch, p_h, p_w, channels, q_h, q_w)
            x = y.permute(0, 3, 4, 1, 5, 2).reshape(batch, channels, q_h * p_h, q_w * p_w)
        else:
            groups = x.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, p_h, p_w)
            y = self_attention_plain(unit, groups).reshape(batch, q_h, q_w, channels, p_h, p_w)
            x = y.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, q_h * p_h, q_w * p_w)
    return x[:, :, down // 2 : down // 2 + height, right // 2 : right // 2 + width]


def run(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Convolution, norm and ReLU of each layer by themselves, with nothing computed twice."""
    for layer in layers:
        for part in layer.children():
            x = part(x)
    return x
