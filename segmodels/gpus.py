"""GPUs as their makers publish them: memory, speed of dense products, bandwidth."""

from __future__ import annotations

import re
from dataclasses import dataclass

from segmodels.checks import nearest

# What large kernels attain of the published figures: an H200, published at 989 TFLOP/s and 4.8 TB/s, multiplied 8192²
# bf16 matrices at 790 TFLOP/s and copied 8 GB at 4.3 TB/s. Of other GPUs the same shares are assumed.
PRODUCTS, COPIES = 0.80, 0.90
STEP = 0.845  # real steps of RecoNet (R50s, R101s) reached 0.83 to 0.86 of the roofline by these rates
CONTEXT_BYTES = 1 << 30  # of CUDA itself and of cuDNN's workspaces, about half each, beside what PyTorch counts


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: the table's key.
        pattern: what its driver's, or Ray's, name for it contains.
        memory_gib: as the driver reports it.
        tflops: of dense products in 16 bits, without sparsity, published.
        tflops32: the same in float32, as convolutions compute it: in TF32 from Ampere on.
        bandwidth_tb: TB/s of its memory, published.
        bf16: whether it computes in bfloat16 itself.
    """

    name: str
    pattern: str
    memory_gib: float
    tflops: float
    tflops32: float
    bandwidth_tb: float
    bf16: bool = True

    def seconds(self, flops: float, moved: float, precision: str) -> float:
        """The least seconds of a kernel: it computes, or it moves bytes, whichever takes longer."""
        rate = self.tflops32 if precision == "fp32" else self.tflops
        return max(flops / (PRODUCTS * rate * 1e12), moved / (COPIES * self.bandwidth_tb * 1e12))


# NVIDIA's data sheets (T4 2019; L4, A10, L40S 2023; A100 2021; H100 2023; H200 2024; DGX B200 2025, an eighth of it),
# SXM where there are several forms; figures "with sparsity" halved. The first pattern that is found counts.
GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("T4", r"\bT4\b", 15.0, 65, 8.1, 0.32, bf16=False),
        Gpu("L4", r"\bL4\b", 22.5, 121, 60, 0.3),
        Gpu("A10", r"\bA10\b", 22.5, 125, 62.5, 0.6),
        Gpu("L40S", r"\bL40S\b", 45.0, 362, 183, 0.864),
        Gpu("A100-80GB", r"\bA100\b.*\b80GB?\b", 80.0, 312, 156, 2.039),
        Gpu("A100-40GB", r"\bA100\b", 40.0, 312, 156, 1.555),
        Gpu("H100", r"\bH100\b", 79.6, 989, 494, 3.35),
        Gpu("H200", r"\bH200\b", 140.4, 989, 494, 4.8),
        Gpu("B200", r"\bB200\b", 179.0, 2250, 1125, 8.0),
    )
}


def known_gpu(name: str) -> Gpu | None:
    """The GPU of the table that a driver's or Ray's name means, such as `NVIDIA A100-SXM4-80GB`; None for another."""
    return GPUS.get(name) or next((gpu for gpu in GPUS.values() if re.search(gpu.pattern, name, re.I)), None)


def gpu_named(name: str) -> Gpu:
    """The same for a name that a person gives.

    Raises:
        ValueError: the table has none of that name.
    """
    if found := known_gpu(name):
        return found
    raise ValueError(f"GPU {name!r} is not in the table; allowed: {', '.join(GPUS)}.{nearest(name, GPUS)}")
