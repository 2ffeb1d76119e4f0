"""Progress for people: each line of the stages' records, on the screen once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.base.polling import Polling
from pipelines.base.text import clock
from pipelines.runs.folder import StageFolder
from pipelines.runs.record import read_record
from pipelines.runs.results import About, percent, score_of

POLL_S = 0.3


@dataclass(frozen=True)
class FollowedStage:
    """A stage to follow: its folder, what its lines need, what to do when it ends, and what to sample until then."""

    place: StageFolder
    about: About
    finish: Callable[[], None]
    sample: Callable[[], None] = lambda: None


class Screen:
    """Shows the stages' records as they grow, and finishes each stage that has its outcome."""

    def __init__(self, stages: Sequence[FollowedStage]) -> None:
        self.stages = list(stages)
        # lines that are in a record before this training were shown by an earlier one
        self.shown = {stage.place: size(stage.place.record) for stage in stages}

    def look(self) -> None:
        """Show what is new; go on to the next stage when this one has ended."""
        while self.stages:
            stage = self.stages[0]
            ended = stage.place.outcome.exists()  # looked at first: its record is whole then
            self.show(stage)
            if not ended:
                stage.sample()
                return
            stage.finish()
            del self.stages[0]

    def show(self, stage: FollowedStage) -> None:
        """Print what is new."""
        lines, self.shown[stage.place] = read_record(stage.place.record, self.shown[stage.place])
        for line in lines:
            print(describe(stage.place.path.name, line, stage.about), flush=True)


@contextlib.contextmanager
def shown(stages: Sequence[FollowedStage]) -> Iterator[None]:
    """Show and finish the stages, one after the other, while the body trains them."""
    with Polling(Screen(stages).look, lambda: POLL_S, "screen", last=True):
        yield


def size(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def describe(stage: str, line: Mapping[str, Any], about: About) -> str:
    """A line of the record for the screen."""
    head = f"{stage:>18}"
    if line["kind"] == "train":
        gpu = f"  {line['gpu_mib']:.0f} MiB" if "gpu_mib" in line else ""
        return (
            f"{head}  step {line['step']:>5}/{about.steps}  epoch {line['epoch']:.1f}  loss {line['loss']:.4f}  "
            f"lr {line['lr']:.2e}  {line['images_per_s']:.1f} images/s  data wait {line['data_wait']:.0%}{gpu}  "
            f"ETA {clock(line['eta_s'])}"
        )
    if line["kind"] == "val":
        more = line.get("named") or {"pixel accuracy": line.get("accuracy")}
        told = "  ".join(f"{name} {percent(value)} %" for name, value in {score_of(line): line["miou"], **more}.items())
        return f"{head}  step {line['step']:>5}/{about.steps}  val {told}  ({line['rows']} rows, {about.protocol})"
    if line["kind"] == "test":
        return "\n".join(
            f"{head}  test {name}: mIoU {percent(scores['miou'])} %  pixel accuracy {percent(scores['accuracy'])} %  "
            f"(weights of step {line['weights']}, {scores['rows']} rows, {scores['protocol']})"
            for name, scores in line["tests"].items()
        )
    if line["kind"] == "head":
        numbers = "".join(f", {name} {value:.4g}" for name, value in line["numbers"].items())
        rows = f"; of {line['rows']} rows{numbers}" if numbers else ""
        return (
            f"{head}  what the head sees: {len(line['pictures'])} pictures in {stage}/explain (weights of step "
            f"{line['weights']}){rows}"
        )
    return f"{head}  {line.get('text', '')}"
