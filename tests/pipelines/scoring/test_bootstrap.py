"""Bootstrap intervals: the split's own value, exact weights, coverage, pairs, classes that few images hold."""

import numpy as np
import pytest
from scipy import stats

from pipelines.scoring.bootstrap import Bounds, ClassCounts, certainty, difference, iou_of_sums, mean, resamples
from segmodels.metrics import scores


def random_matrices(rows, classes, seed=0):
    """Confusion counts of images with few classes each, int64 (rows, K, K)."""
    rng = np.random.default_rng(seed)
    held = rng.random((rows, classes)) < 0.5
    return rng.integers(0, 900, (rows, classes, classes)) * held[:, :, None] * held[:, None]


def counts_of(matrices):
    return ClassCounts(np.diagonal(matrices, axis1=1, axis2=2), matrices.sum(2), matrices.sum(1))


def test_every_draw_is_scored_as_a_split_of_its_images_is():
    matrices = random_matrices(7, 5)
    matrices[:, 3] = matrices[:, :, 3] = 0  # in no image
    matrices[1:, 2] = 0
    matrices[0, 2, 2] = 40  # in the truth of one
    weights = np.concatenate(list(resamples(7, 40, 3)))
    drawn = iou_of_sums(counts_of(matrices), weights)
    for line, iou in zip(weights, drawn, strict=True):
        images = np.repeat(np.arange(7), line.astype(int))
        assert len(images) == 7
        wanted = scores(matrices[images].sum(0))
        assert np.array_equal(iou, wanted.iou, equal_nan=True)
        assert mean(iou[None])[0] == pytest.approx(wanted.miou, abs=1e-15)
    assert np.isnan(drawn[:, 3]).all()


def test_draws_do_not_depend_on_the_blocks_they_are_made_in(monkeypatch):
    whole = np.concatenate(list(resamples(50, 30, 1)))
    monkeypatch.setattr("pipelines.scoring.bootstrap.AT_ONCE", 50 * 7)
    blocks = list(resamples(50, 30, 1))
    assert [len(block) for block in blocks] == [7, 7, 7, 7, 2]
    assert np.array_equal(np.concatenate(blocks), whole)


def test_the_interval_is_around_the_splits_own_score_and_seeded():
    matrices = random_matrices(60, 4)
    found = certainty(counts_of(matrices))
    wanted = scores(matrices.sum(0))
    assert found.miou.value == pytest.approx(wanted.miou, abs=1e-15)
    assert [bounds.value for bounds in found.iou] == wanted.iou
    assert all(b.low < b.value < b.high for b in (found.miou, *found.iou))
    assert found.images == (matrices.sum(2) > 0).sum(0).tolist()
    assert found == certainty(counts_of(matrices)) != certainty(counts_of(matrices), seed=1)


def test_the_interval_is_as_wide_as_theory_has_it_and_covers():
    """IoU of images of equal size in one class is a mean of their IoU: standard error σ / √n."""
    rng, covered, halves = np.random.default_rng(0), 0, []
    for _ in range(200):
        hits = rng.binomial(1000, rng.beta(6, 3, 80))  # of 1000 pixels in truth or prediction
        size = np.full((80, 1), 1000)
        found = certainty(ClassCounts(hits[:, None], size, hits[:, None]), draws=400).miou
        covered += found.low <= 6 / 9 <= found.high
        halves.append((found.high - found.low) / 2)
    sigma = np.sqrt(6 * 3 / (9**2 * 10) + (6 / 9 * 3 / 9 - 6 * 3 / (9**2 * 10)) / 1000)
    assert np.mean(halves) == pytest.approx(1.96 * sigma / np.sqrt(80), rel=0.03)
    assert 182 <= covered <= 197


def test_intervals_are_scipys_for_a_class_that_is_a_mean():
    """One class in each image, of one size: its IoU is the mean of the images', which scipy's BCa knows."""
    rng = np.random.default_rng(1)
    hits = (1000 * rng.beta(1.0, 4.0, 25)).astype(int)  # skewed
    size = np.full((25, 1), 1000)
    found = certainty(ClassCounts(hits[:, None], size, hits[:, None]), draws=20_000).miou
    peer = stats.bootstrap((hits / 1000,), np.mean, n_resamples=20_000, method="BCa", rng=rng).confidence_interval
    plain = stats.bootstrap((hits / 1000,), np.mean, n_resamples=20_000, method="percentile", rng=rng)
    assert (found.low, found.high) == pytest.approx((peer.low, peer.high), abs=0.003)
    assert plain.confidence_interval.high < found.high - 0.006


