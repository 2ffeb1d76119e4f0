"""What a split scores under a task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Scored:
    """What a split scores: all are shares, 0 to 1.

    Args:
        value: the task's metric, of which the best weights have most.
        named: all numbers for people by name, the metric among them; without those that nothing stands for.
        classes: the metric of each class of the manifest; None for one that is absent, or that the task does not score.
        rows: of the split.
        lines: more for people.
        confusion: images by class and by the class that was predicted, int64 (K, K), where the task counts these.
    """

    value: float
    named: Mapping[str, float]
    classes: Sequence[float | None]
    rows: int
    lines: Sequence[str] = field(default=())
    confusion: np.ndarray | None = field(default=None, compare=False)


def check_rows(rows: Iterable[int], expected: int, uri: str) -> None:
    """Every row of a split was scored exactly once.

    Raises:
        RuntimeError: a row is missing, or is there twice.
    """
    found = sorted(rows)
    if found != list(range(expected)):
        twice = len(found) - len(set(found))
        missing = expected - len(set(found) & set(range(expected)))
        raise RuntimeError(
            f"scored were {len(found)} rows of {uri}, which has {expected}: {missing} are missing, {twice} are there "
            "twice; each must be read exactly once"
        )
