"""Checkpoints leave the step: their tensors are copied to the host's memory, and a thread writes and sends them."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.base.text import duration
from pipelines.runs import checkpoint
from pipelines.runs.checkpoint import Checkpoint
from pipelines.runs.mirror import PAUSES, Mirror, StoreFailed

LEAST_S = 2.0  # between two looks at what is to be sent
RECORD_S_PER_MB = 1.0  # and so much more for the length of records, which travel as a whole
SILENT_S = 1800.0  # how long training goes on while its bucket takes nothing
Pool = dict[tuple[Any, ...], Tensor]


@dataclass
class Slot:
    """Host memory for checkpoints of one kind, used again for each of them: one is written at a time."""

    pool: Pool = field(default_factory=dict)
    free: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.free.set()


@dataclass(frozen=True)
class Written:
    """A checkpoint on its way to its file: `ready` is reached when its tensors have arrived in the host's memory."""

    content: Checkpoint
    path: Path
    keep: int
    slot: Slot
    ready: Any = None

    def write(self) -> None:
        """Write it; of a resumable one, those before it are pruned."""
        if self.ready is not None:
            self.ready.synchronize()
        self.content.write(self.path)
        if self.keep:
            checkpoint.prune(self.path.parent, self.keep, self.content.step)
        self.slot.free.set()


class Saving:
    """What one worker writes: at once, or, while it is `running`, in a thread, in the same order.

    Attributes:
        waited: seconds for which training waited, since `taken` was last asked.
        mirror: the run's bucket, where it has one; the thread keeps it up to date.
        tell: takes what is to be noted of a bucket, as `Record.add` does.
    """

    def __init__(self, mirror: Mirror | None = None) -> None:
        self.mirror, self.waited = mirror, 0.0
        self.work: queue.Queue[Written | threading.Event | None] = queue.Queue()
        self.slots = {"best": Slot(), "resumable": Slot()}
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.silent: float | None = None  # since when the bucket takes nothing
        self.step, self.tell = 0, lambda *words, **options: None

    def write(self, content: Checkpoint, path: Path, keep: int = 0) -> None:
        """Write a checkpoint; while the thread runs, this returns when the copy of its tensors is on its way.

        Args:
            content: what it holds.
            path: its file.
            keep: of one to resume from, how many of its folder stay; 0 for any other.

        Raises:
            OSError: it, or one before it, cannot be written.
            StoreFailed: the bucket has taken nothing for too long.
        """
        began, slot = time.monotonic(), self.slots["resumable" if keep else "best"]
        if self.thread is None:
            Written(content, path, keep, slot).write()
        else:
            self.until(slot.free)  # the one before it is being written still
            slot.free.clear()
            taken, ready = snapshot(content, slot.pool)
            self.work.put(Written(taken, path, keep, slot, ready))
        self.waited += time.monotonic() - began

    def flush(self, beat: Callable[[], None] = lambda: None) -> None:
        """Return when all is written and sent.

        Args:
            beat: called while it waits.

        Raises:
            OSError, StoreFailed: as `write`.
        """
        if self.thread is not None:
            done = threading.Event()
            self.work.put(done)
            self.until(done, beat)

    def taken(self) -> float:
        """Seconds for which training waited since this was last asked."""
        waited, self.waited = self.waited, 0.0
        return waited

    @contextlib.contextmanager
    def running(self, beat: Callable[[], None], tell: Callable[..., None]) -> Iterator[None]:
        """While the body runs a thread writes and sends; a body that ends well has everything written and sent.

        Args:
            beat: called while the end waits.
            tell: see above.
        """
        self.tell = tell
        self.thread = threading.Thread(target=self.run, name="saving", daemon=True)
        self.thread.start()
        try:
            yield
            self.flush(beat)
        finally:
            self.work.put(None)
            self.thread.join()
            self.thread = None

    def until(self, event: threading.Event, beat: Callable[[], None] = lambda: None) -> None:
        """Wait for the thread, or raise what ended it."""
        while not event.wait(0.1):
            beat()
            if self.error:
                break
        if self.error:
            raise self.error

    def run(self) -> None:
        """What the thread does: writes in the order of the queue, and sends what is new every few seconds."""
        try:
            while True:
                try:
                    item = self.work.get(timeout=self.pause() if self.mirror else None)
                except queue.Empty:
                    self.send()
                    continue
                if item is None:
                    self.send(())
                    return
                if isinstance(item, Written):
                    item.write()
                    self.step = item.content.step
                    if self.work.empty():  # what comes next is to be written first
                        self.send()
                else:
                    while not self.send():
                        time.sleep(LEAST_S)
                    item.set()
        except BaseException as error:  # raised where training writes the next one, or waits for all
            self.error = error

    def pause(self) -> float:
        """Seconds until the next look at what is to be sent."""
        assert self.mirror is not None
        megabytes = sum(path.stat().st_size for path in self.mirror.folder.glob("*/*.jsonl")) / 1e6
        return LEAST_S + megabytes * RECORD_S_PER_MB

    def send(self, pauses: tuple[float, ...] = PAUSES) -> bool:
        """Whether the bucket has all that is written; what it does not take is sent the next time.

        Raises:
            StoreFailed: it has taken nothing for too long.
        """
        if self.mirror is None:
            return True
        began = time.monotonic()
        try:
            self.mirror.push(pauses if self.silent is None else ())
        except StoreFailed as error:
            if self.silent is None:
                self.silent = began
                self.note(f"warning: {error}; training goes on, and what it writes is sent when this ends")
            if time.monotonic() - self.silent > SILENT_S:
                raise StoreFailed(f"the bucket took nothing for {duration(SILENT_S)}: {error}") from None
            return False
        if self.silent is not None:
            self.note(f"the bucket has everything again, after {duration(time.monotonic() - self.silent)}")
            self.silent = None
        return True

    def note(self, text: str) -> None:
        """Have it in the record, at the step that was written last."""
        self.tell("note", self.step, text=text)


def snapshot(content: Checkpoint, pool: Pool) -> tuple[Checkpoint, Any]:
    """A checkpoint whose tensors are copies in the host's memory, and what to wait for before they are read.

    On a GPU nothing waits here: the copies follow what the GPU does now, and go before what it is told next.

    Args:
        content: its tensors are on any device.
        pool: memory of an earlier copy, which is overwritten.
    """
    parts = {name: copied(getattr(content, name), pool, (name,)) for name in ("model", "optimizer", "trained")}
    ready = None
    if any(tensor.is_cuda for tensor in content.model.values()):
        ready = torch.cuda.Event()
        ready.record()
    return dataclasses.replace(content, **parts), ready


def copied(value: Any, pool: Pool, key: tuple[Any, ...]) -> Any:
    """Mappings and lists with copies of their tensors; all else as it is."""
    if isinstance(value, Tensor):
        kept = pool.get(key)
        if kept is None or (kept.shape, kept.dtype, kept.stride()) != (value.shape, value.dtype, value.stride()):
            kept = pool[key] = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        return kept.copy_(value.detach(), non_blocking=value.is_cuda)
    if isinstance(value, Mapping):
        found = copy.copy(value)  # of its own kind: a state dict knows its version
        for name, entry in value.items():
            found[name] = copied(entry, pool, (*key, name))  # type: ignore[index]
        return found
    if isinstance(value, list):
        return [copied(entry, pool, (*key, place)) for place, entry in enumerate(value)]
    return value
