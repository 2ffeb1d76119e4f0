"""From a checkpoint to a program, its card and an MLflow model: each is run, where possible without the project."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

import segmodels
from pipelines import export, replay
from pipelines.base.door import ROOT, run
from pipelines.base.errors import RunFailed, SetupError
from pipelines.driver.packing import pack_last
from pipelines.driver.run import run_recipe
from pipelines.recipes.reading import load_recipe
from pipelines.runs.folder import StageFolder
from pipelines.runs.mlflow_client import connect
from pipelines.runs.record import read_record
from pipelines.runs.results import Result
from pipelines.scoring.evaluation import plan_evaluation
from pipelines.serving import program, running
from pipelines.serving.exporting import open_source
from pipelines.serving.images import batched, drawn
from pipelines.serving.quantised import quantise
from pipelines.serving.translations import table

pytestmark = pytest.mark.slow  # all but few need a trained run, or an export

AWAY = "http://127.0.0.1:9"
PAGE = {
    "name": "tiny", "seed": 3, "batch": 4, "backbone": {"name": "test_resnet", "output_stride": 8},
    "head": {"name": "fcn", "channels": 16}, "aux": {"name": "fcn", "stage": 3, "channels": 8},
    "view": {"crop": [32, 32]}, "workers": {"count": 0, "gpus": 0}, "feed": "torch", "tracking": AWAY,
    "loss": {"logits": {"cross_entropy": {"class_weights": [0.01] + 20 * [1.0]}}, "aux": {"cross_entropy": 0.4}},
    "optim": {"lr": 0.05},
    "inference": {"mode": "slide", "stride": [20, 24], "batch": 2},
    "stages": [{"name": "first", "train": "voc12/train", "val": "voc12/val", "steps": 60, "val_every": 0},
               {"name": "second", "train": "voc12/train", "val": "voc12/val", "steps": 2, "val_every": 0, "lr": 0.3}],
}  # fmt: skip


@pytest.fixture(scope="module")
def chain(shards, tmp_path_factory):
    """A run whose MLflow is away, and what it printed: the end of it packs a model all the same."""
    out = tmp_path_factory.mktemp("exported")
    page = out / "page.yaml"
    page.write_text(yaml.safe_dump({**PAGE, "data": str(shards), "output": str(out)}))
    run_recipe(load_recipe(page))
    return out / "runs/tiny"


@pytest.fixture(scope="module")
def store(chain, empty_store):
    """The address of a store to which the run was replayed once MLflow was back, and a client of it."""
    path = chain.parents[1] / "mlflow.db"
    path.write_bytes(empty_store.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["replay", str(chain), "--tracking", f"sqlite:///{path}"])
        replay.main()
    return f"sqlite:///{path}", connect(f"sqlite:///{path}")


@pytest.fixture
def place(chain):
    return StageFolder(chain / "second")


@pytest.fixture
def opened(monkeypatch, capsys):
    def open_door(*words, code=None):
        monkeypatch.setattr(sys, "argv", ["export", *map(str, words)])
        if code is None:
            export.main()
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as left:
            run(export.main)
        assert left.value.code == code
        return capsys.readouterr().err

    return open_door


def logits_of(path, image):
    with torch.no_grad():
        return segmodels.load(path, device="cpu").segmentor(torch.from_numpy(image))["logits"]


@pytest.mark.slow
def test_an_exported_program_runs_at_any_size_without_the_project(place, opened, tmp_path):
    shown = opened(place.best, "--out", tmp_path / "m.pt2")
    assert "4 images, run by both: 0 of" in shown
    extra = {"facts.json": ""}
    given = torch.export.load(tmp_path / "m.pt2", extra_files=extra).module()
    assert json.loads(extra["facts.json"])["output"] == "classes"
    image = np.random.default_rng(0).integers(0, 256, (3, 3, 71, 45), dtype=np.uint8)
    found = given(torch.from_numpy(image))
    assert found.dtype == torch.uint8
    assert torch.equal(found, logits_of(place.best, image).argmax(1))
    assert "torch.export.load" in (tmp_path / "m.md").read_text()


def test_the_onnx_program_of_a_run_takes_any_size_and_knows_its_classes(place):
    session = program.open_onnx(place.model / "artifacts/model.onnx", 1)
    image = np.random.default_rng(0).integers(0, 256, (3, 3, 71, 45), dtype=np.uint8)
    found, meant = session.run(None, {"image": image})[0], logits_of(place.best, image).softmax(1).numpy()
    assert np.abs(found - meant).max() < 1e-5
    facts = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    assert facts["classes"][:2] == ["background", "aeroplane"]
    assert (facts["window"], facts["stride"]) == ([32, 32], [20, 24])
    assert facts["palette"][1] == [128, 0, 0]


def test_weights_alone_are_loaded_by_segmodels(place, opened, tmp_path):
    opened(place.best, "--out", tmp_path / "m.safetensors")
    image = batched(drawn((40, 56), 0))
    assert torch.equal(logits_of(tmp_path / "m.safetensors", image), logits_of(place.best, image))
    assert "no readable" not in opened(tmp_path / "m.safetensors", "--out", tmp_path / "n.pt2", code=2)


def test_a_program_that_is_not_the_model_is_refused_and_nothing_is_left(place, opened, tmp_path, monkeypatch):
    def wrong(source, path, output):
        return lambda image: 20 - np.zeros((len(image), *image.shape[2:]), np.uint8)

    monkeypatch.setattr("pipelines.serving.exporting.reread", wrong)
    assert "the program is not the model" in opened(place.best, "--out", tmp_path / "m.safetensors", code=1)
    assert list(tmp_path.iterdir()) == []


def test_probabilities_that_differ_little_are_rounding_and_more_are_not():
    image, rng = [batched(drawn((8, 8), i)) for i in range(4)], np.random.default_rng(0)
    meant = rng.dirichlet(np.ones(3), (1, 8, 8)).astype(np.float32).transpose(0, 3, 1, 2)
    meant = np.repeat(meant, 4, 0)
    near, far = meant + np.float32(1e-4), meant + np.float32(2e-3)
    found = running.compare(lambda i: meant[: len(i)], lambda i: near[: len(i)], image, "probabilities")
    assert found.largest == pytest.approx(1e-4, rel=0.01)
    assert (found.images, found.pixels, found.others, found.size) == (4, 512, 0, (8, 8))
    empty = np.full_like(meant, np.nan)
    with pytest.raises(RunFailed, match="largest difference of a probability inf"):
        running.compare(lambda i: meant[: len(i)], lambda i: empty[: len(i)], image, "probabilities")
    with pytest.raises(RunFailed, match=r"allowed: 0\.1% of the pixels"):
        running.compare(lambda i: meant[: len(i)], lambda i: far[: len(i)], image, "probabilities")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to do: give --out FILE"),
        (["--out", "m.tflite"], "its suffix names no format (.onnx for onnx, .pt2 for torch"),
        (["--out", "m.pt2", "--int8", "x"], "--int8 quantises ONNX files, and --format is torch"),
        (["--alias", "champion"], "give --register NAME too"),
        (["--mlflow", "--format", "onnx"], "--format is for a file"),
        (["--out", ".", "--format", "onnx"], "is a folder; give the file to write"),
        (["--out", "TMP/m.onnx", "--images", "/no/such"], "/no/such: no such folder"),
        (["--out", "TMP/m.onnx", "--int8", "SHARDS"], "Give --output probabilities"),
        (["--out", "TMP/m.onnx", "--output", "probabilities", "--int8", "TRAIN"], "were trained on by this checkpoint"),
    ],
)
def test_options_that_cannot_be_are_refused(place, opened, shards, tmp_path, words, message):
    said = {"SHARDS": str(shards / "voc12/val"), "TRAIN": str(shards / "voc12/train")}
    assert message in opened(place.best, *[said.get(w, w.replace("TMP", str(tmp_path))) for w in words], code=2)
    assert list(tmp_path.iterdir()) == []


def test_only_the_weights_that_stand_for_a_stage_are_logged(chain, place, opened, tmp_path):
    other = next(iter(sorted(place.checkpoints.glob("step-*.pt"))))
    assert "logs the best weights of a stage" in opened(other, "--mlflow", code=2)
    (tmp_path / "best.pt").write_bytes(place.best.read_bytes())
    assert "does not lie in a finished stage of a run" in opened(tmp_path / "best.pt", "--mlflow", code=2)
    assert "no checkpoint /no/such.pt" in opened("/no/such.pt", "--mlflow", code=2)


def test_a_missing_package_is_named_with_its_cure(place, opened, tmp_path, monkeypatch):
    monkeypatch.setitem(program.PACKAGES, "onnx", ("no_such_package",))
    with pytest.raises(SetupError, match=r"no_such_package, which are not installed\. `uv sync --group export`"):
        program.check_form("onnx")


def test_quantised_weights_are_scored_next_to_the_others(place, shards, tmp_path):
    """By the training's own code and protocol: what it measured comes out of the program again."""
    whole = tmp_path / "m.onnx"
    whole.write_bytes((place.model / "artifacts/model.onnx").read_bytes())
    source, uri = open_source(place.best), str(shards / "voc12/val")
    lines = quantise(whole, source.model, plan_evaluation(place.best, source.checkpoint, uri, precision="fp32"))
    done = Result.read(place.result)
    assert lines[0].startswith(f"float32: mIoU {done.best * 100:.2f} %")
    assert f"points of mIoU (voc12 val, {done.val_rows} rows, {done.protocol})" in lines[2]
    first, second = (float(line.split()[2]) for line in lines[:2])
    assert f"{second - first:+.2f}" == lines[2].split()[3]
    assert (tmp_path / "m.int8.onnx").stat().st_size < whole.stat().st_size / 2


