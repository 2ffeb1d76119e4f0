"""What a study costs besides its trials: start-up, report latency, idle workers between trials, the driver's memory.

Runs a small study on drawn images under Ray Tune, then as many trials that do nothing as --simulated says, through the
same queue, callbacks and folders, in actors that Tune uses again.

The processes of the next trial start while one trains, where its workers leave a core. Trials shorter than their
imports, half a minute on two cores, wait for them.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from pipelines.base.polling import Polling
from pipelines.runs.folder import RunFolder, StudyFolder
from pipelines.runs.record import read_record
from pipelines.runs.results import Result

if TYPE_CHECKING:
    from pipelines.speed.report import Report

REPEATS = 1
LENGTH_S = 300.0  # the trials that the goal speaks of
LARGEST_IDLE = 0.05
PARTS = (
    ("Tune: asked to entered", "started", "entered"),
    ("shards opened, model counted", "entered", "planned"),
    ("Ray Train's workers to the first step", "planned", "first step"),
    ("last step to the trial's end", "last step", "ended"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--workers", type=int, default=1, help="train workers of a trial (default %(default)s)")
    parser.add_argument("--trials", type=int, default=3, help="of the small study (default %(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="of a trial (default %(default)s)")
    parser.add_argument("--simulated", type=int, default=1000, help="trials that do nothing (default %(default)s)")


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be measured.

    Raises:
        InputError: an impossible value.
    """
    from pipelines.base.errors import InputError

    if args.workers < 1 or 4 % args.workers or args.trials < 2 or args.steps < 4 or args.simulated < 1:
        raise InputError(
            f"--workers {args.workers} --trials {args.trials} --steps {args.steps} --simulated {args.simulated}: "
            "workers 1, 2 or 4, two trials, four steps and one simulated trial are the least"
        )


def measure(args: argparse.Namespace) -> Report:
    """A small study, then the simulated one."""
    from pipelines.speed.drawn import scratch

    rounds = []
    for _ in range(args.repeats):
        with scratch() as folder:
            rounds.append(small_study(args, folder) | simulate(args.simulated, folder))
    return report(args, rounds)


