"""Step 8 of `bench gpu`: are the same steps the same twice, by default and with deterministic kernels, at what cost?"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator

import torch

from pipelines.speed.gpu import Case, Line
from pipelines.speed.gpu_checks import after_steps, deterministic, unlike
from pipelines.speed.gpu_timing import waited
from pipelines.speed.lone import SMALL, lone_learner

STEPS = 30


def lines(case: Case) -> Iterator[Line]:
    """What is measured."""
    device, steps = torch.device(case.device), 3 if case.small else STEPS
    small = [*SMALL, "head.channels=32", "head.rank=4", "batch=2"] if case.small else ["batch=4"]
    took = {}
    for wanted in (False, True):
        name, weights = "deterministic" if wanted else "default", []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                learner = lone_learner(small, device)
                with deterministic(wanted):
                    began = time.monotonic()
                    weights.append(after_steps(learner, steps))
                    waited(device)
                    took[wanted] = time.monotonic() - began
            told = {str(entry.message).split(" does not")[0] for entry in caught if "determinis" in str(entry.message)}
        unequal, numbers = unlike(*weights), sum(value.numel() for value in weights[0].values())
        good = unequal == 0 if wanted and not told else None
        yield Line(f"{name}: numbers that differ after {steps} steps", unequal, f"of {numbers:,}",
                   "0" if wanted else "some", good)  # fmt: skip
        yield Line(f"{name}: operations without a deterministic form", ", ".join(sorted(told)) or "none")
    yield Line("deterministic, times the default's seconds", took[True] / took[False])
