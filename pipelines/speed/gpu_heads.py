"""Step 1 of `bench gpu`: each head's step waits for nothing and gives finite gradients, and its numbers are right."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pipelines.speed.gpu import Case, Line
from pipelines.speed.gpu_checks import moved, parity, quiet_step
from pipelines.speed.gpu_timing import peak_gib
from pipelines.speed.lone import drawn_batch, head_words, lone_learner, with_batch
from pipelines.training.step import train_step
from segmodels.heads.catalog import HEADS

FAR = {"fp32": 1e-4, "bf16": 2e-2}  # from float64, relative to the greatest logit, that is still well
CELLS = (129, 161)  # odd: no window, no partition divides it
# GiB that an image's activations were counted to take at 512x512 with R50s in bf16, channels_last
ACTIVATIONS = {"reconet": 0.70, "ocnet": 0.72, "danet": 0.82, "psanet": 0.75}
BESIDE = 0.6  # GiB by which a peak may lie off: cuDNN's workspaces are not counted


def lines(case: Case) -> Iterator[Line]:
    """What is measured, head after head; an error of one is its line."""
    for name in HEADS:
        try:
            yield from head_lines(case, name)
        except Exception as error:  # the other heads' lines are worth having
            yield Line(name, f"{type(error).__name__}: {str(error).splitlines()[0][:90]}", good=False)


def head_lines(case: Case, name: str) -> Iterator[Line]:
    """One head."""
    device = torch.device(case.device)
    words = head_words(name, case.small)
    precision = "bf16" if device.type == "cuda" else "fp32"
    more = ["batch=2", f"workers.precision={precision}", "workers.recompute=true"]  # as when ACTIVATIONS were counted
    learner = lone_learner(trunk(words, case.small, more), device)
    loss, wrong = quiet_step(learner)
    yield Line(f"{name}: loss of a step without waits", loss, good=wrong == 0 and loss == loss)
    if name in ACTIVATIONS:
        predicted = (8 * sum(p.numel() for p in learner.model.parameters()) / 2**30) + 8 * ACTIVATIONS[name]
        batch = drawn_batch(with_batch(learner, 8))
        peak, _ = peak_gib(lambda: train_step(learner, batch, 2), device)
        full = device.type == "cuda" and not case.small
        yield Line(f"{name}: peak of 8 images", peak, "GiB", f"{predicted:.1f}",
                   good=abs(peak - predicted) <= BESIDE if full else None)  # fmt: skip
    crop = [64, 64] if case.small else [*CELLS]
    bound = lone_learner(trunk(words, case.small, ["batch=2", f"view.crop={crop}"]), torch.device("cpu"))
    image = moved(drawn_batch(bound), bound).image
    for form, distance in parity(bound.model, image, device).items():
        yield Line(f"{name}: {form} from float64", distance, predicted=f"<= {FAR[form]:g}", good=distance <= FAR[form])


def trunk(words: list[str], small: bool, more: list[str]) -> list[str]:
    """The keys, with the trunk of the table."""
    return [*words, *([] if small else ["backbone.name=resnet50s"]), *more]
