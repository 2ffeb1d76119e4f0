"""Processes that are up before they are asked for are the ones that are taken."""

import contextlib
import dataclasses
import gc
import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from pipelines.base.door import ROOT
from pipelines.cluster.early import start_early
from pipelines.cluster.inside_ray import start_actors


def workers(variable=None):
    """Ray's processes below this one that work, or idle until they are asked to, by their numbers.

    To each what it imports, or what another variable of its environment says.
    """
    from pipelines.cluster.inside_ray import HOOK

    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith("ray::"):
                found[process.pid] = process.environ().get(variable or HOOK)
    return found


def wait_for(wanted, seconds=120):
    """The processes, once they are those that are wanted."""
    until = time.monotonic() + seconds
    while not wanted(found := workers()):
        assert time.monotonic() < until, found
        time.sleep(0.1)
    return found


def wait_until_idle(pids, seconds=200):
    """Ray gives an actor a process that has told it is ready, which it does once it is through its imports."""

    def taken():
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    until, processes, calm = time.monotonic() + seconds, [psutil.Process(pid) for pid in pids], 0
    while calm < 3:  # a second alone says little of processes that wait for a slow disk
        before = taken()
        time.sleep(1)
        calm = calm + 1 if taken() - before < 0.1 * len(processes) else 0
        assert time.monotonic() < until, pids


@pytest.mark.ray
def test_a_training_takes_the_processes_started_for_it(ray_session, shards, tmp_path):
    import ray

    from datasets.transforms import TrainView
    from pipelines.cluster.group import trainer
    from pipelines.cluster.inside_ray import CONTROLLER, FEED, WORKER
    from pipelines.feed.plan import SamplePlan

    sizes = dataclasses.replace(ray_session, count=1, feed_tasks=1)
    plan = SamplePlan(str(shards / "voc12/train"), 18, TrainView((32, 32), (1, 1)), seed=0, batch=2, steps=4)

    def enter(config):
        from pipelines.feed.batches import ray_batches

        facts = {"imported": "pipelines.training.stage" in sys.modules}
        assert sum(len(batch.target) for batch in ray_batches(plan, 1, sizes.feed_cpus)) == 8
        facts["names"] = {p.name(): p.pid for p in psutil.Process().parent().children()} | {"worker": os.getpid()}
        config["seen"].write_text(json.dumps(facts))

    start_actors()
    for actor in ray.util.list_named_actors(all_namespaces=True):
        ray.get(ray.get_actor(actor["name"], actor["namespace"]).__ray_ready__.remote())
    known = set(workers())
    start_early(sizes)
    kinds = {WORKER, CONTROLLER, FEED}
    ready = wait_for(lambda found: {found[pid] for pid in set(found) - known} >= kinds)
    wait_until_idle(set(ready) - known)
    seen = tmp_path / "seen"
    trainer(enter, {"seen": seen}, sizes, "early", tmp_path / "ray", failures=0).fit()
    facts = json.loads(seen.read_text())
    assert facts["imported"]
    controller = next(pid for name, pid in facts["names"].items() if name.startswith("ray::TrainContro"))
    # idle ones that an earlier training left will do as well
    assert {facts["names"]["worker"], controller} <= set(ready)
    assert not [kind for pid, kind in workers().items() if pid not in ready and kind in (WORKER, FEED)]


@pytest.mark.ray
def test_the_next_of_a_kind_takes_the_process_that_the_one_before_had_started(ray_session):
    import ray

    from pipelines.cluster.inside_ray import CONTROLLER, HOOK

    class Trial:
        def number(self):
            return os.getpid()

        def succeed(self):
            from pipelines.cluster.inside_ray import one_more

            one_more()

    kind = ray.remote(num_cpus=0, runtime_env={"env_vars": {HOOK: CONTROLLER, "OF_THIS_TEST": "1"}})(Trial)
    first = kind.remote()
    number = ray.get(first.number.remote())
    ray.get(first.succeed.remote())

    def ours():
        return {pid for pid, mark in workers("OF_THIS_TEST").items() if mark} - {number}

    wait_for(lambda _: ours())
    (successor,) = ours()
    wait_until_idle([successor])
    ray.kill(first)
    assert ray.get(kind.remote().number.remote()) == successor != number


@pytest.mark.ray
def test_a_raylet_that_does_not_answer_costs_the_head_start_alone(ray_session, monkeypatch):
    import ray

    from pipelines.cluster.inside_ray import controller_environment, prestart

    (node,) = ray.nodes()
    environment, known = controller_environment(), set(workers())
    monkeypatch.setattr(ray, "nodes", lambda: [node | {"NodeManagerPort": 1}])
    prestart(environment, 1)
    assert set(workers()) <= known


@pytest.mark.parametrize(
    ("kind", "without"),
    [
        ("worker", "pipelines.training.stage"),
        ("controller", "pipelines.cluster.group"),
        ("trial", "ray.tune"),
        ("feed", "pipelines.feed.plan"),
    ],
)
def test_an_import_that_fails_is_told_where_it_is_needed(kind, without, monkeypatch):
    from pipelines import warm
    from pipelines.cluster import inside_ray

    monkeypatch.setitem(sys.modules, without, None)
    getattr(warm, f"{kind}_imports")()  # raised here, Ray would only say that a worker did not start
    gc.unfreeze()
    assert gc.isenabled()
    assert getattr(inside_ray, kind.upper()) == f"pipelines.warm.{kind}_imports"


@pytest.mark.parametrize(("kind", "least", "never"), [
    ("worker", {"torch", "pipelines.training.stage", "ray.train"}, {"albumentations", "mlflow"}),
    ("controller", {"pipelines.cluster.group", "ray.train"}, {"torch", "albumentations", "mlflow"}),
    ("trial", {"torch", "pipelines.driver.run", "ray.tune"}, {"albumentations"}),
    ("feed", {"cv2", "pipelines.feed.plan", "ray.data"}, {"torch", "albumentations", "mlflow"}),
])  # fmt: skip
@pytest.mark.slow
def test_each_kind_imports_what_it_needs_and_no_more(kind, least, never):
    """And looks at no GPU: which ones it may see is told to a process with its actor, and CUDA reads it but once.

    The garbage collector rests meanwhile.
    """
    spy = "import torch; torch._C._cuda_getDeviceCount = lambda: sys.exit('GPUs were counted'); " * ("torch" in least)
    watch = "runs = []; gc.callbacks.append(lambda phase, facts: runs.append(phase)); "
    rest = "gc.callbacks.clear(); assert not runs; assert gc.isenabled(); print(*sys.modules)"
    code = f"import gc, sys, pipelines.warm as p; {spy}{watch}p.{kind}_imports(); {rest}"
    loaded = set(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
                 .stdout.split())  # fmt: skip
    assert least <= loaded
    assert not never & loaded
