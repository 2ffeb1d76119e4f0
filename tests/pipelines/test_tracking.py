"""MLflow servers that die and come back: nothing is lost, and no point is there twice."""

import contextlib
import errno
import importlib
import json
import os
import shutil
import sqlite3
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from tracking_server import Server

from pipelines.base import machine
from pipelines.base.errors import InputError, SetupError
from pipelines.driver.jobs import nodes_tag
from pipelines.driver.run import run_recipe
from pipelines.recipes.reading import load_recipe
from pipelines.runs import checkpoint, local_store, mlflow_client, mlflow_faults, mlflow_lines, provenance, sender
from pipelines.runs import tracker as tracker_module
from pipelines.runs.folder import StageFolder
from pipelines.runs.record import read_record
from pipelines.runs.results import About, f1_of, mean_of
from pipelines.runs.run import keep_recipe
from pipelines.runs.screen import describe

STAGES = [
    {"name": "first", "train": "voc12/train", "val": "voc12/val", "steps": 6, "val_every": 0},
    {"name": "second", "train": "voc12/trainval", "steps": 3},
]


def history(client, run, key):
    return [(point.step, point.value) for point in client.get_metric_history(run, key)]


def connected(*words):
    """A tracker whose runs are there."""
    tracker = tracker_module.Tracker(*words)
    tracker.connect()
    return tracker


def losses(folder):
    return [(line["step"], line["loss"]) for line in read_record(folder / "record.jsonl")[0] if line["kind"] == "train"]


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder)
    yield server
    server.kill()


