"""Step 6 of `bench gpu`: whole images of sizes not met before, attention's backends, six scales of a large image."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipelines.recipes.model import build_model, inference_of
from pipelines.recipes.reading import load_recipe
from pipelines.speed.gpu import Case, Line
from pipelines.speed.gpu_timing import milliseconds, peak_gib, waited
from pipelines.speed.lone import SMALL
from segmodels.inference import predict
from segmodels.segmentor import Segmentor

SIZES = [(512 + 32 * k, 683 + 24 * k) for k in range(8)]
SHAPES = ((4, 1, 4096, 256, 256), (4, 1, 4096, 64, 512))  # B, heads, N, E of queries and of values
BACKENDS = (SDPBackend.MATH, SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)


def lines(case: Case) -> Iterator[Line]:
    """What is measured."""
    device = torch.device(case.device)
    if case.name != "whole":
        yield from scales(case, device)
        return
    model = model_of("ocnet/pascal_context60_resnet101s", case, device)
    for search in (True, False):
        yield from sizes(model, case, device, search)
    for shape in SHAPES:
        yield from backends(shape, case, device)


def model_of(recipe: str, case: Case, device: torch.device) -> Segmentor:
    """A recipe's model in evaluation."""
    small = [*SMALL, "head.channels=32", "head.key_channels=8", "head.partition=[2,2]"] if case.small else []
    words = ["backbone.weights=null", *small, *(["aux=null"] if case.small else [])]
    words = [word for word in words if not (case.small and word.startswith("aux."))]
    built = build_model(load_recipe(recipe, words), 60 if "context" in recipe else 150)
    return built.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def sizes(model: Segmentor, case: Case, device: torch.device, search: bool) -> Iterator[Line]:
    """Images of eight sizes one after the other, with and without cuDNN's search: the first of each, and again."""
    shrink, met = (8, SIZES[:2]) if case.small else (1, SIZES)
    for turn in ("new", "met"):
        began = time.monotonic()
        for height, width in met:
            image = torch.zeros(1, 3, height // shrink, width // shrink, dtype=torch.uint8, device=device)
            with (
                torch.no_grad(),
                torch.autocast(device.type, torch.bfloat16),
                torch.backends.cudnn.flags(enabled=True, benchmark=search),
            ):
                model(image)
            waited(device)
        name = f"{len(met)} {turn} sizes, {'with' if search else 'without'} a search for algorithms"
        yield Line(name, time.monotonic() - began, "s", "a second or more each" if search and turn == "new" else "")


def backends(shape: tuple[int, ...], case: Case, device: torch.device) -> Iterator[Line]:
    """Attention by each backend: its time, and how far it is from products that are written out, in float32."""
    images, heads, cells, wide, values = shape
    cells = 64 if case.small else cells
    dtype = torch.bfloat16
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(images, heads, cells, wide, generator=generator).to(device, dtype) for _ in range(2))
    v = torch.randn(images, heads, cells, values, generator=generator).to(device, dtype)
    wanted = (q.float() @ k.float().mT / wide**0.5).softmax(-1) @ v.float()
    for backend in BACKENDS:
        name = f"attention ({cells} cells, {wide}/{values}), {backend.name.lower()}"
        try:
            with sdpa_kernel(backend):
                far = (F.scaled_dot_product_attention(q, k, v).float() - wanted).abs().max().item()
                took = milliseconds(lambda: F.scaled_dot_product_attention(q, k, v), device, repeats=5)
        except RuntimeError as error:
            yield Line(name, f"not here: {str(error).splitlines()[0][:60]}")
            continue
        yield Line(name, took, "ms")
        yield Line(f"{name}: from float32", far, good=far < 0.05)


def scales(case: Case, device: torch.device) -> Iterator[Line]:
    """The peak of an ADE20K image of 1536x2048 at six scales and mirrored, as OCNet is tested."""
    recipe = load_recipe("ocnet/ade20k_resnet101s", ["backbone.weights=null"])
    model, size = model_of("ocnet/ade20k_resnet101s", case, device), (48, 64) if case.small else (1536, 2048)
    image = torch.zeros(1, 3, *size, dtype=torch.uint8, device=device)
    inference = inference_of(recipe, recipe.inference)

    def work() -> None:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            predict(model, image, inference)

    peak, reserved = peak_gib(work, device)
    expandable = case.name == "scales-expandable"
    yield Line(f"scales {', '.join(map(str, inference.scales))}: peak", peak, "GiB", "37")
    yield Line("reserved for it", reserved, "GiB", "near the peak" if expandable else "112")
