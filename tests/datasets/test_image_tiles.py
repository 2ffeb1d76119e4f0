"""Large images as tiles, and images whose bands or bits are not all taken."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from exported import parquet
from miniatures import through_shards, write_own
from PIL import Image

from datasets.exports.catalog import own_data
from datasets.exports.records import Told
from datasets.readers.bands import bands_of
from datasets.sample import DataError, decode_image
from datasets.tiles import parts, tiled
from datasets.writer import fingerprint, plan_files


@pytest.mark.parametrize(("length", "side"), [(64, 64), (65, 64), (200, 64), (1, 64), (4097, 4096), (999, 100)])
def test_parts_cover_a_side_once_and_are_nearly_equal(length: int, side: int) -> None:
    found = parts(length, side)
    assert [k for first, end in found for k in range(first, end)] == list(range(length))
    sizes = [end - first for first, end in found]
    assert max(sizes) <= side
    assert max(sizes) - min(sizes) <= 1
    assert len(found) == -(-length // side)


def test_tiles_hold_every_pixel_once(tmp_path: Path) -> None:
    root = write_own(tmp_path / "own", count=2, size=(100, 150))
    whole = own_data(root, None, Told(val=0.5)).benchmark
    cut = own_data(root, None, Told(val=0.5), tile=64).benchmark
    shards = {name: through_shards(b, "train", tmp_path / name) for name, b in (("whole", whole), ("cut", cut))}
    assert shards["cut"].manifest.histogram == shards["whole"].manifest.histogram
    assert sum(shards["cut"].manifest.histogram) == 100 * 150
    (stem,) = shards["whole"].ids
    assert list(shards["cut"].ids) == [f"{stem}_y{y:05d}_x{x:05d}" for y in (0, 50) for x in (0, 50, 100)]
    (item,) = whole.index("train")
    sample, canvas = whole.read(item), np.zeros((100, 150, 3), np.uint8)
    mask = np.zeros((100, 150), np.uint8)
    copy = pickle.loads(pickle.dumps(cut))
    for row in copy.index("train"):
        part = copy.read(row)
        top, left = int(row.id[-12:-7]), int(row.id[-5:])
        canvas[top : top + 50, left : left + 50] = decode_image(part.image)
        mask[top : top + 50, left : left + 50] = part.mask
    np.testing.assert_array_equal(canvas, decode_image(sample.image))
    np.testing.assert_array_equal(mask, sample.mask)


def test_small_images_stay_as_they_are(tmp_path: Path) -> None:
    benchmark = own_data(write_own(tmp_path, count=2, size=(64, 40)), None, Told()).benchmark
    whole, cut = benchmark.index("train"), tiled(benchmark, 64).index("train")
    assert cut == whole
    with pytest.raises(DataError, match="--tile 63: allowed are 64 pixels or more"):
        tiled(benchmark, 63)


def test_a_changed_mask_changes_the_fingerprint_of_its_tiles(tmp_path: Path) -> None:
    root = write_own(tmp_path, count=1, size=(100, 150))
    benchmark = own_data(root, None, Told(), tile=64).benchmark
    items = benchmark.index("train")
    before = fingerprint(items, benchmark, "train")
    assert fingerprint(items, benchmark, "train") == before
    (root / "masks/000.png").touch()
    assert fingerprint(items, benchmark, "train") != before


def test_tables_are_cut_too_and_their_rows_share_files(tmp_path: Path) -> None:
    root = parquet(tmp_path / "hf")
    benchmark = own_data(root, None, Told()).benchmark
    assert len(plan_files(benchmark.index("train"))) == 1
    assert own_data(root, None, Told(), tile=64).benchmark.index("train") == benchmark.index("train")


def write_images(root: Path, **images: np.ndarray) -> Path:
    """The user's own folder with images of these pixels, all of TIFF."""
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    (root / "classes.yaml").write_text("classes: [a, b]\n")
    for name, pixels in images.items():
        if pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4):
            write_tiff(root / f"images/{name}.tif", pixels)
        else:
            assert cv2.imwrite(str(root / f"images/{name}.tif"), pixels)
        cv2.imwrite(str(root / f"masks/{name}.png"), np.zeros(pixels.shape[:2], np.uint8))
    return root


def write_tiff(path: Path, pixels: np.ndarray) -> None:
    """A plain TIFF of any number of bands: a header, the pixels, one directory."""
    height, width, bands = pixels.shape
    data = pixels.tobytes()
    at = 8 + len(data)
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, bands, at), (259, 3, 1, 1), (262, 3, 1, 1),
            (273, 4, 1, 8), (277, 3, 1, bands), (278, 4, 1, height), (279, 4, 1, len(data))]  # fmt: skip
    bits = np.full(bands, 8 * pixels.itemsize, "<u2").tobytes()
    entries = b"".join(np.array([tag, kind], "<u2").tobytes() + np.array([count, value], "<u4").tobytes()
                       for tag, kind, count, value in tags)  # fmt: skip
    directory = np.array([len(tags)], "<u2").tobytes() + entries + bytes(4)
    path.write_bytes(b"II*\0" + np.array([at + len(bits)], "<u4").tobytes() + data + bits + directory)


class TestBands:
    def test_many_bands_and_floats_are_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        root = write_images(tmp_path, five=np.zeros((8, 9, 5), np.uint8), real=np.zeros((8, 9), np.float32),
                            rgb=np.zeros((8, 9, 3), np.uint8))  # fmt: skip
        told = r"2 image\(s\) are no pictures.*five.tif has 5 bands of 8 bits, .*real.tif has 1 band of 32 bits float"
        with pytest.raises(DataError, match=told + r"ing point.*gdal_translate -b 3 -b 2 -b 1"):
            own_data(root, None, Told())
        benchmark = own_data(root, None, Told(damaged=True)).benchmark  # left out one by one, with --skip-damaged
        kinds = {}
        for item in benchmark.index("train"):
            try:
                kinds[item.id] = benchmark.read(item).id
            except DataError as error:
                kinds[item.id] = error.kind
        assert kinds == {"five": "damaged", "real": "damaged", "rgb": "rgb"}

    def test_deep_images_and_a_fourth_band_are_told(self, tmp_path: Path) -> None:
        deep = np.full((8, 9), 300, np.uint16)
        deep[0, 0] = 3100
        root = write_images(tmp_path, deep=deep, infrared=np.zeros((8, 9, 4), np.uint8))
        told = "\n".join(own_data(root, None, Told()).benchmark.notes)
        assert "WARNING: not taken, the lower 8 of the 16 bits of 1 image(s): images/deep.tif" in told
        assert "images/deep.tif holds 300 to 3100, so it becomes 1 to 12" in told
        assert "gdal_translate -ot Byte -scale" in told
        assert "not taken, the fourth band of 1 image(s): images/infrared.tif" in told

    def test_headers(self, tmp_path: Path) -> None:
        Image.new("LA", (4, 5)).save(tmp_path / "a.png")
        Image.new("RGB", (4, 5)).save(tmp_path / "a.jpg")
        (tmp_path / "b.tif").write_bytes(b"II*\0\xff\xff\xff\xff")
        found = {}
        for name in ("a.png", "a.jpg", "b.tif"):
            with (tmp_path / name).open("rb") as stream:
                found[name] = str(bands_of(stream))
        assert found == {"a.png": "2 bands of 8 bits", "a.jpg": "None", "b.tif": "None"}
