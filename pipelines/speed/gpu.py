"""The eight minutes on a GPU that is lent: everything that only a GPU can tell, in the order of its worth.

Each step runs in a process of its own under its own limit, and all together end after --seconds. What is measured is
written to DIR/results.jsonl line by line, and printed beside what was predicted: a kill loses one step. On a machine
without a GPU, `--device cpu --size small` runs every step at a small size, to rehearse.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.speed.report import Report

REPEATS = 1
RESULTS = "results.jsonl"
SECONDS = 480.0
GRACE_S = 5.0  # that a step which is ended gets


@dataclass(frozen=True)
class Step:
    """A step: its module in this room, what it asks, its seconds on an H200, and what its process is given."""

    module: str
    asks: str
    seconds: float
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def limit(self) -> float:
        """Seconds after which it is ended."""
        return 1.3 * self.seconds + 10

    def on(self, device: str) -> float:
        """The limit on a device: a CPU's rehearsal compiles and starts Ray on busy cores."""
        return self.limit if device == "cuda" else 3 * self.limit


SEGMENTS = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
STEPS = {
    "machine": Step("gpu_machine", "versions, memory's and products' speed", 15),
    "heads": Step("gpu_heads", "every head: a step without waits, parity with a CPU's float64, peak memory", 60),
    "steps": Step("gpu_steps", "times of a step, compiled too, and where they go", 90),
    "pair": Step("gpu_pair", "two processes on this GPU: gradients, synchronised norms", 40),
    "feeds": Step("gpu_runs", "a run's images/s with its feeds against a batch at hand", 95),
    "micro": Step("gpu_micro", "upsampling, loss, TRM, DMNet's convolution, the way to the device", 35),
    "whole": Step("gpu_whole", "whole images of new sizes, attention's backends", 20),
    "scales": Step("gpu_whole", "six scales of a large image: its peak", 10),
    "scales-expandable": Step("gpu_whole", "the same with expandable segments", 10, SEGMENTS),
    "learning": Step("gpu_runs", "CamVid or drawn scenes: the loss falls, mIoU", 80),
    "twice": Step("gpu_twice", "the same steps twice, and with deterministic kernels", 20,
                  {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}),
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One thing measured: its name, value and unit, what was predicted, and whether it is as it should be.

    `good` is None where nothing is demanded.
    """

    name: str
    value: float | str
    unit: str = ""
    predicted: str = ""
    good: bool | None = None

    def text(self) -> str:
        """For the screen."""
        value = self.value if isinstance(self.value, str) else f"{self.value:.4g} {self.unit}".rstrip()
        mark = {True: "", False: "  <-- NOT AS IT SHOULD BE", None: ""}[self.good]
        return f"  {self.name:<44} {value:>18}" + (f"   predicted {self.predicted}" if self.predicted else "") + mark


@dataclass(frozen=True)
class Case:
    """What a step is told: its name, the device's kind, whether all is small, and where CamVid's shards are, or ""."""

    name: str
    device: str
    small: bool
    data: str = ""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--out", type=Path, metavar="DIR", help="for results.jsonl and a file per step; needed")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default %(default)s")
    parser.add_argument("--size", choices=("full", "small"), default="full", help="of models and images")
    parser.add_argument("--only", nargs="+", choices=STEPS, metavar="STEP", help=f"of {', '.join(STEPS)}")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all steps (default %(default)g)")
    parser.add_argument("--data", default="", metavar="DATA", help="folder of camvid/train and camvid/val's shards")
    parser.add_argument("--inside", choices=STEPS, help=argparse.SUPPRESS)  # the process of one step


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be measured.

    Raises:
        InputError: no GPU, nowhere to write.
    """
    import torch

    from pipelines.base.door import writable
    from pipelines.base.errors import InputError

    if args.out is None:
        raise InputError("--out DIR is needed: results are written there as they come")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "PyTorch sees no GPU here, and these steps are for one. To rehearse on the CPU: --device cpu --size small"
        )
    if args.seconds <= 0:
        raise InputError(f"--seconds {args.seconds:g}: above 0")
    writable("--out", args.out)


