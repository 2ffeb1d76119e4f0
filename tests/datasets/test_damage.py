"""Images and masks that are damaged inside, lossy, of another format or too large: refused, or left out when told."""

import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from miniatures import write_own
from PIL import Image

from datasets import sample
from datasets.damage import decode_checked
from datasets.manifest import read_manifest, write_manifest
from datasets.readers.colours import read_colour_png
from datasets.readers.folder import folder
from datasets.readers.labels import read_image, read_index_png
from datasets.rows import row_problems
from datasets.sample import DAMAGED, Benchmark, DataError, decode_image
from datasets.shards import Shards, verify
from datasets.writer import write_part

KINDS = {"baseline": {}, "progressive": {"progressive": True}, "restarts": {"restart_marker_rows": 1}}


def photo(size: tuple[int, int] = (120, 160)) -> np.ndarray:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (8, 10, 3), np.uint8)
    smooth = cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.integers(-12, 12, smooth.shape), 0, 255).astype(np.uint8)


def encoded(kind: str, pixels: np.ndarray | None = None, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(photo() if pixels is None else pixels).save(stream, kind, **options)
    return stream.getvalue()


class TestJpeg:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("damage", ["hole", "cut", "cut and closed", "a part is missing", "a stretch of noise"])
    def test_damage_inside(self, kind: str, damage: str) -> None:
        good = encoded("JPEG", quality=90, **KINDS[kind])
        third, end = len(good) // 3, good[-2:]
        noise = np.random.default_rng(1).integers(0, 256, 2000, np.uint8).tobytes()
        bad = {
            "hole": good[:third] + bytes(len(good) - third - 2) + end,
            "cut": good[:third],
            "cut and closed": good[:third] + end,
            "a part is missing": good[:third] + good[third + 1500 :],
            "a stretch of noise": good[:third] + noise + good[third + 2000 :],
        }[damage]
        with pytest.raises(DataError, match=r"damaged image|truncated image") as caught:
            decode_checked(bad)
        assert caught.value.kind == DAMAGED

    @pytest.mark.parametrize("kind", KINDS)
    def test_habits_of_writers_are_no_damage(self, kind: str) -> None:
        good = encoded("JPEG", quality=90, **KINDS[kind])
        for habit in (good, good + b"camera", good[:-2] + bytes(8) + good[-2:], good[:-2] + b"\1\2" + good[-2:]):
            np.testing.assert_array_equal(decode_checked(habit), decode_image(good))

    def test_other_lines_on_stderr_are_passed_on(self, capfd: pytest.CaptureFixture, monkeypatch) -> None:
        def decode(data: bytes) -> np.ndarray:
            os.write(2, b"somebody else's line\nCorrupt JPEG data: premature end of data segment\n")
            return photo()

        monkeypatch.setattr("datasets.damage.decode_image", decode)
        with pytest.raises(DataError, match="premature end"):
            decode_checked(b"")
        assert capfd.readouterr().err == "somebody else's line\n"


class TestPng:
    @pytest.mark.parametrize("level", [0, 6])
    @pytest.mark.parametrize("damage", ["flip", "hole", "cut", "no end"])
    def test_damage_inside(self, tmp_path: Path, level: int, damage: str) -> None:
        good = encoded("PNG", photo()[..., 0], compress_level=level)
        third = len(good) // 3
        bad = {
            "flip": good[:third] + bytes([good[third] ^ 1]) + good[third + 1 :],
            "hole": good[:third] + bytes(50) + good[third + 50 :],
            "cut": good[:third],
            "no end": good[:-12],
        }[damage]
        (tmp_path / "x.png").write_bytes(bad)
        for read in (read_index_png, read_image, read_colour_png):
            with pytest.raises(DataError, match=r"x\.png: (damaged|truncated)") as caught:
                read(str(tmp_path / "x.png"))
            assert caught.value.kind == DAMAGED

    def test_a_lost_chunk_of_pixels(self) -> None:
        good = encoded("PNG", np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8))
        first = good.index(b"IDAT") - 4
        second = good.index(b"IDAT", first + 8) - 4
        for bad in (good[:first] + good[second:], good[:second] + good[-12:]):
            with pytest.raises(DataError, match="damaged PNG"):
                decode_checked(bad)


