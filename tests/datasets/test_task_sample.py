"""The bundled sample of the other tasks."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as rle_api

from datasets.readers.coco_categories import THINGS
from datasets.sample import DataError
from datasets.shards import Shards, verify
from datasets.task_sample import KINDS, classes, write_task_sample

SMALL = {"train": 3, "val": 2, "size": (40, 48), "class_train": 6, "class_val": 6, "class_size": (24, 32)}


def decoded(shards: Shards, row: int) -> list[tuple[str, bool, np.ndarray]]:
    size = shards.sizes[row].tolist()
    return [(shards.manifest.classes[s.number], s.crowd, rle_api.decode({"size": size, "counts": s.rle}).astype(bool))
            for s in shards.segments(row)]  # fmt: skip


def test_one_seed_gives_the_same_bytes_and_another_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_task_sample(tmp_path / name, 1, **SMALL)
    a, b = ({p.relative_to(root): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()}
            for root in (tmp_path / "a", tmp_path / "b"))  # fmt: skip
    assert a == b
    assert len(a) == 1 + 4 + 2 * 5 + 12  # marker, annotations, scenes and their PNGs, images of classes
    write_task_sample(tmp_path / "a", 1, **SMALL)
    with pytest.raises(DataError, match="name another folder"):
        write_task_sample(tmp_path / "a", 2, **SMALL)


@pytest.mark.parametrize("name", ["coco_instances", "coco_panoptic", "classes"])
def test_splits_are_whole_and_share_no_image(task_shards: Path, name: str) -> None:
    train, val = (str(task_shards / name / split) for split in ("train", "val"))
    assert verify(train) == verify(val) == []
    assert len(set(Shards(train).sha256 + Shards(val).sha256)) == len(Shards(train)) + len(Shards(val))


def test_instances_and_panoptic_things_are_the_same_regions(task_shards: Path) -> None:
    instances, panoptic = (Shards(str(task_shards / name / "train")) for name in ("coco_instances", "coco_panoptic"))
    assert instances.sha256 == panoptic.sha256
    seen = set()
    for row in range(len(instances)):
        objects = decoded(instances, row)
        things = [entry for entry in decoded(panoptic, row) if entry[0] in THINGS]
        for (name, crowd, mask), (other, group, region) in zip(objects, things, strict=True):
            assert (name, crowd) == (other, group)
            np.testing.assert_array_equal(mask, region)
        seen |= {name for name, *_ in objects}
        assert sum(mask for *_, mask in decoded(panoptic, row)).max() == 1  # no pixel has two
    assert seen == set(KINDS)
    assert any(crowd for row in range(len(instances)) for _, crowd, _ in decoded(instances, row))


def test_every_panoptic_image_has_two_kinds_of_stuff_and_few_pixels_of_none(task_shards: Path) -> None:
    shards = Shards(str(task_shards / "coco_panoptic/val"))
    for row in range(len(shards)):
        regions = decoded(shards, row)
        assert sum(name not in THINGS for name, *_ in regions) == 2
        for segment, (*_, mask) in zip(shards.segments(row), regions, strict=True):
            assert segment.box == tuple(rle_api.toBbox(rle_api.encode(np.asfortranarray(mask, np.uint8))))
        assert 0 < (shards.sample(row)[1] == 255).mean() < 0.1


def test_a_class_is_one_segment_that_is_the_whole_image(task_shards: Path) -> None:
    shards = Shards(str(task_shards / "classes/val"))
    numbers = []
    for row, (height, width) in enumerate(shards.sizes.tolist()):
        (segment,) = shards.segments(row)
        assert segment.box == (0, 0, width, height)
        assert rle_api.area({"size": [height, width], "counts": segment.rle}) == height * width
        numbers.append(segment.number)
    assert sorted(numbers) == list(range(len(KINDS)))
    assert classes(task_shards).classes == tuple(KINDS)
    assert not shards.manifest.labelled
