"""What this machine is: processor, cores, memory, GPUs."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def memory_gib() -> float:
    """Memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def gpus() -> list[str]:
    """Names of the NVIDIA GPUs."""
    return ask_driver("name")


def gpu_driver() -> str:
    """The version of the GPUs' driver; empty where there is none."""
    return next(iter(ask_driver("driver_version")), "")


def ask_driver(what: str) -> list[str]:
    """A fact of each GPU, by the driver's own tool, because PyTorch would take hold of the GPUs to answer."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in listed.stdout.splitlines() if line.strip()] if listed.returncode == 0 else []
