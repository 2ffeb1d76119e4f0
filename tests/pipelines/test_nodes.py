"""A cluster that cannot be joined, that grows, that is too small, or whose nodes differ; and why workers ended."""

import contextlib
import http.server
import json
import os
import pickle
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
import yaml
from ray._private.runtime_env.packaging import _get_excludes, create_package

from datasets import storage
from datasets.sample import DataError
from pipelines.base.door import ROOT, VERSION
from pipelines.base.errors import InputError, RunFailed, SetupError, Stopped
from pipelines.cluster import address, failures, folder, growing, joining, nodes, waiting
from pipelines.cluster.inside_ray import Cluster, types_in
from pipelines.cluster.sizes import Node, Sizes, joins, placed, room_for, size_workers, totals
from pipelines.driver import fit
from pipelines.driver.run import run_recipe
from pipelines.recipes.reading import load_recipe
from pipelines.recipes.recipe import Workers
from pipelines.runs.folder import StageFolder
from pipelines.runs.record import Record, read_record
from pipelines.runs.stopping import stoppable
from pipelines.training import notice

# ---- a short folder for sockets


@pytest.fixture
def long_tmpdir(tmp_path, monkeypatch):
    """A TMPDIR as batch systems set it; the short folders that are usual, below the test's own."""
    place = tmp_path / ("job-" + "1234567890" * 6)
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    short = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    yield short
    for path in sorted(short.rglob("*"), reverse=True):
        path.rmdir()
    short.rmdir()


def test_under_a_long_tmpdir_ray_gets_a_short_folder_of_the_users_own(long_tmpdir, capfd):
    found = Path(folder.own_folder()["RAY_TMPDIR"])
    assert found.parent == long_tmpdir
    assert stat.S_IMODE(found.stat().st_mode) == 0o700
    assert len(f"{found}/ray/session_2026-11-20_12-00-00_123456_4194304/sockets/plasma_store") <= 107
    found.chmod(0o755)
    assert folder.own_folder()["RAY_TMPDIR"] == str(found)
    assert stat.S_IMODE(found.stat().st_mode) == 0o700
    assert capfd.readouterr() == ("", "")


def test_a_folder_of_somebody_else_is_not_taken(long_tmpdir, monkeypatch):
    taken = long_tmpdir / f"context-heads-ray-{os.getuid()}"
    taken.symlink_to("/")
    found = Path(folder.own_folder()["RAY_TMPDIR"])
    assert found != taken
    assert stat.S_IMODE(found.stat().st_mode) == 0o700
    taken.unlink()


def test_a_folder_that_the_user_names_counts_unless_it_is_too_long(long_tmpdir, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/short")
    assert folder.own_folder() == {"RAY_TMPDIR": "/short"}
    monkeypatch.setenv("RAY_TMPDIR", "/long" * 20)
    assert folder.own_folder()["RAY_TMPDIR"].startswith(str(long_tmpdir))


def test_without_any_short_folder_the_cure_is_named(long_tmpdir, monkeypatch):
    monkeypatch.setattr(folder, "made", lambda path: None)
    with pytest.raises(SetupError, match="RAY_TMPDIR=/short/folder"):
        folder.own_folder()


def test_pythons_own_sockets_get_a_short_folder_too(long_tmpdir, monkeypatch):
    before = tempfile.gettempdir()
    with folder.short_sockets():
        assert folder.fits(tempfile.gettempdir(), folder.PYTHONS)
    assert tempfile.gettempdir() == before


# ---- an address that cannot be joined


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("http://10.0.0.5:8265", r"is where jobs are submitted.*ray job submit.*HOST:6379"),
        ("https://ray.example", r"is where jobs are submitted"),
        ("ray://10.0.0.5:10001", r"is Ray Client's.*submit a job"),
        ("redis://10.0.0.5:6379", r"redis:// is not a cluster's address"),
        ("10.0.0.5", r"is not HOST:PORT"),
        ("10.0.0.5:", r"is not HOST:PORT"),
        ("10.0.0.5:port", r"is not HOST:PORT"),
        ("no-such-host.invalid:6379", r"there is no machine named 'no-such-host.invalid'"),
    ],
)
def test_an_address_of_another_kind_is_named_with_its_cure(given, message):
    with pytest.raises(SetupError, match=rf"RAY_ADDRESS = .*{message}"):
        address.check_address(given)


