"""What the workers' GPUs do while they train: how busy, how full, how much power; each worker reads its own.

MLflow's own monitor sees only the driver's machine. PyTorch asks NVML, which the package nvidia-ml-py brings.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

SAMPLE_S = 1.0  # between two looks; a GPU's own figures are of the last sixth of a second to a second
NAMES = ("utilization", "memory_mib", "power_w", "peak_mib")  # percent, MiB in use by all, W, PyTorch's most in MiB


def ask(index: int) -> tuple[float, float, float]:
    """Percent of the time in which a GPU computed, MiB in use on it, watts.

    Raises:
        ModuleNotFoundError: nvidia-ml-py is not installed.
        Exception: what the driver raises.
    """
    used = torch.cuda.device_memory_used(index) / 2**20
    return float(torch.cuda.utilization(index)), used, torch.cuda.power_draw(index) / 1000


@dataclass
class Telemetry:
    """A worker's GPU, looked at in a thread beside the training; without a GPU nothing happens.

    Args:
        device: of the worker.
        rank, world: which worker, of how many.
        read: gives the figures of a GPU by its index.
        every: seconds between two looks.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    read: Callable[[int], tuple[float, float, float]] = ask
    every: float = SAMPLE_S
    missing: str = ""
    samples: list[tuple[float, float, float]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def active(self) -> bool:
        """Whether there is a GPU; the same on all workers."""
        return self.device.type == "cuda"

    def __enter__(self) -> Telemetry:
        if self.active and self.look():
            threading.Thread(target=self.watch, daemon=True, name="telemetry").start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()

    def watch(self) -> None:
        """Look now and then, until the end or a failure."""
        while not self.ended.wait(self.every) and self.look():
            pass

    def look(self) -> bool:
        """Take a sample; a GPU that does not answer is not asked again, and why is kept in `missing`."""
        try:
            self.samples.append(self.read(self.device.index or 0))
        except ModuleNotFoundError:
            self.missing = "nvidia-ml-py is not installed (uv sync --group gpu)"
        except Exception as error:  # whatever a driver can raise
            self.missing = f"{type(error).__name__}: {error}"
        return not self.missing

    def restart(self) -> None:
        """Begin a new interval; PyTorch's peak too."""
        self.samples = []
        if self.active:
            torch.cuda.reset_peak_memory_stats(self.device)

    def take(self) -> list[dict[str, float]]:
        """The figures of all workers since the last `restart`, by rank: NaN for what one does not know.

        All workers call it. Utilisation and power are means, memory the most.
        """
        if not self.active:
            return []
        own = [*summed(list(self.samples)), torch.cuda.max_memory_allocated(self.device) / 2**20]
        table = torch.zeros(self.world, len(NAMES), device=self.device, dtype=torch.float64)
        table[self.rank] = torch.tensor(own, dtype=torch.float64)
        if self.world > 1:
            dist.all_reduce(table)
        return [dict(zip(NAMES, row, strict=True)) for row in table.tolist()]


def unheard(device: torch.device) -> str:
    """What the record says of a GPU that does not answer; empty of one that does, and of a CPU."""
    telemetry = Telemetry(device)
    heard = not telemetry.active or telemetry.look()
    return "" if heard else f"; how busy the GPU is will not be known: {telemetry.missing}"


def summed(samples: list[tuple[float, float, float]]) -> list[float]:
    """Mean utilisation, most memory and mean power of samples; NaN of none."""
    if not samples:
        return [float("nan")] * 3
    busy, memory, power = zip(*samples, strict=True)
    return [statistics.fmean(busy), max(memory), statistics.fmean(power)]
