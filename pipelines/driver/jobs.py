"""What the driver tells the workers of each stage, and what it makes of the outcome."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets.manifest import Manifest
from pipelines.cluster.sizes import Sizes, threads
from pipelines.driver.costs import cost_metrics, cost_of
from pipelines.driver.planned import PlannedStage
from pipelines.driver.weights import Weights
from pipelines.recipes.model import how
from pipelines.recipes.recipe import Recipe, flatten
from pipelines.recipes.tasks import metric_of
from pipelines.runs.folder import RunFolder, StageFolder
from pipelines.runs.record import read_record
from pipelines.runs.results import About, Outcome, Result
from pipelines.runs.screen import FollowedStage
from pipelines.runs.where import shown_path
from pipelines.training.job import Job
from segmodels.cost import card


def make_jobs(
    recipe: Recipe,
    planned: Sequence[PlannedStage],
    folder: Path,
    sizes: Sizes,
    weights: Weights,
    sample: Callable[[Path], None] = lambda path: None,
) -> tuple[list[Job], list[FollowedStage]]:
    """Jobs for the workers, one for each stage that is not done, and how the driver follows and finishes it.

    Args:
        weights: that the first stage starts from.
        sample: notes how busy the machine is, in a stage's system.jsonl.
    """
    jobs, followed = [], []
    run = RunFolder(folder)
    for index, plan in enumerate(planned):
        place = run.stage(plan.stage.name)
        if place.result.exists():
            print(f"{plan.stage.name:>18}  is finished, not run again")
            continue
        place.path.mkdir(exist_ok=True)
        before = planned[index - 1] if index else None
        initial = run.stage(before.stage.name).checkpoint(before.steps) if before else None
        given = Weights() if before else weights
        jobs.append(make_job(recipe, plan, place.path, sizes, given, initial))
        about = about_stage(recipe, plan, given)
        about.write(place.about)
        finish = partial(finish_stage, recipe, plan, place)
        followed.append(FollowedStage(place, about, finish, partial(sample, place.system)))
    return jobs, followed


def make_job(
    recipe: Recipe, plan: PlannedStage, folder: Path, sizes: Sizes, weights: Weights, initial: Path | None
) -> Job:
    """What the workers need to know of a stage."""
    train = plan.train
    return Job(
        recipe=recipe, stage=plan.stage, folder=folder, train=plan.train_uri, val=plan.val_uri,
        classes=tuple(train.classes), palette=train.palette, rows=train.rows, steps=plan.steps,
        sizes=sizes, threads=threads(sizes), weights=weights.trunk, start=weights.start, initial=initial,
        flip_pairs=train.flip_pairs, seen=plan.seen,
    )  # fmt: skip


def finish_stage(recipe: Recipe, plan: PlannedStage, place: StageFolder) -> None:
    """Turn a stage's outcome into its result, which ends it for good."""
    outcome, val = Outcome.read(place.outcome), plan.val
    where = partial(shown_path, recipe, place.path.parent)
    record = read_record(place.record)[0]
    lines = [line for line in record if line["kind"] == "val" and line["step"] == outcome.step]
    tests = [line["tests"] for line in record if line["kind"] == "test"]
    Result(
        stage=plan.stage.name, rows=plan.train.rows, steps=outcome.step, val_rows=val.rows if val else None,
        miou_before=outcome.before, miou=outcome.after, best=outcome.best if val else None,
        best_step=outcome.best_step if val else None, images_per_s=outcome.images_per_s,
        checkpoint=where(place.checkpoint(outcome.step)), best_checkpoint=where(place.best) if val else None,
        protocol=how(recipe), time=int(time.time() * 1000),
        classes=plan.train.classes, iou=lines[-1]["iou"] if lines else (),
        accuracy=lines[-1].get("accuracy") if lines else None, tests=tests[-1] if tests else {},
        metric=metric_of(recipe.task), named=lines[-1].get("named", {}) if lines else {},
    ).write(place.result)  # fmt: skip


def about_stage(recipe: Recipe, plan: PlannedStage, weights: Weights) -> About:
    """What MLflow is told of a stage: parameters, cost card, origin of rows and weights, the machines of a cluster."""
    train, val = plan.train, plan.val
    cost = cost_of(recipe, len(train.classes))
    params = flatten(dataclasses.asdict(plan.stage), "stage") | {f"cost.{k}": v for k, v in card(cost).items()}
    params |= {"shards.train": plan.train_uri, "shards.train.hash": train.hash, "shards.train.rows": train.rows}
    if val:
        params |= {"shards.val": plan.val_uri, "shards.val.hash": val.hash, "shards.val.rows": val.rows}
        params |= {"shards.val.official_rows": val.official_rows, "protocol": how(recipe)}
    params |= {"classes": len(train.classes), "steps": plan.steps, f"{weights.key}.sha256": weights.sha256}
    params |= {f"{weights.key}.{what}": text for what, text in weights.taken.items()}
    shards = {part: shard_facts(split) for part, split in (("train", train), ("val", val)) if split}
    costs = cost_metrics(recipe, len(train.classes), cost)
    return About(params, nodes_tag(), list(train.classes), how(recipe), plan.steps, shards, costs)


def shard_facts(split: Manifest) -> dict[str, Any]:
    """What people ask of a split before they trust a number that comes of it."""
    return {
        "benchmark": split.benchmark, "split": split.split, "rows": split.rows, "official_rows": split.official_rows,
        "partial": split.partial, "duplicates": split.duplicates, "skipped": len(split.skipped),
        "classes_without_a_pixel": split.unseen,
    }  # fmt: skip


def nodes_tag() -> dict[str, str]:
    """The machines of a cluster of several nodes; a single one is described by its run's own tags."""
    import ray

    if not ray.is_initialized():
        return {}
    kinds = Counter(kind_of(node["Resources"]) for node in ray.nodes() if node["Alive"])
    several = kinds.total() > 1
    return {"hardware": ", ".join(f"{number} x ({kind})" for kind, number in kinds.items())} if several else {}


def kind_of(resources: Mapping[str, float]) -> str:
    """A node in words, from what Ray counts of it."""
    models = [key.partition(":")[2] for key in resources if key.startswith("accelerator_type:")]
    gpus = f", {resources['GPU']:.0f} GPU {' '.join(models)}".rstrip() if resources.get("GPU") else ""
    return f"{resources.get('CPU', 0):.0f} CPU, {resources.get('memory', 0) / 2**30:.0f} GiB{gpus}"
