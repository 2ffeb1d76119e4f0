"""Splits to shards: many files at once through Ray, or one after the other in this process; the bytes are the same."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

from pipelines.base.text import duration

if TYPE_CHECKING:
    from datasets.manifest import Manifest
    from datasets.sample import Benchmark, Item

TELL_S = 5.0  # seconds between two lines about a split under way
Steps = Iterator[tuple[int, dict[str, Any]]]


def write_split(
    benchmark: Benchmark, split: str, items: list[Item], out: str, workers: int, tell: Callable[[str], None] = print
) -> Manifest:
    """Write one split: a task per file, at most `workers` at once.

    Which rows lie in which file depends on the release alone, so the number of workers changes no byte. A running
    Ray session is needed unless `workers` is 0, which writes file after file in this process.

    Args:
        items: the split's rows.
        out: folder or URI of the benchmark; the split becomes a folder in it.
        workers: files written at once.
        tell: takes a line about what is done.

    Raises:
        DataError: rows that do not read.
    """
    from datasets.manifest import write_manifest
    from datasets.storage import below
    from datasets.writer import plan_files

    uri, groups = below(out, split), plan_files(items)
    progress = Progress(split, len(items), len(groups), tell)
    steps = on_ray if workers else in_process
    for index, step in steps(uri, groups, benchmark, split, workers):
        progress.take(index, step)
    records = [progress.at[index] for index in range(len(groups))]
    progress.end()
    return write_manifest(uri, benchmark, split, records, benchmark.splits[split] not in (None, len(items)))


def in_process(uri: str, groups: list[list[Item]], benchmark: Benchmark, split: str, _: int) -> Steps:
    """The steps of all files, one file after the other."""
    from datasets.writer import part_steps

    for index, group in enumerate(groups):
        yield from ((index, step) for step in part_steps(uri, index, group, benchmark, split))


def on_ray(uri: str, groups: list[list[Item]], benchmark: Benchmark, split: str, workers: int) -> Steps:
    """The steps of all files as they come from at most `workers` tasks.

    A task gets the rows of its file when its turn has come, and sends back numbers: the object store holds no image,
    and the rows of `workers` files at the most.
    """
    import ray

    waiting = enumerate(groups)
    running: dict[Any, int] = {}
    try:
        while True:
            for index, group in itertools.islice(waiting, workers - len(running)):
                running[ray.remote(part_task).remote(uri, index, group, benchmark, split)] = index
            if not running:
                return
            (stream,), _ = cast("tuple[list[Any], Any]", ray.wait(list(running), num_returns=1))
            try:
                step = cast("dict[str, Any]", ray.get(next(stream)))
            except StopIteration:
                del running[stream]
                continue
            yield running[stream], step
    finally:
        for stream in running:
            ray.cancel(stream)


def part_task(uri: str, index: int, items: list[Item], benchmark: Benchmark, split: str) -> Iterator[dict[str, Any]]:
    """The task: read, check and write the rows of one file on one core."""
    import cv2

    from datasets.writer import part_steps

    cv2.setNumThreads(1)
    yield from part_steps(uri, index, items, benchmark, split)


class Progress:
    """What is known of a split's files, told every few seconds.

    Args:
        split: its name.
        rows: rows of the split.
        files: files of the split.
        tell: takes a line.
        clock: seconds.
    """

    def __init__(
        self,
        split: str,
        rows: int,
        files: int,
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.split, self.rows, self.files, self.tell, self.clock = split, rows, files, tell, clock
        self.at: dict[int, dict[str, Any]] = {}
        self.began = self.told = clock()

    def take(self, index: int, step: dict[str, Any]) -> None:
        """Note how far a file is: a task that Ray starts again after a lost node begins anew."""
        self.at[index] = step
        if self.clock() - self.told >= TELL_S:
            self.told = self.clock()
            self.tell(self.line())

    def end(self) -> None:
        """Tell the last line."""
        self.tell(self.line())

    def line(self) -> str:
        """Rows, their rate, the time left, bytes, files."""
        steps = self.at.values()
        rows, size = (sum(step[key] for step in steps) for key in ("rows", "bytes"))
        kept = [step for step in steps if step.get("kept")]
        made, seconds = rows - sum(step["rows"] for step in kept), max(self.clock() - self.began, 1e-9)
        left = f"ETA {duration((self.rows - rows) * seconds / made)}" if made else "ETA ?"
        if rows == self.rows:
            left = f"in {duration(seconds)}"
        done = sum("name" in step for step in steps)
        return (
            f"{self.split:>11}: {rows}/{self.rows} rows ({rows / self.rows:.0%})  {made / seconds:.0f} rows/s  {left}  "
            f"{size / 1e6:.1f} MB  {done} of {self.files} file(s)"
            + (f", {len(kept)} of them there already" if kept else "")
        )
