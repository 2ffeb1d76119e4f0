"""The order of an epoch is that of 0.5.0, whatever the rows' files; ids and order are mapped, and written once."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from miniatures import write_own
from test_shards import prepare

from datasets import shards as shards_module
from datasets.readers.folder import folder
from datasets.row_index import open_index, write_index
from datasets.shards import Shards
from datasets.transforms import epoch_order

NAMES = ["z", "a10", "a9", "ä", "Ω/1", "\U0001f40d", "￿", "a", "A", "a 1", "1"]  # the last plane sorts after U+FFFF
SUMS = [hashlib.sha256(name.encode()).hexdigest() for name in NAMES]
FILE = pa.schema([("id", pa.string()), ("sha256", pa.string())])


def before(ids: list[str], seed: int, epoch: int) -> np.ndarray:
    """The rows of an epoch as 0.5.0 ordered them."""
    by_id = np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)
    return by_id[np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch]))).permutation(len(ids))]


@pytest.mark.parametrize("cut", [0, 1, 7])
def test_the_order_is_that_of_earlier_versions(cut: int, tmp_path: Path) -> None:
    with pa.OSFile(str(tmp_path / "index"), "wb") as sink:
        write_index([pa.table({"id": NAMES[:cut], "sha256": SUMS[:cut]}, FILE), pa.table(
            {"id": NAMES[cut:], "sha256": SUMS[cut:]}, FILE)], sink)  # fmt: skip
    index = open_index(tmp_path / "index")
    assert [index.name(row) for row in range(len(NAMES))] == NAMES
    assert index.marks.tolist() == [np.uint64(int(text[:16], 16)).astype(np.int64) for text in SUMS]
    for epoch in range(4):
        np.testing.assert_array_equal(index.by_id[epoch_order(len(NAMES), 5, epoch)], before(NAMES, 5, epoch))


@pytest.mark.parametrize("rows", [1, 2, 301, 70_000])
def test_short_numbers_are_drawn_as_long_ones(rows: int) -> None:
    order = epoch_order(rows, 7, 2)
    assert order.dtype == np.int32
    np.testing.assert_array_equal(order, before([f"{i:06d}" for i in range(rows)], 7, 2))


def test_an_index_is_written_once_for_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_own(tmp_path / "own", 10)
    uri = str(tmp_path / "out/train")
    prepare(folder(tmp_path / "own"), uri)
    first = Shards(uri, tmp_path / "cache")
    assert first.index.ids.to_pylist() == first.ids
    monkeypatch.setattr(shards_module, "write_index", None)  # whoever writes again fails
    again = Shards(uri, tmp_path / "cache")
    np.testing.assert_array_equal(again.index.by_id, first.index.by_id)


def test_few_files_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_own(tmp_path / "own", 10)
    uri = str(tmp_path / "out/train")
    prepare(folder(tmp_path / "own"), uri, files=5)
    monkeypatch.setattr(shards_module, "OPEN_PARTS", 2)
    split, whole = Shards(uri, tmp_path / "cache"), Shards(uri, tmp_path / "cache")
    wanted = [whole.encoded(row) for row in range(10)]
    order = [0, 9, 0, 4, 9, 0, 5, 3, 8, 0]
    assert [split.encoded(row) for row in order] == [wanted[row] for row in order]
    assert len(split._parts) == 2
    assert split._number(0)[0] in split._parts  # asked for lately
