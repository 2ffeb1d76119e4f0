"""The view of the panoptic task, and which classes are things and stuff."""

from pathlib import Path

import numpy as np
import pytest

from datasets.readers.coco_instances import CLASSES as INSTANCES
from datasets.readers.coco_panoptic import CLASSES as PANOPTIC
from datasets.sample import DataError
from datasets.shards import Shards
from datasets.tasks.detection import DetectionView
from datasets.tasks.panoptic import PanopticView
from datasets.tasks.things import label_table, names_of, semantic_table, stuff, things

VIEW = PanopticView(short=(48, 72), long=110)


@pytest.fixture(scope="module")
def panoptic(task_shards: Path) -> Shards:
    return Shards(str(task_shards / "coco_panoptic/train"))


def test_things_are_those_of_detection(task_shards: Path, panoptic: Shards) -> None:
    instances = Shards(str(task_shards / "coco_instances/train"))
    canvas = VIEW.canvas(panoptic.sizes)
    for row in range(4):
        image, found = VIEW.read(panoptic, row, 5, canvas)
        other, objects = DetectionView((48, 72), 110).read(instances, row, 5, canvas)
        np.testing.assert_array_equal(image, other)
        np.testing.assert_array_equal(found.boxes, objects.boxes)
        np.testing.assert_array_equal(found.labels, objects.labels)
        assert found.masks == objects.masks


def test_semantic_and_masks_share_every_pixel(panoptic: Shards) -> None:
    canvas = VIEW.canvas(panoptic.sizes)
    samples = [VIEW.read(panoptic, row, seed, canvas) for row in range(6) for seed in range(3)]
    images, targets = VIEW.unpack(VIEW.pack(samples))
    kinds = len(stuff(panoptic.manifest.classes))
    for (image, objects), target, got in zip(samples, targets, images, strict=True):
        semantic = target["semantic"]
        np.testing.assert_array_equal(semantic, objects.semantic)
        np.testing.assert_array_equal(got, image)
        height, width = target["size"]
        assert (semantic[height:] == 255).all()
        assert (semantic[:, width:] == 255).all()
        assert (semantic[target["masks"].any(0)] == kinds).all()
        assert set(np.unique(semantic)) <= {*range(kinds + 1), 255}
    shown = np.unique(np.stack([target["semantic"] for target in targets]))
    assert len(shown) > 4  # at least three kinds of stuff, things, void


def test_crowds_are_things_in_the_semantic_layer_and_no_objects(panoptic: Shards) -> None:
    row = next(r for r in range(len(panoptic)) if any(s.crowd for s in panoptic.segments(r)))
    canvas = VIEW.canvas(panoptic.sizes)
    _, objects = VIEW.read(panoptic, row, 0, canvas)
    _, (target,) = VIEW.unpack(VIEW.pack([VIEW.read(panoptic, row, 0, canvas)]))
    alone = (objects.semantic == len(stuff(panoptic.manifest.classes))) & ~target["masks"].any(0).astype(bool)
    assert alone.sum() > 10


def test_classes_of_coco() -> None:
    assert things(INSTANCES) == tuple(range(1, 81))
    assert things(PANOPTIC) == tuple(range(80))
    assert stuff(PANOPTIC) == tuple(range(80, 133))
    assert label_table(INSTANCES)[[0, 1, 80]].tolist() == [-1, 0, 79]
    assert semantic_table(PANOPTIC)[[0, 79, 80, 132, 133, 255]].tolist() == [53, 53, 0, 52, 255, 255]
    assert names_of(PANOPTIC, things(PANOPTIC)) == INSTANCES[1:]


def test_other_classes_are_refused() -> None:
    with pytest.raises(DataError, match=r"2 of 3 classes are neither.*tram, lorry"):
        things(("tram", "car", "lorry"))
    with pytest.raises(DataError, match="no class is stuff"):
        stuff(INSTANCES)
