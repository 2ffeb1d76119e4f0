"""What a model sees in the rows of a split as panoptic pictures, counted over the workers, and their quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from datasets.shards import Shards
from datasets.tasks.things import stuff, things
from pipelines.feed.batch import Batch
from pipelines.scoring.detection import pair
from pipelines.scoring.panoptic_quality import panoptic_counts, panoptic_scores
from pipelines.scoring.scored import Scored, check_rows
from segmodels.tasks.panoptic import MergeRule, merge


class PanopticTally:
    """What one worker counts of a split.

    Args:
        shards: of a benchmark with things and stuff.
        rule: when a detection and a region of stuff are part of a picture.
    """

    def __init__(self, shards: Shards, rule: MergeRule) -> None:
        self.shards, self.rule = shards, rule
        classes = shards.manifest.classes
        self.numbers = {True: things(classes), False: stuff(classes)}
        self.counts = np.zeros((len(classes), 4), np.int64)
        self.rows: list[int] = []

    def add(self, outputs: Sequence[Mapping[str, Tensor]], batch: Batch, rows: Sequence[int]) -> None:
        """Count what a model gives for a batch.

        Args:
            outputs: of each image, as of `PanopticFPN` (`segmodels/tasks/panoptic.py`).
            batch: whose targets have `size`, height and width of the image in its canvas.
            rows: of the batch's images.
        """
        canvas = pair(np.array(batch.image.shape[-2:]))
        for output, target, row in zip(outputs, batch.target, rows, strict=True):
            seen = merge(output, canvas, pair(target["size"]), pair(self.shards.sizes[row]), self.rule)
            kinds = zip(seen.things.tolist(), seen.classes.tolist(), strict=True)
            numbers = [self.numbers[thing][number] for thing, number in kinds]
            truth = self.shards.segments(row) or ()
            self.counts += panoptic_counts(seen.pixels.cpu().numpy(), numbers, truth, len(self.counts))
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
