"""Object context as in OCR's public code: the N × K softmax written out."""

from __future__ import annotations

import torch
from torch import Tensor

from segmodels.heads.ocr import ObjectContext


def ocr_plain(module: ObjectContext, x: Tensor, coarse: Tensor) -> Tensor:
    """What `segmodels.heads.ocr.ObjectContext` computes, from its weights; `coarse` are the regions' logits."""
    b, _, h, w = x.shape
    regions = coarse.flatten(2).softmax(2).to(x.dtype)
    objects = torch.matmul(regions, x.flatten(2).permute(0, 2, 1)).permute(0, 2, 1).unsqueeze(3)
    q = module.query(x).flatten(2).permute(0, 2, 1)
    k = module.key(objects).flatten(2)
    v = module.value(objects).flatten(2).permute(0, 2, 1)
    weights = (torch.matmul(q, k) * k.shape[1] ** -0.5).softmax(-1).to(v.dtype)
    context = torch.matmul(weights, v).permute(0, 2, 1).contiguous().view(b, -1, h, w)
    return module.project(context)
