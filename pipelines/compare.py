#!/usr/bin/env python
"""What the papers print next to what this project has: their costs, counted again; their results, measured again.

`runs` scores two checkpoints on the same rows, and says whether these show a difference.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.base.door import VERSION, program, run, writable
from pipelines.base.errors import InputError

if TYPE_CHECKING:
    from pipelines.scoring.measured import Measured

EXAMPLES = """\
examples:
  python -m pipelines.compare costs            every cost figure of RecoNet, SRNet, CTNet and OCNet
  python -m pipelines.compare costs reconet    those of one paper
  python -m pipelines.compare results          every table of results; beside each row what MLflow has measured of it
  python -m pipelines.compare results ctnet --output /data/runs --csv ctnet.csv --markdown ctnet.md
  python -m pipelines.compare results reconet --tracking http://127.0.0.1:5000
  python -m pipelines.compare runs A.pt B.pt   is B better than A, on which classes and images? (runs --help)

Models are built without memory, and nothing runs on a GPU. A figure is met when it is within 0.5 % ("reproduced"),
within half of its last printed digit ("rounds to it"), or within the error stated in
pipelines/published/PAPER_costs.yaml, which also says what is built and counted. "by formula": an order of growth, read
and not counted; "not checked": this code does not count it; "not reproducible": no way of counting gives it. The last
column says why, where there is more to say. What the papers call FLOPs are multiply-accumulates; OCNet prints twice
their number.

Measured is what a finished run of a bundled page or study scored, on all rows of the table's benchmark and split, with
its protocol; a row that was never measured has a dash. Numbers of another split or model, or of some of the rows, are
named below the table with the reason. Published numbers never enter a mean.
"""
ABOUT_RUNS = """\
Score two checkpoints on the same rows, and say whether B differs from A: the difference of mIoU and of each class's
IoU, each with a 95 % interval (paired bootstrap over images: both are drawn alike, so that what an image does to both
cancels), "no difference shown" where the interval holds zero; and the rows that changed most in both directions.

The interval says what other images would change. What another seed of the training would change it does not know:
compare several seeds by a study (pipelines.ablate).
"""
RUNS = """\
examples:
  python -m pipelines.compare runs runs/A/voc/best.pt runs/B/voc/best.pt
  python -m pipelines.compare runs A/best.pt B/best.pt data/voc12/val --protocol single --out compared/
"""


def main() -> None:
    args = parse()
    if args.what == "costs":
        print("PyTorch is imported, then each model is built and counted", file=sys.stderr, flush=True)
        from pipelines.published.printed import print_costs

        for paper in args.papers:
            print_costs(paper)
    elif args.what == "results":
        results(args)
    else:
        compare_runs(args)


def parse() -> argparse.Namespace:
    """The command line; `papers` are those to show."""
    from pipelines.published.tables import PAPERS
    from segmodels.checks import nearest

    parser = argparse.ArgumentParser(
        program(), description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=VERSION)
    doors = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    costs = doors.add_parser("costs", help="FLOPs, parameters and memory, counted again")
    results = doors.add_parser("results", help="tables of results, with what was measured here beside each row")
    for door in (costs, results):
        door.add_argument("paper", nargs="?", metavar="PAPER", help=f"one of {', '.join(PAPERS)}; all unless given")
    results.add_argument("--tracking", metavar="URI", help="MLflow's address (default: MLFLOW_TRACKING_URI)")
    results.add_argument("--output", metavar="DIR", help="else the folder of runs whose mlflow.db is read")
    results.add_argument("--published-only", action="store_true", help="MLflow is not asked")
    results.add_argument("--csv", type=Path, metavar="FILE", help="a line for each published number and measurement")
    results.add_argument("--markdown", type=Path, metavar="FILE", help="the tables, to be read or attached")
    add_runs(doors)
    args = parser.parse_args()
    if args.what == "runs":
        return args
    if args.paper and args.paper not in PAPERS:
        parser.error(f"unknown paper {args.paper!r}; allowed: {', '.join(PAPERS)}.{nearest(args.paper, PAPERS)}")
    if args.what == "results" and args.tracking and args.output:
        parser.error("--tracking and --output both say where to read: give one")
    args.papers = [args.paper] if args.paper else PAPERS
    return args


def results(args: argparse.Namespace) -> None:
    """The papers' rows with what was measured of them; written too where that is asked for."""
    from pipelines.base.files import write_text

    for option, path in (("--csv", args.csv), ("--markdown", args.markdown)):
        if path and path.is_dir():
            raise InputError(f"{option} {path} is a folder; give the name of a file")
        if path:
            writable(option, path.absolute().parent)
    place, found = ("nothing, MLflow was not asked", None) if args.published_only else look_up(args)
    from pipelines.published.printed import print_results
    from pipelines.scoring.beside import beside, csv_text, left_out, markdown

    for paper in args.papers:
        if found is None:
            print_results(paper)
        else:
            print_results(paper, partial(beside, found), partial(left_out, found))
    print(f"measured: {place}")
    if args.csv:
        write_text(args.csv, csv_text(args.papers, found or []))
    if args.markdown:
        write_text(args.markdown, markdown(args.papers, found or [], place))