@pytest.mark.slow
def test_a_server_that_dies_in_mid_training_is_replayed_to(server, recipe_file, tmp_path, capsys, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server.start()
    page, folder = recipe_file(stages=STAGES, tracking=server.uri), tmp_path / "out/runs/tiny"

    def kill_at_step_3():
        while not any(step >= 3 for step, _ in losses(folder / "first")):
            time.sleep(0.01)
        server.kill()

    killer = threading.Thread(target=kill_at_step_3, daemon=True)
    killer.start()
    results = run_recipe(load_recipe(page))  # the training itself does not mind
    assert [result.stage for result in results] == ["first", "second"]
    shown = capsys.readouterr().err
    assert f"python -m pipelines.replay {folder}" in shown
    assert "training goes on" in shown

    monkeypatch.setattr(sys, "argv", ["replay", str(folder)])
    replay = importlib.import_module("pipelines.replay").main
    with pytest.raises(SetupError, match=r"cannot be used: .*\. Start the server"):
        replay()  # still away
    server.start()
    for words in ("has everything of tiny", "and had it before"):
        replay()
        assert words in capsys.readouterr().out
    client = mlflow.MlflowClient(tracking_uri=server.uri)
    runs = client.search_runs([client.get_experiment_by_name("context-heads").experiment_id])
    by_name = {run.info.run_name: run.info.run_id for run in runs}
    assert sorted(by_name) == ["tiny", "tiny/first", "tiny/second"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    for stage in ("first", "second"):
        run = by_name[f"tiny/{stage}"]
        assert history(client, run, "train/loss") == losses(folder / stage)
        assert "checkpoint" in [file.path for file in client.list_artifacts(run)]
    assert history(client, by_name["tiny/first"], "val/mIoU")[-1] == (6, results[0].miou * 100)
    assert client.get_run(by_name["tiny"]).data.metrics["first/mIoU"] == results[0].miou * 100

    state = json.loads((folder / "mlflow.json").read_text())  # as if the driver had died before it took note
    (folder / "mlflow.json").write_text(json.dumps(state | {"sent": {}, "ended": []}))
    replay()
    for stage in ("first", "second"):
        assert history(client, by_name[f"tiny/{stage}"], "train/loss") == losses(folder / stage)


class Fake:
    """A tracker whose server answers to some calls alone."""

    uri, ready = "http://nowhere", True

    def __init__(self, answers):
        self.answers, self.calls, self.warnings = answers, 0, set()

    def connect(self):
        pass

    def deliver(self, place):
        self.calls += 1
        if not self.answers(self.calls):
            raise ConnectionError("refused\nand more")

    def warn(self, error):
        self.warnings.add(str(error))


@pytest.mark.slow
def test_a_server_that_returns_in_mid_training_has_everything_at_its_end(
    server, recipe_file, tmp_path, capsys, monkeypatch
):
    import mlflow

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(sender, "RETRY_S", 0.2)
    server.start()
    page, folder = (
        recipe_file(stages=STAGES[:1], tracking=server.uri, checkpoint_minutes=0.0),
        tmp_path / "out/runs/tiny",
    )
    back, save, away = threading.Event(), checkpoint.save, threading.Event()

    def kill_and_start():
        while not any(step >= 3 for step, _ in losses(folder / "first")):
            time.sleep(0.01)
        server.kill()
        assert away.wait(60)
        server.start()
        back.set()

    def wait_at_step_5(path, content):
        if path.name == "step-00000005.pt":  # steps 3 and 4 were trained without a server
            until = time.monotonic() + 60
            while "training goes on" not in shown():
                assert time.monotonic() < until
                time.sleep(0.05)
            away.set()
            assert back.wait(120)
        save(path, content)

    def shown(seen=[]):  # noqa: B006
        seen.append(capsys.readouterr().err)
        return "".join(seen)

    monkeypatch.setattr(checkpoint, "save", wait_at_step_5)
    threading.Thread(target=kill_and_start, daemon=True).start()
    run_recipe(load_recipe(page))
    assert "is back and has everything" in shown()
    assert "pipelines.replay" not in shown().split("is back")[1]
    client = mlflow.MlflowClient(tracking_uri=server.uri)
    state = json.loads((folder / "mlflow.json").read_text())
    run = client.get_run(state["stages"]["first"])
    assert run.info.status == client.get_run(state["parent"]).info.status == "FINISHED"
    assert history(client, run.info.run_id, "train/loss") == losses(folder / "first")
    waits = history(client, run.info.run_id, "speed/data_wait_share")
    assert [step for step, _ in waits] == [step for step, _ in losses(folder / "first")]
    assert all(0 <= share <= 1 for _, share in waits)


def test_a_server_that_comes_back_is_noticed_and_complained_about_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sender, "RETRY_S", 0.01)
    (tmp_path / "record.jsonl").write_text("")
    fake = Fake(lambda call: call > 4)
    sending = sender.Sender(fake, [StageFolder(tmp_path)])
    for _ in range(6):
        sending.deliver()
    assert len(fake.warnings) == 1
    shown = capsys.readouterr().err
    assert shown.count("training goes on") == shown.count("is back and has everything") == 1


@pytest.mark.parametrize("lost", ["create_run", "log_batch"])
def test_a_server_that_dies_while_a_stages_run_is_created_leaves_one_run_of_it(
    recipe_file, tmp_path, monkeypatch, lost
):
    page = load_recipe(recipe_file(stages=STAGES[:1]))
    folder, place = tmp_path / "run", tmp_path / "run/first"
    place.mkdir(parents=True)
    About({"steps": 6}, {}, [], "whole", 6).write(place / "about.json")
    tracker = connected(page, tmp_path, folder)

    def answer_lost(*args, **words):
        original(*args, **words)
        raise ConnectionError

    original = getattr(tracker.client, lost)
    with monkeypatch.context() as patch:
        patch.setattr(tracker.client, lost, answer_lost)
        with pytest.raises(ConnectionError):
            tracker.run_of(StageFolder(place))
    again = connected(page, tmp_path, folder)  # a resume, or a replay
    run = again.run_of(StageFolder(place))
    runs = again.client.search_runs([again.experiment])
    assert sorted(run.info.run_name for run in runs) == ["tiny", "tiny/first"]
    assert again.client.get_run(run).data.params == {"steps": "6"}
    again.client.set_terminated(run, "FINISHED")
    assert again.create("tiny/first", {mlflow_client.PARENT: again.state["parent"]}, {}) != run  # a finished one stays


def answers_lost(patch, method):
    """The server does what it is asked to, and dies before it says so."""
    import mlflow

    original = getattr(mlflow.MlflowClient, method)

    def answer_lost(*args, **words):
        original(*args, **words)
        raise ConnectionError("gone")

    patch.setattr(mlflow.MlflowClient, method, answer_lost)


@pytest.mark.parametrize("lost", ["create_run", "log_text"])
def test_a_server_that_dies_while_a_chains_run_is_created_leaves_one_run_of_it(
    recipe_file, tmp_path, monkeypatch, lost
):
    page = load_recipe(recipe_file())
    folder = tmp_path / "run"
    folder.mkdir()
    with monkeypatch.context() as patch:
        answers_lost(patch, lost)
        with pytest.raises(ConnectionError, match="gone"):
            connected(page, tmp_path, folder)
    again = connected(page, tmp_path, folder)
    (run,) = again.client.search_runs([again.experiment])
    assert run.info.run_id == again.state["parent"]
    assert run.data.params["batch"] == str(page.batch)
    other = tmp_path / "other"  # of the same name, and none of this one's
    other.mkdir()
    assert connected(page, tmp_path, other).state["parent"] != run.info.run_id


def test_a_replay_to_another_server_that_dies_leaves_the_notes_on_the_first(recipe_file, tmp_path, monkeypatch):
    page = load_recipe(recipe_file())
    folder = tmp_path / "run"
    folder.mkdir()
    notes = folder / "mlflow.json"
    notes.write_text(before := json.dumps({"uri": "http://first", "parent": "1", "stages": {"first": "2"}}))
    with monkeypatch.context() as patch:
        answers_lost(patch, "create_run")
        with pytest.raises(ConnectionError, match="gone"):
            connected(page, tmp_path, folder, f"sqlite:///{tmp_path}/other.db")
    assert notes.read_text() == before


def test_long_parameters_are_whole_in_an_artifact(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file())
    folder = tmp_path / "run"
    folder.mkdir()
    tracker = connected(recipe, tmp_path, folder)
    text = "".join(chr(97 + i % 26) for i in range(7000))
    run = tracker.create("long", {"a": "tag"}, {"long": text, "short": 1})
    stored = tracker.client.get_run(run).data.params
    assert stored["short"] == "1"
    assert stored["long"].startswith(text[:5900])
    assert stored["long"].endswith("(whole in params.json)")
    path = tracker.client.download_artifacts(run, "params.json", str(tmp_path))
    assert json.loads(Path(path).read_text())["long"] == text
    short = tracker.create("short", {"a": "tag"}, {"short": 1})
    assert not tracker.client.list_artifacts(short)


@pytest.mark.slow
def test_replay_to_another_store_copies_the_run_there(recipe_file, tmp_path, monkeypatch, capsys):
    import mlflow

    run_recipe(load_recipe(recipe_file(stages=STAGES[:1])))
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    other = f"sqlite:///{tmp_path / 'other.db'}"
    monkeypatch.setattr(sys, "argv", ["replay", str(tmp_path / "elsewhere/runs/tiny"), "--tracking", other])
    importlib.import_module("pipelines.replay").main()
    assert "first  sent" in capsys.readouterr().out
    client = mlflow.MlflowClient(tracking_uri=other)
    runs = client.search_runs([client.get_experiment_by_name("context-heads").experiment_id])
    run = next(run.info.run_id for run in runs if run.info.run_name == "tiny/first")
    assert history(client, run, "train/loss") == losses(tmp_path / "elsewhere/runs/tiny/first")
    folders = {file.path for file in client.list_artifacts(run)}
    assert folders >= {"checkpoint", "confusion", "iou", "iou_table", "overlays"}
    assert [Path(file.path).name for file in client.list_artifacts(run, "checkpoint")] == ["best.pt"]


def test_classes_of_any_name_are_sent_and_what_is_sent_again_is_there_once(empty_store, tmp_path):
    """MLflow takes few signs in a metric's name, and adds to a table that is there."""
    import mlflow

    shutil.copy(empty_store, tmp_path / "mlflow.db")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = client.create_run(client.create_experiment("x", (tmp_path / "artifacts").as_uri())).info.run_id
    classes = ["road", "car, parked", "car; parked", "a//b", "..", "grün (50 %)", "1$ and 5$_", "a$_$b", "道路", "Road",
               "car_ parked 1", 'say "hi"', "cafe\u0301", "café"]  # fmt: skip
    place = tmp_path / "first"
    (place / "validation").mkdir(parents=True)
    np.save(place / "validation/step-00000002.npy", np.eye(14, dtype=np.int64))
    About({}, {}, classes, "whole", 2).write(place / "about.json")
    line = {"kind": "val", "step": 2, "time": 1, "miou": 1.0, "accuracy": 1.0, "fwiou": 1.0, "rows": 3, "overlays": [],
            "iou": [0.01 * i for i in range(13)] + [None], "counts": "validation/step-00000002.npy"}  # fmt: skip
    for _ in range(2):
        mlflow_lines.send_lines(client, run, StageFolder(place), [line])
    names = ["road 0", "car_ parked 2", "car_ parked 3", "a__b", "_", "grün _50 __", "1_ and 5__", "a___b", "道路",
             "Road 9", "car_ parked 1", "say _hi_", "café 12"]  # fmt: skip
    found = client.get_run(run).data.metrics
    assert [found[f"val/IoU/{name}"] for name in names] == pytest.approx(list(range(13)))
    assert found["val/F1/a___b"] == pytest.approx(100 * 2 * 0.07 / 1.07)
    assert len({name for name in found if name.startswith("val/IoU/")}) == 13  # one is absent
    table = json.loads(Path(client.download_artifacts(run, "iou_table/step-00000002.json")).read_text())
    assert [row[0] for row in table["data"]] == classes
    assert table["columns"] == ["class", "IoU_percent", "F1_percent", "true_pixels", "predicted_pixels"]
    assert table["data"][-1][1:3] == [None, None]


@pytest.mark.slow
def test_a_server_that_misses_only_the_end_is_told_by_replay(recipe_file, tmp_path, monkeypatch, capsys):
    import mlflow

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_terminated", lambda *words, **options: 1 / 0)
        run_recipe(load_recipe(recipe_file(stages=STAGES[:1])))
    folder = tmp_path / "out/runs/tiny"
    assert (
        f"how it ended); nothing is lost: when it answers again, send them with\n  python -m pipelines.replay {folder}"
        in (capsys.readouterr().err)
    )
    monkeypatch.setattr(sys, "argv", ["replay", str(folder)])
    importlib.import_module("pipelines.replay").main()
    state = json.loads((folder / "mlflow.json").read_text())
    with mlflow_client.open_client(state["uri"]) as client:
        assert {client.get_run(run).info.status for run in [state["parent"], *state["stages"].values()]} == {"FINISHED"}


@pytest.mark.slow
def test_a_failed_run_carries_its_error_until_it_goes_on(recipe_file, tmp_path, monkeypatch):
    def full(*words):
        raise OSError(errno.ENOSPC, "No space left on device")

    page = load_recipe(recipe_file(stages=STAGES[:1]))
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.driver.jobs.make_job", full)
        with pytest.raises(OSError, match="No space left"):
            run_recipe(page)
    state = json.loads((tmp_path / "out/runs/tiny/mlflow.json").read_text())
    with mlflow_client.open_client(state["uri"]) as client:
        run = client.get_run(state["parent"])
        assert run.info.status == "FAILED"
        assert "No space left on device" in run.data.tags["error"]
        assert run.data.tags["mlflow.note.content"].startswith("**Failed:** ")
        text = Path(client.download_artifacts(state["parent"], "error.txt", str(tmp_path))).read_text()
        assert "Traceback" in text
        assert "in full" in text
        run_recipe(page)
        run = client.get_run(state["parent"])
        assert (run.info.status, "error" in run.data.tags) == ("FINISHED", False)
        assert run.data.tags["mlflow.note.content"].startswith("**Result: ")


def test_runs_say_where_they_come_from(recipe_file, tmp_path, monkeypatch):
    import torch

    tracker = tracker_module.Tracker(load_recipe(recipe_file()), tmp_path, tmp_path / "out/runs/tiny")
    tracker.resume()
    tags = tracker.client.get_run(tracker.state["parent"]).data.tags
    assert tags["mlflow.source.type"] == "LOCAL"
    assert tags["mlflow.user"]
    assert tags["mlflow.source.name"]
    assert tags["command"].startswith("python ")
    assert tags["version.torch"] == torch.__version__
    assert all(tags[f"version.{name}"] for name in ("python", "cuda", "ray", "timm", "mlflow"))
    assert all(tags[f"hardware.{name}"] for name in ("cpu", "cores", "memory_gib", "gpus"))
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python3", "-m", "x", "data=s3://AKIA:hunter2@bucket/x", "a b"])
    assert provenance.command() == "python -m x 'data=s3://***@bucket/x' 'a b'"

    def absent(*words, **options):
        raise FileNotFoundError(words[0][0])

    monkeypatch.setattr("pipelines.base.machine.subprocess.run", absent)
    assert machine.gpus() == []


def test_stages_on_a_cluster_name_its_nodes(monkeypatch):
    import ray

    gpu = {"CPU": 8.0, "GPU": 1.0, "memory": 64 * 2**30, "accelerator_type:H200": 1.0}
    nodes = [{"Alive": True, "Resources": gpu}] * 2 + [{"Alive": True, "Resources": {"CPU": 4.0, "memory": 2**33}}]
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, {"Alive": False, "Resources": {}}])
    assert nodes_tag() == {"hardware": "2 x (8 CPU, 64 GiB, 1 GPU H200), 1 x (4 CPU, 8 GiB)"}
    monkeypatch.setattr(ray, "nodes", lambda: nodes[:1])
    assert nodes_tag() == {}


