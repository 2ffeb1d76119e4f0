"""PSANet's public operator in plain PyTorch: the over-complete map of each pixel is cut and copied to its place."""

from __future__ import annotations

import torch
from torch import Tensor

from segmodels.heads.psanet import PointAttention
from segmodels.layers import resize


def psanet_plain(module: PointAttention, x: Tensor) -> Tensor:
    """What `segmodels.heads.psanet.PointAttention` computes, from its weights."""
    x = resize(module.reduce(x), module.size)
    b, c, h, w = x.shape
    masks = module.offsets(x).unflatten(1, (2 * h - 1, 2 * w - 1))
    # Apart and joined, not cut from and put into one tensor: autograd would fill all of it for each pixel.
    cuts = []
    for pixel, mask in enumerate(masks.flatten(3).unbind(3)):
        i, j = divmod(pixel, w)
        cuts.append(mask[:, h - 1 - i : 2 * h - 1 - i, w - 1 - j : 2 * w - 1 - j].flatten(1))
    weights = torch.stack(cuts, 2 if module.collect else 1).softmax(1)  # (B, source, target)
    return torch.bmm(x.reshape(b, c, h * w), weights.to(x.dtype)).view(b, c, h, w)
