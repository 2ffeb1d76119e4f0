"""How long a device had nothing to do for want of a batch."""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """Tells when a device has done what it was given."""

    def now(self) -> Any:
        """A mark behind all that the device was given; nobody waits for it."""

    def seconds(self, first: Any, last: Any) -> float:
        """From one mark to another that the device has passed."""


class HostClock:
    """A CPU's: the process that gives the work does it."""

    def now(self) -> float:
        return time.monotonic()

    def seconds(self, first: float, last: float) -> float:
        return last - first


class CudaClock:
    """A GPU's, by events in its queue."""

    def now(self) -> torch.cuda.Event:
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        return mark

    def seconds(self, first: torch.cuda.Event, last: torch.cuda.Event) -> float:
        last.synchronize()
        return first.elapsed_time(last) / 1e3


def clock_of(device: torch.device) -> Clock:
    """The clock of a device."""
    return CudaClock() if device.type == "cuda" else HostClock()


class Waits:
    """The waits of a device for its batches since the last restart.

    A mark stands behind each step and another behind the arrival of the next batch. While a GPU still works, the
    process may wait for data as long as it likes: both marks come right after each other. Only where the step ends
    before the batch is there, its copy included, time passes between them.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.restart()

    def restart(self) -> None:
        """Forget what was."""
        self.spans: list[tuple[Any, Any]] = []

    def ask(self) -> None:
        """The next batch is asked for."""
        self.asked = self.clock.now()

    def come(self) -> None:
        """It has come."""
        self.spans.append((self.asked, self.clock.now()))

    def seconds(self) -> float:
        """Their sum; waits for the device, so read it where the losses are read."""
        return sum(self.clock.seconds(*span) for span in self.spans)
