"""COCO's average precision: by hand, perfect, against COCOeval as its manual calls it, and in parts."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools import mask as rle_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from datasets.shards import Shards
from pipelines.base.errors import InputError
from pipelines.scoring.average_precision import Detections, detection_scores, from_bytes, to_bytes

STATS = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")
NONE = Detections(0, np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), ())


@pytest.fixture(scope="module")
def instances(task_shards):
    return Shards(str(task_shards / "coco_instances/train"))


def found_in(shards, row, change=None, crowds=False, score=lambda place: 0.9):
    """Detections that are the objects of a row, or what `change` makes of their masks and labels."""
    size = shards.sizes[row].tolist()
    boxes, labels, masks, scores = [], [], [], []
    for place, segment in enumerate(shards.segments(row)):
        if segment.crowd and not crowds:
            continue
        mask, label = rle_api.decode({"size": size, "counts": segment.rle}), segment.number - 1
        mask, label = change(mask, label) if change else (mask, label)
        rle = rle_api.encode(np.asfortranarray(mask))
        x, y, width, height = rle_api.toBbox(rle).tolist()
        boxes.append([x, y, x + width, y + height])
        labels.append(label)
        masks.append(rle["counts"])
        scores.append(score(place))
    return Detections(
        row, np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int64),
        tuple(masks),
    )  # fmt: skip


def noisy(shards, seed=0):
    """Detections of all rows that are moved, of other classes, doubled, with scores of two digits that tie."""
    rng = np.random.default_rng(seed)

    def change(mask, label):
        moved = np.roll(mask, tuple(rng.integers(-4, 5, 2)), (0, 1))
        return moved, label if rng.random() < 0.8 else int(rng.choice([0, 2, 4, 7]))

    parts = []
    for row in range(len(shards)):
        both = [found_in(shards, row, change, crowds=True, score=lambda _: round(rng.random(), 1)) for _ in range(2)]
        kept = rng.random(sum(len(d.scores) for d in both)) < 0.8
        joined = [np.concatenate([getattr(d, key) for d in both])[kept] for key in ("boxes", "scores", "labels")]
        masks = tuple(m for m, keep in zip(both[0].masks + both[1].masks, kept, strict=True) if keep)
        parts.append(Detections(row, *joined, masks))
    return parts


def plainly(shards, found, kind, folder):
    """COCOeval as its manual calls it: truth and results are files, and a result is what is compared."""
    images, notes, results = [], [], []
    for row, (height, width) in enumerate(shards.sizes.tolist()):
        images.append({"id": row, "height": height, "width": width})
        for segment in shards.segments(row):
            rle = {"size": [height, width], "counts": segment.rle.decode()}
            area, crowd = int(rle_api.area(rle)), int(segment.crowd)
            notes.append({"id": len(notes) + 1, "image_id": row, "category_id": segment.number, "bbox": segment.box,
                          "iscrowd": crowd, "area": area, "segmentation": rle})  # fmt: skip
        d = found[row]
        for (x1, y1, x2, y2), score, label, mask in zip(
            d.boxes.tolist(), d.scores.tolist(), d.labels, d.masks, strict=True
        ):
            what = {"bbox": [x1, y1, x2 - x1, y2 - y1]} if kind == "bbox" else {
                "segmentation": {"size": [height, width], "counts": mask.decode()}}  # fmt: skip
            results.append({"image_id": row, "category_id": int(label) + 1, "score": score, **what})
    categories = [{"id": number, "name": str(number)} for number in range(1, 81)]
    truth = {"images": images, "annotations": notes, "categories": categories, "info": {}}
    for name, content in (("truth", truth), ("results", results)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    coco = COCO(folder / "truth.json")
    counted = COCOeval(coco, coco.loadRes(str(folder / "results.json")), kind)
    counted.evaluate()
    counted.accumulate()
    counted.summarize()
    return counted


def test_perfect_detections_give_1(instances, capsys):
    scored = detection_scores([found_in(instances, row) for row in range(len(instances))], instances)
    assert set(scored.named.values()) == {1.0}
    assert {"box AP", "box AP50", "box AP75", "mask AP", "mask AP small"} <= set(scored.named)
    assert (scored.value, scored.rows) == (1.0, len(instances))
    objects = [s.number for row in range(len(instances)) for s in instances.segments(row) if not s.crowd]
    assert [n for n, value in enumerate(scored.classes) if value is not None] == sorted(set(objects))
    assert len(scored.classes) == 81
    assert capsys.readouterr().out == ""


def test_nothing_found_gives_0(instances):
    nothing = [Detections(row, NONE.boxes, NONE.scores, NONE.labels, ()) for row in range(len(instances))]
    assert set(detection_scores(nothing, instances).named.values()) == {0.0}


def test_by_hand(instances):
    """Of the objects of one class all but the first are found, and before them one that is not there."""
    whole = [found_in(instances, row) for row in range(len(instances))]
    number = max({n for d in whole for n in d.labels.tolist()})
    first = next(d.row for d in whole if number in d.labels)
    count = sum(int((d.labels == number).sum()) for d in whole)
    changed = []
    for d in whole:
        if d.row != first:
            changed.append(d)
            continue
        place = int(np.flatnonzero(d.labels == number)[0])
        boxes, scores = d.boxes.copy(), d.scores.copy()
        boxes[place], scores[place] = [0, 0, 1, 1], 0.99
        corner = np.zeros(instances.sizes[first], np.uint8, order="F")
        corner[0, 0] = 1
        masks = (*d.masks[:place], rle_api.encode(corner)["counts"], *d.masks[place + 1 :])
        changed.append(Detections(d.row, boxes, scores, d.labels, masks))
    recalls = np.arange(101) / 100 <= (count - 1) / count + 1e-9
    wanted = (recalls * (count - 1) / count).mean()  # at each recall that is reached, the best precision beyond it
    scored = detection_scores(changed, instances)
    assert count > 2
    assert scored.classes[number + 1] == pytest.approx(wanted, abs=1e-9)
    others = [value for n, value in enumerate(scored.classes) if value is not None and n != number + 1]
    assert set(others) == {1.0}


def test_equals_cocoeval_called_plainly(instances, tmp_path):
    found = noisy(instances)
    scored = detection_scores(found, instances)
    for kind, theirs in (("box", "bbox"), ("mask", "segm")):
        with contextlib.redirect_stdout(io.StringIO()):
            counted = plainly(instances, found, theirs, tmp_path)
        for name, value in zip(STATS, counted.stats, strict=False):
            assert scored.named.get(f"{kind} {name}", -1.0) == pytest.approx(value, abs=1e-12)
    with contextlib.redirect_stdout(io.StringIO()):
        precision = plainly(instances, found, "bbox", tmp_path).eval["precision"][:, :, :, 0, 2]
    for number, value in enumerate(scored.classes[1:]):
        mean = precision[:, :, number].mean()
        assert value == (None if mean == -1 else pytest.approx(mean, abs=1e-12))
    assert 0.05 < scored.value < 0.95


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_any_split_of_the_rows_over_workers_gives_the_same(instances, workers):
    found = noisy(instances, seed=4)
    sent = [to_bytes(found[rank::workers]) for rank in range(workers)]
    parts = [one for data in reversed(sent) for one in from_bytes(data)]
    assert detection_scores(parts, instances) == detection_scores(found, instances)


def test_bytes_keep_every_bit(instances):
    found = [*noisy(instances), NONE]
    for a, b in zip(found, from_bytes(to_bytes(found)), strict=True):
        assert (a.row, a.masks) == (b.row, b.masks)
        for key in ("boxes", "scores", "labels"):
            np.testing.assert_array_equal(getattr(a, key), getattr(b, key))
            assert getattr(a, key).dtype == getattr(b, key).dtype
    assert from_bytes(to_bytes([])) == []


def test_crowds_excuse_what_is_found_in_them(instances):
    """All that lies in a crowd counts nothing; in another class's crowd it is wrong."""
    whole = [found_in(instances, row) for row in range(len(instances))]
    row, place = next((r, p) for r in range(len(instances)) for p, s in enumerate(instances.segments(r)) if s.crowd)
    twice = found_in(instances, row, crowds=True, score=lambda place: 0.99)
    assert len(twice.scores) > len(whole[row].scores)
    assert detection_scores([twice if d.row == row else d for d in whole], instances).value == 1.0
    other = next(n for d in whole for n in d.labels.tolist() if n != twice.labels[place])
    labels = twice.labels.copy()
    labels[place] = other
    wrong = Detections(row, twice.boxes, twice.scores, labels, twice.masks)
    scored = detection_scores([wrong if d.row == row else d for d in whole], instances)
    assert [n - 1 for n, value in enumerate(scored.classes) if value not in (None, 1.0)] == [other]


