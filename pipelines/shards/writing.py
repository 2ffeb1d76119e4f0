"""Splits to shards: many files at once through Ray, or one after the other in this process; the bytes are the same."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from pipelines.base.text import duration

if TYPE_CHECKING:
    from datasets.manifest import Manifest
    from datasets.sample import Benchmark, Item

TELL_S = 5.0  # seconds between two lines about a split under way
Steps = Iterator[tuple[int, dict[str, Any]]]


@dataclass(frozen=True)
class Rules:
    """What `prepare` accepts on request.

    Args:
        unseen: classes without a pixel in a split for training.
        ignored: a split of whose pixels more than half are ignored.
        damaged: rows that do not read; they are left out.
    """

    unseen: bool = False
    ignored: bool = False
    damaged: bool = False


LENIENT = Rules(unseen=True, ignored=True)


def write_split(
    benchmark: Benchmark,
    split: str,
    items: list[Item],
    out: str,
    workers: int,
    tell: Callable[[str], None] = print,
    rules: Rules = LENIENT,
) -> Manifest:
    """Write one split: a task per file, at most `workers` at once.

    Which rows are in which file depends only on the release, so the number of workers changes no byte. A running
    Ray session is needed unless `workers` is 0, which writes file after file in this process.

    Args:
        items: the split's rows.
        out: folder or URI of the benchmark; the split becomes a folder in it.
        workers: files written at once.
        tell: takes a line about what is done.
        rules: what is accepted.

    Raises:
        DataError: rows that do not read, or masks that cannot be meant.
    """
    from datasets.manifest import write_manifest
    from datasets.storage import below
    from datasets.writer import plan_files
    from pipelines.shards.splits import listed_and_official

    uri, groups = below(out, split), plan_files(items)
    progress = Progress(split, len(items), len(groups), tell)
    steps = on_ray if workers else in_process
    for index, step in steps(uri, groups, benchmark, split, workers, rules.damaged):
        progress.take(index, step)
    records = [progress.at[index] for index in range(len(groups))]
    progress.end()
    listed, official = listed_and_official(benchmark, split, items)
    partial = official not in (None, listed - sum(len(record["skipped"]) for record in records))
    check_masks(benchmark, split, records, rules)
    return write_manifest(uri, benchmark, split, records, partial)


def check_masks(benchmark: Benchmark, split: str, records: Iterable[Mapping[str, Any]], rules: Rules) -> None:
    """Refuse masks that cannot be meant: a class without a pixel in training, or more than half ignored.

    Args:
        benchmark: its classes, and what it ignores.
        split: its name.
        records: of the split's files.
        rules: what is accepted.

    Raises:
        DataError: one of the two, with the cure.
    """
    from datasets.sample import DataError
    from datasets.text import named

    records = list(records)
    if not any(record["labelled"] for record in records):
        return
    *pixels, ignored = (sum(column) for column in zip(*(record["histogram"] for record in records), strict=True))
    total, what = sum(pixels) + ignored, benchmark.ignored or "labels that are no class"
    share = f"{ignored:,} of {total:,} pixels ({shortened(ignored, total)}) are ignored: {what}"
    if 2 * ignored > total and not rules.ignored:
        raise DataError(
            f"{benchmark.name} {split}: {share}; no loss and no score counts them. If they are a class, name "
            f"it{at_page(benchmark)}; if this is intended, accept it with --allow-ignored"
        )
    unseen = [name for name, count in zip(benchmark.classes, pixels, strict=True) if not count]
    if unseen and split.startswith("train") and not rules.unseen:
        raise DataError(f"{benchmark.name} {split}: no pixel of {len(unseen)} class(es): {named(unseen)}; {share}. "
                        f"Correct the masks, or the classes' values{at_page(benchmark)}; if this is intended, accept "
                        "it with --allow-unseen")  # fmt: skip


def at_page(benchmark: Benchmark) -> str:
    """Where the user's own folder defines what a value means; the reader of a release knows it."""
    return "" if benchmark.home else " in classes.yaml, for example classes: {0: background, 255: NAME}"


def shortened(part: int, whole: int) -> str:
    """A share in percent that is 0 % or 100 % only where it is nothing or all: 435 of 437 are 99 %."""
    if not 0 < part < whole:
        return f"{part / max(1, whole):.0%}"
    percent = 100 * part / whole
    return f"{max(1, math.floor(percent))}%" if percent >= 1 else "under 1%"


def in_process(
    uri: str, groups: list[list[Item]], benchmark: Benchmark, split: str, workers: int, skip_damaged: bool
) -> Steps:
    """The steps of all files, one file after the other."""
    from datasets.writer import part_steps

    for index, group in enumerate(groups):
        yield from ((index, step) for step in part_steps(uri, index, group, benchmark, split, skip_damaged))


def on_ray(
    uri: str, groups: list[list[Item]], benchmark: Benchmark, split: str, workers: int, skip_damaged: bool
) -> Steps:
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
                running[ray.remote(part_task).remote(uri, index, group, benchmark, split, skip_damaged)] = index
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


def part_task(
    uri: str, index: int, items: list[Item], benchmark: Benchmark, split: str, skip_damaged: bool
) -> Iterator[dict[str, Any]]:
    """The task: read, check and write the rows of one file on one core."""
    import cv2

    from datasets.writer import part_steps

    cv2.setNumThreads(1)
    yield from part_steps(uri, index, items, benchmark, split, skip_damaged)


class Progress:
    """The progress of a split's files, printed every few seconds.

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
        """Note how far a file is: a task that Ray starts again after a lost node starts from its beginning."""
        self.at[index] = step
        if self.clock() - self.told >= TELL_S:
            self.told = self.clock()
            self.tell(self.line())

    def end(self) -> None:
        """Print the last line."""
        self.tell(self.line())

    def line(self) -> str:
        """Rows, their rate, the time left, bytes, files, rows left out."""
        steps = self.at.values()
        rows, size = (sum(step[key] for step in steps) for key in ("rows", "bytes"))
        kept = [step for step in steps if step.get("kept")]
        made, seconds = rows - sum(step["rows"] for step in kept), max(self.clock() - self.began, 1e-9)
        left = f"ETA {duration((self.rows - rows) * seconds / made)}" if made else "ETA ?"
        skipped = sum(len(step.get("skipped", ())) for step in steps)
        if rows + skipped == self.rows:
            left = f"in {duration(seconds)}"
        done = sum("name" in step for step in steps)
        return (
            f"{self.split:>11}: {rows}/{self.rows} rows ({shortened(rows, self.rows)})  {made / seconds:.0f} rows/s  "
            f"{left}  {size / 1e6:.1f} MB  {done} of {self.files} file(s)"
            + (f", {len(kept)} of them there already" if kept else "")
            + (f"; {skipped} damaged row(s) left out" if skipped else "")
        )
