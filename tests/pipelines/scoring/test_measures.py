"""Measures on demand: sums in any order and batch, and what is read of them."""

import re

import numpy as np
import pytest
import torch

from pipelines.scoring.boundary import boundary_counts, f_score, trimap_counts
from pipelines.scoring.measures import MEASURES, measure, read_measures
from pipelines.scoring.strata import iou_by_size, strata_counts
from segmodels.metrics import scores

CLASSES = ["background", "thing", "stuff", "nowhere"]


@pytest.fixture(scope="module")
def batch():
    """Probabilities of four smooth images, their argmax, and a mask that mostly agrees; the last class is nowhere."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(4, 3, 6, 8, generator=generator)
    logits = 3 * torch.nn.functional.interpolate(coarse, size=(48, 64), mode="bicubic")
    probabilities = torch.cat([logits, torch.full((4, 1, 48, 64), -50.0)], 1).softmax(1)
    noisy = logits + 2 * torch.nn.functional.interpolate(torch.randn(4, 3, 6, 8, generator=generator), size=(48, 64))
    mask = noisy.argmax(1).byte()
    mask[:, :, :3] = 255
    return probabilities, probabilities.argmax(1), mask


def test_images_in_any_order_and_batch_give_the_same_integers(batch):
    names = list(MEASURES)
    whole = measure(names, *batch)
    assert len(whole) == sum(MEASURES[name].size(4) for name in names)
    for groups in ([[3], [1], [2], [0]], [[2, 1], [0, 3]]):
        parts = [measure(names, *(part[rows] for part in batch)) for rows in groups]
        assert torch.equal(sum(parts), whole)
    assert len(measure([], *batch)) == 0
    assert read_measures([], measure([], *batch).numpy(), CLASSES) == {}


def test_each_measure_reads_its_own_part(batch):
    """Whatever others are counted before and after it, and as its own functions have it."""
    _, prediction, mask = batch
    together = read_measures(list(MEASURES), measure(list(MEASURES), *batch).numpy(), CLASSES)
    for name in MEASURES:
        alone = read_measures([name], measure([name], *batch).numpy(), CLASSES)[name]
        assert alone.metrics == pytest.approx(together[name].metrics, nan_ok=True)
        assert alone.lines == together[name].lines
    pairs = list(zip(prediction.byte().numpy(), mask.numpy(), strict=True))
    f = f_score(sum(boundary_counts(*pair, 4) for pair in pairs))
    trimap = scores(sum(trimap_counts(*pair, 4) for pair in pairs)[1])
    found = together["boundary"].metrics
    assert found["boundaryF_3px"] == pytest.approx(f[:, 0].mean())
    assert found["boundaryF_12px"] == pytest.approx(f[:, 3].mean())
    assert f[3].tolist() == [1, 1, 1, 1]  # nowhere, and not invented
    assert found["boundaryF_present_3px"] == pytest.approx(f[:3, 0].mean())  # all three have outlines everywhere
    assert found["trimap_mIoU_5px"] == pytest.approx(trimap.miou)
    small = iou_by_size(sum(strata_counts(*pair, 4) for pair in pairs))[:, 0]
    assert together["strata"].metrics["mIoU_small"] == pytest.approx(np.nanmean(small))


def test_words_and_names_hold_what_they_promise(batch):
    found = read_measures(list(MEASURES), measure(list(MEASURES), *batch).numpy(), CLASSES)
    for name in [key for reading in found.values() for key in reading.metrics]:
        assert re.fullmatch(r"[\w.\-]+", name)  # as MLflow takes them
    outlines = {line.split()[0]: line.split()[1:] for line in found["boundary"].lines[2:7]}
    assert outlines["nowhere"] == ["100.00"] * 4 + ["–"] * 8
    assert outlines["mean"][0] == f"{found['boundary'].metrics['boundaryF_3px'] * 100:.2f}"
    sizes = {line.split()[0]: line.split()[1:] for line in found["strata"].lines[2:7]}
    assert sizes["nowhere"][-3:] == ["0", "0", "0"]
    assert int(sizes["mean"][-1]) == sum(int(sizes[name][-1]) for name in CLASSES)
    (line,) = found["calibration"].lines
    assert f"expected error {found['calibration'].metrics['ECE'] * 100:.2f} %" in line
    assert found["calibration"].page["pixels"][-1] > 0