def look_up(args: argparse.Namespace) -> tuple[str, list[Measured]]:
    """Where MLflow is, and what was measured that it knows of."""
    from pipelines.base.addresses import hide_secret
    from pipelines.cluster.nodes import output_folder
    from pipelines.recipes.recipe import Recipe
    from pipelines.runs.local_store import STORE
    from pipelines.runs.mlflow_reading import store_to_read

    output = output_folder(args.output or Recipe.output)
    if args.output and not output.is_dir():
        raise InputError(f"--output {args.output}: no such folder; it is the `output` of recipes")
    uri = store_to_read(args.tracking, output, args.output is not None)
    if uri is None:
        return f"nothing, there is no {output / STORE} yet", []
    print(f"MLflow is read: {hide_secret(uri)}", file=sys.stderr, flush=True)
    from pipelines.runs.mlflow_client import open_client
    from pipelines.scoring.measured import measured_of

    with open_client(uri) as client:
        return f"read from MLflow at {uri}", measured_of(client)


def add_runs(doors: Any) -> None:
    """The command line of `runs`."""
    runs = doors.add_parser(
        "runs", help="two checkpoints on the same rows: difference with interval, classes, rows that changed most",
        description=ABOUT_RUNS, epilog=RUNS, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    runs.add_argument("a", metavar="A", help="best.pt or step-….pt of a run, a finished stage or run; a path or a URI")
    runs.add_argument("b", metavar="B", help="likewise; gains are B's less A's")
    runs.add_argument("shards", nargs="?", metavar="SHARDS", help="a split's shards (default: what both validate on)")
    runs.add_argument("--protocol", help="of both, as in pipelines.evaluate (default: each recipe's inference)")
    runs.add_argument("--rows", type=int, default=4, help="rows shown in each direction (default: 4)")
    runs.add_argument("--workers", type=int, help="Ray workers, on CPUs a core each (default: this process)")
    runs.add_argument(
        "--gpus", type=int, choices=[0, 1],
        help="GPUs of each worker, or of this process: 0 for CPUs (default: 1 where there are any)",
    )  # fmt: skip
    runs.add_argument(
        "--precision", choices=["auto", "bf16", "fp16", "fp32"], default="auto",
        help="default: bf16 on GPUs that have it, else fp32",
    )  # fmt: skip
    runs.add_argument("--allow-seen", action="store_true", help="compare on training rows all the same, and say so")
    runs.add_argument("--out", type=Path, help="folder for compared.json and the pictures of the rows")


def existing(path: Path) -> Path:
    """The path of a file.

    Raises:
        InputError: there is none.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint {path}; name RUN/STAGE/best.pt, RUN/STAGE/checkpoints/step-….pt, or RUN/STAGE")
    return path


def compare_runs(args: argparse.Namespace) -> None:
    """Score both, print what differs, write what is asked for."""
    from datasets.storage import below
    from pipelines.feed.plan import open_shards
    from pipelines.recipes.protocols import check_names
    from pipelines.runs.named import named_checkpoint

    for name, least in (("workers", 1), ("rows", 0)):
        given = getattr(args, name)
        if given is not None and given < least:
            raise InputError(f"--{name} {given}: {least} or more")
    check_names([args.protocol] if args.protocol else [])
    files = [existing(named_checkpoint(given)) for given in (args.a, args.b)]
    uri = below(str(Path.cwd()), args.shards) if args.shards else None
    if uri:
        open_shards(uri)  # what is wrong so far is told before PyTorch is imported, which takes seconds
    print("PyTorch is imported, the checkpoints are read", flush=True)
    from pipelines.evaluate import count
    from pipelines.scoring.compared import compare, lines_of
    from pipelines.scoring.evaluation import Wishes
    from pipelines.scoring.pairing import classes_of, heading, plan_sides, write_comparison

    wishes = Wishes([args.protocol] if args.protocol else [])
    one, other = plan_sides(files, uri, wishes, args.precision, args.allow_seen)
    sides = (one.named(args.a), other.named(args.b))
    if args.out:
        writable("--out", args.out)
    print("\n".join(heading(sides)), flush=True)
    a, b = (classes_of(side, count(side.task, side.checkpoint, args.workers, args.gpus)) for side in sides)
    found, ids = compare(a, b), open_shards(sides[0].task.uri).ids
    print("\n".join(lines_of(found, sides[0].checkpoint.classes, ids, args.rows)), flush=True)
    if args.out:
        files = write_comparison(args.out, sides, (a, b), found, args.rows)
        print(f"written: {args.out}/{', '.join(str(file.relative_to(args.out)) for file in files)}")


if __name__ == "__main__":
    run(main)
