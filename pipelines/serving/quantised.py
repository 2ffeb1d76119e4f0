"""An ONNX file with weights of 8 bits, and what that costs: the mIoU of both files on labelled shards."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.base.files import replacing
from pipelines.base.machine import cores
from pipelines.recipes.protocols import OWN
from pipelines.scoring.evaluation import Task
from pipelines.scoring.validate import validate
from pipelines.serving.images import rows_of
from pipelines.serving.program import open_onnx, quiet
from pipelines.serving.running import ROUNDS, Run, runner, seconds
from segmodels.metrics import scores
from segmodels.segmentor import Segmentor

SUFFIX = ".int8.onnx"


class Scored(nn.Module):
    """An ONNX file in the place of its model, so that both are scored by the same code.

    Its "logits" are logarithms of its probabilities, whose softmax these are.
    """

    mean: Tensor

    def __init__(self, path: Path, model: Segmentor) -> None:
        super().__init__()
        self.session = open_onnx(path, cores())
        self.num_classes, self.window = model.num_classes, model.program_window
        self.register_buffer("mean", model.mean)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        pixels = np.ascontiguousarray(image.round().to(torch.uint8).numpy())
        given = torch.from_numpy(self.session.run(None, {"image": pixels})[0])
        if given.dtype == torch.uint8:
            given = nn.functional.one_hot(given.long(), self.num_classes).movedim(3, 1).float()
        return {"logits": given.log()}


def quantise(path: Path, model: Segmentor, task: Task) -> list[str]:
    """Write a file with weights of 8 bits next to an ONNX file; activations are quantised as it runs.

    Args:
        path: the ONNX file.
        model: that it was made of.
        task: the labelled shards, and how both are scored on them.

    Returns:
        Size, speed and mIoU of both, with the protocol, as lines.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    small = path.with_name(path.stem + SUFFIX)
    with replacing(small) as draft:
        with quiet():  # onnxruntime has its convolution of integers for unsigned weights only
            quantize_dynamic(path, draft, weight_type=QuantType.QUInt8)
        found = [score(file, model, task) for file in (path, draft)]
        image = rows_of(task.uri, model)[0]
        times = medians_ms([runner(file, "onnx") for file in (path, draft)], image)
        sizes = [file.stat().st_size / 2**20 for file in (path, draft)]
    names = ("float32", "int8")
    rows = [
        f"{name}: mIoU {miou * 100:.2f} %, {size:.1f} MiB, {ms:.1f} ms an image"
        for name, miou, size, ms in zip(names, found, sizes, times, strict=True)
    ]
    gain = (found[1] - found[0]) * 100
    return [*rows, f"int8 against float32: {gain:+.2f} points of mIoU ({task.words(OWN)}); int8 is {small.name}"]


def score(path: Path, model: Segmentor, task: Task) -> float:
    """mIoU of an ONNX file, 0 to 1."""
    counts = validate(Scored(path, model), task.uri, task.protocols[OWN], torch.device("cpu"), 0, 1, "fp32")  # type: ignore[arg-type]
    return scores(torch.from_numpy(counts)).miou


def medians_ms(runs: Sequence[Run], image: np.ndarray) -> list[float]:
    """Of one image, by each in turn, on one thread, after a first one that is not counted."""
    times = [[seconds(run, image) for run in runs] for _ in range(1 + ROUNDS)][1:]
    return [1000 * statistics.median(taken) for taken in zip(*times, strict=True)]
