"""Checkpoints leave the step: what is written is what was there, in order, and what goes wrong is told."""

import dataclasses
import threading
import time

import numpy as np
import pytest
import torch

from pipelines.recipes.reading import load_recipe
from pipelines.runs import checkpoint
from pipelines.runs.checkpoint import Checkpoint, Progress
from pipelines.runs.mirror import StoreFailed
from pipelines.training import saving
from pipelines.training.saving import Saving, snapshot


def nothing(*words, **options):
    """Nobody listens."""


@pytest.fixture
def content(recipe_file):
    """A checkpoint whose weights the test may change."""
    weights = torch.nn.Conv2d(3, 4, 1).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(weights.parameters(), lr=0.1, momentum=0.9)
    weights(torch.ones(1, 3, 2, 2)).sum().backward()
    optimizer.step()
    return Checkpoint(
        weights.state_dict(), load_recipe(recipe_file()), "first", 1, Progress(1), ("a", "b"), ((0, 0, 0), (9, 9, 9)),
        np.arange(3), optimizer=optimizer.state_dict(),
    )  # fmt: skip


def test_a_snapshot_is_a_copy_of_every_tensor_with_its_layout_and_uses_its_memory_again(content):
    pool = {}
    taken, ready = snapshot(content, pool)
    assert ready is None  # nothing to wait for without a GPU
    before = content.model["weight"].clone()
    content.model["weight"].add_(1)
    content.optimizer["state"][0]["momentum_buffer"].zero_()
    assert torch.equal(taken.model["weight"], before)
    assert taken.model["weight"].stride() == before.stride()
    assert taken.model._metadata == content.model._metadata
    assert taken.optimizer["state"][0]["momentum_buffer"].abs().sum() > 0
    assert taken.optimizer["param_groups"] == content.optimizer["param_groups"]
    again, _ = snapshot(content, pool)
    assert again.model["weight"].data_ptr() == taken.model["weight"].data_ptr()
    assert torch.equal(again.model["weight"], before + 1)


def test_training_does_not_wait_for_the_disk_and_later_changes_are_not_written(content, tmp_path, monkeypatch):
    original, gate = checkpoint.save, threading.Event()
    monkeypatch.setattr(checkpoint, "save", lambda *words: gate.wait(10) and original(*words))
    before, kept = content.model["weight"].clone(), Saving()
    with kept.running(nothing, nothing):
        kept.write(content, tmp_path / "best.pt")
        assert kept.waited < 1
        assert not (tmp_path / "best.pt").exists()
        content.model["weight"].add_(1)
        gate.set()
    assert torch.equal(checkpoint.load(tmp_path / "best.pt")["model"]["weight"], before)


def test_the_next_copy_waits_for_the_one_before_and_the_wait_is_counted(content, tmp_path, monkeypatch):
    original = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *words: time.sleep(0.5) or original(*words))
    kept = Saving()
    with kept.running(nothing, nothing):
        for step in (1, 2, 3):
            kept.write(dataclasses.replace(content, step=step), tmp_path / checkpoint.step_name(step), keep=2)
        assert 0.8 < kept.taken() < 5
        assert kept.taken() == 0
        kept.flush()
        assert sorted(path.name for path in tmp_path.glob("step*")) == ["step-00000002.pt", "step-00000003.pt"]


def test_a_write_that_fails_ends_the_training_at_the_next_one_and_nothing_after_it_is_written(
    content, tmp_path, monkeypatch
):
    def full(path, what):
        raise OSError(28, "No space left on device", str(path))

    kept = Saving()
    original = checkpoint.save
    with pytest.raises(OSError, match="No space left"), kept.running(nothing, nothing):  # noqa: PT012
        kept.write(dataclasses.replace(content, step=1), tmp_path / checkpoint.step_name(1), keep=2)
        kept.flush()
        monkeypatch.setattr(checkpoint, "save", full)
        kept.write(dataclasses.replace(content, step=2), tmp_path / checkpoint.step_name(2), keep=2)
        kept.thread.join(5)
        monkeypatch.setattr(checkpoint, "save", original)
        kept.write(dataclasses.replace(content, step=3), tmp_path / checkpoint.step_name(3), keep=2)
    assert [path.name for path in tmp_path.glob("step*")] == ["step-00000001.pt"]


class Silent:
    """A mirror whose bucket takes nothing the first `times` times."""

    def __init__(self, folder, times):
        self.folder, self.times, self.pushes = folder, times, 0

    def push(self, pauses=()):
        self.pushes += 1
        if self.pushes <= self.times:
            raise StoreFailed("s3://b/x: no answer")


def test_a_bucket_that_is_silent_for_a_while_is_told_and_waited_for(content, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "LEAST_S", 0.01)
    mirror, beats, notes = Silent(tmp_path, 3), [], []
    kept = Saving(mirror)
    with kept.running(lambda: beats.append(1), lambda *words, text: notes.append((words, text))):
        kept.write(content, tmp_path / "best.pt")
        kept.flush()
    assert mirror.pushes >= 4
    assert (tmp_path / "best.pt").exists()
    assert [text.split(";")[0] for _, text in notes] == [
        "warning: s3://b/x: no answer", "the bucket has everything again, after 0 s"]  # fmt: skip
    assert {words[0] for words, _ in notes} == {"note"}


def test_a_bucket_that_is_silent_for_too_long_ends_the_training(content, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "LEAST_S", 0.01)
    monkeypatch.setattr(saving, "SILENT_S", 0.2)
    kept = Saving(Silent(tmp_path, 10**6))
    with pytest.raises(StoreFailed, match=r"took nothing for 0 s: s3://b/x: no answer"), kept.running(nothing, nothing):
        kept.flush()
    assert kept.thread is None
