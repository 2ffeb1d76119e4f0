"""EncNet's module with the residual of every pixel and codeword written out, as in the ports of its CUDA kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from segmodels.heads.encnet import EncModule


def encnet_plain(module: EncModule, x: Tensor) -> Tensor:
    """`module(x)`, its weights, the residuals held as one tensor.

    Shape: (B, C, H, W) -> (B, C, H, W), through (B, N, codes, C).
    """
    codewords, scale = module.encoding.codewords, module.encoding.scale
    pixels = module.project(x).flatten(2).transpose(1, 2).contiguous()
    residual = pixels.unsqueeze(2).expand(-1, -1, len(codewords), -1) - codewords  # (B, N, codes, C)
    weights = torch.softmax(scale * residual.pow(2).sum(3), 2)
    encoding = (weights.unsqueeze(3) * residual).sum(1)
    gate = module.gate(torch.relu(module.norm(encoding)).mean(1)).sigmoid()
    return torch.relu(x + x * gate.view(*gate.shape, 1, 1))
