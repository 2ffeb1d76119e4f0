"""The loader's own work on one core, against albumentations' whole-image pipeline.

A 480x360 JPEG and its mask become a 352x352 uint8 crop with its mask. `whole path` is a feeding task: rows from
memory-mapped shards, both decodings, the training view, written to the block that travels. The two geometries meet
each image as a loader does, right after its decoding, of which the clock sees nothing; both leave arrays of their own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.feed.plan import SamplePlan
    from pipelines.speed.report import Report

SIZE = (360, 480)  # height and width of the sources, pixels
SCALE = (0.5, 2.0)
QUALITY = 85
BLOCK = 32  # samples of a block, as in the feed
FILL = (124, 116, 104)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="CamVid's release, or images/, masks/, classes.yaml (default: drawn)"
    )
    parser.add_argument("--rows", type=int, default=64, help="images (default %(default)s)")
    parser.add_argument("--crop", type=int, nargs=2, default=(352, 352), metavar=("H", "W"), help="default 352 352")
    parser.add_argument(
        "--quality", type=int, default=QUALITY, help="of drawn JPEG files, 1-100 (default %(default)s, CamVid's)"
    )


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be measured.

    Raises:
        InputError: an option out of its range, or no such folder.
    """
    from pipelines.base.errors import InputError

    if args.rows < 1 or not 1 <= args.quality <= 100 or min(args.crop) < 8:
        raise InputError("--rows must be 1 or more, --quality 1 to 100, --crop at least 8 8")
    if args.images and not args.images.is_dir():
        raise InputError(f"--images {args.images} is no folder; leave it out to measure on drawn pictures")


def measure(args: argparse.Namespace) -> Report:
    """Time all cases in turn over the same rows."""
    import cv2

    from datasets.readers.voc import CLASSES
    from datasets.transforms import TrainView
    from pipelines.feed.plan import SamplePlan, open_shards
    from pipelines.speed.drawn import draw, original_shards, scratch, write_shards
    from pipelines.speed.report import interleave

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with scratch() as folder:
            if args.images:
                uri = str(original_shards(folder / "data", args.images, args.rows))
            else:
                uri = str(write_shards(folder / "data", draw(args.rows, SIZE), CLASSES, args.quality) / "train")
            rows = len(open_shards(uri))
            plan = SamplePlan(uri, rows, TrainView(tuple(args.crop), SCALE), seed=0, batch=1, steps=rows)
            return report(args, plan, interleave(cases(plan), args.repeats))
    finally:
        cv2.setNumThreads(threads)


def cases(plan: SamplePlan) -> dict[str, Callable[[], float]]:
    """Each case returns images per second of processor time, of one pass over all rows; results are dropped at once."""
    import cv2
    import numpy as np

    from datasets.augment import scaled_crop
    from datasets.sample import decode_image, decode_mask
    from datasets.transforms import sample_seed
    from pipelines.feed.plan import open_shards

    shards = open_shards(plan.shards)
    files = [shards.encoded(row) for row in range(plan.rows)]
    seeds = [sample_seed(plan.seed, 0, name) for name in shards.ids]
    peer, unflipped = scaled_crop(plan.crops.crop, SCALE, FILL), replace(plan.crops, flip=0)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION

    def rate(work: Callable[..., object], inputs: Iterable[tuple[Any, ...]]) -> Callable[[], float]:
        inputs = list(inputs)

        def once() -> float:
            began = time.thread_time()  # of the processor: other work on the machine does not count
            for values in inputs:
                work(*values)
            return len(inputs) / (time.thread_time() - began)

        return once

    def rate_decoded(work: Callable[[np.ndarray, np.ndarray, int], object]) -> Callable[[], float]:
        def once() -> float:
            seconds = 0.0
            for row, seed in enumerate(seeds):
                image, mask = shards.sample(row)
                began = time.thread_time()
                work(image, mask, seed)
                seconds += time.thread_time() - began
            return len(seeds) / seconds

        return once

    return {
        "whole path": block_rate(plan),
        "decode alone": rate(lambda image, mask: (decode_image(image), decode_mask(mask)), files),
        "its JPEG": rate(lambda image, mask: decode_image(image), files),
        "its mask": rate(lambda image, mask: decode_mask(mask), files),
        "bare cv2.imdecode": rate(lambda image, mask: cv2.imdecode(np.frombuffer(image, np.uint8), flags), files),
        "geometry alone": rate_decoded(unflipped),
        "albumentations": rate_decoded(lambda image, mask, seed: peer(image=image, mask=mask)),
    }


def block_rate(plan: SamplePlan) -> Callable[[], float]:
    """A feeding task's images per second of processor time, block after block."""
    from pipelines.feed.plan import read_block

    blocks = [range(s, min(s + BLOCK, plan.rows)) for s in range(0, plan.rows, BLOCK)]

    def once() -> float:
        began = time.thread_time()
        for block in blocks:
            read_block(block, plan)
        return plan.rows / (time.thread_time() - began)

    return once


def report(args: argparse.Namespace, plan: SamplePlan, measured: dict[str, list[float]]) -> Report:
    """Medians, and each case against what it should be compared with."""
    from pipelines.feed.plan import open_shards
    from pipelines.speed.report import Report, goal, ratios, spread

    against = {
        "whole path": "bare cv2.imdecode",
        "decode alone": "bare cv2.imdecode",
        "its JPEG": "bare cv2.imdecode",
        "its mask": "bare cv2.imdecode",
        "bare cv2.imdecode": "bare cv2.imdecode",
        "geometry alone": "albumentations",
        "albumentations": "albumentations",
    }
    compared = {name: ratios(measured[name], measured[base]) for name, base in against.items()}
    rows = [
        [name, spread(values, 0), f"{1e6 / median(values):.0f}", spread(compared[name], 2), against[name]]
        for name, values in measured.items()
    ]
    files = [open_shards(plan.shards).encoded(row) for row in range(plan.rows)]
    jpeg, packed = (sum(len(pair[i] or b"") for pair in files) / plan.rows / 1000 for i in (0, 1))
    source = "as the folder holds them" if args.images else f"drawn, JPEG quality {args.quality}"
    notes = [
        f"one core, processor time; {plan.rows} images of 480x360, {source}, {jpeg:.1f} kB and {packed:.1f} "
        f"kB of mask on average; crop {plan.crops.crop[0]}x{plan.crops.crop[1]}, scale {SCALE[0]} to {SCALE[1]}; "
        f"median (least to greatest) of {args.repeats} rounds in turn",
        goal("whole path, images/s", median(measured["whole path"]), 800, digits=0),
        goal("geometry, times albumentations", median(compared["geometry alone"]), 3),
    ]
    columns = ["transform", "images/s", "µs each", "ratio", "to"]
    return Report("One core's loading", columns, rows, notes, {"images_per_s": measured, "ratios": compared})
