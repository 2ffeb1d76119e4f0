"""Step 5 of `bench gpu`: single operations whose cost no counting tells: atomics, layouts, the way to the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.feed.batch import Batch
from pipelines.speed.gpu import Case, Line
from pipelines.speed.gpu_timing import milliseconds
from segmodels.heads.dmnet import filter_channels
from segmodels.heads.reconet import TensorReconstruction
from segmodels.terms import cross_entropy

CLASSES = (21, 150, 171)


def lines(case: Case) -> Iterator[Line]:
    """What is measured."""
    device, images, cells = torch.device(case.device), *((2, 8) if case.small else (16, 64))
    for classes in CLASSES:
        yield from upsampling(device, images, classes, cells)
    yield from contexts(device, images, cells, 32 if case.small else 512)
    yield from way(device, images, 8 * cells)


def upsampling(device: torch.device, images: int, classes: int, cells: int) -> Iterator[Line]:
    """From cells to pixels by three forms, forward and with the gradient; then the loss on pixels."""
    small = torch.randn(images, classes, cells, cells, device=device)
    size = [8 * cells, 8 * cells]
    rows = weights(cells, 8 * cells).to(device)
    forms: dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]] = {
        "NCHW": (small, lambda x: F.interpolate(x, size=size, mode="bilinear", align_corners=True)),
        "NHWC": (small.to(memory_format=torch.channels_last),
                 lambda x: F.interpolate(x, size=size, mode="bilinear", align_corners=True)),
        "two products": (small, lambda x: rows @ x @ rows.mT),
    }  # fmt: skip
    floor = 16 * classes * 512 * 512 * 4 / 4.3e12 * 1e3  # ms: the map written once
    outputs = {}
    for name, (given, form) in forms.items():
        with torch.no_grad():
            yield Line(f"K {classes}, upsampling {name}: forward", milliseconds(lambda g=given, f=form: f(g), device),  # type: ignore[misc]
                       "ms", f">= {floor:.2g}")  # fmt: skip
            outputs[name] = form(given)
        both = milliseconds(gradient(given, form), device, repeats=5)
        yield Line(f"K {classes}, upsampling {name}: and backward", both, "ms", f">= {2 * floor:.2g}")
    far = (outputs["two products"] - outputs["NCHW"]).abs().max().item()
    yield Line(f"K {classes}: two products from interpolate", far, good=far < 1e-2)
    mask = torch.randint(0, classes, (images, *size), device=device, dtype=torch.uint8)
    loss = milliseconds(gradient(outputs["NCHW"], lambda x: cross_entropy(x, mask)), device, repeats=5)
    yield Line(f"K {classes}: cross entropy and its gradient", loss, "ms", f">= {4 * floor:.2g}")


def weights(cells: int, pixels: int) -> Tensor:
    """The matrix (pixels, cells) of bilinear resizing with aligned corners along one axis."""
    at = torch.arange(pixels) * ((cells - 1) / (pixels - 1))
    low = at.floor().clamp(max=cells - 2).long()
    share = (at - low).unsqueeze(1)
    eye = torch.eye(cells)
    return (1 - share) * eye[low] + share * eye[low + 1]


def gradient(given: Tensor, form: Callable[[Tensor], Tensor]) -> Callable[[], object]:
    """Forward and backward pass, to be called."""
    x = given.detach().requires_grad_()
    cotangent = torch.ones_like(form(x))
    return lambda: torch.autograd.grad(form(x), x, cotangent)


def contexts(device: torch.device, images: int, cells: int, channels: int) -> Iterator[Line]:
    """TRM on maps of both layouts, and DMNet's convolution over as many groups as maps."""
    module, dtype = TensorReconstruction(64).to(device), torch.bfloat16
    vectors = [torch.rand(images, 64, n, device=device) for n in (channels, cells, cells)]
    for name, layout in {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}.items():
        x = torch.randn(images, channels, cells, cells, device=device).to(memory_format=layout)
        with torch.autocast(device.type, dtype):
            took = milliseconds(gradient(x, lambda x: module(x, *vectors)), device, repeats=5)
        yield Line(f"TRM with {name}, forward and backward", took, "ms")
    x = torch.randn(images, channels, cells, cells, device=device, dtype=dtype)
    filters = torch.randn(images, channels, 7, 7, device=device, dtype=dtype)
    took = milliseconds(gradient(x, lambda x: filter_channels(x, filters)), device, repeats=5)
    yield Line(f"DMNet's 7 x 7 over {images * channels} groups, forward and backward", took, "ms", "17/25 of its FLOPs")


def way(device: torch.device, images: int, pixels: int) -> Iterator[Line]:
    """A batch from the host to the device, as a step takes it; and the copy alone, from memory that is pinned."""
    batch = Batch(torch.zeros(images, pixels, pixels, 3, dtype=torch.uint8).permute(0, 3, 1, 2),
                  torch.zeros(images, pixels, pixels, dtype=torch.uint8))  # fmt: skip
    yield Line("a batch to the device", milliseconds(lambda: batch.to(device, True), device), "ms", "5 to 10")
    host = batch.image.permute(0, 2, 3, 1)
    if device.type == "cuda":
        host = host.pin_memory()
    yield Line("its copy from pinned memory", milliseconds(lambda: host.to(device, non_blocking=True), device), "ms",
               "0.35")  # fmt: skip
