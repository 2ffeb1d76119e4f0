"""A sample as a row of a shard, and the checks of a row."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from datasets.damage import decode_checked
from datasets.facts import boundary_pixels, digest, histogram
from datasets.sample import DataError, Sample, decode_mask, encode_mask, image_size


def make_row(sample: Sample, classes: int) -> dict[str, Any]:
    """A sample as the columns of a shard; columns without a value are left out.

    Args:
        sample: the sample.
        classes: K.
    """
    mask = sample.mask
    height, width = image_size(sample.image) if mask is None else mask.shape
    row = {"id": sample.id, "image": sample.image, "height": height, "width": width}
    if mask is not None:
        row |= {"mask": encode_mask(mask), "histogram": histogram(mask, classes), "boundary": boundary_pixels(mask)}
    if sample.segments is not None:
        row["segments"] = [asdict(segment) for segment in sample.segments]
    sha256 = hashlib.sha256(sample.image).hexdigest()
    return row | {"sha256": sha256, "digest": digest(sample.id, sha256, mask, row.get("segments"))}


def row_problems(rows: Iterable[dict[str, Any]], classes: int) -> list[str]:
    """What is wrong with rows: checksum, damage inside the image, mask, size, histogram.

    Args:
        rows: all columns of each.
        classes: K.

    Returns:
        One line per row at fault.
    """
    found = []
    for row in rows:
        try:
            _check_row(row, classes)
        except DataError as error:
            found.append(f"{row['id']}: {error}")
    return found


def _check_row(row: dict[str, Any], classes: int) -> None:
    if hashlib.sha256(row["image"]).hexdigest() != row["sha256"]:
        raise DataError("the image's bytes do not match their sha256")
    size, mask = (row["height"], row["width"]), None
    if decode_checked(row["image"]).shape[:2] != size:  # the sha256 of a damaged file is that of a damaged file
        raise DataError(f"the image is not of the stated {size[0]}x{size[1]} pixels (height x width)")
    if row["mask"] is not None:
        mask = decode_mask(row["mask"])
        if mask.shape != size:
            raise DataError(f"the mask is of {mask.shape} pixels, the image of {size} (height, width)")
        if histogram(mask, classes) != row["histogram"] or boundary_pixels(mask) != row["boundary"]:
            raise DataError("the mask's pixels do not match their histogram, or their boundaries' count")
    if digest(row["id"], row["sha256"], mask, row["segments"]) != row["digest"]:
        raise DataError("id, mask or segments are not those of its digest")
