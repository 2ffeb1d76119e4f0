"""From a checkpoint to a file that runs without this project, compared with its model before it is in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import segmodels
from pipelines.base.errors import InputError, RunFailed
from pipelines.base.files import replacing
from pipelines.recipes.model import inference_of
from pipelines.recipes.tasks import SEGMENTATION, refuse_task
from pipelines.runs.checkpoint import Checkpoint, load
from pipelines.serving.program import Facts, axes, trace, write_onnx, write_torch
from pipelines.serving.running import Agreement, Run, compare, eager, runner
from segmodels.files import for_use, write_safetensors
from segmodels.inference import Inference
from segmodels.loading import segmentor_of
from segmodels.segmentor import Segmentor


@dataclass(frozen=True)
class Source:
    """What is exported: a checkpoint as a file holds it, read, and its model on the CPU in evaluation mode."""

    content: Mapping[str, Any]
    checkpoint: Checkpoint
    model: Segmentor

    @property
    def head(self) -> str:
        """The head's name."""
        return self.checkpoint.recipe.head["name"]

    @property
    def inference(self) -> Inference:
        """How a program predicts: as the recipe does, but at one scale and unflipped; by windows where it is bound."""
        recipe, bound = self.checkpoint.recipe, self.model.program_window
        same = replace(inference_of(recipe, recipe.inference), scales=(1.0,), flip=False)
        return same if bound in (None, same.window) else replace(same, mode="slide", window=bound, stride=None)

    def facts(self, output: str) -> Facts:
        """What a file says of itself."""
        known, inference = self.checkpoint, self.inference
        red, green, blue = self.model.mean.flatten().round().int().tolist()
        return Facts(
            classes=known.classes, palette=known.palette, output=output, fill=(red, green, blue),
            source=f"{known.recipe.name}, stage {known.stage}, step {known.step}",
            window=inference.window, stride=inference.stride,
        )  # fmt: skip


def open_source(path: Path) -> Source:
    """A checkpoint that a training wrote.

    Raises:
        InputError: as `load`, or the file is one for use.
    """
    content = load(path, mapped=True)
    if "state" not in content:
        raise InputError(
            f"{path} is a file for use, without the notes of the training that a card shows. Give the checkpoint that "
            "it was made of: RUN/STAGE/best.pt"
        )
    refuse_task(content["recipe"].get("task", SEGMENTATION), f"export {path}:")
    return Source(content, Checkpoint.of(content), segmentor_of(content, torch.device("cpu")))


def export_file(source: Source, form: str, output: str, out: Path, images: Sequence[np.ndarray]) -> Agreement:
    """Write a checkpoint's model in a format; the file is there, and agrees with the model, or nothing is.

    Args:
        source: the checkpoint.
        form: a name of `FORMATS`.
        output: "classes" or "probabilities".
        out: the file.
        images: to compare on, RGB uint8 (1, 3, H, W) each.

    Raises:
        RunFailed: what was written is not the model.
    """
    with replacing(out) as draft:
        if form == "safetensors":
            write_safetensors(draft, source.content)
            return compare(eager(source.model, output), reread(source, draft, output), images, output)
        traced = trace(source.model, output)
        if form == "onnx":
            write_onnx(traced, draft, source.facts(output), axes(source.model))
        else:
            write_torch(traced, draft, source.facts(output))
        return compare(eager(source.model, output), runner(draft, form), images, output)


def reread(source: Source, path: Path, output: str) -> Run:
    """The model of a safetensors file.

    Raises:
        RunFailed: a weight is another one.
    """
    found = segmodels.load(path, device="cpu").segmentor
    own, meant = found.state_dict(), for_use(source.content)["model"]
    if odd := [name for name, value in meant.items() if not torch.equal(own[name], value)]:
        raise RunFailed(f"{len(odd)} weights were not written as they are, first {odd[:3]}. Nothing was written")
    return eager(found, output)