class TestMasksOfOtherFormats:
    VALUES = np.random.default_rng(0).integers(0, 5, (9, 14), np.uint8)

    @pytest.mark.parametrize("kind", ["TIFF", "BMP"])
    @pytest.mark.parametrize("name", ["x.png", "x.tif", "x.jpg"])
    def test_lossless_ones_are_read_whatever_their_name(self, tmp_path: Path, kind: str, name: str) -> None:
        (tmp_path / name).write_bytes(encoded(kind, self.VALUES))
        np.testing.assert_array_equal(read_index_png(str(tmp_path / name)), self.VALUES)

    @pytest.mark.parametrize(
        ("kind", "options"),
        [("JPEG", {"quality": 100}), ("JPEG2000", {}), ("WEBP", {}), ("TIFF", {"compression": "jpeg"})],
    )
    @pytest.mark.parametrize("name", ["x.png", "x.tif", "x.jpg"])
    def test_lossy_ones_are_refused_whatever_their_name(
        self, tmp_path: Path, kind: str, options: dict, name: str
    ) -> None:
        (tmp_path / name).write_bytes(encoded(kind, self.VALUES, **options))
        for read in (read_index_png, read_colour_png):
            with pytest.raises(DataError, match=rf"by its content the mask is a {kind}.*Export it as PNG") as caught:
                read(str(tmp_path / name))
            assert not caught.value.kind  # not one of those that --skip-damaged leaves out

    def test_several_pictures_and_unknown_formats(self, tmp_path: Path) -> None:
        page = Image.fromarray(self.VALUES)
        page.save(tmp_path / "two.tif", save_all=True, append_images=[page])
        page.save(tmp_path / "x.ppm")
        with pytest.raises(DataError, match=r"two\.tif: the file holds 2 pictures"):
            read_index_png(str(tmp_path / "two.tif"))
        with pytest.raises(DataError, match="the mask is a PPM; allowed are PNG, TIFF, BMP, GIF"):
            read_index_png(str(tmp_path / "x.ppm"))

    def test_negative_values_are_never_wrapped(self, tmp_path: Path) -> None:
        Image.fromarray(np.array([[0, -1]], np.int32)).save(tmp_path / "x.tif")
        with pytest.raises(DataError, match="label value -1 at row 0, column 1"):
            read_index_png(str(tmp_path / "x.tif"))