def test_the_card_says_what_the_weights_are(place):
    card, done, source = place.card.read_text(), Result.read(place.result), open_source(place.best)
    lines = [line for line in read_record(place.record)[0] if line["kind"] == "val"]
    (best,) = [line["iou"] for line in lines if line["step"] == done.best_step]
    assert done.best_step != done.steps  # else the last weights' IoU would do
    assert f"mIoU **{done.best * 100:.2f} %** on voc12/val, {done.protocol}, every row of it" in card
    for i, (name, iou) in enumerate(zip(source.checkpoint.classes, best, strict=True)):
        colour = "".join(f"{value:02x}" for value in source.checkpoint.palette[i])
        assert f"| {i} | {name} | #{colour} | {'absent' if iou is None else f'{iou * 100:.2f}'} |" in card
    assert "| first | voc12/train | 18 |" in card
    assert "VOC's page" in card  # licence
    assert "Ort::Session" in card
    assert "from random weights" in card


@pytest.mark.slow
def test_a_run_packs_its_model_though_mlflow_is_away_and_replay_logs_it(store, place):
    _, client = store
    state = json.loads((place.path.parent / "mlflow.json").read_text())
    runs, (model,) = state["stages"], state["models"].values()
    assert state["models"] == {runs["second"]: model}  # of the last stage alone
    logged, done = client.get_logged_model(model), Result.read(place.result)
    assert (str(logged.status), logged.source_run_id) == ("READY", runs["second"])
    (metric,) = [metric for metric in logged.metrics if metric.key == "val/mIoU"]
    assert metric.value == pytest.approx(done.best * 100)
    assert (metric.step, metric.dataset_name) == (done.best_step, "voc12/val")
    assert logged.params["step"] == str(done.best_step)
    assert logged.params["shards.val.hash"].startswith(metric.dataset_digest)
    points = client.get_metric_history(runs["second"], "val/mIoU")
    assert sorted(point.step for point in points) == [0, done.steps]  # each is there once
    assert [out.model_id for out in client.get_run(runs["second"]).outputs.model_outputs] == [model]
    assert "model" in [file.path for file in client.list_artifacts(runs["second"])]


