"""Costs as metrics of a run: at its crop and at the papers' sizes, on the stage's run and next to `final/mIoU`."""

import json

import pytest
import torch

from pipelines.driver import costs
from pipelines.driver.jobs import about_stage
from pipelines.driver.planned import plan_stages
from pipelines.driver.weights import Weights
from pipelines.recipes.model import build_model, meta_model
from pipelines.recipes.reading import load_recipe
from pipelines.runs.folder import RunFolder
from pipelines.runs.mlflow_client import send_costs
from pipelines.runs.results import About
from pipelines.runs.tracker import Tracker
from segmodels.cost import PAPER_SIZES, measure

TRUNK = ["backbone.name=test_resnet", "backbone.weights=null", "head.channels=16"]


def counted(recipe):
    return costs.cost_metrics(recipe, 21, measure(meta_model(recipe, 21), recipe.view.crop))


def test_a_model_of_any_size_is_counted_at_its_crop_and_at_the_papers_sizes():
    recipe = load_recipe("srnet/camvid_resnet50s", [*TRUNK, "head.nodes=4", "view.crop=[64,96]"])
    metrics = counted(recipe)
    sizes = {(64, 96), *PAPER_SIZES}
    assert set(metrics) == {"cost/params_M", *(f"cost/GMACs_{h}x{w}" for h, w in sizes)}
    for h, w in ((64, 96), (512, 512)):
        model = meta_model(recipe, 21)
        assert metrics[f"cost/GMACs_{h}x{w}"] == measure(model, (h, w)).macs / 1e9
    assert metrics["cost/params_M"] == measure(meta_model(recipe, 21), (64, 96)).parameters / 1e6
    assert metrics["cost/GMACs_1024x2048"] == pytest.approx(8 * metrics["cost/GMACs_512x512"], rel=1e-3)


def test_a_bound_model_is_counted_as_if_each_size_were_its_crop():
    small = load_recipe("reconet/camvid_resnet50s", [*TRUNK, "head.rank=2", "view.crop=[64,64]"])
    large = load_recipe("reconet/camvid_resnet50s", [*TRUNK, "head.rank=2", "view.crop=[512,512]"])
    metrics = counted(small)
    with torch.device("meta"):
        built = build_model(large, 21)
    assert metrics["cost/GMACs_512x512"] == measure(built, (512, 512)).macs / 1e9
    own = sum(p.numel() for p in meta_model(small, 21).parameters()) / 1e6
    assert metrics["cost/params_M"] == own < sum(p.numel() for p in built.parameters()) / 1e6


def test_sizes_that_a_head_does_not_take_are_left_out(monkeypatch):
    def picky(model, image):
        if image.shape[-1] == 8:
            raise ValueError("of 9 pixels or more")
        return 5 * 10**9

    monkeypatch.setattr(costs, "PAPER_SIZES", ((8, 8), (256, 256)))
    monkeypatch.setattr(costs, "COUNTED", {})
    monkeypatch.setattr(costs, "conv_matmul_macs", picky)
    metrics = counted(load_recipe("srnet/camvid_resnet50s", [*TRUNK, "head.nodes=4", "view.crop=[128,128]"]))
    assert set(metrics) == {"cost/params_M", "cost/GMACs_128x128", "cost/GMACs_256x256"}
    assert metrics["cost/GMACs_256x256"] == 5


def test_mlflow_has_them_next_to_the_scores_once(recipe_file, shards, tmp_path):
    recipe = load_recipe(recipe_file())
    folder = tmp_path / "out/runs/tiny"
    (plan,) = plan_stages(recipe, str(shards), folder)
    place = RunFolder(folder).stage("first")
    about = about_stage(recipe, plan, Weights())
    about.write(place.about)
    tracker = Tracker(recipe, tmp_path / "out", folder)
    tracker.connect()
    stage = tracker.run_of(place)
    assert About.read(place.about).costs == about.costs == counted(recipe)
    for run in (stage, tracker.state["parent"]):
        found = tracker.client.get_run(run)
        assert found.data.metrics == pytest.approx(about.costs)
        send_costs(tracker.client, run, about.costs)  # again, as after a driver that died
        history = tracker.client.get_metric_history(run, "cost/params_M")
        assert [(point.step, point.timestamp) for point in history] == [(0, found.info.start_time)]
    params = tracker.client.get_run(stage).data.params
    assert params["protocol"].startswith("whole, scales 1.0, no flip")
    assert params["shards.val.official_rows"] == "1449"  # of which the test's shards have some


def test_notes_of_older_versions_have_no_costs(tmp_path):
    About({}, {}, [], "whole", 1).write(tmp_path / "about.json")
    page = json.loads((tmp_path / "about.json").read_text())
    del page["costs"]
    (tmp_path / "about.json").write_text(json.dumps(page))
    assert About.read(tmp_path / "about.json").costs == {}
