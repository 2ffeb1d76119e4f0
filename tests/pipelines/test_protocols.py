"""Protocols: what their names mean, what they count, and what a stage's end makes of them."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from datasets.manifest import read_manifest
from pipelines.base.errors import InputError, Stopped
from pipelines.cluster.sizes import Sizes
from pipelines.driver.checks import check_model
from pipelines.driver.planned import plan_stages
from pipelines.driver.run import run_recipe
from pipelines.feed.plan import open_shards
from pipelines.recipes.bundled import names_in
from pipelines.recipes.model import build_model, inference_by
from pipelines.recipes.protocols import MEASURES, PROTOCOLS, describe
from pipelines.recipes.reading import RECIPES, load_recipe
from pipelines.recipes.recipe import fingerprint
from pipelines.runs.checkpoint import Checkpoint, Progress
from pipelines.runs.folder import RunFolder
from pipelines.runs.record import read_record
from pipelines.scoring.counting import Halted, ImageCounts, Share, at_once, count_images, entries_of
from pipelines.scoring.evaluation import Wishes, evaluate_here, evaluate_on_ray, plan_evaluation
from pipelines.training import closing
from segmodels.inference import Inference, protocol
from segmodels.metrics import IGNORE, scores

CPU = Share(torch.device("cpu"))


@pytest.fixture
def val(shards):
    return str(shards / "voc12/val")


class Colours(nn.Module):
    """A model that classifies each pixel by its colour, one of K."""

    def __init__(self, classes=21):
        super().__init__()
        self.num_classes, self.window = classes, None
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 100.0))

    def forward(self, image):
        level = image.sum(1, keepdim=True) / 768 * self.num_classes
        return {"logits": -((level - torch.arange(self.num_classes).view(1, -1, 1, 1) - 0.5) ** 2)}


def test_counts_by_hand():
    mask = torch.tensor([[[0, 0, IGNORE]], [[1, 2, 2]], [[IGNORE, IGNORE, IGNORE]]], dtype=torch.uint8)
    guess = torch.tensor([[[0, 1, 2]], [[1, 2, 2]], [[0, 1, 2]]])
    counts = ImageCounts(3, entries_of(guess, mask, [7, 4, 5], 3).numpy())
    assert counts.entries.tolist() == [[7, 0, 1], [7, 1, 1], [4, 4, 1], [4, 8, 2]]
    assert counts.total().tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 2]]
    found = scores(counts.total())
    assert found.iou == [1 / 2, 1 / 2, 1.0]
    assert found.miou == pytest.approx(2 / 3)
    assert found.accuracy == 4 / 5


@pytest.mark.parametrize("seed", range(5))
def test_the_counts_of_images_give_the_jaccard_index_of_the_whole_split(seed):
    from torchmetrics.classification import MulticlassJaccardIndex

    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 12))
    judge = MulticlassJaccardIndex(classes, ignore_index=IGNORE, average="macro")
    parts = []
    for row in range(4):
        size = rng.integers(1, 40, 2)
        mask = torch.from_numpy(rng.integers(0, classes, size))[None]
        guess = torch.from_numpy(rng.integers(0, classes, size))[None].where(
            torch.from_numpy(rng.random(size) < 0.3)[None], mask
        )
        mask[torch.from_numpy(rng.random(size) < 0.2)[None]] = IGNORE
        judge.update(guess, mask)
        parts.append(entries_of(guess, mask.to(torch.uint8), [row], classes).numpy())
    found = scores(ImageCounts(classes, np.concatenate(parts)).total())
    assert found.miou == pytest.approx(judge.compute().item(), abs=1e-6)


WAYS = [Inference(), Inference("slide", (32, 40), scales=(0.5, 1.0), flip=True), Inference(flip=True, average="logits")]


def test_counts_are_the_same_for_any_share_threads_and_batch(val, recipe_file):
    torch.manual_seed(0)
    model = build_model(load_recipe(recipe_file()), 21).eval()
    whole = count_images(model, val, WAYS, CPU, "fp32")
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        again = count_images(model, val, WAYS, CPU, "fp32", batch=5)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    for one, other in zip(whole, again, strict=True):
        assert np.array_equal(one.entries, other.entries)
    alone = [count_images(model, val, [way], CPU, "fp32")[0] for way in WAYS]
    assert all(np.array_equal(a.entries, w.entries) for a, w in zip(alone, whole, strict=True))


def test_each_image_has_its_own_counts_and_progress_tells_of_every_image(val):
    model, seen = Colours(), []
    (counts,) = count_images(model, val, [Inference()], CPU, "fp32", beat=seen.append)
    shards = open_shards(val)
    assert sum(seen) == len(shards)
    for row in (0, 5):
        pixels, mask = shards.sample(row)
        guess = model(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float())["logits"].argmax(1)[0].numpy()
        known = mask != IGNORE
        expected = np.bincount(21 * mask[known].astype(int) + guess[known], minlength=441).reshape(21, 21)
        assert np.array_equal(counts.of(row), expected)
    assert (np.diff(counts.entries[:, 0]) >= 0).all()


def test_a_row_that_is_not_read_is_noticed(val, monkeypatch):
    monkeypatch.setattr("pipelines.scoring.counting.validation_batches", lambda shards, batch: [[0], [1]])
    with pytest.raises(RuntimeError, match="each must be read exactly once"):
        count_images(Colours(), val, [Inference()], CPU, "fp32")


def test_results_keep_their_order_whichever_thread_ends_first():
    def work(part, rows):
        time.sleep(0.02 if rows == [0] else 0)
        return rows

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert list(at_once(work, iter("abcdef"), [[i] for i in range(6)], CPU)) == [[i] for i in range(6)]
    finally:
        torch.set_num_threads(before)


def test_a_signal_ends_the_counting_soon(val):
    calls = []

    def stop():
        calls.append(1)
        return 15 if len(calls) > 1 else 0

    with pytest.raises(Halted) as halted:
        count_images(Colours(), val, [Inference()], CPU, "fp32", stop=stop)
    assert halted.value.signal == 15
    assert len(calls) < len(open_shards(val))


def test_names_mean_what_the_papers_did():
    page = load_recipe("reconet/voc12_resnet101s")
    words = {name: protocol(inference_by(name, page)) for name in PROTOCOLS}
    six = "scales 0.75 1.0 1.25 1.5 1.75 2.0, flip"
    assert words["single"] == "slide 512x512 stride 342x342, scales 1.0, no flip"
    assert words["single-flip"] == "slide 512x512 stride 342x342, scales 1.0, flip"
    assert words["recipe"] == f"slide 512x512 stride 342x342, {six}"
    assert words["reconet"] == f"slide 512x512 stride 342x342, {six}, exponentials averaged"
    assert words["srnet"] == f"slide 512x512 stride 342x342, {six}, logits averaged"
    assert words["ocnet"] == f"whole, {six}, logits averaged"
    low = "scales 0.5 0.75 1.0 1.25 1.5 1.75, flip, logits averaged"
    assert words["ctnet"] == f"whole, {low}"
    assert words["ctnet-windows"] == f"slide 512x512 stride 342x342, {low}"
    whole = load_recipe("ocnet/ade20k_resnet101s")
    assert protocol(inference_by("single", whole)) == "whole, scales 1.0, no flip"
    assert protocol(inference_by("srnet", whole)).startswith("slide 520x520 stride 347x347")
    assert all(name in describe() for name in PROTOCOLS)


def test_every_published_page_that_is_scored_names_its_protocols():
    for name in names_in(RECIPES):
        paper = name.split("/")[0]
        if paper in ("ctnet", "ocnet", "reconet", "srnet"):
            recipe = load_recipe(name)
            scored = recipe.task == "segmentation" and any(stage.val for stage in recipe.stages)
            assert ("single" in recipe.protocols) == scored, name
            assert (paper in recipe.protocols) == (scored and len(recipe.inference.scales) > 1), name


def test_bad_protocols_are_refused_before_anything_starts(recipe_file, shards):
    with pytest.raises(InputError, match="unknown protocol 'recone'; did you mean 'reconet'"):
        load_recipe(recipe_file(), ["protocols=[single, recone]"])
    with pytest.raises(InputError, match="the protocol single is named twice"):
        load_recipe(recipe_file(), ["protocols=[single, single]"])
    bound = load_recipe(recipe_file(), ["head={name: reconet, channels: 8, rank: 2}", "inference={mode: slide}",
                                        "protocols=[single, ocnet]"])  # fmt: skip
    check_model(bound)
    with pytest.raises(InputError, match=r"protocol ocnet: the head reconet is bound to its crop .* sliding windows"):
        plan_stages(bound, str(shards))


def test_protocols_are_no_part_of_what_a_run_computes(recipe_file):
    page = recipe_file()
    assert fingerprint(load_recipe(page)) == fingerprint(load_recipe(page, ["protocols=[single]"]))


@pytest.mark.slow
def test_a_stage_ends_with_its_best_weights_scored_under_each_protocol(recipe_file, tmp_path, capsys, monkeypatch):
    import mlflow

    monkeypatch.setitem(PROTOCOLS, "srnet", replace(PROTOCOLS["srnet"], scales=(0.5, 1.0)))  # the rest takes long
    words = ["name=ends", "protocols=[single, srnet]", "measures=[boundary, strata, calibration]", "inference.batch=1"]
    (result,) = run_recipe(load_recipe(recipe_file(), words))
    shown = capsys.readouterr().out
    assert set(result.tests) == {"single", "srnet"}
    assert result.tests["single"]["miou"] == result.best
    assert result.tests["srnet"]["protocol"] == ("slide 32x32 stride 22x22, scales 0.5 1.0, flip, logits averaged")
    assert result.tests["srnet"]["miou"] != result.tests["single"]["miou"]
    place = RunFolder(tmp_path / "out/runs/ends").stage("first")
    (line,) = [line for line in read_record(place.record)[0] if line["kind"] == "test"]
    assert line["weights"] == result.best_step
    counts = ImageCounts(21, np.load(place.image_counts("srnet")))
    assert np.array_equal(counts.total(), np.load(place.test("srnet")))
    assert scores(counts.total()).miou == result.tests["srnet"]["miou"]
    assert "test srnet: mIoU" in shown
    span = "  ".join(f"{result.tests['srnet'][key] * 100:.2f}" for key in ("miou", "miou_low", "miou_high"))
    assert f"first  srnet     {span}" in shown
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/out/mlflow.db")
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = {run.info.run_name: run for run in client.search_runs(experiments)}
    metrics = runs["ends/first"].data.metrics
    for key, name in {"miou": "mIoU", "accuracy": "pixel_accuracy", "mean_accuracy": "mean_accuracy",
                      "fwiou": "fwIoU", "mean_f1": "mF1", "miou_low": "mIoU_low",
                      "miou_high": "mIoU_high"}.items():  # fmt: skip
        assert metrics[f"test/srnet/{name}"] == pytest.approx(result.tests["srnet"][key] * 100)
    measured = {f"test/srnet/{key}": value for key, value in line["tests"]["srnet"]["measured"].items()}
    assert {"test/srnet/boundaryF_3px", "test/srnet/recall_large", "test/srnet/ECE"} <= measured.keys()
    known = {key: value * 100 for key, value in measured.items() if value is not None}
    assert {key: metrics[key] for key in known} == pytest.approx(known)
    assert runs["ends"].data.metrics["final/test/srnet/mIoU"] == metrics["test/srnet/mIoU"]
    run = runs["ends/first"].info.run_id
    files = {file.path for file in client.list_artifacts(run, "test/srnet")}
    names = ("confusion.png", "iou.png", "iou_table.json", "calibration-srnet.png", "measures.txt")
    assert files == {f"test/srnet/{name}" for name in names}
    text = Path(client.download_artifacts(run, "test/srnet/measures.txt", str(tmp_path))).read_text()
    assert text.count("slide 32x32 stride 22x22") == 3  # each measure says under which protocol
    assert "calibration: expected error" in text
    table = json.loads(Path(client.download_artifacts(run, "test/srnet/iou_table.json", str(tmp_path))).read_text())
    assert "IoU_percent" in table["columns"]


@pytest.mark.slow
def test_a_stage_that_was_stopped_while_it_was_scored_is_scored_by_the_same_command(recipe_file, monkeypatch):
    recipe = load_recipe(recipe_file(), ["name=halts", "protocols=[single]"])

    def halted(*args):
        raise Halted(15)

    with monkeypatch.context() as patch:
        patch.setattr(closing, "count_images", halted)
        with pytest.raises(Stopped) as stopped:
            run_recipe(recipe)
    assert stopped.value.code == 143
    (result,) = run_recipe(recipe)
    assert result.steps == 5
    assert result.tests["single"]["miou"] == pytest.approx(result.best, abs=1e-3)


@pytest.fixture
def best(recipe_file, val, tmp_path):
    """A checkpoint of random weights."""
    manifest, recipe = read_manifest(val), load_recipe(recipe_file())
    torch.manual_seed(0)
    Checkpoint(
        model=build_model(recipe, len(manifest.classes)).state_dict(), recipe=recipe, stage="first", step=1,
        progress=Progress(), classes=manifest.classes, palette=manifest.palette, seen=np.zeros(0, np.int64),
    ).write(tmp_path / "best.pt")  # fmt: skip
    return tmp_path / "best.pt"


@pytest.mark.ray
def test_workers_count_what_one_process_counts(ray_session, best, val):
    checkpoint = Checkpoint.read(best, mapped=True)
    task = plan_evaluation(best, checkpoint, val, Wishes(["single", "single-flip"], measures=MEASURES))
    here = evaluate_here(task, checkpoint)
    told = []
    there = evaluate_on_ray(task, Sizes(2, 0, 1.0, 0, 1.0), told.append)
    assert list(there) == ["single", "single-flip"]
    for name, counts in here.items():
        assert np.array_equal(counts.entries, there[name].entries)
        assert np.array_equal(counts.sums, there[name].sums)
        assert counts.measures == there[name].measures == MEASURES
        assert there[name].sums.sum() > 0
    assert told == sorted(told)
    assert max(told, default=0) <= 11
