"""How rows are stored: the mask's encoding, the row groups' size and the compression of a shard.

Masks are encoded and decoded one by one, on one core. Files hold the same rows in several layouts: written, staged as
a training does it once per machine (Parquet to a mapped Arrow file), and one row read from where it is.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.speed.report import Report

SIZE = (360, 480)  # of drawn pictures, height and width in pixels
GROUPS = (16, 64, 256)  # rows
COMPRESSIONS = ("none", "lz4", "zstd")
OURS = "lz4, level 6 (ours)"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="CamVid's release, or images/, masks/, classes.yaml (default: drawn)"
    )
    parser.add_argument("--rows", type=int, default=256, help="images (default %(default)s)")


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be measured.

    Raises:
        InputError: no rows, or no such folder.
    """
    from pipelines.base.errors import InputError

    if args.rows < 1:
        raise InputError(f"--rows {args.rows}: one or more")
    if args.images and not args.images.is_dir():
        raise InputError(f"--images {args.images} is no folder; leave it out to measure on drawn pictures")


def measure(args: argparse.Namespace) -> Report:
    """Masks first, then files; all cases of each in turn."""
    from datasets.sample import decode_mask
    from pipelines.feed.plan import open_shards
    from pipelines.speed.drawn import drawn_shards, original_shards, scratch
    from pipelines.speed.report import Report, interleave

    with scratch() as folder:
        uri = original_shards(folder / "data", args.images, args.rows) if args.images else None
        shards = open_shards(str(uri or drawn_shards(folder / "data", args.rows, SIZE) / "train"))
        masks = [decode_mask(shards.encoded(row)[1] or b"") for row in range(len(shards))]
        codecs = mask_codecs(masks[0].shape)
        sizes = {name: sum(len(encode(mask)) for mask in masks) / len(masks) for name, (encode, _) in codecs.items()}
        coded = interleave(mask_cases(codecs, masks), args.repeats)
        rows = [shards.peek(row) for row in range(len(shards))]
        layouts = {(group, how): Layout(rows, group, how) for group in GROUPS for how in COMPRESSIONS}
        filed = interleave({f"{g} {how} {what}": case for (g, how), layout in layouts.items()
                            for what, case in layout.cases().items()}, args.repeats)  # fmt: skip
    table = [mask_row(name, sizes[name], coded) for name in codecs]
    table += [layout.row(filed) for layout in layouts.values()]
    notes = [
        f"{len(masks)} rows, {'as the folder holds them' if args.images else 'drawn'}; masks of "
        f"{masks[0].shape[1]}x{masks[0].shape[0]} pixels; medians of {args.repeats} rounds in turn, one core",
        "masks: encode and decode in µs of processor time each; files: MB/s of the file written to and staged on this "
        "disk, and µs to read one row from Parquet where it is (staged rows are mapped: no difference)",
        "our files: 64 rows a group, images and masks uncompressed, since they are compressed already",
    ]
    columns = ["what", "bytes (of a mask; of the file)", "encode µs, write MB/s", "decode µs, stage MB/s", "row µs"]
    return Report("Storage", columns, table, notes, {"masks": coded, "files": filed, "bytes": sizes})


def mask_codecs(size: Sequence[int]) -> dict[str, tuple[Callable[[Any], bytes], Callable[[bytes], object]]]:
    """Encode and decode of masks, uint8 (H, W)."""
    import cv2
    import numpy as np
    import pyarrow as pa

    from datasets.sample import decode_mask, encode_mask

    def png(filtered: bool) -> Callable[[Any], bytes]:
        options = [] if filtered else [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
        options += [cv2.IMWRITE_PNG_COMPRESSION, 9, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT]
        return lambda mask: cv2.imencode(".png", mask, options)[1].tobytes()

    def unpng(data: bytes) -> object:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)

    pixels = int(size[0] * size[1])

    def arrow(name: str, level: int) -> tuple[Callable[[Any], bytes], Callable[[bytes], object]]:
        codec = pa.Codec(name, compression_level=level)
        return lambda m: codec.compress(np.ascontiguousarray(m), asbytes=True), lambda d: codec.decompress(d, pixels)

    return {
        OURS: (encode_mask, decode_mask),
        "zstd, level 3": arrow("zstd", 3),
        "zstd, level 9": arrow("zstd", 9),
        "lz4, level 1": arrow("lz4_raw", 1),
        "PNG without filters": (png(False), unpng),
        "PNG, usual filters": (png(True), unpng),
        "raw bytes": (lambda m: m.tobytes(), lambda d: np.frombuffer(d, np.uint8).reshape(size).copy()),
    }


