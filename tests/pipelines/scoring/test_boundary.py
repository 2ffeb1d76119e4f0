"""Boundary F-score and trimap IoU against naive loops, by hand, at the borders of an image, and in time."""

import time

import cv2
import numpy as np
import pytest

from datasets.drawing import draw_scene
from pipelines.scoring.boundary import (
    WIDTHS,
    boundary_counts,
    disk,
    f_score,
    f_score_present,
    matches,
    outlines,
    trimap_counts,
)


def outline(inside):
    """DAVIS' outline of one class, a pixel at a time: bool (H, W) of a bool (H, W)."""
    height, width = inside.shape
    found = np.zeros_like(inside)
    for y in range(height):
        for x in range(width):
            neighbours = inside[y : y + 2, x : x + 2]
            found[y, x] = (neighbours != inside[y, x]).any()
    return found


def naive_f(prediction, mask, k, width):
    """F of one image and class, pixel against pixel; None without any outline."""
    guessed = np.argwhere(outline((prediction == k) & (mask != 255)))
    true = np.argwhere(outline(mask == k))
    if not len(guessed) and not len(true):
        return None
    if not len(guessed) or not len(true):
        return 0.0
    distance = np.sqrt(((guessed[:, None] - true[None]) ** 2).sum(2))
    precision, recall = (distance.min(1) <= width).mean(), (distance.min(0) <= width).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def blobs(seed, shape, classes, ignored=True):
    """A mask of smooth regions, and a prediction that errs along their outlines and in one place of its own."""
    rng = np.random.default_rng(seed)
    layers = [cv2.GaussianBlur(rng.random(shape), (0, 0), 4) for _ in range(classes)]
    mask = np.argmax(layers, 0).astype(np.uint8)
    noisy = [layer + cv2.GaussianBlur(0.3 * rng.random(shape), (0, 0), 2) for layer in layers]
    prediction = np.argmax(noisy, 0).astype(np.uint8)
    prediction[:5, -7:] = classes - 1
    if ignored:
        mask[cv2.GaussianBlur(rng.random(shape), (0, 0), 3) > 0.56] = 255
    return prediction, mask


@pytest.mark.parametrize(("seed", "shape"), [(0, (41, 57)), (1, (30, 20)), (2, (1, 25)), (3, (33, 1)), (4, (7, 64))])
def test_f_scores_are_those_of_naive_loops(seed, shape):
    classes = 5
    prediction, mask = blobs(seed, shape, classes)
    mask[mask == 1], prediction[prediction == 2] = 0, 0  # one is only predicted, one only true
    counts = boundary_counts(prediction, mask, classes)
    wanted = [[naive_f(prediction, mask, k, width) for width in WIDTHS] for k in range(classes)]
    published = [[1.0 if f is None else f for f in line] for line in wanted]
    present = [[np.nan if f is None else f for f in line] for line in wanted]
    assert f_score(counts) == pytest.approx(np.array(published), abs=1e-9)
    assert f_score_present(counts) == pytest.approx(np.array(present), abs=1e-9, nan_ok=True)


def test_f_scores_of_images_are_averaged_as_the_papers_code_does():
    pairs = [blobs(seed, (30, 40), 4) for seed in range(5)]
    pairs[0] = (np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8))  # no outline at all: each class counts as 1
    total = sum(boundary_counts(*pair, 4) for pair in pairs)
    wanted = [[naive_f(*pair, k, 3) for pair in pairs] for k in range(4)]
    assert f_score(total)[:, 0] == pytest.approx([np.mean([1 if f is None else f for f in line]) for line in wanted])
    assert f_score_present(total)[:, 0] == pytest.approx(
        [np.mean([f for f in line if f is not None]) for line in wanted]
    )


def test_a_shift_is_forgiven_up_to_the_width():
    mask = np.zeros((60, 60), np.uint8)
    mask[20:40, 20:40] = 1
    for shift in (0, 3, 4, 9, 10, 12):
        found = f_score(boundary_counts(np.roll(mask, shift, 1), mask, 2))
        assert [f == 1 for f in found[1]] == [shift <= width for width in WIDTHS]
    diagonal = f_score(boundary_counts(np.roll(mask, (4, 4), (0, 1)), mask, 2))[1]  # 5.7 pixels at two corners
    assert diagonal[1] < 1
    assert diagonal[2] == 1


def test_outlines_of_all_classes_at_once_are_each_classs_own():
    labels, _ = blobs(5, (23, 31), 6)
    places, four = outlines(labels)
    for k in range(6):
        own = np.zeros(labels.size, bool)
        own[places[(four == k).any(0)]] = True
        assert np.array_equal(own.reshape(labels.shape), outline(labels == k))


def test_matches_at_the_borders_and_of_one_point():
    width = 50
    points, others = np.array([0, 49, 49 * width + 49]), np.array([3, 49 + 5 * width])
    assert matches(points, others, width) == [1, 2, 2, 2]
    assert matches(np.array([7]), np.array([7]), width) == [1, 1, 1, 1]
    assert [int(disk(radius).sum()) for radius in (0, 1, 2, 3)] == [1, 5, 13, 29]


@pytest.mark.parametrize(("seed", "shape"), [(0, (26, 33)), (1, (1, 19)), (2, (14, 5))])
def test_trimaps_are_those_of_naive_loops(seed, shape):
    prediction, mask = blobs(seed, shape, 4)
    wanted = np.zeros((len(WIDTHS), 4, 4), np.int64)
    points = np.argwhere(np.ones(shape, bool))
    for y, x in points:
        if mask[y, x] == 255:
            continue
        other = points[mask.ravel() != mask[y, x]]
        nearest = np.sqrt(((other - (y, x)) ** 2).sum(1)).min() if len(other) else np.inf
        for w, width in enumerate(WIDTHS):
            wanted[w, mask[y, x], prediction[y, x]] += nearest <= width
    assert wanted[0].sum() > 0
    assert np.array_equal(trimap_counts(prediction, mask, 4), wanted)


def test_a_street_sized_image_takes_less_than_a_second():
    """1024x2048 pixels and 19 classes; the processor's own time, since the machine may be busy."""
    rng = np.random.default_rng(0)
    _, things = draw_scene(rng, (128, 256), [int(k) for k in rng.integers(1, 19, 40)], "coco")
    mask = np.zeros((128, 256), np.uint8)
    for thing in things:
        mask[thing.mask] = thing.number
    mask = cv2.resize(mask, (2048, 1024), interpolation=cv2.INTER_NEAREST)
    prediction = np.roll(mask, (5, 3), (0, 1))
    assert len(np.unique(mask)) > 12
    taken = []
    for _ in range(3):
        began = time.process_time()
        boundary_counts(prediction, mask, 19)
        trimap_counts(prediction, mask, 19)
        taken.append(time.process_time() - began)
    assert min(taken) < 1.0, taken
