"""Doors as submitted jobs, in every form that the README has, on a head that asks for its token."""

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

import pytest
import yaml
from heads import RAY, free_port, head, wait_for, with_token

from pipelines.base.door import ROOT
from pipelines.base.files import TEMPORARY
from pipelines.runs.folder import RunFolder
from pipelines.runs.record import read_record

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("commands")]  # with Ray sessions of their own
ON_CPUS = {"workers": {"count": 1, "gpus": 0}, "feed": "ray"}
STEP = re.compile(r" +first  step +(\d+)/5  epoch [\d.]+  loss [\d.]+  lr \S+  [\d.]+ images/s  data wait \d+%  ETA .+")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head of two CPUs with its job server, and what a client of it needs."""
    folder, port, metrics = tmp_path_factory.mktemp("head"), free_port(), free_port()
    known = with_token(folder / "token")
    words = ["--port=0", "--num-cpus=2", "--include-dashboard=true", "--dashboard-host=127.0.0.1"]
    words += [f"--dashboard-port={port}", f"--metrics-export-port={metrics}"]
    words += [f"--dashboard-agent-listen-port={free_port()}"]  # the usual one may be the other tests' session's
    with head(folder / "head.log", known | {"RAY_metrics_report_interval_ms": "1000"}, *words):
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: status(f"{url}/api/version"))

        def job(*words):
            return run(RAY, "job", words[0], "--address", url, *words[1:], environment=known)

        yield SimpleNamespace(url=url, metrics=f"http://127.0.0.1:{metrics}/metrics", job=job)


def run(*words, environment):
    words = list(map(str, words))
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=400, env=environment)


def status(url):
    """The HTTP status that an address answers with, 0 where nobody does."""
    try:
        return urllib.request.urlopen(url, timeout=5).status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_a_run_by_its_run_bit_shows_each_step_once_and_its_folder_names_the_machines(cluster, recipe_file, tmp_path):
    page = recipe_file(workers={"count": 2, "gpus": 0}, feed="ray")
    done = cluster.job("submit", "--working-dir", ".", "pipelines/voc_pretrain.py", page)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "mIoU before" in done.stdout
    assert "succeeded" in done.stdout + done.stderr
    assert [found[1] for line in done.stdout.splitlines() if (found := STEP.match(line))] == list("12345")
    (start,), _ = read_record(RunFolder(tmp_path / "out/runs/tiny").machines)
    (node,) = start["nodes"]
    assert (start["workers"], node["ranks"], node["devices"]) == (2, [0, 1], ["CPU", "CPU"])
    assert node["address"] == "127.0.0.1"
    assert {"context-heads", "python", "ray", "torch", "cuda"} <= set(node["versions"])


def test_without_working_dir_the_job_ends_with_2_and_says_what_to_add(cluster, recipe_file):
    done = cluster.job("submit", "--", "python", ROOT / "pipelines/voc_pretrain.py", recipe_file(**ON_CPUS))
    assert done.returncode == 1  # the command line's own; the driver's is in the message
    assert "failed with exit code 2" in done.stdout
    assert "Add --working-dir" in done.stdout
    assert "ray job submit --working-dir . -- python pipelines/voc_pretrain.py" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.long
def test_a_training_that_fails_ends_with_1(cluster, recipe_file):
    """As a module. Where the code is on every node already, nothing is sent."""
    page = recipe_file(**ON_CPUS, optim={"lr": 1e30})
    here = json.dumps({"working_dir": f"local://{ROOT}"})
    done = cluster.job("submit", "--runtime-env-json", here, "--", "python", "-m", "pipelines.train", page)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "failed with exit code 1," in done.stdout
    assert "the loss became" in done.stdout
    assert "Uploading" not in done.stdout + done.stderr


def test_a_stopped_job_writes_a_checkpoint_first_and_prometheus_sees_it_run(cluster, recipe_file, tmp_path):
    stages = [{"name": "first", "train": "voc12/train", "steps": 100_000, "val_every": 0}]
    page = recipe_file(**ON_CPUS, stages=stages, checkpoint_minutes=0.05)
    words = ["--runtime-env", "runtime_env.yaml", "--no-wait", "--submission-id", "long", "--", "python"]
    done = cluster.job("submit", *words, "pipelines/train.py", page)
    assert done.returncode == 0, done.stdout + done.stderr
    place = RunFolder(tmp_path / "out/runs/tiny").stage("first")
    wait_for(lambda: any(line["kind"] == "train" for line in read_record(place.record)[0]))
    shown = wait_for(lambda: gauges(cluster.metrics))
    assert set(shown) == {"images_per_second", "data_wait_ratio", "loss", "step", "stage", "checkpoint_age_seconds"}
    assert shown["images_per_second"] > 0
    assert 0 <= shown["data_wait_ratio"] <= 1
    assert 0 <= shown["checkpoint_age_seconds"] < 60
    began = time.monotonic()
    done = cluster.job("stop", "long")
    assert "was stopped" in done.stdout + done.stderr, done.stdout + done.stderr
    assert time.monotonic() - began < 60
    lines, _ = read_record(place.record)
    assert re.search(r"SIGTERM: stopped in stage first at step \d+, its checkpoint written", lines[-1]["text"])
    assert place.checkpoint(lines[-1]["step"]).exists()
    assert not list(place.checkpoints.glob(TEMPORARY))


def gauges(url):
    """The values of a run's gauges, empty before all are there; nobody is asked for a token."""
    text = urllib.request.urlopen(url, timeout=10).read().decode()
    found = re.findall(r'^ray_context_heads_(\w+)\{[^}]*run="tiny"[^}]*\} (\S+)$', text, re.M)
    return {name: float(value) for name, value in found} if len(found) >= 6 else {}


