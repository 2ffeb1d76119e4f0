"""A study under Ray Tune: trials are stopped early, a worker and the driver are killed, and it goes on."""

import contextlib
import json
import math
import os
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from pipelines.base.door import ROOT
from pipelines.runs.record import read_record

pytestmark = pytest.mark.ray
STEPS = 40
AGENTS = (
    "ray::DashboardAgent",
    "ray::RuntimeEnvAgent",
    "ray::DashboardA",
    "ray::RuntimeEnv",
)  # idle; Ray ends them late


@pytest.fixture
def study(recipe_file, tmp_path):
    """Two rates x two seeds, a worker each; the rate that learns nothing is stopped half-way."""
    stages = [{"name": "first", "train": "voc12/train", "val": "voc12/val", "steps": STEPS, "val_every": 4.45}]
    recipe = recipe_file(workers={"count": 1, "gpus": 0}, feed="ray", stages=stages, checkpoint_minutes=0.0,
                         optim={"lr": 0.05, "head_lr_scale": 2})  # fmt: skip
    page = {
        "title": "Learning rate",
        "recipe": str(recipe),
        "baseline": "high",
        "variants": {"high": {}, "none": {"set": {"optim.lr": 1e-9}}},
        "seeds": [0, 1],
        "stop_early": {"grace": 0.45, "reduction": 2},
        "curve": "optim.lr",
    }
    path = tmp_path / "rate.yaml"
    path.write_text(yaml.safe_dump(page, sort_keys=False))
    return path


def start(study, name, log):
    """The door as a process of its own, leader of its own group."""
    words = [sys.executable, "-m", "pipelines.ablate", str(study), "--name", name, "--at-once", "1"]
    return subprocess.Popen(words, cwd=ROOT, stdout=log.open("w"), stderr=subprocess.STDOUT, start_new_session=True,
                            env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip


def processes(driver, word):
    """Processes below a driver whose command line, which Ray makes their class, holds a word."""
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if word in " ".join(process.cmdline()):
                found.append(process)
    return found


def listening(driver):
    """Addresses that a study's processes listen on."""
    found = set()
    for process in psutil.Process(driver.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found |= {c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert found
    return found


def alive(processes):
    """Those of them that run."""
    return psutil.wait_procs(processes, 0)[1]


def wait_for(what, driver, log, seconds=400):
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, log.read_text()
        assert driver.poll() is None, log.read_text()
        time.sleep(0.05)
    return found


def steps_of(folder):
    return [int(path.stem[5:]) for path in folder.glob("first/checkpoints/step-*.pt")]


def scores(folder):
    return {path.parts[-3]: json.loads(path.read_text())["miou"] for path in folder.glob("trials/*/first/done.json")}


@pytest.mark.timeout(1500)
@pytest.mark.xdist_group("commands")  # with a Ray session of its own
def test_a_study_survives_its_killed_parts_and_stops_what_learns_nothing(study, tmp_path):
    import mlflow

    out, log = tmp_path / "out/studies", tmp_path / "log"
    trials = out / "killed/trials"
    driver = start(study, "killed", log)
    wait_for(lambda: steps_of(trials / "high-seed0"), driver, log)
    assert listening(driver) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    processes(driver, "ImplicitFunc")[0].kill()  # Tune starts the trial anew, in a placement group of its own
    wait_for(lambda: (trials / "high-seed0/first/done.json").exists(), driver, log)
    wait_for(lambda: len(steps_of(trials / "high-seed1")) > 0, driver, log)
    below = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    until = time.monotonic() + 300  # those that only import, for the next trial, see it when they are through
    while training := [process for process in alive(below) if process.name() not in AGENTS]:
        assert time.monotonic() < until, training  # what trains ends with its driver
        time.sleep(0.5)
    for process in alive(below):
        process.kill()
    done = (trials / "high-seed0/first/done.json").stat().st_mtime_ns

    driver = start(study, "killed", log)
    assert driver.wait(700) == 0, log.read_text()
    shown = log.read_text()
    assert "1 ended before" in shown
    assert (trials / "high-seed0/first/done.json").stat().st_mtime_ns == done  # not run again
    assert steps_seen(trials / "high-seed0") == steps_seen(trials / "high-seed1") == list(range(1, STEPS + 1))

    # the rate of nothing was stopped at its first validation
    for name in ("none-seed0", "none-seed1"):
        end = json.loads((trials / name / "ended.json").read_text())
        assert (end["status"], end["progress"]) == ("stopped", 0.5)
    check_table((out / "killed/table.txt").read_text(), scores(out / "killed"))
    assert not list(out.rglob("*.parquet"))  # trials read the one copy

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'out/mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("context-heads").experiment_id])
    parent = next(run for run in runs if run.data.tags.get("study") == "killed")
    children = {r.info.run_name: r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert {name: run.info.status for name, run in children.items()} == {
        "high-seed0": "FINISHED", "high-seed1": "FINISHED", "none-seed0": "KILLED", "none-seed1": "KILLED"}  # fmt: skip
    assert parent.info.status == "FINISHED"
    assert not any("/first" in run.info.run_name for run in runs)  # no run per stage: there is one stage
    assert {"table.html", "table.md", "study.yaml"} <= {f.path for f in client.list_artifacts(parent.info.run_id)}
    best = max(scores(out / "killed").items(), key=lambda pair: pair[1])[0]
    assert parent.data.tags["best.trial"] == best
    path = client.download_artifacts(children[best].info.run_id, "checkpoint", str(tmp_path))
    assert os.listdir(path) == [parent.data.tags["best.checkpoint"].rsplit("/", 1)[1]]
    logged = [(p.step, p.value) for p in client.get_metric_history(children["high-seed0"].info.run_id, "train/loss")]
    assert [step for step, _ in logged] == list(range(1, STEPS + 1))


def steps_seen(trial):
    return [line["step"] for line in read_record(trial / "first/record.jsonl")[0] if line["kind"] == "train"]


def check_table(text, found):
    """Mean and half interval of the two seeds that ended, by hand: t(0.975, 1 degree of freedom) = 12.7062."""
    a, b = (found[f"high-seed{seed}"] * 100 for seed in (0, 1))
    line = next(line for line in text.splitlines() if line.startswith("high"))
    assert f"{(a + b) / 2:.2f}" in line
    assert f"{12.7062 * (abs(a - b) / math.sqrt(2)) / math.sqrt(2):.2f}" in line
    assert "2 of 2 stopped" in next(line for line in text.splitlines() if line.startswith("none"))
