"""The cache of copies is bounded, keeps what is open, and is its user's own."""

import os
import subprocess
import sys

import pytest

from datasets.cache import hold, make_room
from datasets.owned import own_folder
from datasets.sample import DataError


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """Three copies of 400 bytes, `a` unused for the longest time; the limit is 1000 bytes."""
    for age, name in enumerate("cba"):
        path = tmp_path / f"{name}.arrow"
        path.write_bytes(b"x" * 400)
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    (tmp_path / "a.arrow.lock").write_text("")
    monkeypatch.setenv("SHARD_CACHE_GB", "1e-6")
    return tmp_path


def names(folder):
    return sorted(path.stem for path in folder.glob("*.arrow"))


def test_the_longest_unused_copies_go_and_no_more_than_needed(copies):
    make_room(copies, 150)
    assert names(copies) == ["b", "c"]
    make_room(copies, 200)
    assert names(copies) == ["b", "c"]
    make_room(copies, 201)
    assert names(copies) == ["c"]


def test_use_makes_a_copy_young(copies):
    hold(copies / "a.arrow").close()
    make_room(copies, 150)
    assert names(copies) == ["a", "c"]


def test_a_copy_that_a_process_has_open_stays_also_where_the_limit_is_passed(copies):
    code = "import sys, pathlib, datasets.cache as c; f = c.hold(pathlib.Path(sys.argv[1])); print(1, flush=1); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(copies / "a.arrow")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout.readline()
        with hold(copies / "b.arrow"):
            make_room(copies, 900)
            assert names(copies) == ["a", "b"]
    finally:
        other.communicate(b"\n", timeout=30)
    make_room(copies, 900)
    assert names(copies) == []


def test_a_copy_that_is_gone_is_not_held(copies):
    assert hold(copies / "none.arrow") is None


def test_without_a_limit_half_of_what_the_disk_has_is_taken(copies, monkeypatch):
    monkeypatch.delenv("SHARD_CACHE_GB")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 800}))
    make_room(copies, 200)  # 800 + 1200 bytes, of which half
    assert names(copies) == ["b", "c"]


def test_a_limit_that_is_no_number_is_refused(copies, monkeypatch):
    monkeypatch.setenv("SHARD_CACHE_GB", "lots")
    with pytest.raises(DataError, match=r"SHARD_CACHE_GB = 'lots': .* such as 200"):
        make_room(copies, 1)


def test_a_shared_folder_has_one_for_each_user(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARD_CACHE", str(tmp_path))
    folder = own_folder("SHARD_CACHE", "shards")
    assert folder == tmp_path / f"user-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    folder.rename(tmp_path / "user-12345")
    with pytest.raises(DataError, match="belongs to another user"):
        own_folder("SHARD_CACHE", "shards")
    monkeypatch.setenv("SHARD_CACHE", "/proc/none")
    with pytest.raises(DataError, match="SHARD_CACHE = /proc/none: "):
        own_folder("SHARD_CACHE", "shards")
    monkeypatch.delenv("SHARD_CACHE")
    assert own_folder("SHARD_CACHE", "shards").parts[-2:] == ("context-heads", "shards")


def test_shards_that_do_not_fit_are_read_all_the_same(shards, tmp_path, monkeypatch):
    """With a limit of nothing each file still finds its way: the one that is open stays."""
    from datasets.shards import Shards

    monkeypatch.setenv("SHARD_CACHE_GB", "0")
    split = Shards(str(shards / "voc12/val"), tmp_path / "cache")
    wanted = Shards(str(shards / "voc12/val"), tmp_path / "other")
    assert [split.encoded(i) for i in range(len(split))] == [wanted.encoded(i) for i in range(len(split))]
    files = len(split.manifest.files)
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == files > 1
    del split
    Shards(str(shards / "voc12/train"), tmp_path / "cache").encoded(0)
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 1
