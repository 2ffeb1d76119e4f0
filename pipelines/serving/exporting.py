"""From a checkpoint to a file that runs without this project, compared with its model before it is in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipelines.base.errors import RunFailed
from pipelines.base.files import replacing
from pipelines.recipes.model import build_model, inference_of
from pipelines.recipes.recipe import to_yaml
from pipelines.runs.checkpoint import Checkpoint
from pipelines.serving.program import Facts, axes, trace, write_onnx, write_safetensors, write_torch
from pipelines.serving.running import Agreement, Run, compare, eager, runner
from segmodels.inference import Inference
from segmodels.segmentor import Segmentor


def model_of(checkpoint: Checkpoint) -> Segmentor:
    """The checkpoint's model, on the CPU, in evaluation mode."""
    model = build_model(checkpoint.recipe, len(checkpoint.classes))
    model.load_state_dict(checkpoint.model)
    return model.eval()


def inference_at_scale_1(checkpoint: Checkpoint) -> Inference:
    """How a program predicts: as the recipe does, but at one scale and unflipped."""
    whole = inference_of(checkpoint.recipe, checkpoint.recipe.inference)
    return replace(whole, scales=(1.0,), flip=False)


def facts_of(checkpoint: Checkpoint, model: Segmentor, output: str) -> Facts:
    """What a file says of itself."""
    inference = inference_at_scale_1(checkpoint)
    red, green, blue = model.mean.flatten().round().int().tolist()
    return Facts(
        classes=checkpoint.classes, palette=checkpoint.palette, output=output, fill=(red, green, blue),
        source=f"{checkpoint.recipe.name}, stage {checkpoint.stage}, step {checkpoint.step}",
        window=inference.window, stride=inference.stride,
    )  # fmt: skip


def export_file(
    checkpoint: Checkpoint,
    model: Segmentor,
    form: str,
    output: str,
    out: Path,
    images: Sequence[np.ndarray],
    threads: int,
) -> Agreement:
    """Write a checkpoint's model in a format; the file is there, and agrees with the model, or nothing is.

    Args:
        checkpoint: whose recipe and classes the file names.
        model: of the checkpoint, see `model_of`.
        form: a name of `FORMATS`.
        output: "classes" or "probabilities".
        out: the file.
        images: to compare on, RGB uint8 (1, 3, H, W) each.
        threads: of the comparison.

    Raises:
        InputError: the model has no such form.
        RunFailed: what was written is not the model.
    """
    facts = facts_of(checkpoint, model, output)
    with replacing(out) as draft:
        if form == "safetensors":
            write_safetensors(checkpoint.model, draft, facts, to_yaml(checkpoint.recipe))
            return compare(eager(model, output), rebuilt(checkpoint, draft, output), images, output, threads)
        traced = trace(model, output, max(model.backbone.strides))
        if form == "onnx":
            write_onnx(traced, draft, facts, axes(model))
        else:
            write_torch(traced, draft, facts)
        return compare(eager(model, output), runner(draft, form, threads), images, output, threads)


def rebuilt(checkpoint: Checkpoint, path: Path, output: str) -> Run:
    """A model of the weights that were written.

    Raises:
        RunFailed: a weight is another one.
    """
    from safetensors.torch import load_file

    found = load_file(path)
    if odd := [name for name, value in checkpoint.model.items() if not torch.equal(found[name], value)]:
        raise RunFailed(f"{len(odd)} weights were not written as they are, first {odd[:3]}. Nothing was written")
    return eager(model_of(replace(checkpoint, model=found)), output)
