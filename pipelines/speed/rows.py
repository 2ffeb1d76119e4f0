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
    parser.add_argument(
        "--group", type=int, default=64, help="rows of a row group (default %(default)s, as prepare; 1280 is generated "
        "ten times faster)",
    )  # fmt: skip
    parser.add_argument("--keep", type=Path, metavar="DIR", help="shards stay in this folder, and are used again")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for the recipe sample_small, after its own")


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be measured.

    Raises:
        InputError: an impossible value.
    """
    from pipelines.base.errors import InputError
    from pipelines.recipes.reading import load_recipe

    load_recipe("sample_small", [*KEYS, *args.overrides])
    if min(*args.rows, args.per_file, args.group) < 1:
        raise InputError(f"--rows {min(args.rows)} --per-file {args.per_file} --group {args.group}: each 1 or more")


def measure(args: argparse.Namespace) -> Report:
    """For each number of rows: write shards, then train on them with an empty cache and with a filled one."""
    from datasets.manifest import MANIFEST
    from pipelines.speed.drawn import scratch
    from pipelines.speed.many import many_shards

    measured: dict[str, list[dict[str, Any]]] = {}
    for rows in args.rows:
        for _ in range(args.repeats):
            with scratch() as folder:
                data = (args.keep or folder).absolute() / f"{rows}-{args.per_file}-{args.group}"
                if not (data / MANIFEST).exists():
                    many_shards(data, rows, args.per_file, args.group)
                written = parts(data, folder / "apart")
                for cache in ("empty", "filled"):
                    words = [*KEYS, *args.overrides, f"stages.many.train={data}", f"output={folder / 'out'}"]
                    run = trained([*words, f"name={cache}"], folder / "out" / "runs" / cache)
                    measured.setdefault(f"{rows:,} rows, cache {cache}", []).append(written | run)
    return report(args, measured)


def parts(data: Path, cache: Path) -> dict[str, float]:
    """Seconds of the processor for what is done for all rows: their index, the driver's check, an epoch's order."""
    from datasets.shards import Shards
    from datasets.transforms import epoch_order
    from pipelines.scoring.seen import digests

    shards, seconds = Shards(str(data), cache), {}
    work = {
        "index_s": lambda: shards.index,
        "check_s": lambda: digests(shards),
        "order_s": lambda: epoch_order(len(shards), 0, 0),
    }
    for name, one in work.items():
        began = time.process_time()
        one()
        seconds[name] = time.process_time() - began
    return seconds


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


def report(args: argparse.Namespace, measured: dict[str, list[dict[str, Any]]]) -> Report:
    """A row per number of rows and state of the cache."""
    from pipelines.speed.report import Report, goal, spread

    rows, notes = [], []
    for name, runs in measured.items():
        seconds, kinds = (
            {key: [run[key] for run in runs] for key in keys}
            for keys in (("first_s", "index_s", "check_s", "order_s"), ("driver", "worker", "task"))
        )
        rows.append(
            [name, *map(spread, seconds.values()), *(spread([v / 2**20 for v in k], 0) for k in kinds.values())]
        )
        largest = max(map(max, kinds.values())) / 2**30
        notes += [
            goal(f"{name}, from the command to the first step, s", max(seconds["first_s"]), SECONDS, least=False),
            goal(f"{name}, GiB of the largest process", largest, GIB, least=False),
        ]
    notes.insert(
        0,
        f"{args.per_file} rows a file, {args.group} a row group, ids unordered; sample_small, one worker, one feeding "
        f"task, {STEPS} steps; MiB: the most that a process of each kind held for itself (resident less shared, "
        "looked at 5 times a second), imports included; first step: its batch, forward and backward pass; index of "
        "the rows, check of what was trained on, order of an epoch: seconds of the processor, measured by themselves",
    )
    columns = [
        "split",
        "first step after, s",
        "index, s",
        "check, s",
        "order, s",
        "driver, MiB",
        "worker, MiB",
        "feeding task, MiB",
    ]
    return Report("A stage over many rows", columns, rows, notes, measured)