def test_the_link_opens_the_runs_own_page(recipe_file, tmp_path):
    link = "/#/experiments/3/runs/abc?workflowType=machine_learning"
    assert mlflow_client.look_at("http://host:5000/", "3", "abc") == f"http://host:5000{link}"
    shown = mlflow_client.look_at("sqlite:////a b/mlflow.db", "3", "abc").splitlines()
    assert shown[0] == "uv run mlflow ui --backend-store-uri 'sqlite:////a b/mlflow.db'"
    assert shown[1].endswith(f" http://127.0.0.1:5000{link}")
    tracker = tracker_module.Tracker(load_recipe(recipe_file(tracking="http://127.0.0.1:9")), tmp_path, tmp_path)
    assert tracker.ui_command() == "http://127.0.0.1:9"  # no run is there yet


@pytest.mark.slow
def test_chains_of_different_stages_share_metrics_and_classes_are_printed(recipe_file, tmp_path, capsys):
    results = run_recipe(load_recipe(recipe_file(stages=STAGES)))
    shown = capsys.readouterr().out
    first = read_record(tmp_path / "out/runs/tiny/first/record.jsonl")[0][-1]
    lines = shown[shown.index("\nclass ") :].splitlines()
    assert lines[1].split() == ["class", "first", "IoU", "first", "F1"]
    assert [line.split()[0] for line in lines[3 : 3 + 21]] == list(results[0].classes)
    for line, iou in zip(lines[3:], first["iou"], strict=False):
        assert line.split()[1:] == (["–", "–"] if iou is None else [f"{iou * 100:.2f}", f"{200 * iou / (1 + iou):.2f}"])
    assert lines[24].split()[:2] == ["mean", f"{results[0].miou * 100:.2f}"]
    state = json.loads((tmp_path / "out/runs/tiny/mlflow.json").read_text())
    with mlflow_client.open_client(state["uri"]) as client:
        metrics = client.get_run(state["parent"]).data.metrics
        child = client.get_run(state["stages"]["first"]).data.metrics
    assert metrics["final/mIoU"] == metrics["first/mIoU"] == child["val/mIoU"] == results[0].miou * 100
    assert metrics["final/mIoU_before"] == metrics["first/mIoU_before"]
    assert metrics["final/mF1"] == pytest.approx(child["val/mF1"])
    assert {"train/loss", "train/loss/logits.cross_entropy", "train/loss/aux.cross_entropy"} <= set(child)


