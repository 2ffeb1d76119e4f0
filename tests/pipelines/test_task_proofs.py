"""The bundled recipes of the other tasks learn what their held-out images show, in less than their whole training."""

import pytest

from pipelines.driver.run import run_recipe
from pipelines.recipes.reading import load_recipe

# recipe -> its stage, steps, score, and shares that it reaches and that it has untrained at most
PROOFS = {
    "sample_classes": ("classify", 45, "top-1", 0.8, 0.35),
    "sample_detection": ("detect", 180, "box AP50", 0.5, 0.05),
    "sample_panoptic": ("panoptic", 180, "PQ", 0.15, 0.02),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name == "sample_panoptic" else []) for name in PROOFS]
)
def test_the_sample_is_learnt(name, tmp_path):
    stage, steps, score, least, untrained = PROOFS[name]
    shorter = [f"stages.{stage}.epochs=null", f"stages.{stage}.steps={steps}", f"stages.{stage}.val_every=0"]
    recipe = load_recipe(name, [f"output={tmp_path}", "workers.count=0", "feed=torch", "overlays=0", *shorter])
    (result,) = run_recipe(recipe)
    assert result.named[score] >= least
    assert (result.miou_before or 0) <= untrained
