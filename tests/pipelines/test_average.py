"""The running average of the weights: by hand, over a resume, and handed on."""

import pytest
import torch

from pipelines.driver.run import run_recipe
from pipelines.recipes.reading import load_recipe
from pipelines.runs import checkpoint
from pipelines.runs.folder import step_name
from pipelines.runs.record import read_record

OPTIM = {"lr": 0.05, "head_lr_scale": 1, "ema": 0.6}
STAGES = [
    {"name": "first", "train": "voc12/train", "val": "voc12/val", "steps": 4, "val_every": 0},
    {"name": "second", "train": "voc12/trainval", "steps": 1},
]


@pytest.mark.slow
def test_the_average_is_what_hand_arithmetic_gives_is_handed_on_and_survives_a_resume(recipe_file, tmp_path):
    page = recipe_file(optim=OPTIM, stages=STAGES, checkpoint_minutes=0.0, keep_last=9)
    run_recipe(recipe := load_recipe(page))
    folder = tmp_path / "out/runs/tiny/first"
    kept = [checkpoint.load(folder / "checkpoints" / step_name(step)) for step in (1, 2, 3, 4)]
    name = "backbone.trunk.conv1.0.weight"
    average = kept[0]["trained"][name]  # the first step's weights begin it
    for content, decay in zip(kept[1:], [1 - 2 ** (-2 / 3), 1 - 3 ** (-2 / 3), 0.6], strict=True):
        average = decay * average + (1 - decay) * content["trained"][name]
        torch.testing.assert_close(content["model"][name], average)
    assert (kept[3]["model"][name] - kept[3]["trained"][name]).abs().max() > 1e-4
    best = checkpoint.load(folder / "best.pt")
    assert best["step"] in (0, 4)
    assert best["step"] == 0 or torch.equal(best["model"][name], kept[3]["model"][name])
    text = next(line["text"] for line in read_record(folder.parent / "second/record.jsonl")[0] if "text" in line)
    assert "starts from the weights of first (step 4)" in text

    for path in (*sorted((folder / "checkpoints").glob("*.pt"))[-2:], folder / "done.json", folder / "outcome.json"):
        path.unlink()
    run_recipe(recipe)
    again = checkpoint.load(folder / "checkpoints" / step_name(4))
    for part in ("model", "trained"):
        assert all(torch.equal(kept[3][part][key], again[part][key]) for key in again[part])
