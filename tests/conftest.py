"""What tests share: a small sample in shards, a recipe that trains on it in seconds, one Ray session."""

import contextlib
import gc
import io
import os
import shutil
import sys

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# Ray reads these on import, and tests import it before a door could set them
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # loopback alone
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # under `uv run` each worker would start through uv anew
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes test at once; a run sets its own number

import pytest
import yaml

gc.set_threshold(50_000)  # as the doors do, see there

TINY = {
    "seed": 3,
    "batch": 4,
    "backbone": {"name": "test_resnet", "output_stride": 32},
    "head": {"name": "fcn", "channels": 16},
    "aux": {"name": "fcn", "stage": 3, "channels": 8},
    "loss": {"logits": {"cross_entropy": 1.0}, "aux": {"cross_entropy": 0.4}},
    "optim": {"lr": 0.01, "warmup": 1, "head_lr_scale": 2},
    "view": {"crop": [32, 32], "scale": [0.5, 1.5]},
    "stages": [{"name": "first", "train": "voc12/train", "val": "voc12/val", "steps": 5, "val_every": 0}],
    "inference": {"mode": "whole", "batch": 2},
    "workers": {"count": 0, "gpus": 0},
    "feed": "torch",
    "log_every": 1,
    "overlays": 1,
    "mlflow_model": False,  # its own tests write one
}


def pytest_itemcollected(item):
    """Tests that start Ray follow each other in one process, on one session, but for those of a group of their own."""
    if item.get_closest_marker("ray") and not item.get_closest_marker("xdist_group"):
        item.add_marker(pytest.mark.xdist_group("ray"))


@pytest.fixture(scope="session", autouse=True)
def _local_caches(tmp_path_factory):
    """Nothing of a user's own: caches in a temporary folder, no tracking server, no joined cluster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHARD_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("RUN_CACHE", str(tmp_path_factory.mktemp("copies")))
        patch.setenv("AWS_SECRET_ACCESS_KEY", f"secret-{os.urandom(12).hex()}")  # no file may ever hold it
        patch.setenv("AWS_ACCESS_KEY_ID", "tester")
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "RAY_ADDRESS"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def release(tmp_path_factory):
    """A few pictures of the sample in the layouts of COCO and VOC."""
    from datasets.shapes import write_sample

    root = tmp_path_factory.mktemp("release") / "sample"
    write_sample(root, coco=24, coco_val=12, train=18, aug=26, val=11, size=(40, 56))
    return root


@pytest.fixture(scope="session")
def shards(release, tmp_path_factory):
    """The same as shards, written without Ray: coco_voc, voc12_aug, voc12."""
    from datasets.catalog import BENCHMARKS
    from datasets.manifest import write_manifest
    from datasets.writer import write_part

    root = tmp_path_factory.mktemp("shards")
    for name, splits in {"voc12_aug": ["train"], "voc12": ["train", "val", "trainval"]}.items():
        benchmark = BENCHMARKS[name](release)
        for split in splits:
            items = benchmark.index(split)
            parts = [items[: len(items) // 2], items[len(items) // 2 :]]
            uri = str(root / name / split)
            write_manifest(
                uri, benchmark, split, [write_part(uri, i, p, benchmark, split) for i, p in enumerate(parts)], True
            )
    return root


@pytest.fixture(scope="session")
def task_shards(tmp_path_factory):
    """Some of the other tasks' sample as shards: coco_instances, coco_panoptic, classes; each train and val."""
    from datasets.catalog import BENCHMARKS
    from datasets.manifest import write_manifest
    from datasets.task_sample import classes, write_task_sample
    from datasets.writer import write_part

    root, raw = tmp_path_factory.mktemp("tasks"), tmp_path_factory.mktemp("tasks_release") / "sample"
    write_task_sample(raw, train=14, val=7, size=(40, 64), class_train=12, class_val=6, class_size=(24, 32))
    made = {name: BENCHMARKS[name](raw / "coco") for name in ("coco_instances", "coco_panoptic")}
    for name, benchmark in {**made, "classes": classes(raw / "classes")}.items():
        for split in ("train", "val"):
            uri, items = str(root / name / split), benchmark.index(split)
            write_manifest(uri, benchmark, split, [write_part(uri, 0, items, benchmark, split)], True)
    return root


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """An MLflow store without runs: making its tables takes seconds, copying them nothing."""
    import mlflow

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def tiny():
    """The keys of a recipe that trains in seconds."""
    return TINY


@pytest.fixture(scope="session")
def s3():
    """A real S3 server on loopback: gives the URI of a path in its bucket."""
    from moto.server import ThreadedMotoServer
    from pyarrow import fs

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    place = f"{host}:{port}"
    fs.S3FileSystem(endpoint_override=place, scheme="http", region="us-east-1", allow_bucket_creation=True).create_dir(
        "bucket"
    )
    yield lambda path, bucket="bucket": f"s3://{bucket}/{path}?scheme=http&endpoint_override={place}&region=us-east-1"
    server.stop()


@pytest.fixture
def recipe_file(tmp_path, shards, empty_store):
    """Writes TINY, changed, to a file and returns its path."""
    (tmp_path / "out").mkdir()
    shutil.copy(empty_store, tmp_path / "out" / "mlflow.db")

    def write(**changes):
        page = {**TINY, "data": str(shards), "output": str(tmp_path / "out"), "name": "tiny", **changes}
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(page))
        return path

    return write


@pytest.fixture(scope="session")
def ray_session():
    """One local Ray session for all tests that need one, on loopback alone."""
    from pipelines.cluster.inside_ray import start_actors
    from pipelines.cluster.session import ray_cluster
    from pipelines.recipes.recipe import Workers

    # actors that a train worker starts import all that it does
    with ray_cluster(Workers(count=2, gpus=0), early=lambda sizes: start_actors()) as sizes:
        yield sizes


@pytest.fixture(scope="session")
def two_workers():
    """Keys of a recipe for two workers fed by Ray Data, with a checkpoint after each of 16 steps."""
    return {
        "stages": [{"name": "first", "train": "voc12/train", "val": "voc12/val", "steps": 16, "val_every": 0}],
        "workers": {"count": 2, "gpus": 0},
        "feed": "ray",
        "checkpoint_minutes": 0.0,
    }


@pytest.fixture(scope="session")
def pair(ray_session, two_workers, shards, empty_store, tmp_path_factory):
    """A run of two workers, by its door and undisturbed: its folder, and what the screen showed."""
    from pipelines.train import train

    out, shown = tmp_path_factory.mktemp("pair"), io.StringIO()
    shutil.copy(empty_store, out / "mlflow.db")
    page = out / "pair.yaml"
    page.write_text(yaml.safe_dump({**TINY, **two_workers, "data": str(shards), "output": str(out), "name": "pair"}))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(shown):
        patch.setattr(sys, "argv", ["train", str(page)])
        train("the door")
    return out / "runs/pair", shown.getvalue()
