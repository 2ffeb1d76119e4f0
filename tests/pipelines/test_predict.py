"""The door `predict`: what it takes, what it writes, what it says of bad files, and that it goes on."""

import contextlib
import csv
import io
import json
import shutil
import sys

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from predicted import picture, write_checkpoint, write_picture

import segmodels
from datasets.readers.labels import read_image as stored
from datasets.readers.voc import CLASSES, PALETTE
from datasets.release_ids import IDS, release_ids
from datasets.sample import DataError, decode_image
from pipelines import predict
from pipelines.base.errors import InputError, RunFailed
from pipelines.feed.plan import open_shards
from pipelines.serving import predicting
from pipelines.serving.reading import frames, read_image
from pipelines.serving.sources import Source, find
from segmodels.images import as_rgb


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run") / "best.pt", CLASSES, PALETTE)


@pytest.fixture
def door(best, tmp_path, monkeypatch, capsys):
    """Predicts into tmp_path/out, and gives what was shown."""

    def open_door(*words, checkpoint=best):
        monkeypatch.setattr(sys, "argv", ["predict", str(checkpoint), *map(str, words), "--out", str(tmp_path / "out")])
        predict.main()
        return capsys.readouterr().out

    return open_door


@pytest.fixture
def folder(tmp_path):
    """Three pictures, two of them of one stem, and one file that is no picture."""
    for seed, name in enumerate(["a.jpg", "a.png", "deeper/b.png"]):
        write_picture(tmp_path / "in" / name, seed)
    (tmp_path / "in/notes.txt").write_text("x")
    (tmp_path / "in/.hidden.png").write_text("x")
    return tmp_path / "in"


def indices(path):
    with Image.open(path) as image:
        return np.array(image), image.getpalette()


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_folder_becomes_masks_overlays_and_areas(door, folder, best, tmp_path):
    shown, out = door(folder), tmp_path / "out"
    names = ["a.jpg", "a.png", "deeper/b"]
    wanted = [f"masks/{name}.png" for name in names] + [f"overlays/{name}.jpg" for name in names]
    assert files(out) == sorted([*wanted, "areas.csv", "areas.parquet", "predict.json"])
    assert "neither images nor videos: notes.txt" in shown
    assert "predicts whole, scales 1.0, no flip" in shown
    assert "3 image(s) predicted" in shown
    model = segmodels.load(best, device="cpu")
    table = pq.read_table(out / "areas.parquet").to_pylist()
    with (out / "areas.csv").open(newline="") as file:
        assert [dict(row) for row in csv.DictReader(file)] == [{k: str(v) for k, v in row.items()} for row in table]
    for name, path in zip(names, ["a.jpg", "a.png", "deeper/b.png"], strict=True):
        mask, palette = indices(out / f"masks/{name}.png")
        np.testing.assert_array_equal(mask, model.predict(folder / path))
        assert [tuple(palette[3 * k : 3 * k + 3]) for k in range(21)] == list(PALETTE)
        rows = {row["class"]: row["pixels"] for row in table if row["image"] == name}
        assert rows == {CLASSES[k]: n for k, n in enumerate(np.bincount(mask.ravel())) if n}
        assert len(rows) > 1
    assert sum(row["share"] for row in table) == pytest.approx(3)
    overlay = cv2.cvtColor(cv2.imread(str(out / "overlays/deeper/b.jpg")), cv2.COLOR_BGR2RGB)
    mask = indices(out / "masks/deeper/b.png")[0]
    expected = 0.6 * np.array(PALETTE)[mask] + 0.4 * picture(2)
    assert np.abs(overlay - expected).mean() < 6  # what JPEG loses


