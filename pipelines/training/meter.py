"""Losses kept on the device, and where the seconds of a training go."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.feed.batch import Batch
from pipelines.recipes.tasks import SEGMENTATION
from pipelines.runs.checkpoint import Progress
from pipelines.training.learner import Learner
from pipelines.training.telemetry import Telemetry
from pipelines.training.waits import Waits, clock_of


def term_names(learner: Learner) -> list[str]:
    """The terms of the loss, as a record names them."""
    if learner.job.recipe.task != SEGMENTATION:
        terms: Any = learner.model.terms
        return list(terms)
    return [f"{output}.{term}" for output, named in learner.job.recipe.loss.items() for term in named]


class Meter:
    """What is measured between two lines of the record."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.telemetry = Telemetry(learner.device, learner.rank, learner.world)
        job, progress = learner.job, learner.progress
        self.device, self.rank, self.world = learner.device, learner.rank, learner.world
        self.saving = learner.saving
        self.batch, self.rows, self.steps_of_stage = job.recipe.batch, job.rows, job.steps
        self.terms = term_names(learner)
        # The steps that are not logged yet: each worker has its part, and what a checkpoint holds is rank 0's.
        unknown = (math.nan,) * len(self.terms)  # of a version that kept no terms
        terms = progress.terms or (unknown,) * len(progress.losses)
        before = [(loss, *parts) for loss, parts in zip(progress.losses, terms, strict=True)]
        self.kept = [torch.tensor(v, device=self.device) * (1.0 if self.rank == 0 else 0.0) for v in before]
        self.seconds, self.images = progress.seconds, progress.images
        self.saved = time.monotonic()
        self.waits = Waits(clock_of(self.device))
        self.restart()

    def restart(self) -> None:
        """Begin a new interval, without what validation took."""
        self.began, self.steps = time.monotonic(), 0
        self.waits.restart()
        self.telemetry.restart()

    def waiting(self, feed: Iterator[Batch]) -> Iterator[Batch]:
        """As `timed`; meanwhile the GPU is looked at."""
        with self.telemetry:
            yield from self.timed(feed)

    def timed(self, feed: Iterator[Batch]) -> Iterator[Batch]:
        """The feed, with the device's waits for it measured; the first batch's start-up is not the step's wait."""
        first = True
        while True:
            self.waits.ask()
            batch = next(feed, None)
            self.waits.come()
            if first:
                self.restart()
                first = False
            if batch is None:
                return
            yield batch

    def add(self, losses: Tensor) -> None:
        """Count a step; its loss and terms (1 + T,) stay on the device until they are read."""
        self.kept.append(losses)
        self.steps += 1

    def losses(self) -> np.ndarray:
        """Global loss and terms (S, 1 + T) of the steps not logged yet: the one host sync of the loop.

        From here on they are rank 0's.
        """
        stacked = torch.stack(self.kept)
        if self.world > 1:
            dist.all_reduce(stacked)
        self.kept = list(stacked if self.rank == 0 else torch.zeros_like(stacked))
        return stacked.cpu().numpy()

    def line(self, losses: np.ndarray, done: int) -> dict[str, Any]:
        """What the record says of the steps since the line before, which ends with them.

        Args:
            losses: as `losses` gives them.
            done: steps of the stage that are done.
        """
        self.kept = []
        loss, *terms = (float(np.mean(column)) for column in losses.T)
        named, epoch = dict(zip(self.terms, terms, strict=True)), done * self.batch / self.rows
        line = {"loss": loss, "terms": named, "lr": self.learner.optimizer.param_groups[0]["lr"], "epoch": epoch}
        scaled = self.learner.scaling.line() if self.learner.scaling else {}
        return line | self.rates(done) | scaled

    def rates(self, done: int) -> dict[str, Any]:
        """images/s over all workers, shares of time spent waiting for data and saving, seconds left, what GPUs did."""
        span = max(time.monotonic() - self.began, 1e-9)
        images = self.steps * self.batch
        self.seconds += span
        self.images += images
        rates: dict[str, Any] = {"images_per_s": images / span, "data_wait": self.waits.seconds() / span}
        rates["save_wait"] = self.saving.taken() / span
        rates["eta_s"] = (self.steps_of_stage - done) * span / max(self.steps, 1)
        if gpus := self.telemetry.take():
            rates |= {"gpu_mib": max(gpu["peak_mib"] for gpu in gpus), "gpus": gpus}
        self.restart()
        return rates

    def overall(self) -> float:
        """images/s of the stage, over all workers and resumes, without validation."""
        return self.images / self.seconds if self.seconds else 0.0

    def carry(self, progress: Progress, step: int) -> Progress:
        """The progress at a step, with the sums that a resume goes on from; losses are read from the device."""
        kept = [entry.tolist() for entry in self.kept]
        self.saved = time.monotonic()
        return dataclasses.replace(
            progress,
            step=step,
            seconds=self.seconds,
            images=self.images,
            losses=tuple(entry[0] for entry in kept),
            terms=tuple(tuple(entry[1:]) for entry in kept),
        )

    def due(self, minutes: float) -> bool:
        """Whether the last checkpoint is older than `minutes`."""
        return time.monotonic() - self.saved >= minutes * 60
