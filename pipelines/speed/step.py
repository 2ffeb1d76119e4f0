"""The training step of a recipe end to end, against the same step on a batch that is on the device.

Both run the project's own loop, from `run_recipe` to the checkpoint. `resident` replaces only the feed: one batch,
moved to the device once, again and again. What is left between the two is the price of the data.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Generator, Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.recipes.recipe import Recipe
    from pipelines.speed.report import Report
    from pipelines.training.stage import Feed

REPEATS = 3
LINES = 6  # of the record, per run; the first holds the warming up and is left out
FORMS = {
    "fp32": ["workers.precision=fp32", "workers.channels_last=false"],
    "bf16": ["workers.precision=bf16", "workers.channels_last=false"],
    "bf16+channels_last": ["workers.precision=bf16", "workers.channels_last=true"],
    "fp32+compile": ["workers.precision=fp32", "workers.channels_last=false", "workers.compile=true"],
    "bf16+channels_last+compile": ["workers.precision=bf16", "workers.channels_last=true", "workers.compile=true"],
}
FEEDS = {
    "resident": ["workers.count=0", "feed=torch"],
    "feed=ray": ["workers.count=1", "feed=ray"],
    "feed=torch": ["workers.count=1", "feed=torch"],
}
SMALL = [
    "backbone.name=resnet18", "backbone.output_stride=16", "head.channels=64", "head.rank=8", "view.crop=[64,64]",
    "batch=8", "workers.gpus=0",
]  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--recipe", default="reconet/voc12_coco_resnet101s", help="default %(default)s, random weights")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="replaces a key of the recipe: batch=32 view.crop=[473,473]"
    )
    parser.add_argument(
        "--forms", nargs="+", metavar="FORM", help=f"of {', '.join(FORMS)} (default: fp32, on a GPU all)"
    )
    parser.add_argument("--feeds", nargs="+", default=list(FEEDS), metavar="FEED", help=f"of {', '.join(FEEDS)}")
    parser.add_argument("--steps", type=int, default=60, help=f"of each run, {LINES} or more (default %(default)s)")
    parser.add_argument("--rows", type=int, default=256, help="drawn images, of the crop's size (default %(default)s)")


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be measured.

    Raises:
        InputError: an unknown form or feed, or too few steps.
    """
    from pipelines.base.errors import InputError
    from pipelines.base.text import nearest

    for given, known in ((args.forms or [], FORMS), (args.feeds, FEEDS)):
        if unknown := [name for name in given if name not in known]:
            raise InputError(f"no form or feed {unknown[0]!r}{nearest(unknown[0], known)} Known: {', '.join(known)}")
    if "resident" not in args.feeds:
        raise InputError("--feeds lacks `resident`, which the others are compared with")
    if args.steps < 2 * LINES or args.rows < 1:
        raise InputError(f"--steps {args.steps} --rows {args.rows}: at least {2 * LINES} steps and one row")


def measure(args: argparse.Namespace) -> Report:
    """All forms one after the other; within a form the feeds take turns, in one Ray session."""
    from pipelines.cluster.session import ray_cluster
    from pipelines.cluster.sizes import machine
    from pipelines.driver.run import store_bytes
    from pipelines.recipes.reading import load_recipe
    from pipelines.speed.drawn import drawn_shards, scratch

    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # each run compiles again, as a user's first does
    gpus = machine()[1]
    words = ["backbone.weights=null", "mlflow_model=false", *([] if gpus else SMALL), *args.overrides]
    forms = args.forms or (list(FORMS) if gpus else ["fp32"])
    base = load_recipe(args.recipe, [*words, "workers.count=1"])
    measured: dict[str, dict[str, list[list[float]]]] = {form: {feed: [] for feed in args.feeds} for form in forms}
    with scratch() as folder:
        data = drawn_shards(folder / "data", max(args.rows, base.batch), base.view.crop)
        needs_ray = set(args.feeds) != {"resident"}
        with ray_cluster(base.workers, functools.partial(store_bytes, base)) if needs_ray else contextlib.nullcontext():
            for form in forms:
                for turn in range(args.repeats):
                    for feed in args.feeds:
                        recipe = load_recipe(args.recipe, [*words, *FORMS[form], *FEEDS[feed]])
                        name = f"{form}-{feed}-{turn}".replace("=", "-").replace("+", "-")
                        recipe = one_stage(recipe, name, str(data), folder, args.steps)
                        measured[form][feed].append(speeds(recipe, feed == "resident"))
    return report(args, base, measured, gpus)


