"""Every head whole, from the trunk's maps to its outputs: cost, speed and peak, without a peer."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from statistics import median

import torch
from torch import Tensor, nn

from pipelines.speed.report import Report
from pipelines.speed.rounds import Measured, contest
from segmodels.checks import keywords_of
from segmodels.cost import conv_matmul_macs, on_meta
from segmodels.heads.catalog import HEADS, build_head

CLASSES = 21
COLUMNS = (
    "head",
    "mode",
    "batch",
    "type",
    "GMACs an image",
    "parameters, M",
    "forward, ms",
    "forward + backward, ms",
    "peak, MiB",
)
Size = tuple[int, int]


def build(name: str, channels: int, size: Size) -> nn.Module:
    """A head as its builder has it, on maps of a trunk with output stride 8, the last 4 C wide.

    Args:
        name: a key of `HEADS`.
        channels: C, of every head that has it as a keyword.
        size: (H, W) in cells of the maps at stride 8.
    """
    known = keywords_of(HEADS[name])
    given: dict[str, object] = {"channels": channels, "feature_size": size}
    if channels < 65:  # the lengths of CTNet's kernels are bounded by C
        given["kernels"] = (9,)
    return build_head(name, widths(channels), CLASSES, **{k: v for k, v in given.items() if k in known})


def widths(channels: int) -> tuple[int, ...]:
    """Of the four stages: 256 to 2048 at C = 512."""
    return channels // 2, channels, 2 * channels, 4 * channels


def features(batch: int, channels: int, size: Size, device: str) -> list[Tensor]:
    """The trunk's four maps, the first at stride 4."""
    sizes = [(2 * size[0], 2 * size[1]), size, size, size]
    shapes = zip(widths(channels), sizes, strict=True)
    return [torch.randn(batch, width, *side, device=device).relu() for width, side in shapes]


def logits(head: nn.Module, *maps: Tensor) -> Tensor:
    """All outputs as one vector of sums: the gradient passes through each, and little is held for it."""
    return torch.stack([y.float().sum() for y in head(list(maps)).values()])


def measure_head(
    name: str, shape: tuple[int, int, Size], dtype: str, repeats: int, device: str, *, tested: bool = False
) -> Measured:
    """One head in training mode, or in evaluation without a backward pass."""
    batch, channels, size = shape
    head = build(name, channels, size).to(device).train(not tested)
    maps = features(batch, channels, size, device)
    return contest(head, {"ours": logits}, maps, dtype, repeats, backward=not tested)["ours"]


def costs(name: str, channels: int, size: Size) -> tuple[float, float]:
    """GMACs of one image and millions of parameters, by `segmodels.cost`, which computes nothing."""
    with torch.device("meta"):
        head = build(name, channels, size)
    parameters = sum(p.numel() for p in head.parameters())
    return conv_matmul_macs(on_meta(head), features(1, channels, size, "meta")) / 1e9, parameters / 1e6


def head_table(args: argparse.Namespace, names: Sequence[str], device: str) -> Report:
    """A row per head and type."""
    channels, size = args.channels or 512, tuple(args.size or default_size(device))
    batch = args.batch or (4 if device == "cuda" else 2)
    repeats = min(args.repeats, 3) if device == "cpu" else args.repeats
    rows, measured = [], {}
    for name in names:
        macs, parameters = costs(name, channels, size)
        for dtype, (images, tested) in product(args.dtype, ((batch, False), (batch, True), (1, True))):
            m = measure_head(name, (images, channels, size), dtype, repeats, device, tested=tested)
            mode = "evaluation" if tested else "training"
            times = (f"{1e3 * median(values):.1f}" if values else "–" for values in (m.forward, m.both))
            cost = (f"{macs:.3f}", f"{parameters:.3f}")
            rows.append([name, mode, str(images), dtype, *cost, *times, f"{m.peak / 2**20:.1f}"])
            key = f"{name} {dtype}" + (f" in evaluation, batch {images}" if tested else "")
            measured[key] = {"forward_s": m.forward, "both_s": m.both, "peak_bytes": m.peak}
    title = f"Every head whole: C {channels}, trunk's maps of {widths(channels)} channels, {size} cells"
    return Report(title, COLUMNS, rows, ["parameters and GMACs at these sizes, not at the papers'"], measured)


def default_size(device: str) -> Size:
    """(H, W) in cells."""
    return (64, 64) if device == "cuda" else (32, 32)