@pytest.fixture
def port():
    """A port of this machine that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_where_nobody_listens_it_takes_seconds_to_say_so(monkeypatch):
    monkeypatch.setattr(address, "PAUSE_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    with pytest.raises(SetupError, match=r"nothing listens there \(Connection refused\).*unset RAY_ADDRESS"):
        address.check_address(f"127.0.0.1:{free}")


def test_what_is_silent_is_no_cluster(monkeypatch, port):
    monkeypatch.setattr(address, "GREETING_S", 0.2)
    monkeypatch.setattr(address, "greet", lambda place: time.sleep(5))
    with pytest.raises(SetupError, match="does not answer as a Ray cluster"):
        address.check_address(f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (Cluster(refusal="InvalidAuthToken"), r"asks for its token.*RAY_AUTH_MODE=token.*RAY_AUTH_TOKEN_PATH"),
        (Cluster(ray="2.9.0"), r"the cluster runs Ray 2.9.0, this environment has Ray 2.60.*install Ray 2.9.0 here"),
        (Cluster(python="3.9.1"), r"the cluster runs Python 3.9.1"),
        (
            Cluster(nodes=("10.0.0.5",), here=False),
            r"not one of the cluster's nodes \(10.0.0.5\).*--address=",
        ),
    ],
)
def test_a_cluster_that_does_not_take_this_process_in_says_why(monkeypatch, port, cluster, message):
    monkeypatch.setattr(address, "greet", lambda place: cluster)
    with pytest.raises(SetupError, match=message):
        address.check_address(f"127.0.0.1:{port}")


def test_a_token_that_is_asked_for_and_missing_is_named_before_ray_aborts(monkeypatch, tmp_path, port):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    with pytest.raises(SetupError, match=r"RAY_AUTH_MODE = token, and there is no token.*RAY_AUTH_TOKEN_PATH"):
        address.check_address(f"127.0.0.1:{port}")
    monkeypatch.setattr(address, "greet", lambda place: None)
    (tmp_path / "token").write_text("a" * 64)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    address.check_address(f"127.0.0.1:{port}")


def test_local_is_no_cluster_and_auto_without_one_is_said(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert not joins()
    monkeypatch.setattr(address, "found_address", lambda: "")
    with pytest.raises(SetupError, match=r"no Ray cluster runs on this machine.*ray start --head"):
        address.check_address("auto")


def test_what_ray_raises_on_joining_is_said_with_the_address(monkeypatch):
    import ray

    def init(**options):
        raise RuntimeError("Version mismatch:\n  theirs, ours")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    with pytest.raises(SetupError, match=r"RAY_ADDRESS = 10.0.0.5:6379: .* Version mismatch: theirs, ours"):
        joining.connect()


def test_only_the_code_is_sent():
    left_out = _get_excludes(ROOT, joining.excludes())
    sent = ("datasets", "datasets/shards.py", "pipelines/recipes/sample.yaml", "segmodels/heads/catalog.py", ".")
    kept = (
        ".git",
        ".venv",
        "data",
        "mine",
        "tests",
        "uv.lock",
        "cluster.yaml",
        "datasets/x.jpg",
        "pipelines/__pycache__",
    )
    assert [name for name in sent if left_out(ROOT / name)] == []
    assert [name for name in kept if not left_out(ROOT / name)] == []


@pytest.mark.slow
def test_a_machine_that_has_only_what_is_sent_says_what_it_runs(tmp_path):
    """A worker without the project's other files ended in PackageNotFoundError there."""
    create_package(str(ROOT), tmp_path / "sent.zip", include_gitignore=True, excludes=joining.excludes())
    with zipfile.ZipFile(tmp_path / "sent.zip") as archive:
        archive.extractall(tmp_path)
    words = "from pipelines.training.machines import own_machine; print(own_machine(0, 0, True).versions)"
    done = subprocess.run([sys.executable, "-c", words], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert f"'context-heads': '{VERSION}'" in done.stdout


def test_a_submitted_working_directory_holds_the_three_packages_only(tmp_path):
    """`ray job submit --working-dir .` reads .rayignore; what lies around after work stays at home."""
    (tmp_path / "here").mkdir()
    shutil.copy(ROOT / ".rayignore", tmp_path / "here")
    around = [
        "data/voc12/a.arrow",
        "runs/x/best.pt",
        "out/scores.json",
        "tests/test_x.py",
        "mlruns/0/meta.yaml",
        "mlartifacts/0/x",
        ".mypy_cache/a",
        ".ruff_cache/a",
        ".pytest_cache/a",
        ".git/a",
        ".venv/a",
        ".ci/run",
    ]
    code = ["datasets/shards.py", "pipelines/train.py", "pipelines/runs/record.py", "segmodels/losses.py"]  # fmt: skip
    for name in [*around, *code, "mine.yaml", "pyproject.toml"]:
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).write_text("x")
    create_package(str(tmp_path / "here"), tmp_path / "sent.zip", include_gitignore=False)
    with zipfile.ZipFile(tmp_path / "sent.zip") as archive:
        sent = {name for name in archive.namelist() if not name.endswith("/")}
    assert sent == {*code, "mine.yaml", "pyproject.toml", ".rayignore"}


def test_code_that_ray_cannot_send_is_found_before_it_tries(tmp_path):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets/large.yaml").write_text("x" * 3000)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/images.tar").write_text("x" * 9000)
    joining.check_code(tmp_path, most=4000)
    with pytest.raises(SetupError, match=r"Move data out of datasets.*large.yaml"):
        joining.check_code(tmp_path, most=2000)


# ---- sizes, node by node


