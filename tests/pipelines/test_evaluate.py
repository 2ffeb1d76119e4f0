"""Scoring a checkpoint: what is read how often, what is overridden, and what is written."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import segmodels
from datasets.manifest import read_manifest
from datasets.shards import Shards
from pipelines import evaluate
from pipelines.base import pictures
from pipelines.base.door import ROOT
from pipelines.base.errors import InputError
from pipelines.feed.plan import open_shards
from pipelines.recipes.model import build_model
from pipelines.recipes.protocols import OWN
from pipelines.recipes.reading import load_recipe
from pipelines.recipes.recipe import InferenceSpec
from pipelines.runs.checkpoint import Checkpoint, Progress
from pipelines.scoring.evaluation import Wishes, check_labels, evaluate_here, override_inference, plan_evaluation
from pipelines.scoring.validate import sizes_that_vary
from segmodels import files
from segmodels.inference import Inference
from segmodels.segmentor import classifier_keys

ABSENT = "train"


@pytest.fixture
def val(shards):
    return str(shards / "voc12/val")


@pytest.fixture
def best(recipe_file, val, tmp_path):
    """A checkpoint of random weights that never predicts ABSENT, which the split does not have either."""
    manifest, recipe = read_manifest(val), load_recipe(recipe_file())
    assert ABSENT in manifest.unseen
    torch.manual_seed(0)
    model = build_model(recipe, len(manifest.classes))
    with torch.no_grad():
        for name in classifier_keys(model):
            if name.endswith("bias"):
                model.get_parameter(name)[manifest.classes.index(ABSENT)] = -1e9
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(1000)}}, "param_groups": []}
    Checkpoint(
        model=model.state_dict(), recipe=recipe, stage="first", step=1, progress=Progress(), classes=manifest.classes,
        palette=manifest.palette, seen=np.zeros(0, np.int64), optimizer=optimizer,
    ).write(tmp_path / "best.pt")  # fmt: skip
    return tmp_path / "best.pt"


@pytest.fixture
def opened(monkeypatch, capsys):
    def open_door(*words):
        monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, words)])
        evaluate.main()
        return capsys.readouterr().out

    return open_door


def fail(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_an_absent_class_is_null_in_strict_json(best, val, tmp_path, opened):
    out = tmp_path / "scores"
    shown = opened(best, val, "--out", out)
    found = json.loads((out / "scores.json").read_text(), parse_constant=fail)
    place = found["classes"].index(ABSENT)
    assert [found[key][place] for key in ("iou", "f1", "precision", "recall")] == [None] * 4
    lines = [line.split() for line in shown.splitlines()]
    assert [ABSENT, "absent", "absent", "0"] in lines
    assert re.search(rf"^own +{found['miou'] * 100:.2f} .* {found['mean_f1'] * 100:.2f}$", shown, re.MULTILINE)
    background = [f"{found[key][0] * 100:.2f}" for key in ("iou", "iou_low", "iou_high", "f1")]
    assert [found["classes"][0], *background, "11"] in lines
    assert sorted(path.name for path in out.iterdir()) == ["confusion.png", "iou.png", "scores.csv", "scores.json"]
    assert all(cv2.imread(str(out / name)) is not None for name in ("confusion.png", "iou.png"))


def test_checkpoint_and_manifest_are_read_once_and_the_optimizer_stays_on_disk(best, val, opened, monkeypatch):
    loads, manifests = [], []

    def watched(read, seen, *args, **options):
        seen.append(options)
        return read(*args, **options)

    monkeypatch.setattr(torch, "load", partial(watched, torch.load, loads))
    monkeypatch.setattr("datasets.shards.read_manifest", partial(watched, read_manifest, manifests))
    open_shards.cache_clear()
    opened(best, val)
    assert [options["mmap"] for options in loads] == [True]
    assert len(manifests) == 1


def test_other_code_than_the_door_can_score(best, val):
    checkpoint = Checkpoint.read(best, mapped=True)
    task = plan_evaluation(best, checkpoint, val, Wishes(overrides={"mode": "slide", "stride": [16, 16], "flip": True}))
    assert task.words(OWN) == "voc12 val, 11 rows, slide 32x32 stride 16x16, scales 1.0, flip"
    assert task.recipe.inference.batch == 2
    counts = evaluate_here(task, checkpoint)[OWN]
    assert counts.total().sum() == sum(task.manifest.histogram[:-1])
    with pytest.raises(InputError, match=r"unknown key 'inference.windows'"):
        plan_evaluation(best, checkpoint, val, Wishes(overrides={"windows": [32, 32]}))


def test_a_file_for_use_is_predicted_with_and_not_scored(best, val, tmp_path, opened):
    files.write_safetensors(tmp_path / "use.safetensors", files.read(best))
    assert segmodels.load(tmp_path / "use.safetensors").classes == Checkpoint.read(best).classes
    with pytest.raises(InputError, match=r"use\.safetensors is a file for use.* give the run's own best\.pt"):
        opened(tmp_path / "use.safetensors", val)


def test_overrides_leave_the_rest_of_the_recipe_and_another_mode_drops_its_windows():
    slide = InferenceSpec("slide", (32, 32), (16, 16), (0.5, 1.0), True, 2)
    assert override_inference(slide, {}) == slide
    assert override_inference(slide, {"mode": "slide", "stride": [8, 8]}).window == (32, 32)
    assert override_inference(slide, {"scales": [2]}) == InferenceSpec("slide", (32, 32), (16, 16), (2.0,), True, 2)
    assert override_inference(slide, {"mode": "whole"}) == InferenceSpec("whole", None, None, (0.5, 1.0), True, 2)
    wider = override_inference(InferenceSpec(), {"mode": "slide", "window": [48, 48]})
    assert (wider.window, wider.stride) == ((48, 48), None)


def test_several_protocols_are_scored_in_one_pass_and_shown_side_by_side(best, val, tmp_path, opened, monkeypatch):
    out, reads = tmp_path / "scores", []
    read = Shards.sample
    monkeypatch.setattr(Shards, "sample", lambda shards, row: reads.append(row) or read(shards, row))
    for name in ("confusion_figure", "iou_figure"):  # drawn in other tests
        monkeypatch.setattr(pictures, name, lambda *args: Figure(figsize=(0.2, 0.2)))
    shown = opened(best, val, "--protocol", "single", "--protocol", "single-flip", "--average", "logits", "--out", out)
    assert sorted(reads) == list(range(11))
    found = json.loads((out / "scores.json").read_text(), parse_constant=fail)
    assert list(found["protocols"]) == ["single", "single-flip", OWN]
    assert found["iou"] == found["protocols"]["single"]["iou"]
    assert "whole, scales 1.0, no flip, logits averaged" in found["protocols"][OWN]["protocol"]
    head, *_ = [line for line in shown.splitlines() if line.split() == ["single", "single-flip", OWN]]
    assert len(head) == 20 + 3 * 32
    for name, page in found["protocols"].items():
        assert re.search(rf"^{name} +{page['miou'] * 100:.2f} ", shown, re.MULTILINE)
        assert f"{name}: {page['protocol']}\n" in shown
        assert (out / f"confusion-{name}.png").exists()
    lines = (out / "scores.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 * len(found["classes"])
    assert lines[1].split(",")[:3] == ["single", "background", str(found["iou"][0])]


def test_bad_protocols_and_averages_are_refused(best, val, opened):
    with pytest.raises(InputError, match="unknown protocol 'ocnett'; did you mean 'ocnet'"):
        opened(best, val, "--protocol", "ocnett")
    with pytest.raises(InputError, match="--average: average is 'votes'; allowed: probabilities, logits, exp"):
        opened(best, val, "--average", "votes")


def test_other_classes_rows_without_labels_and_foreign_files_are_refused(best, val, opened, tmp_path, monkeypatch):
    checkpoint = Checkpoint.read(best, mapped=True)
    other = replace(checkpoint, classes=("sky", *checkpoint.classes[1:]))
    with pytest.raises(InputError, match="they must be the same, in this order"):
        plan_evaluation(best, other, val)
    manifest = open_shards(val).manifest
    with pytest.raises(InputError, match="labelled: False: nothing to score"):
        check_labels(best, checkpoint, val, replace(manifest, labelled=False))
    torch.save({"format": 99}, tmp_path / "new.pt")
    with pytest.raises(InputError, match="has checkpoint format 99, this version reads 1"):
        opened(tmp_path / "new.pt", val, "--protocol", "single")


@pytest.mark.parametrize("there", [False, True])
def test_paths_that_are_missing_are_refused_without_torch(there, tmp_path):
    path = tmp_path / "best.pt"
    if there:
        path.write_bytes(b"")
    code = f"""
import sys
from pipelines import evaluate
from pipelines.base.door import run
sys.argv = ["evaluate", {str(path)!r}, {str(tmp_path / "no_shards")!r}]
try:
    run(evaluate.main)
finally:
    print(sorted({{"torch", "ray"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2, done.stderr
    assert done.stdout == "[]\n"
    assert ("no such folder" if there else f"no checkpoint {path}") in done.stderr


@pytest.mark.parametrize(("window", "searches"), [(None, False), ((32, 32), True)])
@pytest.mark.parametrize("attention", [True, False])
def test_cudnn_plans_only_where_sizes_stay(window, searches, attention, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(attention)
    try:
        with sizes_that_vary(Inference("slide" if window else "whole", window)):
            assert torch.backends.cudnn.benchmark is searches
            assert torch.backends.cuda.cudnn_sdp_enabled() is (searches and attention)
        assert torch.backends.cudnn.benchmark is True
        assert torch.backends.cuda.cudnn_sdp_enabled() is attention
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
