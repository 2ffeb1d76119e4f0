"""What users give by mistake, or their file managers leave behind: the message names it and the cure."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from miniatures import write_own
from PIL import Image

from datasets.catalog import BENCHMARKS
from datasets.readers.files import check_folder, images_in, instead, names_in
from datasets.readers.folder import folder
from datasets.readers.labels import read_index_png
from datasets.readers.voc import voc12
from datasets.sample import DataError, decode_image

OWN = ["voc12", "voc12_aug", "coco_voc", "coco_instances", "coco_panoptic", "camvid", "camvid_full", "siftflow", "lip",
       "folder"]  # fmt: skip


def archive(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as content:
        content.writestr("a.txt", "a")
    return path


def write_camvid(root: Path, stem: str = "0001TP") -> Path:
    for name in ("val", "valannot"):
        (root / name).mkdir(parents=True)
        cv2.imwrite(str(root / name / f"{stem}.png"), np.zeros((4, 5), np.uint8))
    return root


def grey_png(bits: int, rows: list[list[int]]) -> bytes:
    """A grey PNG of 1, 2, 4, 8 or 16 bits, laid out as in the standard."""
    packed = b"".join(b"\0" + _packed(row, bits) for row in rows)
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), bits, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(packed)), (b"IEND", b"")]
    body = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def _packed(row: list[int], bits: int) -> bytes:
    text = "".join(f"{value:0{bits}b}" for value in row)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


class TestSource:
    @pytest.mark.parametrize("name", OWN)
    def test_an_archive_instead_of_its_folder(self, tmp_path: Path, name: str) -> None:
        given = archive(tmp_path / "the release.zip")
        with pytest.raises(DataError, match=r"is an archive; unpack it: unzip '.*the release\.zip' -d"):
            BENCHMARKS[name](given).index("train")

    @pytest.mark.parametrize("name", OWN)
    def test_a_folder_that_holds_only_an_archive(self, tmp_path: Path, name: str) -> None:
        archive(tmp_path / "release.zip")
        (tmp_path / ".DS_Store").touch()
        with pytest.raises(DataError, match=r"holds only release\.zip\. .*unpack it: unzip"):
            BENCHMARKS[name](tmp_path).index("train")

    @pytest.mark.parametrize(
        ("name", "command"),
        [("a.tar", "tar -xf"), ("a.tar.gz", "tar -xf"), ("a.TGZ", "tar -xf"), ("a.7z", "7z x"), ("a.rar", "unrar x")],
    )
    def test_the_command_fits_the_archive(self, tmp_path: Path, name: str, command: str) -> None:
        (tmp_path / name).touch()
        with pytest.raises(DataError, match=f"unpack it: {command} .*{name}"):
            check_folder(tmp_path / name)

    def test_a_plain_file(self, tmp_path: Path) -> None:
        (tmp_path / "train.txt").touch()
        with pytest.raises(DataError, match="Give the folder of the unpacked release"):
            check_folder(tmp_path / "train.txt")

    def test_only_the_name_in_another_case_is_there(self, tmp_path: Path) -> None:
        (tmp_path / "CamVid").mkdir()
        with pytest.raises(DataError, match=r"no such folder\. .*CamVid is there: .* rename it to camvid"):
            check_folder(tmp_path / "camvid")

    def test_a_folder_of_only_junk_is_empty(self, tmp_path: Path) -> None:
        for name in (".DS_Store", "Thumbs.db", "._train"):
            (tmp_path / name).touch()
        with pytest.raises(DataError, match="empty"):
            check_folder(tmp_path)

    def test_archives_next_to_the_unpacked_folders_are_fine(self, tmp_path: Path) -> None:
        archive(write_camvid(tmp_path) / "CamVid.zip")
        check_folder(tmp_path)
        assert len(BENCHMARKS["camvid"](tmp_path).index("val")) == 1


class TestInstead:
    def test_a_folder_in_another_case(self, tmp_path: Path) -> None:
        (write_camvid(tmp_path) / "val").rename(tmp_path / "Val")
        with pytest.raises(DataError, match=r"/Val is there: upper and lower case count, rename it to val\."):
            BENCHMARKS["camvid"](tmp_path).index("val")

    def test_a_suffix_in_another_case(self, tmp_path: Path) -> None:
        root = tmp_path / "VOC2012"
        for name in ("ImageSets/Segmentation", "JPEGImages"):
            (root / name).mkdir(parents=True)
        (root / "ImageSets/Segmentation/test.txt").write_text("a\n")
        (root / "JPEGImages/a.JPG").touch()
        with pytest.raises(DataError, match=r"a\.JPG is there: upper and lower case count, rename it to a\.jpg"):
            voc12(tmp_path).index("test")

    def test_an_archive_inside_that_was_not_unpacked(self, tmp_path: Path) -> None:
        (tmp_path / "annotations").mkdir()
        archive(tmp_path / "other.zip")
        archive(tmp_path / "train2017.zip")
        assert "train2017.zip is an archive; unpack it: unzip" in instead(tmp_path / "train2017/1.jpg")
        assert "other.zip is an archive" in instead(tmp_path / "val2017/1.jpg")
        assert instead(tmp_path / "annotations/instances_val2017.json") == ""

    def test_a_missing_file_among_others_is_not_blamed_on_an_archive(self, tmp_path: Path) -> None:
        archive(write_camvid(tmp_path) / "val/more.zip")
        assert instead(tmp_path / "val/0002TP.png") == ""


class TestWhatFileManagersLeave:
    def test_names(self, tmp_path: Path) -> None:
        for name in ("b.JPG", "a.png", "._a.png", ".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt"):
            (tmp_path / name).touch()
        assert names_in(tmp_path) == ["a.png", "b.JPG", "notes.txt"]
        assert [path.name for path in images_in(tmp_path)] == ["a.png", "b.JPG"]

    def test_readers_skip_them(self, tmp_path: Path) -> None:
        camvid, own = write_camvid(tmp_path / "camvid"), write_own(tmp_path / "own", count=2)
        for path in (camvid / "val/._0001TP.png", own / "images/._000.jpg", own / "images/Thumbs.db"):
            path.write_bytes(b"\0\5\x16\7")
        assert [item.id for item in BENCHMARKS["camvid"](camvid).index("val")] == ["0001TP"]
        assert [item.id for item in folder(own).index("train")] == ["000", "001"]

    def test_symbolic_links_and_blanks_in_names(self, tmp_path: Path) -> None:
        real = write_camvid(tmp_path / "my disk" / "Cam Vid")
        (real / "val").rename(tmp_path / "elsewhere")
        (real / "val").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (tmp_path / "link").symlink_to(real, target_is_directory=True)
        camvid = BENCHMARKS["camvid"](tmp_path / "link")
        (item,) = camvid.index("val")
        assert camvid.read(item).mask.shape == (4, 5)


class TestImages:
    def test_sixteen_bits_keep_the_upper_eight(self) -> None:
        pixels = np.linspace(0, 65535, 60 * 40 * 3).reshape(60, 40, 3).astype(np.uint16)
        decoded = decode_image(cv2.imencode(".png", pixels)[1].tobytes())
        np.testing.assert_array_equal(decoded, pixels[..., ::-1] >> 8)

    @pytest.mark.parametrize("marked", [True, False])
    def test_cmyk_keeps_its_colours(self, marked: bool) -> None:
        """Photoshop and Pillow store the inverse; decoders assume it even where the marker is missing."""
        colours = np.array([(200, 40, 30), (20, 180, 60), (30, 60, 210), (240, 240, 230)], np.uint8)
        pixels = colours.repeat(32, 0)[None].repeat(64, 0)
        stream = io.BytesIO()
        Image.fromarray(pixels).convert("CMYK").save(stream, "JPEG", quality=95)
        data = stream.getvalue()
        start = data.index(b"\xff\xee")
        if not marked:
            data = data[:start] + data[start + 2 + struct.unpack(">H", data[start + 2 : start + 4])[0] :]
        assert np.abs(decode_image(data)[32, 16::32].astype(int) - colours).max() <= 3

    def test_grey_has_three_equal_channels(self) -> None:
        decoded = decode_image(cv2.imencode(".jpg", np.full((8, 9), 77, np.uint8))[1].tobytes())
        assert decoded.shape == (8, 9, 3)
        assert np.abs(decoded.astype(int) - 77).max() <= 1

    def test_a_rotated_photo_fits_the_mask_of_its_stored_pixels(self, tmp_path: Path) -> None:
        own = folder(write_own(tmp_path, count=1))
        item = own.index("train")[0]
        turned = Image.Exif()
        turned[0x0112] = 6
        Image.new("RGB", (50, 40)).save(item.image, exif=turned)
        assert own.read(item).mask.shape == (40, 50)
        cv2.imwrite(str(item.label), np.zeros((50, 40), np.uint8))
        with pytest.raises(DataError, match="without EXIF rotation"):
            own.read(item)

    def test_a_truncated_photo_is_named(self, tmp_path: Path) -> None:
        own = folder(write_own(tmp_path, count=1))
        item = own.index("train")[0]
        Path(item.image).write_bytes(Path(item.image).read_bytes()[:-40])
        with pytest.raises(DataError, match=r"000\.jpg: truncated image"):
            own.read(item)


class TestMasks:
    @pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
    def test_grey_of_any_depth_keeps_its_values(self, tmp_path: Path, bits: int) -> None:
        """Decoders stretch grey of 2 and 4 bits to 0..255; a mask's 3 must stay 3."""
        top = min(255, 2**bits - 1)
        rows = [[0, top, 1], [top // 2, 1, top]]
        (tmp_path / "mask.png").write_bytes(grey_png(bits, rows))
        mask = read_index_png(str(tmp_path / "mask.png"))
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, rows)

    @pytest.mark.parametrize("bits", [2, 4, 8])
    def test_palette_of_any_depth_keeps_its_indices(self, tmp_path: Path, bits: int) -> None:
        indices = np.arange(2**bits, dtype=np.uint8).reshape(2, -1)
        image = Image.fromarray(indices).convert("P")
        image.putdata(indices.reshape(-1).tolist())
        image.putpalette(np.random.default_rng(0).integers(0, 256, 3 * 2**bits).tolist())
        image.save(tmp_path / "mask.png", bits=bits)
        assert (tmp_path / "mask.png").read_bytes()[24] == bits
        np.testing.assert_array_equal(read_index_png(str(tmp_path / "mask.png")), indices)

    def test_values_above_255_are_never_wrapped(self, tmp_path: Path) -> None:
        (tmp_path / "mask.png").write_bytes(grey_png(16, [[0, 255, 1], [2, 256, 300]]))
        with pytest.raises(DataError, match=r"mask\.png: label value 256 at row 1, column 1; a mask of 16 bits"):
            read_index_png(str(tmp_path / "mask.png"))

    def test_a_truncated_mask_is_named(self, tmp_path: Path) -> None:
        data = grey_png(8, np.random.default_rng(0).integers(0, 20, (50, 60)).tolist())
        (tmp_path / "mask.png").write_bytes(data[: len(data) // 2])
        with pytest.raises(DataError, match=r"mask\.png: truncated PNG"):
            read_index_png(str(tmp_path / "mask.png"))
