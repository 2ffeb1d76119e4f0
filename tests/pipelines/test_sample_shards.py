"""Which parts of the bundled sample are drawn: those that stages name."""

import pytest

from datasets import shapes, task_sample
from datasets.shards import Shards
from pipelines.shards.sample import sample_shards

SMALL = {"coco": 6, "coco_val": 4, "train": 3, "aug": 5, "val": 3}
SMALL_TASKS = {"train": 2, "val": 2, "size": (40, 56), "class_train": 6, "class_val": 6, "class_size": (24, 32)}


@pytest.fixture
def small(monkeypatch):
    """The sample with a few rows."""
    whole, tasks = shapes.write_sample, task_sample.write_task_sample
    monkeypatch.setattr(shapes, "write_sample", lambda root: whole(root, **SMALL))
    monkeypatch.setattr(task_sample, "write_task_sample", lambda root: tasks(root, **SMALL_TASKS))


def made(folder):
    return sorted(f"{path.parent.parent.name}/{path.parent.name}" for path in folder.glob("*/*/manifest.json"))


MASKS = ["coco_voc/train", "coco_voc/val", "voc12/train", "voc12/trainval", "voc12/val", "voc12_aug/train"]


def test_a_task_has_its_own_part_below_the_same_root(small, tmp_path, capsys):
    root = sample_shards(tmp_path, ["coco_panoptic/train", "coco_panoptic/val"])
    assert made(root) == ["coco_panoptic/train", "coco_panoptic/val"]
    assert len(Shards(str(root / "coco_panoptic/train"))) == 2
    assert "coco_panoptic/val: 2 rows" in capsys.readouterr().out
    again = sample_shards(tmp_path, ["classes/train", "coco_instances/train"])
    assert again == root
    assert made(root) == [f"{name}/{split}" for name in ("classes", "coco_instances", "coco_panoptic")
                          for split in ("train", "val")]  # fmt: skip
    assert "coco_panoptic" not in capsys.readouterr().out
    sample_shards(tmp_path, ["coco_panoptic/train"])
    assert capsys.readouterr().out == ""


def test_segmentation_has_all_of_its_own_and_nothing_of_the_others(small, tmp_path):
    assert made(sample_shards(tmp_path / "a")) == MASKS
    assert made(sample_shards(tmp_path / "b", ["voc12/train"])) == MASKS
