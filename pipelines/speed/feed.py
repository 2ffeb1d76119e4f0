"""Ray Data against a torch DataLoader, in real Ray Train workers.

Each worker iterates the batches of its share of one plan, through Ray Data and through a DataLoader in turn; both
have the same number of decoding tasks and give the same bytes. The workers do nothing else: the feed is the limit.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.cluster.sizes import Sizes
    from pipelines.feed.plan import SamplePlan
    from pipelines.recipes.recipe import Recipe
    from pipelines.speed.report import Report

TURNS = 4  # of all tasks of a worker, in one round of a kind, at the least: the rate is that of the last but one
LARGEST_GAP = 0.3  # seconds between two batches that a goal allows
FIRST = 6.0  # seconds from fit() to the first batch that a goal allows


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="train workers (default 1 2)")
    parser.add_argument("--rows", type=int, default=512, help="drawn 480x360 images (default %(default)s)")
    parser.add_argument("--shards", metavar="URI", help="a split's shards instead of drawn ones")
    parser.add_argument("--crop", type=int, nargs=2, default=(352, 352), metavar=("H", "W"), help="default 352 352")
    parser.add_argument("--batch", type=int, default=16, help="images of a step over all workers (default 16)")
    parser.add_argument("--epochs", type=int, help="of each kind in each round, or more where a rate takes them")
    parser.add_argument("--tasks", type=int, help="decoding tasks of each worker (default: what the machine carries)")
    parser.add_argument(
        "--consumers", type=int, metavar="N", help="instead: what this machine gives so many at once, part by part"
    )
    parser.add_argument("--pace", type=float, default=0.0, metavar="S", help="seconds that a step takes (default 0)")


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be measured.

    Raises:
        InputError: an impossible value.
    """
    from pipelines.base.errors import InputError

    if wrong := [n for n in args.workers if n < 1 or args.batch % n]:
        raise InputError(f"--workers {wrong[0]}: 1 or more, and --batch {args.batch} must fall into equal shares")
    if args.consumers is not None and (args.consumers < 1 or args.batch % args.consumers):
        raise InputError(
            f"--consumers {args.consumers}: 1 or more, and --batch {args.batch} must fall into equal shares"
        )
    if args.rows < 2 * args.batch:
        raise InputError(f"--rows {args.rows}: two batches of {args.batch} are the least")


def measure(args: argparse.Namespace) -> Report:
    """One session per number of workers; within it the kinds take turns."""
    from pipelines.base.addresses import locate
    from pipelines.speed.drawn import drawn_shards, scratch

    measured = {}
    with scratch() as folder:
        uri = locate(str(Path.cwd()), args.shards) if args.shards else ""
        uri = uri or str(drawn_shards(folder / "data", args.rows, (360, 480)) / "train")
        if args.consumers:
            from pipelines.speed.feed_node import node_report

            return node_report(args, recipe_of(args, args.consumers), uri)
        for count in args.workers:
            measured[count] = session(args, count, uri, folder / f"workers-{count}")
    return report(args, measured)


def recipe_of(args: argparse.Namespace, count: int) -> Recipe:
    """The recipe whose feed is measured."""
    from pipelines.recipes.recipe import Recipe, Stage, View, Workers

    return Recipe(
        stages=(Stage("feed", "train", epochs=1),),  # how many are drained is the plan's business
        batch=args.batch,
        view=View(crop=tuple(args.crop)),
        workers=Workers(count=count, gpus=0, feed_tasks=args.tasks),
    )


def session(args: argparse.Namespace, count: int, uri: str, folder: Path) -> dict[str, Any]:
    """Start Ray, train nothing on `count` workers; returns all rounds of all workers, the store's peak and bound."""
    from pipelines.cluster.early import start_early
    from pipelines.cluster.session import ray_cluster
    from pipelines.driver.run import store_bytes
    from pipelines.runs.mlflow_client import open_client
    from pipelines.speed.drain import merge
    from pipelines.speed.store import StorePeak

    recipe = recipe_of(args, count)
    folder.mkdir(parents=True)
    with ray_cluster(recipe.workers, partial(store_bytes, recipe), early=start_early) as sizes, StorePeak() as peak:
        plan = plan_of(args, recipe, uri, sizes)
        with open_client(f"sqlite:///{folder}/mlflow.db") as client:
            client.search_experiments()  # as a run does before it trains
        began = time.time()
        fit(plan, sizes, args.repeats, args.pace, folder)
    ranks = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(count)]
    return {"rounds": merge(ranks, plan, sizes.feed_tasks), "tasks": sizes.feed_tasks, "steps": plan.steps,
            "entered": ranks[0]["entered"] - began, "first": ranks[0]["rounds"][0]["first_at"] - began,
            "store": peak.bytes, "spilled": peak.spilled, "bound": store_bytes(recipe, sizes)}  # fmt: skip