@pytest.mark.parametrize(
    ("workers", "there", "sizes"),
    [
        (Workers(count=2, gpus=0), [Node(1)] * 3, Sizes(2, 0, 0.5, 1, 0.5)),  # on the sum 0.6 each: one task starves
        (Workers(gpus=1), [Node(4), Node(4, 4), Node(4, 4)], Sizes(8, 1, 0.66, 1, 0.66)),
        (Workers(count=4, gpus=1), [Node(4), Node(48, 4)], Sizes(4, 1, 1.0, 11, 1.0)),
        (Workers(count=2, gpus=0), [Node(4), Node(0.5)], Sizes(2, 0, 0.8, 1, 0.8)),
        (Workers(count=2, gpus=1), [Node(2, 1), Node(2, 1), Node(9)], Sizes(2, 1, 1.0, 5, 1.0)),
    ],
)
def test_sizes_fit_node_by_node(workers, there, sizes):
    assert size_workers(workers, **totals(there), nodes=there) == sizes
    assert room_for(sizes, there)


def test_what_fits_on_no_node_is_refused_with_what_there_is():
    there = [Node(4), Node(0, 2)]
    with pytest.raises(InputError, match=r"cannot be placed: .* 1 node of 0 CPU\(s\) and 2 GPU\(s\), 1 node"):
        size_workers(Workers(gpus=1), **totals(there), nodes=there)


def test_without_a_gpu_the_message_does_not_speak_of_no_workers():
    with pytest.raises(InputError, match=r"workers.gpus = 1: the cluster has no GPU"):
        size_workers(Workers(gpus=1), cores=4, gpus=0, logical=4.0)


def test_trials_that_run_at_once_are_placed_together():
    sizes = placed(Sizes(1, 0, 1.0, 3, 1.0), [Node(2), Node(2)], copies=2)
    assert room_for(sizes, [Node(2), Node(2)], copies=2)
    assert sizes.feed_tasks == 1


# ---- a cluster that grows


def test_what_cluster_yaml_may_start_is_read_from_it():
    page = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert types_in(page) == [({"CPU": 48, "GPU": 4}, 4)]
    assert types_in({}) == []


@pytest.mark.parametrize(
    ("workers", "sizes"),
    [
        (Workers(count=4, gpus=1), Sizes(4, 1, 1.0, 12, 1.0)),  # one node more
        (Workers(gpus=1), Sizes(16, 1, 1.0, 11, 1.0)),  # all that may come
        (Workers(), Sizes(16, 1, 1.0, 11, 1.0)),  # and not one CPU of the head
        (Workers(count=2, gpus=0), Sizes(2, 0, 1.0, 1, 1.0)),
    ],
)
def test_a_run_is_planned_with_the_nodes_that_may_come_and_asks_for_few(workers, sizes):
    """Of the shipped cluster.yaml: a head of 4 CPUs, up to four nodes of 48 CPUs and 4 GPUs."""
    planned = growing.planned(workers, [Node(5)], [Node(48, 4)] * 4)
    assert planned == sizes


def test_nodes_that_do_not_come_are_no_reason_to_train_on_a_cpu(monkeypatch, capsys):
    monkeypatch.setattr(growing, "present", lambda: [Node(4)])
    monkeypatch.setattr(growing, "to_come", lambda: [Node(8, 4)])
    monkeypatch.setattr(waiting, "present", lambda: [Node(4)])
    monkeypatch.setattr(waiting, "free", lambda: "4 CPU(s)")
    monkeypatch.setattr(growing, "ask_for", lambda *words: False)
    with pytest.raises(SetupError, match=r"no room for 4 workers with one GPU each .*train on CPUs \(workers.gpus=0\)"):
        growing.settled(Workers())
    monkeypatch.setattr(growing, "to_come", list)
    assert growing.settled(Workers()).count == 1
    assert "the cluster has no GPU" in capsys.readouterr().out


def test_fewer_gpus_than_may_come_are_taken_where_no_number_was_given(monkeypatch, capsys):
    there = [[Node(4)], [Node(4), Node(8, 2)], [Node(4), Node(8, 2)]]
    monkeypatch.setattr(growing, "present", lambda: there.pop(0) if len(there) > 1 else there[0])
    monkeypatch.setattr(growing, "to_come", lambda: [Node(8, 2)] * 2)
    monkeypatch.setattr(growing, "ask_for", lambda *words: False)
    assert growing.settled(Workers(gpus=1)).count == 2
    assert "fit now, and are taken" in capsys.readouterr().out


SCRIPT = """
import json, os, ray, time
from pipelines.cluster.session import ray_cluster
from pipelines.recipes.recipe import Workers
with ray_cluster(Workers(count=2, gpus=0)) as sizes:
    head = next(node["NodeID"] for node in ray.nodes() if "node:__internal_head__" in node["Resources"])
    sent = ray.get(ray.remote(num_cpus=1)(lambda: sorted(os.listdir())).remote())
    from ray._private.state import actors
    on = {actor["Name"]: actor["Address"]["NodeID"] == head for actor in actors().values() if actor["Name"]}
    print(json.dumps({"sizes": vars(sizes), "sent": sent, "on_head": on}), flush=True)
ray.init(log_to_driver=False)
until = time.monotonic() + 90
while sum(node["Alive"] for node in ray.nodes()) > 1:
    assert time.monotonic() < until, "the node stays"
    time.sleep(0.5)
print("gone")
"""