def one_stage(recipe: Recipe, name: str, data: str, output: Path, steps: int) -> Recipe:
    """The recipe with a single stage over the drawn rows, without validation."""
    from pipelines.recipes.recipe import InferenceSpec, Stage

    stage = Stage("step", "train", steps=steps, lr=1e-4)  # small: the loss must stay finite, nothing more
    return dataclasses.replace(
        recipe, name=name, data=data, output=str(output), stages=(stage,), tracking=None,
        inference=InferenceSpec("slide"), validation=None,  # windows of the crop, whatever it is; none is predicted
        log_every=-(-steps // LINES), checkpoint_minutes=1e6,
    )  # fmt: skip


def speeds(recipe: Recipe, resident: bool) -> list[float]:
    """Run it, its progress going to stderr; images/s of each `train` line of its record."""
    from pipelines.driver.run import run_recipe
    from pipelines.runs.folder import RunFolder
    from pipelines.runs.record import read_record

    with contextlib.redirect_stdout(sys.stderr):
        run_recipe(recipe, resident_feed(recipe) if resident else None)
    lines, _ = read_record(RunFolder(Path(recipe.output) / "runs" / str(recipe.name)).stage("step").record)
    return [line["images_per_s"] for line in lines if line["kind"] == "train"]


def resident_feed(recipe: Recipe) -> Feed:
    """A feed that gives the plan's first batch at every step, moved to the device once."""
    import torch

    from pipelines.feed.batch import Batch
    from pipelines.feed.batches import train_batches
    from pipelines.feed.plan import SamplePlan

    device = torch.device("cuda" if torch.cuda.is_available() and recipe.workers.gpus != 0 else "cpu")
    channels_last = device.type == "cuda" if recipe.workers.channels_last is None else recipe.workers.channels_last

    def feed(plan: SamplePlan, *unused: Any) -> Generator[Batch]:
        batch = next(train_batches(plan, "torch", 0)).to(device, channels_last)
        for _ in range(plan.start, plan.steps):
            yield batch

    return feed


def report(
    args: argparse.Namespace, recipe: Recipe, measured: dict[str, dict[str, list[list[float]]]], gpus: int
) -> Report:
    """A row per form and feed: images/s, the ratio to the resident batch, and what the first lines lost."""
    from pipelines.speed.report import Report, goal, ratios, spread

    per_line = -(-args.steps // LINES) * recipe.batch
    rows, notes = [], []
    for form, feeds in measured.items():
        rates = {feed: [median(run[1:]) for run in runs] for feed, runs in feeds.items()}
        for feed, runs in feeds.items():
            against = ratios(rates[feed], rates["resident"])
            lost = [per_line / run[0] - per_line / median(run[1:]) for run in runs]
            rows.append([f"{form}, {feed}", spread(rates[feed]), spread(against, 2), spread(lost)])
            if feed != "resident":
                notes.append(goal(f"{form}, {feed} / resident", median(against), 0.95))
    notes += amortised(measured, per_line, recipe.batch)
    crop = "x".join(map(str, recipe.view.crop))
    where = "one GPU" if gpus else "CPUs, so a small model: the ratio says little, feed and model share the cores"
    notes.insert(0, f"{args.recipe} with {recipe.backbone.name}, crop {crop}, batch {recipe.batch}, on {where}; "
                 f"{args.rows} drawn images; {args.steps} steps a run, without the first of {LINES} lines; "
                 f"{args.repeats} rounds in turn; lost at first: seconds by which the first line took longer than the "
                 "others (warming up; compiling, without a cache)")  # fmt: skip
    columns = ["step", "images/s", "to resident", "lost at first, s"]
    return Report("The training step against the same step without data", columns, rows, notes, dict(measured))


def amortised(measured: Mapping[str, Mapping[str, list[list[float]]]], per_line: int, batch: int) -> list[str]:
    """For each compiled form, after how many steps on the resident batch its compilation has paid.

    Args:
        measured: form -> feed -> run -> images/s of each line.
        per_line: images of a line.
        batch: images of a step.
    """
    notes = []
    for form in measured:
        eager = form.removesuffix("+compile")
        if eager == form or eager not in measured:
            continue
        runs = {name: measured[name]["resident"] for name in (eager, form)}
        steps = {name: median(batch / median(run[1:]) for run in of) for name, of in runs.items()}
        lost = {name: median(per_line / run[0] - per_line / median(run[1:]) for run in of) for name, of in runs.items()}
        cost, gain = lost[form] - lost[eager], steps[eager] - steps[form]
        paid = f"paid for after {cost / gain:,.0f} steps" if gain > 0 else "never paid for: its steps are no shorter"
        times = f"a step {1e3 * steps[form]:.0f} ms for {1e3 * steps[eager]:.0f}"
        notes.append(f"compiling {form} took {cost:.1f} s, {times}: {paid}")
    return notes
