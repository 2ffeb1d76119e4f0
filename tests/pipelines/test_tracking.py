"""MLflow servers that die and come back: nothing is lost, and no point is there twice."""

import contextlib
import errno
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipelines.base.errors import InputError, SetupError
from pipelines.driver.run import run_recipe
from pipelines.recipes.reading import load_recipe
from pipelines.runs import checkpoint, mlflow_client, mlflow_lines
from pipelines.runs import tracker as tracker_module
from pipelines.runs.folder import StageFolder
from pipelines.runs.record import read_record
from pipelines.runs.results import About

STAGES = [
    {"name": "first", "train": "voc12/train", "val": "voc12/val", "steps": 6, "val_every": 0},
    {"name": "second", "train": "voc12/trainval", "steps": 3},
]


def history(client, run, key):
    return [(point.step, point.value) for point in client.get_metric_history(run, key)]


def losses(folder):
    return [(line["step"], line["loss"]) for line in read_record(folder / "record.jsonl")[0] if line["kind"] == "train"]


class Server:
    """`mlflow server` on loopback, which a test can kill and start again on the same store."""

    def __init__(self, folder):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder, self.uri = folder, f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        words = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        words += [
            "--backend-store-uri",
            f"sqlite:///{self.folder}/server.db",
            "--artifacts-destination",
            str(self.folder),
        ]
        sink = (self.folder / "server.log").open("a")
        self.process = subprocess.Popen(
            [sys.executable, *words], stdout=sink, stderr=sink, cwd=self.folder,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # eight processes that nobody here needs
        )  # fmt: skip
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
                return
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            time.sleep(0.25)
        raise AssertionError((self.folder / "server.log").read_text())

    def kill(self):
        if self.process is not None:
            parent = psutil.Process(self.process.pid)
            for process in [*parent.children(recursive=True), parent]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.wait()
            self.process = None


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
    with pytest.raises(SetupError, match="cannot be used"):
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

    uri = "http://nowhere"

    def __init__(self, answers):
        self.answers, self.calls, self.warnings = answers, 0, []

    def deliver(self, place):
        self.calls += 1
        if not self.answers(self.calls):
            raise ConnectionError("refused\nand more")

    def warn(self, doing, error):
        self.warnings.append(str(error))


@pytest.mark.slow
def test_a_server_that_returns_in_mid_training_has_everything_at_its_end(
    server, recipe_file, tmp_path, capsys, monkeypatch
):
    import mlflow

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracker_module, "RETRY_S", 0.2)
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
    monkeypatch.setattr(tracker_module, "RETRY_S", 0.01)
    (tmp_path / "record.jsonl").write_text("")
    fake = Fake(lambda call: call > 4)
    sender = tracker_module.Sender(fake, [StageFolder(tmp_path)])
    for _ in range(6):
        sender.deliver()
    assert len(fake.warnings) == 1
    assert capsys.readouterr().err.count("is back and has everything") == 1


@pytest.mark.parametrize("lost", ["create_run", "log_batch"])
def test_a_server_that_dies_while_a_stages_run_is_created_leaves_one_run_of_it(
    recipe_file, tmp_path, monkeypatch, lost
):
    page = load_recipe(recipe_file(stages=STAGES[:1]))
    folder, place = tmp_path / "run", tmp_path / "run/first"
    place.mkdir(parents=True)
    About({"steps": 6}, {}, [], "whole", 6).write(place / "about.json")
    tracker = tracker_module.Tracker(page, tmp_path, folder)

    def answer_lost(*args, **words):
        original(*args, **words)
        raise ConnectionError

    original = getattr(tracker.client, lost)
    with monkeypatch.context() as patch:
        patch.setattr(tracker.client, lost, answer_lost)
        with pytest.raises(ConnectionError):
            tracker.run_of(StageFolder(place))
    again = tracker_module.Tracker(page, tmp_path, folder)  # a resume, or a replay
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
        with pytest.raises(SetupError, match="gone"):
            tracker_module.Tracker(page, tmp_path, folder)
    again = tracker_module.Tracker(page, tmp_path, folder)
    (run,) = again.client.search_runs([again.experiment])
    assert run.info.run_id == again.state["parent"]
    assert run.data.params["batch"] == str(page.batch)
    other = tmp_path / "other"  # of the same name, and none of this one's
    other.mkdir()
    assert tracker_module.Tracker(page, tmp_path, other).state["parent"] != run.info.run_id


def test_a_replay_to_another_server_that_dies_leaves_the_notes_on_the_first(recipe_file, tmp_path, monkeypatch):
    page = load_recipe(recipe_file())
    folder = tmp_path / "run"
    folder.mkdir()
    notes = folder / "mlflow.json"
    notes.write_text(before := json.dumps({"uri": "http://first", "parent": "1", "stages": {"first": "2"}}))
    with monkeypatch.context() as patch:
        answers_lost(patch, "create_run")
        with pytest.raises(SetupError, match="gone"):
            tracker_module.Tracker(page, tmp_path, folder, f"sqlite:///{tmp_path}/other.db")
    assert notes.read_text() == before


def test_long_parameters_are_whole_in_an_artifact(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file())
    folder = tmp_path / "run"
    folder.mkdir()
    tracker = tracker_module.Tracker(recipe, tmp_path, folder)
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
    classes = ["road", "car, parked", "car; parked", "a//b", "..", "grün (50 %)"]
    place = tmp_path / "first"
    (place / "validation").mkdir(parents=True)
    np.save(place / "validation/step-00000002.npy", np.eye(6, dtype=np.int64))
    About({}, {}, classes, "whole", 2).write(place / "about.json")
    line = {"kind": "val", "step": 2, "time": 1, "miou": 1.0, "accuracy": 1.0, "fwiou": 1.0, "rows": 3, "overlays": [],
            "iou": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], "counts": "validation/step-00000002.npy"}  # fmt: skip
    for _ in range(2):
        mlflow_lines.send_lines(client, run, StageFolder(place), [line])
    names = ["road", "car_ parked 1", "car_ parked 2", "a__b", "_", "grün _50 __"]
    found = client.get_run(run).data.metrics
    assert [found[f"val/IoU/{name}"] for name in names] == [10.0, 20.0, 30.0, 40.0, 50.0, 60.0]
    table = json.loads(Path(client.download_artifacts(run, "iou_table/step-00000002.json")).read_text())
    assert [row[0] for row in table["data"]] == classes


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


def test_what_fails_before_the_first_worker_starts_ends_the_run_in_mlflow(recipe_file, tmp_path, monkeypatch):
    def full(*words):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipelines.driver.jobs.make_job", full)
    with pytest.raises(OSError, match="No space left"):
        run_recipe(load_recipe(recipe_file()))
    state = json.loads((tmp_path / "out/runs/tiny/mlflow.json").read_text())
    with mlflow_client.open_client(state["uri"]) as client:
        assert client.get_run(state["parent"]).info.status == "FAILED"


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


def test_no_secret_of_the_environment_is_written(recipe_file, tmp_path):
    run_recipe(load_recipe(recipe_file(stages=STAGES[:1])))
    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if secret in path.read_bytes()]
