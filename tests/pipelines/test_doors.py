"""The doors as a user opens them: prepare, audit, train and evaluate, on two real Ray workers."""

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import tomllib

import cv2
import numpy as np
import pytest

import pipelines.__main__ as overview
from datasets.catalog import BENCHMARKS
from datasets.manifest import read_manifest
from pipelines.base.door import OURS, ROOT, VERSION, Forgiving, check_names, run
from pipelines.base.errors import RunFailed, SetupError
from pipelines.base.text import Progress
from pipelines.cluster.session import own_sigterm
from pipelines.cluster.sizes import Node
from pipelines.driver.run import run_recipe
from pipelines.recipes.reading import RECIPES, load_recipe
from pipelines.runs.record import read_record
from pipelines.studies.study import STUDIES


def door(*words, code=0, **environment):
    """Run `python -m pipelines.NAME …` in a process of its own; returns stdout, or stderr when it is meant to fail."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        env=os.environ | environment,
    )
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done.stderr if code else done.stdout


@pytest.fixture
def refused(monkeypatch, capsys):
    """Opens a door in this process, where importing torch is paid already; returns the message of its refusal."""

    def open_door(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        module = importlib.import_module(f"pipelines.{name}")
        with pytest.raises(SystemExit) as left:
            run((lambda: module.train(module.__doc__)) if name == "train" else module.main)
        assert left.value.code == 2
        return capsys.readouterr().err

    return open_door


DOORS = [
    "voc_pretrain", "train", "evaluate", "explain", "predict", "export", "serve", "prepare", "audit", "replay",
    "compare", "bench", "ablate",
]  # fmt: skip


@pytest.mark.parametrize("name", DOORS)
def test_help_is_quick_and_has_examples(name):
    assert "python -m pipelines." in door(f"pipelines.{name}", "--help")


@pytest.mark.parametrize("name", [*DOORS, "__main__"])
def test_every_door_says_its_version(name):
    module = "pipelines" if name == "__main__" else f"pipelines.{name}"
    assert door(module, "--version").split() == ["context-heads", VERSION]


def test_the_version_is_the_projects():
    page = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert page["project"]["version"] == VERSION
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest[1] == VERSION


def test_the_overview_names_all_that_there_is(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pipelines"])
    overview.start()
    shown = capsys.readouterr().out
    assert overview.doors() == sorted(DOORS)
    names = [path.relative_to(folder).with_suffix("").as_posix() for folder in (RECIPES, STUDIES)
             for path in folder.rglob("*.yaml")]  # fmt: skip
    for name in [*DOORS, *names]:
        assert f"\n  {name} " in shown
    assert overview.benchmarks() == list(BENCHMARKS)
    assert ", ".join(BENCHMARKS) in shown


def test_the_overview_opens_doors_by_name():
    assert "usage: python -m pipelines.train [-h]" in door("pipelines", "train", "--help")
    assert "no door 'trian'; did you mean 'train'?" in door("pipelines", "trian", code=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "nothing.yaml"], "no recipe 'nothing.yaml'"),
        (["train", "sample", "haed.rank=1"], "did you mean 'head'"),
        (["train", "fcn/camvid_resnet50s", "data=/no/such"], "/no/such/camvid/train: no such folder"),
        (
            ["train", "own/small", "data=SHARDS", "backbone.weights=/no.pth"],
            "backbone.weights = '/no.pth': no such file",
        ),
        (["train"], "name a recipe; --list shows"),
        (["evaluate", "NOTHING.pt", "x"], "NOTHING.pt; those of a run are"),
        (["evaluate", "PAGE", "/no/such"], "/no/such: no such folder"),
        (
            ["evaluate", "PAGE", "/no/such", "--out", "s3://b/c"],
            "--out: s3://… is a URI; allowed: a folder",
        ),
        (["serve", "NOTHING.pt"], "NOTHING.pt; those of a run are"),
        (["predict", "NOTHING.pt", "x", "--out", "y"], "NOTHING.pt; those of a run are"),
        (["predict", "PAGE", "/no/such", "--out", "y"], "no file or folder /no/such"),
        (["ablate", "nothing"], "no study 'nothing'"),
        (["ablate", "sample/rank", "--seeds", "0"], "--seeds 0"),
        (
            ["compare", "costs", "recnet"],
            "unknown paper 'recnet'; allowed: reconet, srnet, ctnet, ocnet. Did you mean 'reconet'?",
        ),
    ],
)
def test_what_is_wrong_is_found_before_torch_and_ray_are_imported(words, message, shards, tmp_path):
    places = {"SHARDS": f"data={shards}", "PAGE": str(ROOT / "README.md")}
    words = [places.get(w, w).replace("data=SHARDS", places["SHARDS"]) for w in words]
    words += [f"output={tmp_path}"] if words[0] == "train" and len(words) > 1 else []
    code = f"""
