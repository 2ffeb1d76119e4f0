"""Rows that were trained on, which must not be scored on."""

from __future__ import annotations

import numpy as np

from datasets.shards import Shards
from pipelines.base.errors import InputError
from pipelines.recipes.recipe import Stage


def digests(shards: Shards) -> np.ndarray:
    """A sorted int64 for each row: the first 8 bytes of its image's sha256."""
    return np.unique(shards.index.marks)


def refuse_seen(stage: Stage, seen: np.ndarray, val: Shards) -> None:
    """A score on rows that were trained on says nothing.

    Raises:
        InputError: some rows of `val` were.
    """
    both = int(np.isin(digests(val), seen).sum())
    if both:
        raise InputError(
            f"stage {stage.name}: {both} of the {len(val)} images of {stage.val} are trained on, by this stage "
            f"({stage.train}), one before it or the run whose weights it starts from, so a score on them would mean "
            "nothing. Remove `val` from the stage "
            "(train+val models are scored on the test server), or validate on other rows."
        )