@pytest.mark.ray
@pytest.mark.xdist_group("commands")
def test_a_growing_cluster_is_asked_for_a_node_gets_the_code_alone_and_gives_the_node_back(tmp_path):
    """Ray's fake provider: nodes are processes of this machine. And without its token nobody joins."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        gcs = f"127.0.0.1:{probe.getsockname()[1]}"
    page = {
        "cluster_name": "fake", "max_workers": 1, "idle_timeout_minutes": 0.15, "auth": {}, "upscaling_speed": 1.0,
        "provider": {"type": "fake_multinode", "gcs_address": gcs, "use_node_id_as_ip": True,
                     "disable_node_updaters": True, "disable_launch_config_check": True},
        "head_node_type": "ray.head.default",
        "available_node_types": {"ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                                 "cpu": {"resources": {"CPU": 6}, "node_config": {}, "max_workers": 1}},
        "file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False,
    }  # fmt: skip
    for key in ("setup", "head_setup", "worker_setup", "initialization", "head_start_ray", "worker_start_ray"):
        page[f"{key}_commands"] = []
    (tmp_path / "fake.yaml").write_text(yaml.safe_dump(page))
    (tmp_path / "token").write_text(secrets.token_hex(32))
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_AUTH", "RAY_TMPDIR"))}
    plain |= {"PYTHONPATH": str(ROOT), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_ADDRESS": gcs}
    known = plain | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    short = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    words = ["start", "--head", "--block", f"--port={gcs.rpartition(':')[2]}", "--node-ip-address=127.0.0.1",
             "--num-cpus=0", "--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=100000000",
             f"--autoscaling-config={tmp_path / 'fake.yaml'}"]  # fmt: skip
    environment = {k: v for k, v in known.items() if k != "RAY_ADDRESS"}
    environment |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_TMPDIR": short}
    with (tmp_path / "head.log").open("w") as sink:
        head = subprocess.Popen(
            [Path(sys.executable).parent / "ray", *words], stdout=sink, stderr=sink, env=environment, cwd=tmp_path
        )
    try:
        wait_for(lambda: "Ray runtime started" in (tmp_path / "head.log").read_text())
        done = script(SCRIPT, plain)
        assert done.returncode == 1
        assert "the cluster asks for its token" in done.stderr
        done = script(SCRIPT, known)
        lines = done.stdout.splitlines()
        assert lines[-1:] == ["gone"], done.stdout + done.stderr[-3000:] + (tmp_path / "head.log").read_text()
        assert "asking the cluster for 2 workers" in lines[0]
        facts = json.loads(next(line for line in lines if line.startswith("{")))
        assert facts["sizes"] == {"count": 2, "gpus": 0, "cpus": 1.0, "feed_tasks": 1, "feed_cpus": 1.0, "counts": []}
        assert set(facts["sent"]) == {"datasets", "pipelines", "segmodels"}
        assert facts["on_head"] == {"AutoscalingCoordinator": True, "datasets_stats_actor": True}
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            ours = [p for p in psutil.process_iter(["cmdline"]) if any(short in w for w in p.info["cmdline"] or ())]
            for process in [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid), *ours]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        head.wait(60)
        shutil.rmtree(short, ignore_errors=True)


def script(code, environment):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=400, env=environment
    )


def wait_for(what, seconds=120):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.1)


# ---- waiting for room


@pytest.fixture
def cramped(monkeypatch):
    """A cluster whose placement groups and nodes the test sets, and a clock that it moves."""
    now = SimpleNamespace(time=1000.0, states=["PENDING"], nodes=[Node(1)], steps=3, said=[])
    monkeypatch.setattr(waiting, "own_groups", lambda: [(state, 2) for state in now.states])
    monkeypatch.setattr(waiting, "present", lambda avoided=(): now.nodes)
    monkeypatch.setattr(waiting, "free", lambda: "1 CPU(s)")
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now.time)
    sizes = Sizes(2, 0, 1.0, 1, 1.0)
    now.wait = waiting.Waiting(sizes, Workers(), now.said.append, lambda: now.steps)

    def look(seconds):
        now.time += seconds
        now.wait.look()

    now.look = look
    return now


def test_a_wait_for_room_is_told_and_ends(cramped):
    cramped.look(3)
    assert cramped.said == []
    cramped.look(15)
    (line,) = cramped.said
    assert "waiting for room for 2 workers and 2 feeding tasks, 1 CPU each, since" in line
    assert "the cluster has 1 node of 1 CPU(s), 1 CPU(s) free; at most 30 min 0 s (workers.wait_minutes)" in line
    assert "workers.count=1" in line
    assert cramped.wait.waits
    cramped.look(30)
    assert len(cramped.said) == 1
    with pytest.raises(RunFailed, match=r"training waited for room .*longer than workers.wait_minutes .*same command"):
        cramped.look(1800)


def test_a_wait_ends_with_room_and_begins_again(cramped):
    cramped.look(3)
    cramped.states = []  # Ray gives the group up, and asks for another
    cramped.look(3)
    assert cramped.wait.wait
    cramped.states, cramped.nodes = ["CREATED"], [Node(5)]
    cramped.look(3)
    assert not cramped.wait.waits


def test_workers_without_room_for_their_tasks_wait_unless_they_get_on(cramped):
    cramped.states, cramped.nodes = ["CREATED"], [Node(2)]  # workers alone fit
    cramped.look(3)
    assert cramped.wait.wait
    cramped.steps = 4
    cramped.look(3)
    assert cramped.wait.wait is None


def test_the_limit_is_the_recipes(monkeypatch):
    assert waiting.limit(Workers()) == 1800
    assert waiting.limit(SimpleNamespace(wait_minutes=2)) == 120


def test_a_signal_in_a_wait_ends_it_at_once(tmp_path):
    (tmp_path / "run").mkdir()

    def stop():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    with stoppable(tmp_path / "run", lambda: True), pytest.raises(Stopped, match="while no worker trained") as stopped:
        stop()
    assert stopped.value.code == 143


# ---- what every node must see


def test_a_bucket_is_no_output_of_studies():
    for uri in ("s3://bucket/out", "gs://bucket/out", "abfss://x/y"):
        with pytest.raises(InputError, match=rf"output = {uri}: only runs can be written to a bucket"):
            nodes.output_folder(uri)
    assert nodes.output_folder("file:///tmp/out") == Path("/tmp/out")
    assert nodes.output_folder("~/out") == Path.home() / "out"


def test_a_node_that_cannot_write_to_the_runs_bucket_is_named(s3, monkeypatch):
    uri = s3("runs/x")
    assert nodes.takes_a_file(uri) == ""
    assert "no such bucket" in nodes.takes_a_file(s3("runs/x", bucket="nowhere"))
    answers = {"10.0.0.1 (aa)": "", "10.0.0.2 (bb)": "AWS Error ACCESS_DENIED"}
    monkeypatch.setattr(nodes, "on_each_node", lambda look, *words: answers)
    with pytest.raises(SetupError, match=r"1 of 2 nodes \(10.0.0.2 \(bb\)\) cannot write to s3://.*DENIED. Each"):
        nodes.check_bucket(uri)
    answers["10.0.0.2 (bb)"] = ""
    nodes.check_bucket(uri)


def test_shards_that_a_node_does_not_see_are_named_with_it(shards, monkeypatch):
    uri = str(shards / "voc12/train")
    monkeypatch.setattr(nodes, "count_alive", lambda: 2)
    own = nodes.manifests([uri])
    assert len(own[0]) == 64
    answers = {"10.0.0.1 (aa)": own, "10.0.0.2 (bb)": own}
    monkeypatch.setattr(nodes, "on_each_node", lambda look, *words: answers)
    nodes.check_data([uri])
    answers["10.0.0.2 (bb)"] = nodes.manifests([f"{uri}/nothing"])
    with pytest.raises(SetupError, match=rf"1 of 2 nodes \(10.0.0.2 \(bb\)\) do not see the shards {uri}.*bucket"):
        nodes.check_data([uri])
    answers["10.0.0.2 (bb)"] = ["0" * 64]
    with pytest.raises(SetupError, match=r"another manifest\.json is there"):
        nodes.check_data([uri])


BLIND = "10.0.0.2 <bb22> /data/voc12/train: no such folder"


@pytest.mark.ray
def test_a_node_that_sees_no_data_is_named_and_avoided_and_memory_is_not_tried_for_again(
    ray_session, recipe_file, tmp_path, capsys
):
    """On one node there is no other to go to; several nodes: see the selector below."""

    def blind_feed(plan, kind, tasks, cpus):
        from pipelines.cluster.nodes import blind

        raise blind("/data/voc12/train", "no such folder")
        yield

    def hungry_feed(plan, kind, tasks, cpus):
        raise MemoryError("Unable to allocate 40 GiB")
        yield

    changes = {"workers": {"count": 1, "gpus": 0}, "feed": "ray"}
    stages = [{"name": "first", "train": "voc12/train", "steps": 4}]
    with pytest.raises(InputError, match=r"no node sees the run's data: node \S+ does not see /data/voc12/train"):
        run_recipe(load_recipe(recipe_file(name="blind", stages=stages, **changes)), blind_feed)
    nodes.AVOIDED.clear()
    with pytest.raises(RunFailed, match=r"ran out of memory: .*40 GiB.*workers.micro_batch.*error.txt") as failed:
        run_recipe(load_recipe(recipe_file(name="hungry", stages=stages, **changes)), hungry_feed)
    assert "no checkpoint was written yet" in str(failed.value)
    notes = [line for line in read_record(tmp_path / "out/runs/hungry/first/record.jsonl")[0] if line["kind"] == "note"]
    assert len(notes) == 1
    assert "MemoryError" in (tmp_path / "out/runs/hungry/error.txt").read_text()


def test_workers_and_tasks_keep_away_from_a_node():
    assert nodes.avoid({}) is None
    assert nodes.avoid({"b": "10.0.0.2", "a": "10.0.0.1"}) == {"ray.io/node-id": "!in(a,b)"}


# ---- why workers ended


def actor_died(text):
    import ray

    return ray.exceptions.RayActorError(None, f"ActorDiedError {text}")


def taken(text):
    """What Ray raises of a worker whose node was drained and is gone."""
    import ray

    return ray.exceptions.RayActorError(None, text, preempted=True)


SUDDEN = (
    "ActorDiedError: The actor died unexpectedly.\n\tip: 10.0.0.3\nWorker exit type: SYSTEM_ERROR. There are some "
    "potential root causes. (1) The process is killed by SIGKILL by OOM killer due to high memory usage. (2) …"
)
MONITOR = "OutOfMemoryError: 1 worker(s) were killed due to the node running low on memory. Memory was 23GB used"


@pytest.mark.parametrize(
    ("errors", "killers", "advanced", "kind", "text", "final"),
    [
        ({1: RuntimeError(MONITOR)}, [], True, "memory", "worker 1 ran out of memory: .*23GB used", False),
        ({1: RuntimeError(MONITOR)}, [], False, "memory", "", True),
        ({0: RuntimeError("CUDA out of memory. Tried to allocate")}, [], True, "gpu", "CUDA out of memory", True),
        ({0: RuntimeError("x\n  File y, line 3, in validate\nOutOfMemoryError: CUDA out of memory. Tried")}, [], True,
         "gpu", "CUDA out of memory. Tried, in a validation", True),
        ({0: RuntimeError(SUDDEN)}, ["the kernel of 10.0.0.3"], False, "memory", "the kernel of 10.0.0.3 killed", True),
        ({0: RuntimeError(SUDDEN)}, [], False, "died", "worker 0 on 10.0.0.3 died: it crashed, or was killed", False),
        ({0: RuntimeError("gloo: Connection closed by peer [10.0.0.3]"), 1: RuntimeError(SUDDEN)}, [], False, "died",
         "worker 1 on 10.0.0.3", False),
        ({0: RuntimeError("gloo: Connection closed by peer")}, [], False, "died", "lost the connection", False),
        ({0: RuntimeError("gloo: Connection closed by peer"), 1: taken("ip: 10.0.0.3")}, [], False, "left",
         "worker 1 on 10.0.0.3 ended: its node was taken away, after notice", False),
        ({0: RuntimeError("x\nBlindNode: " + BLIND)}, [], False, "blind", "node 10.0.0.2 does not see /data", True),
        ({0: DataError("corrupt shard x")}, [], False, "fault", "corrupt shard x", True),
        ({0: ValueError("a\nb")}, [], False, "raised", "worker 0: b", False),
    ],
)  # fmt: skip
def test_the_end_of_workers_in_a_sentence(errors, killers, advanced, kind, text, final):
    failure = failures.judge(errors, killers, advanced)
    assert (failure.kind, failure.final) == (kind, final)
    assert failures.re.search(text, failure.text)


def test_a_kernels_kills_are_counted(tmp_path, monkeypatch):
    (tmp_path / "vmstat").write_text("pgfault 9\noom_kill 3\n")
    (tmp_path / "events").write_text("oom 8\noom_kill 5\noom_group_kill 0\n")
    monkeypatch.setattr(failures, "VMSTAT", tmp_path / "vmstat")
    monkeypatch.setattr(failures, "CGROUP", tmp_path / "none")
    assert failures.kernel_kills() == 3
    monkeypatch.setattr(failures, "CGROUP", tmp_path / "events")
    assert failures.kernel_kills() == 5


def test_each_failure_is_noted_once_and_ends_what_would_only_come_again(tmp_path, monkeypatch):
    counts = iter([{"10.0.0.3": (2, 0)}, {"10.0.0.3": (2, 0)}])
    monkeypatch.setattr(failures, "count_kills", lambda: next(counts))
    told = pickle.loads(pickle.dumps(failures.Told(tmp_path / "notes", [], {"10.0.0.3": (1, 0)})))
    notes = failures.Notes(tmp_path / "notes")
    with pytest.raises(failures.Ended, match=r"the kernel of 10\.0\.0\.3"):
        told.after_exception(None, {0: RuntimeError(SUDDEN)})
    told.after_exception(None, {0: RuntimeError(SUDDEN)})
    assert [failure.kind for failure in notes.new()] == ["memory", "died"]
    assert notes.new() == []


def test_a_node_that_left_after_notice_is_told_of_once_and_is_none_of_the_failures_allowed(tmp_path):
    told = failures.Told(tmp_path / "notes", [], {})
    for text in ("ip: 10.0.0.3", "ip: 10.0.0.3", "ip: 10.0.0.4"):  # Ray tells at each look
        told.after_exception(None, {1: taken(text)})
    notes = failures.Notes(tmp_path / "notes").new()
    assert [(note.kind, note.counts, note.final) for note in notes] == [("left", False, False)] * 2
    assert failures.Failure("died", "").counts
    assert not failures.Failure("blind", "", node="a").counts


def test_notes_of_hangs_are_told_from_older_ones_whatever_the_clocks_say(tmp_path):
    place = StageFolder(tmp_path)
    for rank in (0, 1):
        place.hang(rank).write_text("stacks of the last time")
    before = {path: path.stat().st_size for path in place.hangs()}
    with place.hang(1).open("a") as file:
        file.write("and of this")
    for rank, days in ((0, 1), (1, -1)):
        os.utime(place.hang(rank), (time.time() + days * 86400,) * 2)
    assert fit.hangs([SimpleNamespace(place=place)], before) == [place.hang(1)]


# ---- the notice that a node will be taken away


def test_a_notice_is_answered_once_and_the_signal_to_end_comes_first(tmp_path, monkeypatch):
    nodes_left, signals = set(), [0]
    monkeypatch.setattr(notice, "leaving", lambda: frozenset(nodes_left))
    monkeypatch.setattr(notice, "alive", lambda: {"a" * 32: "10.0.0.2"})
    told = notice.Notice(lambda: signals[0], 5.0)
    assert (told.word(), told.minutes) == (0, 5.0)
    nodes_left.add("a" * 32)
    assert told.word() == told.word() == notice.LEAVING
    signals[0] = signal.SIGTERM
    assert told.word() == signal.SIGTERM
    signals[0] = 0
    with Record(tmp_path / "record.jsonl") as record:
        assert not told.answer(record, signal.SIGTERM, 6)
        assert told.answer(record, notice.LEAVING, 7)
    (line,) = read_record(tmp_path / "record.jsonl")[0]
    assert line["step"] == 7
    assert "notice that 10.0.0.2 (aaaaaaaa) will be taken away" in line["text"]
    assert (told.word(), told.minutes) == (0, notice.LEAVING_MINUTES)
    nodes_left.add("b" * 32)
    assert told.word() == notice.LEAVING


# ---- interfaces, threads, numbers of workers


@pytest.mark.parametrize(("device", "fails", "ends"), [("cuda", True, 0), ("cuda", False, 1), ("cpu", True, 1)])
def test_after_an_error_nothing_waits_for_other_gpus(monkeypatch, device, fails, ends):
    import ray.train.torch
    import torch.distributed as dist

    from pipelines.cluster.group import process_group

    asked, ended = {}, []
    context = SimpleNamespace(get_world_rank=lambda: 1, get_world_size=lambda: 2)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setattr("ray.train.collective.broadcast_from_rank_zero", lambda value: ("127.0.0.1", 1))
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device(device))
    monkeypatch.setattr(dist, "TCPStore", lambda *args, **options: None)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: asked.update(options, backend=backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: ended.append(1))
    with contextlib.suppress(ValueError), process_group():
        if fails:
            raise ValueError("a bad row")
    assert len(ended) == ends
    on_gpu = device == "cuda"
    assert (asked["backend"], asked["device_id"]) == (("nccl", torch.device("cuda")) if on_gpu else ("gloo", None))


def test_the_interface_of_an_address_is_named_unless_the_user_did(monkeypatch):
    from pipelines.cluster.group import interface, name_interface

    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(variable, raising=False)
    card = SimpleNamespace(address="10.0.0.7")
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"lo": [SimpleNamespace(address="127.0.0.1")], "ens5": [card]})
    assert interface("10.0.0.7") == "ens5"
    name_interface("10.9.9.9")  # behind a translated address: nothing to name
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth9")
    name_interface("10.0.0.7")
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("ens5", "eth9")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")


@pytest.mark.parametrize(
    ("cpus", "local", "gpus", "threads"), [(8, 2, 0, 4), (3, 1, 0, 3), (64, 1, 0, 16), (8, 2, 1, 1)]
)
def test_threads_are_a_share_of_the_workers_own_node(monkeypatch, cpus, local, gpus, threads):
    import ray
    import ray.train

    from pipelines.cluster import group

    context = SimpleNamespace(get_node_id=lambda: "b", get_local_world_size=lambda: local)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    there = [{"NodeID": "a", "Resources": {"CPU": 1.0}}, {"NodeID": "b", "Resources": {"CPU": float(cpus)}}]
    monkeypatch.setattr(ray, "nodes", lambda: there)
    monkeypatch.setattr(group, "cores_here", lambda: 16)
    assert group.own_share(Sizes(2, gpus, 1.0, 1, 1.0)) == threads


# ---- buckets


class Refusing(http.server.BaseHTTPRequestHandler):
    """An S3 server of before 2025: it wants a length that today's uploads do not give."""

    def answer(self, code, body=b""):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        body = b'<?xml version="1.0"?><ListBucketResult><Name>b</Name><KeyCount>0</KeyCount></ListBucketResult>'
        self.answer(200, body)

    def do_HEAD(self):
        self.answer(404 if self.path.strip("/").count("/") else 200)

    def do_PUT(self):
        body = b"<Error><Code>MissingContentLength</Code><Message>no length</Message></Error>"
        self.close_connection = True
        self.answer(411, body)

    def do_POST(self):
        body = b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
        self.answer(200, body)

    do_DELETE = do_HEAD

    def log_message(self, *words):
        """Nothing on the screen."""