def plan_of(args: argparse.Namespace, recipe: Recipe, uri: str, sizes: Sizes) -> SamplePlan:
    """What one kind feeds in one round: whole epochs, `TURNS` turns of all tasks or more."""
    import dataclasses

    from datasets.transforms import TrainView
    from pipelines.feed.plan import SamplePlan, open_shards
    from pipelines.speed.drain import turn_steps

    rows = len(open_shards(uri))
    plan = SamplePlan(uri, rows, TrainView(**dataclasses.asdict(recipe.view)), 0, args.batch, 0, world=sizes.count)
    least = -(-TURNS * turn_steps(plan, sizes.feed_tasks) * args.batch // rows)
    epochs = max(least, args.epochs or 0)
    return dataclasses.replace(plan, steps=epochs * rows // args.batch)


def fit(plan: SamplePlan, sizes: Sizes, repeats: int, pace: float, folder: Path) -> None:
    """Run `consume` on the workers that a training would have."""
    from pipelines.cluster.group import trainer

    def enter(config: dict[str, Any]) -> None:
        from pipelines.cluster.group import process_group
        from pipelines.speed.drain import consume

        with process_group():
            consume(**config)

    config = {"plan": plan, "sizes": sizes, "repeats": repeats, "pace": pace, "folder": folder}
    trainer(enter, config, sizes, "feed", folder / "ray", failures=0).fit()


def report(args: argparse.Namespace, measured: dict[int, dict[str, Any]]) -> Report:
    """A row per number of workers and kind; the store's use below."""
    from pipelines.speed.drain import KINDS
    from pipelines.speed.report import Report, goal, ratios, spread

    rows, notes, values = [], [], {}
    for count, session in measured.items():
        by_kind = {kind: [r for r in session["rounds"] if r["kind"] == kind] for kind in KINDS}
        rates = {kind: [r["images_per_s"] for r in rounds] for kind, rounds in by_kind.items()}
        against = {kind: ratios(rates[kind], rates["torch"]) for kind in KINDS}
        for kind, rounds in by_kind.items():
            rows.append([
                f"{count} worker{'s' * (count > 1)}, feed={kind}", spread(rates[kind], 0), spread(against[kind], 2),
                *(spread([r[key] for r in rounds], 2) for key in ("first_s", "gap_s", "border_s")),
            ])  # fmt: skip
        border = max(r["border_s"] for r in by_kind["ray"])
        mib = {key: session[key] / 2**20 for key in ("store", "bound", "spilled")}
        notes += [
            f"{count} worker(s) with {session['tasks']} task(s) each, {session['steps']} steps a round: fit() to the "
            f"loop {session['entered']:.1f} s, to its first batch {session['first']:.1f} s; object store at most "
            f"{mib['store']:.0f} MiB of {mib['bound']:.0f} MiB, {mib['spilled']:.0f} MiB spilled",
            goal(f"{count} worker(s), fit() to the first batch, s", session["first"], FIRST, least=False),
            goal(f"{count} worker(s), ray / torch", median(against["ray"]), 0.95),
            goal(f"{count} worker(s), ray's longest wait at an epoch's border, s", border, LARGEST_GAP, least=False),
            goal(f"{count} worker(s), store used / bound", mib["store"] / mib["bound"], 1, least=False),
        ]
        values[str(count)] = session
    source = args.shards or f"{args.rows} drawn 480x360 images"
    notes.insert(
        0,
        f"{source}, crop {args.crop[0]}x{args.crop[1]}, global batch {args.batch}, each kind once in each of "
        f"{args.repeats} rounds, a step takes {args.pace:g} s; images/s: of the second half, from task to task; first "
        "batch: from the call of train_batches; waits: the longest for any later batch, and for the first of an epoch",
    )
    columns = ["feed", "images/s", "to torch", "first batch, s", "longest wait, s", "at a border, s"]
    return Report("Ray Data against a torch DataLoader", columns, rows, notes, values)
