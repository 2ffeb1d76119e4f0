"""Bilinear resizing; on a GPU its gradient is two products of matrices, without atomic additions.

PyTorch's own gradient adds each pixel to four cells by atomic operations: slow where a map is enlarged eightfold, as
thousands of pixels wait for the same cells, and in another order, hence with other last digits, each time.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def bilinear(x: Tensor, size: Sequence[int], *, align_corners: bool = True) -> Tensor:
    """A map at another size; by default with aligned corners, as in the papers' PyTorch codes.

    Values are those of `F.interpolate` on every device. On CPUs gradients are too; on GPUs they are equal within
    rounding, and bit for bit the same each time.

    Args:
        x: (B, C, H, W).
        size: (h, w).
        align_corners: see `F.interpolate`.

    Shape: (B, C, H, W) -> (B, C, h, w).
    """
    if x.is_cuda and x.requires_grad and torch.is_grad_enabled():
        return Bilinear.apply(x, tuple(size), align_corners)
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


class Bilinear(torch.autograd.Function):
    """`F.interpolate`, with the gradient W_hᵀ G W_w: columns first, so that the larger product is one of matrices."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
        ctx.size, ctx.align_corners, ctx.dtype = x.shape[-2:], align_corners, x.dtype
        # `F.interpolate` without its slow form for fixed orders of sums: only the gradient needs one
        return torch.ops.aten.upsample_bilinear2d(x, size, align_corners)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        # In float32: bfloat16 would round the weights, and what lies between the two products.
        gradient = gradient.to(torch.promote_types(ctx.dtype, torch.float32))
        rows, columns = (
            weights(cells, pixels, ctx.align_corners, gradient)
            for cells, pixels in zip(ctx.size, gradient.shape[-2:], strict=True)
        )
        return (rows @ (gradient @ columns.T)).to(ctx.dtype), None, None


def weights(cells: int, pixels: int, align_corners: bool, like: Tensor) -> Tensor:
    """What each cell of a row of them contributes to each pixel: (cells, pixels), as PyTorch interpolates."""
    unit = torch.eye(cells, dtype=like.dtype, device=like.device).unsqueeze(0)
    return F.interpolate(unit, size=pixels, mode="linear", align_corners=align_corners)[0]
