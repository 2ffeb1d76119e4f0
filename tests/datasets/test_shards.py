"""Shards: bits survive, kills leave nothing half done, damage is found, many processes share one cache."""

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from miniatures import write_own

from datasets import facts, storage
from datasets.balance import UNSEEN, enet, median_frequency
from datasets.facts import REACHES, boundary_pixels, histogram
from datasets.manifest import Manifest, read_manifest, write_manifest
from datasets.readers.folder import folder
from datasets.readers.voc import voc12
from datasets.sample import Benchmark, DataError, Item, Sample, Segment, decode_image
from datasets.shards import Shards, verify
from datasets.storage import locate
from datasets.writer import part_steps, plan_files, write_part

ROOT = Path(__file__).parents[2]


def prepare(benchmark: Benchmark, uri: str, split: str = "train", files: int = 3) -> Manifest:
    items = benchmark.index(split)
    size = sum(os.path.getsize(item.image) for item in items)
    plan = plan_files(items, size // files + 1)
    return write_manifest(
        uri,
        benchmark,
        split,
        [write_part(uri, i, part, benchmark, split) for i, part in enumerate(plan)],
        partial=False,
    )


@pytest.fixture
def uri(own: Benchmark, tmp_path: Path) -> str:
    prepare(own, str(tmp_path / "out/train"))
    return str(tmp_path / "out/train")


def parts(uri: str) -> list[Path]:
    return sorted(Path(uri).glob("part-*.parquet"))


def test_plan_is_contiguous_and_bounded(own: Benchmark) -> None:
    items = own.index("train")
    plan = plan_files(items, 3000)
    assert [item for part in plan for item in part] == items
    assert len(plan) > 1
    assert all(len(part) == 1 or sum(os.path.getsize(i.image) for i in part) <= 3000 for part in plan)
    assert [len(part) for part in plan_files(items, 1)] == [1] * 10


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_bits_survive(own: Benchmark, tmp_path: Path, scheme: str) -> None:
    uri = scheme + str(tmp_path / "there/train")
    manifest = prepare(own, uri)
    shards = Shards(uri, tmp_path / "cache")
    items = own.index("train")
    assert (len(shards), shards.ids) == (10, [item.id for item in items])
    assert len(manifest.files) >= 3
    total = np.zeros(4, np.int64)
    for i, item in enumerate(items):
        sample = own.read(item)
        image, mask = shards.sample(i)
        assert shards.encoded(i)[0] == Path(item.image).read_bytes()
        np.testing.assert_array_equal(image, decode_image(sample.image))
        np.testing.assert_array_equal(mask, sample.mask)
        assert shards.sizes[i].tolist() == [40, 50]
        assert shards.histograms[i].tolist() == [int((mask == v).sum()) for v in (0, 1, 2, 255)]
        total += shards.histograms[i]
    assert manifest.histogram == tuple(total)
    assert verify(uri) == []


def test_voc_rows(sample_root: Path, tmp_path: Path) -> None:
    manifest = prepare(voc12(sample_root), str(tmp_path / "val"), "val", files=1)
    assert (manifest.rows, manifest.official_rows, manifest.labelled, manifest.ignore) == (6, 1449, True, 255)
    shards = Shards(str(tmp_path / "val"), tmp_path / "cache")
    voc = voc12(sample_root)
    for i, item in enumerate(voc.index("val")):
        np.testing.assert_array_equal(shards.sample(i)[1], voc.read(item).mask)


def test_opening_reads_no_images(uri: str, tmp_path: Path) -> None:
    shards = Shards(uri, tmp_path / "cache")
    assert len(shards.ids) == len(shards.sizes) == len(shards.sha256) == len(shards.histograms) == 10
    assert not (tmp_path / "cache").exists()
    cold = (shards.ids, shards.sizes.tolist())
    shards.stage()
    warm = Shards(uri, tmp_path / "cache")
    assert (warm.ids, warm.sizes.tolist()) == cold


def test_cache_folder_from_the_environment(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARD_CACHE", str(tmp_path / "elsewhere"))
    Shards(uri).stage()
    own = tmp_path / "elsewhere" / f"user-{os.getuid()}"
    assert len(list(own.glob("*.arrow"))) == len(parts(uri))
    assert own.stat().st_mode & 0o777 == 0o700  # nobody else may put rows there


def test_pickled_shards_reopen(uri: str, tmp_path: Path) -> None:
    shards = Shards(uri, tmp_path / "cache")
    shards.sample(4)
    again = pickle.loads(pickle.dumps(shards))
    assert again.encoded(4) == shards.encoded(4)


def test_rewrite_gives_the_same_bytes(own: Benchmark, tmp_path: Path) -> None:
    first, second = (prepare(own, str(tmp_path / name)) for name in ("one", "two"))
    assert first.hash == second.hash
    for a, b in zip(parts(str(tmp_path / "one")), parts(str(tmp_path / "two")), strict=True):
        assert a.read_bytes() == b.read_bytes()
    assert read_manifest(str(tmp_path / "one")) == first


def test_hash_names_rows_and_classes_not_their_files(own: Benchmark, tmp_path: Path) -> None:
    three, one = (prepare(own, str(tmp_path / str(n)), files=n) for n in (3, 1))
    os.utime(own.index("train")[0].image, ns=(1, 1))  # the release was unpacked at another time
    later = prepare(own, str(tmp_path / "later"), files=1)
    assert [len(m.files) for m in (three, one, later)] == [4, 1, 1]
    assert later.files[0]["sha256"] != one.files[0]["sha256"]
    assert three.hash == one.hash == later.hash
    path = Path(own.index("train")[7].label)  # type: ignore[arg-type]
    mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    mask[0, 0], mask[0, 1] = mask[0, 1], mask[0, 0]
    assert mask[0, 0] != mask[0, 1]  # the same histogram, other pixels
    cv2.imwrite(str(path), mask)
    assert prepare(own, str(tmp_path / "other")).hash != one.hash
    assert replace(one, split="val").hash != one.hash
    assert replace(one, classes=("a", "b", "c")).hash != one.hash


def test_manifest_counts_images_surroundings_and_boundaries(tmp_path: Path) -> None:
    root = write_own(tmp_path / "own", count=2, size=(8, 9))
    first, second = np.zeros((8, 9), np.uint8), np.full((8, 9), 255, np.uint8)
    first[:, 4:], first[0] = 2, 255  # 7 rows: columns 0-3 road, 4-8 tree
    second[3, 3] = 0
    for name, mask in (("000", first), ("001", second)):
        cv2.imwrite(str(root / f"masks/{name}.png"), mask)
    manifest = prepare(folder(root), str(tmp_path / "out"), files=2)
    assert manifest.histogram == (29, 0, 35, 9 + 71)
    assert manifest.images == (2, 0, 1, 2)
    assert manifest.around == (63 + 1, 0, 63)
    assert manifest.boundary == {"1": 14, "5": 63}  # column 8 is 5 from column 3, column 0 is 4 from column 4
    assert manifest.unseen == ["car"]
    assert read_manifest(str(tmp_path / "out")) == manifest


def test_boundaries_are_those_of_the_loss_term() -> None:
    import torch

    from segmodels.terms import near_boundary

    rng = np.random.default_rng(0)
    for size in ((1, 1), (7, 30), (40, 33)):
        mask = cv2.resize(rng.choice([0, 1, 9, 255], (4, 4)).astype(np.uint8), size[::-1], interpolation=0)
        expected = [int(near_boundary(torch.from_numpy(mask)[None], reach).sum()) for reach in REACHES]
        assert boundary_pixels(mask) == expected


def test_small_splits_make_many_files_and_groups_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {}
    monkeypatch.setattr("os.path.getsize", lambda path: sizes[path])
    for count, size, files in ((1000, 100 << 10, 13), (10_000, 100 << 10, 65), (2000, 8 << 20, 125), (3, 900 << 20, 3)):
        items = [Item(str(i), str(i), None) for i in range(count)]
        sizes |= dict.fromkeys(map(str, range(count)), size)
        plan = plan_files(items)
        assert [item for part in plan for item in part] == items
        assert len(plan) == files


def test_row_groups_end_at_rows_or_bytes(own: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def groups(name: str) -> list[int]:
        write_part(str(tmp_path / name), 0, own.index("train"), own, "train")
        meta = pq.ParquetFile(tmp_path / name / "part-00000.parquet").metadata
        return [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]

    assert groups("whole") == [10]
    monkeypatch.setattr("datasets.writer.ROW_GROUP", 4)
    assert groups("rows") == [4, 4, 2]
    monkeypatch.setattr("datasets.writer.GROUP_BYTES", 1)
    assert groups("bytes") == [1] * 10


def test_a_writer_reports_its_progress(own: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.writer.TELL_S", 0.0)
    *told, record = part_steps(str(tmp_path), 0, own.index("train"), own, "train")
    assert [step["rows"] for step in told] == list(range(1, 11))
    assert 0 < told[0]["bytes"] < told[-1]["bytes"] < record["bytes"]


def test_one_message_names_several_faults(tmp_path: Path) -> None:
    root = write_own(tmp_path / "own", count=14)
    for i in (3, 5, 8):
        (root / f"images/{i:03d}.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"^3 rows of one file .*\n.*003\.jpg.*\n.*005\.jpg.*\n.*008\.jpg"):
        prepare(folder(root), str(tmp_path / "out"), files=1)
    for i in range(14):
        (root / f"images/{i:03d}.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"(?s)^14 rows of one file .*\n  \.\.\. and 4 more$"):
        prepare(folder(root), str(tmp_path / "out"), files=1)
    assert parts(str(tmp_path / "out")) == []


def test_peek_reads_a_row_without_a_copy(own: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.writer.ROW_GROUP", 2)
    prepare(own, uri := str(tmp_path / "out/train"))
    shards = Shards(uri, tmp_path / "cache")
    rows = [shards.peek(i) for i in range(len(shards))]
    assert not (tmp_path / "cache").exists()
    assert [row["id"] for row in rows] == [item.id for item in own.index("train")]
    shards.stage()
    assert [Shards(uri, tmp_path / "cache").peek(i) for i in range(len(shards))] == rows
    assert rows[9]["image"] == shards.encoded(9)[0]
    parts(uri)[-1].unlink()
    with pytest.raises(DataError, match="run prepare again"):
        Shards(uri, tmp_path / "empty").peek(9)


def test_median_frequency_and_enet_by_hand(own: Benchmark, uri: str) -> None:
    counted = replace(read_manifest(uri), histogram=(60, 30, 0, 10), around=(90, 45, 0))  # f: 2/3, 2/3
    assert median_frequency(counted) == [1.0, 1.0, UNSEEN]
    counted = replace(counted, histogram=(60, 20, 10, 10), around=(80, 80, 40))  # f: 3/4, 1/4, 1/4
    assert median_frequency(counted) == pytest.approx([1 / 3, 1.0, 1.0])
    assert enet(counted) == pytest.approx([1 / np.log(1.02 + p) for p in (60 / 90, 20 / 90, 10 / 90)])


def test_finished_parts_are_kept_and_changed_sources_are_not(own: Benchmark, uri: str) -> None:
    items = own.index("train")[:2]
    assert not write_part(uri, 7, items, own, "train")["kept"]
    record = write_part(uri, 7, items, own, "train")
    assert record["kept"]
    assert (record["rows"], record["labelled"], sum(record["histogram"])) == (2, 2, 4000)
    os.utime(str(items[0].label), ns=(1, 1))
    assert not write_part(uri, 7, items, own, "train")["kept"]
    renamed = replace(own, classes=("a", "b", "c"))
    assert not write_part(uri, 7, items, renamed, "train")["kept"]


def test_new_table_of_values_rewrites(tmp_path: Path) -> None:
    root = write_own(tmp_path / "own", count=2)
    uri = str(tmp_path / "out")
    write_part(uri, 0, folder(root).index("train"), folder(root), "train")
    (root / "classes.yaml").write_text("classes: {1: road, 0: car, 2: tree}\nignore: [255, 77]\n")
    changed = replace(folder(root), classes=("road", "car", "tree"))
    assert not write_part(uri, 0, changed.index("train"), changed, "train")["kept"]


def test_a_damaged_finished_part_is_written_again(own: Benchmark, uri: str) -> None:
    part = parts(uri)[0]
    good = part.read_bytes()
    flip(part)
    assert prepare(own, uri).files[0]["sha256"] == read_manifest(uri).files[0]["sha256"]
    assert part.read_bytes() == good


def flip(path: Path) -> None:
    """Change one byte in the first image."""
    data = bytearray(path.read_bytes())
    data[600] ^= 255
    path.write_bytes(data)


def test_error_in_mid_write_leaves_nothing(own: Benchmark, tmp_path: Path) -> None:
    calls = 0

    def read(item: Item) -> Sample:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise DataError("unreadable")
        return own.read(item)

    broken = replace(own, read=UnpicklableFree(read))
    with pytest.raises(DataError, match="unreadable"):
        write_part(str(tmp_path / "out"), 0, own.index("train"), broken, "train")
    assert list((tmp_path / "out").iterdir()) == []


class UnpicklableFree:
    """A reader whose pickle is a constant."""

    def __init__(self, read: object) -> None:
        self.read = read

    def __call__(self, item: Item) -> Sample:
        return self.read(item)  # type: ignore[operator]

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return int, (0,)


KILLED = """
import sys, time
from dataclasses import dataclass
from pathlib import Path
from datasets.readers.folder import folder
from datasets import writer

own = folder(Path(sys.argv[1]))
items = own.index("train")
writer.ROW_GROUP = 2
writer.write_part(sys.argv[2], 0, items[:5], own, "train")
row, seen = writer.make_row, []

def slow(sample, classes):
    seen.append(sample.id)
    if len(seen) == 4:
        print("half", flush=True)
        time.sleep(60)
    return row(sample, classes)

writer.make_row = slow
writer.write_part(sys.argv[2], 1, items[5:], own, "train")
"""


def test_kill_in_mid_write_then_rerun(tmp_path: Path) -> None:
    own = folder(write_own(tmp_path / "own"))
    uri = str(tmp_path / "out")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "own"), uri], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [p.name for p in parts(uri)] == ["part-00000.parquet"]
    assert len(list(Path(uri).glob(".part-00001*.tmp"))) == 1
    with pytest.raises(DataError, match="did not end"):
        read_manifest(uri)
    items = own.index("train")
    records = [write_part(uri, i, items[5 * i : 5 * i + 5], own, "train") for i in range(2)]
    assert [record["kept"] for record in records] == [True, False]
    write_manifest(uri, own, "train", records, partial=False)
    assert sorted(os.listdir(uri)) == ["manifest.json", "part-00000.parquet", "part-00001.parquet"]
    assert verify(uri) == []


def test_stale_parts_go_and_other_files_stay(own: Benchmark, uri: str) -> None:
    for name in ("part-00099.parquet", "notes.parquet"):
        (Path(uri) / name).write_bytes(b"old")
    prepare(own, uri)
    assert "notes.parquet" in os.listdir(uri)
    assert "part-00099.parquet" not in os.listdir(uri)


def test_corrupt_byte(uri: str, tmp_path: Path) -> None:
    flip(parts(uri)[0])
    with pytest.raises(DataError, match=r"corrupt shard .*part-00000"):
        Shards(uri, tmp_path / "cache").sample(0)
    assert list((tmp_path / "cache").glob("*.arrow")) == []
    (problem,) = verify(uri)
    assert "part-00000" in problem


def replace_part(uri: str, table: pa.Table) -> None:
    """Put a table in place of the first file, and the checksum of the new file in the manifest."""
    part, path = parts(uri)[0], Path(uri) / "manifest.json"
    pq.write_table(table, part)
    content = json.loads(path.read_text())
    content["files"][0]["sha256"] = hashlib.sha256(part.read_bytes()).hexdigest()
    path.write_text(json.dumps(content))


def code_columns(kind: pa.DataType, table: pa.Table) -> list[pa.Table]:
    """The table with values of an extension type as images, and deep in the segments."""
    image = pa.ExtensionArray.from_storage(kind, table["image"].combine_chunks())
    deep = pa.ListArray.from_arrays(pa.array(range(len(table) + 1), pa.int32()), image)
    return [table.set_column(1, "image", image), table.set_column(7, "segments", deep)]


@pytest.mark.parametrize("place", [0, 1], ids=["image", "segments"])
def test_loading_a_shard_executes_no_code(own: Benchmark, uri: str, tmp_path: Path, place: int) -> None:
    """Whoever registered an extension type reads it, and Ray's holds pickles; this one notes that it was read."""
    ran = []

    class Code(pa.ExtensionType):
        def __init__(self) -> None:
            super().__init__(pa.binary(), "tests.code")

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> "Code":
            ran.append(serialized)
            return cls()

    pa.register_extension_type(Code())
    try:
        replace_part(uri, code_columns(Code(), pq.read_table(parts(uri)[0]))[place])
        ran.clear()
        shards = Shards(uri, tmp_path / "cache")
        for look in (lambda: shards.sample(0), lambda: shards.peek(0), lambda: shards.ids):
            with pytest.raises(DataError, match="of an extension type, which could run code"):
                look()
        assert "extension type" in verify(uri)[0]
        prepare(own, uri)  # writes it again
        assert verify(uri) == []
        assert not ran
    finally:
        pa.unregister_extension_type("tests.code")


def test_a_column_of_another_type_is_named(uri: str, tmp_path: Path) -> None:
    table = pq.read_table(parts(uri)[0])
    replace_part(uri, table.set_column(3, "height", table["height"].cast(pa.string())))
    for look in (lambda: Shards(uri, tmp_path / "cache").sample(0), lambda: Shards(uri, tmp_path / "cache").peek(0)):
        with pytest.raises(DataError, match=r"part-00000.*'height' is string, not int32; prepare again"):
            look()


def test_verify_finds_a_wrong_row_under_right_file_sums(own: Benchmark, uri: str, tmp_path: Path) -> None:
    """A writer's fault: the file's checksum is right, the row's facts are not."""
    table = pq.read_table(parts(uri)[0])
    sums, counts = table["sha256"].to_pylist(), table["histogram"].to_pylist()
    sums[0], counts[1][0] = "0" * 64, counts[1][0] + 1
    table = table.set_column(5, table.schema.field(5), [sums]).set_column(6, table.schema.field(6), [counts])
    replace_part(uri, table)
    problems = verify(uri)
    assert len(problems) == 2
    assert "sha256" in problems[0]
    assert "histogram" in problems[1]


def test_verify_finds_swapped_masks_and_swapped_rows(uri: str) -> None:
    """Each file and each row fits its own checksum, but not the manifest's hash."""
    table = pq.read_table(parts(uri)[0])

    def put(changed: pa.Table) -> list[str]:
        replace_part(uri, changed)
        return verify(uri)

    assert put(table) == []
    (problem,) = put(table.take([1, 0, *range(2, len(table))]))
    assert "order" in problem
    facts = {
        name: table[name].take(pa.array([1, 0, *range(2, len(table))])) for name in ("mask", "histogram", "boundary")
    }
    for name, column in facts.items():
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    problems = put(table)
    assert len(problems) == 2
    assert all("digest" in problem for problem in problems)


def test_missing_part(uri: str, tmp_path: Path) -> None:
    parts(uri)[1].unlink()
    with pytest.raises(DataError, match="part-00001"):
        Shards(uri, tmp_path / "cache").stage()
    with pytest.raises(DataError, match="part-00001"):
        _ = Shards(uri, tmp_path / "cache2").ids
    assert any("part-00001" in problem for problem in verify(uri))


def test_segments_survive(own: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = (Segment(1, False, (0.5, 2.0, 10.25, 7.0), b"\x00rle"), Segment(2, True, (0.0, 0.0, 50.0, 40.0), b""))
    read = own.read
    with_objects = replace(own, read=lambda item: replace(read(item), segments=objects if item.id == "003" else ()))
    monkeypatch.setattr("datasets.writer.fingerprint", lambda *_: "a lambda does not pickle")
    prepare(with_objects, str(tmp_path / "objects/train"))
    prepare(own, str(tmp_path / "masks/train"))
    shards, masks = (Shards(str(tmp_path / kind / "train"), tmp_path / "cache") for kind in ("objects", "masks"))
    assert shards.segments(3) == objects
    assert shards.segments(4) == ()
    assert masks.segments(3) is None


def test_other_schema_version(uri: str) -> None:
    path = Path(uri) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    with pytest.raises(DataError, match=r"schema version 99; this code reads 3\. Prepare again"):
        read_manifest(uri)


def test_wrong_folders_say_what_is_there(uri: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a folder of splits: train; name one"):
        read_manifest(str(Path(uri).parent))
    with pytest.raises(DataError, match="no such folder"):
        read_manifest(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"classes\.yaml"):
        read_manifest(str(tmp_path / "own"))


def test_duplicates_and_repeated_ids(tmp_path: Path) -> None:
    root = write_own(tmp_path / "own", count=3)
    (root / "images/002.jpg").write_bytes((root / "images/000.jpg").read_bytes())
    own = folder(root)
    assert prepare(own, str(tmp_path / "out")).duplicates == 1
    items = own.index("train")
    records = [write_part(str(tmp_path / "twice"), i, items[:1], own, "train") for i in range(2)]
    with pytest.raises(DataError, match="'000'"):
        write_manifest(str(tmp_path / "twice"), own, "train", records, partial=True)


def test_split_without_labels(tmp_path: Path) -> None:
    import shutil

    shutil.rmtree(write_own(tmp_path / "own", count=3) / "masks")
    manifest = prepare(folder(tmp_path / "own"), str(tmp_path / "out"))
    shards = Shards(str(tmp_path / "out"), tmp_path / "cache")
    assert not manifest.labelled
    assert shards.encoded(1)[1] is None
    assert shards.sizes.tolist() == [[40, 50]] * 3
    assert shards.histograms.sum() == 0
    with pytest.raises(DataError, match="no mask"):
        shards.sample(0)


STAGING = """
import sys, time
from datasets.shards import Shards
while time.time() < float(sys.argv[3]):
    pass
shards = Shards(sys.argv[1], sys.argv[2])
print(sum(len(shards.encoded(i)[0]) for i in range(len(shards))))
"""


def test_two_processes_stage_at_once(uri: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", STAGING, uri, str(tmp_path / "cache"), str(time.time() + 2)]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    sums = {int(process.communicate(timeout=400)[0]) for process in running}
    shards = Shards(uri, tmp_path / "fresh")
    assert sums == {sum(len(shards.encoded(i)[0]) for i in range(10))}
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == len(parts(uri))
    assert not list((tmp_path / "cache").glob("*.tmp"))


def test_rows_out_of_range(uri: str, tmp_path: Path) -> None:
    with pytest.raises(IndexError, match="row 10 of 10"):
        Shards(uri, tmp_path / "cache").encoded(10)


@pytest.mark.data
def test_real_camvid(camvid_root: Path, tmp_path: Path) -> None:
    from datasets.readers.camvid import camvid

    manifest = prepare(camvid(camvid_root), str(tmp_path / "val"), "val", files=2)
    assert manifest.rows == manifest.official_rows == 101
    assert verify(str(tmp_path / "val")) == []


def test_uris(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_met", {"s3://bucket?region=us-east-1"})  # else it would be asked whether it answers
    assert locate("s3://bucket/a/b/?region=us-east-1")[1] == "bucket/a/b"
    assert locate("a/b")[1] == str(Path("a/b").absolute())
    with pytest.raises(DataError, match=r"allowed are local paths, file://, s3:// and gs://"):
        locate("ftp://host/a")


def test_pixels_are_counted_exactly_whatever_the_layout_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.random.default_rng(0).choice([0, 1, 2, 4, 255], (33, 47), p=[0.6, 0.1, 0.1, 0.1, 0.1]).astype(np.uint8)
    wanted = [int((mask == value).sum()) for value in (*range(5), 255)]
    read_only = mask[:]
    read_only.flags.writeable = False
    for same in (mask, read_only, np.asfortranarray(mask), np.pad(mask, 3)[3:-3, 3:-3]):
        assert histogram(same, 5) == wanted
    monkeypatch.setattr(facts, "EXACT", 100)  # as a mask of over 2 ** 24 pixels, which float32 cannot count
    assert histogram(mask, 5) == wanted
