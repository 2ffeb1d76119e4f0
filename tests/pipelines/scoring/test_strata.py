"""Counts by the size of objects: naive loops, thresholds, and sums that are those of the whole."""

import numpy as np
import pytest
from scipy import ndimage

from pipelines.scoring.strata import found_by_size, iou_by_size, recall_by_size, size_of, strata_counts


def scattered(seed, shape, classes):
    """A mask of rectangles of many sizes with pixels without a label, and a prediction that errs."""
    rng = np.random.default_rng(seed)
    mask, prediction = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for _ in range(25):
        (y, x), (h, w) = (rng.integers(0, side, 2) for side in (min(shape), max(2, min(shape) // 3)))
        label = rng.integers(0, classes)
        mask[y : y + h, x : x + w] = label
        y, x = y + rng.integers(-1, 2), x + rng.integers(-1, 2)
        prediction[max(y, 0) : y + h, max(x, 0) : x + w] = label if rng.random() < 0.8 else 0
    mask[rng.random(shape) < 0.03] = 255
    return prediction, mask


def naive(prediction, mask, classes):
    """The same by SciPy's labels, an object at a time."""
    found = np.zeros((classes, 3, 5), np.int64)
    labelled = mask != 255

    def size(area):
        share = area / mask.size
        return 2 if share >= 0.03 else 1 if share >= 1 / 300 else 0

    for k in range(classes):
        regions, many = ndimage.label(mask == k, np.ones((3, 3)))
        for number in range(1, many + 1):
            own = regions == number
            hits = int((own & (prediction == k)).sum())
            found[k, size(own.sum())] += [own.sum(), hits, 0, 1, hits >= own.sum() / 2]
        regions, many = ndimage.label((prediction == k) & labelled, np.ones((3, 3)))
        for number in range(1, many + 1):
            own = regions == number
            found[k, size(own.sum()), 2] += (own & (mask != k)).sum()
    return found


@pytest.mark.parametrize("seed", range(3))
def test_counts_are_those_of_naive_loops(seed):
    prediction, mask = scattered(seed, (70, 90), 4)
    found = strata_counts(prediction, mask, 4)
    assert np.array_equal(found, naive(prediction, mask, 4))
    assert (found[..., 3].sum(0) > 0).all()  # objects of each size


def test_the_sizes_add_up_to_the_class():
    pairs = [scattered(seed, (60, 80), 4) for seed in range(3)]
    total = sum(strata_counts(*pair, 4) for pair in pairs)
    prediction, mask = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in range(2))
    prediction, mask = prediction[mask != 255], mask[mask != 255]
    for k in range(4):
        truth, hits, wrong = total[k, :, :3].sum(0)
        assert truth == (mask == k).sum()
        assert hits == ((mask == k) & (prediction == k)).sum()
        assert wrong == ((mask != k) & (prediction == k)).sum()


def test_sizes_are_shares_of_the_image_cocos_at_its_common_size():
    assert size_of(np.array([1023, 1024, 9215, 9216]), 640 * 480).tolist() == [0, 1, 1, 2]
    assert size_of(np.array([4 * 1023, 4 * 1024, 4 * 9216 - 1, 4 * 9216]), 1280 * 960).tolist() == [0, 1, 1, 2]
    assert size_of(np.array([2048 * 1024]), 2048 * 1024).tolist() == [2]


def test_scores_by_hand():
    mask = np.zeros((40, 100), np.uint8)  # 4000 pixels: small below 13.3, large from 120 on
    mask[2:5, 2:6] = 1  # 12 pixels, found
    mask[10:12, 10:16] = 1  # 12 pixels, missed
    mask[20:30, 20:40] = 1  # 200 pixels, found but for 80
    prediction = np.zeros_like(mask)
    prediction[2:5, 2:6] = 1
    prediction[20:26, 20:40] = 1
    prediction[0:5, 60:70] = 1  # 50 pixels, invented: a middle region
    counts = strata_counts(prediction, mask, 2)
    assert counts[1].tolist() == [[24, 12, 0, 2, 1], [0, 0, 50, 0, 0], [200, 120, 0, 1, 1]]
    assert iou_by_size(counts)[1] == pytest.approx([0.5, np.nan, 0.6], nan_ok=True)
    assert recall_by_size(counts)[1] == pytest.approx([0.5, np.nan, 0.6], nan_ok=True)
    assert found_by_size(counts)[1] == pytest.approx([0.5, np.nan, 1.0], nan_ok=True)
