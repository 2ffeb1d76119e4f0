"""Nodes on one machine, runs on them by a driver of their own, and how long a disturbed one took to go on."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import psutil
import torch

from pipelines.base.door import ROOT
from pipelines.runs import checkpoint
from pipelines.runs.record import read_record

DRIVEN = Path(__file__).with_name("driven.py")
NOBODY = (
    "http://127.0.0.1:9"  # a tracking server that is away: several nodes ask for one, and its absence costs nothing
)
STEPS = 16
# What conftest.py sets, and the token that Ray asks for where its user has made one
ONES_OWN = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_ENABLE_UV_RUN_RUNTIME_ENV", "RAY_AUTH")


class Nodes:
    """A Ray cluster whose nodes are processes of this one: a head without CPUs, and nodes of two."""

    def __init__(self, count, **head):
        from ray._private import utils
        from ray.cluster_utils import Cluster

        self.folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: sockets lie in it
        own = {"num_cpus": 0, "include_dashboard": False, "temp_dir": self.folder}
        write = utils.write_ray_address  # into its own folder: only its jobs' `auto` is to find it
        with mock.patch.object(utils, "write_ray_address", lambda address, *_: write(address, self.folder)):
            self.cluster = Cluster(initialize_head=True, head_node_args=own | head)
        for _ in range(count):
            self.add()

    @property
    def address(self):
        return self.cluster.address

    def add(self):
        return self.cluster.add_node(num_cpus=2)

    def pid(self, node):
        """The raylet of a node, whose children its workers are."""
        return node.all_processes["raylet"][0].process.pid

    def of(self, process):
        """The node on which a process runs."""
        ancestors = {parent.pid for parent in process.parents()}
        return next(node for node in self.cluster.worker_nodes if self.pid(node) in ancestors)

    def switch_off(self, node):
        """All its processes at once, without a word."""
        for process in below(self.pid(node)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        self.cluster.worker_nodes.remove(node)

    def close(self):
        left = [p for node in self.cluster.list_all_nodes() for p in below(self.pid(node))]
        self.cluster.shutdown()
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def slow_page(two_workers, minutes, hang_minutes=30.0):
    """The keys of the run of `pair` for a driver that is disturbed, with a checkpoint every so many minutes."""
    workers = {"count": 2, "gpus": 0, "hang_minutes": hang_minutes, "max_failures": 6}
    return two_workers | {"workers": workers, "tracking": NOBODY, "checkpoint_minutes": minutes}


def check_end(driver, whole):
    """Make sure that a driver ends, and its stage as that of the folder `whole`."""
    driver.page.with_name("hurry").write_text("")
    if driver.process:
        assert driver.end() == 0, driver.text()
    one, other = (checkpoint.load(stage / f"checkpoints/step-{STEPS:08}.pt") for stage in (whole, driver.stage))
    assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])
    before, after = one["optimizer"]["state"], other["optimizer"]["state"]
    assert all(torch.equal(before[key]["momentum_buffer"], after[key]["momentum_buffer"]) for key in before)
    assert driver.steps() == list(range(1, STEPS + 1))
    assert driver.lines("val")[-1]["miou"] == one["state"]["after"]


def below(pid):
    """A process and all that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [*process.children(recursive=True), process]
    return []


def joining(address):
    """The environment of a driver that joins a cluster: without what a local session of this process has set."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") or k.startswith(ONES_OWN)}
    own = {"RAY_ADDRESS": address, "PYTHONPATH": str(ROOT), "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1"}
    return kept | own


def door(address, name, *words, seconds=280, **environment):
    """A door, as a user opens it, on a cluster; its output."""
    words = [sys.executable, "-m", f"pipelines.{name}", *map(str, words)]
    environment = joining(address) | environment
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=seconds, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def until(what, seconds=280, why=lambda: ""):
    """Wait for it; returns what it gave."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, why()
        time.sleep(0.05)
    return found


class Driver:
    """A run in a process of its own, slowed to so many seconds a step.

    Args:
        page: its recipe.
        address: of the cluster.
        pause: seconds of each batch.
        fault: see `driven.py`.
        before: words of the command that take it elsewhere.
    """

    def __init__(self, page, address, pause=0.25, fault="", begin=True, before=(), **environment):
        self.page, self.log = page, page.with_suffix(".log")
        self.words = [*before, sys.executable, str(DRIVEN), str(page), str(pause), *([fault] if fault else [])]
        self.run = page.parent / "out/runs/tiny"
        self.stage = self.run / "first"
        self.environment = joining(address) | {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"} | environment
        self.process = None
        if begin:
            self.start()

    def start(self):
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.words, cwd=ROOT, stdout=log, stderr=log, env=self.environment, start_new_session=True
            )

    def text(self):
        return self.log.read_text()

    def until(self, what, seconds=280):
        return until(lambda: what() or self.ended_badly(), seconds, self.text)

    def ended_badly(self):
        code = self.process.poll()
        assert code in (None, 0), self.text()
        return False

    def lines(self, kind):
        return [line for line in read_record(self.stage / "record.jsonl")[0] if line["kind"] == kind]

    def steps(self):
        return [line["step"] for line in self.lines("train")]

    def reach(self, step):
        """Wait until it is there."""
        self.until(lambda: (self.steps() or [0])[-1] >= step)

    def continued(self):
        """The steps from which it went on."""
        return [line["step"] for line in self.lines("note") if "continues from its checkpoint" in line["text"]]

    def notices(self):
        return [line["step"] for line in self.lines("note") if line["text"].startswith("notice that")]

    def failures(self):
        """What the driver was told of attempts that ended."""
        return [line for path in sorted(self.run.glob("ray/failures-*")) for line in read_record(path)[0]]

    def ranks(self):
        """Its workers by rank, from the files that their hang notes would go to."""
        found, name = {}, str(self.stage / "hang-worker")
        for process in psutil.process_iter(["cmdline"]):
            if "RayTrainWorker" in " ".join(process.info["cmdline"] or ()):
                with contextlib.suppress(psutil.Error):
                    found |= {int(f.path[-5]): process for f in process.open_files() if f.path.startswith(name)}
        return found

    def both(self):
        return self.until(lambda: found if (found := self.ranks()).keys() == {0, 1} else None)

    def end(self, seconds=280):
        """Its exit code."""
        return self.process.wait(seconds)

    def kill(self):
        """Without a word; a job's process is not its own."""
        if self.process is None:
            return
        for process in below(self.process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(60)


@dataclass
class Taken:
    """Seconds from a fault to its notice and to the first step of the next attempt, and the steps that it repeats."""

    fault: str
    noticed: float
    again: float
    repeated: int


class Clock:
    """Begins with a fault."""

    def __init__(self, driver, fault):
        self.driver, self.fault = driver, fault
        self.before, self.times = driver.steps()[-1], len(driver.continued())
        self.told, self.began = len(driver.failures()), time.monotonic()

    def seconds(self):
        return time.monotonic() - self.began

    def stop(self, noticed=None):
        """Wait until training goes on; prints and returns what it took."""
        driver = self.driver
        if noticed is None:
            driver.until(lambda: len(driver.failures()) > self.told)
            noticed = self.seconds()
        driver.until(lambda: len(driver.continued()) > self.times)
        again = self.seconds()
        taken = Taken(self.fault, round(noticed, 1), round(again, 1), self.before - driver.continued()[-1])
        print(json.dumps(vars(taken)), flush=True)
        return taken
