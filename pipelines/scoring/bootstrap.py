"""How sure a score is: intervals by the bootstrap over images (Efron, Annals of Statistics 7(1), 1979).

A split's images are drawn anew with replacement, as many as there are, `DRAWS` times; each draw's counts are summed
and scored as the split's own are. The interval holds 95 % of the draws' scores, cut off where their bias and skewness
ask for it: BCa (Efron, JASA 82(397), 1987; Efron and Tibshirani, 1993, Eq. 14.10), since draws of a class that few
images hold lie lower than its score. It says how far a score would move with other images of the same kind; it knows
nothing of other seeds of the training. A class in neither truth nor prediction of a draw is left out of that draw's
mean, as everywhere; the number of images that hold a class is shown beside its interval.

For two models the same draws serve both, so that what an image does to both cancels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.special import ndtr, ndtri

DRAWS = 1000
CONFIDENCE = 0.95
SEED = 0
AT_ONCE = 2_000_000  # entries of a block of draws' weights, 16 MB


@dataclass(frozen=True)
class ClassCounts:
    """Pixels of each image and class, int64 (N, K) each: all that IoU, F1, precision and recall are made of.

    Attributes:
        hits: in truth and prediction.
        truth: in the truth.
        predicted: in the prediction, among the labelled pixels.
    """

    hits: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray

    @classmethod
    def of(cls, entries: np.ndarray, rows: int, classes: int) -> Self:
        """From confusion counts of images.

        Args:
            entries: int64 (n, 3): image, cell (K · truth + prediction), pixels.
            rows: images, those without an entry too.
            classes: K.
        """
        found = cls(*(np.zeros((rows, classes), np.int64) for _ in range(3)))
        image, cell, pixels = entries.T
        truth, predicted = np.divmod(cell, classes)
        np.add.at(found.truth, (image, truth), pixels)
        np.add.at(found.predicted, (image, predicted), pixels)
        right = truth == predicted
        np.add.at(found.hits, (image[right], truth[right]), pixels[right])
        return found

    @property
    def rows(self) -> int:
        """Images."""
        return len(self.hits)

    def iou(self) -> np.ndarray:
        """IoU of each image and class, float64 (N, K); nan for a class in neither truth nor prediction of the image."""
        return quotient(self.hits, self.truth + self.predicted - self.hits)


@dataclass(frozen=True)
class Bounds:
    """A score and its interval, 0 to 1 (of a difference −1 to 1); nan where there is none."""

    value: float
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether 0 is in it, or there is no interval that could say otherwise."""
        return not (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Certainty:
    """Intervals of a split's mIoU, of each class's IoU, and the number of images whose truth has the class."""

    miou: Bounds
    iou: list[Bounds]
    images: list[int]


def certainty(counts: ClassCounts, draws: int = DRAWS, seed: int = SEED) -> Certainty:
    """Bootstrap intervals of mIoU and IoU of a split.

    Args:
        counts: of the split's images, in an order that is always the same: the draws name places in it.
        draws: how often the images are drawn anew.
        seed: of the draws.
    """
    value, drawn, without = iou_of_all(counts), all_draws(draws, seed, counts), iou_without(counts)
    miou = bounds(mean(value), mean(drawn), mean(without))
    return Certainty(miou, each(value, drawn, without), images_of(counts))


def difference(a: ClassCounts, b: ClassCounts, draws: int = DRAWS, seed: int = SEED) -> Certainty:
    """As `certainty`, of b's scores less a's, on the same images in the same order, drawn alike for both.

    Raises:
        ValueError: the two do not have the same truth.
    """
    if a.truth.shape != b.truth.shape or not np.array_equal(a.truth, b.truth):
        raise ValueError("counts of unlike truth; allowed: those of the same images, in the same order")
    pairs = [
        (iou_of_all(b), iou_of_all(a)),
        (all_draws(draws, seed, b), all_draws(draws, seed, a)),
        (iou_without(b), iou_without(a)),
    ]
    miou = bounds(*(mean(after) - mean(before) for after, before in pairs))
    return Certainty(miou, each(*(after - before for after, before in pairs)), images_of(a))


def images_of(counts: ClassCounts) -> list[int]:
    """How many images hold each class in their truth."""
    return (counts.truth > 0).sum(0).tolist()


def all_draws(draws: int, seed: int, counts: ClassCounts) -> np.ndarray:
    """IoU of each class in each draw, float64 (draws, K)."""
    return np.concatenate([iou_of_sums(counts, weights) for weights in resamples(counts.rows, draws, seed)])


def resamples(rows: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """How often each draw holds each row: blocks float64 (draws of the block, rows), each line's sum is `rows`."""
    generator, block = np.random.default_rng(seed), max(1, AT_ONCE // max(rows, 1))
    for first in range(0, draws, block):
        lines = min(block, draws - first)
        places = generator.integers(rows, size=(lines, rows)) + rows * np.arange(lines)[:, None]
        yield np.bincount(places.ravel(), minlength=lines * rows).reshape(lines, rows).astype(np.float64)


def iou_of_all(counts: ClassCounts) -> np.ndarray:
    """IoU of each class on the whole split, float64 (1, K)."""
    return iou_of_sums(counts, np.ones((1, counts.rows)))


def iou_without(counts: ClassCounts) -> np.ndarray:
    """IoU of each class on all images but one, for each image, float64 (N, K): the jackknife."""
    hits, truth, predicted = (part.sum(0) - part for part in (counts.hits, counts.truth, counts.predicted))
    return quotient(hits, truth + predicted - hits)


def iou_of_sums(counts: ClassCounts, weights: np.ndarray) -> np.ndarray:
    """IoU of each class from the images' weighted sums, float64 (lines, K); exact, as long as sums are below 2^53."""
    hits, truth, predicted = (weights @ part for part in (counts.hits, counts.truth, counts.predicted))
    return quotient(hits, truth + predicted - hits)


def quotient(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, nan where whole is 0."""
    with np.errstate(invalid="ignore"):
        return part / np.asarray(whole, np.float64)


def mean(iou: np.ndarray) -> np.ndarray:
    """Mean over the classes that have an IoU, of each line."""
    known = ~np.isnan(iou)
    return quotient(np.where(known, iou, 0.0).sum(1), known.sum(1))


def each(value: np.ndarray, drawn: np.ndarray, without: np.ndarray) -> list[Bounds]:
    """Bounds of each class: value (1, K), drawn (draws, K), without (N, K)."""
    return [bounds(value[:, k], drawn[:, k], without[:, k]) for k in range(value.shape[1])]


def bounds(value: np.ndarray, drawn: np.ndarray, without: np.ndarray) -> Bounds:
    """A score and its interval, which holds it; draws in which there is no such score say nothing.

    Args:
        value: the score, (1).
        drawn: of each draw.
        without: of all images but one, for each image.
    """
    known, score = drawn[~np.isnan(drawn)], float(value[0])
    if np.isnan(score) or not known.size:
        return Bounds(score, float("nan"), float("nan"))
    below = np.mean(known < score) + np.mean(known == score) / 2
    edge = 0.5 / known.size  # a score beyond all draws is taken for half a draw from their end
    bias, skew = ndtri(np.clip(below, edge, 1 - edge)), acceleration(without[~np.isnan(without)])
    tails = bias + ndtri([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    low, high = np.quantile(known, ndtr(bias + tails / (1 - skew * tails)))
    return Bounds(score, min(float(low), score), max(float(high), score))


def acceleration(without: np.ndarray) -> float:
    """How the spread of a score moves with the score, from the jackknife (Eq. 14.15); within ± 1/6."""
    far = without.mean() - without if without.size else np.zeros(1)
    squares = (far**2).sum()
    return float((far**3).sum() / (6 * squares**1.5)) if squares > 0 else 0.0