def test_an_older_s3_server_gets_the_cure(monkeypatch):
    monkeypatch.setattr(storage, "_met", set())
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    uri = f"s3://b/out?scheme=http&endpoint_override=127.0.0.1:{server.server_port}&region=us-east-1"
    try:
        system, path = storage.locate(uri)
        with (
            pytest.raises(DataError, match=rf"s3://b/out.*{storage.CHECKSUMS}"),
            storage.written_whole(system, f"{path}/x") as stream,
        ):
            stream.write(b"x" * 100)
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
def test_nobody_behind_an_s3_address_is_one_message(monkeypatch):
    monkeypatch.setattr(storage, "_met", set())
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    uri = f"s3://b/out?scheme=http&endpoint_override=127.0.0.1:{free}&region=us-east-1"
    with pytest.raises(DataError, match=r"Could not connect to server.*AWS_ENDPOINT_URL"):
        storage.locate(uri)


def test_google_is_asked_for_seconds_and_a_signal_ends_the_wait(monkeypatch, port):
    assert storage._patient("gs://b/x", 5) == "gs://b/x?retry_limit_seconds=5"
    assert storage._patient("gs://b/x?retry_limit_seconds=9", 5) == "gs://b/x?retry_limit_seconds=9"
    assert storage._patient("s3://b/x?region=r", 5) == "s3://b/x?region=r&allow_delayed_open=true"

    class Asked(Exception):
        pass

    def ask(number, frame):
        raise Asked

    before = signal.signal(signal.SIGTERM, ask)
    try:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(Asked):
            storage.answered(lambda: time.sleep(3))
    finally:
        signal.signal(signal.SIGTERM, before)
    with pytest.raises(TimeoutError):
        storage.answered(lambda: time.sleep(3), 0.1)


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        ("Could not create a OAuth2 access token to authenticate", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("AWS Error ACCESS_DENIED during HeadObject operation", "AWS_ACCESS_KEY_ID"),
        ("AWS Error UNKNOWN (HTTP status 411) during UploadPart", storage.CHECKSUMS),
        ("AWS Error NO_SUCH_BUCKET during PutObject operation", "no such bucket"),
        ("When resolving region for bucket 'b': AWS Error NETWORK_CONNECTION", r"region=REGION"),
        ("anything else", "check the network"),
    ],
)
def test_a_buckets_error_has_a_cure(text, cure):
    assert cure in storage.cure(text)
    with pytest.raises(DataError, match=r"s3://\*\*\*@b/x: .*") as told, storage._told("s3://user:secret@b/x"):
        raise OSError(text)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("wish", "device", "native", "precision"),
    [
        ("auto", "cpu", True, "fp32"),
        ("bf16", "cpu", False, "bf16"),
        ("auto", "cuda", True, "bf16"),
        ("auto", "cuda", False, "fp32"),  # Turing, of which PyTorch says that it has bf16
        ("fp32", "cuda", True, "fp32"),
        ("fp16", "cuda", False, "fp16"),
    ],
)
def test_auto_is_bf16_exactly_where_a_gpu_computes_in_it(monkeypatch, wish, device, native, precision):
    from segmodels.precision import settle_precision

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert settle_precision(wish, torch.device(device)) == precision


def test_emulated_bf16_is_refused_and_a_gpu_that_was_not_asked_for_is_not_touched(monkeypatch):
    import ray.train.torch

    from pipelines.cluster.device import device_here, device_of, precision_of

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(InputError, match=r"precision bf16: Tesla T4 only emulates it.* allowed there: fp16, fp32"):
        precision_of("bf16", torch.device("cuda"))
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cuda", 0))
    assert (device_of(0).type, device_of(1).type) == ("cpu", "cuda")
    for there, found in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert (device_here(0).type, device_here().type) == ("cpu", found)
    with pytest.raises(InputError, match="sees no GPU; allowed here: 0"):
        device_here(1)


def test_the_devices_of_all_workers_are_named(monkeypatch):
    import torch.distributed as dist

    from pipelines.cluster import device

    def gather(names, own):
        names[:] = ["NVIDIA L4", own, own]

    monkeypatch.setattr(dist, "all_gather_object", gather)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A10G")
    assert device.named_together(torch.device("cuda"), 3) == "1 x NVIDIA L4, 2 x NVIDIA A10G"
    assert device.named_together(torch.device("cuda"), 1) == "NVIDIA A10G"
    assert device.named_together(torch.device("cpu"), 3) == "CPU"