def test_intervals_of_differences_are_scipys_too():
    rng = np.random.default_rng(2)
    before = rng.integers(100, 300, 20)
    gain = (700 * rng.beta(0.5, 4.0, 20)).astype(int)  # skewed
    size = np.full((20, 1), 1000)
    a, b = (ClassCounts(hits[:, None], size, hits[:, None]) for hits in (before, before + gain))
    found = difference(a, b, draws=20_000).miou
    peer = stats.bootstrap((gain / 1000,), np.mean, n_resamples=20_000, method="BCa", rng=rng).confidence_interval
    assert (found.low, found.high) == pytest.approx((peer.low, peer.high), abs=0.003)


def test_a_score_is_in_its_own_interval_where_few_images_hold_the_classes():
    for seed in range(30):
        rng = np.random.default_rng(seed)
        matrices = np.zeros((11, 12, 12), np.int64)
        for image in matrices:
            k = rng.integers(1, 12)
            image[0, 0], image[k, k], image[0, k], image[k, 0] = 500, *rng.integers(0, 200, 3)
        found = certainty(counts_of(matrices))
        known = [each for each in (found.miou, *found.iou) if each.value == each.value]
        assert all(each.low <= each.value <= each.high for each in known)


def test_pairs_cancel_what_an_image_does_to_both():
    a = random_matrices(50, 4)
    b = a.copy()
    rows, k = np.arange(50), np.arange(50) % 4
    moved = np.minimum(b[rows, k, (k + 1) % 4], 30)  # each image gains a few pixels of one class
    b[rows, k, (k + 1) % 4] -= moved
    b[rows, k, k] += moved
    alone, paired = certainty(counts_of(a)), difference(counts_of(a), counts_of(b))
    assert 0 < paired.miou.low < paired.miou.value < paired.miou.high
    assert paired.miou.high - paired.miou.low < 0.2 * (alone.miou.high - alone.miou.low)
    assert paired.miou.value == pytest.approx(scores(b.sum(0)).miou - scores(a.sum(0)).miou, abs=1e-15)
    back = difference(counts_of(b), counts_of(a))
    assert (back.miou.low, back.miou.high) == pytest.approx((-paired.miou.high, -paired.miou.low), abs=1e-12)
    same = difference(counts_of(a), counts_of(a))
    assert same.miou == Bounds(0.0, 0.0, 0.0)
    assert same.miou.holds_zero
    assert not paired.miou.holds_zero
    assert not back.miou.holds_zero


def test_other_rows_are_no_pair():
    with pytest.raises(ValueError, match="the same images, in the same order"):
        difference(counts_of(random_matrices(5, 3)), counts_of(random_matrices(5, 3, seed=1)))


def test_one_class_nowhere_and_one_image():
    matrices = random_matrices(1, 3)
    matrices[0] = [[5, 5, 0], [0, 10, 0], [0, 0, 0]]
    found = certainty(counts_of(matrices))
    assert (found.iou[0].low, found.iou[0].high) == (0.5, 0.5)
    assert np.isnan([found.iou[2].value, found.iou[2].low, found.iou[2].high]).all()
    assert Bounds(0.1, float("nan"), float("nan")).holds_zero


def test_counts_of_images_are_read_from_their_cells():
    matrices = random_matrices(6, 4)
    matrices[2] = 0  # an image without labels has no entry
    image, cell = np.nonzero(matrices.reshape(6, 16))
    entries = np.stack([image, cell, matrices.reshape(6, 16)[image, cell]], 1)
    found, wanted = ClassCounts.of(entries, 6, 4), counts_of(matrices)
    for name in ("hits", "truth", "predicted"):
        assert np.array_equal(getattr(found, name), getattr(wanted, name))
    assert found.rows == 6
    assert np.array_equal(found.iou()[0], scores(matrices[0]).iou, equal_nan=True)
