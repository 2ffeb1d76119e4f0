"""What a validation draws of the other tasks."""

import types

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as rle_api
from seen import SPLITS, model_of, recipe_of

from datasets.sample import Segment, decode_image
from pipelines.feed.plan import open_shards
from pipelines.feed.validation import shown_rows
from pipelines.runs import mlflow_lines
from pipelines.runs.folder import StageFolder
from pipelines.runs.results import About
from pipelines.scoring.average_precision import Detections
from pipelines.scoring.detection import DetectionTally
from pipelines.scoring.one_image import predict_one
from pipelines.scoring.panoptic import PanopticPicture
from pipelines.scoring.task import validate_task
from pipelines.scoring.task_pictures import (
    MOST,
    RIGHT,
    WRONG,
    Drawn,
    cell,
    found_objects,
    middles,
    sheet,
    with_objects,
    with_segments,
)
from pipelines.training.task_overlays import draw_task_overlays

CLASSES, PALETTE = ("background", "cat", "dog"), ((0, 0, 0), (200, 0, 0), (0, 0, 200))


def rle_of(mask):
    return rle_api.encode(np.asfortranarray(mask, np.uint8))["counts"]


def block(size, top, left, height, width):
    mask = np.zeros(size, np.uint8)
    mask[top : top + height, left : left + width] = 1
    return mask


@pytest.mark.parametrize("task", SPLITS)
def test_a_validation_draws_the_same_rows_each_time(task, task_shards, tmp_path):
    uri = str(task_shards / SPLITS[task] / "val")
    shards, recipe = open_shards(uri), recipe_of(task)
    classes, palette = shards.manifest.classes, shards.manifest.palette
    place = StageFolder(tmp_path / "first")
    job = types.SimpleNamespace(
        val=uri, recipe=recipe, place=place, folder=place.path, classes=classes, palette=palette
    )
    files = draw_task_overlays(job, model_of(recipe, len(classes)), 7)
    rows = [shards.ids[row] for row in shown_rows(shards, 2)]
    names = ["sheet"] if task == "classification" else rows
    assert files == [f"overlays/{name}/step-00000007.png" for name in names]
    for file in files:
        picture = cv2.imread(str(place.path / file))
        third = picture.shape[1] // 3
        if task != "classification":  # image, truth and prediction differ
            assert (picture[:, :third] != picture[:, -third:]).any()
            assert picture.shape[0] > 200


def test_one_image_is_predicted_as_in_validation(task_shards):
    uri = str(task_shards / "coco_instances/val")
    shards, recipe = open_shards(uri), recipe_of("detection")
    model, tally = model_of(recipe, len(shards.manifest.classes)), {}

    def note(self, parts):
        tally.update({found.row: found for found in self.found})
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DetectionTally, "scored", note)
        with pytest.raises(InterruptedError):
            validate_task(model, recipe, uri, torch.device("cpu"), 0, 1, "fp32")
    found = predict_one(model, recipe, shards.manifest.classes, decode_image(shards.encoded(3)[0]))
    assert len(found.scores) > 0
    np.testing.assert_allclose(found.boxes, tally[3].boxes, atol=1e-2)
    assert (found.labels == tally[3].labels).all()


def test_objects_are_drawn_where_they_are_best_last_and_unsure_ones_not():
    size = (60, 80)
    mask = block(size, 10, 20, 20, 30)
    boxes = np.array([[20, 10, 50, 30], [0, 0, 9, 9]], np.float32)
    found = Detections(0, boxes, np.array([0.9, 0.4], np.float32), np.array([1, 0]), (rle_of(mask), rle_of(mask)))
    (one,) = found_objects(found, CLASSES)
    assert (one.number, one.text, one.rle) == (2, "dog 0.90", found.masks[0])
    picture = with_objects(np.full((*size, 3), 100, np.uint8), [one], PALETTE)
    factor = picture.shape[0] // size[0]
    assert picture.shape == (240, 320, 3)
    assert factor == 4
    inside = picture[25 * factor, 40 * factor]
    assert inside.tolist() == [50, 50, 150]  # half of the image, half of the class' colour
    assert (picture[40 * factor, 60 * factor] == 100).all()
    assert picture[20 * factor, 20 * factor].tolist() == [0, 0, 200]  # the box's left edge
    many = Detections(0, np.repeat(boxes[:1], 70, 0), np.linspace(0.5, 1, 70, dtype=np.float32), np.zeros(70, int),
                      found.masks[:1] * 70)  # fmt: skip
    shown = found_objects(many, CLASSES)
    assert len(shown) == MOST
    assert shown[0].text == "cat 1.00"


