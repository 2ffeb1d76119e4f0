"""A written program, opened as its user would, against the model that it was made of."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipelines.base.errors import RunFailed
from pipelines.base.text import padded
from pipelines.serving.program import Program, open_onnx
from segmodels.segmentor import Segmentor

Run = Callable[[np.ndarray], np.ndarray]  # RGB uint8 (B, 3, H, W) -> what the program gives
ROUNDS = 5
THREADS = 1  # more wait for each other on a busy machine, and say nothing of the two
MOST_DIFFERENCE = 1e-3  # of a probability: float32 in another order of its sums
MOST_PIXELS = 1e-3  # share of pixels whose two best classes are so near that the other one wins


@dataclass(frozen=True)
class Agreement:
    """A program against the model on images.

    `pixels` were compared, `others` of them have another class; `largest` is the largest difference of a probability,
    None of a program that gives classes. `eager_ms` and `program_ms` are medians of an image of `size`, (h, w) in
    pixels, on one thread.
    """

    images: int
    size: tuple[int, int]
    pixels: int
    others: int
    largest: float | None
    eager_ms: float
    program_ms: float

    def lines(self) -> list[str]:
        """For people."""
        share = f"{self.others:,} of {self.pixels:,} pixels have another class ({self.others / self.pixels:.4%})"
        largest = "" if self.largest is None else f", largest difference of a probability {self.largest:.1e}"
        rows = [["eager PyTorch", f"{self.eager_ms:.1f} ms"], ["program", f"{self.program_ms:.1f} ms"]]
        size = "x".join(map(str, self.size))
        speed = [f"{name}  {value} an image" for name, value in padded(rows)]
        return [
            f"{self.images} images, run by both: {share}{largest}",
            *speed,
            f"medians of {ROUNDS} rounds on {size} pixels, one thread of this CPU; "
            f"program is {self.eager_ms / self.program_ms:.2f} times as fast",
        ]


def runner(path: Path, form: str) -> Run:
    """Opens a written program afresh and runs it: ONNX by onnxruntime, `.pt2` by PyTorch."""
    if form == "onnx":
        session = open_onnx(path, THREADS)
        return lambda image: session.run(None, {"image": image})[0]
    program = torch.export.load(path).module()

    def run(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return program(torch.from_numpy(image)).numpy()

    return run


def eager(model: Segmentor, output: str) -> Run:
    """The model itself, in evaluation mode."""
    program = Program(model.eval(), output)

    def run(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return program(torch.from_numpy(image)).numpy()

    return run


def compare(model: Run, program: Run, images: Sequence[np.ndarray], output: str) -> Agreement:
    """Run both on every image, alone, and those of one size in one batch.

    Args:
        model: what is meant.
        program: what was written.
        images: RGB uint8 (1, 3, H, W) each.
        output: "classes" or "probabilities".

    Raises:
        RunFailed: they differ by more than rounding.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        shapes = dict.fromkeys(image.shape for image in images)
        together = [np.concatenate([image for image in images if image.shape == shape]) for shape in shapes]
        pixels = others = 0
        largest = 0.0
        for batch in [*images, *together]:
            meant, given = model(batch), program(batch)
            if meant.shape != given.shape or meant.dtype != given.dtype:
                raise RunFailed(f"the program gives {given.dtype} {given.shape}, the model {meant.dtype} {meant.shape}")
            if output == "probabilities":
                largest = max(largest, float(np.nan_to_num(np.abs(meant - given), nan=np.inf).max()))
                meant, given = meant.argmax(1), given.argmax(1)
            pixels += meant.size
            others += int((meant != given).sum())
        timed = [image for image in images if image.shape == images[0].shape] * ROUNDS
        # in turn: a busy spell of the machine meets both
        times = [(seconds(model, image), seconds(program, image)) for image in timed]
    finally:
        torch.set_num_threads(before)
    height, width = images[0].shape[2:]
    eager_ms, program_ms = (1000 * statistics.median(taken) for taken in zip(*times, strict=True))
    difference = largest if output == "probabilities" else None
    found = Agreement(len(images), (height, width), pixels, others, difference, eager_ms, program_ms)
    if others > MOST_PIXELS * pixels or largest > MOST_DIFFERENCE:
        raise RunFailed(
            f"the program is not the model ({found.lines()[0]}); allowed: {MOST_PIXELS:.1%} of the pixels, "
            f"{MOST_DIFFERENCE:.0e} of a probability. Nothing was written"
        )
    return found


def seconds(run: Run, image: np.ndarray) -> float:
    """Of one call."""
    began = time.perf_counter()
    run(image)
    return time.perf_counter() - began
