"""The newcomer's command on the bundled sample, whole; and what pretraining on COCO is worth in it."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml

from pipelines.base.door import ROOT
from pipelines.cluster.inside_ray import SWITCH
from pipelines.driver.run import run_recipe
from pipelines.recipes.reading import RECIPES, load_recipe
from pipelines.runs.record import read_record

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(2000)]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The finished run: its output folder, and what it printed. Alone it takes 140 to 380 s."""
    out = tmp_path_factory.mktemp("chain")
    command = [sys.executable, "-m", "pipelines.voc_pretrain", f"output={out}", "name=chain"]
    # beside other tests, on slow cores, it takes three times that
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out, done.stdout


def results(out, name="chain"):
    return [json.loads(path.read_text()) for path in sorted((out / "runs" / name).glob("*/done.json"))]


def test_the_chain_learns_from_under_10_to_over_50_percent(chain):
    out, shown = chain
    by_name = {result["stage"]: result for result in results(out)}
    assert by_name["coco_pretrain"]["miou_before"] < 0.10
    assert by_name["aug_finetune"]["miou"] > 0.50
    assert by_name["trainval_finetune"]["miou"] is None
    table = shown[shown.index("\nstage ") :]
    for head in ("rows trained on", "steps", "val rows", "mIoU before", "mIoU after", "images/s", "checkpoint"):
        assert head in table
    assert re.search(r"mlflow ui --backend-store-uri sqlite:///\S+mlflow.db", table)


def test_mlflow_holds_what_people_look_at(chain):
    import mlflow

    out = chain[0]
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("context-heads").experiment_id])
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert set(children) == {f"chain/{name}" for name in ("coco_pretrain", "aug_finetune", "trainval_finetune")}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags.get("mlflow.parentRunId") for run in children.values()} == {parent.info.run_id}
    assert "recipe.yaml" in [file.path for file in client.list_artifacts(parent.info.run_id)]
    (model,) = client.search_logged_models([parent.info.experiment_id])
    assert (str(model.status), model.source_run_id) == ("READY", children["chain/trainval_finetune"].info.run_id)
    stage = children["chain/aug_finetune"]
    record = [json.loads(line) for line in (out / "runs/chain/aug_finetune/record.jsonl").read_text().splitlines()]
    losses = [(line["step"], line["loss"]) for line in record if line["kind"] == "train"]
    assert [(m.step, m.value) for m in client.get_metric_history(stage.info.run_id, "train/loss")] == losses
    last = [line for line in record if line["kind"] == "val"][-1]
    assert stage.data.metrics["val/mIoU"] == pytest.approx(last["miou"] * 100)
    assert any(key.startswith("system/") for key in stage.data.metrics)
    for key in ("cost.parameters", "cost.macs", "cost.convention", "shards.train.hash"):
        assert stage.data.params[key]
    assert len(stage.data.tags.get("mlflow.source.git.commit", "0" * 40)) == 40
    folders = {file.path for file in client.list_artifacts(stage.info.run_id)}
    assert folders >= {"checkpoint", "confusion", "iou", "iou_table", "overlays"}
    assert len(client.list_artifacts(stage.info.run_id, "overlays")) == 4


@pytest.mark.long
def test_finetuning_from_coco_beats_finetuning_from_scratch_at_equal_steps(chain, tmp_path, capsys):
    out = chain[0]
    finetuned = next(result for result in results(out) if result["stage"] == "aug_finetune")
    page = yaml.safe_load((RECIPES / "sample.yaml").read_text())
    stage = next(stage for stage in page["stages"] if stage["name"] == "aug_finetune")
    page |= {"stages": [stage], "output": str(out), "name": "scratch", "data": str(out / "sample/shards")}
    page |= {"workers": {"count": 0, "gpus": 0}, "feed": "torch", "mlflow_model": False}
    (tmp_path / "scratch.yaml").write_text(yaml.safe_dump(page))
    (scratch,) = run_recipe(load_recipe(tmp_path / "scratch.yaml"))
    with capsys.disabled():
        print(
            f"\nVOC finetuning, {scratch.steps} steps, val mIoU: {finetuned['miou'] * 100:.2f} % from COCO, "
            f"{scratch.miou * 100:.2f} % from scratch"
        )
    assert scratch.steps == finetuned["steps"]
    assert finetuned["miou"] > scratch.miou + 0.10


def test_without_anything_that_ray_keeps_private_the_chain_computes_the_same(chain):
    """Starts take longer, results are the same: here next to a run of this process, which needs no Ray at all."""
    out = chain[0]
    short = [f"stages.{name}.{key}" for name in ("coco_pretrain", "aug_finetune", "trainval_finetune")
             for key in ("epochs=null", "steps=4", "warmup=1")]  # fmt: skip
    short += ["log_every=1", "mlflow_model=false", f"output={out}"]
    command = [sys.executable, "-m", "pipelines.voc_pretrain", *short, "name=public", "workers.count=1"]
    environment = {**os.environ, SWITCH: "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    here = ["name=here", "workers.count=0", "feed=torch", f"data={out / 'sample/shards'}"]
    run_recipe(load_recipe("sample", [*short, *here]))
    for stage in ("coco_pretrain", "aug_finetune", "trainval_finetune"):
        lines = [read_record(out / f"runs/{name}/{stage}/record.jsonl")[0] for name in ("public", "here")]
        losses = [[line["loss"] for line in record if line["kind"] == "train"] for record in lines]
        assert len(losses[0]) == 4
        assert losses[0] == losses[1]
    assert [r["miou"] for r in results(out, "public")] == [r["miou"] for r in results(out, "here")]
