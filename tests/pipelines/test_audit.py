"""audit: what it counts, the weights that a recipe takes, one row, and damage that --verify finds."""

import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import yaml

from datasets.manifest import read_manifest, write_manifest
from datasets.readers.voc import voc12
from datasets.sample import Segment, decode_image, decode_mask
from datasets.shards import Shards
from datasets.writer import write_part
from pipelines import audit
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
    np.testing.assert_array_equal(picture[:height, 2 * width + 8 :], blend(image, mask, palette))


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


class Constant:
    """A reader that always gives one sample; it can be pickled."""

    def __init__(self, sample):
        self.sample = sample

    def __call__(self, item):
        return self.sample
