"""What a model sees in the rows of a split as panoptic pictures, counted over the workers, and their quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from datasets.shards import Shards
from datasets.tasks.things import stuff, things
from pipelines.feed.batch import Batch
from pipelines.scoring.detection import pair
from pipelines.scoring.panoptic_quality import panoptic_counts, panoptic_scores
from pipelines.scoring.scored import Scored, check_rows
from segmodels.tasks.panoptic import MergeRule, merge


@dataclass(frozen=True)
class PanopticPicture:
    """A panoptic picture of an image.

    Args:
        pixels: int64 (H, W): the number of a pixel's segment, or -1 for void.
        numbers: the class of each segment, 0..K-1 of the split.
        scores: of each segment, 1 for stuff.
    """

    pixels: np.ndarray
    numbers: tuple[int, ...]
    scores: tuple[float, ...]


def picture_of(
    output: Mapping[str, Tensor],
    canvas: tuple[int, int],
    inside: tuple[int, int],
    size: tuple[int, int],
    rule: MergeRule,
    classes: tuple[str, ...],
) -> PanopticPicture:
    """What a model gives of an image, merged, with the split's classes.

    Args:
        output: of an image, as of `PanopticFPN` (`segmodels/tasks/panoptic.py`).
        canvas: height and width of what the model was given, pixels.
        inside: of the image in it.
        size: of the picture.
        rule: when a detection and a region of stuff are part of it.
        classes: K names.
    """
    seen = merge(output, canvas, inside, size, rule)
    of_class = {True: things(classes), False: stuff(classes)}
    kinds = zip(seen.things.tolist(), seen.classes.tolist(), strict=True)
    return PanopticPicture(
        seen.pixels.cpu().numpy(), tuple(of_class[thing][label] for thing, label in kinds), tuple(seen.scores.tolist())
    )


class PanopticTally:
    """What one worker counts of a split.

    Args:
        shards: of a benchmark with things and stuff.
        rule: when a detection and a region of stuff are part of a picture.
    """

    def __init__(self, shards: Shards, rule: MergeRule) -> None:
        self.shards, self.rule = shards, rule
        self.counts = np.zeros((len(shards.manifest.classes), 4), np.int64)
        self.rows: list[int] = []

    def add(self, outputs: Sequence[Mapping[str, Tensor]], batch: Batch, rows: Sequence[int]) -> None:
        """Count what a model gives for a batch.

        Args:
            outputs: of each image, as of `PanopticFPN` (`segmodels/tasks/panoptic.py`).
            batch: whose targets have `size`, height and width of the image in its canvas.
            rows: of the batch's images.
        """
        canvas, classes = pair(np.array(batch.image.shape[-2:])), self.shards.manifest.classes
        for output, target, row in zip(outputs, batch.target, rows, strict=True):
            inside, size = pair(target["size"]), pair(self.shards.sizes[row])
            seen = picture_of(output, canvas, inside, size, self.rule, classes)
            truth = self.shards.segments(row) or ()
            self.counts += panoptic_counts(seen.pixels, seen.numbers, truth, len(self.counts))
            self.rows.append(row)

    def sent(self) -> tuple[list[int], np.ndarray]:
        """The rows and their counts, to be sent to the others."""
        return self.rows, self.counts

    def scored(self, parts: Sequence[tuple[list[int], np.ndarray]]) -> Scored:
        """The scores of what all workers sent.

        Raises:
            RuntimeError: a row is missing, or is there twice.
            InputError: there is nothing to score.
        """
        check_rows((row for rows, _ in parts for row in rows), len(self.shards), self.shards.uri)
        return panoptic_scores(
            np.sum([counts for _, counts in parts], axis=0), self.shards.manifest.classes, len(self.shards)
        )
