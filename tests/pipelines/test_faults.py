"""Real workers that die, and packages that hide ours, on a Ray session."""

import json
import shutil
import threading
import time

import psutil
import pytest
import torch

from pipelines import checkpoint
from pipelines.cluster import names_on_worker
from pipelines.door import SetupError
from pipelines.recipe import RecipeError, load_recipe
from pipelines.record import read_record
from pipelines.stages import run_recipe

pytestmark = pytest.mark.ray


def test_a_foreign_datasets_package_is_caught_on_workers(ray_session, tmp_path, monkeypatch):
    import ray

    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("")

    def look():
        import sys

        sys.modules.pop("datasets", None)
        sys.path.insert(0, str(tmp_path))
        return names_on_worker()

    assert str(tmp_path / "datasets") in ray.get(ray.remote(num_cpus=0)(look).remote())
    from pipelines import cluster

    monkeypatch.setattr(cluster, "names_on_worker", look)
    with pytest.raises(SetupError, match="on a Ray worker: the package 'datasets'"):
        cluster.check_workers()


def test_a_killed_worker_is_replaced_and_ends_at_the_same_weights(ray_session, recipe_file, tmp_path):
    stages = [{"name": "first", "train": "voc12/train", "val": "voc12/val", "steps": 12, "val_every": 0}]
    page = recipe_file(workers={"count": 2, "gpus": 0}, feed="ray", stages=stages, checkpoint_minutes=0.0)
    run_recipe(load_recipe(page, ["name=whole"]))
    folder = tmp_path / "out/runs/tiny/first"

    def kill_one():
        """SIGKILL a train worker in mid-epoch, once a few steps are saved."""
        while not list(folder.glob("checkpoints/step-*4.pt")):
            time.sleep(0.02)
        workers = [p for p in psutil.process_iter(["cmdline"]) if "RayTrainWorker" in " ".join(p.info["cmdline"] or [])]
        workers[0].kill()

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    run_recipe(load_recipe(page))
    killer.join(1)
    assert not killer.is_alive()
    whole, tiny = (
        checkpoint.load(tmp_path / f"out/runs/{name}/first/checkpoints/step-00000012.pt") for name in ("whole", "tiny")
    )
    assert all(torch.equal(whole["model"][k], tiny["model"][k]) for k in whole["model"])
    steps = [line["step"] for line in read_record(folder / "record.jsonl")[0] if line["kind"] == "train"]
    assert steps == list(range(1, 13))
    starts = [line for line in read_record(folder / "record.jsonl")[0] if "continues" in line.get("text", "")]
    assert len(starts) == 1


@pytest.mark.parametrize("where", [{"workers": {"count": 2, "gpus": 0}, "feed": "ray"}, {}])
def test_a_corrupt_shard_ends_in_its_message_and_is_not_tried_again(
    ray_session, recipe_file, shards, tmp_path, monkeypatch, where
):
    uri = tmp_path / "damaged"
    shutil.copytree(shards / "voc12" / "train", uri)
    part = uri / "part-00001.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 3] ^= 1
    part.write_bytes(data)
    manifest = json.loads((uri / "manifest.json").read_text())
    manifest["files"][1]["sha256"] = "0" * 64  # a name that no cache holds
    (uri / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RecipeError, match=r"corrupt shard .*part-00001"):
        run_recipe(load_recipe(recipe_file(stages=[{"name": "first", "train": str(uri), "steps": 4}], **where)))
    notes = [line for line in read_record(tmp_path / "out/runs/tiny/first/record.jsonl")[0] if line["kind"] == "note"]
    assert len(notes) == 1  # no second attempt at training
