"""A chain of stages: checked whole before anything starts, then trained in turn, weights handed on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipelines import checkpoint
from pipelines.cluster import Sizes, check_nodes, machine, quiet, ray_cluster, start_early
from pipelines.door import RunFailed, Stopped, users_message
from pipelines.feed import BLOCK_ROWS
from pipelines.loop import FAULT, OUTCOME, Job, inference_of
from pipelines.preflight import Leg, check_model, check_share, localise, meta_model_of, plan_legs
from pipelines.recipe import Recipe, RecipeError, flatten
from pipelines.record import write_text
from pipelines.runs import Timeline, check_views, finished, keep_recipe, locked, settle, table
from pipelines.screen import Part, shown
from pipelines.stopping import in_thread, stoppable
from pipelines.tracking import System, Tracker, default_uri
from segmodels.cost import card, measure
from segmodels.inference import protocol

SAMPLE = "sample:"


def run_recipe(recipe: Recipe) -> list[dict[str, Any]]:
    """Run all stages that are not finished yet; print the table at the end.

    Returns:
        One result per stage, as in its done.json.

    Raises:
        RecipeError, DataError, SetupError: bad input, found before a worker starts.
        RunFailed: the training failed.
        Stopped: SIGTERM or Ctrl-C ended it, resumable.
    """
    output = Path(recipe.output).expanduser().resolve()
    folder = output / "runs" / str(recipe.name)
    timeline = Timeline()
    check_model(recipe)
    with locked(folder), contextlib.ExitStack() as session:
        settle(recipe, folder)
        if results := finished(recipe, folder):
            print(f"run {recipe.name} is finished, nothing to do; `name=OTHER` trains anew. It lies in {folder}")
            print(table(recipe, results))
            return results
        check_views(folder)
        with timeline.part("checks of the shards"):
            legs = None if recipe.data == SAMPLE else plan_legs(recipe, recipe.data, folder)
        needs_ray = not (recipe.workers.count == 0 and recipe.feed == "torch" and legs)
        with timeline.part("start of Ray"):
            sizes = session.enter_context(
                ray_cluster(recipe.workers, partial(store_bytes, recipe), early=start_early) if needs_ray else alone()
            )
        if legs is None:
            from pipelines.prepare import sample_shards

            with timeline.part("the sample and its shards"):
                legs = plan_legs(recipe, str(sample_shards(output)), folder)
        with timeline.part("checks of the cluster"):
            check_share(recipe, sizes)
            localise(recipe.backbone.weights, output)
            if needs_ray:
                check_nodes(folder, recipe.tracking or default_uri(output))
            keep_recipe(recipe, folder)
        with timeline.part("MLflow"):
            tracker = Tracker(recipe, output, folder)
        with timeline.part("training"):
            run_legs(recipe, legs, folder, sizes, tracker)
        results = finished(recipe, folder)
        with timeline.part("end of Ray"):
            session.close()
        timeline.write(folder)
    print(table(recipe, results))
    print(f"\nLook at it:  {tracker.ui_command()}")
    return results


@contextlib.contextmanager
def alone() -> Iterator[Sizes]:
    """This process only, without a Ray session."""
    quiet()
    yield Sizes(0, int(torch.cuda.is_available()), 1.0, 0, 1.0)


def store_bytes(recipe: Recipe, sizes: Sizes) -> int:
    """Object store of a local session: the blocks in flight, several times over."""
    block = BLOCK_ROWS * recipe.view.crop[0] * recipe.view.crop[1] * 4
    tasks = max(1, sizes.count) * sizes.feed_tasks
    return max(256 << 20, min(8 << 30, 32 * tasks * block))


def run_legs(recipe: Recipe, legs: Sequence[Leg], folder: Path, sizes: Sizes, tracker: Tracker) -> None:
    """Train the stages that are not done, on one group of workers.

    Raises:
        RecipeError: a worker found its input at fault.
        RunFailed: the workers failed for good, or the loss stopped being finite.
    """
    tracker.resume()
    with tracker.sending([folder / leg.stage.name for leg in legs]):
        jobs, parts = prepare_legs(recipe, legs, folder, sizes, tracker.output, System(tracker.uri).sample)
        with shown(parts):
            fit(jobs, folder)


def prepare_legs(
    recipe: Recipe,
    legs: Sequence[Leg],
    folder: Path,
    sizes: Sizes,
    output: Path,
    sample: Callable[[Path], None] = lambda path: None,
) -> tuple[list[Job], list[Part]]:
    """What the workers do of the stages that are not done, and how the driver follows and finishes each.

    Args:
        output: where downloaded weights lie.
        sample: notes what the machine does in a stage's system.jsonl.
    """
    jobs, parts = [], []
    for index, leg in enumerate(legs):
        place = folder / leg.stage.name
        if (place / "done.json").exists():
            print(f"{leg.stage.name:>18}  is finished, not run again")
            continue
        place.mkdir(exist_ok=True)
        weights, digest = localise(recipe.backbone.weights, output) if index == 0 else (None, None)
        initial = last_checkpoint(folder, legs[index - 1]) if index else None
        jobs.append(make_job(recipe, leg, place, sizes, weights, initial))
        facts = about(recipe, leg, digest)
        write_text(place / "about.json", json.dumps(facts))
        finish = partial(finish_leg, recipe, leg, folder)
        parts.append(Part(place, place / OUTCOME, facts, finish, partial(sample, place / "system.jsonl")))
    return jobs, parts


def make_job(recipe: Recipe, leg: Leg, place: Path, sizes: Sizes, weights: str | None, initial: Path | None) -> Job:
    """What the workers need to know of a stage."""
    return Job(
        recipe=recipe, stage=leg.stage, folder=place, train=leg.train_uri, val=leg.val_uri,
        classes=tuple(leg.train.classes), palette=leg.train.palette, rows=leg.train.rows, steps=leg.steps,
        sizes=sizes, threads=threads(sizes), weights=weights, initial=initial, flip_pairs=leg.train.flip_pairs,
        seen=leg.seen,
    )  # fmt: skip


def finish_leg(recipe: Recipe, leg: Leg, folder: Path) -> None:
    """Turn a stage's outcome into its result, done.json, which ends it for good."""
    place = folder / leg.stage.name
    outcome = json.loads((place / OUTCOME).read_text())
    last = checkpoint.step_file(place / "checkpoints", outcome["step"])
    best = place / "best.pt" if leg.val else None
    result = {
        "stage": leg.stage.name, "rows": leg.train.rows, "steps": outcome["step"],
        "val_rows": leg.val.rows if leg.val else None, "miou_before": outcome["before"], "miou": outcome["after"],
        "best": outcome["best"] if leg.val else None, "best_step": outcome["best_step"] if leg.val else None,
        "images_per_s": outcome["images_per_s"], "checkpoint": str(last),
        "best_checkpoint": str(best) if best else None, "protocol": how(recipe), "time": int(time.time() * 1000),
    }  # fmt: skip
    write_text(place / "done.json", json.dumps(result, indent=1))


