"""PSANet's public operator in plain PyTorch: the over-complete map of each pixel is cut and copied to its place."""

import torch
from torch import Tensor

from segmodels.heads.psanet import PointAttention
from segmodels.layers import resize


def psanet_plain(module: PointAttention, x: Tensor) -> Tensor:
    """What `segmodels.heads.psanet.PointAttention` computes, from its weights."""
    x = resize(module.reduce(x), module.size)
    b, c, h, w = x.shape
    masks = module.offsets(x).unflatten(1, (2 * h - 1, 2 * w - 1))
    placed = masks.new_zeros(b, h, w, h, w)  # source row, column, target row, column
    for i in range(h):
        for j in range(w):
            cut = masks[:, h - 1 - i : 2 * h - 1 - i, w - 1 - j : 2 * w - 1 - j, i, j]
            if module.collect:
                placed[:, :, :, i, j] = cut
            else:
                placed[:, i, j] = cut
    weights = placed.view(b, h * w, h * w).softmax(1)
    return torch.bmm(x.reshape(b, c, h * w), weights.to(x.dtype)).view(b, c, h, w)
