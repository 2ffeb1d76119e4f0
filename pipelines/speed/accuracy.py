"""Train recipes on CamVid and print their val mIoU: the check that speed was not bought with accuracy.

Shards come from `python -m pipelines.prepare camvid`; DATA is the folder that holds camvid/train and camvid/val. On
CPUs the recipes are shrunk to a try-out of a few steps, whose mIoU means nothing; the notes say so.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.recipes.recipe import Recipe
    from pipelines.speed.report import Report

REPEATS = 1
RECIPES = ["fcn/camvid_resnet50s", "reconet/camvid_resnet50s"]
GPU = ["view.crop=[352,480]", "batch=16", "stages.0.epochs={epochs}"]
CPU = [
    "view.crop=[88,120]", "batch=4", "stages.0.epochs=null", "stages.0.steps={steps}", "stages.0.val_every=0",
    "backbone.name=resnet18", "backbone.output_stride=16", "head.channels=32", "aux.channels=16", "workers.gpus=0",
    "log_every=1",
]  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--data", metavar="DATA", help="folder or URI that holds the shards; needed")
    parser.add_argument("--recipes", nargs="+", default=RECIPES, metavar="RECIPE", help=f"default {' '.join(RECIPES)}")
    parser.add_argument("--epochs", type=float, default=200, help="of the one stage (default %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="instead of epochs on CPUs (default %(default)s)")
    parser.add_argument("--output", type=Path, help="keep the runs in this folder, and continue those that it holds")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for all recipes, after the command's own")


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be measured.

    Raises:
        InputError: no data, or no such recipe.
    """
    from pipelines.base.errors import InputError
    from pipelines.recipes.reading import find_recipe

    if not args.data:
        raise InputError("--data is needed: python -m pipelines.prepare camvid --source DIR --out DATA/camvid")
    for recipe in args.recipes:
        find_recipe(recipe)


def measure(args: argparse.Namespace) -> Report:
    """Run all recipes; a repeat is another seed."""
    from pipelines.cluster.sizes import machine
    from pipelines.driver.run import run_recipe
    from pipelines.speed.drawn import scratch

    gpus = machine()[1]
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in args.recipes}
    with contextlib.ExitStack() as stack:
        output = args.output or stack.enter_context(scratch()) / "output"
        for seed in range(args.repeats):
            for name in args.recipes:
                recipe = shaped(args, name, seed, output, bool(gpus))
                began = time.monotonic()
                with contextlib.redirect_stdout(sys.stderr):  # progress is for people, the table for the README
                    result = run_recipe(recipe)[-1]
                measured[name].append(asdict(result) | {"seconds": time.monotonic() - began, "seed": seed})
    return report(args, measured, bool(gpus))


def shaped(args: argparse.Namespace, name: str, seed: int, output: Path, gpu: bool) -> Recipe:
    """The recipe at its full size on a GPU, shrunk on CPUs."""
    from pipelines.recipes.reading import find_recipe, load_recipe

    words = [word.format(epochs=args.epochs, steps=args.steps) for word in (GPU if gpu else CPU)]
    if not gpu and "name: reconet" in find_recipe(name).read_text():
        words += ["head.rank=4", "inference.window=null", "inference.stride=null"]  # windows of the smaller crop
    data = args.data if "://" in args.data else str(Path(args.data).expanduser().resolve())
    words += [f"data={data}", f"output={output}", f"seed={seed}", "mlflow_model=false", *args.overrides]
    return load_recipe(name, words)


def report(args: argparse.Namespace, measured: dict[str, list[dict[str, Any]]], gpu: bool) -> Report:
    """A row per recipe; the first is what the others are compared with."""
    from pipelines.speed.report import Report, ratios, spread

    rates = {name: [result["images_per_s"] for result in results] for name, results in measured.items()}
    base = next(iter(rates))
    rows = []
    for name, results in measured.items():
        if results[0]["miou"] is None:
            scores = ["–", "–"]
        else:
            scores = [spread([r[key] for r in results], 2, 100) for key in ("miou", "best")]
        seconds = spread([r["seconds"] for r in results], 0)
        counts = [str(results[0]["val_rows"] or "–"), str(results[0]["steps"])]
        speed = [spread(rates[name]), f"{median(ratios(rates[name], rates[base])):.2f}"]
        rows.append([name, *scores, *counts, seconds, *speed, results[0]["protocol"]])
    size = f"{args.epochs:g} epochs" if gpu else f"on CPUs, shrunk to {args.steps} steps: a try-out, no scores"
    notes = [
        f"{size}; mIoU in percent, over all val rows, from one confusion matrix: of the last weights and of the best "
        f"of the run; {args.repeats} seed(s); seconds hold Ray's start and all validations; to "
        "first: ratio of images/s",
        *([f"overrides: {' '.join(args.overrides)}"] if args.overrides else []),
    ]
    columns = ["recipe", "val mIoU", "best", "val rows", "steps", "seconds", "images/s", "to first", "protocol"]
    return Report("Accuracy on CamVid", columns, rows, notes, dict(measured))