def test_the_same_command_goes_on_and_another_way_to_predict_is_refused(door, folder, tmp_path, monkeypatch):
    door(folder)
    out, made = tmp_path / "out", []
    before = {name: (out / name).read_bytes() for name in files(out)}
    (out / "masks/deeper/b.png").unlink()
    paint = predicting.Painter.paint
    monkeypatch.setattr(
        predicting.Painter, "paint", lambda self, name, *rest: made.append(name) or paint(self, name, *rest)
    )
    shown = door(folder)
    assert made == ["deeper/b"]
    assert "2 image(s) are there already" in shown
    assert {name: (out / name).read_bytes() for name in files(out)} == before
    with pytest.raises(InputError, match=r"holds predictions of another inference; give another folder"):
        door(folder, "--flip")
    shutil.rmtree(out)
    (out / "masks").mkdir(parents=True)
    with pytest.raises(InputError, match="not of this command"):
        door(folder)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


RGB = picture(5, (9, 14))
TURNED = Image.fromarray(RGB).getexif()
TURNED[0x0112] = 6
GOOD = {
    "grey.png": saved(Image.fromarray(RGB[..., 0]), "PNG"),
    "deep.png": saved(Image.fromarray(RGB[..., 0].astype(np.uint16) * 257 - 3), "PNG"),
    "alpha.png": saved(Image.fromarray(np.dstack([RGB, RGB[..., 0]])), "PNG"),
    "palette.png": saved(Image.fromarray(RGB).quantize(16), "PNG"),
    "one.png": saved(Image.fromarray(RGB[:1, :1]), "PNG"),
    "cmyk.jpg": saved(Image.fromarray(RGB).convert("CMYK"), "JPEG"),
    "turned.jpg": saved(Image.fromarray(RGB), "JPEG", exif=TURNED),
    "x.tif": saved(Image.fromarray(RGB), "TIFF"),
    "deep.tiff": saved(Image.fromarray(RGB[..., 0].astype(np.uint16) * 257 - 3), "TIFF"),
    "x.bmp": saved(Image.fromarray(RGB), "BMP"),
    "x.webp": saved(Image.fromarray(RGB), "WEBP", lossless=True),
    "not_a_png.png": saved(Image.fromarray(RGB), "JPEG"),
}


@pytest.mark.parametrize("name", GOOD)
def test_images_are_decoded_as_the_shards_that_the_model_was_trained_on(name, tmp_path):
    """One rule in three places: `prepare` and training, this door, and `segmodels.load`."""
    path = tmp_path / name
    path.write_bytes(GOOD[name])
    wanted = decode_image(stored(str(path))[0])
    np.testing.assert_array_equal(read_image(Source("x", "image", str(path))), wanted)
    np.testing.assert_array_equal(as_rgb(path), wanted)
    assert wanted.shape[:2] == ((1, 1) if name == "one.png" else RGB.shape[:2])


BAD = {
    "zero.png": (b"", "the file is empty"),
    "page.jpg": (b"<!DOCTYPE html>", "no image that is read"),
    "moves.png": (
        saved(Image.fromarray(RGB), "GIF", save_all=True, append_images=[Image.fromarray(255 - RGB)]),
        "GIF8",
    ),
    "cut.jpg": (saved(Image.fromarray(RGB), "JPEG")[:-80], "truncated"),
    "flipped.png": (GOOD["alpha.png"][:60] + b"\x55" + GOOD["alpha.png"][61:], "damaged"),
    "bomb.png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\0\0\0\1\0\0\x08\2\0\0\0", "4,294,967,296|65,536x65,536|damaged"),
}