def measure(args: argparse.Namespace) -> Report:
    """All steps in turn; or, in the process of one, that step."""
    if args.inside:
        return inside(Case(args.inside, args.device, args.size == "small", args.data), args.out)
    results = args.out / RESULTS
    results.unlink(missing_ok=True)
    ends, until = {}, time.monotonic() + args.seconds
    for number, name in enumerate(args.only or STEPS):
        left = until - time.monotonic()
        if left < GRACE_S:
            ends[name] = "not run: the time is over"
            continue
        print(f"\n{number} {name}: {STEPS[name].asks} ({STEPS[name].seconds:g} s expected)", flush=True)
        ends[name] = run_step(name, args, min(STEPS[name].on(args.device), left))
        print(f"  {name}: {ends[name]}", flush=True)
        if name == "machine" and ends[name].startswith("failed"):
            break  # the versions do not fit, so no other step says anything
    return report(args, ends, read_results(results))


def run_step(name: str, args: argparse.Namespace, limit: float) -> str:
    """Run a step in a process, with all that this starts; returns how it ended."""
    words = [sys.executable, "-u", "-m", "pipelines.bench", "gpu", "--inside", name, "--out", str(args.out)]
    words += ["--device", args.device, "--size", args.size, "--data", args.data]
    began = time.monotonic()
    with (args.out / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
            env={**os.environ, **STEPS[name].environment},
        )  # fmt: skip
        try:
            with ended_after(process, limit) as over:
                for line in process.stdout or ():
                    if line.startswith("  "):
                        print(line, end="", flush=True)
                    else:
                        log.write(line)
                process.wait()
        finally:
            end_group(process, signal.SIGKILL)
    took = f"{time.monotonic() - began:.0f} s"
    if over.is_set():
        return f"ended after its limit of {limit:.0f} s"
    return (
        f"done in {took}" if process.returncode == 0 else f"failed with exit code {process.returncode}, see {log.name}"
    )


@contextlib.contextmanager
def ended_after(process: subprocess.Popen[str], limit: float) -> Iterator[threading.Event]:
    """Within the body, a process and all below it get SIGTERM after the limit, then SIGKILL; the event says so."""
    over = threading.Event()

    def end(number: signal.Signals) -> None:
        over.set()
        end_group(process, number)

    timers = [threading.Timer(limit, end, [signal.SIGTERM]), threading.Timer(limit + GRACE_S, end, [signal.SIGKILL])]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield over
    finally:
        for timer in timers:
            timer.cancel()


def end_group(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal to a process' group, which is its own."""
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):  # nobody is left in it
        return


def inside(case: Case, out: Path) -> Report:
    """One step in this process: each line is written and printed as it comes."""
    import importlib

    from pipelines.base.files import to_json
    from pipelines.speed.report import Report

    module = importlib.import_module(f"pipelines.speed.{STEPS[case.name].module}")
    began = time.monotonic()
    with (out / RESULTS).open("a") as file:
        for line in module.lines(case):
            entry = {"step": case.name, "seconds": round(time.monotonic() - began, 2), **vars(line)}
            file.write(to_json(entry) + "\n")
            file.flush()
            print(line.text(), flush=True)
    return Report(case.name, ["step"], [[case.name]])


def read_results(path: Path) -> list[dict[str, Any]]:
    """What was written, without a line that a kill cut off."""
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def report(args: argparse.Namespace, ends: Mapping[str, str], found: Sequence[Mapping[str, Any]]) -> Report:
    """A row per line; below, how each step ended."""
    from pipelines.speed.report import Report

    rows = []
    for entry in found:
        value = entry["value"]
        shown = value if isinstance(value, str) else "–" if value is None else f"{value:.4g} {entry['unit']}".rstrip()
        good = {True: "yes", False: "NO", None: ""}[entry["good"]]
        rows.append([f"{entry['step']}: {entry['name']}", shown, entry["predicted"], good])
    notes = [f"{name}: {end}" for name, end in ends.items()]
    wrong = [f"{entry['step']}: {entry['name']}" for entry in found if entry["good"] is False]
    notes.append(f"not as they should be: {', '.join(wrong) or 'none'}")
    where = f"on {args.device}, size {args.size}" + (", where predictions do not hold" if args.size == "small" else "")
    return Report(
        f"One GPU, {where}", ["what", "measured", "predicted for an H200", "good"], rows, notes, {"lines": found}
    )
