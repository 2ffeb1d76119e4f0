"""Cross entropy of every pixel, of large maps without a second copy of them."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = 255  # the mask's value for pixels without a label
LARGE_BYTES = 2**29  # of logits; PyTorch holds three more maps of their size, the slopes among them
PART_BYTES = 2**27  # of logits that are worked on at a time, where they are large; an image at the least


def pixel_entropy(
    logits: Tensor, mask: Tensor, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Cross entropy of every pixel, 0 where it has no label.

    Logits of up to `LARGE_BYTES` (21 classes at the papers' crops) are PyTorch's business. Of larger ones the softmax
    is computed again for the gradient, a few images at a time: with 150 classes and 16 images of 512 x 512 pixels each
    map of their size takes 2.3 GiB.

    Args:
        logits: (B, K, H, W).
        mask: class indices, uint8, (B, H, W).
        class_weights: K factors, one per class.
        label_smoothing: share of the target that is spread evenly over all K classes.

    Shape: -> (B, H, W), in float32 or better.
    """
    logits = single(logits)
    weights = None
    if class_weights is not None:
        weights = constants(tuple(class_weights), logits.shape[1], logits.dtype, logits.device)
    if logits.numel() * logits.itemsize > LARGE_BYTES:
        return PixelEntropy.apply(logits, mask, weights, label_smoothing)
    return plain_entropy(logits, mask, weights, label_smoothing)


def plain_entropy(logits: Tensor, mask: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
    """The same by PyTorch, whose own mean would be 0/0 without labels, and not deterministic on CUDA."""
    return F.cross_entropy(logits, mask.long(), weights, ignore_index=IGNORE, reduction="none",
                           label_smoothing=smoothing)  # fmt: skip


class PixelEntropy(torch.autograd.Function):
    """The same, which keeps the logits alone: its gradient is the one other map of their size."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, mask: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
        ctx.save_for_backward(logits, mask, weights)
        ctx.smoothing = smoothing
        return torch.cat([plain_entropy(logits[at], mask[at], weights, smoothing) for at in parts(logits)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        logits, mask, weights = ctx.saved_tensors
        slopes = torch.empty_like(logits)
        for at in parts(logits):
            slopes[at] = slope(logits[at], mask[at], gradient[at], weights, ctx.smoothing)
        return slopes, None, None, None


def parts(logits: Tensor) -> Iterator[slice]:
    """Runs of images with up to `PART_BYTES` of logits, of at least one image."""
    step = max(1, PART_BYTES // (logits[0].numel() * logits.itemsize))
    return (slice(first, first + step) for first in range(0, len(logits), step))


def slope(logits: Tensor, mask: Tensor, gradient: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
    """The gradient of the logits where each pixel's entropy has that `gradient`: Σ_k t_k (p − 1[k]).

    The targets t are w_y (1 − smoothing) at the label y, and w_k smoothing / K at every class k more.

    Shape: (B, K, H, W), (B, H, W), (B, H, W) -> (B, K, H, W).
    """
    label = mask.where(mask != IGNORE, 0).long()
    gradient = gradient * (mask != IGNORE)
    own = gradient * (1 - smoothing) * (1 if weights is None else weights[label])
    slopes = logits.softmax(1)
    if smoothing:
        even, each = gradient * smoothing / len(slopes[0]), slopes.new_ones(len(slopes[0]))
        each = each if weights is None else weights
        slopes *= (own + even * each.sum()).unsqueeze(1)
        slopes -= even.unsqueeze(1) * each.view(-1, 1, 1)
    else:
        slopes *= own.unsqueeze(1)
    label = label.unsqueeze(1)
    return slopes.scatter_(1, label, slopes.gather(1, label) - own.unsqueeze(1))


def single(x: Tensor) -> Tensor:
    """In float32, or float64 if it is that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@functools.lru_cache(maxsize=16)
def constants(values: tuple[float, ...], num_classes: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """K class weights on the device, sent there once: each transfer would hold the step up.

    Raises:
        ValueError: there are not K weights.
    """
    if len(values) != num_classes:
        raise ValueError(f"class_weights has {len(values)} numbers; allowed: {num_classes}, one per class")
    return torch.tensor(values, dtype=dtype, device=device)
