"""Confusion counts of each image of a split, for several protocols in one pass over its rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from datasets.shards import Shards
from pipelines.feed.ahead import lane_to, under_way
from pipelines.feed.batch import Batch
from pipelines.feed.plan import open_shards
from pipelines.feed.validation import read_ahead, validation_batches
from pipelines.scoring.bootstrap import ClassCounts
from pipelines.scoring.measures import MEASURES, measure
from pipelines.scoring.validate import sizes_that_vary
from segmodels.held import images_at_once
from segmodels.inference import Inference, predict_together
from segmodels.metrics import cells
from segmodels.precision import autocast
from segmodels.segmentor import Segmentor


@dataclass(frozen=True)
class ImageCounts:
    """Confusion counts of each image, of those cells alone that are not 0.

    Attributes:
        classes: K.
        entries: int64 (n, 3), sorted: row of the split, cell (K · truth + prediction), pixels. An image in which
            nothing is labelled has no entry.
        measures: what else was counted, names of `MEASURES`.
        sums: the integers of these, summed over the images, int64.
    """

    classes: int
    entries: np.ndarray
    measures: tuple[str, ...] = ()
    sums: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def total(self) -> np.ndarray:
        """The confusion counts of the whole split: int64 (K, K), rows the truth."""
        counts = np.zeros(self.classes**2, np.int64)
        np.add.at(counts, self.entries[:, 1], self.entries[:, 2])
        return counts.reshape(self.classes, self.classes)

    def of(self, row: int) -> np.ndarray:
        """The confusion counts of one image: int64 (K, K), rows the truth."""
        first, last = np.searchsorted(self.entries[:, 0], [row, row + 1])
        return ImageCounts(self.classes, self.entries[first:last]).total()

    def by_class(self, rows: int) -> ClassCounts:
        """What IoU is made of, of each class in each of a split's `rows` images."""
        return ClassCounts.of(self.entries, rows, self.classes)


@dataclass(frozen=True)
class Share:
    """The part of the work that a process does: its rank of `world`, on a device."""

    device: torch.device
    rank: int = 0
    world: int = 1


