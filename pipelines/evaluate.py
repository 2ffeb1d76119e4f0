#!/usr/bin/env python
"""Score a checkpoint on a split: every row once, one confusion matrix over all of them.

The checkpoint knows its model, its classes and the rows that it was trained on; it is not scored on those. Prints mIoU
with its protocol, IoU and F1 (Dice) per class; with --out also writes scores.json, with every digit, and pictures.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.base.door import program, run, version, writable
from pipelines.base.errors import InputError
from pipelines.base.files import replacing, write_json
from pipelines.base.polling import Polling
from pipelines.base.text import Progress, clock

if TYPE_CHECKING:
    import numpy as np

    from pipelines.runs.checkpoint import Checkpoint
    from pipelines.scoring.evaluation import Task
    from segmodels.metrics import Scores

EXAMPLES = """\
examples:
  python -m pipelines.evaluate ~/context-heads/runs/NAME/camvid/best.pt data/camvid/val
  python -m pipelines.evaluate best.pt s3://bucket/voc12/val --mode slide --stride 342 342 --workers 4
  python -m pipelines.evaluate best.pt data/voc12/val --scales 0.75 1.0 1.25 --flip --out scores/
"""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        program(), description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="best.pt or step-….pt of a run")
    parser.add_argument("shards", help="folder or URI of one split's shards")
    parser.add_argument("--mode", choices=["whole", "slide"], help="whole image or sliding window (default: recipe)")
    parser.add_argument("--window", type=int, nargs=2, metavar=("H", "W"), help="pixels (default: the training crop)")
    parser.add_argument(
        "--stride", type=int, nargs=2, metavar=("H", "W"), help="pixels (default: the recipe's, else 2/3 of the window)"
    )
    parser.add_argument("--scales", type=float, nargs="+", help="image scales to average over (default: the recipe's)")
    parser.add_argument("--flip", action="store_true", default=None, help="average with the mirrored image")
    parser.add_argument("--workers", type=int, help="Ray workers, on CPUs a core each (default: this process)")
    parser.add_argument("--gpus", type=int, choices=[0, 1], help="GPUs of each worker (default: 1 where there are any)")
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto", help="default: bf16 on GPUs")
    parser.add_argument("--allow-seen", action="store_true", help="score on training rows all the same, and say so")
    parser.add_argument("--out", help="folder for scores.json, confusion.png and iou.png")
    parser.add_argument("--version", action="version", version=version())
    return parser.parse_args()


def main() -> None:
    args = parse()
    from datasets.storage import below
    from pipelines.cluster.nodes import output_folder
    from pipelines.feed.plan import open_shards

    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers {args.workers}: 1 or more; without it, only this process scores")
    out = output_folder(args.out, "--out") if args.out else None
    path, uri = args.checkpoint.expanduser().resolve(), below(str(Path.cwd()), args.shards)
    if not path.is_file():
        raise InputError(
            f"no checkpoint {path}; those of a run are RUN/STAGE/best.pt and RUN/STAGE/checkpoints/step-….pt"
        )
    rows = len(open_shards(uri))  # their faults are told before PyTorch is imported, which takes seconds
    print(f"{path} on the {rows:,} rows of {uri}: PyTorch is imported, the checkpoint is read", flush=True)
    from pipelines.runs.checkpoint import Checkpoint
    from pipelines.scoring.evaluation import plan_evaluation
    from segmodels.metrics import scores

    checkpoint = Checkpoint.read(path, mapped=True)
    task = plan_evaluation(path, checkpoint, uri, overrides(args), args.precision, args.allow_seen)
    if out:
        writable("--out", out)
    print(f"scores {task.protocol}", flush=True)
    counts = count(task, checkpoint, args.workers, args.gpus)
    result = scores(counts)
    print_scores(task, result)
    if out:
        write_scores(out, task, checkpoint, counts, result)


def overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The keys of the recipe's `inference` that the command line gives."""
    keys = ("mode", "window", "stride", "scales", "flip")
    return {key: getattr(args, key) for key in keys if getattr(args, key) is not None}


