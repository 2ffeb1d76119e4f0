"""Two checkpoints by the door: what is compared on what, what is printed, written, and refused."""

import json
import re
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from datasets.manifest import read_manifest
from pipelines import compare
from pipelines.base.errors import InputError
from pipelines.feed.plan import open_shards
from pipelines.recipes.model import build_model
from pipelines.recipes.reading import load_recipe
from pipelines.runs.checkpoint import Checkpoint, Progress
from pipelines.runs.folder import StageFolder
from pipelines.runs.named import named_checkpoint
from pipelines.runs.results import Result
from pipelines.scoring.evaluation import evaluate_here, plan_evaluation
from pipelines.scoring.pairing import rows_of
from segmodels.metrics import scores


@pytest.fixture
def pair_of_models(recipe_file, shards, tmp_path):
    """Two checkpoints of random weights, of which B mostly says background, as most of the truth is."""
    manifest, recipe = read_manifest(str(shards / "voc12/val")), load_recipe(recipe_file())
    paths = []
    for name, push in (("a", 0.0), ("b", 2.0)):
        torch.manual_seed(0)
        model = build_model(recipe, len(manifest.classes))
        with torch.no_grad():
            next(p for key, p in model.named_parameters() if key.endswith("bias") and len(p) == 21)[0] += push
        path = tmp_path / name / "best.pt"
        Checkpoint(
            model=model.state_dict(), recipe=recipe, stage="first", step=1, progress=Progress(),
            classes=manifest.classes, palette=manifest.palette, seen=np.zeros(0, np.int64),
        ).write(path)  # fmt: skip
        paths.append(path)
    return paths


@pytest.fixture
def opened(monkeypatch, capsys):
    def open_door(*words):
        monkeypatch.setattr(sys, "argv", ["compare", "runs", *map(str, words)])
        compare.main()
        return capsys.readouterr().out

    return open_door


def test_the_door_compares_on_the_rows_that_both_validate_on(pair_of_models, shards, opened, tmp_path):
    a, b = pair_of_models
    shown = opened(a, b, "--out", tmp_path / "out", "--rows", 2)
    page = json.loads((tmp_path / "out/compared.json").read_text())
    uri = str(shards / "voc12/val")
    assert page["shards"] == uri
    for side, path in (("a", a), ("b", b)):
        checkpoint = Checkpoint.read(path, mapped=True)
        (counts,) = evaluate_here(plan_evaluation(path, checkpoint, uri), checkpoint).values()
        assert page[side]["miou"][0] == pytest.approx(scores(counts.total()).miou, abs=1e-12)
        assert page[side]["checkpoint"] == str(path)
    gain = page["gain"]["miou"]
    assert gain[0] == pytest.approx(page["b"]["miou"][0] - page["a"]["miou"][0], abs=1e-12)
    assert gain[1] <= gain[0] <= gain[2]
    said = page["verdict"]
    assert said == (
        "no difference shown" if gain[1] <= 0 <= gain[2] else "B is better" if gain[1] > 0 else "B is worse"
    )
    assert re.search(rf"B − A: \{gain[0] * 100:+.2f} \[.*\] points of mIoU: {said}\.", shown)
    assert list(page["rows"]) == open_shards(uri).ids
    pictures = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png"))
    gained = sorted((i for i in page["rows"] if page["rows"][i] > 0), key=lambda i: -page["rows"][i])
    assert [name for name in pictures if name.startswith("better/")] == [
        f"better/{place}-{i}.png" for place, i in enumerate(gained[:2], 1)
    ]
    assert all(cv2.imread(str(tmp_path / "out" / name)) is not None for name in pictures)
    assert all(name in shown for name in pictures)
    assert "NOTE" not in shown


def test_a_model_differs_from_itself_in_nothing(pair_of_models, shards, opened):
    shown = opened(pair_of_models[0], pair_of_models[0], shards / "voc12/val", "--protocol", "single")
    assert "B − A: +0.00 [+0.00, +0.00] points of mIoU: no difference shown." in shown
    assert "0 of 11 rows gained, 0 lost" in shown


def test_unlike_protocols_are_said(pair_of_models, shards, opened):
    a, b = pair_of_models
    checkpoint = Checkpoint.read(b)
    other = replace(checkpoint.recipe, inference=replace(checkpoint.recipe.inference, flip=True))
    replace(checkpoint, recipe=other).write(b)
    assert "NOTE: A and B are not predicted alike; --protocol NAME" in opened(a, b, "--rows", 0)
    assert "NOTE" not in opened(a, b, "--rows", 0, "--protocol", "single")


def test_what_cannot_be_compared_is_refused(pair_of_models, shards, opened, tmp_path):
    a, b = pair_of_models
    with pytest.raises(InputError, match=r"no checkpoint .*/none.pt; name RUN/STAGE/best.pt"):
        opened(a, tmp_path / "none.pt")
    with pytest.raises(InputError, match="--workers 0: 1 or more"):
        opened(a, b, "--workers", 0)
    with pytest.raises(InputError, match="unknown protocol 'singel'; did you mean 'single'"):
        opened(a, b, "--protocol", "singel")
    checkpoint = Checkpoint.read(b)
    replace(checkpoint, classes=(*checkpoint.classes[:-1], "tree")).write(b)
    with pytest.raises(InputError, match="they must be the same, in this order"):
        opened(a, b)


def test_rows_must_be_named_where_the_stages_validate_on_others_or_none(pair_of_models):
    a = Checkpoint.read(pair_of_models[0])
    (stage,) = a.recipe.stages

    def on(val):
        return replace(a, recipe=replace(a.recipe, stages=(replace(stage, val=val),)))

    assert rows_of([a, on(None)]).endswith("voc12/val")
    with pytest.raises(InputError, match=r"validated on .*coco_voc/val and .*voc12/val: name the SHARDS"):
        rows_of([a, on("coco_voc/val")])
    with pytest.raises(InputError, match="validate on nothing: name the SHARDS"):
        rows_of([on(None), on(None)])


def test_a_stages_folder_stands_for_its_final_weights(pair_of_models):
    a = pair_of_models[0]
    with pytest.raises(InputError, match="no checkpoint"):
        named_checkpoint(str(a.parent))  # not finished
    known = {"stage": "first", "rows": 1, "steps": 1, "val_rows": 1, "miou_before": None, "miou": 0.5, "best": 0.5,
             "best_step": 1, "images_per_s": 1.0, "checkpoint": str(a), "protocol": "", "time": 0}  # fmt: skip
    Result(**known, best_checkpoint=str(a)).write(StageFolder(a.parent).result)
    assert named_checkpoint(str(a.parent)) == named_checkpoint(str(a)) == a
