"""Real workers that die, and packages that hide ours, on a Ray session."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from pipelines.base.door import ROOT
from pipelines.base.errors import InputError, SetupError
from pipelines.cluster.nodes import names_on_worker
from pipelines.driver.run import run_recipe
from pipelines.recipes.reading import load_recipe
from pipelines.runs import checkpoint
from pipelines.runs.record import read_record

pytestmark = pytest.mark.ray


def test_a_foreign_datasets_package_is_caught_on_workers(ray_session, tmp_path, monkeypatch):
    import ray

    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("")

    def look():
        import sys

        kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "datasets"}
        sys.path.insert(0, str(tmp_path))
        try:
            return names_on_worker()
        finally:  # the worker's process runs other tests' tasks
            sys.path.remove(str(tmp_path))
            sys.modules.pop("datasets", None)
            sys.modules.update(kept)

    assert str(tmp_path / "datasets") in ray.get(ray.remote(num_cpus=0)(look).remote())
    from pipelines.cluster import nodes

    monkeypatch.setattr(nodes, "names_on_worker", look)
    with pytest.raises(SetupError, match=r"on a Ray worker: .*the package 'datasets'"):
        nodes.check_workers()


def train_workers():
    """Processes of this session's training: Ray shows a worker's class as its name."""
    return [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in command(p)]


def command(process):
    """The command line of a process; nothing where it ended meanwhile."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def rank_pids():
    """The processes of this session's training by rank, from the files that their hang notes would go to."""
    found = {}
    for process in train_workers():
        with contextlib.suppress(psutil.Error):
            found |= {int(f.path[-5]): process for f in process.open_files() if "hang-worker" in f.path}
    return found


def until(what, seconds=300):
    """Wait for it."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def trained(folder):
    """The steps in a stage's record."""
    return [line["step"] for line in read_record(folder / "record.jsonl")[0] if line["kind"] == "train"]


def continued(folder):
    """How often a stage went on from a checkpoint."""
    return sum("continues" in line.get("text", "") for line in read_record(folder / "record.jsonl")[0])


def listening():
    """Addresses that this process, Ray and its workers listen on."""
    everyone = [psutil.Process(), *psutil.Process().children(recursive=True)]
    found = {}
    for process in everyone:
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found.setdefault(connection.laddr.ip, []).append((connection.laddr.port, process.name()))
    return found


def test_workers_that_die_are_replaced_and_the_run_ends_at_the_same_weights(pair, two_workers, recipe_file, tmp_path):
    """A worker is killed in mid-epoch, then rank 0; nothing listens beyond loopback. Hangs: see test_disturbed.py."""
    import ray

    page = recipe_file(**two_workers | {"workers": {"count": 2, "gpus": 0, "max_failures": 6}})
    folder, heard, trouble = tmp_path / "out/runs/tiny/first", {}, []

    def disturb():
        try:
            for starts, (step, rank) in enumerate(((2, 1), (6, 0))):
                until(lambda starts=starts: continued(folder) == starts and rank_pids().keys() == {0, 1})
                victim = rank_pids()[rank]
                heard.update(listening() if not heard else {})
                until(lambda step=step: trained(folder)[-1:] >= [step])
                victim.kill()
        except Exception as error:
            trouble.append(error)

    thread = threading.Thread(target=disturb, daemon=True)
    thread.start()
    run_recipe(load_recipe(page))
    thread.join(1)
    assert not trouble
    assert not thread.is_alive()
    whole, tiny = (checkpoint.load(run / "checkpoints/step-00000016.pt") for run in (pair[0] / "first", folder))
    assert all(torch.equal(whole["model"][k], tiny["model"][k]) for k in whole["model"])
    assert trained(folder) == list(range(1, 17))
    assert continued(folder) == 2
    assert set(heard) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, heard
    assert heard
    assert not secrets_in(tmp_path / "out")
    assert not secrets_in(Path(ray._private.worker._global_node.get_logs_dir_path()))


@pytest.mark.slow
@pytest.mark.long
def test_a_driver_of_workers_that_is_asked_to_end_then_killed_is_continued_to_the_same_weights(
    pair, two_workers, recipe_file, tmp_path
):
    """With a Ray session of its own each time; the checkpoint is written before it ends."""
    page, folder = recipe_file(**two_workers), tmp_path / "out/runs/tiny/first"
    for number, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        before = (trained(folder) or [0])[-1]
        with (tmp_path / "log").open("w") as log:
            words = [sys.executable, "-m", "pipelines.train", str(page)]
            driver = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log)
        until(lambda before=before: (trained(folder) or [0])[-1] >= before + 2)
        below = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(number)
        for process in below if number == signal.SIGKILL else []:  # as if its machine was switched off
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        assert driver.wait(200) == code, (tmp_path / "log").read_text()
        assert before + 2 <= trained(folder)[-1] < 16
    run_recipe(load_recipe(page))
    whole, tiny = (checkpoint.load(run / "checkpoints/step-00000016.pt") for run in (pair[0] / "first", folder))
    assert all(torch.equal(whole["model"][k], tiny["model"][k]) for k in whole["model"])
    assert trained(folder) == list(range(1, 17))
    assert continued(folder) == 2


def secrets_in(folder):
    """Files below the folder that hold the secret of the tests' environment."""
    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if secret in path.read_bytes()]


@pytest.mark.parametrize("where", [{"workers": {"count": 1, "gpus": 0}, "feed": "ray"}, {}])
def test_a_corrupt_shard_ends_in_its_message_and_is_not_tried_again(
    ray_session, recipe_file, shards, tmp_path, monkeypatch, where
):
    uri = tmp_path / "damaged"
    shutil.copytree(shards / "voc12" / "train", uri)
    part = uri / "part-00001.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 3] ^= 1
    part.write_bytes(data)
    manifest = json.loads((uri / "manifest.json").read_text())
    manifest["files"][1]["sha256"] = "0" * 64  # a name that no cache holds
    (uri / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"corrupt shard .*part-00001"):
        run_recipe(load_recipe(recipe_file(stages=[{"name": "first", "train": str(uri), "steps": 4}], **where)))
    notes = [line for line in read_record(tmp_path / "out/runs/tiny/first/record.jsonl")[0] if line["kind"] == "note"]
    assert len(notes) == 1  # no second attempt at training
