"""DMNet's module with one depthwise convolution per image, the plain way to give every image filters of its own.

The ports do what segmodels does, one grouped convolution over the batch: this is no public code's form.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segmodels.heads.dmnet import DynamicConv


def dmnet_plain(module: DynamicConv, x: Tensor) -> Tensor:
    """`module(x)`, its weights, image by image.

    Shape: (B, in, H, W) -> (B, C, H, W).
    """
    filters = module.filters(F.adaptive_avg_pool2d(x, module.side))
    y = module.reduce(x)
    images = [
        F.conv2d(image.unsqueeze(0), kernel.unsqueeze(1), padding=module.side // 2, groups=len(kernel))
        for image, kernel in zip(y, filters, strict=True)
    ]
    return module.fuse(F.relu(module.norm(torch.cat(images))))