def mask_cases(codecs: dict[str, Any], masks: Sequence[Any]) -> dict[str, Callable[[], float]]:
    """Seconds of processor time a mask, for encoding and decoding by each codec."""

    def timed(work: Callable[[Any], object], inputs: Sequence[Any]) -> Callable[[], float]:
        def once() -> float:
            began = time.thread_time()
            for value in inputs:
                work(value)
            return (time.thread_time() - began) / len(inputs)

        return once

    same = [mask for mask in masks if mask.shape == masks[0].shape]
    cases = {}
    for name, (encode, decode) in codecs.items():
        cases[f"{name} encode"] = timed(encode, same[:64])
        cases[f"{name} decode"] = timed(decode, [encode(mask) for mask in same])
    return cases


def mask_row(name: str, size: float, coded: dict[str, list[float]]) -> list[str]:
    """A codec's line of the table."""
    encode, decode = (median(coded[f"{name} {what}"]) * 1e6 for what in ("encode", "decode"))
    return [f"mask, {name}", f"{size:,.0f}", f"{encode:.0f}", f"{decode:.0f}", "–"]


class Layout:
    """The same rows in one layout of Parquet: `group` rows a row group, images and masks compressed by `how`."""

    def __init__(self, rows: Sequence[dict[str, Any]], group: int, how: str) -> None:
        import pyarrow as pa

        from datasets.manifest import COLUMNS

        self.table, self.group, self.how = pa.Table.from_pylist(list(rows), COLUMNS), group, how
        self.data = self.encoded()

    def encoded(self) -> bytes:
        """The file."""
        import pyarrow.parquet as pq

        packed = {name: self.how if name in ("image", "mask") else "zstd" for name in self.table.column_names}
        stream = io.BytesIO()
        pq.write_table(self.table, stream, row_group_size=self.group, compression=packed, use_dictionary=False,
                       write_statistics=False)  # fmt: skip
        return stream.getvalue()

    def cases(self) -> dict[str, Callable[[], float]]:
        """Seconds to write the file, to stage it, and to read a row in its middle."""
        from datasets.shards import to_ipc

        def write() -> float:
            with tempfile.NamedTemporaryFile() as file:
                began = time.perf_counter()
                file.write(self.encoded())
                file.flush()
                return time.perf_counter() - began

        def stage() -> float:
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                to_ipc(self.data, Path(folder) / "part.arrow")
                return time.perf_counter() - began

        def row() -> float:
            import pyarrow.parquet as pq

            began = time.perf_counter()
            place = self.table.num_rows // 2
            group = pq.ParquetFile(io.BytesIO(self.data)).read_row_group(place // self.group)
            group.slice(place % self.group, 1).to_pylist()
            return time.perf_counter() - began

        return {"write": write, "stage": stage, "row": row}

    def row(self, filed: dict[str, list[float]]) -> list[str]:
        """This layout's line of the table."""
        write, stage, row = (median(filed[f"{self.group} {self.how} {what}"]) for what in ("write", "stage", "row"))
        speeds = [f"{len(self.data) / seconds / 1e6:.0f}" for seconds in (write, stage)]
        ours = " (ours)" if (self.group, self.how) == (64, "none") else ""
        return [f"file, {self.group} rows, {self.how}{ours}", f"{len(self.data):,}", *speeds, f"{row * 1e6:.0f}"]