def count(task: Task, checkpoint: Checkpoint, workers: int | None, gpus: Literal[0, 1] | None) -> np.ndarray:
    """Confusion counts of the split, by this process or by Ray workers, each on so many GPUs."""
    from pipelines.cluster.session import ray_cluster
    from pipelines.recipes.recipe import Workers
    from pipelines.scoring.evaluation import evaluate_on_ray

    if workers is None:
        return count_here(task, checkpoint)
    print(f"Ray starts, {workers} worker(s) score", flush=True)
    with ray_cluster(Workers(count=workers, gpus=gpus)) as sizes, waiting():
        return evaluate_on_ray(task, sizes)


def count_here(task: Task, checkpoint: Checkpoint) -> np.ndarray:
    """As `count`, by this process, with lines that say how far it is."""
    import torch

    from pipelines.feed.plan import open_shards
    from pipelines.feed.validation import validation_batches
    from pipelines.scoring.evaluation import load_model
    from pipelines.scoring.validate import validate
    from segmodels.loading import settle_precision

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, batch = load_model(task.recipe, checkpoint, device), task.recipe.inference.batch
    sizes = [len(rows) for rows in validation_batches(open_shards(task.uri), batch)]
    done = itertools.accumulate(sizes, initial=0)
    progress = Progress(sum(sizes), "images", lambda line: print(line, flush=True))
    precision = settle_precision(task.precision, device)
    return validate(
        model, task.uri, task.inference, device, 0, 1, precision, batch, lambda: progress.reach(next(done, 0))
    )


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """While workers score, say every few seconds that they do."""
    began = time.monotonic()

    def say() -> None:
        print(f"  the workers score, for {clock(time.monotonic() - began)} so far", flush=True)

    with Polling(say, lambda: 5.0, "evaluate-progress"):
        yield


def print_scores(task: Task, result: Scores) -> None:
    """Print the scores of each class and of all, with their protocol; every digit is in scores.json."""
    print(f"{'':>20}  {'IoU %':>6}  {'F1 %':>6}")
    for name, iou, f1 in zip(task.manifest.classes, result.iou, result.f1, strict=True):
        print(f"{name:>20}  {percent(iou)}  {percent(f1)}")
    print(f"{'mIoU':>20}  {result.miou * 100:.2f} %   ({task.protocol})")
    print(f"{'mean F1':>20}  {result.mean_f1 * 100:.2f} %")
    print(f"{'pixel accuracy':>20}  {result.accuracy * 100:.2f} %   fwIoU {result.fwiou * 100:.2f} %")


def percent(value: float) -> str:
    """A score of a class, six characters wide."""
    return "absent" if value != value else f"{value * 100:6.2f}"


def write_scores(out: Path, task: Task, checkpoint: Checkpoint, counts: np.ndarray, result: Scores) -> None:
    """Write scores.json, where an absent class has null for its scores, and pictures of the matrix and of the IoU."""
    from pipelines.base import pictures

    classes = checkpoint.classes
    about = {
        "protocol": task.protocol, "checkpoint": str(task.path), "shards": task.uri, "shards_hash": task.manifest.hash,
        "stage": checkpoint.stage, "step": checkpoint.step, "classes": classes, "confusion": counts.tolist(),
    }  # fmt: skip
    write_json(out / "scores.json", dataclasses.asdict(result) | about)
    title = f"mIoU {result.miou * 100:.2f} %\n{task.protocol}"
    figures = {
        "confusion.png": pictures.confusion_figure(counts, classes, title),
        "iou.png": pictures.iou_figure(result.iou, classes, title),
    }
    for name, figure in figures.items():
        with replacing(out / name) as temporary:
            figure.savefig(temporary, dpi=110)
    print(f"written: {out}/scores.json, {', '.join(figures)}")


if __name__ == "__main__":
    run(main)
