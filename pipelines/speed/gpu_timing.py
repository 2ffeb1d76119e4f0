"""How a GPU's work is timed, and a CPU's in a rehearsal."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch


def waited(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(work: Callable[[], object], device: torch.device, repeats: int = 10, warm: int = 3) -> float:
    """The median of single calls, by events on a GPU, after some that are not counted."""
    for _ in range(warm):
        work()
    waited(device)
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            work()
            last.record()
            last.synchronize()
            times.append(first.elapsed_time(last))
        else:
            began = time.perf_counter()
            work()
            times.append(1e3 * (time.perf_counter() - began))
    return median(times)


def together(work: Callable[[], object], device: torch.device, repeats: int = 10, warm: int = 3) -> tuple[float, float]:
    """Milliseconds of one of several calls in a row: until the device has done them, and until the CPU has given them.

    On a CPU the two are the same.
    """
    for _ in range(warm):
        work()
    waited(device)
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    given = time.perf_counter() - began
    waited(device)
    return 1e3 * (time.perf_counter() - began) / repeats, 1e3 * given / repeats


def peak_gib(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """The most that the allocator of a GPU handed out, and reserved, while `work` was done; zeros on a CPU."""
    if device.type != "cuda":
        work()
        return 0.0, 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    waited(device)
    return torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30
