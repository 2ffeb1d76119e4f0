"""The terms of training losses, each from one output and the mask to a scalar; the table is in `losses.py`.

All are computed in float32 or better, differentiable, finite, and 0 with zero gradient where nothing is labelled. None
waits for the device: no shape depends on values.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segmodels.entropy import IGNORE, constants, pixel_entropy, single

TINY = 1e-12  # least argument of a logarithm: far below any probability that a loss should still pull up


def cross_entropy(
    logits: Tensor, mask: Tensor, *, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None
) -> Tensor:
    """Mean cross entropy over the labelled pixels, in float32; 0, with zero gradient, when there are none.

    The mean is over the NUMBER of labelled pixels, with class weights too, where PyTorch divides by the sum of the
    pixels' weights: so the shares of parts and workers add up exactly.

    Args:
        logits: (B, K, H, W).
        mask: class indices, uint8, (B, H, W).
        label_smoothing: share of the target that is spread evenly over all K classes.
        class_weights: K factors, one per class.
    """
    return mean_of_labelled(pixel_entropy(logits, mask, class_weights, label_smoothing), mask)


def ohem(
    logits: Tensor,
    mask: Tensor,
    *,
    threshold: float = 0.7,
    min_kept: int = 100_000,
    class_weights: Sequence[float] | None = None,
) -> Tensor:
    """Cross entropy of only the hard pixels (OHEM: Shrivastava et al., CVPR 2016, arXiv:1604.03540).

    As in the public code of OCNet and SegFix: pixels whose true class has a probability below the threshold, but at
    least the `min_kept` hardest of the part at hand; the mean is over the pixels kept. Pixels that tie with the
    last one kept are kept too.

    Args:
        logits, mask: see `cross_entropy`.
        threshold: probability of the true class, from 0 to 1.
        min_kept: pixels of the part at hand (one forward pass of one worker), all labelled ones if they are fewer.
        class_weights: K factors, one per class; they do not change what is kept.
    """
    entropy = pixel_entropy(logits, mask)
    labelled = mask != IGNORE
    p = torch.exp(-entropy.detach()).where(labelled, torch.inf)
    hardest = p.flatten().topk(min(min_kept, p.numel()), largest=False, sorted=False).values.amax()
    kept = labelled & ((p < threshold) | (p <= hardest))
    if class_weights is not None:
        weights = constants(tuple(class_weights), logits.shape[1], entropy.dtype, entropy.device)
        entropy = entropy * weights[mask.where(labelled, 0).long()]
    return (entropy * kept).sum() / kept.sum().clamp(min=1)


def dice(logits: Tensor, mask: Tensor, *, smooth: float = 1.0) -> Tensor:
    """1 − the soft Dice coefficient (V-Net: Milletari et al., 3DV 2016, arXiv:1606.04797), mean over classes present.

    Per class, over all labelled pixels of the part: (2 Σ p·y + smooth) / (Σ p² + Σ y² + smooth).

    Args:
        logits, mask: see `cross_entropy`.
        smooth: pixels added above and below; 0 in the paper, above 0 here.
    """
    p = single(logits).softmax(1) * (mask != IGNORE).unsqueeze(1)
    y = (mask.unsqueeze(1) == torch.arange(p.shape[1], device=p.device).view(-1, 1, 1)).to(p.dtype)
    pixels = y.sum((0, 2, 3))
    score = (2 * (p * y).sum((0, 2, 3)) + smooth) / ((p * p).sum((0, 2, 3)) + pixels + smooth)
    present = pixels > 0
    return ((1 - score) * present).sum() / present.sum().clamp(min=1)


def lovasz_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Lovász-softmax, the mean over the classes present (Berman et al., CVPR 2018, arXiv:1705.08790).

    All pixels of the part count as one image, the default of the public code.

    Args:
        logits, mask: see `cross_entropy`.
    """
    p = single(logits).softmax(1).transpose(0, 1).flatten(1)  # (K, N)
    truth, labelled = mask.flatten(), mask.flatten() != IGNORE
    losses, present = [], []
    # Class by class: sorted all at once, K maps of 64-bit indices would be held.
    for k, q in enumerate(p):
        y = truth == k
        error = torch.where(y, 1 - q, q)
        losses.append((error * lovasz_gradient(error.detach(), y, labelled)).sum())
        present.append(y.any())
    return torch.stack(losses).sum() / torch.stack(present).sum().clamp(min=1)


@torch.no_grad()
def lovasz_gradient(error: Tensor, y: Tensor, labelled: Tensor) -> Tensor:
    """What the Lovász extension multiplies each pixel's error by, in the order of the pixels; all 0 without y.

    The Jaccard loss 1 − I/U after each pixel minus that before it, written without cancellation: 1/U where y is
    true, I/(U(U − 1)) elsewhere.

    Shape: (N,), (N,), (N,) -> (N,).
    """
    # Ignored pixels come last: all of y is found by then, I is 0, and so is what they are multiplied by.
    order = error.masked_fill(~labelled, -1).argsort(descending=True)
    y = y[order]
    total, found = y.sum(), y.cumsum(0)
    intersection = (total - found).to(error.dtype)
    union = (total + torch.arange(1, len(y) + 1, device=y.device) - found).to(error.dtype)
    step = torch.where(y, 1 / union.clamp(min=1), intersection / (union * (union - 1)).clamp(min=1))
    return torch.empty_like(error).scatter_(0, order, step)


