"""The best weights of a stage as a folder that MLflow loads, serves and registers; see `packed.py` for what it runs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from pipelines.runs.checkpoint import Checkpoint
from pipelines.runs.folder import StageFolder
from pipelines.runs.mlflow_models import pack
from pipelines.runs.results import final_weights
from pipelines.serving.card import Written, model_card
from pipelines.serving.exporting import export_file, open_source
from pipelines.serving.images import drawn, scenes
from pipelines.serving.program import check_form, least
from pipelines.serving.running import Agreement

SCRIPT = Path(__file__).with_name("packed.py")
EXAMPLE = (48, 64)  # pixels, h and w, of the example that is kept with a model
FORM, OUTPUT = "onnx", "probabilities"  # windows are averaged


def pack_stage(place: StageFolder) -> Agreement:
    """Write the MLflow model of a finished stage into its folder, whole or not at all.

    Args:
        place: the stage's.

    Returns:
        How the program agrees with the model on scenes of the bundled sample.

    Raises:
        SetupError: a package that the export needs is missing.
        RunFailed: what was written is not the model.
    """
    check_form(FORM)
    source = open_source(final_weights(place))
    checkpoint = source.checkpoint
    images = scenes(source.model, checkpoint.recipe.view.crop)
    with tempfile.TemporaryDirectory(prefix=f".{place.model.name}.", suffix=".tmp", dir=place.path) as draft:
        program, card = Path(draft) / "model.onnx", Path(draft) / place.card.name
        found = export_file(source, FORM, OUTPUT, program, images)
        written = Written(program.name, FORM, OUTPUT, source.inference, found, least(source.model))
        card.write_text(model_card(checkpoint, place, written))
        pack(place.model, SCRIPT, {"program": program, "card": card}, example(), about(checkpoint))
    return found


def example() -> np.ndarray:
    """A scene of the bundled sample, RGB uint8 (1, H, W, 3)."""
    return drawn(EXAMPLE, 0)[None]


def about(checkpoint: Checkpoint) -> dict[str, object]:
    """What the model's page says of it."""
    return {
        "run": str(checkpoint.recipe.name), "stage": checkpoint.stage, "step": checkpoint.step,
        "head": checkpoint.recipe.head["name"], "backbone": checkpoint.recipe.backbone.name,
        "classes": list(checkpoint.classes),
    }  # fmt: skip
