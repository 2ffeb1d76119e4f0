"""The double attention block as its public ports run it: three convolutions, two softmaxes, two products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segmodels.heads.a2 import DoubleAttention


def a2_plain(module: DoubleAttention, x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H, W)."""
    a, b, v = (F.conv2d(x, weight).flatten(2) for weight in module.a_b_v.weight.split(module.widths))
    gathered = torch.bmm(a, b.softmax(-1).mT)
    z = torch.bmm(gathered, v.softmax(1))
    return x + module.widen(z.unflatten(2, x.shape[2:]))
