"""Fifty epochs: no process grows."""

import os
import statistics
import threading
import time

import psutil
import pytest

from pipelines.driver.run import run_recipe
from pipelines.recipes.reading import load_recipe
from pipelines.runs.record import read_record

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def sample():
    """(process, memory in MiB without shared pages, threads, file descriptors) of this process and all below it."""
    found = {}
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            memory = process.memory_info()
            found[process.pid] = (
                (memory.rss - memory.shared) / 2**20, process.num_threads(), process.num_fds(), process.name(),
            )  # fmt: skip
        except psutil.NoSuchProcess:
            continue
    return found


def used():
    """Bytes in the object store; `available_resources` does not tell."""
    import ray
    from ray._private.internal_api import node_stats

    node = ray.nodes()[0]
    stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False)
    return stats.store_stats.object_store_bytes_used


@pytest.mark.long
def test_fifty_epochs_leave_memory_threads_files_and_the_object_store_flat(ray_session, recipe_file, tmp_path):
    stages = [{"name": "first", "train": "voc12/train", "val": "voc12/val", "epochs": 50, "val_every": 5}]
    page = recipe_file(stages=stages, feed="ray", batch=6, workers={"count": 2, "gpus": 0}, log_every=3)
    folder, taken, stores, ending = tmp_path / "out/runs/tiny/first", [], [], threading.Event()

    def watch():
        while not ending.wait(0.5):
            lines = read_record(folder / "record.jsonl")[0]
            step = max((line["step"] for line in lines if line["kind"] == "train"), default=0)
            if 30 < step < 150:  # past the start, whose caches fill, and before the workers end
                taken.append((step, sample()))
                stores.append(used())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    began = time.monotonic()
    run_recipe(load_recipe(page))
    ending.set()
    thread.join()
    assert len(taken) >= 8, f"only {len(taken)} samples in {time.monotonic() - began:.0f} s"
    third = len(taken) // 3
    early, late = [s for _, s in taken[:third]], [s for _, s in taken[-third:]]
    lasting = set.intersection(*(set(s) for s in early + late))
    assert len(lasting) >= 6  # this process, Ray's own, two workers, feeding tasks
    assert sum("RayTrainWorker" in early[0][pid][3] for pid in lasting) == 2, [early[0][pid][3] for pid in lasting]
    for pid in lasting:
        # the driver sends pictures and tables to MLflow, whose caches fill for longer, and then no more
        mib = 24 if pid == os.getpid() else 6
        for what, index, slack in (("MiB", 0, mib), ("threads", 1, 4), ("files", 2, 8)):
            before, after = (statistics.median(s[pid][index] for s in part) for part in (early, late))
            assert after <= before + slack, f"{early[0][pid][3]}: {before:.0f} -> {after:.0f} {what}"
    assert max(stores) > 0
    assert statistics.median(stores[-third:]) < 1.5 * statistics.median(stores[:third]) + (8 << 20)