def test_objects_of_panoptic_shards_are_its_things(instances, task_shards):
    panoptic = Shards(str(task_shards / "coco_panoptic/train"))
    found = noisy(instances)
    assert detection_scores(found, panoptic).named == detection_scores(found, instances).named


class TestRefused:
    def test_a_missing_row_and_one_that_is_there_twice(self, instances):
        found = [found_in(instances, row) for row in range(len(instances))]
        with pytest.raises(RuntimeError, match=r"scored were 13 rows.*which has 14: 1 are missing, 0"):
            detection_scores(found[:-1], instances)
        with pytest.raises(RuntimeError, match=r"0 are missing, 1 are there twice"):
            detection_scores([*found, found[3]], instances)

    @pytest.mark.parametrize("wrong", [80, -1])
    def test_a_label_that_is_no_class(self, instances, wrong):
        found = [found_in(instances, row, lambda mask, label: (mask, wrong)) for row in range(len(instances))]
        with pytest.raises(ValueError, match=rf"label {wrong} of a detection; .* has 80 classes"):
            detection_scores(found, instances)

    def test_a_split_without_objects(self, instances):
        class Bare(Shards):
            def segments(self, i):
                return ()

        bare = Bare(instances.uri)
        found = [Detections(row, NONE.boxes, NONE.scores, NONE.labels, ()) for row in range(len(bare))]
        with pytest.raises(InputError, match="no object in its 14 rows"):
            detection_scores(found, bare)