class TestImagesOfOtherFormats:
    @pytest.mark.parametrize(
        ("kind", "options"),
        [("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("BMP", {}), ("WEBP", {"lossless": True})],
    )
    def test_their_pixels_become_a_png(self, tmp_path: Path, kind: str, options: dict) -> None:
        (tmp_path / "x").write_bytes(encoded(kind, **options))
        data, size = read_image(str(tmp_path / "x"))
        assert (data[:4], size) == (b"\x89PNG", (120, 160))
        np.testing.assert_array_equal(decode_image(data), photo())

    def test_grey_palette_and_16_bits(self, tmp_path: Path) -> None:
        grey = np.dstack([photo()[..., 0]] * 3)
        for data, pixels in (
            (encoded("TIFF", grey[..., 0]), grey),
            (encoded("TIFF", grey[..., 0].astype(np.uint16) << 8), grey),
            (encoded("TIFF", np.where(grey[..., 0] > 99, 255, 0) > 0), np.where(grey > 99, 255, 0)),
            (cv2.imencode(".tiff", photo()[..., ::-1].astype(np.uint16) << 8)[1].tobytes(), photo()),
        ):
            (tmp_path / "x").write_bytes(data)
            np.testing.assert_array_equal(decode_image(read_image(str(tmp_path / "x"))[0]), pixels)

    @pytest.mark.parametrize("name", ["x.jpg", "x.jfif", "x.jpe"])
    def test_the_bytes_of_a_jpeg_are_kept(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(encoded("JPEG"))
        assert read_image(str(tmp_path / name))[0] == encoded("JPEG")

    @pytest.mark.parametrize(
        ("data", "match"),
        [
            (b"", "the file is empty"),
            (b"<!DOCTYPE html>", "neither JPEG nor PNG, TIFF, BMP or WebP"),
            (encoded("GIF"), "neither JPEG nor PNG, TIFF, BMP or WebP"),
            (encoded("TIFF")[:900], "damaged TIFF|does not decode"),
            (encoded("BMP")[:900], "damaged BMP|does not decode"),
            (encoded("WEBP")[:300], "damaged WebP|does not decode"),
            (encoded("TIFF", np.zeros((4, 5), np.float32)), "a TIFF that does not decode.*16 bits"),
        ],
    )
    def test_what_does_not_read_is_named_with_its_cure(self, tmp_path: Path, data: bytes, match: str) -> None:
        (tmp_path / "x.tif").write_bytes(data)
        with pytest.raises(DataError, match=rf"(?s)x\.tif: .*({match}).*(convert|fetch)"):
            read_image(str(tmp_path / "x.tif"))

    def test_several_pictures(self, tmp_path: Path) -> None:
        page = Image.fromarray(photo())
        page.save(tmp_path / "two.tif", save_all=True, append_images=[page])
        with pytest.raises(DataError, match=r"two\.tif: the file holds 2 pictures"):
            read_image(str(tmp_path / "two.tif"))


class TestSizes:
    def test_pillows_limit_is_lifted_for_ours(self) -> None:
        assert Image.MAX_IMAGE_PIXELS is None

    @pytest.mark.parametrize(("limit", "value"), [("MOST_PIXELS", 1999), ("MOST_SIDE", 49)])
    @pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
    def test_too_large_is_one_message(self, tmp_path: Path, monkeypatch, limit: str, value: int, kind: str) -> None:
        own = folder(write_own(tmp_path, count=1))
        (item,) = own.index("train")
        Image.fromarray(photo((40, 50))).save(tmp_path / f"x.{kind}")
        Path(item.image).write_bytes((tmp_path / f"x.{kind}").read_bytes())
        monkeypatch.setattr(sample, limit, value)
        with pytest.raises(DataError, match=r"000\.jpg: 50x40 pixels .*Cut image and mask .*--tile N"):
            own.read(item)
        with pytest.raises(DataError, match=r"000\.png: 50x40 pixels .*Cut image and mask .*--tile N"):
            read_index_png(str(item.label))

    @pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (3, 20000)])
    def test_thin_ones_go_through(self, tmp_path: Path, size: tuple[int, int]) -> None:
        own = folder(write_own(tmp_path / "own", count=2, size=size))
        uri = str(tmp_path / "out")
        write_manifest(uri, own, "train", [write_part(uri, 0, own.index("train"), own, "train")], False)
        assert verify(uri) == []
        image, mask = Shards(uri, tmp_path / "cache").sample(1)
        assert (image.shape[:2], mask.shape) == (size, size)

    def test_too_little_memory_is_one_message(self, tmp_path: Path, monkeypatch) -> None:
        own = folder(write_own(tmp_path / "own", count=1))

        def fail(*_: object) -> None:
            raise MemoryError("12 GiB")

        monkeypatch.setattr("datasets.writer.make_row", fail)
        with pytest.raises(DataError, match=r"000\.jpg: too large for the free memory .*tiles"):
            write_part(str(tmp_path / "out"), 0, own.index("train"), own, "train")


class TestSkipping:
    @pytest.fixture
    def damaged(self, tmp_path: Path) -> Benchmark:
        root = write_own(tmp_path / "own", count=6, size=(120, 160))
        good = encoded("JPEG")
        (root / "images/001.jpg").write_bytes(good[: len(good) // 3] + good[-2:])
        mask = (root / "masks/004.png").read_bytes()
        (root / "masks/004.png").write_bytes(mask[:300] + bytes([mask[300] ^ 1]) + mask[301:])
        return folder(root)

    def test_damaged_rows_are_left_out_and_listed(self, damaged: Benchmark, tmp_path: Path) -> None:
        uri, items = str(tmp_path / "out"), damaged.index("train")
        with pytest.raises(DataError, match=r"(?s)2 rows of one file .*001\.jpg.*004\.png"):
            write_part(uri, 0, items, damaged, "train")
        record = write_part(uri, 0, items, damaged, "train", skip_damaged=True)
        assert (record["rows"], [entry["id"] for entry in record["skipped"]]) == (4, ["001", "004"])
        again = write_part(uri, 0, items, damaged, "train", skip_damaged=True)
        assert again == record | {"kept": True}
        manifest = write_manifest(uri, damaged, "train", [again], False)
        assert read_manifest(uri) == manifest
        assert "premature end" in manifest.skipped[0]["why"]
        assert Shards(uri, tmp_path / "cache").ids == ["000", "002", "003", "005"]
        assert verify(uri) == []

    def test_a_file_that_lacks_rows_is_not_kept_by_a_run_that_skips_none(
        self, damaged: Benchmark, tmp_path: Path
    ) -> None:
        uri, items = str(tmp_path / "out"), damaged.index("train")
        write_part(uri, 0, items, damaged, "train", skip_damaged=True)
        with pytest.raises(DataError, match="2 rows of one file"):
            write_part(uri, 0, items, damaged, "train")

    def test_other_faults_are_still_faults(self, damaged: Benchmark, tmp_path: Path) -> None:
        item = damaged.index("train")[2]
        cv2.imwrite(str(item.label), np.full((120, 160), 9, np.uint8))
        with pytest.raises(DataError, match="label value 9"):
            write_part(str(tmp_path / "out"), 0, damaged.index("train"), damaged, "train", skip_damaged=True)

    def test_a_file_or_a_split_without_a_row(self, damaged: Benchmark, tmp_path: Path) -> None:
        uri, items = str(tmp_path / "out"), damaged.index("train")
        bad, good = [items[1], items[4]], items[:1]
        records = [write_part(uri, i, part, damaged, "train", skip_damaged=True) for i, part in enumerate((bad, good))]
        assert [record["rows"] for record in records] == [0, 1]
        manifest = write_manifest(uri, damaged, "train", records, True)
        assert (manifest.rows, len(manifest.skipped)) == (1, 2)
        assert Shards(uri, tmp_path / "cache").ids == ["000"]
        assert verify(uri) == []
        with pytest.raises(DataError, match="no row is left, all 2 are damaged"):
            write_manifest(uri, damaged, "train", records[:1], True)

    def test_shards_of_before_are_checked_when_verified(self) -> None:
        good = encoded("JPEG")
        row = {"id": "a", "image": good[: len(good) // 3] + good[-2:], "height": 120, "width": 160, "mask": None}
        import hashlib

        (problem,) = row_problems([row | {"sha256": hashlib.sha256(row["image"]).hexdigest()}], 2)
        assert "damaged image" in problem
        assert "prepare again" not in problem
