#!/usr/bin/env python
"""Score a checkpoint on a split: every row once, one confusion matrix over all of them for each protocol.

A model of another task is scored by its own (top-1, box AP, PQ), under the one protocol that its recipe has.

The checkpoint knows its model, its classes and the rows that it was trained on; it is not scored on those. Prints mIoU
with its protocol, IoU and F1 (Dice) per class, each IoU with its 95 % interval (bootstrap over images); with --out also
writes scores.json, with every digit, and pictures.

Several protocols cost one pass: each row is read once, and what protocols have in common is predicted once.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.base.door import VERSION, check_local, program, run, writable
from pipelines.base.errors import InputError
from pipelines.base.text import Progress
from pipelines.recipes.protocols import check_names, describe

if TYPE_CHECKING:
    from pipelines.runs.checkpoint import Checkpoint
    from pipelines.scoring.counting import ImageCounts
    from pipelines.scoring.evaluation import Task
    from pipelines.scoring.scored import Scored as TaskScored
    from pipelines.scoring.task_evaluation import TaskPlan

EXAMPLES = """\
examples:
  python -m pipelines.evaluate ~/context-heads/runs/NAME/camvid/best.pt data/camvid/val
  python -m pipelines.evaluate best.pt s3://bucket/voc12/val --mode slide --stride 342 342 --workers 4
  python -m pipelines.evaluate best.pt data/voc12/val --scales 0.75 1.0 1.25 --flip --out scores/
  python -m pipelines.evaluate best.pt data/voc12/val --protocol single --protocol reconet
  python -m pipelines.evaluate best.pt data/voc12/val --boundary --strata --calibration --out scores/

