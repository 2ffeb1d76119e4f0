"""Means over seeds with t-intervals, gains paired by seed, and the Pareto front. Pure functions of plain rows.

A mean over n seeds is shown as m ± t · s / √n, with s the standard deviation (n - 1 in the denominator) and t the
quantile of Student's distribution with n - 1 degrees of freedom that leaves (1 - confidence) / 2 above it. A gain is
the mean of the differences between a variant and the baseline at the same seed, with the interval of these differences:
what a seed does to both cancels. Each interval is for itself; none is widened for the number of variants compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

DONE = "done"
COSTS = ("parameters", "gmacs", "activation_mib", "memory_mib", "images_per_s")
NO_DIFFERENCE = "no difference shown"


@dataclass(frozen=True)
class Interval:
    """A mean of n values and its t-interval, mean ± half; `half` is None for one value, which has no interval."""

    mean: float
    half: float | None
    n: int

    @property
    def low(self) -> float:
        return self.mean - (self.half or 0.0)

    @property
    def high(self) -> float:
        return self.mean + (self.half or 0.0)


@dataclass(frozen=True)
class Summary:
    """One variant over its seeds.

    Attributes:
        variant: its name.
        mean: of mIoU, a fraction; None where no trial is done.
        gain: paired difference to the baseline; None for the baseline itself, without one, or without a common seed.
        verdict: "better", "worse", `NO_DIFFERENCE`, "baseline", or why there is none.
        note: trials that are not done, seeds that could not be paired.
        seeds: of the trials that are done.
        paired: those that the baseline is done with too.
        costs: `COSTS` -> value: memory is the highest over the seeds, images/s the median; None where unknown.
    """

    variant: str
    mean: Interval | None
    gain: Interval | None
    verdict: str
    note: str
    seeds: tuple[int, ...]
    paired: tuple[int, ...]
    costs: Mapping[str, float | None]


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean of one or more values with its t-interval.

    Raises:
        ValueError: no values, or a confidence that is not between 0 and 1.
    """
    if not len(values):
        raise ValueError("no values: a mean needs one, an interval two")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; allowed: above 0 and below 1, such as 0.95")
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Interval(mean, None, n)
    t = float(stdtrit(n - 1, (1 + confidence) / 2))
    return Interval(mean, t * float(np.std(values, ddof=1)) / math.sqrt(n), n)


def summarise(rows: Sequence[Mapping[str, Any]], baseline: str | None, confidence: float = 0.95) -> list[Summary]:
    """One summary per variant, in the order of first appearance.

    Args:
        rows: one trial each: `variant`, `seed`, `status`, `miou` (a fraction), and `COSTS` as far as known. Trials of
            another status than "done" count for nothing and are named in the note.
        baseline: the variant that gains are measured against; None for none.
        confidence: of every interval.

    Raises:
        ValueError: a baseline without rows, two rows for one variant and seed, or a trial done without mIoU.
    """
    names = list(dict.fromkeys(row["variant"] for row in rows))
    if baseline is not None and baseline not in names:
        raise ValueError(f"baseline {baseline!r} has no trial; there are trials of: {', '.join(names) or 'nothing'}")
    found = {name: scores(rows, name) for name in names}
    reference = found[baseline] if baseline is not None else None
    return [summary(name, found[name], reference, name == baseline, rows, confidence) for name in names]


def scores(rows: Sequence[Mapping[str, Any]], variant: str) -> dict[int, float]:
    """Seed -> mIoU of the trials of a variant that are done."""
    own = [row for row in rows if row["variant"] == variant]
    seeds = [row["seed"] for row in own]
    if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise ValueError(f"variant {variant!r} has several trials of seed {twice}; allowed: one per variant and seed")
    done = {row["seed"]: row.get("miou") for row in own if row["status"] == DONE}
    for seed, miou in done.items():
        if miou is None or not math.isfinite(miou):
            raise ValueError(f"variant {variant!r}, seed {seed} is {DONE!r} with mIoU {miou}; a failed trial says so")
    return {seed: float(miou) for seed, miou in sorted(done.items()) if miou is not None}


def summary(
    name: str,
    own: Mapping[int, float],
    reference: Mapping[int, float] | None,
    is_baseline: bool,
    rows: Sequence[Mapping[str, Any]],
    confidence: float,
) -> Summary:
    """The summary of one variant, whose scores are `own`, against those of the baseline."""
    mine = [row for row in rows if row["variant"] == name]
    paired = tuple(seed for seed in own if reference is not None and seed in reference)
    gain = None
    if reference is not None and paired and not is_baseline:
        gain = t_interval([own[seed] - reference[seed] for seed in paired], confidence)
    return Summary(
        variant=name,
        mean=t_interval(list(own.values()), confidence) if own else None,
        gain=gain,
        verdict=verdict(own, gain, is_baseline, reference is not None),
        note=note(mine, own, reference if not is_baseline else None, paired),
        seeds=tuple(own),
        paired=paired,
        costs=costs(mine),
    )


def verdict(own: Mapping[int, float], gain: Interval | None, is_baseline: bool, compared: bool) -> str:
    """What the interval of the gain allows to say."""
    if not own:
        return "no result"
    if is_baseline:
        return "baseline"
    if gain is None:
        return "no common seed" if compared else ""
    if gain.half is None:
        return "one seed: no interval"
    if gain.low <= 0 <= gain.high:
        return NO_DIFFERENCE
    return "better" if gain.mean > 0 else "worse"


def note(
    rows: Sequence[Mapping[str, Any]],
    own: Mapping[int, float],
    reference: Mapping[int, float] | None,
    paired: Sequence[int],
) -> str:
    """Trials that are not done, by status, and how many seeds were paired where not all could be."""
    other = [row["status"] for row in rows if row["status"] != DONE]
    parts = [f"{other.count(status)} of {len(rows)} {status}" for status in dict.fromkeys(other)]
    if reference is not None and own and set(own) != set(reference):
        shared = ", ".join(map(str, paired)) or "none"
        parts.append(f"paired seeds: {shared}, of {len(own)} here and {len(reference)} of the baseline")
    return "; ".join(parts)


def costs(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """`COSTS` of a variant over its trials."""
    given = {key: [row[key] for row in rows if row.get(key) is not None] for key in COSTS}
    return {
        key: None if not values else float(np.median(values) if key == "images_per_s" else max(values))
        for key, values in given.items()
    }


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of each (accuracy, cost): whether no other point is as good in both and better in one."""
    return [
        not any(a >= accuracy and c <= cost and (a > accuracy or c < cost) for a, c in points)
        for accuracy, cost in points
    ]