def last_checkpoint(folder: Path, leg: Leg) -> Path:
    """The checkpoint with which a stage ended."""
    return checkpoint.step_file(folder / leg.stage.name / "checkpoints", leg.steps)


def threads(sizes: Sizes) -> int:
    """CPU threads of a worker: OMP_NUM_THREADS, else 1 on GPUs, where the loader needs the cores, else a fair share."""
    if given := os.environ.get("OMP_NUM_THREADS", ""):
        return max(1, int(given.split(",")[0]))
    cores, _ = machine()
    return 1 if sizes.gpus else max(1, cores // max(1, sizes.count))


def how(recipe: Recipe) -> str:
    """The protocol of the scores that stages print."""
    return protocol(inference_of(recipe, recipe.validation or recipe.inference))


def about(recipe: Recipe, leg: Leg, digest: str | None) -> dict[str, Any]:
    """What the tracker says of a stage: parameters, cost card, where rows and weights come from."""
    model = meta_model_of(recipe, len(leg.train.classes))
    cost = measure(model, recipe.view.crop)
    params = flatten(dataclasses.asdict(leg.stage), "stage") | {f"cost.{k}": v for k, v in card(cost).items()}
    params |= {"shards.train": leg.train_uri, "shards.train.hash": leg.train.hash, "shards.train.rows": leg.train.rows}
    if leg.val:
        params |= {"shards.val": leg.val_uri, "shards.val.hash": leg.val.hash, "shards.val.rows": leg.val.rows}
    params |= {"classes": len(leg.train.classes), "steps": leg.steps, "backbone.weights.sha256": digest}
    tags = {"mlflow.note.content": f"mIoU in percent: {how(recipe)}, every row of {leg.stage.val}."}
    return {
        "params": params,
        "tags": tags if leg.val else {},
        "classes": list(leg.train.classes),
        "protocol": how(recipe),
        "steps": leg.steps,
    }


def fit(jobs: Sequence[Job], folder: Path) -> None:
    """Run the loop on Ray Train's workers, all stages on the same ones, so that their start is paid once.

    A worker that dies is replaced, and the stage continues from its last checkpoint.

    Raises:
        RecipeError: a worker found its input at fault.
        RunFailed: it failed for good, or the loss stopped being finite.
        Stopped: SIGTERM or Ctrl-C; a checkpoint was written first.
    """
    from pipelines.group import trainer

    def enter(config: dict[str, Any]) -> dict[str, Any]:
        from pipelines.loop import train_stages  # in the worker: Ray's controller need not load the models too

        return train_stages(pickle.loads(config["jobs"]))

    (folder / FAULT).unlink(missing_ok=True)
    sizes, failures = jobs[0].sizes, jobs[0].recipe.workers.max_failures
    # Ray's own resume is not used, hence a name of its own: our checkpoints are the state.
    job = trainer(enter, {"jobs": pickle.dumps(jobs)}, sizes, f"fit-{time.time_ns()}", folder / "ray", failures)
    with stoppable(folder):
        try:
            ended: dict[str, Any] = in_thread(job.fit).return_value or {}  # type: ignore[attr-defined]
        except Exception as error:
            causes = [error, *getattr(error, "worker_failures", {}).values()]
            if fault := next(filter(None, map(users_message, causes)), None):
                raise RecipeError(fault) from None
            write_text(folder / "error.txt", f"{type(error).__name__}: {error}\n")
            first = str(error).strip().splitlines()
            raise RunFailed(
                f"training failed: {first[-1] if first else type(error).__name__}. The whole error stands in "
                f"{folder / 'error.txt'}; the same command continues from the last checkpoint."
            ) from error
    if (folder / FAULT).exists():
        raise RecipeError((folder / FAULT).read_text())
    if "stopped" in ended:
        code = getattr(signal, ended["stopped"]).value + 128
        raise Stopped(f"{ended['stopped']}: {ended['text']}; the same command continues from there", code)
    if "failure" in ended:
        raise RunFailed(ended["failure"])
