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

from pipelines.base.errors import Stopped
from pipelines.base.files import write_text
from pipelines.base.polling import Polling
from pipelines.runs.folder import RunFolder

LOOK_S = 0.5  # between two looks at the notes: a shared file system is asked seldom
OTHERS = -2  # in the place of a signal: workers end with a checkpoint, and others go on
FETCH_S = 2.0  # the same, at a bucket
T = TypeVar("T")


@contextlib.contextmanager
def stoppable(folder: Path, idle: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """While the body trains, SIGTERM and the first Ctrl-C leave a note for the workers; the second leaves at once.

    Where signals cannot be caught, outside of the main thread, nothing changes.

    Args:
        folder: of the run.
        idle: whether there is no worker now that could read the note; then the first signal leaves at once, too.

    Raises:
        Stopped: a signal came while no worker trained.
    """
    note = RunFolder(folder).stop
    note.unlink(missing_ok=True)

    def ask(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT and note.exists():
            raise KeyboardInterrupt
        if idle():
            raise Stopped(f"{name}: stopped while no worker trained; the same command goes on", number + 128)
        write_text(note, name)
        print(
            f"\n{name}: ending with a checkpoint; Ctrl-C again leaves at once, without a checkpoint",
            file=sys.stderr,
            flush=True,
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
        note.unlink(missing_ok=True)


@contextlib.contextmanager
def asked_to_stop(
    note: Path | None, resize: Path | None = None, fetch: Callable[[Path], None] | None = None
) -> Iterator[Callable[[], int]]:
    """What tells the signal that asks to end, OTHERS where others are to go on, 0 while nobody asks; a thread looks.

    Args:
        note: the file that names the signal; None for a worker that learns of it from another.
        resize: the file that asks for a checkpoint, so that others go on; None for work that is not disturbed for it.
        fetch: brings the note here, of a run in a bucket.
    """
    asked = [0]

    def look() -> None:
        if note is not None and fetch:
            fetch(note)
        if note is not None and note.exists():
            asked[0] = signal.Signals[note.read_text()].value
        elif resize is not None and resize.exists():
            asked[0] = OTHERS

    if note is None:
        yield lambda: 0
        return
    with Polling(look, lambda: LOOK_S if fetch is None else FETCH_S, "stop-note"):
        yield lambda: asked[0]


def in_thread(call: Callable[[], T], look: Callable[[], object] = lambda: None) -> T:
    """Result of a call made in another thread, so that this one stays free for signals; its exception is raised here.

    Ray's `fit` would install a handler of its own for Ctrl-C, which ends the workers without a checkpoint.

    Args:
        call: what is called.
        look: called here repeatedly while it runs; what it raises is raised, and the call goes on by itself.
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
        look()
    if "error" in box:
        raise box["error"]
    return box["value"]
