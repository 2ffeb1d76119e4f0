#!/usr/bin/env python
"""Look at shards: counts, class histogram, class weights; on request checksums, a sheet of pictures, or one row."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.base.door import run, writable
from pipelines.shards.look import check, describe, draw_sheet, show_row

if TYPE_CHECKING:
    pass

EXAMPLES = """\
examples:
  python -m pipelines.audit data/camvid/train                                   # what the manifest counts
  python -m pipelines.audit data/camvid/train --verify                          # and every checksum
  python -m pipelines.audit s3://bucket/voc12/val --sheet val.png --images 24
  python -m pipelines.audit data/voc12/val --row 2007_000033                    # one row, its picture 2007_000033.png
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", help="folder or URI of one split's shards")
    parser.add_argument("--verify", action="store_true", help="read every row and check it against its checksums")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="draw images, each above its mask in colour; with "
                        "--row, where that row's picture goes (default ID.png)")  # fmt: skip
    parser.add_argument("--images", type=int, default=12, help="images on the sheet (default 12)")
    parser.add_argument("--row", metavar="ID", help="show one row: image, mask, both, and all facts")
    args = parser.parse_args()
    from datasets.manifest import read_manifest
    from datasets.shards import Shards
    from datasets.storage import below
    from pipelines.base.errors import InputError
    from pipelines.base.pictures import safe_name

    if args.sheet:
        writable("--sheet", args.sheet.parent)
        if args.sheet.is_dir():
            raise InputError(f"--sheet {args.sheet}: is a folder; name a file, e.g. {args.sheet}/sheet.png")
    uri = below(str(Path.cwd()), args.shards)
    if args.row:
        show_row(Shards(uri), args.row, args.sheet or Path(f"{safe_name(args.row)}.png"))
    else:
        describe(read_manifest(uri), uri)
        if args.sheet:
            draw_sheet(Shards(uri), args.sheet, max(1, args.images))
    if args.verify:
        check(uri)
    else:
        print("checksums: not verified; --verify reads every row")


if __name__ == "__main__":
    run(main)
