"""Tiles keep each pixel once, show what they need around it, and do not grow with the image."""

import itertools

import numpy as np
import pytest

from segmodels.inference import Inference
from segmodels.tiles import MARGIN, tiles

WAYS = {
    "whole": Inference(),
    "slide": Inference("slide", (96, 64), (50, 64)),
    "scales": Inference("slide", (96, 96), (64, 64), (0.5, 1.0)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [(40, 20_000), (3000, 900), (2000, 2100), (20_000, 7)])
def test_kept_parts_cover_each_pixel_once_and_tiles_are_bounded(way, size):
    pixels = 1 << 20 if way != "slide" else 1 << 16
    count = np.zeros(size, np.uint8)
    for rows, columns in tiles(size, WAYS[way], pixels):
        count[rows.kept, columns.kept] += 1
        assert (rows.stop - rows.start) * (columns.stop - columns.start) < 2.1 * pixels
        assert rows.inner.stop - rows.inner.start == rows.kept_stop - rows.kept_start
    assert (count == 1).all()


def test_what_fits_is_one_tile_and_others_show_their_margin():
    ((rows, columns),) = tiles((100, 200), Inference(), 20_000)
    assert (rows.seen, columns.kept) == (slice(0, 100), slice(0, 200))
    spans = {columns for _, columns in tiles((2000, 4000), Inference(), 1 << 20)}
    ordered = sorted(spans, key=lambda span: span.start)
    assert len(ordered) > 3
    for left, right in itertools.pairwise(ordered):
        assert left.stop - left.kept_stop >= MARGIN
        assert right.kept_start - right.start >= MARGIN


def windows(start, stop, window, stride):
    """Where windows lie along a side, as `inference.py` lays them."""
    length = stop - start
    places = [min(at, length - window) for at in range(0, max(length - window, 0) + stride, stride)]
    return {start + at for at in places}


@pytest.mark.parametrize("length", [500, 501, 617, 649, 700])
@pytest.mark.parametrize(("window", "stride"), [(96, 50), (96, 64), (64, 64), (97, 32)])
def test_windows_over_a_kept_pixel_are_those_of_the_whole_image(length, window, stride):
    whole = windows(0, length, window, stride)
    found = list(tiles((1, length), Inference("slide", (1, window), (1, stride)), 250))
    assert len(found) > 1
    for _, span in found:
        here = windows(span.start, span.stop, window, stride)
        for pixel in range(span.kept_start, span.kept_stop):
            assert {w for w in here if w <= pixel < w + window} == {w for w in whole if w <= pixel < w + window}
