"""Scoring a split under protocols in one pass, against a loop over protocols, images, scales and windows.

The loop is what one writes first: for each protocol it reads each image, and predicts each window of each scale,
plainly and mirrored. It is run with all threads of the machine and with one, and the faster of both is the peer of a
round: threads that wait for each other stand still where the machine has other work. All count the same, which is
checked.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from pipelines.speed.report import Report
    from segmodels.inference import Inference
    from segmodels.segmentor import Segmentor

REPEATS = 3
CLASSES = 21  # of the drawn pictures
LOOPS, OURS = ("loop, all threads", "loop, one thread"), "one pass"
GOALS = {"ms+flip": 1.3, "single and ms+flip": 1.8}
APART = 1e-4  # share of the pixels that rounding may count in other cells


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--images", type=int, default=4, help="drawn images (default %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=[188, 250], metavar=("H", "W"), help="default 188 250")
    parser.add_argument("--crop", type=int, nargs=2, default=[160, 160], metavar=("H", "W"), help="default 160 160")
    parser.add_argument("--backbone", default="resnet18", help="at output stride 8 (default %(default)s)")
    parser.add_argument("--head", default="fcn", help="default %(default)s")
    parser.add_argument("--channels", type=int, default=128, help="of the head (default %(default)s)")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.75, 1.0, 1.25, 1.5, 1.75, 2.0])
    parser.add_argument("--threads", type=int, help="of both (default: the machine's cores)")


def measure(args: argparse.Namespace) -> Report:
    """One protocol, then two together: each form in turn, on CPUs."""
    import torch

    from pipelines.cluster.sizes import cores_here
    from pipelines.speed.drawn import drawn_shards, scratch
    from segmodels.inference import Inference

    torch.set_num_threads(args.threads or cores_here())
    crop = tuple(args.crop)
    single = Inference("slide", crop)
    multi = Inference("slide", crop, scales=tuple(args.scales), flip=True)
    cases = {"ms+flip": [multi], "single and ms+flip": [single, multi]}
    model = model_of(args)
    with scratch() as folder:
        uri = str(drawn_shards(folder / "drawn", args.images, tuple(args.size)) / "train")
        measured = {name: rounds(model, uri, ways, args.repeats) for name, ways in cases.items()}
    return report(args, measured, torch.get_num_threads())


def model_of(args: argparse.Namespace) -> Segmentor:
    """A model of random weights."""
    import torch

    from segmodels.segmentor import build_segmentor

    torch.manual_seed(0)
    backbone = {"name": args.backbone, "output_stride": 8}
    head = {"name": args.head, "channels": args.channels}
    return build_segmentor(num_classes=CLASSES, crop=tuple(args.crop), backbone=backbone, head=head).eval()


def rounds(model: Segmentor, uri: str, ways: Sequence[Inference], repeats: int) -> dict[str, list[float]]:
    """Seconds of each form in turn; the round that is not counted compares their counts.

    Raises:
        Disagreement: they do not count the same.
    """
    import time

    import torch

    from pipelines.scoring.counting import Share, count_images
    from pipelines.speed.rounds import Disagreement, in_turns

    forms: dict[str, Callable[[], list[np.ndarray]]] = {
        LOOPS[0]: lambda: [loop(model, uri, way) for way in ways],
        LOOPS[1]: lambda: with_one_thread(lambda: [loop(model, uri, way) for way in ways]),
        OURS: lambda: [c.total() for c in count_images(model, uri, ways, Share(torch.device("cpu")), "fp32")],
    }
    first: dict[str, list[np.ndarray]] = {}

    def timed(name: str) -> float:
        began = time.perf_counter()
        counts = forms[name]()
        seconds = time.perf_counter() - began
        for ours, other in zip(first.setdefault(name, counts), next(iter(first.values())), strict=True):
            if abs(ours - other).sum() > 2 * APART * other.sum():
                raise Disagreement(f"{name} counts otherwise than the loop")
        return seconds

    return in_turns({name: lambda name=name: timed(name) for name in forms}, repeats)  # type: ignore[misc]


def with_one_thread(work: Callable[[], list[np.ndarray]]) -> list[np.ndarray]:
    """What a computation gives with one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work()
    finally:
        torch.set_num_threads(threads)


