"""A thread that looks at something again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self


class Polling(threading.Thread):
    """Calls `look` every `seconds`, in a thread, from `with` to the end of its body.

    An error of `look` ends the thread, and is raised by `stop`.

    Args:
        look: what is called.
        seconds: between two calls, asked each time.
        name: of the thread.
        last: whether `look` is called once more at the end.
    """

    def __init__(self, look: Callable[[], object], seconds: Callable[[], float], name: str, last: bool = False) -> None:
        super().__init__(name=name, daemon=True)
        self.look, self.seconds, self.last = look, seconds, last
        self.ending = threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            while not self.ending.wait(self.seconds()):
                self.look()
            if self.last:
                self.look()
        except Exception as error:
            self.error = error

    def stop(self) -> None:
        """End the thread.

        Raises:
            Exception: what `look` raised.
        """
        self.ending.set()
        self.join()
        if self.error:
            raise self.error

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        try:
            self.stop()
        except Exception:
            if kind is None:  # an error of the body comes first
                raise
