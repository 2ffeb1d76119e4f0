"""Batches ahead of the model: a thread asks for the next and sends it to the GPU, while the model is at the last.

The training thread neither copies nor waits for a copy: the GPU's own queue does.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipelines.feed.batch import Batch, Target, moved, tensors_of

ALIGNED = 8  # bytes at whose multiples tensors begin in pages


class Mark(Protocol):
    """A place in a queue of the device's work, such as a `torch.cuda.Event`."""

    def synchronize(self) -> None:
        """Wait until the device is there."""


class Copies(Protocol):
    """What a device does for a `Lane`."""

    def beside(self) -> contextlib.AbstractContextManager[object]:
        """Within it, what this thread gives the device does not wait for the model's work."""

    def pages(self, size: int) -> Tensor:
        """Page-locked memory of the host: uint8 (size,)."""

    def start(self, image: Tensor, target: Target) -> tuple[Batch, Mark]:
        """Begin to copy image (B, H, W, 3) and target from such pages; returns at once, with its end."""

    def await_(self, batch: Batch, mark: Mark) -> None:
        """Have all that this thread gives the device from now on wait for the copy."""


class CudaCopies:
    """Copies to a GPU on a stream of their own, beside the model's.

    Args:
        device: the GPU.
        channels_last: the model's layout.
    """

    def __init__(self, device: torch.device, channels_last: bool) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format

    def beside(self) -> contextlib.AbstractContextManager[object]:
        return torch.cuda.stream(self.stream)  # and of its GPU: a new thread's is the first

    def pages(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def start(self, image: Tensor, target: Target) -> tuple[Batch, Mark]:
        there = image.to(self.device, non_blocking=True).permute(0, 3, 1, 2).contiguous(memory_format=self.layout)
        batch = Batch(there, moved(target, lambda tensor: tensor.to(self.device, non_blocking=True)))
        mark = torch.cuda.Event(blocking=True)  # who waits for it sleeps
        mark.record(self.stream)
        return batch, mark

    def await_(self, batch: Batch, mark: Mark) -> None:
        model = torch.cuda.current_stream(self.device)
        model.wait_event(mark)  # type: ignore[arg-type]  # is a torch.cuda.Event
        for tensor in (batch.image, *tensors_of(batch.target)):
            tensor.record_stream(model)  # else its memory would be another batch's as soon as Python drops it


@dataclass
class Pages:
    """Page-locked memory, and the end of the copy that last left it."""

    memory: Tensor
    left: Mark | None = None

    def hold(self, copies: Copies, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors copied into this memory, one after the other, once its last copy has left it."""
        if self.left is not None:
            self.left.synchronize()
        sizes = [-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor in tensors]
        if len(self.memory) < sum(sizes):
            self.memory = copies.pages(sum(sizes))
        parts = self.memory[: sum(sizes)].split(sizes)
        return [
            part[: tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
            for part, tensor in zip(parts, tensors, strict=True)
        ]


class Lane:
    """The way of batches to a device. One thread sends them, another receives them, in the same order.

    Two pieces of page-locked memory take turns: one is filled while the other is copied.
    """

    def __init__(self, copies: Copies) -> None:
        self.copies = copies
        self.turns = itertools.cycle([Pages(torch.empty(0, dtype=torch.uint8)) for _ in range(2)])

    def send(self, batch: Batch) -> tuple[Batch, Mark | None]:
        """Begin to copy a batch of the host; one of the device stays as it is."""
        if batch.image.is_cuda:
            return batch, None
        pages = next(self.turns)
        with self.copies.beside():
            image, *held = pages.hold(self.copies, (batch.image.permute(0, 2, 3, 1), *tensors_of(batch.target)))
            waiting = iter(held)
            sent, pages.left = self.copies.start(image, moved(batch.target, lambda _: next(waiting)))
        return sent, pages.left

    def receive(self, batch: Batch, mark: Mark | None) -> Batch:
        """The batch on the device, for the work that this thread gives the device from now on."""
        if mark is not None:
            self.copies.await_(batch, mark)
        return batch


def lane_to(device: torch.device, channels_last: bool) -> Lane | None:
    """The lane to a GPU; None for a CPU, where a batch is what it is."""
    return Lane(CudaCopies(device, channels_last)) if device.type == "cuda" else None


@contextlib.contextmanager
def under_way(batches: Generator[Batch], lane: Lane | None = None) -> Iterator[Iterator[Batch]]:
    """The same batches, the first of them asked for at once, in a thread: tasks start while the model is validated.

    With a lane each later one is asked for, too, and sent, as soon as the one before is taken. Without, a CPU's cores
    are the model's. They are closed with the body, however many of them it took.
    """
    with contextlib.closing(batches), ThreadPoolExecutor(1, "next-batch") as pool:

        def take() -> tuple[Batch, Mark | None] | None:
            batch = next(batches, None)
            return None if batch is None else lane.send(batch) if lane else (batch, None)

        def all_of_them(coming: Future[tuple[Batch, Mark | None] | None]) -> Iterator[Batch]:
            while (taken := coming.result()) is not None:
                if lane is None:
                    yield taken[0]
                    yield from batches
                    return
                coming = pool.submit(take)
                yield lane.receive(*taken)

        yield all_of_them(pool.submit(take))
