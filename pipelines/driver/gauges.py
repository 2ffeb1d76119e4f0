"""How a run does, for Prometheus: on the metrics port of the driver's node, next to the numbers of Ray itself.

The driver reads the stages' records for them, as the screen does, so that workers do nothing more.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.base.polling import Polling
from pipelines.runs.folder import CHECKPOINTS, StageFolder
from pipelines.runs.record import read_record
from pipelines.runs.screen import size
from pipelines.training.job import Job

LOOK_S = 2.0  # Ray itself reports each 10 s
PREFIX = "context_heads_"  # and `ray_` before it, by Ray
GAUGES = {
    "images_per_second": "Images a second of all workers together, without validation.",
    "data_wait_ratio": "Share of the time that training waited for data, 0 to 1.",
    "loss": "Mean loss of the steps since the line of the record before.",
    "miou_ratio": "mIoU of the last validation, 0 to 1.",
    "step": "Steps of the stage that are done.",
    "stage": "Which stage of the run it is, from 1.",
    "checkpoint_age_seconds": "Age of the newest checkpoint; before the first, seconds since training began.",
}
OF_TRAIN = {"images_per_second": "images_per_s", "data_wait_ratio": "data_wait", "loss": "loss", "step": "step"}


class Watch:
    """Reads what is new of the stage that trains.

    Args:
        jobs: the stages, in their order.
        before: how many stages of the run are finished.
    """

    def __init__(self, jobs: Sequence[Job], before: int = 0) -> None:
        self.places, self.number, self.began = [job.place for job in jobs], before, time.time()
        # what a record holds already was shown by an earlier process
        self.read = {place: size(place.record) for place in self.places}

    def new(self) -> dict[str, float]:
        """Values of `GAUGES` that are new since the last call, or change by themselves."""
        values: dict[str, float] = {}
        while self.places:
            place = self.places[0]
            ended = place.outcome.exists()  # looked at first: its record is whole then
            lines, self.read[place] = read_record(place.record, self.read[place])
            for line in lines:
                values |= numbers(line)
            if not ended:
                return values | {"stage": self.number + 1, "checkpoint_age_seconds": self.age(place)}
            self.number += 1
            del self.places[0]
        return values

    def age(self, place: StageFolder) -> float:
        """Seconds of work that a fault would cost now."""
        times = [self.began]
        with contextlib.suppress(FileNotFoundError):  # an old one was removed just now
            times += [path.stat().st_mtime for path in place.checkpoints.glob(CHECKPOINTS)]
        return max(0.0, time.time() - max(times))


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """What a line of the record says for `GAUGES`."""
    if line["kind"] == "train":
        return {name: line[key] for name, key in OF_TRAIN.items() if line[key] is not None}
    if line["kind"] == "val" and line["miou"] is not None:
        return {"miou_ratio": line["miou"]}
    return {}


@contextlib.contextmanager
def gauged(run: str, jobs: Sequence[Job], before: int = 0) -> Iterator[None]:
    """While the body trains, keep the run's gauges; nothing without a Ray session.

    Args:
        run: the label that tells runs apart.
        jobs: the stages to come.
        before: how many stages are finished.
    """
    import ray

    if not (jobs and ray.is_initialized()):
        yield
        return
    from ray.util.metrics import Gauge

    gauges = {name: Gauge(PREFIX + name, text, ("run",)) for name, text in GAUGES.items()}
    watch, known = Watch(jobs, before), dict[str, float]()

    def look() -> None:
        with contextlib.suppress(OSError):  # a file system that is away for a moment ends no training
            known.update(watch.new())
        for name, value in known.items():  # all of them: Ray reports what was set since its last report
            gauges[name].set(value, {"run": run})

    with Polling(look, lambda: LOOK_S, "gauges", last=True):
        yield
