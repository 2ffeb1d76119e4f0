"""What all measurements share: the header, medians and spread, ratios of neighbours in time, tables and their data.

A machine's speed drifts, and other work comes and goes. So the cases of a measurement take turns, A B A B, and a ratio
is the median of the rounds' own ratios: what slows a whole round cancels out of it.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

from pipelines.base.machine import cores, cpu_model, memory_gib
from pipelines.base.text import padded

PACKAGES = {
    "torch": "torch",
    "ray": "ray",
    "numpy": "numpy",
    "opencv": "opencv-python-headless",
    "albumentations": "albumentations",
}


@dataclass(frozen=True)
class Report:
    """What a command measured: a Markdown table with its units in `columns`, and a note a line.

    `measured` holds every single value, by case and in the order of the rounds.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    measured: Mapping[str, object] = field(default_factory=dict)

    def markdown(self) -> str:
        """Title, table and notes, to be pasted into a README."""
        notes = "".join(f"- {note}\n" for note in self.notes)
        return f"{self.title}\n\n{table(self.columns, self.rows)}\n\n{notes}"


def header() -> dict[str, str]:
    """Date, hardware and versions; what else the machine does (its load) is part of the hardware."""
    versions = {name: metadata.version(package) for name, package in PACKAGES.items()}
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": f"{cpu_model()}, {cores()} cores, {memory_gib():.0f} GiB, load {os.getloadavg()[0]:.1f} at the start",
        "gpu": gpu_name(),
        "versions": ", ".join(f"{name} {v}" for name, v in {"python": platform.python_version(), **versions}.items()),
    }


def gpu_name() -> str:
    """Number and name of the GPUs, or `no GPU`."""
    import torch

    count = torch.cuda.device_count()
    return f"{count} x {torch.cuda.get_device_name(0)}" if count else "no GPU"


def interleave(cases: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Measure the cases in turn, `repeats` rounds after one that is not counted (caches, lazy imports, clocks)."""
    for case in cases.values():
        case()
    measured: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            measured[name].append(case())
    return measured


def ratios(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """The rounds' own ratios: value to base of the same round."""
    return [value / other for value, other in zip(values, base, strict=True)]


def spread(values: Sequence[float], digits: int = 1, scale: float = 1.0) -> str:
    """`median (least to greatest)`, or just the value where there is one."""
    numbers = [value * scale for value in values]
    middle = f"{statistics.median(numbers):.{digits}f}" if numbers else "–"
    return middle if len(numbers) < 2 else f"{middle} ({min(numbers):.{digits}f} to {max(numbers):.{digits}f})"


def goal(name: str, reached: float, wanted: float, least: bool = True, digits: int = 2) -> str:
    """A note that says whether a goal was met; `least`: it is a lower bound."""
    met = reached >= wanted if least else reached <= wanted
    return f"goal: {name} {'>=' if least else '<='} {wanted:g}: {reached:.{digits}f}, {'met' if met else 'MISSED'}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned for people who read the source; the first holds names, all others numbers.

    Raises:
        ValueError: a row of another length.
    """
    if wrong := [row for row in rows if len(row) != len(columns)]:
        raise ValueError(f"a row of {len(wrong[0])} cells under {len(columns)} columns: {list(wrong[0])}")
    head, *body = padded([columns, *rows], right=range(1, len(columns)), least=3)
    rule = "|".join("-" * (len(cell) + 2) if not i else "-" * (len(cell) + 1) + ":" for i, cell in enumerate(head))
    return "\n".join([f"| {' | '.join(head)} |", f"|{rule}|", *(f"| {' | '.join(cells)} |" for cells in body)])


def write_json(path: Path, command: str, facts: Mapping[str, str], report: Report) -> None:
    """Header, table and every single value as one JSON object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"command": command, "header": dict(facts), **asdict(report)}, indent=1) + "\n")
