"""What shards hold, for a person: counts, class weights, checksums, a sheet of pictures, one row."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets.manifest import Manifest
    from datasets.shards import Shards

SEGMENTS = 20  # objects of a row that are listed


def check(uri: str) -> None:
    """Read every row of the shards.

    Raises:
        InputError: rows, checksums or images disagree with the manifest.
    """
    from datasets.manifest import read_manifest
    from datasets.shards import verify
    from datasets.text import named
    from pipelines.base.errors import InputError

    problems = verify(uri)
    if problems:
        told = named(problems, between="\n  ")
        raise InputError(f"{len(problems)} problem(s) in {uri}:\n  {told}\nRun prepare again, or copy the shards again")
    manifest = read_manifest(uri)
    print(f"checksums: all {len(manifest.files)} file(s) and {manifest.rows} rows verified, every mask fits its image")


def describe(manifest: Manifest, uri: str) -> None:
    """Print what the manifest says."""
    official = "" if manifest.official_rows is None else f", official {manifest.official_rows}"
    official += f", {len(manifest.skipped)} damaged row(s) left out" if manifest.skipped else ""
    size = sum(file["bytes"] for file in manifest.files)
    print(f"{uri}\n{manifest.benchmark} {manifest.split}: {manifest.rows} rows{official}"
          f"{', PARTIAL' if manifest.partial else ''}, {len(manifest.files)} file(s), {size / 1e6:.1f} MB, "
          f"schema {manifest.schema_version}, hash {manifest.hash}")  # fmt: skip
    print(f"images identical to another of this split: {manifest.duplicates}")
    if manifest.classified:
        describe_images(manifest)
        return
    if not manifest.labelled:
        print("no labels")
        return
    total, widest = max(1, sum(manifest.histogram)), max(1, *manifest.histogram)
    names = [*manifest.classes, "(ignored)"]
    for name, pixels, images in zip(names, manifest.histogram, manifest.images, strict=True):
        bar = "#" * round(30 * pixels / widest)
        print(f"{name:>20}  {pixels:>14,} pixels  {pixels / total:7.3%}  in {images:>7,} images  "
              f"{bar or ('(never)' if not pixels else '')}")  # fmt: skip
    labelled = max(1, sum(manifest.histogram[:-1]))
    for reach, pixels in manifest.boundary.items():
        print(f"{pixels / labelled:7.2%} of the labelled pixels have another class within {reach} pixel(s)")
    print_weights(manifest)


def describe_images(manifest: Manifest) -> None:
    """Print how many images each class has, where an image has one class and no mask."""
    print("no masks: each image is of one class")
    widest = max(1, *manifest.images)
    for name, images in zip(manifest.classes, manifest.images, strict=False):
        print(f"{name:>30}  {images:>9,} images  {'#' * round(30 * images / widest) or '(never)' * (not images)}")


def print_weights(manifest: Manifest) -> None:
    """Print class weights as a recipe takes them, each with its formula."""
    from datasets.balance import UNSEEN, WEIGHTS
    from datasets.text import named

    print("\nclass weights for a recipe, if it is to train on this split:")
    for name, (formula, weigh) in WEIGHTS.items():
        numbers = ", ".join(f"{weight:.4g}" for weight in weigh(manifest))
        print(f"# {name}: {formula}")
        print(f"loss: {{logits: {{cross_entropy: {{weight: 1.0, class_weights: [{numbers}]}}}}}}")
    if manifest.unseen:
        print(f"# {UNSEEN:g} is for classes without a pixel ({named(manifest.unseen)}): it changes nothing")
    print()


def draw_sheet(shards: Shards, path: Path, images: int) -> None:
    """Images evenly spread over the split, each above its mask."""
    from pipelines.base import pictures
    from pipelines.shards.report import picture, spread_rows

    rows = spread_rows(len(shards), images)
    samples = (picture(shards, row) for row in rows)
    sheet = pictures.contact_sheet(samples, shards.manifest.classes, shards.manifest.palette)
    print(f"contact sheet of {len(rows)} images: {pictures.write_png(path, sheet)}")


def show_row(shards: Shards, name: str, path: Path) -> None:
    """Print all facts of a row, and draw it.

    Raises:
        InputError: no such id, or the row disagrees with its checksums.
    """
    from datasets.rows import row_problems
    from datasets.text import same_form
    from pipelines.base.errors import InputError

    manifest = shards.manifest
    ids = shards.ids
    forms = {same_form(key): number for number, key in enumerate(ids)}
    if (number := ids.index(name) if name in ids else forms.get(same_form(name), -1)) < 0:
        near = difflib.get_close_matches(name, ids, 5, 0.5) or ids[:5]
        raise InputError(f"{shards.uri} has no row {name!r} among its {len(ids)}; the nearest ids: {', '.join(near)}")
    row = shards.peek(number)
    kind = "PNG" if row["image"].startswith(b"\x89PNG") else "JPEG"
    mask = "no mask" if row["mask"] is None else f"mask {len(row['mask']):,} bytes"
    print(f"{shards.uri}\nrow {number} of {len(ids)}: {name}, {row['width']}x{row['height']} pixels (width x height)\n"
          f"image {len(row['image']):,} bytes of {kind}, {mask}\nsha256 of the image  {row['sha256']}\n"
          f"digest of the row    {row['digest']}")  # fmt: skip
    classes = [*manifest.classes, "(ignored)"]
    for k, pixels in sorted(enumerate(row["histogram"] or []), key=lambda pair: -pair[1]):
        if pixels:
            print(f"{classes[k]:>20}  {pixels:>12,} pixels  {pixels / (row['width'] * row['height']):7.3%}")
    print_segments(row["segments"], manifest.classes)
    if problems := row_problems([row], len(manifest.classes)):
        raise InputError(f"{shards.uri}, row {problems[0]}; run prepare again, or copy the shards again")
    draw_row(row, manifest, path)


def print_segments(segments: list[dict[str, Any]] | None, classes: tuple[str, ...]) -> None:
    """Print the objects of a row, largest box first."""
    if segments is None:
        return
    print(f"{len(segments)} segment(s): class, box as x, y, width, height")
    for segment in sorted(segments, key=lambda s: -s["box"][2] * s["box"][3])[:SEGMENTS]:
        crowd = ", a crowd" if segment["crowd"] else ""
        print(f"{classes[segment['number']]:>20}  {', '.join(f'{v:g}' for v in segment['box'])}{crowd}")
    if len(segments) > SEGMENTS:
        print(f"{'':>20}  and {len(segments) - SEGMENTS} smaller ones")


def draw_row(row: dict[str, Any], manifest: Manifest, path: Path) -> None:
    """Image | mask | mask over image, with the colours of the classes that it holds."""
    import numpy as np

    from datasets.sample import decode_image, decode_mask
    from pipelines.base import pictures

    side = pictures.LARGEST
    picture = pictures.fitted(decode_image(row["image"]), side // 3, side)
    if row["mask"] is not None:
        mask, bar = (
            pictures.fitted(decode_mask(row["mask"]), side // 3, side),
            np.full((len(picture), 4, 3), 255, np.uint8),
        )
        coloured, both = pictures.colour(mask, manifest.palette), pictures.blend(picture, mask, manifest.palette)
        picture = np.hstack([picture, bar, coloured, bar, both])
        held = [k for k, pixels in enumerate(row["histogram"][:-1]) if pixels]
        names, colours = [manifest.classes[k] for k in held], [manifest.palette[k] for k in held]
        picture = np.pad(picture, ((0, 0), (0, max(0, 160 - picture.shape[1])), (0, 0)), constant_values=255)
        picture = np.vstack([picture, pictures.legend(names, colours, picture.shape[1])])
    print(f"picture: {pictures.write_png(path, picture)}")
