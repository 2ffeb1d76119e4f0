#!/usr/bin/env python
"""What the papers print: their cost figures next to what this code gives, and their tables of results."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.base.door import program, run, version

EXAMPLES = """\
examples:
  python -m pipelines.compare costs            every cost figure of RecoNet, SRNet, CTNet and OCNet
  python -m pipelines.compare costs reconet    those of one paper
  python -m pipelines.compare results ctnet    its tables of results, as published; nothing of them is measured here

Models are built without memory, and nothing runs on a GPU. A figure is met when it is within 0.5 % ("reproduced"),
within half of its last printed digit ("rounds to it"), or within the error stated in
pipelines/published/PAPER_costs.yaml, which also says what is built and counted. "by formula": an order of growth, read
and not counted; "not checked": this code does not count it; "not reproducible": no way of counting gives it. The last
column says why, where there is more to say. What the papers call FLOPs are multiply-accumulates; OCNet prints twice
their number.
"""


def main() -> None:
    from pipelines.published.tables import PAPERS
    from segmodels.checks import nearest

    parser = argparse.ArgumentParser(
        program(), description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=version())
    doors = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    costs = doors.add_parser("costs", help="FLOPs, parameters and memory, counted again")
    results = doors.add_parser("results", help="tables of results as published, and how the models were trained")
    for door in (costs, results):
        door.add_argument("paper", nargs="?", metavar="PAPER", help=f"one of {', '.join(PAPERS)}; all unless given")
    args = parser.parse_args()
    if args.paper and args.paper not in PAPERS:
        parser.error(f"unknown paper {args.paper!r}; allowed: {', '.join(PAPERS)}.{nearest(args.paper, PAPERS)}")
    if args.what == "costs":
        print("PyTorch is imported, then each model is built and counted", file=sys.stderr, flush=True)
    from pipelines.published.printed import print_costs, print_results

    for paper in [args.paper] if args.paper else PAPERS:
        {"costs": print_costs, "results": print_results}[args.what](paper)


if __name__ == "__main__":
    run(main)
