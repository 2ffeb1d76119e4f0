"""Archives for test servers, read back by other means: names, values, sizes; and Cityscapes' own script."""

import copy
import io
import sys
import tarfile
import zipfile

import cv2
import numpy as np
import pytest
from PIL import Image
from predicted import write_checkpoint, write_picture

import segmodels
from datasets.catalog import BENCHMARKS
from datasets.manifest import write_manifest
from datasets.readers.cityscapes import cityscapes
from datasets.writer import write_part
from pipelines import predict
from pipelines.base.errors import InputError, RunFailed
from pipelines.recipes.protocols import OWN
from pipelines.runs.checkpoint import Checkpoint
from pipelines.scoring.evaluation import evaluate_here, plan_evaluation
from segmodels.metrics import scores

CASES = {
    "voc12": (["2008_000006", "2012_000011"], "results/VOC2012/Segmentation/comp6_test_cls/{}.png", range(21)),
    "ade20k": (["ADE_test_00000001", "ADE_test_00003352"], "{}.png", range(1, 151)),
    "lip": (["100034_483681", "10005_205677"], "{}.png", range(20)),
    "pascal_context": (["2008_000008", "2010_006086"], "{}.png", range(1, 60)),
}
BUILDERS = {"pascal_context": "pascal_context59"}


def benchmark(name, source):
    return BENCHMARKS[BUILDERS.get(name, name)](source)


@pytest.fixture
def door(tmp_path, monkeypatch, capsys):
    def open_door(checkpoint, *words):
        monkeypatch.setattr(sys, "argv", ["predict", str(checkpoint), *map(str, words), "--out", str(tmp_path / "out")])
        predict.main()
        return capsys.readouterr().out

    return open_door


def unpacked(path):
    """Name -> bytes of an archive's files."""
    if path.suffix == ".tgz":
        with tarfile.open(path) as archive:
            return {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("name", CASES)
def test_an_archive_holds_the_servers_names_and_values(name, door, tmp_path):
    ids, place, values = CASES[name]
    facts = benchmark(name, tmp_path)
    best = write_checkpoint(tmp_path / "best.pt", facts.classes, facts.palette, facts.flip_pairs)
    for seed, number in enumerate(ids):
        write_picture(tmp_path / f"in/{number}.jpg", seed, (40, 50 + seed))
    shown = door(best, tmp_path / "in", "--submission", name, "--no-overlays")
    archive = tmp_path / "out" / ("results.tgz" if name == "voc12" else "results.zip")
    assert f"written: {archive}, 2 image(s)" in shown
    assert ("this archive 2; the server may refuse it" in shown) == (name != "pascal_context")
    found, model = unpacked(archive), segmodels.load(best, device="cpu")
    assert sorted(found) == sorted(place.format(number) for number in ids)
    for number in ids:
        data = found[place.format(number)]
        with Image.open(io.BytesIO(data)) as image:
            assert image.mode == ("P" if name == "voc12" else "L")
            stored = np.array(image)
        if name != "voc12":  # a reader that knows no palettes sees the same
            np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), stored)
        mask = model.predict(tmp_path / f"in/{number}.jpg")
        assert len(np.unique(mask)) > 1
        np.testing.assert_array_equal(stored, np.array(values)[mask])
    first = archive.read_bytes()
    archive.unlink()
    door(best, tmp_path / "in", "--submission", name, "--no-overlays")
    assert archive.read_bytes() == first


def test_there_is_no_archive_without_all_images_and_no_image_twice(door, tmp_path):
    facts = benchmark("voc12", tmp_path)
    best = write_checkpoint(tmp_path / "best.pt", facts.classes, facts.palette)
    write_picture(tmp_path / "in/2008_000006.jpg", 0)
    (tmp_path / "in/2008_000007.jpg").write_bytes(b"")
    with pytest.raises(RunFailed, match=r"There is no archive: a server wants all images.*\n  2008_000007: "):
        door(best, tmp_path / "in", "--submission", "voc12")
    assert not list((tmp_path / "out").glob("*results*"))
    write_picture(tmp_path / "in/again/2008_000006.jpg", 0)
    with pytest.raises(
        InputError, match=r"2008_000006 and again/2008_000006 are both|again/.* and 2008_000006 are both"
    ):
        door(best, tmp_path / "in", "--submission", "voc12")


SIZE = (1024, 2048)


@pytest.fixture
def streets(tmp_path):
    """Two frames of Cityscapes' size, with labels that hold all 34 ids and 255, as a release and as shards."""
    root, generator = tmp_path / "cityscapes", np.random.default_rng(0)
    for number in range(2):
        stem = f"frankfurt_{number:06d}_000019"
        write_picture(root / f"leftImg8bit/val/frankfurt/{stem}_leftImg8bit.png", number, SIZE)
        labels = generator.choice(np.arange(34, dtype=np.uint8), (16, 32))
        path = root / f"gtFine/val/frankfurt/{stem}_gtFine_labelIds.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(cv2.resize(labels, SIZE[::-1], interpolation=cv2.INTER_NEAREST)).save(path)
    facts, uri = cityscapes(root), str(tmp_path / "shards/val")
    write_manifest(uri, facts, "val", [write_part(uri, 0, facts.index("val"), facts, "val")], True)
    return root, facts, uri


@pytest.mark.slow
def test_cityscapes_own_script_gives_the_scores_of_evaluate(streets, door, tmp_path):
    script = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    root, facts, uri = streets
    best = write_checkpoint(tmp_path / "best.pt", facts.classes, facts.palette)
    door(best, uri, "--submission", "cityscapes", "--no-overlays")
    with zipfile.ZipFile(tmp_path / "out/results.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    options = copy.copy(script.args)
    options.evalInstLevelScore, options.JSONOutput, options.quiet = False, False, True
    options.predictionPath = str(tmp_path / "unpacked")
    truths = sorted(str(path) for path in root.rglob("*_gtFine_labelIds.png"))
    found = script.evaluateImgLists([script.getPrediction(options, truth) for truth in truths], truths, options)
    checkpoint = Checkpoint.read(best)
    ours = scores(evaluate_here(plan_evaluation(best, checkpoint, uri), checkpoint)[OWN].total())
    assert sum(iou > 0 for iou in ours.iou) > 5
    assert found["averageScoreClasses"] == pytest.approx(ours.miou, abs=1e-15)
    assert [found["classScores"][name] for name in facts.classes] == ours.iou


def test_cityscapes_takes_only_its_size_and_its_names(door, tmp_path):
    facts = cityscapes(tmp_path)
    best = write_checkpoint(tmp_path / "best.pt", facts.classes, facts.palette)
    write_picture(tmp_path / "in/berlin_000000_000019_leftImg8bit.png", 0, (64, 128))
    with pytest.raises(InputError, match=r"128x64 pixels .*the server takes 2048x1024"):
        door(best, tmp_path / "in", "--submission", "cityscapes")
    assert not list((tmp_path / "out").glob("*results*"))