def test_f1_follows_from_iou():
    from segmodels.metrics import scores

    counts = np.array([[5, 2, 0, 0], [1, 7, 0, 0], [0, 3, 0, 0], [0, 0, 0, 0]])
    expected = scores(counts)
    assert f1_of(expected.iou)[:3] == pytest.approx(expected.f1[:3])
    assert f1_of(expected.iou)[3] is None
    assert mean_of(f1_of(expected.iou)) == pytest.approx(expected.mean_f1)
    assert mean_of([None]) is None


def test_a_validation_without_a_labelled_pixel_is_shown():
    line = {"kind": "val", "step": 3, "miou": None, "accuracy": None, "rows": 2}
    assert "val mIoU – %" in describe("first", line, About({}, {}, [], "whole", 3))


def test_a_figure_that_cannot_be_drawn_costs_a_line(capsys):
    mlflow_lines.send_figure(None, "run", "iou/step-1.png", lambda: 1 / 0)
    assert "warning: iou/step-1.png cannot be drawn, MLflow does without: division by zero" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("ftp://host/x", "unknown scheme 'ftp'"),
        ("htp://host:5000", "did you mean 'http'"),
        ("./mlruns", "it has no scheme"),
        ("localhost:5000", "it has no scheme"),
        ("http:///x", "it names no host"),
        ("http://host:99999", "Port out of range"),
        ("sqlite://", "it names no file"),
        ("postgresql://me:hunter2@host/db", "holds a user or password"),
    ],
)
def test_an_address_that_can_never_be_right_is_refused_before_anything_starts(recipe_file, tmp_path, uri, why):
    with pytest.raises(SetupError) as caught:
        mlflow_faults.check_address(uri)
    assert why in str(caught.value)
    assert "hunter2" not in str(caught.value)
    for good in (
        "http://host",
        "https://host:5000/x",
        "sqlite:////x/y.db",
        "postgresql+psycopg2://host/x",
        "databricks",
    ):
        mlflow_faults.check_address(good)


