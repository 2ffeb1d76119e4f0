"""The door `predict` with models of the other tasks."""

import csv
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from predicted import picture, write_picture
from pycocotools import mask as rle_api
from pycocotools.coco import COCO
from seen import write_task_checkpoint

from datasets.sample import decode_image
from datasets.tasks.things import category_ids
from pipelines import predict
from pipelines.base.errors import InputError, RunFailed
from pipelines.feed.plan import open_shards
from pipelines.runs.checkpoint import Checkpoint
from pipelines.scoring.average_precision import quiet
from pipelines.scoring.evaluation import load_model
from pipelines.scoring.one_image import MERGED, predict_one
from pipelines.serving.task_tables import image_ids


@pytest.fixture
def door(tmp_path, monkeypatch, capsys):
    """Predicts into tmp_path/out, and gives what was shown."""

    def open_door(checkpoint, *words):
        monkeypatch.setattr(sys, "argv", ["predict", str(checkpoint), *map(str, words), "--out", str(tmp_path / "out")])
        predict.main()
        return capsys.readouterr().out

    return open_door


@pytest.fixture(scope="module")
def best(task_shards, tmp_path_factory):
    """Task -> checkpoint."""
    folder = tmp_path_factory.mktemp("best")
    tasks = ("classification", "detection", "panoptic")
    return {task: write_task_checkpoint(folder / f"{task}.pt", task, task_shards) for task in tasks}


