"""Costs as metrics of a run: at its crop and at the papers' sizes, on the stage's run and next to `final/mIoU`."""

import pytest
from mlflow import MlflowClient

from pipelines.driver import costs
from pipelines.driver.run import run_recipe
from pipelines.recipes.model import build_model, meta_model
from pipelines.recipes.reading import load_recipe
from segmodels.cost import PAPER_SIZES, measure

TRUNK = ["backbone.name=test_resnet", "backbone.weights=null", "head.channels=16"]


def counted(recipe):
    return costs.cost_metrics(recipe, 21, measure(meta_model(recipe, 21), recipe.view.crop))


def test_a_model_of_any_size_is_counted_at_its_crop_and_at_the_papers_sizes():
    recipe = load_recipe("srnet/camvid_resnet50s", [*TRUNK, "view.crop=[64,96]"])
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
    assert metrics["cost/GMACs_512x512"] == measure(build_model(large, 21), (512, 512)).macs / 1e9
    assert metrics["cost/params_M"] == counted(small)["cost/params_M"] != counted(large)["cost/params_M"]


def test_sizes_that_a_head_does_not_take_are_left_out(monkeypatch):
    def picky(model, image):
        if image.shape[-1] == 8:
            raise ValueError("of 9 pixels or more")
        return 5 * 10**9

    monkeypatch.setattr(costs, "PAPER_SIZES", ((8, 8), (256, 256)))
    monkeypatch.setattr(costs, "COUNTED", {})
    monkeypatch.setattr(costs, "conv_matmul_macs", picky)
    metrics = counted(load_recipe("srnet/camvid_resnet50s", [*TRUNK, "view.crop=[128,128]"]))
    assert set(metrics) == {"cost/params_M", "cost/GMACs_128x128", "cost/GMACs_256x256"}
    assert metrics["cost/GMACs_256x256"] == 5


def test_mlflow_has_them_next_to_the_scores_once(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file())
    run_recipe(recipe)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/out/mlflow.db")
    runs = {
        run.info.run_name: run
        for run in client.search_runs([client.get_experiment_by_name("context-heads").experiment_id])
    }
    parent, stage = runs["tiny"], runs["tiny/first"]
    wanted = counted(recipe)
    for run, score in ((parent, "final/mIoU"), (stage, "val/mIoU")):
        assert {key: value for key, value in run.data.metrics.items() if key.startswith("cost/")} == pytest.approx(
            wanted
        )
        assert score in run.data.metrics
        assert [(p.step, p.timestamp) for p in client.get_metric_history(run.info.run_id, "cost/params_M")] == [
            (0, run.info.start_time)
        ]
    assert stage.data.params["protocol"].startswith("whole, scales 1.0, no flip")
    assert stage.data.params["shards.val.official_rows"] == "1449"  # of which the test's shards have some