def boundary(logits: Tensor, mask: Tensor, *, width: int = 5, factor: float = 2.0) -> Tensor:
    """Cross entropy with heavier pixels along label changes; ours, a hard form of U-Net's weight map.

    Weight `factor` where the square of `width` pixels to each side holds a labelled pixel of another class, 1
    elsewhere; unlabelled pixels make no boundary. The mean is over the number of labelled pixels, as in
    `cross_entropy`. U-Net (Ronneberger et al., MICCAI 2015, arXiv:1505.04597, Eq. 2) lets the weight decay with the
    distance to borders between objects; the public code of Gated-SCNN (Takikawa et al., ICCV 2019,
    arXiv:1907.05740) adds the cross entropy of pixels on predicted boundaries.

    Args:
        logits, mask: see `cross_entropy`.
        width: reach of a boundary, in pixels of the mask.
        factor: weight of its pixels.
    """
    weight = 1 + (factor - 1) * near_boundary(mask, width)
    return mean_of_labelled(pixel_entropy(logits, mask) * weight, mask)


def near_boundary(mask: Tensor, width: int) -> Tensor:
    """Whether a labelled pixel has one of another class within `width` rows and columns: (B, H, W) -> bool alike."""
    labelled = mask != IGNORE
    label = mask.float()
    # Highest and lowest label of the square, rows and columns apart; unlabelled pixels can be neither.
    extremes = torch.stack([label.where(labelled, -torch.inf), (-label).where(labelled, -torch.inf)], 1)
    extremes = F.max_pool2d(extremes, (2 * width + 1, 1), 1, (width, 0))
    high, minus_low = F.max_pool2d(extremes, (1, 2 * width + 1), 1, (0, width)).unbind(1)
    return labelled & (high != -minus_low)


def se(presence: Tensor, mask: Tensor) -> Tensor:
    """SE-loss of EncNet (Zhang et al., CVPR 2018, arXiv:1803.08904): which classes does the crop hold?

    Binary cross entropy, the mean over classes and images; an image without labels counts 0.

    Args:
        presence: logits, (B, K).
        mask: see `cross_entropy`.
    """
    pixels = class_pixels(mask, presence.shape[1])
    target = (pixels > 0).to(torch.promote_types(presence.dtype, torch.float32))
    loss = F.binary_cross_entropy_with_logits(single(presence), target, reduction="none").mean(1)
    return (loss * (pixels.sum(1) > 0)).mean()


def cp(class_prior: Tensor, mask: Tensor, *, subtract_least: bool = False) -> Tensor:
    """CP-loss of CTNet (Li et al., TPAMI 2022, arXiv:2104.09805): the classes' shares of the crop's labelled pixels.

    Binary cross entropy between predicted and true shares, the mean over classes and images; an image
    without labels counts 0. Its least value is not 0 but the entropy of the target, Σ −t log t − (1 − t) log(1 − t)
    over K: report it relative to that. The paper's ω_n, "weight of the batch", is not in its code, nor here.

    Args:
        class_prior: probabilities, (B, K): after the softmax over the classes.
        mask: see `cross_entropy`.
        subtract_least: take the pixels of the least frequent class from those of each before the shares, as the public
            code does, which scales them to 0..1 in between. The paper's shares are plain; both are the same where a
            class is absent. An image whose classes all have as many pixels, where the code divides 0 by 0, counts by
            its plain shares.
    """
    pixels = class_pixels(mask, class_prior.shape[1])
    if subtract_least:
        above = pixels - pixels.amin(1, keepdim=True)
        pixels = above.where(above.sum(1, keepdim=True) > 0, pixels)
    total = pixels.sum(1, keepdim=True)
    p = single(class_prior)
    target = (pixels / total.clamp(min=1)).to(p.dtype)
    # 1 − p is clamped itself: in float32 the number 1 − TINY is 1, and its complement's logarithm infinite.
    loss = -(target * p.clamp(min=TINY).log() + (1 - target) * (1 - p).clamp(min=TINY).log())
    return (loss.mean(1) * (total.squeeze(1) > 0)).mean()


def mean_of_labelled(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over the number of labelled pixels, or 0."""
    return values.sum() / (mask != IGNORE).sum().clamp(min=1)


def class_pixels(mask: Tensor, num_classes: int) -> Tensor:
    """Labelled pixels of each class in each image: (B, H, W) -> float32 (B, K), whole numbers."""
    bins = num_classes + 1  # the last takes the unlabelled
    index = mask.long().where(mask != IGNORE, num_classes).flatten(1)
    index = (index + bins * torch.arange(len(mask), device=mask.device).unsqueeze(1)).flatten()
    # In one dimension, where scattering has a deterministic form; bincount would wait for the device.
    counts = torch.zeros(bins * len(mask), device=mask.device)
    counts.scatter_add_(0, index, torch.ones_like(index, dtype=counts.dtype))
    return counts.view(-1, bins)[:, :num_classes]
