"""Ending a training in good order: SIGTERM and Ctrl-C let the workers write a checkpoint first."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from pipelines.record import write_text

STOP = "stop.txt"  # in a run's folder: the signal that asks its workers to end
T = TypeVar("T")


@contextlib.contextmanager
def stoppable(folder: Path) -> Iterator[None]:
    """While the body trains, SIGTERM and the first Ctrl-C leave a note for the workers; the second leaves at once.

    Where signals cannot be caught, outside of the main thread, nothing changes.
    """
    (folder / STOP).unlink(missing_ok=True)

    def ask(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT and (folder / STOP).exists():
            raise KeyboardInterrupt
        write_text(folder / STOP, name)
        print(
            f"\n{name}: ending with a checkpoint; Ctrl-C (again) leaves at once, without", file=sys.stderr, flush=True
        )

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        (folder / STOP).unlink(missing_ok=True)


def asked_to_stop(note: Path) -> int:
    """The signal of the note, or 0 when there is none."""
    return signal.Signals[note.read_text()].value if note.exists() else 0


def in_thread(call: Callable[[], T]) -> T:
    """Result of a call made in another thread, so that this one stays free for signals; its exception is raised here.

    Ray's `fit` would install a handler of its own for Ctrl-C, which ends the workers without a checkpoint.
    """
    box: dict[str, Any] = {}

    def run() -> None:
        try:
            box["value"] = call()
        except BaseException as error:
            box["error"] = error

    thread = threading.Thread(target=run, name="fit", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)  # a join without end would hold signals back
    if "error" in box:
        raise box["error"]
    return box["value"]
