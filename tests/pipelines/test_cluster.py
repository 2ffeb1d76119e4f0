"""Sizing of workers and tasks, package names, what nodes share."""

import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import time

import psutil
import pytest
import yaml

from pipelines.base.door import ROOT, check_names
from pipelines.base.errors import InputError, SetupError
from pipelines.cluster.early import start_early
from pipelines.cluster.nodes import check_nodes, on_each_node
from pipelines.cluster.session import ray_cluster
from pipelines.cluster.sizes import Sizes, size_workers
from pipelines.driver.run import run_recipe
from pipelines.recipes.reading import load_recipe
from pipelines.recipes.recipe import Workers


def test_one_worker_per_gpu_else_one():
    assert size_workers(Workers(), cores=16, gpus=4, logical=None).count == 4
    assert size_workers(Workers(), cores=16, gpus=0, logical=None).count == 1


@pytest.mark.parametrize("count", [1, 2])
def test_a_small_joined_cluster_is_shared_in_fractions(count):
    sizes = size_workers(Workers(count=count, gpus=0), cores=2, gpus=0, logical=2.0)
    assert sizes.count * (sizes.cpus + sizes.feed_tasks * sizes.feed_cpus) + sizes.feed_cpus <= 2.0


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        (Workers(count=3), "has 2 GPU"),
        (Workers(count=5, gpus=0), "has 4 core"),
        (Workers(gpus=1, count=2, feed_tasks=4), "need 11 CPUs"),
    ],
)
def test_more_than_the_cluster_has_is_refused_with_the_arithmetic(workers, message):
    with pytest.raises(InputError, match=message):
        size_workers(workers, cores=4, gpus=2, logical=4.0)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl not found")
def test_a_spot_nodes_watcher_tells_ray_of_the_notice(tmp_path):
    """The command of cluster.yaml, with a stand-in for Amazon's address, which gives notice at the second look."""
    asked = []

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_PUT(self):
            self.answer(200, b"secret")

        def do_GET(self):
            asked.append((self.path, self.headers["X-aws-ec2-metadata-token"]))
            self.answer(200 if len(asked) > 1 else 404, b'{"action": "terminate"}')

        def answer(self, code, body):
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words):
            """Nothing on the screen."""

    command = yaml.safe_load((ROOT / "cluster.yaml").read_text())["worker_start_ray_commands"][-1]
    ray = tmp_path / "ray"
    ray.write_text(f'#!/bin/sh\necho "$RAY_AUTH_MODE" "$RAY_ADDRESS" "$@" > {tmp_path}/told\n')
    ray.chmod(0o700)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        changes = {"http://169.254.169.254": f"http://127.0.0.1:{server.server_port}", "~/venv/bin/ray": str(ray)}
        for before, after in (changes | {"sleep 5": "sleep 0.1", "~/spot.log": f"{tmp_path}/log"}).items():
            assert before in command
            command = command.replace(before, after)
        environment = {"PATH": os.environ["PATH"], "RAY_HEAD_IP": "10.0.0.1"}
        subprocess.run(["bash", "-c", command], check=True, timeout=30, env=environment)
        until = time.monotonic() + 30
        while not (tmp_path / "told").exists() or not (tmp_path / "told").read_text():
            assert time.monotonic() < until, (tmp_path / "log").read_text()
            time.sleep(0.05)
        server.shutdown()
    assert asked == [("/latest/meta-data/spot/instance-action", "secret")] * 2
    told = (tmp_path / "told").read_text().split()
    assert told[:4] == ["token", "10.0.0.1:6379", "drain-node", "--address=10.0.0.1:6379"]
    assert "--reason=DRAIN_NODE_REASON_PREEMPTION" in told


def test_a_silent_node_is_lost_after_16_seconds():
    """As cluster.yaml starts its head: Ray asks, waits for an answer until a timeout, and asks again after a period."""
    starts = " ".join(yaml.safe_load((ROOT / "cluster.yaml").read_text())["head_start_ray_commands"])
    period, timeout, times = (
        int(re.search(rf"RAY_health_check_{name}=(\d+)", starts)[1])
        for name in ("period_ms", "timeout_ms", "failure_threshold")
    )
    assert times * (period + timeout) == 16_000


def test_a_foreign_datasets_package_is_caught_on_the_driver(tmp_path):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import runpy; sys.argv = ['train', 'sample', '--print'];"
    )
    code += "runpy.run_module('pipelines.train', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 2
    assert str(tmp_path / "datasets") in done.stderr
    assert str(ROOT / "datasets") in done.stderr
    assert "Traceback" not in done.stderr


def test_own_packages_pass():
    check_names()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("pipelines.base.door.OURS", ("datasets", "no_such_package"))
    with pytest.raises(SetupError, match="no_such_package"):
        check_names()


def nodes(count):
    return [{"NodeID": f"{i:032x}", "NodeManagerAddress": f"10.0.0.{i}", "Alive": i < count} for i in range(count + 1)]