@pytest.mark.long
def test_a_study_as_a_submitted_job_and_again_on_this_machine_give_the_same_table(cluster, recipe_file, tmp_path):
    """Each line but for its measured speed, and every loss to the last digit."""
    stages = [{"name": "first", "train": "voc12/train", "val": "voc12/val", "steps": 3, "val_every": 0}]
    recipe = recipe_file(stages=stages, **ON_CPUS)
    page = {"title": "Aux weight", "recipe": str(recipe), "baseline": "none", "seeds": [1],
            "variants": {"none": {"set": {"loss.aux.cross_entropy": 0.0}}, "full": {}}}  # fmt: skip
    study = tmp_path / "aux.yaml"
    study.write_text(yaml.safe_dump(page, sort_keys=False))
    done = cluster.job("submit", "--working-dir", ".", "--", "python", "pipelines/ablate.py", study, "--name", "once")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "2 trial(s) to run, 2 at once" in done.stdout  # a worker each
    assert "one seed: no interval" in done.stdout
    plain = with_token(tmp_path / "unused")
    done = run(sys.executable, "-m", "pipelines.ablate", study, "--name", "again",
               environment={k: v for k, v in plain.items() if not k.startswith("RAY_AUTH")})  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    tables, losses = [], []
    for name in ("once", "again"):
        folder = tmp_path / "out/studies" / name
        lines = (folder / "table.txt").read_text().splitlines()
        tables.append([line.split()[:-1] for line in lines if line.startswith(("none ", "full "))])
        losses.append({trial: losses_of(folder / "trials" / trial) for trial in ("none-seed1", "full-seed1")})
    assert [line[0] for line in tables[0]] == ["none", "full"]
    assert tables[0] == tables[1]
    assert losses[0] == losses[1]
    assert losses[0]["none-seed1"] != losses[0]["full-seed1"]


def losses_of(trial):
    return [line["loss"] for line in read_record(trial / "first/record.jsonl")[0] if line["kind"] == "train"]
