"""Panoptic quality by hand, against a transcription of panopticapi, against torchmetrics, and in parts."""

import numpy as np
import pytest
import torch
from pycocotools import mask as rle_api
from torchmetrics.detection import PanopticQuality

from datasets.sample import Segment
from pipelines.base.errors import InputError
from pipelines.scoring.panoptic_quality import ONE, VOID, panoptic_counts, panoptic_scores

CLASSES = ("person", "car", "dog", "sea", "sand")  # three things, two of stuff


def segments(ids, numbers, crowds=()):
    """The truth of an image: ids (H, W), -1 is void; the class of each."""
    made = []
    for place, number in enumerate(numbers):
        rle = rle_api.encode(np.asfortranarray(ids == place, np.uint8))
        made.append(Segment(number, place in crowds, tuple(rle_api.toBbox(rle)), rle["counts"]))
    return tuple(made)


def panopticapi(true, true_numbers, crowds, pixels, numbers, classes):
    """`pq_compute_single_core` of panopticapi for one image, line by line; VOID is 0 there, ids count from 1."""
    stat = {c: {"iou": 0.0, "tp": 0, "fp": 0, "fn": 0} for c in range(classes)}
    pan_gt, pan_pred, offset = true.astype(np.uint64) + 1, pixels.astype(np.uint64) + 1, 256 * 256 * 256
    gt_segms = {i + 1: {"category_id": n, "iscrowd": int(i in crowds), "area": int((true == i).sum())}
                for i, n in enumerate(true_numbers)}  # fmt: skip
    pred_segms = {i + 1: {"category_id": n} for i, n in enumerate(numbers) if (pixels == i).any()}
    for label, count in zip(*np.unique(pan_pred, return_counts=True), strict=True):
        if label:
            pred_segms[int(label)]["area"] = int(count)
    gt_pred_map = {}
    for label, intersection in zip(*np.unique(pan_gt * np.uint64(offset) + pan_pred, return_counts=True), strict=True):
        gt_pred_map[(int(label) // offset, int(label) % offset)] = int(intersection)
    gt_matched, pred_matched = set(), set()
    for (gt_label, pred_label), intersection in gt_pred_map.items():
        if gt_label not in gt_segms or pred_label not in pred_segms:
            continue
        if gt_segms[gt_label]["iscrowd"] == 1:
            continue
        if gt_segms[gt_label]["category_id"] != pred_segms[pred_label]["category_id"]:
            continue
        union = (pred_segms[pred_label]["area"] + gt_segms[gt_label]["area"] - intersection
                 - gt_pred_map.get((0, pred_label), 0))  # fmt: skip
        iou = intersection / union
        if iou > 0.5:
            stat[gt_segms[gt_label]["category_id"]]["tp"] += 1
            stat[gt_segms[gt_label]["category_id"]]["iou"] += iou
            gt_matched.add(gt_label)
            pred_matched.add(pred_label)
    crowd_labels = {}
    for gt_label, info in gt_segms.items():
        if gt_label in gt_matched:
            continue
        if info["iscrowd"] == 1:
            crowd_labels[info["category_id"]] = gt_label
            continue
        stat[info["category_id"]]["fn"] += 1
    for pred_label, info in pred_segms.items():
        if pred_label in pred_matched:
            continue
        intersection = gt_pred_map.get((0, pred_label), 0)
        if info["category_id"] in crowd_labels:
            intersection += gt_pred_map.get((crowd_labels[info["category_id"]], pred_label), 0)
        if intersection / info["area"] > 0.5:
            continue
        stat[info["category_id"]]["fp"] += 1
    return [[s["iou"], s["tp"], s["fp"], s["fn"]] for s in stat.values()]


def picture(rng, count, void, size=(24, 30)):
    """Segments that are rectangles, the later over the earlier; -1 where there is none."""
    ids = np.full(size, VOID) if void else np.zeros(size, int)
    for place in range(0 if void else 1, count):
        (top, bottom), (left, right) = (sorted(rng.integers(0, side + 1, 2)) for side in size)
        ids[top:bottom, left:right] = place
    kept = np.unique(ids[ids >= 0])
    return np.where(ids < 0, VOID, np.searchsorted(kept, ids)), rng.integers(0, len(CLASSES), len(kept)).tolist()


def changed(rng, ids, numbers, classes=None):
    """A prediction that is like the truth: rows moved, some classes others."""
    moved = np.roll(ids, rng.integers(-2, 3), axis=int(rng.integers(2)))
    return moved, [n if rng.random() < 0.8 else int(rng.integers(0, 5)) for n in numbers]


def test_by_hand():
    """A car found with IoU 6/10, sea with 28/36, a dog missed, a person invented."""
    true = np.zeros((6, 8), int)
    true[:2, :4] = 1  # 8 pixels of car
    true[5, :4] = 2  # a dog
    pixels = np.zeros((6, 8), int)
    pixels[:2, 1:5] = 1  # 6 of the car's, 2 of the sea's
    pixels[4, 4:8] = 2  # a person
    counts = panoptic_counts(pixels, [3, 1, 0], segments(true, [3, 1, 2]), 5)
    sea = (48 - 8 - 4 - 2 - 4) / (36 + 36 - 30)
    assert counts[:, 1:].tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]]
    np.testing.assert_allclose(counts[:, 0] / ONE, [0, 6 / 10, 0, sea, 0], atol=1e-9)
    scored = panoptic_scores(counts, CLASSES, 1)
    assert scored.value == scored.named["PQ"] == pytest.approx((0.6 + sea) / 4)
    assert scored.named["PQ things"] == pytest.approx(0.6 / 3)
    assert scored.named["PQ stuff"] == scored.named["SQ stuff"] == pytest.approx(sea)
    assert scored.named["RQ"] == pytest.approx(0.5)
    assert scored.classes == [0, pytest.approx(0.6), 0, pytest.approx(sea), None]