import runpy, sys
sys.argv = {words!r}
try:
    runpy.run_module("pipelines.{words[0]}", run_name="__main__")
finally:
    print(sorted({{"torch", "ray", "mlflow", "timm"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_leaves_costs_no_traceback():
    for words in (["pipelines"], ["pipelines.train", "--keys"], ["pipelines.train", "--help"]):
        writer = subprocess.Popen(
            [sys.executable, "-m", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        writer.stdout.readline()
        writer.stdout.close()
        assert writer.stderr.read() == ""
        assert writer.wait() == 0


def test_a_stream_without_a_reader_takes_what_is_written_in_any_thread(tmp_path):
    """A run whose screen is piped to `head` goes on to its end."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as stream:
        forgiving = Forgiving(stream)
        for _ in range(3):
            print("a line", file=forgiving, flush=True)
        assert not forgiving.isatty()


def test_a_terminal_does_not_get_a_stray_code_at_the_end():
    """Ray brings a colorama, which resets the colours of a terminal as Python ends."""
    code = """
import atexit, sys, types
from pipelines.base.door import run
module = types.ModuleType("vendored.colorama.initialise")
module.reset_all = lambda: sys.stdout.write("\\x1b[0m")
sys.modules[module.__name__] = module
atexit.register(module.reset_all)
run(lambda: print("done"))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_colours_of_ray_do_not_reach_a_message(capsys):
    with pytest.raises(SystemExit) as left:
        run(raises(RunFailed("\x1b[36mray::Worker\x1b[39m died\x1b[0m")))
    assert left.value.code == 1
    assert capsys.readouterr().err == "error: ray::Worker died\n"


def raises(error):
    def main():
        raise error

    return main


def test_a_missing_package_is_named_with_the_cure(capsys):
    with pytest.raises(SystemExit) as left:
        run(raises(ModuleNotFoundError("No module named 'cv2'", name="cv2")))
    assert left.value.code == 2
    assert "has no package 'cv2'. Run in the project's environment" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError):
        run(raises(ModuleNotFoundError("No module named 'pipelines.x'", name="pipelines.x")))


def test_huggingfaces_package_over_ours_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.base.door.ROOT", tmp_path)
    for name in ("datasets", "pipelines", "segmodels"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    check_names()
    (tmp_path / "datasets/arrow_dataset.py").touch()
    with pytest.raises(SetupError, match="HuggingFace's package `datasets` is installed into the folder of ours"):
        check_names()


def test_the_wheel_holds_all_packages_and_pages():
    """As `pip install .` finds them; it was tried in an environment without any other package, too."""
    from setuptools import find_packages

    page = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert page["project"]["scripts"] == {"context-heads": "pipelines.__main__:start"}
    assert callable(overview.start)
    found = find_packages(str(ROOT), include=page["tool"]["setuptools"]["packages"]["find"]["include"])
    packages = {path.parent.relative_to(ROOT) for top in OURS for path in (ROOT / top).rglob("__init__.py")}
    assert {name.replace(".", "/") for name in found} == {path.as_posix() for path in packages}
    assert all(path.parent.relative_to(ROOT) in packages for top in OURS for path in (ROOT / top).rglob("*.py"))
    data = {path for top in OURS for kind in ("*.yaml", "*.html") for path in (ROOT / top).rglob(kind)}
    patterns = page["tool"]["setuptools"]["package-data"]["pipelines"]
    assert data == {path for pattern in patterns for path in (ROOT / "pipelines").glob(pattern)}
    assert page["tool"]["uv"]["package"] is False  # `uv run` runs the checkout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["camvidd", "--source", ".", "--out", "x"], "did you mean 'camvid'"),
        (["camvid", "--out", "x"], "--source DIR and --out URI are needed"),
        (["camvid", "--source", "/no/such", "--out", "x"], "/no/such: no such folder"),
        (["camvid", "--source", ".", "--out", "x"], "the source holds no split of camvid"),
        (["camvid", "--source", ".", "--out", "x", "--splits", "train"], "train"),
        (["voc12", "--source", "RELEASE", "--out", "x"], "has 18 rows, the release has 1464"),
        (["voc12", "--source", "RELEASE", "--out", "x", "--splits", "tran"], "did you mean 'train'"),
    ],
)
def test_prepare_refuses_with_one_message(words, message, release, refused):
    assert message in refused("prepare", *[str(release) if w == "RELEASE" else w for w in words])


def test_prepare_shows_the_tree():
    assert "ImageSets/Segmentation" in door("pipelines.prepare", "voc12", "--tree")


@pytest.mark.ray
def test_a_wrong_label_is_named_with_its_file_and_pixel(ray_session, tmp_path, refused):
    """The fault is found in a Ray Data task, and its message comes through alone."""
    for name in ("images", "masks"):
        (tmp_path / "mine" / name).mkdir(parents=True)
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"mine/images/{i}.png"), np.zeros((20, 30, 3), np.uint8))
        mask = np.zeros((20, 30), np.uint8)
        mask[4, 7] = 9 if i == 2 else 1
        cv2.imwrite(str(tmp_path / f"mine/masks/{i}.png"), mask)
    (tmp_path / "mine/classes.yaml").write_text("classes: [road, car]")
    message = refused("prepare", "folder", "--source", tmp_path / "mine", "--out", tmp_path / "out")
    assert all(part in message for part in ("2.png", "9", "row 4", "column 7"))
    assert "Traceback" not in message
    assert len(message.splitlines()) < 5
    assert not list((tmp_path / "out").rglob("*.parquet"))


@pytest.fixture
def opened(monkeypatch, capsys):
    """Opens a door in this process, on the session's Ray; returns what it printed."""

    def open_door(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        module = importlib.import_module(f"pipelines.{name}")
        module.train(module.__doc__) if name == "train" else module.main()
        return capsys.readouterr().out

    return open_door


@pytest.mark.ray
def test_prepare_and_audit(ray_session, release, tmp_path, opened, refused, monkeypatch):
    out = tmp_path / "voc12"
    shown = opened("prepare", "voc12", "--source", release, "--out", out, "--partial")
    assert "18 rows found, official 1464" in shown
    assert read_manifest(str(out / "val")).partial
    again = opened("prepare", "voc12", "--source", release, "--out", out, "--partial", "--splits", "val")
    assert "1 of them there already" in again

    shown = opened("audit", out / "val", "--verify", "--sheet", tmp_path / "sheet.png", "--images", "4")
    assert "all 1 file(s) and 11 rows verified" in shown
    assert (tmp_path / "sheet.png").stat().st_size > 10_000

    damaged = tmp_path / "damaged"
    shutil.copytree(out / "val", damaged)
    data = bytearray((damaged / "part-00000.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (damaged / "part-00000.parquet").write_bytes(data)
    monkeypatch.setenv("SHARD_CACHE", str(tmp_path / "fresh"))
    assert "corrupt shard" in refused("audit", damaged, "--verify")


@pytest.mark.ray
def test_train_and_evaluate_with_one_score_for_1_2_and_3_workers(pair, shards, tmp_path, opened, refused, monkeypatch):
    """Two workers count as they train, one and three as they evaluate what was trained: the same to the last digit."""
    run, shown = pair
    assert re.search(r"first +18 +16 +11 +\d+\.\d\d +\d+\.\d\d", shown)
    assert "data wait" in shown
    best, val = run / "first/best.pt", shards / "voc12/val"
    monkeypatch.setattr("pipelines.cluster.growing.present", lambda: [Node(3.0)])  # an honest third
    monkeypatch.setattr("pipelines.cluster.growing.to_come", list)
    monkeypatch.setattr("pipelines.cluster.session.machine", lambda: (3, 0))
    scores = {}
    for workers in (1, 3):
        words = [] if workers == 1 else ["--workers", workers]
        shown = opened("evaluate", best, val, *words, "--out", tmp_path / f"scores{workers}")
        assert "voc12 val, 11 rows, whole, scales 1.0, no flip" in shown
        scores[workers] = json.loads((tmp_path / f"scores{workers}/scores.json").read_text())
        assert re.search(rf"\w+ +{scores[workers]['miou'] * 100:.2f} ", shown)
        assert "voc12 val, 11 rows" in shown
        assert not re.search(r"\d\.\d{5}", shown)
    lines = read_record(run / "first/record.jsonl")[0]
    (two,) = (x for x in lines if x["kind"] == "val" and x["step"] == scores[1]["step"])
    assert scores[1]["miou"] == two["miou"] == scores[3]["miou"]
    assert scores[1]["confusion"] == np.load(run / "first" / two["counts"]).tolist() == scores[3]["confusion"]
    assert sum(map(sum, scores[1]["confusion"])) == sum(read_manifest(str(val)).histogram[:-1])

    assert "18 of the 18 images" in refused("evaluate", best, shards / "voc12/train")
    assert "18 OF THEM WERE TRAINED ON" in opened("evaluate", best, shards / "voc12/train", "--allow-seen")


def test_progress_is_told_every_few_seconds_with_what_is_left(monkeypatch):
    now, told = [0.0], []
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = Progress(1000, "images", told.append)
    for done in range(0, 1001, 100):
        progress.reach(done)
        now[0] += 2
    assert told == [f"  {n} of 1,000 images  {n // 10}%  ETA {left}" for n, left in ((300, "0:14"), (600, "0:08"),
                                                                                      (900, "0:02"))]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["/no/such.pt", "SHARDS"], "no checkpoint /no/such.pt"),
        (["RECIPE", "SHARDS"], "no readable checkpoint"),
    ],
)
def test_evaluate_refuses_with_one_message(words, message, shards, recipe_file, refused):
    names = {"SHARDS": shards / "voc12/val", "RECIPE": recipe_file()}
    assert message in refused("evaluate", *[names.get(w, w) for w in words])


@pytest.mark.slow
def test_evaluate_refuses_other_classes_and_wrong_windows(shards, recipe_file, tmp_path, refused):
    inference = {"mode": "slide", "stride": [16, 16]}  # of windows alone: nothing that `--mode whole` would keep
    page = recipe_file(head={"name": "reconet", "channels": 8, "rank": 2}, inference=inference)
    run_recipe(load_recipe(page, ["stages.0.steps=1", "optim.warmup=0"]))
    best, val = tmp_path / "out/runs/tiny/first/best.pt", shards / "voc12/val"
    assert "bound to its crop (32, 32)" in refused("evaluate", best, val, "--mode", "whole")
    assert "window (32, 32) with stride (64, 64)" in refused("evaluate", best, val, "--stride", 64, 64)
    message = refused("evaluate", best, val, "--window", 48, 48, "--stride", 9, 9)
    assert "keeps to its training crop (32, 32)" in message
    other = tmp_path / "other"
    shutil.copytree(val, other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["classes"][1] = "dragon"
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert "they must be the same" in refused("evaluate", best, other)
    assert "this is a folder of splits" in refused("evaluate", best, shards / "voc12")
    assert "--workers -1: 1 or more" in refused("evaluate", best, val, "--workers", -1)
    assert "--out: s3://… is a URI; allowed: a folder" in refused("evaluate", best, val, "--out", "s3://bucket/x")
    assert "--out: cannot write to /proc/x" in refused("evaluate", best, val, "--out", "/proc/x")


OCNET = {"name": "ocnet", "channels": 8, "key_channels": 4, "scheme": "pyramid", "attention": "sa", "pyramid": [1, 2]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "/no/such/place"}, "no such folder"),
        ({"batch": 0}, "batch = 0"),
        ({"backbone": {"name": "resnet18", "output_stride": 32, "weights": "/no/weights.pth"}}, "no such file"),
        ({"loss": {"logits": {"cross_entropy": 1.0}}}, "every output needs a term"),
        ({"stages": [{"name": "a", "train": "voc12/train", "steps": 1}], "optim": {"warmup": 5}}, "warmup = 5 steps"),
        ({"head": {"name": "reconet", "channels": 8, "rank": 2}}, "bound to its crop"),
        (
            {"head": OCNET, "view": {"crop": [64, 64]}, "validation": {"scales": [0.5]}},
            "pixels, seen whole at scale 0.5: pyramid has 2 x 2 tiles, but the map has (1, ",
        ),
    ],
)
def test_train_refuses_with_one_message(recipe_file, refused, changes, message):
    assert message in refused("train", recipe_file(**changes))


def test_a_refused_run_leaves_no_folder(recipe_file, refused, tmp_path):
    refused("train", recipe_file(data="/no/such/place"))
    assert not list((tmp_path / "out").glob("runs/*"))


def killed():
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()


@pytest.mark.parametrize("main", [killed, lambda: sys.exit(int(signal.SIGTERM))], ids=["ours", "Ray's handler"])
def test_sigterm_ends_a_door_with_143(main, capsys, monkeypatch):
    monkeypatch.setattr("pipelines.base.door.TERMINATED", threading.Event())
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as left:
            run(main, resumes=True)
        ours = signal.getsignal(signal.SIGTERM)
        with own_sigterm():  # as Ray's start does
            signal.signal(signal.SIGTERM, lambda *_: None)
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)
    assert left.value.code == 143
    assert capsys.readouterr().err == "\nstopped; the same command continues from what was saved\n"


def test_other_exits_keep_their_code():
    with pytest.raises(SystemExit) as left:
        run(lambda: sys.exit(3))
    assert left.value.code == 3


@pytest.mark.slow
def test_a_refusal_leaves_the_process_with_code_2_and_no_traceback(recipe_file):
    assert "no such folder" in door("pipelines.train", recipe_file(data="/no/such/place"), code=2)