def test_bad_files_are_named_and_the_others_are_predicted(door, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name, data in {**GOOD, **{name: data for name, (data, _) in BAD.items()}}.items():
        (source / name).write_bytes(data)
    with pytest.raises(RunFailed) as caught:
        door(source)
    told = str(caught.value)
    assert told.startswith(f"{len(BAD)} image(s) or video(s) did not read and are left out; the others are written.")
    for name, (_, why) in BAD.items():
        (line,) = [line for line in told.splitlines() if line.startswith(f"  {name.rpartition('.')[0]}: ")]
        assert any(word in line for word in why.split("|")), line
    written = files(out / "masks")
    assert len(written) == len(GOOD)
    assert not [name for name in files(out) if ".tmp" in name]
    assert indices(out / "masks/turned.png")[0].shape == RGB.shape[:2]  # not turned
    assert indices(out / "masks/one.png")[0].shape == (1, 1)
    (source / "zero.png").write_bytes(GOOD["grey.png"])
    with pytest.raises(RunFailed, match="5 image"):
        door(source)
    assert len(files(out / "masks")) == len(GOOD) + 1


def test_names_stay_in_the_folder_and_are_unlike(tmp_path):
    write_picture(tmp_path / "p/x.png", 0)
    write_picture(tmp_path / "q/x.png", 1)
    write_picture(tmp_path / "q/we ird/..x.png", 1)
    pattern = [source.name for source in find([str(tmp_path / "q/../*/x.png")])[0]]
    assert len(set(pattern)) == 2
    for name in [*pattern, *(source.name for source in find([str(tmp_path / "q")])[0])]:
        assert not [part for part in name.split("/") if part.startswith(".") or not part], name
    with pytest.raises(InputError, match=r"p/x\.png and .*q/x\.png would both be written as x\.png"):
        find([str(tmp_path / "p"), str(tmp_path / "q/x.png")])
    assert [source.name for source in find([f"file://{tmp_path}/q"])[0]] == [
        s.name for s in find([str(tmp_path / "q")])[0]
    ]


@pytest.mark.parametrize(("words", "why"), [
    (["none.jpg"], r"no file or folder .*none\.jpg"), (["*.jgp"], "no file is like"),
    (["."], "it is empty; expected are images"),
    (["s.png", "--workers", "0"], "--workers 0: 1 or more"), (["s.png", "--every", "0"], "--every 0: 1 or more"),
    (["s.png", "--mode", "slide", "--stride", "64", "64"], r"inference: window \(32, 32\) with stride \(64, 64\)"),
    (["s.png", "--submission", "ade20k"], "knows 21 classes .* the server wants 150"),
    (["s.png", "--submission", "voc12"], "'s' is no image of it, whose ids are like 2008_000006"),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(words, why, door, tmp_path):
    (tmp_path / "in").mkdir()
    if words[0] == "s.png":
        write_picture(tmp_path / "in/s.png", 0)
    with pytest.raises(InputError, match=why):
        door(tmp_path / "in" / words[0], *words[1:])
    assert not (tmp_path / "out").exists()


def test_rows_of_shards_need_no_labels(door, best, shards, tmp_path):
    uri = shards / "voc12/val"
    rows = open_shards(str(uri))
    door(uri, "--no-overlays")
    assert not (tmp_path / "out/overlays").exists()
    model = segmodels.load(best, device="cpu")
    assert sorted(files(tmp_path / "out/masks")) == sorted(f"{name}.png" for name in rows.ids)
    for row in (0, len(rows) - 1):
        mask = indices(tmp_path / f"out/masks/{rows.ids[row]}.png")[0]
        np.testing.assert_array_equal(mask, model.predict(decode_image(rows.encoded(row)[0])))


@pytest.fixture
def video(tmp_path):
    out = cv2.VideoWriter(str(tmp_path / "in.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (64, 48))
    for seed in range(7):
        out.write(picture(seed)[..., ::-1].copy())
    out.release()
    return tmp_path / "in.mp4"


def test_a_video_becomes_a_mask_for_each_nth_frame_and_a_film(door, video, best, tmp_path):
    door(video, "--every", "3")
    out = tmp_path / "out"
    assert files(out / "masks") == [f"in/{number:06d}.png" for number in (0, 3, 6)]
    read = dict(frames(Source("in", "video", str(video)), 3))
    model = segmodels.load(best, device="cpu")
    np.testing.assert_array_equal(indices(out / "masks/in/000003.png")[0], model.predict(read["in/000003"]))
    film = list(frames(Source("film", "video", str(out / "overlays/in.mp4")), 1))
    assert len(film) == 3
    mask = indices(out / "masks/in/000003.png")[0]
    expected = 0.6 * np.array(PALETTE)[mask] + 0.4 * read["in/000003"]
    assert np.abs(film[1][1] - expected).mean() < 12  # what MPEG-4 loses
    (out / "masks/in/000006.png").unlink()
    assert "2 image(s) are there already" in door(video, "--every", "3")
    assert len(files(out / "masks")) == 3


def test_a_video_that_is_none_is_named(door, tmp_path):
    (tmp_path / "in.mp4").write_bytes(b"nothing")
    with pytest.raises(RunFailed, match=r"in: no video that OpenCV reads"), hushed():
        door(tmp_path / "in.mp4")


@contextlib.contextmanager
def hushed():
    """OpenCV writes of a damaged video to stderr."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def test_masks_hold_the_values_of_the_benchmark_or_of_the_users_page(door, tmp_path):
    assert release_ids(("road", "car")) == (0, 1)
    for classes, values in IDS.items():
        assert len(set(values)) == len(classes) == len(values)
        assert max(values) < 255
    page, image = tmp_path / "classes.yaml", write_picture(tmp_path / "x.png", 3)
    page.write_text("classes: {0: ground, 7: road, 9: car}\n")
    checkpoint = write_checkpoint(tmp_path / "own.pt", ("ground", "road", "car"))
    door(image, "--classes", page, checkpoint=checkpoint)
    mask = segmodels.load(checkpoint, device="cpu").predict(image)
    found, palette = indices(tmp_path / "out/masks/x.png")
    np.testing.assert_array_equal(found, np.array([0, 7, 9])[mask])
    assert tuple(palette[27:30]) == (10, 90, 253)
    assert json.loads((tmp_path / "out/predict.json").read_text())["values"] == [0, 7, 9]
    page.write_text("classes: {0: ground, 7: car, 9: road}\n")
    with pytest.raises(InputError, match=r"it names \['ground', 'car', 'road'\]"):
        door(image, "--classes", page, checkpoint=checkpoint)


def test_a_wide_image_is_predicted_in_tiles(door, best, tmp_path):
    wide = write_picture(tmp_path / "wide.png", 1, (48, 2000))
    door(wide, "--mode", "slide", "--tile-pixels", "9000")
    whole = segmodels.load(best, device="cpu", inference={"mode": "slide"}).predict(wide)
    np.testing.assert_array_equal(indices(tmp_path / "out/masks/wide.png")[0], whole)
    assert json.loads((tmp_path / "out/predict.json").read_text())["tile pixels"] == 9000


@pytest.mark.ray
def test_any_number_of_workers_gives_the_same_bytes(ray_session, door, folder, video, tmp_path):
    (folder / "bad.png").write_bytes(b"")
    shutil.copy(video, folder)
    made = []
    for workers in ([], ["--workers", "2", "--gpus", "0"]):
        with pytest.raises(RunFailed, match=r"1 image.*\n  bad: no image"):
            door(folder, *workers)
        made.append({name: (tmp_path / "out" / name).read_bytes() for name in files(tmp_path / "out")})
        shutil.rmtree(tmp_path / "out")
    assert len(made[0]) > 12
    assert made[0] == made[1]


def test_a_video_that_ends_too_early_is_told_after_its_frames(video, monkeypatch):
    real = cv2.VideoCapture

    class Longer:
        """A container that says it has 100 frames."""

        def __init__(self, path):
            self.capture = real(path)
            self.grab, self.retrieve, self.release = self.capture.grab, self.capture.retrieve, self.capture.release

        def get(self, key):
            return 100.0 if key == cv2.CAP_PROP_FRAME_COUNT else self.capture.get(key)

    monkeypatch.setattr(cv2, "VideoCapture", Longer)
    stream = frames(Source("in", "video", str(video)), 1)
    assert len([next(stream) for _ in range(7)]) == 7
    with pytest.raises(DataError, match="says it has 100 frames and ends after 7"):
        next(stream)
