"""The formulas of `scaling` against workers that really train: 1, 2 and 4 of them on this machine's CPU cores.

The inputs are measured apart from each other, none of them in the runs that are predicted: a step on a batch that is
at hand, the decoding of images, gradients summed by two processes that do nothing else. Each worker has one thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.cluster.sizes import Sizes
    from pipelines.recipes.recipe import Recipe
    from pipelines.speed.many_gpus import Setup
    from pipelines.speed.report import Report

WORKERS = (1, 2, 4)
IMAGES = 8  # of a worker in a step
ROWS = 256
SENDS = 20  # all-reduces of each size that are timed
TASKS = 500  # of Ray, without content
NEVER = 1e9  # for what cannot be the limit on one machine


def validated(args: argparse.Namespace) -> Report:
    """Measure the inputs, predict, measure the runs in turn, and compare."""
    from pipelines.cluster.session import ray_cluster
    from pipelines.driver.run import store_bytes
    from pipelines.speed.drawn import drawn_shards, scratch
    from pipelines.speed.step import one_stage, speeds

    os.environ["OMP_NUM_THREADS"] = "1"
    base = recipe_for(args, 1)
    with scratch() as folder:
        data = str(drawn_shards(folder / "data", ROWS, base.view.crop))
        make = functools.partial(made, args, data, folder)
        alone = dataclasses.replace(base, workers=dataclasses.replace(base.workers, count=0), feed="torch")
        resident = [
            median(speeds(one_stage(alone, f"resident-{turn}", data, folder, args.steps), resident=True)[1:])
            for turn in range(args.repeats)
        ]
        gradients = bytes_of(base)
        inputs = {"images_per_s": median(resident), "decode_ms": 1e3 * decoding(make(1, "decoding"))}
        inputs |= links(gradients)
        measured: dict[int, list[float]] = {n: [] for n in WORKERS}
        two = dataclasses.replace(base.workers, count=2)
        with ray_cluster(two, functools.partial(store_bytes, base)) as sizes:
            inputs["tasks_per_s"] = tasks_per_second()
            for turn in range(args.repeats):
                for n in WORKERS:
                    measured[n].append(trained(make(n, f"workers-{n}-{turn}"), sizes, n))
    return report(args, setup_here(args, inputs, gradients, norms_of(base)), inputs, measured)


def recipe_for(args: argparse.Namespace, n: int) -> Recipe:
    """The recipe with a small model, for n workers on CPUs."""
    from pipelines.recipes.reading import load_recipe
    from pipelines.speed.step import SMALL

    words = ["backbone.weights=null", "mlflow_model=false", *SMALL, f"batch={n * IMAGES}"]
    return load_recipe(args.recipe, [*words, f"workers.count={min(n, 2)}", "workers.feed_tasks=1"])


def made(args: argparse.Namespace, data: str, folder: Path, n: int, name: str) -> Recipe:
    """The run of n workers, on the drawn rows."""
    from pipelines.speed.step import one_stage

    return one_stage(recipe_for(args, n), name, data, folder, args.steps)


def bytes_of(recipe: Recipe) -> int:
    """Bytes of a model's gradients."""
    from pipelines.recipes.model import meta_model

    return 4 * sum(p.numel() for p in meta_model(recipe, 21).parameters() if p.requires_grad)


def norms_of(recipe: Recipe) -> int:
    """Batch norms that send something to other workers."""
    from pipelines.recipes.model import count_norms, meta_model

    return count_norms(meta_model(recipe, 21)) if recipe.norm == "sync" else 0


