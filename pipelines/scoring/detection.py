"""What a model finds in the rows of a split, gathered over the workers, and COCO's average precision of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from pycocotools import mask as rle_api
from torch import Tensor

from datasets.shards import Shards
from pipelines.feed.batch import Batch
from pipelines.scoring.average_precision import Detections, detection_scores, from_bytes, to_bytes
from pipelines.scoring.scored import Scored
from segmodels.tasks.masks import paste


class DetectionTally:
    """What one worker found in its rows of a split.

    Args:
        shards: of a benchmark with objects.
    """

    def __init__(self, shards: Shards) -> None:
        self.shards = shards
        self.found: list[Detections] = []

    def add(self, outputs: Sequence[Mapping[str, Tensor]], batch: Batch, rows: Sequence[int]) -> None:
        """Note what a model found in a batch.

        Args:
            outputs: of each image, as of `Detector` (`segmodels/tasks/detection.py`).
            batch: whose targets have `size`, height and width of the image in its canvas.
            rows: of the batch's images.
        """
        for output, target, row in zip(outputs, batch.target, rows, strict=True):
            self.found.append(restored(output, pair(target["size"]), pair(self.shards.sizes[row]), row))

    def sent(self) -> bytes:
        """What was found, to be sent to the others."""
        return to_bytes(self.found)

    def scored(self, parts: Sequence[bytes]) -> Scored:
        """The scores of what all workers sent, see `detection_scores`."""
        return detection_scores((one for part in parts for one in from_bytes(part)), self.shards)


def restored(output: Mapping[str, Tensor], view: tuple[int, int], size: tuple[int, int], row: int) -> Detections:
    """A model's detections in pixels of the image as it is stored; what lies in the padding alone is left out.

    Args:
        output: boxes (n, 4) in pixels of the view, scores (n,), labels (n,), masks (n, m, m): probabilities in boxes.
        view: height and width of the image in the view, pixels.
        size: of the image as it is stored, pixels.
        row: of the image.
    """
    found = {key: output[key].detach().cpu() for key in ("boxes", "scores", "labels", "masks")}
    boxes = found["boxes"].float() * torch.tensor([size[1] / view[1], size[0] / view[0]] * 2)
    cut = torch.minimum(boxes.clamp(min=0), torch.tensor([size[1], size[0]] * 2))
    kept = (cut[:, 2:] > cut[:, :2]).all(dim=1)
    masks = (paste(m[None].float(), b[None], size)[0] for m, b in zip(found["masks"][kept], boxes[kept], strict=True))
    return Detections(
        row,
        cut[kept].numpy(),
        found["scores"][kept].float().numpy(),
        found["labels"][kept].numpy(),
        tuple(rle_api.encode(np.asfortranarray(mask.numpy(), np.uint8))["counts"] for mask in masks),
    )


def pair(numbers: Tensor | np.ndarray) -> tuple[int, int]:
    """Height and width."""
    height, width = numbers.tolist()
    return height, width
