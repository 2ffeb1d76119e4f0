"""Where the seconds of the whole sample chain go, from the command to its table.

Runs `python -m pipelines.voc_pretrain output=TMP` in a process of its own and reads what it left: the names of Ray's
folders, the times of files, each stage's record.jsonl, and the run's timeline.json where there is one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.runs.run import Span
    from pipelines.speed.report import Report

REPEATS = 1


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for the chain's recipe: workers.count=1")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep the chain's output; with several rounds the last"
    )


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be measured.

    Raises:
        InputError: the folder to keep holds something, or an override of the output.
    """
    from pipelines.base.errors import InputError
    from pipelines.recipes.reading import load_recipe

    load_recipe("sample", args.overrides)
    if any(word.startswith(("output=", "data=")) for word in args.overrides):
        raise InputError("output and data are the command's own here; --keep DIR keeps the output")
    if args.keep and args.keep.exists() and (not args.keep.is_dir() or any(args.keep.iterdir())):
        raise InputError(f"--keep {args.keep} is not empty: the chain would not start from nothing there")


def measure(args: argparse.Namespace) -> Report:
    """Run the chain, each time from nothing."""
    from pipelines.speed.drawn import scratch
    from pipelines.speed.spans import account

    rounds = []
    for turn in range(args.repeats):
        with scratch() as folder:
            kept = args.keep and turn == args.repeats - 1
            output = args.keep.absolute() if kept else folder / "output"
            imported, (began, ended) = import_seconds(), run_chain(output, args.overrides)
            rounds.append(account(output, began, ended, imported))
    return report(args, rounds)


def import_seconds() -> float:
    """Seconds of a process that only imports what the door imports."""
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", "import pipelines.driver.run, pipelines.prepare, ray.data, ray.train"], check=True
    )
    return time.monotonic() - began


def run_chain(output: Path, overrides: list[str]) -> tuple[float, float]:
    """The command, its lines going to stderr; returns the times at which it began and ended.

    Raises:
        RunFailed: it ended with an error.
    """
    from pipelines.base.errors import RunFailed

    began = time.time()
    words = [sys.executable, "-m", "pipelines.voc_pretrain", f"output={output}", "mlflow_model=false", *overrides]
    done = subprocess.run(words, stdout=sys.stderr)
    if done.returncode:
        raise RunFailed(f"the sample chain ended with exit code {done.returncode}; its own message is above")
    return began, time.time()


def report(args: argparse.Namespace, rounds: list[list[Span]]) -> Report:
    """A row per part: when it began, how long it took, its share of the whole."""
    from pipelines.speed.report import Report, spread

    names = [span.name for span in rounds[0]]
    found = [{span.name: span for span in spans} for spans in rounds]
    rows, measured = [], {}
    for name in names:
        spans = [by_name[name] for by_name in found if name in by_name]
        share = median(s.seconds / spans_[-1].seconds for s, spans_ in zip(spans, rounds, strict=False))
        rows.append([name, spread([s.began for s in spans]), spread([s.seconds for s in spans]), f"{share:.0%}"])
        measured[name] = [{"began": s.began, "seconds": s.seconds} for s in spans]
    notes = [
        f"python -m pipelines.voc_pretrain output=TMP {' '.join(args.overrides)}".rstrip()
        + f", {args.repeats} time(s), from an empty folder; seconds since the command, by times of files and records",
        "imports are timed in a process of their own, so the line after them holds what differs",
    ]
    if any(name.startswith("driver: ") for name in names):
        notes.append("driver: the run's own timeline.json, seconds since its process started; overlaps with the rest")
    return Report(
        "Where the seconds of the sample chain go", ["part", "began, s", "seconds", "share"], rows, notes, measured
    )
