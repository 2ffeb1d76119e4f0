"""The doors with checkpoints of the other tasks: `evaluate`, `explain`, and those that refuse them."""

import json
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from predicted import write_picture
from seen import SPLITS, model_of, recipe_of, write_task_checkpoint

from pipelines import compare, evaluate, explain, export, serve
from pipelines.base.errors import InputError
from pipelines.feed.plan import open_shards
from pipelines.runs.checkpoint import Checkpoint
from pipelines.scoring.context_maps import context_maps
from pipelines.scoring.task_evaluation import evaluate_here, evaluate_on_ray, plan_task
from segmodels.files import FileError

SR = {"name": "test_resnet", "output_stride": 32, "context": {"name": "sr", "place": "layer4", "nodes": 2, "ratio": 4}}


@pytest.fixture
def door(monkeypatch, capsys):
    def open_door(module, *words):
        monkeypatch.setattr(sys, "argv", [module.__name__.rpartition(".")[2], *map(str, words)])
        module.main()
        return capsys.readouterr().out

    return open_door


@pytest.fixture(scope="module")
def best(task_shards, tmp_path_factory):
    """Task -> checkpoint."""
    folder = tmp_path_factory.mktemp("best")
    return {task: write_task_checkpoint(folder / f"{task}.pt", task, task_shards) for task in SPLITS}


@pytest.mark.parametrize("task", SPLITS)
def test_evaluate_counts_its_images_and_writes_the_scores(door, best, task_shards, tmp_path, task, monkeypatch):
    told = []
    monkeypatch.setattr("pipelines.evaluate.Progress.reach", lambda self, done: told.append(done))
    uri = task_shards / SPLITS[task] / "val"
    shown = door(evaluate, best[task], uri, "--out", tmp_path)
    page = json.loads((tmp_path / "scores.json").read_text())
    drawn = {"classes.png", "confusion.png"} if task == "classification" else {"classes.png"}
    assert {path.name for path in tmp_path.iterdir()} == {"scores.json"} | drawn
    assert told[0] == 0
    assert told[-1] == page["rows"]
    assert told == sorted(told)
    for name in page["scores"]:
        assert name in shown


SCORED = [task if task == "detection" else pytest.param(task, marks=pytest.mark.long) for task in SPLITS]


@pytest.mark.ray
@pytest.mark.parametrize("task", SCORED)
def test_one_worker_and_two_give_the_scores_of_this_process(best, task_shards, task, ray_session):
    uri = str(task_shards / SPLITS[task] / "val")
    checkpoint = Checkpoint.read(best[task])
    plan = plan_task(best[task], checkpoint, uri, "auto", False)
    here = evaluate_here(plan, checkpoint, torch.device("cpu"), lambda images: None)
    assert here.named
    for count in (1, 2):
        counted = []
        found = evaluate_on_ray(plan, replace(ray_session, count=count), counted.append)
        assert found == here
        if task == "classification":
            assert (found.confusion == here.confusion).all()


def test_the_maps_of_a_unit_are_what_it_takes_and_gives():
    recipe = recipe_of("classification", backbone=SR)
    model = model_of(recipe, 6)
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    seen, (unit,) = context_maps(model, recipe, image)
    (start,) = model.backbone.context
    module = model.backbone.trunk.get_submodule(start.rstrip("."))
    assert seen.shape == (32, 32, 3)
    np.testing.assert_array_equal(unit.before, unit.after)  # a fresh unit is the identity
    assert unit.change == 0
    torch.nn.init.ones_(module.norm.weight)
    _, (unit,) = context_maps(model, recipe, image)
    with torch.no_grad():
        wanted = module(torch.from_numpy(unit.before)[None])[0].numpy()
    np.testing.assert_allclose(unit.after, wanted, atol=1e-6)
    assert unit.change > 0
    assert not module._forward_hooks


@pytest.mark.parametrize("context", [SR["context"], {"name": "se", "place": "blocks"}])
def test_explain_draws_the_units_of_a_trunk(door, task_shards, tmp_path, context):
    path = write_task_checkpoint(tmp_path / "best.pt", "detection", task_shards, backbone=SR | {"context": context})
    write_picture(tmp_path / "street.png", 0)
    shown = door(explain, path, tmp_path / "street.png", "--out", tmp_path / "seen")
    assert "context_mean.png, context_pca.png, explain.json" in shown
    page = json.loads((tmp_path / "seen/explain.json").read_text())
    assert len(page["units"]) == (1 if context["place"] == "layer4" else 4)
    for name in page["pictures"]:
        assert cv2.imread(str(tmp_path / "seen" / name)).shape[1] == 900
    uri = task_shards / "coco_instances/val"
    row = open_shards(str(uri)).ids[0]
    door(explain, path, uri, "--row", row, "--out", tmp_path / "row")
    assert json.loads((tmp_path / "row/explain.json").read_text())["row"] == row


def test_explain_refuses_what_a_task_has_not(door, best, task_shards, tmp_path):
    write_picture(tmp_path / "a.png", 0)
    with pytest.raises(InputError, match=r"backbone\.context: null"):
        door(explain, best["detection"], tmp_path / "a.png", "--out", tmp_path / "seen")
    path = write_task_checkpoint(tmp_path / "sr.pt", "classification", task_shards, backbone=SR)
    with pytest.raises(InputError, match="leave out --pixel"):
        door(explain, path, tmp_path / "a.png", "--pixel", 1, 1, "--out", tmp_path / "seen")
    with pytest.raises(InputError, match="leave out --measure"):
        door(explain, path, task_shards / "classes/val", "--measure")
    assert not (tmp_path / "seen").exists()


@pytest.mark.parametrize("task", SPLITS)
def test_doors_of_masks_refuse_other_tasks_and_say_so(door, best, task_shards, tmp_path, task):
    uri, path = task_shards / SPLITS[task] / "val", best[task]
    with pytest.raises((InputError, FileError), match=f"this one is of task: {task}"):
        door(export, path, "--out", tmp_path / "model.onnx")
    with pytest.raises((InputError, FileError), match=f"task: {task}"):
        door(serve, path, "--port", 0)
    with pytest.raises(InputError, match=f"this one is of task: {task}"):
        door(compare, "runs", path, path, uri)
    with pytest.raises(InputError, match="leave out --protocol, --flip"):
        door(evaluate, path, uri, "--protocol", "single", "--flip")
    assert list(tmp_path.iterdir()) == []
