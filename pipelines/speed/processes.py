"""Processor time and memory of this process and all below it, Ray's among them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil

from pipelines.base.polling import Polling


def family() -> Iterator[psutil.Process]:
    """This process and all that it started, and those that they started."""
    here = psutil.Process()
    yield here
    yield from here.children(recursive=True)


def processor_seconds() -> dict[tuple[int, float], float]:
    """Seconds of the processor that each of the family has taken so far, by its number and birth."""
    taken = {}
    for process in family():
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            taken[process.pid, process.create_time()] = times.user + times.system
    return taken


def processor_seconds_since(before: dict[tuple[int, float], float]) -> float:
    """Seconds that the living of the family have taken since; those that ended meanwhile count nothing."""
    return sum(seconds - before.get(who, 0.0) for who, seconds in processor_seconds().items())


class MemoryPeak(Polling):
    """Watches the family's memory from a thread.

    It reads resident less shared memory, which costs microseconds: exact sums over pages took a third of a core.

    Attributes:
        largest: most bytes that one of Ray's workers held only for itself.
        together: most bytes that all held at one time.
    """

    def __init__(self) -> None:
        super().__init__(self.measure, lambda: 1.0, "memory-peak")
        self.largest = self.together = 0

    def measure(self) -> None:
        """Add up what each process holds."""
        held = {}
        for process in family():
            with contextlib.suppress(psutil.Error):
                memory, name = process.memory_info(), process.name()
                held[name, process.pid] = memory.rss - memory.shared
        workers = [size for (name, _), size in held.items() if name.startswith("ray::")]
        self.largest, self.together = max(self.largest, *workers, 0), max(self.together, sum(held.values()))


class KindPeaks(Polling):
    """Watches the memory of a run by its door: of the driver, of its train workers, of its feeding tasks.

    Args:
        driver: the number of the driver's process.
    """

    def __init__(self, driver: int) -> None:
        super().__init__(self.measure, lambda: 0.2, "kind-peaks")
        self.driver = driver
        self.held: dict[int, int] = {}
        self.names: dict[int, set[str]] = {}

    def measure(self) -> None:
        """Look at the driver, and all below it."""
        with contextlib.suppress(psutil.Error):
            top = psutil.Process(self.driver)
            for process in (top, *top.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    memory = process.memory_info()
                    self.names.setdefault(process.pid, set()).add(" ".join(process.cmdline())[:80])
                    self.held[process.pid] = max(self.held.get(process.pid, 0), memory.rss - memory.shared)

    def kinds(self) -> dict[str, int]:
        """Most bytes that one process of each kind held for itself; 0 where there was none."""
        words = {"worker": "RayTrainWorker", "task": "read_blocks"}
        found = {"driver": self.held.get(self.driver, 0)}
        for kind, word in words.items():
            pids = [pid for pid, names in self.names.items() if any(word in name for name in names)]
            found[kind] = max((self.held[pid] for pid in pids), default=0)
        return found
