"""From a model's outputs to scores: what is the truth scores 1, padding counts nothing, workers add up."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools import mask as rle_api

from datasets.shards import Shards
from datasets.tasks.detection import DetectionView
from datasets.tasks.panoptic import PanopticView
from datasets.tasks.things import stuff
from pipelines.scoring.detection import DetectionTally, restored
from pipelines.scoring.panoptic import PanopticTally
from segmodels.tasks.panoptic import MergeRule

RULE = MergeRule(thing_score=0.5, thing_overlap=0.5, stuff_area=20)


def batch_of(view, shards, rows):
    """What validation reads of some rows, with targets as tensors."""
    canvas = view.canvas(shards.sizes[rows])
    images, targets = view.unpack(view.pack([view.read(shards, row, 0, canvas) for row in rows]))
    tensors = [{k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in t.items()} for t in targets]
    return SimpleNamespace(image=torch.from_numpy(images).permute(0, 3, 1, 2), target=tensors)


def ideal(target):
    """What a model that knows the truth of a view would give: masks of 96x96 cells in their boxes."""
    masks, cells = [], (torch.arange(96) + 0.5) / 96
    for mask, (x1, y1, x2, y2) in zip(target["masks"], target["boxes"].tolist(), strict=True):
        y = (y1 + cells * (y2 - y1)).long().clamp(max=mask.shape[0] - 1)
        x = (x1 + cells * (x2 - x1)).long().clamp(max=mask.shape[1] - 1)
        masks.append(mask[y][:, x].float())
    count = len(target["labels"])
    found = {"boxes": target["boxes"], "labels": target["labels"], "scores": torch.full((count,), 0.9)}
    return found | {"masks": torch.stack(masks) if masks else torch.zeros(0, 96, 96)}


def tallied(tally, view, shards, rows, output):
    for first in range(0, len(rows), 3):
        some = rows[first : first + 3]
        batch = batch_of(view, shards, some)
        tally.add([output(target) for target in batch.target], batch, some)
    return tally


def test_what_knows_the_truth_detects_all(task_shards):
    shards = Shards(str(task_shards / "coco_instances/val"))
    view = DetectionView.of((96, 160), (1, 1), 0.5, train=False)
    parts = [tallied(DetectionTally(shards), view, shards, list(range(r, len(shards), 2)), ideal) for r in range(2)]
    scored = parts[0].scored([part.sent() for part in parts])
    assert scored == parts[1].scored([part.sent() for part in reversed(parts)])
    assert scored.named["box AP75"] == scored.named["mask AP75"] == 1.0
    assert scored.value > 0.9
    with pytest.raises(RuntimeError, match="missing"):
        parts[0].scored([parts[0].sent()])


def test_detections_return_to_the_image_as_it_is_stored(task_shards):
    """A box over the whole view and its padding ends at the image's edges; one in the padding is no detection."""
    found = {
        "boxes": torch.tensor([[0.0, 0, 96, 64], [60, 10, 90, 40], [10, 10, 30, 20]]),
        "scores": torch.tensor([0.9, 0.8, 0.7]),
        "labels": torch.tensor([3, 1, 2]),
        "masks": torch.ones(3, 28, 28),
    }
    back = restored(found, (40, 60), (20, 30), 7)
    assert back.row == 7
    assert back.labels.tolist() == [3, 2]
    np.testing.assert_array_equal(back.boxes, [[0, 0, 30, 20], [5, 5, 15, 10]])
    whole, part = (rle_api.decode({"size": [20, 30], "counts": counts}) for counts in back.masks)
    assert whole.all()
    assert part.sum() == part[5:10, 5:15].sum() == 50


def test_what_knows_the_truth_sees_all(task_shards):
    shards = Shards(str(task_shards / "coco_panoptic/val"))
    view = PanopticView.of((96, 160), (1, 1), 0.5, train=False)
    kinds = len(stuff(shards.manifest.classes))

    def seen(target):
        semantic = target["semantic"].long()
        logits = torch.zeros(kinds + 1, *semantic.shape)
        for number in semantic.unique().tolist():
            if number <= kinds:
                logits[number][semantic == number] = 9.0
        return ideal(target) | {"semantic": logits}

    def blind(target):
        """A model that takes everything for the first kind of stuff."""
        none = {key: value[:0] for key, value in ideal(target).items()}
        logits = torch.zeros(kinds + 1, *target["semantic"].shape)
        logits[0] = 1.0
        return none | {"semantic": logits}

    rows = [list(range(r, len(shards), 2)) for r in range(2)]
    parts = [tallied(PanopticTally(shards, RULE), view, shards, some, seen) for some in rows]
    scored = parts[0].scored([part.sent() for part in parts])
    assert scored.named["RQ"] == 1.0
    assert min(scored.named["SQ things"], scored.named["SQ stuff"]) > 0.9
    assert scored == tallied(PanopticTally(shards, RULE), view, shards, [*rows[1], *rows[0]], seen).scored(
        [parts[1].sent(), parts[0].sent()]
    )
    poor = tallied(PanopticTally(shards, RULE), view, shards, list(range(len(shards))), blind)
    assert poor.scored([poor.sent()]).value < 0.1
    with pytest.raises(RuntimeError, match="there twice"):
        poor.scored([poor.sent(), parts[0].sent()])
