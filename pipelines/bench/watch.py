"""A thread that looks at something again and again while something else runs."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Any, Self


class Watch(threading.Thread, ABC):
    """Calls `look` each `POLL_S` seconds while its body runs; subclasses keep what they saw."""

    POLL_S = 1.0

    def __init__(self) -> None:
        super().__init__(name=type(self).__name__, daemon=True)
        self.ending = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *unused: Any) -> None:
        self.ending.set()
        self.join()

    def run(self) -> None:
        while not self.ending.wait(self.POLL_S):
            self.look()

    @abstractmethod
    def look(self) -> None:
        """One look."""
