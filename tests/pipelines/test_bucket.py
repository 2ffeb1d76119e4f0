"""A run whose output is in a bucket of a real S3 server: nothing but the bucket is needed to go on, or to use it."""

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datasets.sample import DataError
from datasets.storage import locate, read_bytes
from pipelines.base.errors import InputError, RunFailed, SetupError, Stopped
from pipelines.driver.run import run_recipe
from pipelines.feed.batches import train_batches
from pipelines.recipes.reading import load_recipe
from pipelines.runs import lease, mirror, stopping, store
from pipelines.runs.checkpoint import Checkpoint
from pipelines.runs.lease import Lease
from pipelines.runs.mirror import Mirror, StoreFailed
from pipelines.runs.named import named_checkpoint
from pipelines.runs.record import parse
from pipelines.training import saving

ONE = [{"name": "first", "train": "voc12/train", "val": "voc12/val", "steps": 5, "val_every": 0}]
TWO = [*ONE, {"name": "second", "train": "voc12/train", "val": "voc12/val", "steps": 2, "val_every": 0}]


@pytest.fixture
def in_bucket(recipe_file, s3, tmp_path, monkeypatch):
    """Writes a recipe whose output is in a bucket of its own, and gives a machine without anything local."""

    def recipe(**changes):
        tracking = f"sqlite:///{tmp_path}/out/mlflow.db"
        return load_recipe(recipe_file(output=s3(tmp_path.name), tracking=tracking, **changes))

    def machine(name="one"):
        monkeypatch.setenv("RUN_CACHE", str(tmp_path / name))
        return tmp_path / name

    monkeypatch.setattr(lease, "SETTLE_S", 0.0)
    for place, name in ((store, "SYNC_S"), (stopping, "FETCH_S"), (saving, "LEAST_S")):
        monkeypatch.setattr(place, name, 0.3)
    machine()
    recipe.machine, recipe.uri = machine, s3(f"{tmp_path.name}/runs/tiny")
    return recipe


def content_of(uri):
    """Everything below a URI: name -> bytes."""
    from pyarrow import fs

    system, root = locate(uri)
    found = system.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    files = [info.path for info in found if info.type == fs.FileType.File]
    return {path.removeprefix(f"{root}/"): read_bytes(system, path) for path in files}


def weights(path):
    return Checkpoint.read(path).model


def same(a, b):
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def lines(files, stage="first"):
    return list(parse(files[f"{stage}/record.jsonl"]))


def local(path):
    """Files that a machine still has."""
    return [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]