def test_a_local_store_on_several_nodes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("ray.nodes", lambda: nodes(2))
    with pytest.raises(SetupError, match=r"2 nodes.*local file sqlite:////x.db.*Start `mlflow server`"):
        check_nodes(tmp_path, "sqlite:////x.db")
    monkeypatch.setattr("ray.nodes", lambda: nodes(1))
    check_nodes(tmp_path, "sqlite:////x.db")


def test_an_output_that_nodes_do_not_share_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("ray.nodes", lambda: nodes(3))
    seen = {}

    def elsewhere(look, path):
        seen[path] = look(path)  # this node sees it
        return {"10.0.0.0": look(path), "10.0.0.1": look(path + "x"), "10.0.0.2": look(path)}

    monkeypatch.setattr("pipelines.cluster.nodes.on_each_node", elsewhere)
    with pytest.raises(SetupError, match=rf"1 of 3 nodes \(10.0.0.1\) do not see {tmp_path}"):
        check_nodes(tmp_path, "http://mlflow:5000")
    assert list(seen.values()) == [True]
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("pipelines.cluster.nodes.on_each_node", lambda look, path: {"a": look(path)})
    check_nodes(tmp_path, "http://mlflow:5000")


@pytest.mark.ray
def test_every_node_is_looked_at(ray_session):
    assert list(on_each_node(os.path.basename, "/a/b").values()) == ["b"]


def test_a_local_sessions_store_takes_at_most_a_share_of_the_memory(monkeypatch):
    import ray

    booked, whole = [], psutil.virtual_memory().total

    class Enough(Exception):
        pass

    def init(**options):
        booked.append(options["object_store_memory"])
        raise Enough

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    for store in (1 << 20, 1 << 50):
        with pytest.raises(Enough), ray_cluster(Workers(count=1, gpus=0), lambda sizes, store=store: store, slots=2):
            pass
    assert booked == [2 << 20, int(0.3 * whole)]


@pytest.mark.ray
def test_what_a_training_waits_for_is_started_early(ray_session):
    import ray

    start_early(ray_session)
    names = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
    assert {"AutoscalingCoordinator", "datasets_stats_actor"} <= names


def test_a_trainer_starts_no_idle_actors(tmp_path):
    from pipelines.cluster.group import trainer

    made = trainer(print, {}, Sizes(1, 0, 1.0, 1, 1.0), "x", tmp_path, 0)._create_default_callbacks()
    names = {type(callback).__name__ for callback in made}
    assert "BackendSetupCallback" in names
    assert not names & {"DatasetsCallback", "PlacementGroupCleanerCallback", "Named"}  # the last is a trial's


@pytest.mark.ray
def test_what_a_dead_trial_held_is_taken_back_and_a_living_ones_is_not(ray_session):
    import ray

    from pipelines.cluster.inside_ray import reclaim

    class Trial:
        def train(self):
            """What Ray Train's controller does, in its own process."""
            from ray.train.v2._internal.execution.worker_group import worker_group

            from pipelines.cluster.inside_ray import naming

            naming(ray.get_runtime_context().get_actor_id()).before_worker_group_start(None)
            group = worker_group.placement_group([{"CPU": 1}])
            ray.get(group.ready())
            return group.id.hex()

    def state(key):
        return ray.util.placement_group_table()[key]["state"]

    trials = [ray.remote(num_cpus=0)(Trial).remote() for _ in range(2)]
    dead, living = ray.get([trial.train.remote() for trial in trials])
    assert reclaim() == 0
    ray.kill(trials[0])
    until = time.monotonic() + 120
    while not reclaim():
        assert time.monotonic() < until
        time.sleep(0.1)
    assert (state(dead), state(living)) == ("REMOVED", "CREATED")
    ray.kill(trials[1])
    while not reclaim():
        time.sleep(0.1)


@pytest.mark.parametrize("place", ["/proc/nothing/here", "FILE/below"])
def test_an_output_that_cannot_be_written_is_refused(place, recipe_file, tmp_path):
    (tmp_path / "FILE").write_text("")
    recipe = load_recipe(recipe_file(output=str(tmp_path / place)))
    with pytest.raises(SetupError, match=r"cannot write to .* Give another place: output=DIR"):
        run_recipe(recipe)


@pytest.mark.slow
def test_doors_set_ray_up_before_it_is_imported():
    """Ray reads on import what keeps its listeners on loopback."""
    code = """
import builtins, os, sys
import pipelines.driver.run, pipelines.evaluate, pipelines.prepare, pipelines.ablate, pipelines.studies.run
from pipelines.cluster.session import ray_cluster
from pipelines.recipes.recipe import Workers
assert "ray" not in sys.modules
before = builtins.__import__
def watched(name, *rest):
    if name.split(".")[0] == "ray":
        sys.exit("loopback: " + os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "not set"))
    return before(name, *rest)
builtins.__import__ = watched
with ray_cluster(Workers(count=1, gpus=0)):
    pass
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, timeout=400, capture_output=True)
    assert done.stderr.decode().strip() == "loopback: 0"
