#!/usr/bin/env python
"""Compare what the papers print with what the code here gives; so far their cost figures, counted anew."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.door import run

if TYPE_CHECKING:
    from pipelines.published.tables import Figure

EXAMPLES = """\
examples:
  python -m pipelines.compare costs            every cost figure of RecoNet, SRNet, CTNet and OCNet
  python -m pipelines.compare costs reconet    those of one paper

Models are built without memory, nothing runs on a GPU. A figure is met when it is within 0.5 % ("reproduced"), half of
its last printed digit ("rounds to it"), or the error stated in pipelines/published/PAPER_costs.yaml, where also stands
what is built and counted. Under FLOPs the papers print multiply-accumulates; OCNet prints twice their number.
"""
WIDTH = 120
NAMES = {"macs": "FLOPs", "parameters": "parameters", "memory": "memory", "time": "time", "order": "order"}


def main() -> None:
    from pipelines.published.tables import PAPERS
    from segmodels.checks import nearest

    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    doors = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    costs = doors.add_parser("costs", help="FLOPs, parameters and memory, counted anew")
    costs.add_argument("paper", nargs="?", metavar="PAPER", help=f"one of {', '.join(PAPERS)}; all unless given")
    args = parser.parse_args()
    if args.paper and args.paper not in PAPERS:
        parser.error(f"unknown paper {args.paper!r}; allowed: {', '.join(PAPERS)}.{nearest(args.paper, PAPERS)}")
    for paper in [args.paper] if args.paper else PAPERS:
        print_costs(paper)


def print_costs(paper: str) -> None:
    """All tables of a paper, and how many of their figures were met."""
    from pipelines.published.tables import cost_tables

    citation, tables = cost_tables(paper)
    print(citation)
    verdicts: list[str] = []
    for table in tables:
        print("\n" + textwrap.fill(f"{table.name}: {table.caption}", WIDTH))
        lines = [["row", "quantity", "published", "computed", "error", "convention", "verdict", ""]]
        for figure in table.figures:
            lines += figure_lines(figure)
        verdicts += ["within the stated error" if "within" in line[6] else line[6] for line in lines[1:] if line[6]]
        print_lines(lines)
    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
    print(f"\n{paper}: " + ", ".join(f"{number} {verdict}" for verdict, number in counts.items()) + "\n")


def figure_lines(figure: Figure) -> list[list[str]]:
    """The cells of a figure, and below it those of other countings."""
    from pipelines.published.counts import computed, verdict

    value = None if figure.count is None else computed(figure, figure.count)
    rule = "" if figure.count is None else figure.count.rule
    first = [figure.row, NAMES[figure.quantity], f"{figure.published} {figure.unit}".strip(), shown(figure, value),
             error(figure, value), rule, verdict(figure, value), figure.reason]  # fmt: skip
    others = []
    for what, count in figure.also.items():
        other = computed(figure, count)
        others.append(["", "", "", shown(figure, other), error(figure, other), count.rule, "", f"({what})"])
    return [first, *others]


def shown(figure: Figure, value: float | None) -> str:
    """A computed value with two digits more than are printed."""
    decimals = len(figure.published.partition(".")[2])
    return "-" if value is None else f"{value:.{min(4, decimals + 2)}f}"


def error(figure: Figure, value: float | None) -> str:
    """Relative to the published value."""
    return "-" if value is None else f"{value / float(figure.published) - 1:+.1%}"


def print_lines(lines: list[list[str]]) -> None:
    """Rows in columns, numbers flush right; the last column, prose, is not padded."""
    widths = [max(map(len, column)) for column in zip(*(line[:-1] for line in lines), strict=True)]
    align: list[Callable[[str, int], str]] = [
        str.ljust,
        str.ljust,
        str.rjust,
        str.rjust,
        str.rjust,
        str.ljust,
        str.ljust,
    ]
    for line in lines:
        cells = [put(cell, width) for put, cell, width in zip(align, line[:-1], widths, strict=True)]
        print("  ".join([*cells, line[-1]]).rstrip())


if __name__ == "__main__":
    run(main)
