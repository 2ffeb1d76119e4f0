"""Confusion counts of all rows of a split, over all workers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.distributed as dist

from pipelines.feed.ahead import lane_to, under_way
from pipelines.feed.plan import open_shards
from pipelines.feed.validation import read_ahead, validation_batches
from segmodels.held import images_at_once
from segmodels.inference import Inference, predict
from segmodels.metrics import Confusion
from segmodels.precision import autocast
from segmodels.segmentor import Segmentor


@contextlib.contextmanager
def sizes_that_vary(inference: Inference) -> Iterator[None]:
    """For whole images cuDNN plans neither convolutions nor attention: it would again for each of their sizes."""
    fixed = inference.window is not None
    before, attention = torch.backends.cudnn.benchmark, torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cudnn.benchmark = before and fixed
    torch.backends.cuda.enable_cudnn_sdp(attention and fixed)
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
        torch.backends.cuda.enable_cudnn_sdp(attention)


def validate(
    model: Segmentor,
    uri: str,
    inference: Inference,
    device: torch.device,
    rank: int,
    world: int,
    precision: str,
    batch: int = 8,
    beat: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Confusion counts int64 (K, K), rows truth, of ALL rows of the shards, summed over the workers.

    On CPUs one thread computes each batch: how many share a convolution changes its rounding, and now and then a
    pixel's class. So the counts are the same for any number of workers; more workers use more cores.

    Raises:
        RuntimeError: the pixels counted are not, class by class, those that the manifest counts.
    """
    model.eval()
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    shards = open_shards(uri)
    confusion = Confusion(model.num_classes).to(device)
    rows = 0
    mine = validation_batches(shards, images_at_once([inference], model.num_classes, batch))[rank::world]
    beat()
    with (
        torch.inference_mode(),
        autocast(device, precision),
        sizes_that_vary(inference),
        under_way(read_ahead(shards, mine), lane_to(device, channels_last=True)) as parts,
    ):
        for part in parts:
            part = part.to(device, channels_last=device.type == "cuda")
            confusion.update(predict(model, part.image, inference).argmax(1), part.masks)
            rows += len(part)
            beat()
    torch.set_num_threads(threads)
    counts = torch.cat([confusion.counts.flatten(), torch.tensor([rows], device=device)])
    if world > 1:
        dist.all_reduce(counts)
    *cells, rows = counts.cpu().numpy()
    matrix = np.array(cells, np.int64).reshape(model.num_classes, model.num_classes)
    truth = np.array(shards.manifest.histogram[: model.num_classes], np.int64)
    if rows != len(shards) or not np.array_equal(matrix.sum(1), truth):
        raise RuntimeError(
            f"validation counted {rows} rows and {matrix.sum()} pixels of {uri}, its manifest has "
            f"{len(shards)} rows and {truth.sum()} labelled pixels: each must be read exactly once"
        )
    return matrix
