"""Step 2 of `bench gpu`: how long a training step takes, how much of it the CPU needs, and which kernels it is."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import torch

from pipelines.speed.gpu import Case, Line
from pipelines.speed.gpu_checks import moved
from pipelines.speed.gpu_timing import peak_gib, together
from pipelines.speed.lone import SMALL, drawn_batch, lone_learner, with_batch
from pipelines.training.learner import Learner
from pipelines.training.step import train_step

BATCHES = (16, 4, 2)
# trunk, K, images -> milliseconds; of R101s and R50s at 16 images measured in version 0.3.5, the rest a roofline / 0.85
PREDICTED = {
    ("resnet101s", 21, 16): "74", ("resnet50s", 21, 16): "48", ("resnet101s", 150, 16): "86",
    ("resnet50s", 150, 16): "60",
}  # fmt: skip
LAUNCHES = "33 of the CPU"  # what a step's launches took one EPYC core, however few the images
COMPILED = (("resnet50s", 4), ("resnet101s", 16))
GAIN = "1.2 to 1.3 times"
KERNELS = 20


def lines(case: Case) -> Iterator[Line]:
    """What is measured: eager steps, compiled ones, and the kernels of the largest."""
    eager = {}
    for trunk, classes in itertools.product(("resnet101s", "resnet50s"), (21, 150)):
        learner = learner_of(case, trunk, classes)
        for batch in BATCHES:
            took, given = timed(with_batch(learner, images(case, batch)), case)
            predicted = PREDICTED.get((trunk, classes, batch), LAUNCHES)
            name = f"{trunk}, K {classes}, {images(case, batch)} images"
            yield Line(f"{name}: step", took, "ms", predicted)
            yield Line(f"{name}: of the CPU", given, "ms", LAUNCHES)
            eager[trunk, classes, batch] = took
        if (trunk, classes) == ("resnet101s", 21):
            yield from kernels(with_batch(learner, images(case, 16)), case)
        del learner
    for trunk, batch in COMPILED[: 1 if case.small else None]:
        learner = learner_of(case, trunk, 21, ["workers.compile=true", f"batch={images(case, batch)}"])
        name, began = f"{trunk}, {images(case, batch)} images, compiled", time.monotonic()
        took, _ = timed(learner, case)
        yield Line(f"{name}: step", took, "ms")
        yield Line(f"{name}: times faster", eager[trunk, 21, batch] / took, "", GAIN)
        yield Line(f"{name}: its compilation and steps", time.monotonic() - began, "s")


def images(case: Case, batch: int) -> int:
    """Of a step."""
    return min(batch, 4) if case.small else batch


def learner_of(case: Case, trunk: str, classes: int, words: list[str] | None = None) -> Learner:
    """RecoNet on a trunk; in a rehearsal all trunks are one small one."""
    small = [*SMALL, "head.channels=32", "head.rank=4"] if case.small else [f"backbone.name={trunk}"]
    return lone_learner([*small, *(words or [])], torch.device(case.device), classes)


def timed(learner: Learner, case: Case) -> tuple[float, float]:
    """Milliseconds of a step on a batch that is there, and of the CPU's part."""
    batch, step = moved(drawn_batch(learner), learner), itertools.count()
    repeats, warm = (2, 1) if case.small else (10, 4)
    return together(lambda: train_step(learner, batch, next(step)), learner.device, repeats, warm)


def kernels(learner: Learner, case: Case) -> Iterator[Line]:
    """The kernels that take the most of three steps, and the peak of one."""
    batch = moved(drawn_batch(learner), learner)
    peak, reserved = peak_gib(lambda: train_step(learner, batch, 0), learner.device)
    yield Line("resnet101s, K 21, 16 images: peak", peak, "GiB", "18.1")
    yield Line("reserved for it", reserved, "GiB")
    activity = torch.profiler.ProfilerActivity
    kinds = [activity.CPU, activity.CUDA] if case.device == "cuda" else [activity.CPU]
    steps = 1 if case.small else 3
    with torch.profiler.profile(activities=kinds) as profile:
        for step in range(steps):
            train_step(learner, batch, step)
        if case.device == "cuda":
            torch.cuda.synchronize()
    spent = sorted(profile.key_averages(), key=own_time(case), reverse=True)
    whole = sum(map(own_time(case), spent)) or 1.0
    for event in spent[: 3 if case.small else KERNELS]:
        share = own_time(case)(event) / whole
        yield Line(f"kernel {event.key[:60]}", own_time(case)(event) / 1e3 / steps, "ms a step", f"{share:.1%} of all")


def own_time(case: Case) -> Any:
    """What gives an event's own microseconds, of the device or of the CPU."""
    name = "self_device_time_total" if case.device == "cuda" else "self_cpu_time_total"
    return lambda event: float(getattr(event, name))
