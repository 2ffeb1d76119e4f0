"""With which kernels a GPU computes where PyTorch has several: stated, or settled once by measurement."""

import functools
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

PROBE = (2, 1, 4096, 256)  # queries of a 512 x 512 crop at stride 8 in two images, as wide as the heads' embeddings
RUNS = 5
GAIN = 1.1  # times as fast as the next kernel that cuDNN's attention must be: it makes a plan for each size of a map
KERNELS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def settle_kernels(device: torch.device, precision: str) -> str:
    """Settle this process' kernels on a GPU; all workers, who call it together, take those of the first.

    Products and convolutions of float32 are taken in TF32, ten bits of fraction: PyTorch's defaults are TF32 for
    convolutions and full float32 for products, so that `fp32` would be a mixture. Attention in half precision is left
    to cuDNN only where that is measured to be faster.

    Args:
        device: nothing is settled for a CPU.
        precision: in which the model computes.

    Returns:
        What was settled, in words for a record; empty for a CPU.
    """
    if device.type != "cuda":
        return ""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    words = "float32 products and convolutions in TF32"
    if precision == "fp32":
        return words
    half = torch.bfloat16 if precision == "bf16" else torch.float16
    times = attention_times(device, half)
    cudnn = together(keeps_cudnn(times), device)
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    told = ", ".join(f"{name} {seconds * 1e3:.2f} ms" for name, seconds in times.items()) or "none ran"
    return f"{words}; attention {'with' if cudnn else 'without'} cuDNN ({told})"


def keeps_cudnn(times: dict[str, float]) -> bool:
    """Whether cuDNN's attention is so much faster than the others that it is kept, or the only one."""
    others = [seconds for name, seconds in times.items() if name != "cuDNN"]
    return "cuDNN" in times and (not others or GAIN * times["cuDNN"] < min(others))


def together(choice: bool, device: torch.device) -> bool:
    """The first worker's choice, where there are several."""
    if not (dist.is_available() and dist.is_initialized()):
        return choice
    box = torch.tensor([int(choice)], device=device)
    dist.broadcast(box, 0)
    return bool(box.item())


@functools.cache
def attention_times(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Seconds of a training step's two passes of attention, by the kernels that this GPU has; measured once."""
    query = torch.randn(PROBE, device=device, dtype=dtype, requires_grad=True)

    def passes() -> None:
        F.scaled_dot_product_attention(query, query, query).backward(query.detach())

    found = {}
    for name, kernel in KERNELS.items():
        try:
            with sdpa_kernel(kernel):
                found[name] = event_seconds(passes)
        except RuntimeError:  # not on this GPU
            continue
    return found


def event_seconds(work: Callable[[], object]) -> float:
    """The least seconds of a GPU's work, after one run that is not counted."""
    work()
    times = []
    for _ in range(RUNS):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        work()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last) / 1e3)
    return min(times)