def test_perfect_is_1_and_an_empty_prediction_0():
    true, numbers = picture(np.random.default_rng(0), 5, void=True)
    truth = segments(true, numbers)
    perfect = panoptic_scores(panoptic_counts(true, numbers, truth, 5), CLASSES, 1)
    assert {value for name, value in perfect.named.items()} == {1.0}
    nothing = panoptic_counts(np.full(true.shape, VOID), [], truth, 5)
    assert panoptic_scores(nothing, CLASSES, 1).value == 0
    assert nothing[:, 3].sum() == len(truth)


def test_void_and_crowds_excuse_predictions():
    true = np.full((4, 10), VOID)
    true[:, 5:] = 0  # a crowd of people; the left half is void
    truth = segments(true, [0], crowds={0})

    def invented(left, right, number):
        pixels = np.full((4, 10), VOID)
        pixels[:, left:right] = 0
        return panoptic_counts(pixels, [number], truth, 5)[number, 2]

    assert invented(0, 10, 0) == 0  # void and crowd
    assert invented(6, 9, 0) == 0  # crowd of its class
    assert invented(6, 9, 1) == 1  # crowd of another
    assert invented(3, 7, 1) == 1  # half void
    assert invented(2, 7, 1) == 0  # more than half
    assert panoptic_counts(np.full((4, 10), VOID), [], truth, 5).sum() == 0  # a crowd is not missed


@pytest.mark.parametrize("seed", range(6))
def test_equals_panopticapi(seed):
    rng, matched = np.random.default_rng(seed), 0
    for _ in range(12):
        true, true_numbers = picture(rng, 9, void=bool(rng.integers(2)))
        pixels, numbers = changed(rng, true, true_numbers)
        crowds = {}
        for place in rng.permutation(len(true_numbers))[: rng.integers(0, 4)].tolist():
            crowds[true_numbers[place]] = place  # one of a class, as in COCO
        crowds = set(crowds.values())
        counts = panoptic_counts(pixels, numbers, segments(true, true_numbers, crowds), 5)
        wanted = np.array(panopticapi(true, true_numbers, crowds, pixels, numbers, 5))
        np.testing.assert_array_equal(counts[:, 1:], wanted[:, 1:])
        np.testing.assert_allclose(counts[:, 0] / ONE, wanted[:, 0], atol=1e-8)
        matched += counts[:, 1].sum()
    assert matched > 12


def test_equals_torchmetrics_without_crowds_where_every_pixel_is_predicted():
    """torchmetrics knows no crowds, and does not miss a segment that is mostly predicted as void: panopticapi does."""
    rng, theirs, ours = np.random.default_rng(1), PanopticQuality({0, 1, 2}, {3, 4}), np.zeros((5, 4), np.int64)
    for _ in range(20):
        true, true_numbers = picture(rng, 7, void=False)
        pixels, numbers = changed(rng, true, true_numbers)
        true, pixels = (merged(*pair) for pair in ((true, true_numbers), (pixels, numbers)))
        (true, true_numbers), (pixels, numbers) = true, pixels
        true = np.where(rng.random(true.shape) < 0.1, VOID, true)
        kept = np.unique(true[true >= 0])
        true, true_numbers = np.where(true < 0, VOID, np.searchsorted(kept, true)), [true_numbers[k] for k in kept]
        ours += panoptic_counts(pixels, numbers, segments(true, true_numbers), 5)
        theirs.update(colours(pixels, numbers), colours(true, true_numbers))
    scored = panoptic_scores(ours, CLASSES, 20)
    assert scored.value == pytest.approx(float(theirs.compute()), abs=1e-6)
    assert 0.1 < scored.value < 0.9


def merged(ids, numbers):
    """Regions of one kind of stuff as one segment, as torchmetrics takes them."""
    first = {number: place for place, number in reversed(list(enumerate(numbers))) if number >= 3}
    together = np.array([first.get(number, place) for place, number in enumerate(numbers)])[ids]
    kept = np.unique(together)
    return np.searchsorted(kept, together), [numbers[place] for place in kept]


def colours(ids, numbers):
    """torchmetrics' form: class and number of the object of each pixel; a class that is unknown is void."""
    table = np.array([*numbers, 99])
    return torch.from_numpy(np.stack([table[ids], np.where(ids < 0, 0, ids)], axis=-1))[None]


def test_parts_add_up_in_any_order():
    rng = np.random.default_rng(3)
    parts = []
    for _ in range(7):
        true, numbers = picture(rng, 6, void=True)
        parts.append(panoptic_counts(*changed(rng, true, numbers), segments(true, numbers), 5))
    assert sum(parts[:3]).dtype == np.int64
    first, second = sum(parts[:3]) + sum(parts[3:]), sum(reversed(parts))
    assert panoptic_scores(first, CLASSES, 7) == panoptic_scores(second, CLASSES, 7)


def test_what_cannot_be_is_refused():
    truth = segments(np.zeros((2, 2), int), [0])
    with pytest.raises(ValueError, match="segments 0 to 1; allowed are -1 to 0"):
        panoptic_counts(np.array([[0, 1], [0, 0]]), [2], truth, 5)
    with pytest.raises(InputError, match="nothing to score"):
        panoptic_scores(np.zeros((5, 4), np.int64), CLASSES, 3)
