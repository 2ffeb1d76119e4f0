"""Read the published cost figures: one YAML page per paper, strict about every key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from segmodels.checks import choose, nearest

FOLDER = Path(__file__).parent
PAPERS = ("reconet", "srnet", "ctnet", "ocnet")
VERDICTS = ("reproducible", "approximate", "not reproducible", "not checked", "by formula")
MET = ("reproducible", "approximate")  # figures that must be met, which the tests check
UNITS = {"G": 1e9, "M": 1e6, "MiB": 2.0**20, "MB": 1e6, "ms": 1e-3, "fps": 1.0, "ratio": 1.0, "": 1.0}
QUANTITIES = ("macs", "parameters", "memory", "time", "speed", "order", "affinity")
RULES = ("conv+matmul", "leaf-modules", "2 x conv+matmul", "hand")
CLOSE = 0.005


@dataclass(frozen=True)
class Count:
    """Something to build and count: a sum of terms, each a mapping whose first key says its kind (see `counts.py`).

    `over` are the terms of a denominator, for published ratios.
    """

    rule: str
    build: tuple[Mapping[str, Any], ...]
    over: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Figure:
    """One printed number.

    Attributes:
        paper, table, row: where it is printed.
        quantity: of `QUANTITIES`.
        published: as printed, with all its digits.
        unit: of `UNITS`.
        count: how it is computed; None where it cannot be.
        verdict: of `VERDICTS`, what comparison has shown.
        tolerance: largest relative error that counts as met.
        reason: what was counted, or why it cannot be met.
        also: other countings of the same row, for comparison: what -> count.
    """

    paper: str
    table: str
    row: str
    quantity: str
    published: str
    unit: str
    count: Count | None
    verdict: str
    tolerance: float
    reason: str
    also: Mapping[str, Count]

    @property
    def half_digit(self) -> float:
        """Half of the last printed digit, in units."""
        return 0.5 * 10.0 ** -len(self.published.partition(".")[2]) * (1 + 1e-9)

    @property
    def margin(self) -> float:
        """Largest absolute error that counts as met, in units."""
        return max(self.tolerance * float(self.published), self.half_digit)


@dataclass(frozen=True)
class Table:
    """A table of a paper: what its caption says of costs, and its figures."""

    paper: str
    name: str
    caption: str
    figures: tuple[Figure, ...]


def cost_tables(paper: str) -> tuple[str, list[Table]]:
    """The citation of a paper of `PAPERS`, and its tables with cost figures.

    Raises:
        ValueError: an unknown paper; or the page has an unknown key or value.
    """
    choose(dict.fromkeys(PAPERS), paper, "paper")
    page = yaml.safe_load((FOLDER / f"{paper}_costs.yaml").read_text())
    known("page", page, ("paper", "tables", "parts"))
    tables = []
    for entry in page["tables"]:
        known("table", entry, ("table", "caption", "rule", "rows"))
        figures = [
            figure for row in entry["rows"] for figure in read_row(paper, entry["table"], row, entry.get("rule"))
        ]
        tables.append(Table(paper, entry["table"], entry["caption"], tuple(figures)))
    return page["paper"], tables


def read_row(paper: str, table: str, row: Mapping[str, Any], rule: str | None) -> list[Figure]:
    """The figures of one row; `build`, `rule` and `reason` of the row hold for those that have none themselves."""
    shared = ("build", "rule", "reason")
    known("row", row, ("row", *shared, *QUANTITIES))
    figures = []
    for quantity in (q for q in QUANTITIES if q in row):
        given = {"rule": rule} | {key: row[key] for key in shared if key in row} | row[quantity]
        known("figure", given, (*shared, "over", "published", "unit", "verdict", "tolerance", "also"))
        if given["verdict"] not in VERDICTS or given.get("unit", "") not in UNITS:
            raise ValueError(f"{paper}, {table}, {row['row']}: {given}; allowed: {VERDICTS}, {tuple(UNITS)}")
        if not isinstance(given["published"], str):
            raise ValueError(f"{paper}, {table}, {row['row']}: quote {given['published']}, its last digits count")
        also = {what: read_count({"rule": given["rule"]} | count) for what, count in given.get("also", {}).items()}
        figures.append(
            Figure(
                paper, table, row["row"], quantity, given["published"], given.get("unit", ""),
                read_count(given) if given.get("build") else None,
                given["verdict"], given.get("tolerance", CLOSE), given.get("reason", ""),
                {what: count for what, count in also.items() if count is not None},
            )
        )  # fmt: skip
    return figures


def read_count(given: Mapping[str, Any]) -> Count:
    """The count of a figure; lists within a list of terms, which YAML's anchors give, are flattened."""
    if given["rule"] not in RULES:
        raise ValueError(f"rule is {given['rule']!r}; allowed: {', '.join(RULES)}.{nearest(str(given['rule']), RULES)}")
    return Count(given["rule"], flat(given["build"]), flat(given.get("over", [])))


def flat(terms: list[Any]) -> tuple[Mapping[str, Any], ...]:
    """Terms without nesting."""
    return tuple(term for entry in terms for term in (flat(entry) if isinstance(entry, list) else (entry,)))


def known(what: str, given: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    """Refuse keys that mean nothing here."""
    for key in given:
        if key not in allowed:
            raise ValueError(f"unknown key {key!r} of a {what}; allowed: {', '.join(allowed)}.{nearest(key, allowed)}")
