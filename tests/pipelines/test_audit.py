"""audit: what it counts, the weights that a recipe takes, one row, and damage that --verify finds."""

import re
import sys
import unicodedata
from dataclasses import replace

import cv2
import numpy as np
import pytest
import yaml

from datasets.manifest import read_manifest, write_manifest
from datasets.readers.folder import folder
from datasets.readers.voc import voc12
from datasets.sample import Segment, decode_image, decode_mask
from datasets.shards import Shards
from datasets.writer import write_part
from pipelines import audit
from pipelines.base import pictures
from pipelines.base.door import run
from pipelines.base.pictures import blend, colour


@pytest.fixture
def look(monkeypatch, capsys, tmp_path):
    """Opens the door in a folder of its own; returns what it printed, or its refusal."""
    monkeypatch.chdir(tmp_path)

    def open_door(*words, code=0):
        monkeypatch.setattr(sys, "argv", ["audit", *map(str, words)])
        if not code:
            audit.main()
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as left:
            run(audit.main)
        assert left.value.code == code
        return capsys.readouterr().err

    return open_door


def test_counts_alone_read_no_row_and_write_nothing(shards, look, tmp_path):
    uri = shards / "voc12/val"
    shown, manifest = look(uri), read_manifest(str(uri))
    assert manifest.hash in shown
    assert "PARTIAL" in shown
    for name, pixels, images in zip(manifest.classes, manifest.histogram, manifest.images, strict=False):
        (line,) = [line for line in shown.splitlines() if line.split()[:1] == [name]]
        assert f"{pixels:,} pixels" in line
        assert f"in {images:>7,} images" in line
    share = manifest.boundary["1"] / sum(manifest.histogram[:-1])
    assert f"{share:.2%} of the labelled pixels have another class within 1 pixel(s)" in shown
    assert "not verified; --verify reads every row" in shown
    assert list(tmp_path.iterdir()) == []


def test_weights_can_be_pasted_into_a_recipe(shards, look):
    import torch

    from segmodels.losses import Objective

    lines = [line for line in look(shards / "voc12/train").splitlines() if line.startswith("loss: ")]
    assert len(lines) == 2
    logits, mask = torch.zeros(1, 21, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8)
    for line in lines:
        terms = yaml.safe_load(line)["loss"]
        weights = terms["logits"]["cross_entropy"]["class_weights"]
        assert len(weights) == 21
        loss, _ = Objective(terms)({"logits": logits}, mask)
        assert loss.item() == pytest.approx(weights[0] * np.log(21), rel=1e-5)


def test_verify_and_sheet(shards, look, tmp_path):
    shown = look(shards / "voc12/val", "--verify", "--sheet", tmp_path / "deep/sheet.png", "--images", 3)
    assert "all 2 file(s) and 11 rows verified" in shown
    assert "contact sheet of 3 images" in shown
    assert cv2.imread(str(tmp_path / "deep/sheet.png")).shape[1] == 4 * 324


@pytest.mark.parametrize(("place", "message"), [("/proc/x/a.png", "cannot write to /proc/x"), (".", "is a folder")])
def test_a_sheet_that_cannot_be_written_is_refused_first(shards, look, place, message):
    assert message in look(shards / "voc12/val", "--sheet", place, code=2)


def test_verify_names_the_damaged_file(shards, look, tmp_path):
    import shutil

    shutil.copytree(shards / "voc12/val", tmp_path / "damaged")
    part = tmp_path / "damaged/part-00001.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    look(tmp_path / "damaged")  # counts alone do not read it
    message = look(tmp_path / "damaged", "--verify", code=2)
    assert "1 problem(s)" in message
    assert "corrupt shard" in message
    assert "part-00001" in message


def test_a_row_by_its_id(shards, look, tmp_path):
    held = Shards(str(shards / "voc12/val"))
    name, row = held.ids[7], held.peek(7)
    shown = look(shards / "voc12/val", "--row", name)
    image, mask = decode_image(row["image"]), decode_mask(row["mask"])
    assert all(text in shown for text in (f"row 7 of 11: {name}", row["sha256"], row["digest"], f"{name}.png"))
    for number in range(21):
        pixels = int((mask == number).sum())
        assert (f"{held.manifest.classes[number]:>20}  {pixels:>12,} pixels" in shown) == (pixels > 0)
    picture = cv2.imread(str(tmp_path / f"{name}.png"))[..., ::-1]
    (height, width), palette = mask.shape, held.manifest.palette
    np.testing.assert_array_equal(picture[:height, :width], image)
    np.testing.assert_array_equal(picture[:height, width + 4 : 2 * width + 4], colour(mask, palette))
    np.testing.assert_array_equal(picture[:height, 2 * width + 8 : 3 * width + 8], blend(image, mask, palette))


def test_an_unknown_row_is_answered_with_the_nearest_ids(shards, look):
    ids = Shards(str(shards / "voc12/val")).ids
    message = look(shards / "voc12/val", "--row", ids[4].replace("_", "-"), code=2)
    assert "among its 11" in message
    assert ids[4] in message.partition("nearest ids: ")[2]
    assert ids[0] in look(shards / "voc12/val", "--row", "????", code=2)


