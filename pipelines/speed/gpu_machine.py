"""Step 0 of `bench gpu`: whether the installed versions fit, and how fast memory and products are."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from importlib import metadata

import torch
from packaging.requirements import Requirement

from pipelines.base.door import ROOT
from pipelines.base.errors import SetupError
from pipelines.speed.gpu import Case, Line
from pipelines.speed.gpu_timing import milliseconds

NEEDED = ("torch", "timm", "numpy", "pyarrow", "opencv-python-headless", "ray")  # without which no step says anything


def lines(case: Case) -> Iterator[Line]:
    """What is measured.

    Raises:
        SetupError: a version of `NEEDED` does not fit; of the others a line says so.
    """
    old = []
    for wanted in requirements():
        try:
            found = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            found = "missing"
        fits = found != "missing" and wanted.specifier.contains(found, prereleases=True)
        if not fits and wanted.name in NEEDED:
            old.append(f"{wanted.name} {found}, wanted {wanted.specifier}")
        yield Line(wanted.name, found, predicted=str(wanted.specifier), good=fits)
    if case.device == "cuda":
        yield from gpu()
    if old:
        raise SetupError(f"versions that this project was not tested with: {'; '.join(old)}")
    yield from speeds(case)


def requirements() -> Iterator[Requirement]:
    """What pyproject.toml asks for; of an installed package, what its metadata do."""
    page = ROOT / "pyproject.toml"
    words = tomllib.loads(page.read_text())["project"]["dependencies"] if page.is_file() else metadata.requires(
        "context-heads") or []  # fmt: skip
    yield from map(Requirement, words)


def gpu() -> Iterator[Line]:
    """The GPU by its own words."""
    properties = torch.cuda.get_device_properties(0)
    yield Line("GPU", torch.cuda.get_device_name(0))
    yield Line("memory", properties.total_memory / 2**30, "GiB")
    yield Line("compute capability", f"{properties.major}.{properties.minor}")
    yield Line("torch, CUDA, cuDNN", f"{torch.__version__}, {torch.version.cuda}, {torch.backends.cudnn.version()}")
    if smi := shutil.which("nvidia-smi"):
        words = "driver_version,power.limit,clocks.max.sm,temperature.gpu,memory.used"
        asked = subprocess.run([smi, f"--query-gpu={words}", "--format=csv,noheader"], capture_output=True, text=True)
        yield Line(words, asked.stdout.strip() or asked.stderr.strip())


def speeds(case: Case) -> Iterator[Line]:
    """A copy within memory, and a product of matrices."""
    device = torch.device(case.device)
    size, side = (2**24, 256) if case.small else (8 * 10**9, 8192)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    took = milliseconds(lambda: target.copy_(source), device)
    yield Line("copy, reads and writes", 2 * size / took / 1e9, "TB/s", "4.3")
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    took = milliseconds(lambda: a @ b, device)
    yield Line(f"product of {side} x {side} in bf16", 2 * side**3 / took / 1e9, "TFLOP/s", "790")
