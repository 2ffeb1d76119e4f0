"""A stage over millions of rows: what driver, worker and feeding task hold, and how soon the first batch is there.

Shards with so many rows are generated, whose ids and checksums are all different and whose images are one and the
same, so that ten million fit on a laptop's disk. A run by its own door trains a few steps on them, twice: the second
finds what the first left in this machine's cache.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.speed.report import Report

REPEATS = 1
STEPS = 4
GIB, SECONDS = 2.0, 60.0  # that a goal allows: of each process, and until the first batch
LIMIT = 1800.0  # seconds of a run
KEYS = [
    "stages=[{name: many, train: many/train, steps: " + str(STEPS) + "}]", "log_every=1", "workers.count=1",
    "workers.feed_tasks=1", "mlflow_model=false", "optim.warmup=0",
]  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000], help="default 10000 1000000")
    parser.add_argument("--per-file", type=int, default=1280, help="rows of a file (default %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for the recipe sample_small, after its own")


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be measured.

    Raises:
        InputError: an impossible value.
    """
    from pipelines.base.errors import InputError
    from pipelines.recipes.reading import load_recipe

    load_recipe("sample_small", [*KEYS, *args.overrides])
    if min(args.rows) < 1 or args.per_file < 1:
        raise InputError(
            f"--rows {min(args.rows)} --per-file {args.per_file}: one row and one row a file are the least"
        )


def measure(args: argparse.Namespace) -> Report:
    """For each number of rows: write shards, then train on them with an empty cache and with a filled one."""
    from pipelines.speed.drawn import scratch
    from pipelines.speed.many import many_shards

    measured: dict[str, dict[str, Any]] = {}
    for rows in args.rows:
        for _ in range(args.repeats):
            with scratch() as folder:
                began = time.monotonic()
                many_shards(folder / "data/many/train", rows, args.per_file)
                written = time.monotonic() - began
                for cache in ("empty", "filled"):
                    words = [*KEYS, *args.overrides, f"data={folder / 'data'}", f"output={folder / 'out'}"]
                    run = trained([*words, f"name={cache}"], folder / "out" / "runs" / cache)
                    measured.setdefault(f"{rows:,} rows, cache {cache}", {})[f"{written:.0f}"] = run
    return report(args, measured)


def trained(words: list[str], folder: Path) -> dict[str, Any]:
    """Run the door `train`, its lines going to stderr; returns seconds and bytes.

    Raises:
        RunFailed: it ended with an error, or after `LIMIT`.
    """
    from pipelines.base.errors import RunFailed
    from pipelines.runs.folder import RunFolder
    from pipelines.runs.record import read_record
    from pipelines.speed.processes import KindPeaks

    began = time.time()
    process = subprocess.Popen([sys.executable, "-m", "pipelines.train", "sample_small", *words], stdout=sys.stderr)
    with KindPeaks(process.pid) as peaks:
        try:
            code = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            process.terminate()
            code = process.wait(60)
    if code:
        raise RunFailed(f"the training ended with exit code {code}; its own message is above")
    run = RunFolder(folder)
    lines = [line for line in read_record(run.stage("many").record)[0] if line["kind"] == "train"]
    return {"first_s": lines[0]["time"] / 1000 - began, "end_s": lines[-1]["time"] / 1000 - began, **peaks.kinds()}


def report(args: argparse.Namespace, measured: dict[str, dict[str, Any]]) -> Report:
    """A row per number of rows and state of the cache."""
    from pipelines.speed.report import Report, goal, spread

    rows, notes = [], []
    for name, runs in measured.items():
        of = {key: [run[key] for run in runs.values()] for key in ("first_s", "driver", "worker", "task")}
        rows.append([name, spread(of["first_s"]), *(spread([v / 2**20 for v in of[k]], 0) for k in list(of)[1:])])
        largest = max(max(of[kind]) for kind in ("driver", "worker", "task")) / 2**30
        notes += [
            goal(f"{name}, from the command to the first step, s", max(of["first_s"]), SECONDS, least=False),
            goal(f"{name}, GiB of the largest process", largest, GIB, least=False),
        ]
    notes.insert(
        0,
        f"{args.per_file} rows a file, ids in no order; sample_small, one worker, one feeding task, {STEPS} steps; "
        "MiB: the most that a process of each kind held for itself (resident less shared memory, looked at 5 times a "
        "second), its imports included; first step: its batch, forward and backward pass",
    )
    columns = ["split", "first step after, s", "driver, MiB", "worker, MiB", "feeding task, MiB"]
    return Report("A stage over many rows", columns, rows, notes, measured)