def test_segments_have_their_class_colour_a_border_and_void_is_white():
    pixels = np.full((30, 40), -1)
    pixels[:15], pixels[15:, :20] = 0, 1
    picture = with_segments(
        np.zeros((30, 40, 3), np.uint8), PanopticPicture(pixels, (1, 2), (1.0, 1.0)), CLASSES, PALETTE
    )
    factor = picture.shape[0] // 30
    at = lambda y, x: picture[y * factor, x * factor].tolist()  # noqa: E731
    assert at(2, 2) == [120, 0, 0]
    assert at(28, 2) == [0, 0, 120]
    assert at(28, 38) == [153, 153, 153]
    assert picture[15 * factor - 1, 2 * factor].tolist() == [255, 255, 255]
    assert [segment for segment, _, _ in middles(pixels)] == [0, 1]
    for segment, x, y in middles(pixels):
        assert pixels[y, x] == segment


def test_a_sheet_marks_what_is_right_and_holds_every_image():
    image = np.zeros((10, 20, 3), np.uint8)
    marked = [cell(image, "cat", guess)[210, 6].tolist() for guess in ("cat, 83%", "dog, 83%")]
    assert marked == [list(RIGHT), list(WRONG)]
    one = cell(image, "cat", "cat, 1%").shape
    assert sheet([(image, "a", "a, 1%")] * 5).shape == (2 * one[0], 4 * one[1], 3)
    assert sheet([(image, "a", "a, 1%")]).shape == one


def test_a_crowd_is_told_as_such():
    from pipelines.scoring.task_pictures import true_objects

    segments = (Segment(1, True, (1, 2, 3, 4), b""), Segment(2, False, (1, 2, 3, 4), b""))
    assert true_objects(segments, CLASSES) == [
        Drawn((1, 2, 4, 6), b"", 1, "cat (crowd)"), Drawn((1, 2, 4, 6), b"", 2, "dog")
    ]  # fmt: skip


class Sent:
    """A client of MLflow that only notes what it is sent."""

    def __init__(self):
        self.names = []

    def log_artifact(self, run, path, folder=None):
        self.names.append(f"{folder}/{path.rpartition('/')[2]}")


def test_mlflow_gets_overlays_bars_and_the_confusion_of_images(tmp_path, monkeypatch):
    place, client = StageFolder(tmp_path / "first"), Sent()
    place.counts(7).parent.mkdir(parents=True)
    np.save(place.counts(7), np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]]))
    line = {
        "kind": "val", "step": 7, "miou": 0.7, "metric": "top-1", "named": {"top-1": 0.7}, "iou": [0.75, 1.0, None],
        "rows": 6, "overlays": ["overlays/sheet/step-00000007.png"], "counts": "validation/step-00000007.npy",
    }  # fmt: skip
    drawn = []
    monkeypatch.setattr(mlflow_lines, "send_figure", lambda client, run, name, draw: drawn.append((name, draw())))
    about = About({}, {}, CLASSES, "the middle 32x32", 7)
    mlflow_lines.send_validation(client, "run", place, line, about)
    assert client.names == ["overlays/sheet/step-00000007.png"]
    (bars, first), (confusion, second) = drawn
    assert (bars, confusion) == ("classes/step-00000007.png", "confusion/step-00000007.png")
    assert first.axes[0].get_xlabel() == "top-1, percent"
    assert [text.get_text() for text in first.axes[0].get_yticklabels()] == ["background", "cat"]
    assert second.axes[1].get_ylabel() == "share of the true class's images"
    drawn.clear()
    many = About({}, {}, [f"c{i}" for i in range(201)], "", 7)
    mlflow_lines.send_validation(client, "run", place, line | {"iou": [0.5] * 201}, many)
    assert drawn == []