def test_a_row_with_objects_lists_them_and_one_without_a_mask_is_shown(release, look, tmp_path):
    voc = voc12(release)
    item = voc.index("val")[0]
    objects = (Segment(3, False, (1.5, 2, 3, 4), b"x"), Segment(15, True, (0, 0, 30, 20), b"y"))
    changed = replace(voc.read(item), segments=objects)
    for name, sample in (("objects", changed), ("bare", replace(changed, mask=None, segments=None))):
        uri = str(tmp_path / name)
        benchmark = replace(voc, read=Constant(sample), splits={"val": None})
        write_manifest(uri, benchmark, "val", [write_part(uri, 0, [item], benchmark, "val")], False)
    shown = look(tmp_path / "objects", "--row", item.id, "--verify")
    person, bird = shown.index("person  0, 0, 30, 20, a crowd"), shown.index("bird  1.5, 2, 3, 4\n")
    assert "2 segment(s)" in shown
    assert person < bird
    assert "all 1 file(s) and 1 rows verified" in shown
    assert "no mask" in look(tmp_path / "bare", "--row", item.id)
    assert "no labels" in look(tmp_path / "bare", "--sheet", tmp_path / "bare.png")
    assert (tmp_path / "bare.png").exists()


def test_a_row_is_found_in_either_normal_form(tmp_path, look):
    root, out = tmp_path / "mine", tmp_path / "out"
    name = unicodedata.normalize("NFD", "Äpfel/ü")
    for kind in ("images", "masks"):
        (root / kind / name).parent.mkdir(parents=True)
        cv2.imwrite(str(root / kind / f"{name}.png"), np.zeros((4, 3), np.uint8))
    (root / "classes.yaml").write_text("classes: ['a$_$', '汽车']", encoding="utf-8")
    own = folder(root)
    write_manifest(str(out), own, "train", [write_part(str(out), 0, own.index("train"), own, "train")], False)
    shown = look(out, "--row", unicodedata.normalize("NFC", name), "--verify")
    assert f"row 0 of 1: {unicodedata.normalize('NFC', name)}" in shown
    assert cv2.imread(re.search("picture: (.*)", shown)[1]).shape[1] == 160  # the legend has room


def test_problems_of_many_rows_are_counted_and_ten_named(shards, look, monkeypatch):
    monkeypatch.setattr("datasets.shards.row_problems", lambda rows, classes: [f"row {i}" for i in range(len(rows))])
    message = look(shards / "voc12/trainval", "--verify", code=2)
    assert "29 problem(s)" in message
    assert message.count("\n  part-") == 10
    assert "\n  ... and 19 more\n" in message


NAMES = [
    "汽车",
    "a$_$b",
    "$5_$10",
    "1$ and 5$_",
    'it\'s, "x"/y',
    "x" * 300,
    "x" * 299 + "y",
    "a\nb\tc",
    "Straße",
    "плуг",
]


@pytest.mark.filterwarnings("error")
def test_names_of_any_kind_become_labels(tmp_path):
    counts, title = np.eye(len(NAMES)), "run $_$ 汽"
    for figure in (
        pictures.confusion_figure(counts, NAMES, title), pictures.iou_figure([0.1] * len(NAMES), NAMES, title)
    ):  # fmt: skip
        figure.savefig(tmp_path / "figure.png")
        texts = {label.get_text() for axes in figure.axes for label in axes.get_yticklabels()}
        assert {"0 □□", "a$_$b", "$5_$10", "1$ and 5$_", "Straße", "плуг", "a b c"} <= texts
    texts = pictures.labels(NAMES, 18)
    assert len(set(texts)) == len(NAMES)
    assert max(map(len, texts)) <= 18
    white = pictures.legend([""] * 3, [(255, 255, 255)] * 3, 480)
    sheets = [pictures.legend([name] * 3, [(255, 255, 255)] * 3, 480) for name in ("Straße", "Strasse", "???")]
    assert len({sheet.tobytes() for sheet in (white, *sheets)}) == 4


def test_unlike_ids_have_unlike_files():
    ids = ["a", "a/b", "a_b", "汽", "车", "", ".", "..", ".x", "x" * 300, "y" + "x" * 299, "a b", "\udce9"]
    names = [pictures.safe_name(name) for name in ids]
    assert len(set(names)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,120}", name) for name in names)
    assert (names[0], names[2]) == ("a", "a_b")


def test_one_portrait_leaves_no_sheet_half_white():
    def row(height, width):
        return f"{height}", np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)

    rows = [row(240, 320)] * 7
    usual = pictures.contact_sheet([*rows, row(240, 320)], ["a"], [(9, 9, 9)])
    for odd in (row(480, 320), row(5000, 1), row(1, 5000), row(1, 1), row(4000, 3000)):
        sheet = pictures.contact_sheet([*rows, odd], ["a"], [(9, 9, 9)])
        assert sheet.shape == usual.shape
        assert (sheet == 255).all(-1).mean() < 0.2
    portraits = pictures.contact_sheet([row(480, 320)] * 8, ["a"], [(9, 9, 9)])
    assert (portraits == 255).all(-1).mean() < 0.1
    assert pictures.contact_sheet([("a", *row(240, 320)[1:2], None)], ["a"], [(9, 9, 9)]).shape[1] == 4 * 324


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (3, 20000), (3000, 4000)])
def test_overlays_of_any_size(tmp_path, size):
    mask = np.zeros(size, np.uint8)
    path = pictures.save_overlay(tmp_path / "a.png", np.zeros((*size, 3), np.uint8), mask, mask, [(9, 9, 9)])
    height, width, _ = cv2.imread(path).shape
    assert max(height, width) <= pictures.LARGEST + 8
    assert height >= min(240, size[0]) or width > pictures.LARGEST // 2


class Constant:
    """A reader that always gives one sample; it can be pickled."""

    def __init__(self, sample):
        self.sample = sample

    def __call__(self, item):
        return self.sample
