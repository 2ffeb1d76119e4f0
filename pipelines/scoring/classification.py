"""What is counted of a classifier on a split, and its scores: top-1, top-5, and the top-1 of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.shards import Shards
from pipelines.scoring.scored import Scored, check_rows

TOP = 5


@dataclass(frozen=True)
class ClassCounts:
    """What was counted of some rows.

    Attributes:
        rows: their numbers, int64 (n,), in the order in which they came.
        confusion: images by class and by the class that was predicted, int64 (K, K).
        top5: images whose class is among the five most likely ones.
    """

    rows: np.ndarray
    confusion: np.ndarray
    top5: int


def counted(logits: Tensor, labels: Tensor, rows: Sequence[int]) -> ClassCounts:
    """Count a batch.

    Of classes that are equally likely the first comes first. Logits that are not numbers are no prediction: such an
    image is wrong, and counts as of the class that follows its own.

    Args:
        logits: (B, K).
        labels: int64 (B,).
        rows: numbers of the images' rows in the split.
    """
    number = logits.shape[1]
    own = logits.gather(1, labels[:, None])
    finite = own.squeeze(1).isfinite() & ~logits.isnan().any(1)
    likeliest = torch.where(finite, logits.argmax(1), (labels + 1) % number)
    before = torch.arange(number, device=labels.device) < labels[:, None]
    ahead = (logits > own) | ((logits == own) & before)
    among = finite & (ahead.sum(1) < TOP)
    pairs = torch.bincount(labels * number + likeliest, minlength=number * number)
    return ClassCounts(np.asarray(rows, np.int64), pairs.reshape(number, number).cpu().numpy(), int(among.sum()))


def together(parts: Sequence[ClassCounts]) -> ClassCounts:
    """The counts of several parts of a split."""
    return ClassCounts(
        np.concatenate([part.rows for part in parts]),
        np.sum([part.confusion for part in parts], axis=0),
        sum(part.top5 for part in parts),
    )


def scores_of(counts: ClassCounts, rows: int, uri: str) -> Scored:
    """The scores of a whole split; top-5 only where there are more than five classes.

    Args:
        counts: of all its rows.
        rows: how many it has.
        uri: of its shards, for the message.

    Raises:
        RuntimeError: a row is missing, or is there twice.
    """
    check_rows(counts.rows.tolist(), rows, uri)
    right, images = counts.confusion.diagonal(), counts.confusion.sum(1)
    top1 = float(right.sum() / rows)
    named = {"top-1": top1} | ({"top-5": counts.top5 / rows} if len(right) > TOP else {})
    classes = [float(r / n) if n else None for r, n in zip(right, images, strict=True)]
    return Scored(top1, named, classes, rows, confusion=counts.confusion)


class ClassTally:
    """What one worker counts of a split; see `pipelines.scoring.task`.

    Args:
        shards: of the split.
    """

    def __init__(self, shards: Shards) -> None:
        number = len(shards.manifest.classes)
        self.shards = shards
        self.counts = ClassCounts(np.zeros(0, np.int64), np.zeros((number, number), np.int64), 0)

    def add(self, outputs: Tensor, batch: Any, rows: Sequence[int]) -> None:
        """Count what a classifier gives for a batch of these rows, whose `target` are their classes."""
        self.counts = together([self.counts, counted(outputs, batch.target, rows)])

    def sent(self) -> ClassCounts:
        """What was counted, to be sent to the others."""
        return self.counts

    def scored(self, parts: Sequence[ClassCounts]) -> Scored:
        """The scores of what all workers sent.

        Raises:
            RuntimeError: a row is missing, or is there twice.
        """
        return scores_of(together(parts), len(self.shards), self.shards.uri)