def found_in(path, image):
    checkpoint = Checkpoint.read(path)
    model = load_model(checkpoint.recipe, checkpoint, torch.device("cpu")).eval()
    return predict_one(model, checkpoint.recipe, checkpoint.classes, image), checkpoint.classes


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_classes_of_images_of_any_size_are_told_with_their_probabilities(door, best, tmp_path):
    write_picture(tmp_path / "in/wide.png", 0, (20, 300))
    write_picture(tmp_path / "in/deep/tall.png", 1, (90, 33))
    shown, out = door(best["classification"], tmp_path / "in"), tmp_path / "out"
    assert "2 image(s) predicted" in shown
    assert files(out) == ["classification.csv", "classification.json", "images/deep/tall.json", "images/wide.json",
                          "predict.json"]  # fmt: skip
    with (out / "classification.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    wanted, classes = found_in(best["classification"], picture(0, (20, 300)))
    mine = [row for row in rows if row["image"] == "wide"]
    assert [row["rank"] for row in mine] == ["1", "2", "3", "4", "5"]
    assert [int(row["number"]) for row in mine] == np.argsort(-wanted, kind="stable")[:5].tolist()
    assert [float(row["probability"]) for row in mine] == pytest.approx(sorted(wanted.tolist())[:-6:-1], rel=1e-5)
    assert all(row["class"] == classes[int(row["number"])] for row in mine)
    assert len(json.loads((out / "classification.json").read_text())["deep/tall"]) == 5


def test_detections_are_cocos_results_of_shards(door, best, task_shards, tmp_path):
    uri = task_shards / "coco_instances/val"
    door(best["detection"], uri)
    shards, out = open_shards(str(uri)), tmp_path / "out"
    assert len(list((out / "overlays").glob("*.jpg"))) == len(shards)
    entries = json.loads((out / "detection.json").read_text())
    found, classes = found_in(best["detection"], decode_image(shards.encoded(2)[0]))
    mine = [entry for entry in entries if entry["file_name"] == shards.ids[2]]
    assert len(mine) == len(found.scores) > 0
    order = np.argsort(-found.scores, kind="stable")
    for entry, i in zip(mine, order.tolist(), strict=True):
        x1, y1, x2, y2 = found.boxes[i].tolist()
        assert entry["bbox"] == [x1, y1, x2 - x1, y2 - y1]
        assert entry["score"] == pytest.approx(float(found.scores[i]))
        assert entry["category"] == classes[int(found.labels[i]) + 1]
        assert entry["category_id"] == category_ids(classes)[int(found.labels[i]) + 1]
        theirs = rle_api.decode(entry["segmentation"] | {"counts": entry["segmentation"]["counts"].encode()})
        assert (theirs == rle_api.decode({"size": shards.sizes[2].tolist(), "counts": found.masks[i]})).all()
    coco = COCO()  # what COCO's own tools make of it
    coco.dataset = {
        "images": [{"id": entry["image_id"]} for entry in entries],
        "annotations": [], "categories": [{"id": entry["category_id"]} for entry in entries],
    }  # fmt: skip
    with quiet():
        coco.createIndex()
        assert len(coco.loadRes(str(out / "detection.json")).anns) == len(entries)


def test_panoptic_pictures_have_the_pixels_and_classes_of_what_is_predicted(door, best, task_shards, tmp_path):
    uri = task_shards / "coco_panoptic/val"
    door(best["panoptic"], uri)
    shards, out = open_shards(str(uri)), tmp_path / "out"
    page = json.loads((out / "panoptic.json").read_text())
    found, classes = found_in(best["panoptic"], decode_image(shards.encoded(1)[0]))
    (note,) = [entry for entry in page["annotations"] if entry["file_name"] == f"{shards.ids[1]}.png"]
    with Image.open(out / "panoptic" / note["file_name"]) as image:
        ids = np.array(image).astype(int) @ [1, 256, 65536]
    assert (ids == found.pixels + 1).all()
    assert len(note["segments_info"]) > 1
    assert {info["id"] for info in note["segments_info"]} == set(np.unique(ids).tolist()) - {0}
    for info in note["segments_info"]:
        assert info["area"] == int((ids == info["id"]).sum())
        assert info["category"] == classes[found.numbers[info["id"] - 1]]
    assert [entry["id"] for entry in page["categories"]] == list(category_ids(classes))


def test_a_large_panoptic_picture_is_merged_smaller_and_is_as_large_as_its_image(best, monkeypatch):
    image = picture(0, (80, 128))
    whole, _ = found_in(best["panoptic"], image)
    monkeypatch.setattr("pipelines.scoring.one_image.MERGED", 80 * 128 // 4)
    small, _ = found_in(best["panoptic"], image)
    assert small.pixels.shape == whole.pixels.shape == (80, 128)
    assert (small.pixels[::2, ::2] == small.pixels[1::2, 1::2]).all()
    assert (whole.pixels[::2, ::2] != whole.pixels[1::2, 1::2]).any()
    assert MERGED == 1 << 22


def test_the_same_command_goes_on_and_a_damaged_image_is_told(door, best, tmp_path):
    for seed, name in enumerate("abc"):
        write_picture(tmp_path / f"in/{name}.png", seed)
    door(best["detection"], tmp_path / "in")
    first, out = (tmp_path / "out/detection.json").read_text(), tmp_path / "out"
    (out / "images/b.json").unlink()
    shown = door(best["detection"], tmp_path / "in")
    assert "2 image(s) are there already" in shown
    assert "1 image(s) predicted" in shown
    assert (out / "detection.json").read_text() == first
    (tmp_path / "in/bad.png").write_bytes(b"no picture")
    with pytest.raises(RunFailed, match=r"1 image\(s\).*left out.*\n  bad:"):
        door(best["detection"], tmp_path / "in")
    assert (out / "detection.json").read_text() == first
    with pytest.raises(InputError, match="another checkpoint and task"):
        door(best["panoptic"], tmp_path / "in")
    (out / "images/a.json").write_text("{")
    with pytest.raises(InputError, match=r"a\.json does not read; remove it"):
        door(best["detection"], tmp_path / "in/a.png")


def test_what_makes_no_sense_is_refused_before_anything_is_written(door, best, tmp_path):
    write_picture(tmp_path / "in/a.png", 0)
    (tmp_path / "in/film.mp4").write_bytes(b"film")
    with pytest.raises(InputError, match=r"task: detection, which predicts no masks: leave out --submission, --flip"):
        door(best["detection"], tmp_path / "in/a.png", "--submission", "voc12", "--flip")
    with pytest.raises(InputError, match=r"leave out --every"):
        door(best["classification"], tmp_path / "in/a.png", "--every", 2)
    with pytest.raises(InputError, match=r"film\.mp4: a video, which only models of task: segmentation take"):
        door(best["detection"], tmp_path / "in")
    assert not (tmp_path / "out").exists()


def test_ids_are_cocos_numbers_where_all_names_are_and_stay_unlike():
    assert image_ids(["000000000139", "000000000285"]) == [139, 285]
    assert image_ids(["000000000139", "street"]) == ["000000000139", "street"]
    assert image_ids(["01", "1"]) == ["01", "1"]
