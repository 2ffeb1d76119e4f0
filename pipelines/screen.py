"""Progress for people: each line of the stages' records, on the screen once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.record import read_record

POLL_S = 0.3


@dataclass(frozen=True)
class Part:
    """A stage to follow: its folder, the file that ends it, what to do then, and what to sample meanwhile.

    `about` holds what lines need: `protocol`, `steps`.
    """

    folder: Path
    outcome: Path
    about: dict[str, Any]
    finish: Callable[[], None]
    sample: Callable[[], None] = lambda: None


class Screen(threading.Thread):
    """Reads the stages' records as they grow, and finishes each stage whose outcome stands."""

    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__(name="screen", daemon=True)
        self.parts = parts
        # what stands in a record before this training was shown by the one before it
        self.shown = {p.folder: size(p.folder / "record.jsonl") for p in parts}
        self.ending = threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            for part in self.parts:
                if not self.follow(part):
                    return
        except Exception as error:  # raised again in the driver's own thread
            self.error = error

    def follow(self, part: Part) -> bool:
        """Follow one stage to its end; whether it was finished."""
        while not part.outcome.exists() and not self.ending.wait(POLL_S):
            self.show(part)
            part.sample()
        self.show(part)
        if not part.outcome.exists():
            return False
        part.finish()
        return True

    def show(self, part: Part) -> None:
        """Print what is new."""
        lines, self.shown[part.folder] = read_record(part.folder / "record.jsonl", self.shown[part.folder])
        for line in lines:
            print(describe(part.folder.name, line, part.about), flush=True)


@contextlib.contextmanager
def shown(parts: Sequence[Part]) -> Iterator[None]:
    """Show and finish the stages, one after the other, while the body trains them."""
    screen = Screen(parts)
    screen.start()
    try:
        yield
    finally:
        screen.ending.set()
        screen.join()
    if screen.error:
        raise screen.error


def size(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def describe(stage: str, line: dict[str, Any], about: dict[str, Any]) -> str:
    """A line of the record for the screen."""
    head = f"{stage:>18}"
    if line["kind"] == "train":
        gpu = f"  {line['gpu_mib']:.0f} MiB" if "gpu_mib" in line else ""
        return (
            f"{head}  step {line['step']:>5}/{about['steps']}  epoch {line['epoch']:.1f}  loss {line['loss']:.4f}  "
            f"lr {line['lr']:.2e}  {line['images_per_s']:.1f} images/s  data wait {line['data_wait']:.0%}{gpu}  "
            f"ETA {clock(line['eta_s'])}"
        )
    if line["kind"] == "val":
        return (
            f"{head}  step {line['step']:>5}/{about['steps']}  val mIoU {line['miou'] * 100:.2f} %  pixel accuracy "
            f"{line['accuracy'] * 100:.2f} %  ({line['rows']} rows, {about['protocol']})"
        )
    return f"{head}  {line.get('text', '')}"


def clock(seconds: float) -> str:
    """h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