protocols:
{protocols}
"""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        program(),
        description=__doc__,
        epilog=EXAMPLES.format(protocols=describe()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="best.pt or step-….pt of a run, or a finished run; a path or a URI")
    parser.add_argument("shards", help="folder or URI of one split's shards")
    parser.add_argument(
        "--protocol", action="append", default=[], metavar="NAME", dest="protocols",
        help="score under a protocol of the list below; may be given several times (default: the recipe's inference)",
    )  # fmt: skip
    parser.add_argument("--mode", choices=["whole", "slide"], help="whole image or sliding window (default: recipe)")
    parser.add_argument("--window", type=int, nargs=2, metavar=("H", "W"), help="pixels (default: the training crop)")
    parser.add_argument(
        "--stride", type=int, nargs=2, metavar=("H", "W"), help="pixels (default: the recipe's, else 2/3 of the window)"
    )
    parser.add_argument("--scales", type=float, nargs="+", help="image scales to average over (default: the recipe's)")
    parser.add_argument("--flip", action="store_true", default=None, help="average with the mirrored image")
    parser.add_argument("--average", help="what is averaged: probabilities (the default), logits, exponentials")
    parser.add_argument(
        "--boundary", action="store_true", help="also boundary F-score and trimap IoU at 3, 5, 9 and 12 pixels"
    )
    parser.add_argument("--strata", action="store_true", help="also scores of small, middle and large objects")
    parser.add_argument("--calibration", action="store_true", help="also whether probabilities are what they say")
    parser.add_argument("--workers", type=int, help="Ray workers, on CPUs a core each (default: this process)")
    parser.add_argument(
        "--gpus", type=int, choices=[0, 1],
        help="GPUs of each worker, or of this process: 0 for CPUs (default: 1 where there are any)",
    )  # fmt: skip
    parser.add_argument(
        "--precision", choices=["auto", "bf16", "fp16", "fp32"], default="auto",
        help="default: bf16 on GPUs that have it, else fp32",
    )  # fmt: skip
    parser.add_argument("--allow-seen", action="store_true", help="score on training rows all the same, and say so")
    parser.add_argument("--out", type=Path, help="folder for scores.json, scores.csv and pictures")
    parser.add_argument("--version", action="version", version=VERSION)
    return parser.parse_args()


def main() -> None:
    args = parse()
    from datasets.storage import below
    from pipelines.feed.plan import open_shards
    from pipelines.runs.named import named_checkpoint

    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers {args.workers}: 1 or more; without it, only this process scores")
    check_names(args.protocols)
    if args.out:
        check_local("--out", args.out)
    path, uri = named_checkpoint(args.checkpoint), below(str(Path.cwd()), args.shards)
    if not path.is_file():
        raise InputError(
            f"no checkpoint {path}; those of a run are RUN/STAGE/best.pt and RUN/STAGE/checkpoints/step-….pt"
        )
    rows = len(open_shards(uri))  # their faults are told before PyTorch is imported, which takes seconds
    shown = args.checkpoint if "://" in args.checkpoint else path
    print(f"{shown} on the {rows:,} rows of {uri}: PyTorch is imported, the checkpoint is read", flush=True)
    from pipelines.recipes.tasks import SEGMENTATION
    from pipelines.runs.checkpoint import Checkpoint
    from pipelines.scoring.evaluation import Wishes, plan_evaluation
    from pipelines.scoring.measures import MEASURES
    from pipelines.scoring.report import Scored, print_scores, write_scores

    checkpoint = Checkpoint.read(path, mapped=True)
    if checkpoint.recipe.task != SEGMENTATION:
        evaluate_task(args, path, checkpoint, uri)
        return
    measures = [name for name in MEASURES if getattr(args, name)]
    wishes = Wishes(args.protocols, overrides(args), args.average, measures)
    task = plan_evaluation(path, checkpoint, uri, wishes, args.precision, args.allow_seen).named(args.checkpoint)
    if args.out:
        writable("--out", args.out)
    for name in task.protocols:
        print(f"scores {name}: {task.words(name)}", flush=True)
    scored = [
        Scored.of(name, task, counts) for name, counts in count(task, checkpoint, args.workers, args.gpus).items()
    ]
    print_scores(checkpoint.classes, scored)
    if args.out:
        print(f"written: {args.out}/{', '.join(write_scores(args.out, task, checkpoint, scored))}")


def evaluate_task(args: argparse.Namespace, path: Path, checkpoint: Checkpoint, uri: str) -> None:
    """Score a checkpoint of another task than segmentation, under the one protocol that its recipe has.

    Raises:
        InputError: protocols or measures of segmentation are asked for; and as `plan_task`.
    """
    from pipelines.base.files import replacing, write_json
    from pipelines.base.pictures import class_figures
    from pipelines.recipes.tasks import metric_of
    from pipelines.runs.results import percent
    from pipelines.scoring.task_evaluation import lines, page, plan_task

    task = checkpoint.recipe.task
    ways = [*overrides(args), *(n for n in ("boundary", "strata", "calibration", "average") if getattr(args, n))]
    if args.protocols or ways:
        raise InputError(
            f"{path} is of task: {task}, which has one protocol: leave out "
            f"{', '.join(f'--{name}' for name in (['protocol'] if args.protocols else []) + ways)}"
        )
    plan = plan_task(path, checkpoint, uri, args.precision, args.allow_seen).named(args.checkpoint)
    if args.out:
        writable("--out", args.out)
    print(f"scores: {plan.words}", flush=True)
    scored = score_task(plan, checkpoint, args.workers, args.gpus)
    print("\n".join(lines(plan, checkpoint, scored)))
    if args.out:
        write_json(args.out / "scores.json", page(plan, checkpoint, scored))
        title = f"{path.name}: {metric_of(task)} {percent(scored.value)} %\n{plan.words}"
        figures = class_figures(metric_of(task), scored.classes, checkpoint.classes, title, scored.confusion)
        for name, draw in figures.items():
            with replacing(args.out / f"{name}.png") as temporary:
                draw().savefig(temporary)
        print(f"written: {args.out}/{', '.join(['scores.json', *(f'{name}.png' for name in figures)])}")


def score_task(plan: TaskPlan, checkpoint: Checkpoint, workers: int | None, gpus: Literal[0, 1] | None) -> TaskScored:
    """The scores of the split, by this process or by Ray workers, each on so many GPUs."""
    from pipelines.scoring.task_evaluation import evaluate_here, evaluate_on_ray

    progress = Progress(plan.rows, "images", lambda line: print(line, flush=True))
    if workers is None:
        from pipelines.cluster.device import device_here

        done = 0

        def beat(images: int) -> None:
            nonlocal done
            done += images
            progress.reach(done)

        return evaluate_here(plan, checkpoint, device_here(gpus), beat)
    from pipelines.cluster.session import ray_cluster
    from pipelines.recipes.recipe import Workers

    print(f"Ray starts, {workers} worker(s) score", flush=True)
    with ray_cluster(Workers(count=workers, gpus=gpus)) as sizes:
        return evaluate_on_ray(plan, sizes, progress.reach)


def overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The keys of the recipe's `inference` that the command line gives."""
    keys = ("mode", "window", "stride", "scales", "flip")
    return {key: getattr(args, key) for key in keys if getattr(args, key) is not None}


def count(
    task: Task, checkpoint: Checkpoint, workers: int | None, gpus: Literal[0, 1] | None
) -> dict[str, ImageCounts]:
    """Confusion counts of the split's images, by this process or by Ray workers, each on so many GPUs."""
    from pipelines.scoring.evaluation import evaluate_here, evaluate_on_ray

    progress = Progress(task.manifest.rows, "images", lambda line: print(line, flush=True))
    if workers is None:
        done = itertools.count(1)  # counted by threads: `next` is one step of the interpreter

        def beat(images: int) -> None:
            for _ in range(images):
                progress.reach(next(done))

        from pipelines.cluster.device import device_here
        from pipelines.scoring.counting import Share

        return evaluate_here(task, checkpoint, Share(device_here(gpus)), beat)
    from pipelines.cluster.session import ray_cluster
    from pipelines.recipes.recipe import Workers

    print(f"Ray starts, {workers} worker(s) score", flush=True)
    with ray_cluster(Workers(count=workers, gpus=gpus)) as sizes:
        return evaluate_on_ray(task, sizes, progress.reach)


if __name__ == "__main__":
    run(main)
