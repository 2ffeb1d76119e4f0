"""What this machine is: processor, cores, memory, GPUs."""

from __future__ import annotations

import math
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
    return [name for name, _ in gpu_memories()]


def gpu_driver() -> str:
    """The version of the GPUs' driver; empty where there is none."""
    return next(iter(ask_driver("driver_version")), "")


def gpu_memories(ids: str = "") -> list[tuple[str, float]]:
    """Names and GiB of the NVIDIA GPUs, of all or those that CUDA_VISIBLE_DEVICES would name so."""
    found = [line.rpartition(",") for line in ask_driver("name,memory.total", ids) if "," in line]
    return [(name.strip(), float(mib) / 1024 if mib.strip().isdigit() else math.nan) for name, _, mib in found]


def ask_driver(what: str, ids: str = "") -> list[str]:
    """Facts of each GPU, by the driver's own tool, because PyTorch would take hold of the GPUs to answer.

    Args:
        what: the facts, as the tool names them.
        ids: only of these GPUs, as CUDA_VISIBLE_DEVICES names them.
    """
    asked = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run([*asked, "-i", ids] if ids else asked, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return listed.stdout.splitlines() if listed.returncode == 0 else []
