"""Scripts as submitted jobs, with and without `python`; as a module, the sample chain runs the main one."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
import yaml

from pipelines.base.door import ROOT
from pipelines.runs.record import read_record

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("commands")]  # with Ray sessions of their own
BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}


def run(*words):
    words = list(map(str, words))
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=400, env=os.environ | ENVIRONMENT)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A Ray head of two CPUs with its job server, on loopback; whatever else runs on the machine stays alone."""
    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("127.0.0.1", 0))
        port, agent = one.getsockname()[1], other.getsockname()[1]
    log = tmp_path_factory.mktemp("ray") / "head.log"
    words = ["start", "--head", "--block", "--port=0", "--num-cpus=2", "--disable-usage-stats"]
    words += ["--dashboard-host=127.0.0.1", f"--dashboard-port={port}", "--include-dashboard=true"]
    words += [f"--dashboard-agent-listen-port={agent}"]  # the usual one may be the other tests' session's
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: sockets lie in it
    token = log.with_name("token")
    token.write_text(secrets.token_hex(32))
    ENVIRONMENT.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))  # the head's and every client's
    environment = ENVIRONMENT | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_TMPDIR": folder}
    with log.open("w") as sink:
        head = subprocess.Popen(["ray", *words], stdout=sink, stderr=sink, env=environment, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            if answers(f"{url}/api/version"):
                break
            assert head.poll() is None, log.read_text()
            time.sleep(0.5)
        yield url
    finally:
        for process in [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def answers(url):
    """Whether somebody listens; a refusal for want of a token is an answer too."""
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def submit(address, *words):
    return run("ray", "job", "submit", "--address", address, *words)


def test_as_a_submitted_job(address, recipe_file):
    """By its run bit; the study below goes the other way, through `-- python`."""
    page = recipe_file(workers={"count": 1, "gpus": 0}, feed="ray")
    done = submit(address, "--working-dir", ".", "pipelines/voc_pretrain.py", page)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "mIoU before" in done.stdout
    assert "succeeded" in done.stdout + done.stderr


def test_a_study_as_a_submitted_job_and_again_on_this_machine_give_the_same_table(address, recipe_file, tmp_path):
    """Each line but for its measured speed, and every loss to the last digit."""
    stages = [{"name": "first", "train": "voc12/train", "val": "voc12/val", "steps": 3, "val_every": 0}]
    recipe = recipe_file(stages=stages, workers={"count": 1, "gpus": 0}, feed="ray")
    page = {"title": "Aux weight", "recipe": str(recipe), "baseline": "none", "seeds": [1],
            "variants": {"none": {"set": {"loss.aux.cross_entropy": 0.0}}, "full": {}}}  # fmt: skip
    study = tmp_path / "aux.yaml"
    study.write_text(yaml.safe_dump(page, sort_keys=False))
    done = submit(address, "--working-dir", ".", "--", "python", "pipelines/ablate.py", study, "--name", "once")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "2 trial(s) to run, 2 at once" in done.stdout  # a worker each
    assert "one seed: no interval" in done.stdout
    done = run(sys.executable, "-m", "pipelines.ablate", study, "--name", "again")
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


def test_without_working_dir_the_message_says_what_to_add(address, recipe_file):
    page = recipe_file(workers={"count": 1, "gpus": 0}, feed="ray")
    done = submit(address, "--", "python", ROOT / "pipelines/voc_pretrain.py", page)
    assert done.returncode != 0
    assert "Add --working-dir" in done.stdout
    assert "ray job submit --working-dir . -- python pipelines/voc_pretrain.py" in done.stdout
    assert "Traceback" not in done.stdout