def replay(*words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["replay", *map(str, words)])
        importlib.import_module("pipelines.replay").main()


@pytest.mark.slow
def test_a_server_that_is_away_when_a_run_starts_is_no_reason_not_to_train(recipe_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (result,) = run_recipe(load_recipe(recipe_file(stages=STAGES[:1], tracking="http://127.0.0.1:9")))
    folder, shown = tmp_path / "out/runs/tiny", capsys.readouterr().err
    assert shown.count("warning: MLflow at http://127.0.0.1:9 cannot be used: ") == 1
    assert shown.count("Start the server") == shown.count("training goes on") == 1
    assert f"lacks parts of the run (first, how it ended); nothing is lost: when it answers again, send them with\n  python -m pipelines.replay {folder}" in shown  # fmt: skip  # noqa: E501
    with pytest.raises(SetupError, match=r"MLflow at http://127\.0\.0\.1:9 cannot be used"):
        replay(folder)
    store = f"sqlite:///{tmp_path / 'out/mlflow.db'}"
    for words in ("first  sent", "and had it before"):
        replay(folder, "--tracking", store)
        assert words in capsys.readouterr().out
    with mlflow_client.open_client(store) as client:
        runs = client.search_runs([client.get_experiment_by_name("context-heads").experiment_id])
        assert sorted((run.info.run_name, run.info.status) for run in runs) == [
            ("tiny", "FINISHED"), ("tiny/first", "FINISHED")]  # fmt: skip
        child = next(run for run in runs if run.info.run_name == "tiny/first")
        assert history(client, child.info.run_id, "train/loss") == losses(folder / "first")
        assert child.data.metrics["val/mIoU"] == result.miou * 100


@pytest.mark.slow
def test_a_server_that_starts_after_the_run_has_all_of_it(server, recipe_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(sender, "RETRY_S", 0.2)
    page, folder = (
        recipe_file(stages=STAGES[:1], tracking=server.uri, checkpoint_minutes=0.0),
        tmp_path / "out/runs/tiny",
    )
    save = checkpoint.save

    def start_at_step_3(path, content):
        if path.name == "step-00000003.pt":
            server.start()
        save(path, content)

    monkeypatch.setattr(checkpoint, "save", start_at_step_3)
    run_recipe(load_recipe(page))
    told = capsys.readouterr()
    assert "training goes on" in told.err
    assert "is back and has everything" in told.err
    assert "pipelines.replay" not in told.err
    state = json.loads((folder / "mlflow.json").read_text())
    with mlflow_client.open_client(server.uri) as client:
        assert client.get_run(state["parent"]).info.status == "FINISHED"
        assert history(client, state["stages"]["first"], "train/loss") == losses(folder / "first")
        experiment = client.get_run(state["parent"]).info.experiment_id
    assert f"{server.uri}/#/experiments/{experiment}/runs/{state['parent']}?workflowType=machine_learning" in told.out


def test_an_output_that_was_moved_keeps_its_runs_and_their_artifacts(recipe_file, tmp_path, capsys):
    from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

    page = load_recipe(recipe_file())
    before = connected(page, tmp_path / "out", make(tmp_path / "out/runs/tiny"))
    keep_recipe(page, tmp_path / "out/runs/tiny")
    place = StageFolder(make(tmp_path / "out/runs/tiny/first"))
    About({"steps": 6}, {}, [], "whole", 6).write(place.about)
    place.record.write_text('{"kind": "train", "step": 1, "time": 1, "loss": 0.5}\n')
    before.deliver(place)
    shutil.move(tmp_path / "out", tmp_path / "moved")
    _artifact_repos_cache.clear()  # another process has none

    output, folder = tmp_path / "moved", tmp_path / "moved/runs/tiny"
    after = connected(page, output, folder)
    assert (after.state["parent"], after.state["stages"]) == (before.state["parent"], before.state["stages"])
    assert not after.undelivered()  # nothing is sent twice
    assert "the store was moved: artifacts of 2 run(s) are found in" in capsys.readouterr().err
    again = connected(page, output, make(tmp_path / "moved/runs/other"))
    assert "moved" not in capsys.readouterr().err
    for tracker in (after, again):
        tracker.client.log_text(tracker.state["parent"], "x", "new.txt")
        assert {"recipe.yaml", "new.txt"} <= {
            file.path for file in tracker.client.list_artifacts(tracker.state["parent"])
        }
        assert list(output.glob(f"mlartifacts/context-heads/{tracker.state['parent']}/artifacts/new.txt"))
    assert not (tmp_path / "out").exists()
    assert len(after.client.search_runs([after.experiment])) == 3
    replay(folder)  # which has the old address in no note
    assert "has everything of tiny" in capsys.readouterr().out


def make(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_locations_are_changed_only_where_the_artifacts_came_along(empty_store, tmp_path):
    home, old = make(tmp_path / "new/mlartifacts/x"), make(tmp_path / "old/mlartifacts/x")
    shutil.copy(empty_store, tmp_path / "new/mlflow.db")
    uri = local_store.sqlite_uri(tmp_path / "new/mlflow.db")
    with mlflow_client.open_client(uri) as client:
        moved, bucket = (
            client.create_experiment("x", old.as_uri()),
            client.create_experiment("y", "s3://bucket/mlartifacts/y"),
        )
        elsewhere = client.create_experiment("z", make(tmp_path / "disk/mlartifacts/z").as_uri())
        early, late = (client.create_run(moved).info.run_id for _ in range(2))
        make(home / early / "artifacts")
        make(old / late / "artifacts")  # an older version wrote to the old place again
    told = local_store.bring_along(uri)
    assert "artifacts of 1 run(s) are found in" in told
    assert "those of 1 run(s) are still where it was before" in told
    with mlflow_client.open_client(uri) as client:
        assert client.get_experiment(moved).artifact_location == home.as_uri()
        assert client.get_experiment(bucket).artifact_location == "s3://bucket/mlartifacts/y"
        assert client.get_experiment(elsewhere).artifact_location == (tmp_path / "disk/mlartifacts/z").as_uri()
        assert client.get_run(early).info.artifact_uri == (home / early / "artifacts").as_uri()
        assert client.get_run(late).info.artifact_uri == (old / late / "artifacts").as_uri()
    assert local_store.bring_along("http://host") == local_store.bring_along(f"sqlite:///{tmp_path}/none.db") == ""


def test_an_output_may_have_any_sign_in_its_name(recipe_file, empty_store, tmp_path):
    output = make(tmp_path / "a b%20#?ü$c")
    shutil.copy(empty_store, output / "mlflow.db")
    names = {path.name for path in tmp_path.iterdir()}
    tracker = connected(load_recipe(recipe_file()), output, make(output / "runs/tiny"))
    assert [file.path for file in tracker.client.list_artifacts(tracker.state["parent"])] == ["recipe.yaml"]
    assert list(output.glob("mlartifacts/context-heads/*/artifacts/recipe.yaml"))
    assert {path.name for path in tmp_path.iterdir()} == names | {"tiny.yaml"}  # nothing next to it
    assert connected(load_recipe(recipe_file()), output, output / "runs/tiny").state == tracker.state


def test_what_was_deleted_in_mlflow_is_restored_or_made_anew(recipe_file, tmp_path, capsys):
    page, folder = load_recipe(recipe_file()), make(tmp_path / "out/runs/tiny")
    place = StageFolder(make(folder / "first"))
    About({"steps": 6}, {}, [], "whole", 6).write(place.about)
    place.record.write_text('{"kind": "train", "step": 1, "time": 1, "loss": 0.5}\n')
    tracker = connected(page, tmp_path / "out", folder)
    tracker.deliver(place)
    client, parent, child = tracker.client, tracker.state["parent"], tracker.state["stages"]["first"]

    def again():
        tracker = connected(page, tmp_path / "out", folder)
        tracker.deliver(place)
        assert history(client, tracker.state["stages"]["first"], "train/loss") == [(1, 0.5)]
        return tracker.state["parent"], tracker.state["stages"]["first"], capsys.readouterr().err

    client.delete_run(child)
    assert again()[:2] == (parent, child)
    assert client.get_run(child).info.lifecycle_stage == "active"
    client.delete_experiment(tracker.experiment)
    *runs, told = again()
    assert runs == [parent, child]
    assert "the experiment 'context-heads' was deleted there; it is restored" in told
    client.delete_experiment(tracker.experiment)
    assert connected(page, tmp_path / "out", make(tmp_path / "out/runs/other")).experiment == tracker.experiment

    client.set_terminated(child)  # else it would be taken for the one whose id was lost
    for gone in ({"stages": {"first": "0" * 32}}, {"parent": "0" * 32}):  # as after `mlflow gc`
        state = json.loads((folder / "mlflow.json").read_text())
        (folder / "mlflow.json").write_text(json.dumps(state | gone))
        *runs, told = again()
        assert "it no longer has" in told
        assert "a new one is made, from the record" in told
        assert child not in runs
        assert (parent in runs) == ("parent" not in gone)


def test_a_run_that_is_deleted_while_it_trains_is_restored(recipe_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sender, "POLL_S", 0.01)
    monkeypatch.setattr(sender, "RETRY_S", 0.01)
    page, folder = load_recipe(recipe_file(stages=STAGES[:1])), make(tmp_path / "out/runs/tiny")
    place = StageFolder(make(folder / "first"))
    About({"steps": 6}, {}, [], "whole", 6).write(place.about)
    line = '{"kind": "train", "step": %d, "time": %d, "loss": 0.5}\n'
    place.record.write_text(line % (1, 1))
    tracker = tracker_module.Tracker(page, tmp_path / "out", folder)
    tracker.resume()
    client, parent = tracker.client, tracker.state["parent"]
    with tracker.sending(["first"]):
        until = time.monotonic() + 60
        while not tracker.sent(place.record):
            assert time.monotonic() < until
            time.sleep(0.01)
        client.delete_run(tracker.state["stages"]["first"])
        with place.record.open("a") as file:
            file.write(line % (2, 2))
        while len(read_record(place.record, tracker.sent(place.record))[0]):
            assert time.monotonic() < until
            time.sleep(0.01)
        client.delete_run(parent)  # nothing more is sent before the end
    shown = capsys.readouterr().err
    assert shown.count("It was deleted there: the next try restores it") == 2
    assert "the run 'tiny/first' was deleted there; it is restored, since it goes on" in shown
    assert "pipelines.replay" not in shown
    assert history(client, tracker.state["stages"]["first"], "train/loss") == [(1, 0.5), (2, 0.5)]
    assert (client.get_run(parent).info.lifecycle_stage, client.get_run(parent).info.status) == ("active", "FINISHED")


def test_a_store_of_another_mlflow_is_told_from_one_that_is_locked(empty_store, tmp_path, recipe_file, capsys):
    def store(name, revision):
        path = tmp_path / f"{name}.db"
        shutil.copy(empty_store, path)
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        return f"sqlite:///{path}"

    older = store("older", "451aebb31d03")
    with pytest.raises(SetupError, match=r"An older MLflow wrote it.*uv run mlflow db upgrade sqlite:"):
        connect_to(older)
    with pytest.raises(SetupError, match=r"A newer MLflow than the .* wrote it: install that version here"):
        connect_to(store("newer", "deadbeef0000"))
    cures = {
        "(sqlite3.OperationalError) database is locked\n[SQL: …": "Another process holds /x/mlflow.db for writing",
        "(sqlite3.OperationalError) attempt to write a readonly database": "must be writable by this user",
        "(sqlite3.DatabaseError) file is not a database": "is damaged, or no store",
        "API request failed with error code 403: Invalid Host header": "--allowed-hosts HOST",
        "API request failed with error code 401": "MLFLOW_TRACKING_USERNAME",
    }
    for message, cure in cures.items():
        uri = "sqlite:////x/mlflow.db" if "sqlite3" in message else "http://host"
        told = mlflow_faults.explain(uri, MlflowException(message))
        assert cure in told
        assert not told.endswith(mlflow_faults.server_cure(""))
    assert mlflow_faults.explain("http://host", FileNotFoundError("no about.json")).endswith("no about.json.")
    run_recipe(load_recipe(recipe_file(stages=STAGES[:1], tracking=older)))  # neither is a reason not to train
    shown = capsys.readouterr().err
    assert shown.count("An older MLflow wrote it") == 1
    assert "python -m pipelines.replay" in shown


def connect_to(uri):
    with mlflow_client.open_client(uri) as client:
        client.search_experiments()


def test_replay_of_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["replay", str(tmp_path)])
    with pytest.raises(InputError, match="is no run"):
        importlib.import_module("pipelines.replay").main()


@pytest.mark.parametrize(
    ("changes", "hidden"),
    [
        ({"data": "s3://AKIA:hunter2@bucket/x"}, "s3://***@bucket/x"),
        ({"tracking": "http://me:hunter2@host:5000"}, "http://***@host:5000"),
        ({"stages": [{"name": "a", "train": "gs://me:hunter2@b/train", "steps": 1}]}, "gs://***@b/train"),
    ],
)
def test_addresses_with_secrets_are_refused_without_repeating_them(recipe_file, changes, hidden):
    with pytest.raises(InputError) as caught:
        load_recipe(recipe_file(**changes))
    assert hidden in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "MLFLOW_TRACKING_PASSWORD" in str(caught.value)


def test_the_environments_address_with_a_secret_is_refused_too(recipe_file, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@host:5000")
    with pytest.raises(SetupError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        run_recipe(load_recipe(recipe_file()))
    assert "hunter2" not in str(caught.value)


@pytest.mark.slow
def test_no_secret_of_the_environment_is_written(recipe_file, tmp_path):
    run_recipe(load_recipe(recipe_file(stages=STAGES[:1])))
    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if secret in path.read_bytes()]