def decoding(recipe: Recipe) -> float:
    """Seconds of the processor that an image's view takes in a feeding task."""
    from datasets.transforms import TrainView
    from pipelines.feed.plan import SamplePlan, read_block

    view = TrainView(**dataclasses.asdict(recipe.view))
    plan = SamplePlan(f"{recipe.data}/train", ROWS, view, 0, IMAGES, ROWS // IMAGES)
    read_block(range(ROWS), plan)  # copies the shards to the cache
    began = time.process_time()
    read_block(range(ROWS), plan)
    return (time.process_time() - began) / ROWS


def links(size: int) -> dict[str, float]:
    """Latency and bandwidth of gloo's all-reduce between two processes of this machine."""
    from pipelines.base.errors import RunFailed

    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        both = [context.Process(target=send, args=(rank, f"{folder}/meet", size, answers)) for rank in range(2)]
        for process in both:
            process.start()
        for process in both:
            process.join(300)
        if any(process.exitcode for process in both):
            raise RunFailed("the two processes that sum gradients did not end well; their message is above")
    empty, full = answers.get(timeout=10)
    return {"base_us": 1e6 * empty, "link_gb_s": size / max(full - empty, 1e-9) / 1e9}


def send(rank: int, meet: str, size: int, answers: Any) -> None:
    """One of two processes: medians of an all-reduce of one number, and of `size` bytes."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=2)
    seconds = []
    for values in (torch.zeros(1), torch.zeros(size // 4)):
        times = []
        for _ in range(SENDS):
            began = time.perf_counter()
            dist.all_reduce(values)
            times.append(time.perf_counter() - began)
        seconds.append(median(times[SENDS // 4 :]))
    if rank == 0:
        answers.put(seconds)
    dist.barrier()
    dist.destroy_process_group()


def tasks_per_second() -> float:
    """Tasks without content that Ray starts and ends in a second."""
    import ray

    @ray.remote(num_cpus=0.5)
    def nothing() -> None:
        return None

    ray.get([nothing.remote() for _ in range(20)])  # processes start
    began = time.perf_counter()
    ray.get([nothing.remote() for _ in range(TASKS)])
    return TASKS / (time.perf_counter() - began)


def trained(recipe: Recipe, sizes: Sizes, n: int) -> float:
    """Train with n workers, as a run does; images a second of the lines after the first."""
    from pipelines.driver.fit import fit
    from pipelines.driver.jobs import make_jobs
    from pipelines.driver.planned import plan_stages
    from pipelines.driver.weights import Weights
    from pipelines.runs.folder import RunFolder
    from pipelines.runs.record import read_record
    from pipelines.runs.run import keep_recipe

    folder = Path(recipe.output) / "runs" / str(recipe.name)
    folder.mkdir(parents=True)
    keep_recipe(recipe, folder)
    taken = dataclasses.replace(sizes, count=n, cpus=0.5, feed_tasks=1, feed_cpus=0.5)
    jobs, _ = make_jobs(recipe, plan_stages(recipe, recipe.data), folder, taken, Weights())
    fit(jobs, folder)
    lines = read_record(RunFolder(folder).stage("step").record)[0]
    return median([line["images_per_s"] for line in lines if line["kind"] == "train"][1:])


def setup_here(args: argparse.Namespace, inputs: dict[str, float], gradients: int, norms: int) -> Setup:
    """This machine as the formulas see it: one node whose workers and feeding tasks share the cores."""
    from pipelines.cluster.sizes import cores_here
    from pipelines.speed.many_gpus import setup_of

    return setup_of(
        args, **inputs, gradients=gradients, norms=norms, shared=True, images=IMAGES, launch_ms=1e-3, backward=0.0,
        per_node=NEVER, cores=cores_here(), link_us=0.0, stream_mb_s=NEVER, store_gb_s=NEVER,
    )  # fmt: skip


def report(
    args: argparse.Namespace, setup: Setup, inputs: dict[str, float], measured: dict[int, list[float]]
) -> Report:
    """A row per number of workers, with the error of the prediction."""
    from pipelines.speed.report import Report, spread

    errors = {n: setup.rate(n) / median(rates) - 1 for n, rates in measured.items()}
    rows = [
        [str(n), f"{setup.rate(n):.1f}", spread(rates), f"{errors[n]:+.0%}", f"{1e3 * setup.exposed(n):.0f}"]
        for n, rates in measured.items()
    ]
    notes = [
        f"{args.recipe} with a small model ({setup.gradients / 2**20:.0f} MiB of gradients, {setup.norms} norms over "
        f"all workers), {IMAGES} images of a worker in a step, one thread each, one feeding task each, "
        f"{setup.cores:.0f} cores; {args.steps} steps a run, {args.repeats} rounds in turn",
        f"inputs: {inputs['images_per_s']:.1f} images/s of one worker on a batch at hand; {inputs['decode_ms']:.2f} ms "
        f"of decoding; all-reduce of two: {inputs['base_us']:.0f} µs and {inputs['link_gb_s']:.2f} GB/s; "
        f"{inputs['tasks_per_s']:.0f} empty tasks a second",
        f"largest error: {max(map(abs, errors.values())):.0%}",
    ]
    columns = ["workers", "predicted, images/s", "measured, images/s", "error", "all-reduce in it, ms"]
    values = {"inputs": inputs, "measured": measured, "errors": errors}
    return Report("Predicted and measured CPU workers", columns, rows, notes, values)
