"""Expected calibration error: against a naive loop, torchmetrics' own, and in any order."""

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError

from pipelines.scoring.calibration import BINS, calibration, calibration_counts, reliability_figure


def guesses(seed=0, shape=(3, 20, 30), classes=5):
    generator = torch.Generator().manual_seed(seed)
    probabilities = (3 * torch.randn(shape[0], classes, *shape[1:], generator=generator)).softmax(1)
    mask = torch.randint(0, classes, shape, generator=generator, dtype=torch.uint8)
    mask = torch.where(torch.rand(shape, generator=generator) < 0.4, probabilities.argmax(1).byte(), mask)
    mask[torch.rand(shape, generator=generator) < 0.1] = 255
    return probabilities, mask


def counted(probabilities, mask):
    confidence, prediction = probabilities.max(1)
    return calibration_counts(confidence, prediction, mask).numpy()


def test_a_naive_loop_finds_the_same():
    probabilities, mask = guesses()
    found = calibration(counted(probabilities, mask))
    bins = [[] for _ in range(BINS)]
    confidence, prediction = probabilities.max(1)
    for p, guess, true in zip(confidence.ravel(), prediction.ravel(), mask.ravel(), strict=True):
        if true != 255:
            bins[int(np.ceil(float(p) * BINS)) - 1].append((float(p), int(guess == true)))
    total = sum(map(len, bins))
    gaps = [abs(np.mean([p for p, _ in b]) - np.mean([r for _, r in b])) * len(b) / total for b in bins if b]
    assert found.pixels == [len(b) for b in bins]
    assert found.error == pytest.approx(sum(gaps), abs=1e-7)
    assert found.accuracy == pytest.approx(np.mean([r for b in bins for _, r in b]))
    assert found.confidence == pytest.approx(np.mean([p for b in bins for p, _ in b]), abs=1e-7)
    assert np.isnan(found.bin_accuracy[0])  # of five classes, none wins with less than a fifth


def test_the_upper_end_belongs_to_a_bin():
    sure = torch.tensor([[[0.2, 0.2001, 1.0, 0.6]]], dtype=torch.float64)
    right = torch.zeros(1, 1, 4, dtype=torch.long)
    assert torch.equal(calibration_counts(sure, right, right.byte())[:, 0].nonzero()[:, 0], torch.tensor([2, 3, 8, 14]))


def test_torchmetrics_finds_the_same():
    probabilities, mask = guesses(1)
    peer = MulticlassCalibrationError(5, n_bins=BINS, norm="l1", ignore_index=255)
    assert calibration(counted(probabilities, mask)).error == pytest.approx(float(peer(probabilities, mask)), abs=1e-6)


def test_parts_in_any_order_add_up_bit_for_bit():
    probabilities, mask = guesses(2)
    whole = counted(probabilities, mask)
    parts = [counted(probabilities[i : i + 1], mask[i : i + 1]) for i in (2, 0, 1)]
    assert np.array_equal(sum(parts), whole)


def test_certain_and_right_has_no_error_and_certain_and_wrong_all_of_it():
    sure = torch.ones(1, 4, 4)
    guess = torch.zeros(1, 4, 4, dtype=torch.long)
    right = calibration(calibration_counts(sure, guess, torch.zeros(1, 4, 4, dtype=torch.uint8)).numpy())
    wrong = calibration(calibration_counts(sure, guess, torch.ones(1, 4, 4, dtype=torch.uint8)).numpy())
    assert (right.error, right.confidence, right.accuracy) == (0.0, 1.0, 1.0)
    assert (wrong.error, wrong.confidence, wrong.accuracy) == (1.0, 1.0, 0.0)
    assert right.pixels == [0] * (BINS - 1) + [16]


def test_the_diagram_shows_each_bin():
    found = calibration(counted(*guesses(3)))
    figure = reliability_figure(found, "of a split")
    (axes,) = figure.axes
    heights = [bar.get_height() for bar in axes.patches[:BINS]]
    assert heights == pytest.approx(np.nan_to_num(found.bin_accuracy).tolist())
    assert sum(bar.get_height() for bar in axes.patches[BINS:]) == pytest.approx(1)
    assert f"{found.error * 100:.2f} %\nof a split" in axes.get_title()
