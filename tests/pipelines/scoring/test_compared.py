"""Two models on the same rows: verdicts, tables, the rows that changed, pictures."""

import json

import numpy as np
import pytest

from pipelines.base.files import to_json
from pipelines.scoring.bootstrap import Bounds, ClassCounts
from pipelines.scoring.compared import (
    NEITHER,
    ONLY_A,
    ONLY_B,
    compare,
    draw_row,
    lines_of,
    most_changed,
    page_of,
    verdict,
    where_right,
)

NAMES = ["sky", "car", "cup"]
IDS = [f"row{i}" for i in range(30)]


def models():
    """Counts of 30 images of 1000 pixels: B finds more of `car`, nothing else changes; one image loses."""
    rng = np.random.default_rng(0)
    matrices = np.zeros((30, 3, 3), np.int64)
    matrices[:, 0, 0], matrices[:, 1, 1], matrices[:, 1, 0] = 600, 200, 200
    matrices[:, 1, 1] += (noise := rng.integers(-100, 100, 30))
    matrices[:, 1, 0] -= noise
    gain = rng.integers(10, 60, 30)
    gain[4], gain[7] = -90, 95
    better = matrices.copy()
    better[:, 1, 1] += gain
    better[:, 1, 0] -= gain
    return tuple(ClassCounts(np.diagonal(m, axis1=1, axis2=2), m.sum(2), m.sum(1)) for m in (matrices, better))


def test_a_gain_is_shown_and_its_rows_are_named():
    a, b = models()
    found = compare(a, b)
    assert verdict(found.gain.miou) == "B is better"
    assert verdict(compare(b, a).gain.miou) == "B is worse"
    assert verdict(compare(a, a).gain.miou) == "no difference shown"
    worse, better = most_changed(found.change, 3)
    assert worse == [4]
    assert better[0] == 7
    assert len(better) == 3
    lines = lines_of(found, NAMES, IDS, 3)
    assert lines[2].split()[0] == "sky"
    assert "B is better" in lines[3]
    assert lines[4].split() == ["cup", "–", "–", "–", "–", "0"]
    assert f"{found.gain.miou.value * 100:+.2f} [" in lines[5]
    assert "29 of 30 rows gained, 1 lost" in "\n".join(lines)
    assert [line.split()[0] for line in lines if line.startswith("  row")] == [*(IDS[row] for row in better), "row4"]


def test_an_interval_that_holds_zero_shows_no_difference():
    assert verdict(Bounds(0.1, -0.01, 0.2)) == verdict(Bounds(0.1, 0.0, 0.2)) == "no difference shown"
    assert verdict(Bounds(0.1, float("nan"), float("nan"))) == "no difference shown"
    assert verdict(Bounds(0.1, 0.01, 0.2)) == "B is better"
    assert verdict(Bounds(-0.1, -0.2, -0.01)) == "B is worse"


def test_the_page_is_strict_json_with_every_row():
    found = compare(*models())
    page = json.loads(to_json(page_of(found, NAMES, IDS)))
    assert page["gain"]["miou"] == [found.gain.miou.value, found.gain.miou.low, found.gain.miou.high]
    assert page["a"]["iou"][2] == [None, None, None]
    assert list(page["rows"]) == IDS
    assert page["verdict"] == "B is better"


def test_a_row_without_labels_changed_nothing():
    a, b = models()
    for part in (a.hits, a.truth, a.predicted, b.hits, b.truth, b.predicted):
        part.flags.writeable = True
        part[9] = 0
    found = compare(a, b)
    assert np.isnan(found.change[9])
    assert all(9 not in rows for rows in most_changed(found.change, 30))


def test_pictures_say_who_is_right_where():
    mask = np.array([[0, 1, 2, 255]], np.uint8)
    a, b = np.array([[0, 1, 1, 1]], np.uint8), np.array([[0, 2, 1, 0]], np.uint8)
    image = np.full((1, 4, 3), 200, np.uint8)
    found = where_right(mask, a, b, image)[0].tolist()
    assert found[1:3] == [list(ONLY_A), list(NEITHER)]
    assert found[0] == found[3] == [230, 230, 230]
    assert where_right(mask, b, a, image)[0, 1].tolist() == list(ONLY_B)
    palette = [(0, 0, 0), (200, 0, 0), (0, 200, 0)]
    image, mask, a, b = (part.repeat(90, 0).repeat(30, 1) for part in (image, mask, a, b))
    sheet = draw_row(image, mask, a, b, palette, "row: A 1, B 2")
    height = round(420 * 90 / 120)
    assert sheet.shape == (height + 44, 5 * 424, 3)
    assert sheet[44 + 10, 4 * 424 + 150].tolist() == list(ONLY_A)


def test_a_row_as_large_as_a_street_scene_is_drawn_small():
    image, mask = np.zeros((1024, 2048, 3), np.uint8), np.zeros((1024, 2048), np.uint8)
    sheet = draw_row(image, mask, mask, mask, [(9, 9, 9)], "x")
    assert sheet.shape == (254, 5 * 424, 3)
    with pytest.raises(ValueError, match="same images"):
        compare(*(ClassCounts(n, n, n) for n in (np.ones((2, 1), int), np.zeros((2, 1), int))))
