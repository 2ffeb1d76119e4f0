"""Pixels that are kept: the same bits, bounded, whole or not there."""

import hashlib
import os
import time

import cv2
import numpy as np
import pytest

from datasets import pixels
from datasets.manifest import write_manifest
from datasets.pixels import Pixels
from datasets.readers.folder import folder as folder_reader
from datasets.sample import decode_image
from datasets.shards import Shards
from datasets.writer import write_part

SIDE = 24


@pytest.fixture(autouse=True)
def _small_images_count(monkeypatch):
    monkeypatch.setattr(pixels, "LEAST_PIXELS", SIDE * SIDE)


def picture(number, side=SIDE, ending=".png"):
    """A file's bytes and their sha256."""
    image = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
    data = cv2.imencode(ending, image)[1].tobytes()
    return data, hashlib.sha256(data).hexdigest()


def files(cache):
    return sorted(path.name for path in cache.folder.iterdir()) if cache.folder.exists() else []


def test_kept_pixels_are_the_decoded_ones_and_read_only(tmp_path):
    one, other = Pixels(tmp_path), Pixels(tmp_path)  # as two processes have them
    data, name = picture(0)
    assert one.find(name) is None
    assert np.array_equal(one.decode(data, name), decode_image(data))
    found = other.find(name)
    assert type(found) is np.ndarray
    assert np.array_equal(found, decode_image(data))
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0, 0] = 1


@pytest.mark.parametrize(("ending", "side"), [(".jpg", SIDE), (".png", SIDE - 1)])
def test_what_decodes_fast_is_not_kept(tmp_path, ending, side):
    cache = Pixels(tmp_path)
    data, name = picture(1, side, ending)
    assert np.array_equal(cache.decode(data, name), decode_image(data))
    assert files(cache) == []


def test_they_take_no_more_than_they_may(tmp_path):
    cache = Pixels(tmp_path, limit=3 * SIDE * SIDE * 3 + 500)
    for number in range(6):
        cache.decode(*picture(number))
    assert len(files(cache)) == 3
    again = Pixels(tmp_path, limit=3 * SIDE * SIDE * 3 + 500)
    again.decode(*picture(7))
    assert len(files(again)) == 3
    none = Pixels(tmp_path / "none", limit=0)
    none.decode(*picture(0))
    assert files(none) == []


def test_the_users_limit_counts(monkeypatch):
    assert pixels.usual_limit() == pytest.approx(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 4, rel=1e-6)
    monkeypatch.setenv("PIXEL_CACHE_GIB", "0.5")
    assert pixels.usual_limit() == 1 << 29


def test_what_was_not_read_for_a_day_or_is_of_an_earlier_start_goes(tmp_path):
    cache = Pixels(tmp_path)
    old, young = picture(0), picture(1)
    cache.decode(*old)
    cache.decode(*young)
    before = time.time() - pixels.KEPT_S - 1
    for _, name in (old, young):
        os.utime(cache.folder / f"{name}.npy", (before, before))
    assert cache.find(young[1]) is not None  # read now
    stale = cache.folder.with_name(f"{cache.folder.name.partition('.')[0]}.earlier")
    stale.mkdir()
    other = tmp_path / "another-machine.boot"
    other.mkdir()
    Pixels(tmp_path).decode(*picture(2))
    assert cache.find(old[1]) is None
    assert cache.find(young[1]) is not None
    assert other.exists()
    assert not stale.exists()


@pytest.mark.parametrize("rest", [b"", b"\x93NUMPY", b"nonsense"])
def test_a_file_that_is_cut_short_is_passed_over(tmp_path, rest):
    cache = Pixels(tmp_path)
    data, name = picture(0)
    cache.decode(data, name)
    (cache.folder / f"{name}.npy").write_bytes(rest)
    assert cache.find(name) is None


def test_a_full_disk_costs_only_time(tmp_path, monkeypatch):
    def full(stream, image):
        stream.write(b"some")
        raise OSError(28, "No space left on device")

    cache = Pixels(tmp_path)
    monkeypatch.setattr(pixels.np, "save", full)
    data, name = picture(0)
    assert np.array_equal(cache.decode(data, name), decode_image(data))
    assert files(cache) == []
    monkeypatch.undo()
    monkeypatch.setattr(pixels, "LEAST_PIXELS", 1)
    cache.decode(data, name)
    assert files(cache) == []  # it does not try again for each image


def test_shards_give_the_same_samples_from_kept_pixels(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / "source" / kind).mkdir(parents=True)
    for number in range(3):
        (tmp_path / f"source/images/{number}.png").write_bytes(picture(number)[0])
        mask = np.full((SIDE, SIDE), number % 2, np.uint8)
        cv2.imwrite(str(tmp_path / f"source/masks/{number}.png"), mask)
    (tmp_path / "source/classes.yaml").write_text("classes: {0: road, 1: car}\n")
    benchmark = folder_reader(tmp_path / "source", val=0.0)
    uri = str(tmp_path / "train")
    write_manifest(uri, benchmark, "train", [write_part(uri, 0, benchmark.index("train"), benchmark, "train")], True)
    first, second = Shards(uri, tmp_path / "cache"), Shards(uri, tmp_path / "cache")
    for row in range(3):
        image, mask = first.sample(row)
        kept, labels = second.sample(row)
        assert np.array_equal(image, decode_image(first.encoded(row)[0]))
        assert not kept.flags.writeable
        assert np.array_equal(kept, image)
        assert np.array_equal(labels, mask)