@pytest.mark.parametrize(
    ("error", "why"), [(SetupError("onnx is not installed"), "onnx is not installed"), (KeyError("x"), "KeyError: 'x'")]
)
def test_a_model_that_cannot_be_packed_costs_a_warning_with_its_cure(chain, place, monkeypatch, capsys, error, why):
    def fail(place):
        raise error

    monkeypatch.setattr("pipelines.serving.packing.pack_stage", fail)
    pack_last(load_recipe(chain / "recipe.yaml"), chain)
    told = capsys.readouterr().err
    assert f"the run is complete, but its MLflow model is not written: {why}" in told
    assert f"python -m pipelines.export {place.best} --mlflow" in told


LOADS = """
import sys, json, numpy
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
numpy.save(sys.argv[3], model.predict(numpy.load(sys.argv[4])))
ours = [name for name in ("pipelines", "segmodels", "datasets", "torch") if name in sys.modules]
print(json.dumps({"ours": ours, "signature": str(model.metadata.signature.inputs)}))
"""


@pytest.mark.slow
def test_a_registered_model_loads_in_a_fresh_process_without_the_project(store, place, opened, tmp_path):
    uri, client = store
    for _ in range(2):  # the second time it is that version already
        shown = opened(place.best, "--register", "tiny", "--alias", "champion", "--tracking", uri)
        assert "registered: models:/tiny/1, @champion" in shown
    assert "context-heads" in client.get_model_version("tiny", "1").description
    (model,) = json.loads((place.path.parent / "mlflow.json").read_text())["models"].values()
    assert '"version": 1' in client.get_logged_model(model).tags["mlflow.modelVersions"]
    images = np.stack([drawn((45, 70), i) for i in range(2)])
    np.save(tmp_path / "images.npy", images)
    words = [uri, "models:/tiny@champion", tmp_path / "classes.npy", tmp_path / "images.npy"]
    done = subprocess.run([sys.executable, "-c", LOADS, *map(str, words)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    about = json.loads(done.stdout.splitlines()[-1])
    assert about["ours"] == []
    assert "uint8" in about["signature"]
    model, found = segmodels.load(place.best, device="cpu"), np.load(tmp_path / "classes.npy")
    assert found.dtype == np.uint8
    # the same windows; their padding and their probabilities are rounded otherwise
    assert np.mean(found != [model.predict(image) for image in images]) < 0.002
    assert len(np.unique(found)) > 1
    assert list(place.model.rglob("*.pkl")) == []
    page = (place.model / "MLmodel").read_text()  # says nothing of where it was packed
    assert str(ROOT) not in page
    assert str(place.path) not in page


def test_a_model_that_mlflow_lost_is_logged_again(store, place, opened):
    uri, client = store
    before = json.loads((place.path.parent / "mlflow.json").read_text())["models"]
    client.delete_logged_model(*before.values())
    shown = opened(place.best, "--mlflow", "--tracking", uri)
    after = json.loads((place.path.parent / "mlflow.json").read_text())["models"]
    assert set(after) == set(before)
    assert set(after.values()).isdisjoint(before.values())
    assert f"logged: models:/{next(iter(after.values()))}" in shown


class Regions(torch.nn.Module):
    def forward(self, x):
        return F.adaptive_avg_pool2d(x, (3, 4))


class Remainders(torch.nn.Module):
    def forward(self, x):
        width = x.shape[3]
        return x.sum() * 0 + torch.arange(3 * width) % width + torch.arange(3 * width) % 5


@pytest.mark.parametrize("module", [Regions(), Remainders()])
def test_our_translations_hold_at_sizes_that_the_example_does_not_have(module, tmp_path):
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    with program.quiet():
        found = torch.onnx.export(
            module, (torch.rand(2, 3, 9, 14),), dynamic_shapes=(free,), verbose=False, dynamo=True,
            opset_version=program.OPSET, custom_translation_table=table(),
        )  # fmt: skip
    found.save(tmp_path / "m.onnx")
    session = program.open_onnx(tmp_path / "m.onnx", 1)
    for shape in ((2, 3, 9, 14), (1, 3, 10, 5), (3, 3, 7, 20)):
        x = torch.rand(shape)
        given = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        assert np.abs(given - module(x).numpy()).max() < 1e-6


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.slow
def test_a_model_is_served_from_an_environment_of_its_own_requirements(place, tmp_path):
    assert not list(place.model.rglob("uv.lock")), "a lock file of the current folder would be its requirements"
    number = port()
    words = ["serve", "-m", place.model, "--env-manager", "uv", "--port", number]
    log = (tmp_path / "log").open("w+")
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "models", *map(str, words)], cwd=tmp_path, stdout=log, stderr=log,
        env=os.environ | {"MLFLOW_ENV_ROOT": str(tmp_path / "envs")}, start_new_session=True,
    )  # fmt: skip
    try:
        address, image = f"http://127.0.0.1:{number}", drawn((40, 56), 0)[None]
        until = time.monotonic() + 400
        while not answers(f"{address}/ping"):
            assert server.poll() is None, Path(log.name).read_text()[-2000:]
            assert time.monotonic() < until
            time.sleep(0.5)
        ask = urllib.request.Request(
            f"{address}/invocations",
            json.dumps({"inputs": image.tolist()}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(ask, timeout=60) as reply:
            classes = np.array(json.load(reply)["predictions"], np.uint8)
        assert np.mean(classes[0] != segmodels.load(place.best, device="cpu").predict(image[0])) < 0.002
        (packages,) = (tmp_path / "envs").glob("*/lib/python*/site-packages")
        assert not (packages / "torch").exists()
        assert (packages / "onnxruntime").exists()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, 15)
        server.wait(30)
        log.close()


def answers(address):
    try:
        with urllib.request.urlopen(address, timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False
