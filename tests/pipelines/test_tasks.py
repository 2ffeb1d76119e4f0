"""The other tasks through the same loop: trained, stopped, gone on with, by any number of workers; scored, told."""

import itertools
import json

import pytest
import torch

from pipelines.base.errors import InputError, RunFailed
from pipelines.driver.run import run_recipe
from pipelines.feed.batches import train_batches
from pipelines.recipes.reading import load_recipe
from pipelines.recipes.recipe import fingerprint
from pipelines.recipes.tasks import TASKS
from pipelines.runs import checkpoint
from pipelines.runs.folder import step_name
from pipelines.runs.record import read_record

REGIONS = {
    "channels": 16, "anchors": [8, 16, 32, 64, 128], "proposals": [40, 20], "anchor_samples": 16, "box_samples": 16,
    "representation": 16, "mask_channels": 8, "canonical": 32,
}  # fmt: skip
PARTS = {
    "classification": ({"name": "classifier"}, [32, 32], "classes", [0.3, 1.0]),
    "detection": ({"name": "mask_rcnn", **REGIONS}, [64, 96], "coco_instances", [0.8, 1.2]),
    "panoptic": (
        {"name": "panoptic_fpn", **REGIONS, "semantic_channels": 8, "stuff_area": 16},
        [64, 96], "coco_panoptic", [0.8, 1.2],
    ),
}  # fmt: skip


def page_of(task, shards, folder, **changes):
    head, crop, benchmark, scale = PARTS[task]
    page = {
        "task": task, "name": "tiny", "data": str(shards), "output": str(folder / "out"), "batch": 4,
        "backbone": {"name": "test_resnet", "output_stride": 32, "weights": None}, "head": head,
        "view": {"crop": crop, "scale": scale, "flip": 0.5}, "optim": {"lr": 0.01, "head_lr_scale": 1},
        "stages": [{"name": "first", "train": f"{benchmark}/train", "val": f"{benchmark}/val", "steps": 5,
                    "val_every": 0}],
        "workers": {"count": 0}, "feed": "torch", "log_every": 1, "checkpoint_minutes": 0.0,
    }  # fmt: skip
    path = folder / f"{task}.yaml"
    path.write_text(json.dumps(page | changes))
    return path


def weights(folder, name="tiny", step=5):
    return checkpoint.load(folder / "out/runs" / name / "first/checkpoints" / step_name(step))["model"]


def lines(folder, kind, name="tiny"):
    return [x for x in read_record(folder / f"out/runs/{name}/first/record.jsonl")[0] if x["kind"] == kind]


def breaks_after(steps):
    def feed(*args):
        yield from itertools.islice(train_batches(*args), steps)
        raise OSError("the machine is gone")

    return feed


@pytest.mark.slow
@pytest.mark.parametrize("task", list(PARTS))
def test_a_stopped_training_ends_at_the_same_weights(task, task_shards, tmp_path, capsys):
    page = page_of(task, task_shards, tmp_path)
    (whole,) = run_recipe(load_recipe(page, ["name=whole"]))
    told = capsys.readouterr().out
    with pytest.raises(RunFailed):
        run_recipe(load_recipe(page), breaks_after(3))
    assert checkpoint.newest(tmp_path / "out/runs/tiny/first/checkpoints")["step"] == 3
    run_recipe(load_recipe(page))
    ours, theirs = weights(tmp_path), weights(tmp_path, "whole")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    metric = TASKS[task].metric
    assert whole.metric == metric
    assert whole.named[metric] == whole.miou == lines(tmp_path, "val", "whole")[-1]["miou"]
    assert f"{metric} after" in told
    assert "mIoU" not in told
    assert lines(tmp_path, "train")[0]["terms"].keys() == lines(tmp_path, "train", "whole")[0]["terms"].keys()


@pytest.mark.ray
@pytest.mark.parametrize("task", list(PARTS))
def test_two_workers_learn_and_score_what_one_does(task, ray_session, task_shards, tmp_path):
    page = page_of(task, task_shards, tmp_path, optim={"lr": 0.001, "head_lr_scale": 1})
    for name, where in (("one", []), ("two", ["workers.count=2", "feed=ray"])):
        run_recipe(load_recipe(page, [f"name={name}", "stages.first.steps=2", *where]))
    one, two = (lines(tmp_path, "val", name) for name in ("one", "two"))
    assert one[0]["named"] == two[0]["named"]  # of the same weights, to the last digit
    assert one[0]["rows"] == two[0]["rows"]
    losses = [[line["loss"] for line in lines(tmp_path, "train", name)] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # the same images, regions and seeds
    ours, theirs = weights(tmp_path, "one", 2), weights(tmp_path, "two", 2)
    assert max(float((ours[key] - theirs[key]).abs().max()) for key in ours if ours[key].is_floating_point()) < 1e-4


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("detection", {"head": {"name": "fcn"}}, "of task: segmentation, this recipe has task: detection"),
        ("segmentation", {"head": {"name": "mask_rcnn"}}, "of task: detection, this recipe has task: segmentation"),
        ("classification", {"loss": {"logits": {"ohem": 1.0}}}, "of task: segmentation only"),
        ("detection", {"protocols": ["single"]}, "protocols"),
        ("panoptic", {"view": {"crop": [64, 96], "scale": [1, 1], "hue": 0.1}}, "view.hue"),
        ("classification", {"view": {"crop": [32, 32], "scale": [0.5, 2.0]}}, "at most 1"),
    ],
)
def test_what_a_task_does_not_take_is_refused(task, change, message, task_shards, tmp_path):
    page = page_of(task if task in PARTS else "detection", task_shards, tmp_path, **change)
    with pytest.raises(InputError, match=message):
        load_recipe(page, [f"task={task}"])


@pytest.mark.parametrize("task", ["classification", "detection", "panoptic"])
def test_masks_alone_are_refused(task, task_shards, shards, tmp_path):
    stages = [{"name": "first", "train": "voc12/train", "steps": 1}]
    page = page_of(task, shards, tmp_path, stages=stages)
    with pytest.raises(InputError, match=r"without objects: task: .* needs shards of"):
        run_recipe(load_recipe(page))


def test_a_page_without_a_task_is_the_run_that_it_was(recipe_file):
    assert fingerprint(load_recipe(recipe_file())) == fingerprint(load_recipe(recipe_file(), ["task=segmentation"]))