def damage(uri, name):
    """Turn over bits in the middle of a file, more than the archive's padding between two tensors."""
    system, root = locate(uri)
    data = bytearray(read_bytes(system, f"{root}/{name}"))
    for place in range(len(data) // 2, len(data) // 2 + 512):
        data[place] ^= 1
    with system.open_output_stream(f"{root}/{name}") as stream:
        stream.write(bytes(data))


class Killed(RuntimeError):
    pass


def ends_after(steps):
    """A feed of a process that dies after some steps."""

    def feed(plan, kind, tasks, cpus):
        for done, batch in enumerate(train_batches(plan, kind, tasks, cpus), start=plan.start):
            if done == steps:
                raise Killed
            yield batch

    return feed


@pytest.mark.slow
def test_a_killed_run_goes_on_from_the_bucket_alone_past_a_damaged_checkpoint_and_ends_as_in_a_folder(
    in_bucket, recipe_file, tmp_path, capsys
):
    changes = {"checkpoint_minutes": 0.0, "stages": TWO}
    with pytest.raises(RunFailed, match=r"continues from what is in s3://bucket/.*/runs/tiny"):
        run_recipe(in_bucket(**changes), ends_after(3))
    files = content_of(in_bucket.uri)
    assert {"recipe.yaml", "first/about.json", "first/record.jsonl", "first/best.pt"} <= set(files)
    assert [name for name in files if "checkpoints" in name] == [
        "first/checkpoints/step-00000002.pt", "first/checkpoints/step-00000003.pt"]  # fmt: skip
    assert local(in_bucket.machine("one")) == []
    damage(in_bucket.uri, "first/checkpoints/step-00000003.pt")
    fresh = in_bucket.machine("two")
    results = run_recipe(in_bucket(**changes))
    shown = capsys.readouterr().out
    assert "continues from its checkpoint at step 2; passed over: " in shown
    assert local(fresh) == []
    files = content_of(in_bucket.uri)
    assert {"first/done.json", "second/outcome.json", "second/done.json", "mlflow.json", "timeline.json"} <= set(files)
    assert "lease.json" not in files
    steps = [line["step"] for line in lines(files) if line["kind"] == "train"]
    assert steps == [1, 2, 3, 4, 5]
    for line in lines(files):
        for picture in line.get("overlays", []):
            assert files[f"first/{picture}"].startswith(b"\x89PNG")
    assert str(tmp_path / "two") not in json.dumps([results[0].checkpoint, shown])
    assert results[0].checkpoint.startswith(f"s3://bucket/{tmp_path.name}/runs/tiny/first/checkpoints/step-00000005.pt")
    plain = run_recipe(load_recipe(recipe_file(name="plain", **changes)))
    assert [(a.miou, a.best) for a in results] == [(b.miou, b.best) for b in plain]
    assert same(weights(named_checkpoint(in_bucket.uri)), weights(tmp_path / "out/runs/plain/second/best.pt"))
    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    assert not [name for name, data in files.items() if secret in data]
    run_recipe(in_bucket(**changes))
    assert "is finished, nothing to do" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"the run tiny in s3://\S+ has another recipe \(seed: 3 -> 4\)"):
        run_recipe(in_bucket(**changes, seed=4))


@pytest.mark.slow
def test_a_signal_ends_with_the_checkpoint_in_the_bucket(in_bucket):
    def feed(plan, kind, tasks, cpus):
        for done, batch in enumerate(train_batches(plan, kind, tasks, cpus), start=plan.start):
            if done == 1 and plan.start == 0:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(3)  # the note travels
            yield batch

    with pytest.raises(Stopped) as stopped:
        run_recipe(in_bucket(), feed)
    assert stopped.value.code == 143
    files = content_of(in_bucket.uri)
    assert any("stopped in stage first at step 2" in line.get("text", "") for line in lines(files))
    assert "first/checkpoints/step-00000002.pt" in files
    assert "stop.txt" not in files
    assert run_recipe(in_bucket(), feed)[0].steps == 5


# ---- doors


