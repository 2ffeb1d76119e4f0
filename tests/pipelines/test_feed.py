"""A batch is a pure function of recipe, shards and step: workers, blocks and resumes cannot change it."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from datasets.shards import Shards
from datasets.transforms import TrainView
from pipelines.base.door import ROOT
from pipelines.cluster.inside_ray import DATA_THREADS
from pipelines.feed.ahead import under_way
from pipelines.feed.batches import BLOCK_ROWS, TURN_S, Unhurried, block_steps, task_steps, train_batches
from pipelines.feed.plan import SamplePlan, row_of
from pipelines.feed.validation import read_ahead, validation_batches


@pytest.fixture
def plan(shards):
    uri = str(shards / "voc12" / "train")
    return SamplePlan(uri, len(Shards(uri)), TrainView((32, 32), (0.5, 1.5)), seed=7, batch=6, steps=9)


def digest(batch):
    image = np.ascontiguousarray(batch.image.permute(0, 2, 3, 1).numpy())
    return [
        hashlib.sha256(i.tobytes() + m.tobytes()).hexdigest() for i, m in zip(image, batch.target.numpy(), strict=True)
    ]


def stream(plan, kind="torch", tasks=0):
    return [digest(batch) for batch in train_batches(plan, kind, tasks)]


def test_each_epoch_is_a_permutation_and_no_two_are_alike(plan):
    rows = [row_of(plan, p) for p in range(3 * plan.rows)]
    epochs = [[row for epoch, row in rows if epoch == e] for e in range(3)]
    assert all(sorted(order) == list(range(plan.rows)) for order in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_64_samples_give_64_crops_and_epochs_differ(plan):
    long = dataclasses.replace(plan, batch=8, steps=8)
    seen = [d for batch in stream(long) for d in batch]
    assert len(set(seen)) == 64  # 18 rows come three or four times: each time in another crop


def test_the_first_batch_is_under_way_before_it_is_asked_for(plan):
    asked = threading.Event()

    def batches():
        asked.set()
        yield from train_batches(plan, "torch", 0)

    with under_way(batches()) as feed:
        assert asked.wait(60)
        assert [digest(batch) for batch in feed] == stream(plan)
    with under_way(batch for batch in []) as feed:
        assert list(feed) == []
    with under_way(1 / 0 for _ in range(1)) as feed, pytest.raises(ZeroDivisionError):
        next(feed)


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_a_feed_that_is_left_is_closed(plan, taken):
    closed = []

    def batches():
        try:
            yield from train_batches(plan, "torch", 0)
        finally:
            closed.append(True)

    with under_way(batches()) as feed:
        for _ in range(taken):
            next(feed)
        assert not closed
    assert closed


def test_workers_share_the_batch_of_one(plan):
    whole = stream(plan)
    for world in (2, 3):
        parts = [stream(dataclasses.replace(plan, world=world, rank=rank)) for rank in range(world)]
        assert [[d for part in parts for d in part[t]] for t in range(plan.steps)] == whole


def test_a_resume_at_any_step_continues_the_stream(plan):
    whole = stream(plan)
    for start in range(1, plan.steps):
        assert stream(dataclasses.replace(plan, start=start)) == whole[start:]


def test_feeding_tasks_and_rays_controller_need_no_torch():
    """Each of their processes would be seconds later."""
    code = "import sys, pipelines.feed.plan, pipelines.cluster.group\n"
    code += "sys.exit(' '.join({'torch', 'matplotlib'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr


def test_seed_matters(plan):
    assert stream(plan)[0] != stream(dataclasses.replace(plan, seed=8))[0]


def test_rows_in_another_order_and_other_files_give_the_same_batches(plan, release, tmp_path):
    from datasets.catalog import BENCHMARKS
    from datasets.manifest import write_manifest
    from datasets.writer import write_part

    benchmark = BENCHMARKS["voc12"](release)
    items, uri = benchmark.index("train")[::-1], str(tmp_path / "other")
    groups = [items[:3], items[3:4], items[4:]]
    records = [write_part(uri, i, group, benchmark, "train") for i, group in enumerate(groups)]
    write_manifest(uri, benchmark, "train", records, True)
    assert stream(dataclasses.replace(plan, shards=uri)) == stream(plan)


@pytest.mark.parametrize("rows", [1, 5, 100])
def test_shards_rewritten_with_other_row_groups_give_the_same_batches(plan, tmp_path, rows):
    other = tmp_path / "regrouped"
    shutil.copytree(plan.shards, other)
    manifest = json.loads((other / "manifest.json").read_text())
    for entry in manifest["files"]:
        path = other / entry["name"]
        pq.write_table(pq.read_table(path), path, row_group_size=rows, compression="zstd")
        entry |= {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert pq.ParquetFile(path).num_row_groups == -(-entry["rows"] // rows)
    assert stream(dataclasses.replace(plan, shards=str(other))) == stream(plan)


def test_ids_name_the_samples_of_the_whole_batch(plan):
    shards = Shards(plan.shards)
    ids = dataclasses.replace(plan, world=2, rank=1).ids(2)
    assert len(ids) == plan.batch
    assert ids == [shards.ids[row_of(plan, p)[1]] for p in range(12, 18)]


def test_validation_batches_hold_every_row_once_in_one_size(shards):
    split = Shards(str(shards / "voc12" / "val"))
    narrow = min(int(width) for _, width in split.sizes)
    for batch in validation_batches(split, lambda size: 1 if size[1] == narrow else 2):
        assert len(batch) <= (1 if split.sizes[batch[0]][1] == narrow else 2)
    for size in (1, 2, 4, 100):
        batches = validation_batches(split, size)
        assert sorted(row for batch in batches for row in batch) == list(range(len(split)))
        assert all(len({tuple(split.sizes[row]) for row in batch}) == 1 for batch in batches)
        assert max(map(len, batches)) <= size


def test_read_ahead_keeps_the_order(shards):
    split = Shards(str(shards / "voc12" / "val"))
    batches = validation_batches(split, 2)
    read = list(read_ahead(split, batches, threads=3))
    assert len(read) == len(batches)
    for rows, batch in zip(batches, read, strict=True):
        assert np.array_equal(batch.image[0].permute(1, 2, 0).numpy(), split.sample(rows[0])[0])
        assert len(batch.target) == len(rows)


@pytest.mark.slow
def test_loader_processes_give_the_same_batches(plan):
    assert stream(plan, "torch", tasks=2) == stream(plan)


@pytest.mark.ray
@pytest.mark.parametrize(("block_rows", "task_rows"), [(16, 32), (128, 64), (6, 24)])
def test_ray_data_gives_the_loaders_batches_bit_for_bit(plan, ray_session, monkeypatch, block_rows, task_rows):
    monkeypatch.setattr("pipelines.feed.batches.BLOCK_ROWS", block_rows)
    for rows in ("LONE_ROWS", "TASK_ROWS"):
        monkeypatch.setattr(f"pipelines.feed.batches.{rows}", task_rows)
    monkeypatch.setattr("pipelines.feed.batches.SPAN_TASKS", 2)  # several executions in a row
    long = dataclasses.replace(plan, batch=12, steps=40)  # 480 samples: blocks of any size, batches over two epochs
    assert stream(long, "ray", tasks=2) == stream(long)
    for world, rank, start in ((2, 1, 3), (3, 2, 4)):  # both lie in mid-epoch
        part = dataclasses.replace(long, world=world, rank=rank, start=start)
        assert stream(part, "ray", tasks=1) == stream(part)


@pytest.mark.ray
def test_a_task_that_is_overtaken_by_the_next_still_comes_first(plan, ray_session, monkeypatch):
    from pipelines.feed.plan import read_blocks

    def slow_at_first(table, plan, per_block):
        time.sleep(2 if table["step"][0].as_py() == 0 else 0)
        yield from read_blocks(table, plan, per_block)

    monkeypatch.setattr("pipelines.feed.batches.read_blocks", slow_at_first)
    monkeypatch.setattr("pipelines.feed.batches.TASK_ROWS", 12)
    assert stream(plan, "ray", tasks=2) == stream(plan)


def test_a_task_reads_whole_blocks_of_whole_batches(plan):
    for batch, world, block, several, lone in (
        (16, 1, 3, 15, 126), (16, 2, 6, 30, 252), (6, 1, 8, 40, 336), (64, 1, 1, 4, 32), (512, 1, 1, 1, 4),
    ):  # fmt: skip
        sized = dataclasses.replace(plan, batch=batch, world=world)
        assert (block_steps(sized), task_steps(sized, 8), task_steps(sized, 1)) == (block, several, lone)


@pytest.mark.ray
def test_blocks_arrive_as_they_were_yielded_while_their_task_goes_on(plan, ray_session, monkeypatch):
    from ray.data import Dataset

    sizes = []
    original = Dataset.iter_batches

    def spy(data, **options):
        bundles = data.iter_internal_ref_bundles()
        sizes.extend(meta.num_rows for bundle in bundles for meta in bundle.metadata)
        return original(data, **options)

    monkeypatch.setattr(Dataset, "iter_batches", spy)
    assert stream(dataclasses.replace(plan, batch=16, steps=19), "ray", tasks=1)
    assert sizes == [48] * 6 + [16]


@pytest.mark.ray
def test_leaving_ray_datas_batches_ends_its_threads(plan, ray_session):
    """One that wakes after `ray.shutdown()` ends the process with exit code 1."""
    batches = train_batches(dataclasses.replace(plan, steps=500), "ray", tasks=2)
    next(batches)
    assert [thread for thread in threading.enumerate() if thread.name.startswith(DATA_THREADS)]
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(DATA_THREADS)]


@pytest.mark.ray
def test_the_object_store_holds_a_bounded_number_of_blocks(plan, ray_session, monkeypatch):
    """However slow the reader, blocks in flight stay below what `store_bytes` books for them, and below the whole.

    And while they are held back, Ray Data's loop does not take the processor from the model's step.
    """
    from pipelines.cluster.sizes import Sizes
    from pipelines.driver.run import store_bytes
    from pipelines.recipes.reading import load_recipe
    from pipelines.speed.store import StorePeak

    recipe = load_recipe("sample", ["batch=6", "view.crop=[256, 256]", "workers.count=1", "workers.feed_tasks=2"])
    long = dataclasses.replace(plan, steps=600, view=TrainView(recipe.view.crop, (0.5, 1.5)))
    turns, turn = [], Unhurried.on_execution_step
    monkeypatch.setattr(Unhurried, "on_execution_step", lambda pace, executor: turns.append(turn(pace, executor)))
    start = time.monotonic()
    with StorePeak() as peak:
        for _ in train_batches(long, "ray", 2):
            time.sleep(0.01)  # the model's step
    pixels, sizes = 256 * 256 * 4, Sizes(1, 0, 1.0, 2, 1.0)
    assert BLOCK_ROWS // 6 * 6 * pixels < peak.bytes < min(store_bytes(recipe, sizes), 600 * 6 * pixels / 2)
    assert not peak.spilled
    assert 20 < len(turns) < 1.1 * (time.monotonic() - start) / TURN_S


TWO_NODES = """
import sys
import time