def small_study(args: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Seconds of each part, of each trial."""
    from pipelines.studies.run import run_study
    from pipelines.studies.study import load_study

    plan = load_study(write_study(args, folder))
    study = StudyFolder(folder / "out" / "studies" / plan.name)
    reader = Reader(study)
    with Polling(reader.look, lambda: 0.1, "record-reader"):
        run_study(plan, at_once=1)
    times = sorted((moments(trial) for trial in study.trials()), key=lambda trial: trial["started"])
    found = {name: [trial[end] - trial[begin] for trial in times] for name, begin, end in PARTS}
    found["a trial"] = [trial["ended"] - trial["started"] for trial in times]
    pairs = list(itertools.pairwise(times))
    found["workers idle between two trials"] = [after["first step"] - before["last step"] for before, after in pairs]
    found["a validation's way to Tune's callback"] = [s for trial in study.trials() for s in latencies(trial)]
    found["the same, read from the record without Tune"] = reader.seconds
    return found


def write_study(args: argparse.Namespace, folder: Path) -> Path:
    """The study's page, its recipe's, and shards of drawn images."""
    import yaml

    from pipelines.speed.drawn import drawn_shards

    train = drawn_shards(folder / "train", 32, (48, 64)) / "train"
    val = drawn_shards(folder / "val", 8, (40, 56)) / "train"
    recipe = {
        "data": str(folder), "output": str(folder / "out"), "batch": 4,
        "backbone": {"name": "resnet18", "output_stride": 32}, "head": {"name": "fcn", "channels": 16},
        "view": {"crop": [32, 32]}, "workers": {"count": args.workers, "gpus": 0}, "overlays": 1, "log_every": 1,
        "stages": [{"name": "only", "train": str(train), "val": str(val), "steps": args.steps,
                    "val_every": args.steps / 8 / 4}],
    }  # fmt: skip
    (base := folder / "base.yaml").write_text(yaml.safe_dump(recipe))
    page = {"title": "Seeds", "recipe": str(base), "variants": {"same": {}},
            "seeds": list(range(args.trials))}  # fmt: skip
    (folder / "seeds.yaml").write_text(yaml.safe_dump(page))
    return folder / "seeds.yaml"


class Reader:
    """Reads a study's records as they grow, and notes how long each validation took to be seen."""

    def __init__(self, study: StudyFolder) -> None:
        self.study = study
        self.offsets: dict[Path, int] = {}
        self.seconds: list[float] = []

    def look(self) -> None:
        """Read what is new."""
        for trial in self.study.trials():
            path = trial.stage("only").record
            lines, self.offsets[path] = read_record(path, self.offsets.get(path, 0))
            seen = [line["time"] for line in lines if line["kind"] == "val" and line["step"]]
            self.seconds += [time.time() - at / 1000 for at in seen]


def moments(trial: RunFolder) -> dict[str, float]:
    """When what happened to a trial."""
    found = {line["what"]: line["time"] for line in read_record(trial.marks)[0]}
    record = read_record(trial.stage("only").record)[0]
    steps = [line["time"] / 1000 for line in record if line["kind"] == "train"]
    return found | {"first step": steps[0], "last step": steps[-1]}


def latencies(trial: RunFolder) -> list[float]:
    """Seconds from a validation's line to Tune's callback; the last is held back until the trial is done."""
    lines = [line for line in read_record(trial.marks)[0] if line["what"] == "told"]
    return [line["time"] - line["recorded"] for line in lines if line["progress"] < 1]


def simulate(count: int, folder: Path) -> dict[str, list[float]]:
    """Resident memory of this process before and after `count` trials that do nothing, in MiB, and their seconds."""
    import psutil

    from pipelines.cluster.session import ray_cluster
    from pipelines.cluster.sizes import Sizes
    from pipelines.recipes.reading import make_recipe
    from pipelines.recipes.recipe import Workers
    from pipelines.studies.searching import Listed
    from pipelines.studies.study import Trial
    from pipelines.studies.trial import TrialContext
    from pipelines.studies.tuning import fit_trials
    from pipelines.studies.watch import Watch

    names = [f"trial{index:04d}" for index in range(count)]
    recipe = make_recipe({"stages": [{"name": "only", "train": "x", "steps": 1}]})
    process = psutil.Process()
    with ray_cluster(Workers(count=1, gpus=0)):
        from pipelines.studies.searcher import Queue  # brings Ray

        place = TrialContext(folder / "simulated", "", folder, Sizes(1, 0, 1.0, 1, 1.0))
        watch = Watch(place, lambda name: Trial(name, name, 0, recipe), Nobody(), count, 2)
        before, began = process.memory_info().rss, time.monotonic()
        fit_trials(place, Queue(Listed(names), 2), count, 2, None, watch, [], nothing, reuse=True)
        after, took = process.memory_info().rss, time.monotonic() - began
    if watch.counts["done"] != count:
        raise RuntimeError(f"{watch.counts} of {count} simulated trials")
    return {"driver before": [before / 2**20], "driver after": [after / 2**20], "per trial": [took / count]}


class Nobody:
    """Stands for MLflow."""

    def add(self, trial: Any) -> None:
        """Nothing to send."""


def nothing(config: dict[str, Any]) -> None:
    """A trial that is done at once."""
    import pickle

    from ray import tune

    place = pickle.loads(config["place"]).files(config["name"]).stage("only")
    tune.report({"progress": 0.5, "miou": 0.5, "recorded": time.time()})
    Result("only", 1, 1, 1, 0.0, 0.5, 0.5, 1, 1.0, "", None, "", 0).write(place.result)


def report(args: argparse.Namespace, rounds: list[dict[str, list[float]]]) -> Report:
    """A row per part, and whether the workers idle less than the goal allows."""
    from pipelines.speed.report import Report, goal, spread

    merged = {name: [value for part in rounds for value in part[name]] for name in rounds[0]}
    memory = {"driver before", "driver after"}
    rows = [[name, spread(values, 0 if name in memory else 2), "MiB" if name in memory else "s"]
            for name, values in merged.items()]  # fmt: skip
    idle = median(merged["workers idle between two trials"])
    share = idle / (idle + LENGTH_S)
    notes = [
        f"{args.trials} trials of {args.steps} steps with {args.workers} worker(s), one at once, resnet18, 32x32 "
        "crops; the first one's processes are not up when it is asked for, the others' are, where workers leave a core",
        f"idle between two trials of {LENGTH_S:.0f} s: {share:.1%} of the workers' time",
        goal("idle share", share, LARGEST_IDLE, least=False, digits=3),
        f"{args.simulated} simulated trials: queue, callbacks and folders are a study's, the trials do nothing",
    ]
    return Report("What a study costs besides its trials", ["part", "median (range)", "unit"], rows, notes, merged)