@pytest.fixture
def opened(monkeypatch, capsys):
    def open_door(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        importlib.import_module(f"pipelines.{name}").main()
        return capsys.readouterr().out

    return open_door


@pytest.fixture
def trained(in_bucket):
    run_recipe(in_bucket())
    return in_bucket.uri


@pytest.mark.slow
def test_doors_take_the_uri_of_a_run_of_its_stage_and_of_a_file(trained, shards, s3, tmp_path, opened):
    val, best = shards / "voc12/val", trained.replace("?", "/first/best.pt?")
    shown = opened("evaluate", best, val, "--out", tmp_path / "scores")
    assert f"{best} on the 11 rows" in shown
    page = json.loads((tmp_path / "scores/scores.json").read_text())
    assert page["checkpoint"] == best
    done = json.loads(content_of(trained)["first/done.json"])
    assert page["miou"] == pytest.approx(done["best"], abs=1e-12)
    assert "no difference shown" in opened("compare", "runs", trained, trained.replace("?", "/first?"), val)
    assert named_checkpoint(trained) == named_checkpoint(best)  # one copy, once per version
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in/a.png"), np.full((40, 56, 3), 90, np.uint8))
    system, root = locate(s3(f"{tmp_path.name}/photos"))
    with system.open_output_stream(f"{root}/deeper/b.png") as stream:
        stream.write((tmp_path / "in/a.png").read_bytes())
    opened("predict", trained, tmp_path / "in", "--out", tmp_path / "here")
    opened("predict", trained, s3(f"{tmp_path.name}/photos"), "--out", tmp_path / "there")
    masks = [(tmp_path / name).read_bytes() for name in ("here/masks/a.png", "there/masks/deeper/b.png")]
    assert masks[0] == masks[1]
    with pytest.raises(InputError, match=r"s3://bucket/none\S*: no checkpoint; name RUN/STAGE/best.pt"):
        named_checkpoint(s3("none"))
    with pytest.raises(InputError, match=r"s3://\*\*\*@b/x holds a user or password"):
        named_checkpoint("s3://me:secret@b/x")


@pytest.mark.slow
def test_prepare_train_and_evaluate_with_shards_of_a_bucket(release, s3, recipe_file, tmp_path, opened, shards):
    out = s3(f"{tmp_path.name}/shards/voc12")
    opened("prepare", "voc12", "--source", release, "--out", out, "--workers", "0", "--partial")
    assert "rows verified" in opened("audit", out.replace("?", "/val?"), "--verify")
    run_recipe(load_recipe(recipe_file(name="local")))
    run_recipe(load_recipe(recipe_file(name="remote", data=s3(f"{tmp_path.name}/shards"))))
    runs = tmp_path / "out/runs"
    assert same(weights(runs / "local/first/best.pt"), weights(runs / "remote/first/best.pt"))
    scores = [
        opened("evaluate", runs / "local/first/best.pt", val).partition("PyTorch is imported")[2]
        for val in (shards / "voc12/val", out.replace("?", "/val?"))
    ]
    assert scores[0] == scores[1]


# ---- what a bucket may answer


@pytest.mark.slow
def test_a_bucket_that_is_not_there_or_does_not_answer_is_told_before_anything_starts(in_bucket, s3, recipe_file):
    def refused(output, kind, words):
        with pytest.raises(kind, match=words):
            run_recipe(load_recipe(recipe_file(output=output)))

    refused(s3("x", bucket="nowhere"), (InputError, DataError), r"s3://nowhere/x\S*: .*there is no such bucket")
    closed = "s3://bucket/x?scheme=http&endpoint_override=127.0.0.1:9&region=us-east-1"
    refused(closed, DataError, r"s3://bucket/x.*Could not connect.*AWS_ENDPOINT_URL")
    refused("abfss://x/y", InputError, r"output = abfss://x/y: allowed are a folder, s3:// and gs://")
    with pytest.raises(InputError, match=r"s3://\*\*\*@bucket/x holds a user or password"):
        load_recipe(recipe_file(output="s3://key:secret@bucket/x"))


def test_a_bucket_that_may_only_be_read_is_told_before_anything_starts(in_bucket, monkeypatch):
    def denied(self):
        raise StoreFailed("s3://bucket/x: AWS Error ACCESS_DENIED during PutObject operation")

    monkeypatch.setattr(Lease, "write", denied)
    with pytest.raises(InputError, match=r"output: s3://bucket/x: AWS Error ACCESS_DENIED"):
        run_recipe(in_bucket())


class Flaky:
    """A bucket's file system that refuses some writes."""

    def __init__(self, system, refuses):
        self.system, self.refuses, self.count = system, refuses, 0

    def __getattr__(self, name):
        return getattr(self.system, name)

    def open_output_stream(self, path):
        self.count += 1
        if self.refuses(self.count):
            raise DataError("s3://bucket/x: AWS Error SLOW_DOWN")
        return self.system.open_output_stream(path)


@pytest.fixture
def two_sides(s3, tmp_path):
    uri = s3(f"{tmp_path.name}/sides")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    return Mirror(tmp_path / "a", uri), Mirror(tmp_path / "b", uri)


def write(mirror, name, data):
    path = mirror.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def read(mirror):
    files = [path for path in mirror.folder.rglob("*") if path.is_file()]
    return {path.relative_to(mirror.folder).as_posix(): path.read_bytes() for path in files}


def test_what_changed_travels_and_what_was_removed_is_removed(two_sides):
    a, b = two_sides
    weights = os.urandom(6_000_000)  # in several parts
    write(a, "recipe.yaml", b"page")
    write(a, "first/record.jsonl", b'{"a": 1}\n{"torn')
    write(a, "first/checkpoints/step-00000001.pt", weights)
    write(a, "first/hang-worker0.txt", b"")  # nothing yet
    write(a, "ray/session", b"Ray's own")
    write(a, "first/.best.1.tmp.pt", b"half")
    a.push()
    b.pull()
    whole = {"recipe.yaml": b"page", "first/record.jsonl": b'{"a": 1}\n', "first/checkpoints/step-00000001.pt": weights}
    assert read(b) == whole
    write(a, "first/record.jsonl", b'{"a": 1}\n{"torn": 2}\n')
    (a.folder / "first/checkpoints/step-00000001.pt").unlink()
    a.push()
    b.pull(lambda name: name.endswith(".jsonl"))
    assert read(b) == whole | {"first/record.jsonl": b'{"a": 1}\n{"torn": 2}\n'}
    b.pull()
    assert set(read(b)) == {"recipe.yaml", "first/record.jsonl"}
    write(b, "recipe.yaml", b"newer here")
    b.met.clear()  # as if the bucket's were new
    b.pull()
    assert read(b)["recipe.yaml"] == b"newer here"
    write(b, "stop.txt", b"SIGTERM")
    b.push()
    a.look("stop.txt")
    assert (a.folder / "stop.txt").read_bytes() == b"SIGTERM"
    (b.folder / "stop.txt").unlink()
    b.push()
    a.pull()
    assert "stop.txt" not in read(a)


def test_later_turns_travel_after_what_they_rely_on(two_sides, monkeypatch):
    a, b = two_sides
    for name in ("first/done.json", "first/outcome.json", "first/checkpoints/step-00000001.pt", "first/record.jsonl",
                 "first/best.pt", "first/overlays/x/step-00000001.png"):  # fmt: skip
        write(a, name, b"x\n")
    sent, upload = [], a.upload
    monkeypatch.setattr(a, "upload", lambda name, *rest: sent.append(name) or upload(name, *rest))
    a.push()
    assert sent == ["first/overlays/x/step-00000001.png", "first/best.pt", "first/record.jsonl",
                    "first/checkpoints/step-00000001.pt", "first/outcome.json", "first/done.json"]  # fmt: skip
    placed, note = [], b.note
    monkeypatch.setattr(b, "note", lambda name, state: placed.append(name) or note(name, state))
    b.pull()
    assert placed.index("first/record.jsonl") > placed.index("first/overlays/x/step-00000001.png")
    assert placed[-2:] == ["first/outcome.json", "first/done.json"]


def test_a_record_that_arrives_has_its_pictures(two_sides, monkeypatch):
    """Another line, with another picture, may come between the look at the bucket and the reading of the record."""
    a, b = two_sides
    write(a, "first/overlays/x/1.png", b"1")
    write(a, "first/record.jsonl", b'{"picture": 1}\n')
    a.push()
    original = b.read

    def late(name, *rest):
        write(a, "first/overlays/x/2.png", b"2")
        write(a, "first/record.jsonl", b'{"picture": 1}\n{"picture": 2}\n')
        a.push()
        return original(name, *rest)

    monkeypatch.setattr(b, "read", late)
    b.pull()
    assert read(b)["first/record.jsonl"].count(b"\n") == 2
    assert "first/overlays/x/2.png" in read(b)


def test_a_write_that_fails_is_tried_again_and_leaves_nothing_half(two_sides, monkeypatch):
    a, b = two_sides
    pauses = []
    monkeypatch.setattr(mirror.time, "sleep", pauses.append)
    a.system = Flaky(a.system, lambda count: count in (2, 3))
    write(a, "one.yaml", b"1")
    a.push()
    write(a, "first/best.pt", b"x" * 100)
    a.push()
    assert [round(p, 1) > 0 for p in pauses] == [True, True]
    b.pull()
    assert read(b) == {"one.yaml": b"1", "first/best.pt": b"x" * 100}
    a.system = Flaky(a.system, lambda count: True)
    write(a, "first/best.pt", b"y" * 200)
    with pytest.raises(StoreFailed, match="SLOW_DOWN"):
        a.push()
    assert len(pauses) == 2 + len(mirror.PAUSES)
    b.pull()
    assert read(b)["first/best.pt"] == b"x" * 100


# ---- one process at a time


@pytest.fixture
def note(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "SETTLE_S", 0.0)
    monkeypatch.setattr(lease, "LOOK_S", 0.05)
    monkeypatch.setattr(lease, "LAPSE_S", 0.5)
    monkeypatch.setattr(lease, "RENEW_S", 0.1)
    system, root = locate(s3(tmp_path.name))
    return lambda: Lease(system, f"{root}/lease.json", "s3://bucket/run")


def test_a_second_process_is_refused_while_the_first_renews_its_note(note, capsys):
    words = rf"another process trains in s3://bucket/run \(process {os.getpid()} on "
    with note().held(), pytest.raises(SetupError, match=words):
        note().held().__enter__()
    capsys.readouterr()
    with note().held():
        pass
    assert capsys.readouterr().out == ""  # nothing was left to be watched


def test_the_note_of_a_killed_process_lapses_or_is_known_as_dead(note, monkeypatch, capsys):
    monkeypatch.setattr(lease, "host", lambda: "elsewhere/1")
    left = note()
    left.own["host"] = "another/1"
    left.write()
    began = time.monotonic()
    with note().held():
        assert time.monotonic() - began > 0.4
    assert "a process on another trained into it, and did not say that it ended; it is watched for 0.5 s" in (
        capsys.readouterr().out
    )
    left.own["host"], left.own["pid"] = "elsewhere/1", 2**22 + 1  # no such process here
    left.write()
    began = time.monotonic()
    with note().held():
        assert time.monotonic() - began < 0.4
    left.own["host"] = "another/1"
    left.write()
    monkeypatch.setattr(lease, "OLD_S", -1.0)
    began = time.monotonic()
    with note().held():
        assert time.monotonic() - began < 0.4


def test_of_two_that_begin_at_once_one_is_refused(note, monkeypatch):
    first, answers = note(), iter([None, {"id": "x", "pid": 7, "host": "b/1"}])
    monkeypatch.setattr(first, "read", lambda: next(answers))
    with pytest.raises(SetupError, match=r"process 7 on b"):
        first.held().__enter__()


def test_copies_of_killed_processes_are_removed(in_bucket, tmp_path):
    from pipelines.runs.copies import copy_folder, made_copy

    home = in_bucket.machine("three")
    dead = copy_folder("s3://b/runs/x", "worker-dead")
    dead.mkdir(parents=True)
    (dead.parents[1] / ".held").touch()
    with made_copy("s3://b/runs/y?region=r", "worker-1") as one, made_copy("s3://b/runs/y?region=r", "worker-2") as two:
        assert not dead.exists()
        assert one.name == two.name == "y"
        assert one != two
        assert one.is_dir()
    assert not one.exists()
    assert home.stat().st_mode & 0o777 in (0o700, 0o755)


# ---- Ray


@pytest.mark.ray
def test_two_ray_workers_train_into_a_bucket_as_into_a_folder(pair, two_workers, ray_session, in_bucket, capsys):
    results = run_recipe(in_bucket(**two_workers))
    shown = capsys.readouterr().out
    assert "step    16/16" in shown
    run, _ = pair
    assert same(weights(named_checkpoint(in_bucket.uri)), weights(run / "first/best.pt"))
    assert results[0].steps == 16
    files = content_of(in_bucket.uri)
    assert [line["step"] for line in lines(files) if line["kind"] == "train"] == list(range(1, 17))
    assert [name for name in files if name.startswith("ray")] == []
    assert local(Path(os.environ["RUN_CACHE"])) == [named_checkpoint(in_bucket.uri)]
