"""What a worker is told of one stage, and what it answers when the stage does not end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipelines.cluster.sizes import Sizes
from pipelines.recipes.recipe import Recipe, Stage
from pipelines.runs.folder import StageFolder
from segmodels.optim import Schedule


@dataclass(frozen=True)
class Job:
    """One stage for the workers. Paths are absolute: Ray's workers change their directory.

    `initial` is the checkpoint of the stage before, whose weights the stage starts from, `start` likewise one of
    another run, for the first stage, `seen` a digest of each row trained on so far.
    `until` is the step at which training ends before the last; the learning rate falls as if it did not. With
    `has_successor` each worker has Ray start the process of the worker that comes after it.
    """

    recipe: Recipe
    stage: Stage
    folder: Path
    train: str
    val: str | None
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    rows: int
    steps: int
    sizes: Sizes
    threads: int
    weights: str | None = None
    initial: Path | None = None
    start: Path | None = None
    flip_pairs: tuple[tuple[int, int], ...] = ()
    seen: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    until: int | None = None
    has_successor: bool = False

    @property
    def end(self) -> int:
        """The step at which training ends."""
        return self.until or self.steps

    @property
    def place(self) -> StageFolder:
        """The stage's files."""
        return StageFolder(self.folder)

    @property
    def warmup(self) -> int:
        """Warmup steps of the stage."""
        return self.recipe.optim.warmup if self.stage.warmup is None else self.stage.warmup

    @property
    def schedule(self) -> Schedule:
        """How the rate falls in the stage."""
        optim = self.recipe.optim
        return Schedule(optim.schedule, optim.power, optim.milestones, optim.gamma)


@dataclass(frozen=True)
class Interrupted:
    """Why a stage did not end: `failure`, a message, or `signal`, the name of the one that asked, and `text`."""

    failure: str = ""
    signal: str = ""
    text: str = ""
