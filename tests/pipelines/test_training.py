"""The walk in this process: train, resume, stop on nan, refuse what would mislead."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from pipelines import checkpoint
from pipelines.door import ROOT, RunFailed, SetupError
from pipelines.loop import micro_batch
from pipelines.recipe import RecipeError, load_recipe
from pipelines.record import read_record
from pipelines.stages import locked, run_recipe

TWO_STAGES = [
    {"name": "first", "train": "voc12_aug/train", "val": "voc12/val", "steps": 4, "val_every": 0},
    {"name": "second", "train": "voc12/trainval", "steps": 3, "lr": 0.001},
]


def weights(folder, stage="first", step=5):
    return checkpoint.load(checkpoint.step_file(folder / "out/runs/tiny" / stage / "checkpoints", step))["model"]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_chain_runs_hands_its_weights_on_and_ends_in_a_table(recipe_file, tmp_path, capsys):
    results = run_recipe(load_recipe(recipe_file(stages=TWO_STAGES)))
    shown = capsys.readouterr().out
    assert [r["stage"] for r in results] == ["first", "second"]
    assert results[0]["miou_before"] is not None
    assert results[1]["miou"] is None
    assert "mIoU before" in shown
    assert "whole, scales 1.0, no flip" in shown
    assert "starts from the weights of first (step 4), classifier included" in shown
    assert f"sqlite:///{tmp_path / 'out/mlflow.db'}" in shown
    folder = tmp_path / "out/runs/tiny"
    assert (folder / "first/best.pt").is_file()
    before = checkpoint.load(folder / "first/checkpoints/step-00000004.pt")["model"]
    after = checkpoint.load(folder / "second/checkpoints/step-00000003.pt")["model"]
    near = max(float((after[k] - before[k]).abs().max()) for k in before if k.endswith("conv1.weight"))
    assert 0 < near < 0.05  # the second stage began at the first one's end


def test_a_finished_run_does_nothing_and_says_so(recipe_file, capsys):
    recipe = load_recipe(recipe_file())
    first = run_recipe(recipe)
    capsys.readouterr()
    assert run_recipe(recipe) == first
    assert "is finished, nothing to do" in capsys.readouterr().out


def test_the_loss_falls(recipe_file, tmp_path):
    stages = [{"name": "first", "train": "voc12/train", "steps": 40}]
    run_recipe(load_recipe(recipe_file(stages=stages, optim={"lr": 0.05, "warmup": 2, "head_lr_scale": 1})))
    losses = [line["loss"] for line in read_record(tmp_path / "out/runs/tiny/first/record.jsonl")[0] if "loss" in line]
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_a_killed_driver_continues_in_mid_epoch_to_the_same_weights(recipe_file, tmp_path):
    recipe = recipe_file(checkpoint_minutes=0.0)  # 18 rows, batch 4: step 3 lies in the middle of an epoch
    run_recipe(load_recipe(recipe, ["name=whole"]))
    whole = checkpoint.load(tmp_path / "out/runs/whole/first/checkpoints/step-00000005.pt")["model"]
    code = (
        "import os; from pipelines import checkpoint, loop; from pipelines.recipe import load_recipe;"
        "from pipelines.stages import run_recipe; save = checkpoint.save\n"
        "def die(path, content):\n"
        "    save(path, content)\n"
        "    if path.name == 'step-00000003.pt': os.kill(os.getpid(), 9)\n"
        f"checkpoint.save = die; run_recipe(load_recipe({str(recipe)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == -9, done.stderr
    run_recipe(load_recipe(recipe))
    assert equal(weights(tmp_path), whole)
    steps = [line["step"] for line in read_record(tmp_path / "out/runs/tiny/first/record.jsonl")[0] if "loss" in line]
    assert steps == [1, 2, 3, 4, 5]  # none twice, none lost


def test_accumulation_gives_the_gradients_of_the_whole_batch(recipe_file, tmp_path, monkeypatch):
    """With BatchNorm frozen and no dropout, parts with unlike numbers of labelled pixels add up to the whole."""

    def train(self, mode=True):
        torch.nn.Module.train(self, mode)
        for module in self.modules():
            if isinstance(module, torch.nn.BatchNorm2d | torch.nn.Dropout2d):
                module.training = False
        return self

    monkeypatch.setattr("segmodels.segmentor.Segmentor.train", train, raising=False)
    page = {
        "stages": [{"name": "first", "train": "voc12/train", "steps": 2}],
        "optim": {"lr": 0.01, "head_lr_scale": 1},
    }
    results = []
    for name, micro in (("whole", "null"), ("parts", "1")):
        run_recipe(load_recipe(recipe_file(**page), [f"name={name}", f"workers.micro_batch={micro}"]))
        path = tmp_path / f"out/runs/{name}/first/checkpoints/step-00000002.pt"
        results.append(checkpoint.load(path)["model"])
    worst = max(float((results[0][k] - results[1][k]).abs().max()) for k in results[0])
    assert worst < 1e-5


def test_micro_batches_divide_the_share():
    recipe = load_recipe("sample", ["batch=12", "workers.micro_batch=5"])
    assert [micro_batch(recipe, world) for world in (1, 2, 3)] == [4, 3, 4]


def test_nan_stops_with_the_samples_named(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file(optim={"lr": 1e9, "head_lr_scale": 1}, stages=[
        {"name": "first", "train": "voc12/train", "steps": 12}]))  # fmt: skip
    with pytest.raises(RunFailed, match=r"the loss became (nan|inf) at step \d+, on the samples 2") as caught:
        run_recipe(recipe)
    assert str(caught.value).count("2") > 3
    assert not list((tmp_path / "out/runs/tiny/first").glob("checkpoints/*.pt"))


def test_scoring_on_trained_rows_is_refused(recipe_file):
    stage = {"name": "first", "train": "voc12/trainval", "val": "voc12/val", "steps": 2}
    with pytest.raises(RecipeError, match="11 of the 11 images of voc12/val are trained on"):
        run_recipe(load_recipe(recipe_file(stages=[stage])))
    later = {"name": "second", "train": "voc12_aug/train", "val": "voc12/val", "steps": 2}
    with pytest.raises(RecipeError, match=r"by this stage .* or one before it"):
        run_recipe(load_recipe(recipe_file(stages=[{**stage, "val": None}, later])))


def test_another_recipe_under_the_same_name_is_refused(recipe_file):
    run_recipe(load_recipe(recipe_file()))
    with pytest.raises(RecipeError, match=r"another recipe \(head.channels: 16 -> 8\)"):
        run_recipe(load_recipe(recipe_file(), ["head.channels=8"]))


def test_two_processes_cannot_train_one_run(tmp_path):
    code = f"import filelock, sys; lock = filelock.FileLock({str(tmp_path / '.lock')!r}); lock.acquire();"
    code += "print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(SetupError, match="another process trains"), locked(tmp_path):
            pass
        other.stdin.close()
    with locked(tmp_path):
        pass


def test_other_classes_get_a_fresh_classifier(recipe_file, tmp_path, shards, capsys):
    other = tmp_path / "renamed"
    shutil.copytree(shards / "voc12" / "train", other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["classes"][3] = "dragon"
    (other / "manifest.json").write_text(json.dumps(manifest))
    stages = [
        {"name": "first", "train": "voc12/train", "steps": 2},
        {"name": "second", "train": str(other), "steps": 2},
    ]
    run_recipe(load_recipe(recipe_file(stages=stages)))
    assert (
        "initialised anew: head.classify.1.weight, head.classify.1.bias, aux.classify.1.weight"
        in capsys.readouterr().out
    )


def test_a_validation_that_counts_other_pixels_than_the_manifest_stops(recipe_file, tmp_path, shards):
    other = tmp_path / "miscounted"
    shutil.copytree(shards / "voc12" / "val", other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["histogram"][0] += 1
    (other / "manifest.json").write_text(json.dumps(manifest))
    stage = {"name": "first", "train": "voc12/train", "val": str(other), "steps": 2}
    with pytest.raises(RunFailed, match="each must be read exactly once"):
        run_recipe(load_recipe(recipe_file(stages=[stage])))
