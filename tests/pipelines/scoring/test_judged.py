"""Intervals and measures on their way: from the pass over the rows to the page, the record and MLflow."""

import json
import re
import sys

import cv2
import numpy as np
import pytest
import torch

from datasets.manifest import read_manifest
from pipelines import evaluate
from pipelines.base import pictures
from pipelines.base.errors import InputError
from pipelines.base.files import to_json
from pipelines.feed.plan import open_shards
from pipelines.recipes.model import build_model
from pipelines.recipes.protocols import MEASURES
from pipelines.recipes.reading import load_recipe
from pipelines.runs import mlflow_lines
from pipelines.runs.checkpoint import Checkpoint, Progress
from pipelines.scoring import measures
from pipelines.scoring.boundary import boundary_counts, f_score
from pipelines.scoring.evaluation import Wishes, evaluate_here, load_model, plan_evaluation
from pipelines.scoring.judged import Judged
from segmodels.inference import predict
from segmodels.metrics import scores


@pytest.fixture
def best(recipe_file, shards, tmp_path):
    """A checkpoint of random weights."""
    manifest, recipe = read_manifest(str(shards / "voc12/val")), load_recipe(recipe_file())
    torch.manual_seed(0)
    model = build_model(recipe, len(manifest.classes))
    Checkpoint(
        model=model.state_dict(), recipe=recipe, stage="first", step=1, progress=Progress(), classes=manifest.classes,
        palette=manifest.palette, seen=np.zeros(0, np.int64),
    ).write(tmp_path / "best.pt")  # fmt: skip
    return tmp_path / "best.pt"


@pytest.fixture
def task(best, shards):
    return plan_evaluation(
        best, Checkpoint.read(best), str(shards / "voc12/val"), Wishes(["single", "single-flip"], measures=MEASURES)
    )


def test_the_table_of_names_is_the_table_of_measures():
    assert tuple(measures.MEASURES) == MEASURES


@pytest.mark.slow
def test_one_pass_counts_what_a_loop_over_the_rows_does(best, task):
    checkpoint, shards = Checkpoint.read(best), open_shards(task.uri)
    counts = evaluate_here(task, checkpoint)["single-flip"]
    model, outlines, accuracies = load_model(task.recipe, checkpoint, torch.device("cpu")).eval(), 0, []
    for row in range(len(shards)):
        image, mask = shards.sample(row)
        tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
        guess = predict(model, tensor, task.protocols["single-flip"]).argmax(1)[0].byte().numpy()
        outlines = outlines + boundary_counts(guess, mask, len(checkpoint.classes))
        accuracies.append((guess == mask)[mask != 255].mean())
        by_class = counts.by_class(len(shards))
        assert by_class.hits[row].sum() == (guess == mask)[mask != 255].sum()
        assert np.array_equal(by_class.truth[row], np.bincount(mask[mask != 255], minlength=21))
    judged = Judged.of(counts, len(shards), checkpoint.classes)
    assert judged.readings["boundary"].page["f"] == f_score(outlines).tolist()
    assert judged.sure.miou.value == pytest.approx(scores(counts.total()).miou, abs=1e-15)
    assert judged.readings["calibration"].page["accuracy"] == pytest.approx(judged.scores.accuracy)
    assert judged.readings["strata"].metrics.keys() >= {"mIoU_small", "mIoU_large", "recall_middle", "found_small"}


def test_numbers_are_json_and_metrics_of_mlflow(task, best):
    counts = evaluate_here(task, Checkpoint.read(best))["single"]
    numbers = json.loads(to_json(Judged.of(counts, 11, task.manifest.classes).numbers()))
    found = mlflow_lines.tested({"single": {"protocol": "in words", "rows": 11, **numbers}})
    assert found["test/single/mIoU"] == numbers["miou"] * 100
    assert found["test/single/mIoU_low"] <= found["test/single/mIoU"] <= found["test/single/mIoU_high"]
    assert found["test/single/boundaryF_3px"] <= found["test/single/boundaryF_12px"]
    assert 0 < found["test/single/ECE"] < 100
    assert all(re.fullmatch(r"[\w.\- /]+", name) for name in found)
    older = mlflow_lines.tested({"single": {"miou": 0.5}})  # without intervals and measures
    assert older == {"test/single/mIoU": 50.0}


def test_the_door_prints_and_writes_intervals_and_measures(best, shards, tmp_path, monkeypatch, capsys):
    flags = ["--boundary", "--strata", "--calibration", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["evaluate", str(best), str(shards / "voc12/val"), *flags])
    evaluate.main()
    shown, page = capsys.readouterr().out, json.loads((tmp_path / "out/scores.json").read_text())
    low, high = (f"{page[key] * 100:.2f}" for key in ("miou_low", "miou_high"))
    (line,) = [line for line in shown.splitlines() if line.startswith("own ")]
    assert line.split()[1:4] == [f"{page['miou'] * 100:.2f}", low, high]
    first = [f"{page[key][0] * 100:.2f}" for key in ("iou", "iou_low", "iou_high", "f1")]
    assert f"{page['classes'][0]} {' '.join(first)} {page['images'][0]}" in [
        " ".join(s.split()) for s in shown.splitlines()
    ]
    for name in MEASURES:
        assert "lines" in page[name]
        assert all(line in shown for line in page[name]["lines"])
    assert page["measured"]["ECE"] == page["calibration"]["error"]
    assert cv2.imread(str(tmp_path / "out/calibration.png")) is not None
    assert "low" in (tmp_path / "out/scores.csv").read_text().splitlines()[0]


def test_measures_of_a_recipe_are_checked(recipe_file):
    assert load_recipe(recipe_file(protocols=["single"], measures=["strata"])).measures == ("strata",)
    with pytest.raises(InputError, match="unknown measure 'boundry'; did you mean 'boundary'"):
        load_recipe(recipe_file(protocols=["single"], measures=["boundry"]))
    with pytest.raises(InputError, match="measures without protocols"):
        load_recipe(recipe_file(measures=["strata"]))


def test_whiskers_end_where_the_intervals_do():
    figure = pictures.iou_figure(
        [0.5, float("nan"), 0.2], ["a", "b", "c"], "t", [0.4, float("nan"), 0.2], [0.8, float("nan"), 0.9]
    )
    (axes,) = figure.axes
    (whiskers,) = axes.containers[-1].lines[2]
    assert [np.round(line[:, 0], 6).tolist() for line in whiskers.get_segments()] == [[40, 80], [0, 0], [20, 90]]
    assert [(text.get_text(), round(text.get_position()[0], 6)) for text in axes.texts] == [
        ("50.0", 81), ("absent", 1), ("20.0", 91)]  # fmt: skip
