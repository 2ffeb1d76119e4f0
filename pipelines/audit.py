#!/usr/bin/env python
"""Look at shards: counts, class histogram, checksums, and a sheet of images with their masks in colour."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.door import run

if TYPE_CHECKING:
    from datasets.shards import Manifest

EXAMPLES = """\
examples:
  python -m pipelines.audit data/camvid/train
  python -m pipelines.audit s3://bucket/voc12/val --sheet val.png --images 24
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", help="folder or URI of one split's shards")
    parser.add_argument("--sheet", type=Path, default=Path("audit.png"), help="the picture (default audit.png)")
    parser.add_argument("--images", type=int, default=12, help="images on the sheet (default 12)")
    parser.add_argument("--quick", action="store_true", help="leave out reading every row and its checksum")
    args = parser.parse_args()
    from datasets.shards import Shards, read_manifest, verify
    from pipelines.preflight import locate
    from pipelines.recipe import RecipeError

    uri = locate(str(Path.cwd()), args.shards)
    manifest = read_manifest(uri)
    describe(manifest, uri)
    draw_sheet(Shards(uri), args.sheet, max(1, args.images))
    if args.quick:
        print("checksums: not verified (--quick)")
        return
    problems = verify(uri)
    for problem in problems:
        print(f"PROBLEM  {problem}")
    if problems:
        raise RecipeError(f"{len(problems)} problem(s) in {uri}; run prepare again, or copy the shards anew")
    print(f"checksums: all {len(manifest.files)} file(s) and {manifest.rows} rows verified, every mask fits its image")


def describe(manifest: Manifest, uri: str) -> None:
    """Print what the manifest says."""
    official = "" if manifest.official_rows is None else f", official {manifest.official_rows}"
    size = sum(file["bytes"] for file in manifest.files)
    print(f"{uri}\n{manifest.benchmark} {manifest.split}: {manifest.rows} rows{official}"
          f"{', PARTIAL' if manifest.partial else ''}, {len(manifest.files)} file(s), {size / 1e6:.1f} MB, "
          f"schema {manifest.schema_version}, hash {manifest.hash}")  # fmt: skip
    total = max(1, sum(manifest.histogram))
    widest = max(manifest.histogram) or 1
    for name, pixels in zip([*manifest.classes, "(ignored)"], manifest.histogram, strict=True):
        bar = "#" * round(40 * pixels / widest)
        print(f"{name:>20}  {pixels:>14,} pixels  {pixels / total:7.3%}  {bar or ('(never)' if not pixels else '')}")
    print(f"images identical to another of this split: {manifest.duplicates}")


def draw_sheet(shards: object, path: Path, images: int) -> None:
    """Images evenly spread over the split, each above its mask."""
    import numpy as np

    from datasets.shards import Shards
    from pipelines import figures

    assert isinstance(shards, Shards)
    rows = np.unique(np.linspace(0, len(shards) - 1, min(images, len(shards))).astype(int))
    samples = [(shards.ids[row], *shards.sample(int(row))) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = figures.contact_sheet(samples, shards.manifest.classes, shards.manifest.palette)
    print(f"contact sheet of {len(rows)} images: {figures.write_png(path, sheet)}")


if __name__ == "__main__":
    run(main)
