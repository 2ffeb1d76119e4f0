"""Class weights for a loss, from what a manifest counts."""

import math
from collections.abc import Callable
from statistics import median

from datasets.manifest import Manifest

UNSEEN = 1.0
"""The weight of a class that no pixel has; its value changes nothing."""


def median_frequency(manifest: Manifest) -> list[float]:
    """Weights of the K classes by median frequency balancing (Eigen and Fergus, ICCV 2015, arXiv:1411.4734).

    median(f) / f_k, where f_k = pixels of class k / labelled pixels of the images that hold k.
    """
    pixels = manifest.histogram[:-1]
    shares = [n / around if n else None for n, around in zip(pixels, manifest.around, strict=True)]
    middle = median([f for f in shares if f is not None] or [1.0])
    return [UNSEEN if f is None else middle / f for f in shares]


def enet(manifest: Manifest) -> list[float]:
    """Weights of the K classes as in ENet (Paszke et al., 2016, arXiv:1606.02147).

    1 / ln(1.02 + p_k), where p_k = pixels of class k / labelled pixels of the split.
    """
    pixels = manifest.histogram[:-1]
    total = max(1, sum(pixels))
    return [1 / math.log(1.02 + n / total) if n else UNSEEN for n in pixels]


WEIGHTS: dict[str, tuple[str, Callable[[Manifest], list[float]]]] = {
    "median frequency": (
        "median(f) / f_k, f_k = pixels of k / labelled pixels of the images that hold k (Eigen & Fergus 2015)",
        median_frequency,
    ),
    "ENet": ("1 / ln(1.02 + p_k), p_k = share of k among the labelled pixels (Paszke et al. 2016)", enet),
}
"""Name -> formula, function."""