def count_images(
    model: Segmentor,
    uri: str,
    inferences: Sequence[Inference],
    share: Share,
    precision: str,
    batch: int = 8,
    beat: Callable[[int], None] = lambda images: None,
    stop: Callable[[], int] = lambda: 0,
    measures: Sequence[str] = (),
) -> list[ImageCounts]:
    """Confusion counts of every image of a split under each protocol; every row is read and decoded once.

    On CPUs one thread computes each image, and several images are computed at once: how many threads or images share
    a convolution changes its rounding, and now and then a pixel's class. So the counts are the same for any number of
    workers, threads and images of a batch. On GPUs images are predicted in batches, and the last is not so.

    Args:
        model: the segmentor; it is left in evaluation mode.
        uri: of the split.
        inferences: the protocols.
        share: what this process does; all workers get the counts of all.
        precision: `bf16`, `fp16` or `fp32`.
        batch: most images of one size that are predicted at once on a GPU, see `images_at_once`.
        beat: is given how many images this process has counted since the last call; called by several threads.
        stop: gives the number of a signal that asks to end, 0 while there is none.
        measures: what else is counted under each protocol, names of `MEASURES`.

    Raises:
        Halted: a signal came, to any of the workers; all of them raise it.
        RuntimeError: the pixels counted are not, class by class, those that the manifest counts.
    """
    model.eval()
    shards = open_shards(uri)
    at_most = 1 if share.device.type == "cpu" else images_at_once(inferences, model.num_classes, batch)
    mine = validation_batches(shards, at_most)[share.rank :: share.world]
    found: list[list[Tensor]] = [[] for _ in inferences]
    sums = [no_sums(measures, model.num_classes, share) for _ in inferences]

    def count(part: Batch, rows: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        with autocast(share.device, precision):
            counted = count_batch(model, part.to(share.device, share.device.type == "cuda"), rows, inferences, measures)
        beat(len(rows))
        return counted

    ahead = under_way(read_ahead(shards, mine), lane_to(share.device, channels_last=True))
    with sizes_that_vary(min(inferences, key=lambda way: way.window is not None)), ahead as batches:
        for parts in at_once(count, batches, mine, share):
            for kept, total, (entries, more) in zip(found, sums, parts, strict=True):
                kept.append(entries)
                total += more
            if stop():
                break
    halt_together(stop(), share)
    counts = [
        ImageCounts(model.num_classes, gathered(entries, share), tuple(measures), summed(total, share))
        for entries, total in zip(found, sums, strict=True)
    ]
    for each in counts:
        check_counts(each.total(), uri, shards)
    return counts


@torch.inference_mode()
def count_batch(
    model: Segmentor, part: Batch, rows: Sequence[int], inferences: Sequence[Inference], measures: Sequence[str]
) -> list[tuple[Tensor, Tensor]]:
    """Of each protocol, entries of `ImageCounts` for a batch on the device, and the integers of the measures."""
    counted = []
    for probabilities in predict_together(model, part.image, inferences):
        prediction = probabilities.argmax(1)
        entries = entries_of(prediction, part.masks, rows, model.num_classes)
        counted.append((entries, measure(measures, probabilities, prediction, part.masks)))
    return counted


def no_sums(measures: Sequence[str], classes: int, share: Share) -> Tensor:
    """Zeros for the integers of measures: int64, on the device."""
    size = sum(MEASURES[name].size(classes) for name in measures)
    return torch.zeros(size, dtype=torch.int64, device=share.device)


def summed(total: Tensor, share: Share) -> np.ndarray:
    """The integers of measures, summed over all workers."""
    if share.world > 1 and len(total):
        dist.all_reduce(total)
    return total.cpu().numpy()


class Halted(Exception):
    """The counting ended before its end, by the signal of this number."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


def halt_together(signal: int, share: Share) -> None:
    """Agree with the other workers on whether a signal came, so that none waits for one that has left.

    Raises:
        Halted: it came to one of them.
    """
    asked = torch.tensor([signal], device=share.device)
    if share.world > 1:
        dist.all_reduce(asked, dist.ReduceOp.MAX)
    if asked.item():
        raise Halted(int(asked))


def at_once(
    work: Callable[[Batch, Sequence[int]], list[tuple[Tensor, Tensor]]],
    batches: Iterator[Batch],
    rows: Sequence[Sequence[int]],
    share: Share,
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """What `work` gives of each batch and its rows, in order; on CPUs by as many threads as one batch would have."""
    pairs = zip(batches, rows, strict=True)
    if share.device.type != "cpu":
        yield from itertools.starmap(work, pairs)
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    waiting: list[Future[list[tuple[Tensor, Tensor]]]] = []
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for pair in pairs:
                waiting.append(pool.submit(work, *pair))
                if len(waiting) > threads:
                    yield waiting.pop(0).result()
            for future in waiting:
                yield future.result()
    finally:
        torch.set_num_threads(threads)


def entries_of(prediction: Tensor, mask: Tensor, rows: Sequence[int], classes: int) -> Tensor:
    """Entries of `ImageCounts` for a batch: int64 (n, 3).

    Args:
        prediction: integers (B, H, W).
        mask: uint8 (B, H, W).
        rows: of the split, B.
        classes: K.
    """
    per_image = classes**2 + 1
    cell = cells(prediction, mask, classes)
    offset = torch.arange(len(rows), device=cell.device).view(-1, 1, 1) * per_image
    counted = torch.bincount((cell + offset).flatten(), minlength=len(rows) * per_image).view(len(rows), per_image)
    counted = counted[:, :-1]  # without what has no label
    image, cell = counted.nonzero(as_tuple=True)
    return torch.stack([torch.tensor(rows, device=cell.device)[image], cell, counted[image, cell]], 1)


def gathered(entries: Sequence[Tensor], share: Share) -> np.ndarray:
    """The entries of all workers, sorted by row and cell: int64 (n, 3)."""
    own = torch.cat([torch.zeros(0, 3, dtype=torch.int64, device=share.device), *entries])
    parts = [own]
    if share.world > 1:
        sizes = [torch.zeros(1, dtype=torch.int64, device=share.device) for _ in range(share.world)]
        dist.all_gather(sizes, torch.tensor([len(own)], device=share.device))
        longest = int(max(sizes))
        padded = torch.cat([own, own.new_zeros(longest - len(own), 3)])
        everyone = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(everyone, padded)
        parts = [part[: int(size)] for part, size in zip(everyone, sizes, strict=True)]
    table = torch.cat(parts).cpu().numpy()
    return table[np.lexsort((table[:, 1], table[:, 0]))]


def check_counts(counts: np.ndarray, uri: str, shards: Shards) -> None:
    """Every labelled pixel of a split must have been counted once.

    Raises:
        RuntimeError: it was not.
    """
    truth = np.array(shards.manifest.histogram[: len(counts)], np.int64)
    if not np.array_equal(counts.sum(1), truth):
        raise RuntimeError(
            f"{counts.sum()} pixels of {uri} were counted, its manifest has {truth.sum()} labelled pixels in "
            f"{len(shards)} rows: each must be read exactly once"
        )