def loop(model: Segmentor, uri: str, way: Inference) -> np.ndarray:
    """Confusion counts (K, K) of one protocol, image by image and pass by pass."""
    import numpy as np
    import torch

    from pipelines.feed.plan import open_shards

    shards = open_shards(uri)
    counts = np.zeros((CLASSES, CLASSES), np.int64)
    for row in range(len(shards)):
        pixels, mask = shards.sample(row)
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()
        with torch.inference_mode():
            guess = averaged(model, image, way).argmax(1)[0].numpy()
        known = mask != 255
        cells = CLASSES * mask[known].astype(np.int64) + guess[known]
        counts += np.bincount(cells, minlength=CLASSES**2).reshape(CLASSES, CLASSES)
    return counts


def averaged(model: Segmentor, image: Tensor, way: Inference) -> Tensor:
    """The mean of the probabilities of all passes of an image."""
    import torch
    import torch.nn.functional as F

    size = image.shape[-2:]
    total = torch.zeros(1, CLASSES, *size)
    for scale in way.scales:
        small = [round(side * scale) for side in size]
        scaled = F.interpolate(image, small, mode="bilinear", align_corners=True)
        height, width = (max(side, window) for side, window in zip(small, way.window or small, strict=True))
        canvas = model.mean.expand(1, 3, height, width).clone()
        canvas[..., : small[0], : small[1]] = scaled
        part, count = torch.zeros(1, CLASSES, height, width), torch.zeros(1, 1, height, width)
        for rows, columns in windows((height, width), way):
            window = canvas[..., rows, columns]
            guess = model(window)["logits"].softmax(1)
            if way.flip:
                guess = (guess + model(window.flip(3))["logits"].softmax(1).flip(3)) / 2
            part[..., rows, columns] += guess
            count[..., rows, columns] += 1
        part = (part / count)[..., : small[0], : small[1]]
        total += F.interpolate(part, size, mode="bilinear", align_corners=True)
    return total / len(way.scales)


def windows(size: tuple[int, int], way: Inference) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of each window."""
    (high, wide), (down, across) = way.window or size, way.stride or size
    for top in [*range(0, size[0] - high, down), size[0] - high]:
        for left in [*range(0, size[1] - wide, across), size[1] - wide]:
            yield slice(top, top + high), slice(left, left + wide)


def report(args: argparse.Namespace, measured: dict[str, dict[str, list[float]]], threads: int) -> Report:
    """A row per case and form; ratios are the rounds' own."""
    from pipelines.speed.report import Report, goal, ratios, spread

    rows, notes = [], []
    for case, forms in measured.items():
        best = [min(pair) for pair in zip(*(forms[name] for name in LOOPS), strict=True)]
        rows += [[case, name, spread(seconds, 2), spread(ratios(best, seconds), 2)] for name, seconds in forms.items()]
        faster = median(ratios(best, forms[OURS]))
        notes.append(goal(f"{case}, times as fast as the faster loop", faster, GOALS[case]))
    shape = f"{args.images} images of {args.size[0]}x{args.size[1]}, windows of {args.crop[0]}x{args.crop[1]}"
    notes += [
        f"{shape}, scales {' '.join(map(str, args.scales))}, {args.backbone} at stride 8 with {args.head} "
        f"({args.channels} channels), {CLASSES} classes, float32, {threads} threads: the loop gives them to each "
        "prediction, one pass to images",
        "counts of both agree, but for rounding: at most 1 of 10,000 pixels in another cell",
    ]
    return Report("Protocols in one pass", ["case", "form", "seconds", "times"], rows, notes, measured)