import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

from datasets.transforms import TrainView
from pipelines.cluster.session import quiet
from pipelines.feed.batches import ray_batches
from pipelines.feed.plan import SamplePlan, read_blocks


def marking(other):
    # its blocks' pixels say on which node they were read: 2 on the other one
    def read(table, plan, per_block):
        import numpy as np
        import pyarrow as pa

        from datasets.raw_column import column

        node = 1 + (ray.get_runtime_context().get_node_id() == other)
        for block in read_blocks(table, plan, per_block):
            pixels = np.full((len(block), 32, 32, 3), node, np.uint8)
            yield pa.table({"image": column(pixels), "mask": column(pixels[..., 0].copy())})

    return read


def nodes_of(plan, other):
    return {int(batch.image[0, 0, 0, 0]) for batch in ray_batches(plan, 2, 1.0, marking(other))}


def block(seconds):
    time.sleep(seconds)


small = {"num_cpus": 2, "object_store_memory": 100 << 20}
cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
ray.init(address=cluster.address, log_to_driver=False)
quiet()
head = ray.get_runtime_context().get_node_id()
cluster.add_node(**small)
cluster.wait_for_nodes()
other = next(node["NodeID"] for node in ray.nodes() if node["NodeID"] != head)
plan = SamplePlan(sys.argv[1], 18, TrainView((32, 32), (1, 1)), seed=0, batch=8, steps=256)  # several tasks
there = On(other, soft=False)
here = ray.remote(num_cpus=0)(nodes_of).options(scheduling_strategy=there)
print("own", ray.get(here.remote(plan, other)) == {2})
blocker = ray.remote(num_cpus=2)(block).options(scheduling_strategy=there).remote(1000)
time.sleep(2)
print("spilled", ray.get(here.remote(plan, other)) == {1})
ray.cancel(blocker, force=True)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.ray
@pytest.mark.xdist_group("two nodes")
def test_tasks_run_on_their_workers_node_and_elsewhere_only_where_that_is_full(plan, tmp_path):
    """In a process of its own, which has a cluster of two nodes."""
    script = tmp_path / "two_nodes.py"
    script.write_text(TWO_NODES)
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{tmp_path}",
        "RAY_TMPDIR": tempfile.mkdtemp(prefix="r", dir="/tmp"),
    }
    done = subprocess.run([sys.executable, script, plan.shards], capture_output=True, text=True, timeout=250,
                          cwd=ROOT, env=environment)  # fmt: skip
    assert done.stdout.split() == ["own", "True", "spilled", "True"], done.stdout + done.stderr
