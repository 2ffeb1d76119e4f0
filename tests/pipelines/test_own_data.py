"""A new user's walk, as the README has it: a folder of one's own, shards, training, a score."""

import json
import re
import sys

import cv2
import numpy as np
import pytest

from pipelines import evaluate, prepare
from pipelines.base.door import ROOT
from pipelines.recipes.reading import load_recipe
from pipelines.train import train

CLASSES = ["sky", "road", "car"]


@pytest.fixture
def mine(tmp_path):
    """Twelve pictures of boxes with their masks."""
    root, draws = tmp_path / "mine", np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i in range(12):
        mask = np.zeros((60, 80), np.uint8)
        mask[30:] = 1
        top, left = draws.integers(10, 30), draws.integers(0, 50)
        mask[top : top + 20, left : left + 25] = 2
        image = np.array([[230, 120, 60], [60, 60, 60], [30, 30, 220]], np.uint8)[mask]
        cv2.imwrite(str(root / f"images/{i}.jpg"), image)
        cv2.imwrite(str(root / f"masks/{i}.png"), mask)
    (root / "classes.yaml").write_text("classes: [sky, road, car]\n")
    return root


def open_door(monkeypatch, main, *words):
    monkeypatch.setattr(sys, "argv", ["door", *map(str, words)])
    main()


def test_the_readme_shows_this_walk():
    walk = (ROOT / "README.md").read_text().partition("## Your own data")[2].partition("## A recipe")[0]
    for words in ("pipelines.prepare folder --source mine --out data/mine --val 0.2",
                  "pipelines.train own/small data=data/mine name=mine",
                  "pipelines.evaluate ~/context-heads/runs/mine/own/best.pt data/mine/val"):  # fmt: skip
        assert words in walk


@pytest.mark.slow
def test_a_folder_becomes_shards_a_model_and_a_score(mine, tmp_path, monkeypatch, capsys):
    out, data = tmp_path / "out", tmp_path / "data"
    open_door(monkeypatch, prepare.main, "folder", "--source", mine, "--out", data, "--val", 0.25, "--workers", 0)
    small = ["view.crop=[64, 64]", "stages.own.epochs=40", "stages.own.val_every=20", "batch=9", "name=mine",
             "backbone.name=test_resnet", "overlays=2", "mlflow_model=false"]  # fmt: skip
    open_door(monkeypatch, lambda: train("the door"), "own/small", f"data={data}", f"output={out}", *small)
    shown = capsys.readouterr()
    first = next(line for line in shown.out.splitlines() if line.startswith("mine in "))
    assert first == f"mine in {out}/runs/mine: checks of recipe, weights and shards, then PyTorch is imported"
    assert "no validation" not in shown.err

    stage = out / "runs/mine/own"
    done = json.loads((stage / "done.json").read_text())
    assert done["val_rows"] == 3
    assert done["miou"] > 0.5 > done["miou_before"]
    assert len(list(stage.glob("overlays/*/*.png"))) == 2 * 3  # before, in the middle, after

    open_door(monkeypatch, evaluate.main, stage / "best.pt", data / "val", "--out", tmp_path / "scores")
    shown = capsys.readouterr().out
    assert shown.startswith(f"{stage}/best.pt on the 3 rows of {data}/val: PyTorch is imported")
    scores = json.loads((tmp_path / "scores/scores.json").read_text())
    assert scores["classes"] == CLASSES
    assert scores["miou"] == pytest.approx(done["best"], abs=1e-6)
    assert re.search(rf"protocol +mIoU %.*\n\w+ +{scores['miou'] * 100:.2f} ", shown)


def test_the_page_for_a_folder_of_ones_own_validates_and_needs_no_ray():
    recipe = load_recipe("own/small")
    assert [(stage.train, stage.val) for stage in recipe.stages] == [("train", "val")]
    assert (recipe.workers.count, recipe.feed) == (0, "torch")
    assert recipe.overlays > 0
