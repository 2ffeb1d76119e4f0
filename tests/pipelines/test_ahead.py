"""Batches ahead of a GPU, on a stand-in for one that works as late as it may; and what counts as waiting for data."""

import contextlib
import threading

import pytest
import torch

from pipelines.feed.ahead import Lane, under_way
from pipelines.feed.batch import Batch
from pipelines.training.waits import HostClock, Waits


class Copy:
    """A copy that is made when somebody waits for it."""

    def __init__(self, run):
        self.run = run

    def synchronize(self):
        self.run, run = None, self.run
        if run:
            run()


class LateDevice:
    """Copies what the pages hold at the last moment, as a GPU that is behind would; notes who asked for what."""

    def __init__(self):
        self.copies, self.pages_made, self.threads, self.awaited = [], [], {"start": set(), "await": set()}, []

    def beside(self):
        return contextlib.nullcontext()

    def pages(self, size):
        self.pages_made.append(size)
        return torch.empty(size, dtype=torch.uint8)

    def start(self, image, mask):
        self.threads["start"].add(threading.get_ident())
        there = Batch(torch.zeros_like(image).permute(0, 3, 1, 2), torch.zeros_like(mask))

        def run():
            there.image.copy_(image.permute(0, 3, 1, 2))
            there.masks.copy_(mask)

        self.copies.append(Copy(run))
        return there, self.copies[-1]

    def await_(self, batch, mark):
        self.threads["await"].add(threading.get_ident())
        self.awaited.append(mark)


def made(number, height=6):
    torch.manual_seed(number)
    image = torch.randint(0, 256, (2, height, 5, 3), dtype=torch.uint8)
    return Batch(image.permute(0, 3, 1, 2), torch.randint(0, 9, (2, height, 5), dtype=torch.uint8))


def equal(one, other):
    return torch.equal(one.image, other.image) and torch.equal(one.masks, other.masks)


def test_every_batch_arrives_though_pages_are_used_again_and_copies_come_late():
    batches, device = [made(number) for number in range(7)], LateDevice()
    with under_way((batch for batch in batches), Lane(device)) as feed:
        arrived = list(feed)
    for copy in device.copies:  # the last two are still on their way
        copy.synchronize()
    assert len(arrived) == 7
    assert all(map(equal, arrived, batches))
    assert device.pages_made == [184 + 64] * 2  # each tensor begins at a multiple of 8
    assert device.awaited == device.copies


def test_the_training_thread_only_waits_in_the_devices_queue():
    device = LateDevice()
    with under_way((made(number) for number in range(4)), Lane(device)) as feed:
        assert len(list(feed)) == 4
    assert device.threads["await"] == {threading.get_ident()}
    assert threading.get_ident() not in device.threads["start"]
    assert len(device.threads["start"]) == 1


def test_the_next_batch_is_sent_while_the_last_is_worked_on():
    sent, device = threading.Event(), LateDevice()

    def batches():
        yield made(0)
        yield made(1)
        sent.set()
        yield made(2)

    with under_way(batches(), Lane(device)) as feed:
        next(feed)
        next(feed)  # from here on the third is made, though nobody has asked for it
        assert sent.wait(60)


def test_larger_batches_get_larger_pages_and_faults_arrive():
    device = LateDevice()
    lane = Lane(device)
    for height in (6, 6, 4, 9, 9):
        moved, mark = lane.send(made(height, height))
        mark.synchronize()
        assert equal(lane.receive(moved, mark), made(height, height))
    assert device.pages_made == [184 + 64, 184 + 64, 272 + 96, 272 + 96]
    with under_way((1 / 0 for _ in range(1)), lane) as feed, pytest.raises(ZeroDivisionError):
        next(feed)


class QueueClock:
    """A device that works through a queue while its host goes on; seconds by hand."""

    def __init__(self):
        self.host = self.device = 0.0

    def give(self, seconds):
        self.device = max(self.device, self.host) + seconds

    def now(self):
        return max(self.device, self.host)

    def seconds(self, first, last):
        return last - first


@pytest.mark.parametrize(("work", "fetch", "felt"), [(1.0, 0.4, 0.0), (1.0, 1.0, 0.0), (1.0, 1.25, 0.25)])
def test_only_what_the_device_feels_counts_as_waiting(work, fetch, felt):
    clock = QueueClock()
    waits = Waits(clock)
    for _ in range(4):
        clock.give(work)
        waits.ask()
        clock.host += fetch
        waits.come()
    assert waits.seconds() == pytest.approx(4 * felt)
    waits.restart()
    assert waits.seconds() == 0


def test_a_cpu_waits_as_long_as_it_asks(monkeypatch):
    times = iter([1.0, 1.5, 4.0, 4.25])
    monkeypatch.setattr("pipelines.training.waits.time.monotonic", lambda: next(times))
    waits = Waits(HostClock())
    for _ in range(2):
        waits.ask()
        waits.come()
    assert waits.seconds() == 0.75
