"""A model as one program: raw RGB in, class ids or probabilities out; in ONNX or as PyTorch's exported program."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.base.errors import InputError, SetupError
from pipelines.serving.padding import traceable_padding
from pipelines.serving.translations import table
from segmodels.segmentor import Segmentor

OPSET = 18  # the one that PyTorch's exporter writes by itself; another one would be converted from it
OUTPUTS = ("classes", "probabilities")
FORMATS = ("onnx", "torch", "safetensors")
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": (), "safetensors": ()}
CURE = "`uv sync --group export` installs what the export needs"
CELLS = (9, 14)  # of the last map that the example gives: more than a tile, and no multiple of the heads' partitions
MOST_CLASSES = 256  # that a uint8 tells apart


class Program(nn.Module):
    """One pass of a segmentor, normalisation inside, at scale 1.

    Args:
        model: in evaluation mode.
        output: "classes" or "probabilities".

    Shape: RGB uint8 (B, 3, H, W) -> classes uint8 (B, H, W), or probabilities float32 (B, K, H, W).
    """

    def __init__(self, model: Segmentor, output: str) -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, image: Tensor) -> Tensor:
        logits = self.model(image)["logits"]
        return logits.argmax(1).to(torch.uint8) if self.output == "classes" else logits.softmax(1)


@dataclass(frozen=True)
class Facts:
    """What a file says of itself, beside its weights.

    `window` and `stride`, (h, w) in pixels, are how an image is to be predicted: by windows, whose probabilities are
    averaged; None for whole. `fill` is the mean colour, with which smaller images are padded to a window.
    """

    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    output: str
    source: str
    fill: tuple[int, int, int]
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None

    def as_text(self) -> dict[str, str]:
        """Each fact as JSON, as the metadata of ONNX hold it."""
        return {name: json.dumps(value) for name, value in vars(self).items()}


def trace(model: Segmentor, output: str) -> torch.export.ExportedProgram:
    """The program of a model, with a free batch and, unless it is bound to its crop, a free size.

    Args:
        model: its weights stay where they are; it is put into evaluation mode.
        output: "classes" or "probabilities".

    Raises:
        InputError: more classes than a uint8 tells apart.
    """
    if output == "classes" and model.num_classes > MOST_CLASSES:
        raise InputError(
            f"--output classes gives uint8, which tells {MOST_CLASSES} classes apart, and this model has "
            f"{model.num_classes}. Give --output probabilities"
        )
    side = least(model)
    height, width = model.program_window or (CELLS[0] * side, CELLS[1] * side)
    image = torch.zeros(2, 3, height, width, dtype=torch.uint8)
    free = torch.export.Dim.DYNAMIC
    shapes = {"image": {axis: free if axis == 0 else free(min=side) for axis in axes(model)}}
    with torch.no_grad(), quiet(), traceable_padding(model):
        return torch.export.export(Program(model.eval(), output), (image,), dynamic_shapes=shapes)


def least(model: Segmentor) -> int:
    """Fewest pixels of a side: a program takes a map of one cell for another case than all larger ones."""
    return max(model.backbone.strides) + 1


def axes(model: Segmentor) -> dict[int, str]:
    """The free dimensions of the input, and their names."""
    return {0: "batch"} if model.program_window else {0: "batch", 2: "height", 3: "width"}


def write_torch(traced: torch.export.ExportedProgram, path: Path, facts: Facts) -> None:
    """Write a `.pt2` file, which `torch.export.load` reads; the facts are its extra file `facts.json`."""
    with quiet():
        torch.export.save(traced, path, extra_files={"facts.json": json.dumps(vars(facts))})


def write_onnx(traced: torch.export.ExportedProgram, path: Path, facts: Facts, free: Mapping[int, str]) -> None:
    """Write an ONNX file of opset `OPSET`; the facts are its metadata.

    Args:
        free: the free dimensions of its input, and their names.
    """
    with quiet():
        found = torch.onnx.export(
            traced, input_names=["image"], output_names=[facts.output], opset_version=OPSET, dynamo=True,
            dynamic_shapes={"image": dict(free)}, external_data=False, verbose=False,
            custom_translation_table=table(),
        )  # fmt: skip
    proto = found.model_proto  # type: ignore[union-attr]  # a file was not asked for
    for name, text in facts.as_text().items():
        proto.metadata_props.add(key=name, value=text)
    path.write_bytes(proto.SerializeToString())


def check_form(form: str) -> None:
    """Make sure that the packages of a format are there.

    Raises:
        SetupError: one is missing.
    """
    if missing := [name for name in PACKAGES[form] if find_spec(name) is None]:
        raise SetupError(f"--format {form} needs the packages {', '.join(missing)}, which are not installed. {CURE}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters remark on their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def open_onnx(path: Path, threads: int) -> Any:
    """A session of an ONNX file on this machine's processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
