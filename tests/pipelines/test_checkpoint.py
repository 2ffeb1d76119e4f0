"""Checkpoints are whole or absent, run no code, and fall back to the one before."""

import contextlib
import dataclasses
import os
import pickle
import resource

import numpy as np
import pytest
import torch

from datasets.catalog import BENCHMARKS
from datasets.transforms import VIEWS
from datasets.writer import write_part
from pipelines.base.errors import InputError, users_message
from pipelines.cluster.sizes import Sizes
from pipelines.driver.run import run_recipe
from pipelines.recipes.reading import load_recipe
from pipelines.runs import checkpoint
from pipelines.runs.folder import step_name
from pipelines.training.job import Job
from pipelines.training.learner import make_learner, start_weights
from segmodels.segmentor import build_segmentor, classifier_keys


def model(classes=3, channels=8):
    return build_segmentor(
        num_classes=classes,
        crop=(32, 32),
        backbone={"name": "test_resnet", "output_stride": 32},
        head={"name": "fcn", "channels": channels},
        aux={"name": "fcn", "channels": 8},
    )


def test_round_trip_keeps_every_kind_of_value(tmp_path):
    content = {"a": torch.arange(3), "b": [1, 2.5, None, "x", True], "c": {"d": torch.ones(2, dtype=torch.bfloat16)}}
    checkpoint.save(tmp_path / "x.pt", content)
    back = checkpoint.load(tmp_path / "x.pt")
    assert back["b"] == content["b"]
    assert torch.equal(back["c"]["d"], content["c"]["d"])
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    checkpoint.save(path, {"n": 1})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, {"n": 2})
    assert checkpoint.load(path)["n"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


@pytest.fixture
def small_disk():
    """Files of this process may grow to 20 kB: what a full disk or a quota does to a write in its middle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextlib.contextmanager
    def limit(size=20_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


def test_a_full_disk_in_mid_checkpoint_leaves_the_old_one_and_says_what_to_do(tmp_path, small_disk):
    path = tmp_path / "x.pt"
    checkpoint.save(path, {"n": 1})
    with small_disk(), pytest.raises(OSError) as caught:  # noqa: PT011
        checkpoint.save(path, {"n": 2, "weights": torch.zeros(100_000)})
    assert "make room, and the same command goes on" in users_message(caught.value)
    assert checkpoint.load(path)["n"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


@pytest.mark.slow
def test_a_full_disk_in_mid_training_ends_in_one_message_and_is_resumed(recipe_file, tmp_path, small_disk, monkeypatch):
    page = recipe_file(checkpoint_minutes=0.0)
    original, saved = checkpoint.save, []

    def save(path, content):
        saved.append(path.name)
        with small_disk() if path.name == "step-00000003.pt" and len(saved) < 6 else contextlib.nullcontext():
            original(path, content)

    monkeypatch.setattr(checkpoint, "save", save)
    with pytest.raises(InputError, match="make room, and the same command goes on"):
        run_recipe(load_recipe(page))
    folder = tmp_path / "out/runs/tiny/first/checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000001.pt", "step-00000002.pt"]
    monkeypatch.setattr(checkpoint, "save", original)
    assert run_recipe(load_recipe(page))[0].steps == 5


def test_a_full_disk_in_mid_shard_leaves_the_finished_ones(release, tmp_path, small_disk):
    benchmark = BENCHMARKS["voc12"](release)
    items, uri = benchmark.index("train"), str(tmp_path / "shards")
    write_part(uri, 0, items[:2], benchmark, "train")
    before = (tmp_path / "shards/part-00000.parquet").read_bytes()
    with small_disk(len(before) // 2), pytest.raises(OSError) as caught:  # noqa: PT011
        write_part(uri, 1, items[2:], benchmark, "train")
    assert "make room" in users_message(caught.value)
    assert [p.name for p in (tmp_path / "shards").iterdir()] == ["part-00000.parquet"]
    assert (tmp_path / "shards/part-00000.parquet").read_bytes() == before


def test_a_full_disk_in_a_ray_task_is_known_from_its_text():
    error = RuntimeError("Traceback …\n  File x\nOSError: [Errno 28] No space left on device: '/data/x'\n\nmore")
    assert users_message(error).startswith("[Errno 28] No space left on device: '/data/x'. What was written")


def test_a_truncated_newest_checkpoint_falls_back_to_the_one_before(tmp_path, caplog):
    for step in (1, 2):
        checkpoint.save(tmp_path / step_name(step), {"n": step, "t": torch.zeros(100)})
    last = tmp_path / step_name(2)
    last.write_bytes(last.read_bytes()[:-40])
    assert checkpoint.newest(tmp_path)["n"] == 1
    assert "falling back" in caplog.text


def test_a_flipped_byte_anywhere_is_noticed_or_changes_nothing(tmp_path):
    """Headers have bytes that mean nothing; every byte of a tensor, of its shape and of the numbers counts."""
    path, broken = tmp_path / step_name(1), tmp_path / "other.pt"
    content = {"t": torch.arange(3000.0), "n": 5, "names": ["a", "b"]}
    checkpoint.save(path, content)
    data, generator, noticed = path.read_bytes(), np.random.default_rng(0), 0
    places = [*generator.integers(0, len(data), 60), data.index(torch.arange(3000.0).numpy()[7:40].tobytes())]
    for place in map(int, places):
        broken.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        try:
            back = checkpoint.load(broken)
        except InputError as error:
            assert "no readable checkpoint (cut off, damaged" in str(error)  # noqa: PT017
            noticed += 1
        else:
            assert torch.equal(back["t"], content["t"])
            assert back["n"] == 5
    assert noticed > 40
    assert not torch.equal(checkpoint.load(broken, verified=False)["t"], content["t"])  # what was taken as good before


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_passed_over_and_the_record_says_so(recipe_file, tmp_path, capsys):
    page = recipe_file(checkpoint_minutes=0.0, keep_last=2)
    run_recipe(load_recipe(page))
    folder = tmp_path / "out/runs/tiny/first"
    whole = checkpoint.load(folder / "checkpoints" / step_name(5))["model"]
    for name in ("done.json", "outcome.json"):
        (folder / name).unlink()
    last = folder / "checkpoints" / step_name(5)
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    capsys.readouterr()
    run_recipe(load_recipe(page))
    shown = capsys.readouterr().out
    assert "continues from its checkpoint at step 4; passed over: " in shown
    assert "step-00000005.pt is no readable checkpoint" in shown
    again = checkpoint.load(last)["model"]
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_loading_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"format": 1, "x": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pt", "pickle.pt"):
        with pytest.raises(InputError, match="no readable checkpoint"):
            checkpoint.load(tmp_path / name)
    assert not (tmp_path / "owned").exists()


def test_another_format_is_named(tmp_path):
    torch.save({"format": 9}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="format 9, this version reads 1"):
        checkpoint.load(tmp_path / "x.pt")


def test_prune_keeps_the_last_and_clears_leftovers(tmp_path):
    for step in (5, 10, 100):
        checkpoint.save(tmp_path / step_name(step), {})
    (tmp_path / ".step-00000101.pt.77.tmp").write_text("half")
    checkpoint.prune(tmp_path, 2, 100)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010.pt", "step-00000100.pt"]


@pytest.mark.parametrize("keep", [1, 2])
def test_what_was_passed_over_as_truncated_never_outlives_what_is_saved_after_it(tmp_path, keep):
    for step in (5, 10, 20):
        checkpoint.save(tmp_path / step_name(step), {"n": step})
    (tmp_path / step_name(20)).write_bytes(b"PK")
    assert checkpoint.newest(tmp_path)["n"] == 10
    checkpoint.save(tmp_path / step_name(15), {"n": 15})
    checkpoint.prune(tmp_path, keep, 15)
    names = ["step-00000010.pt", "step-00000015.pt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names[-keep:]
    assert checkpoint.newest(tmp_path)["n"] == 15


def test_a_writer_that_was_given_up_and_wakes_takes_nothing_from_its_successor(tmp_path):
    for step in (5, 10, 20):
        checkpoint.save(tmp_path / step_name(step), {"n": step})
    checkpoint.prune(tmp_path, 1, 10)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010.pt", "step-00000020.pt"]


def test_only_the_archives_writer_is_taken_for_a_full_disk(tmp_path):
    class Strange:
        def __reduce__(self):
            raise RuntimeError("nothing to do with disks")

    with pytest.raises(RuntimeError, match="nothing to do with disks"):
        checkpoint.save(tmp_path / "x.pt", {"n": Strange()})
    assert not list(tmp_path.iterdir())


def test_initialise_swaps_the_classifier_alone_when_classes_differ():
    before, after = model(3), model(5)
    fresh = {k: v.clone() for k, v in after.state_dict().items()}
    names = checkpoint.initialise(after, before.state_dict(), same_classes=False)
    assert set(names) == set(classifier_keys(after))
    for key, value in after.state_dict().items():
        assert torch.equal(value, fresh[key] if key in names else before.state_dict()[key]), key


def test_initialise_refuses_another_model():
    with pytest.raises(InputError, match=r"another model.*head\.reduce"):
        checkpoint.initialise(model(channels=8), model(channels=4).state_dict(), same_classes=True)


def test_a_run_that_other_views_began_does_not_go_on_in_its_stage_or_the_next(recipe_file, tmp_path):
    recipe, path = load_recipe(recipe_file()), tmp_path / "first/checkpoints" / step_name(3)
    job = Job(recipe, recipe.stages[0], tmp_path / "first", "unused", None, ("a",), ((0, 0, 0),), 4, 5,
              Sizes(0, 0, 1.0, 0, 1.0), 1)  # fmt: skip
    cpu = torch.device("cpu")
    begun = make_learner(job, 0, 1, cpu)
    begun.progress = begun.progress.to(3)
    begun.keep()
    assert make_learner(job, 0, 1, cpu).progress.step == 3
    content = checkpoint.load(path)
    content.pop("format")
    for other in ({}, {"views": VIEWS + 1}):  # 0.3.1 noted none
        checkpoint.save(path, {k: v for k, v in content.items() if k != "views"} | other)
        with pytest.raises(InputError, match=r"other views from the same seeds.*name=OTHER"):
            make_learner(job, 0, 1, cpu)
        with pytest.raises(InputError, match=r"step-00000003\.pt: .* other views from the same seeds"):
            start_weights(begun.model, dataclasses.replace(job, initial=path))


def test_a_checkpoint_of_0_3_5_goes_on_and_says_what_is_drawn_otherwise(recipe_file, tmp_path):
    """It has no `draws` and no terms; its state was a plain mapping."""
    recipe, path = load_recipe(recipe_file()), tmp_path / "first/checkpoints" / step_name(3)
    job = Job(recipe, recipe.stages[0], tmp_path / "first", "unused", None, ("a",), ((0, 0, 0),), 4, 5,
              Sizes(0, 0, 1.0, 0, 1.0), 1)  # fmt: skip
    begun = make_learner(job, 0, 1, torch.device("cpu"))
    begun.progress = dataclasses.replace(begun.progress, step=3, losses=(0.5, 0.25), terms=((0.5, 0.1), (0.2, 0.1)))
    begun.keep()
    content = checkpoint.load(path)
    del content["format"], content["draws"], content["state"]["terms"]
    content["state"]["losses"] = list(content["state"]["losses"])
    checkpoint.save(path, content)
    again = make_learner(job, 0, 1, torch.device("cpu"))
    assert (again.progress.step, again.progress.losses, again.progress.terms) == (3, (0.5, 0.25), ())
    assert "up to 0.3.5 wrote it: from here on dropout draws other masks" in again.origin
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), begun.model.parameters(), strict=True))
