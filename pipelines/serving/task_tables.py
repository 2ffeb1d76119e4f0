"""What was found in all images of a prediction, in the forms that others' tools read."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from datasets.tasks.things import category_ids, things
from pipelines.base.files import replacing, to_json, write_json, write_text
from pipelines.base.pictures import Palette
from pipelines.serving.results import Results

COLUMNS = ("image", "rank", "number", "class", "probability")

Pages = Iterable[Mapping[str, Any]]
"""Of each image: `image`, its name; `height` and `width`; `found`."""


def write_classes(results: Results, pages: Pages, classes: Sequence[str], palette: Palette) -> list[str]:
    """The likeliest classes of each image: a row each in `classification.csv`, and the same as JSON."""
    found = {page["image"]: page["found"] for page in pages}
    paths = [results.table("classification", suffix) for suffix in ("csv", "json")]
    with replacing(paths[0]) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({"image": name} | row for name, rows in found.items() for row in rows)
    write_json(paths[1], found)
    return [path.name for path in paths]


def write_objects(results: Results, pages: Pages, classes: Sequence[str], palette: Palette) -> list[str]:
    """COCO's list of results, `detection.json`, as pycocotools' `loadRes` takes it; with two entries more."""
    kept = list(pages)
    entries = [
        {"image_id": number, "file_name": page["image"], **one,
         "segmentation": {"size": [page["height"], page["width"]], "counts": one["segmentation"]}}
        for page, number in zip(kept, image_ids([page["image"] for page in kept]), strict=True)
        for one in page["found"]
    ]  # fmt: skip
    path = results.table("detection", "json")
    write_text(path, to_json(entries))
    return [path.name]


def write_segments(results: Results, pages: Pages, classes: Sequence[str], palette: Palette) -> list[str]:
    """COCO's panoptic results, `panoptic.json`, beside the folder `panoptic` with the PNGs."""
    kept = list(pages)
    numbers = image_ids([page["image"] for page in kept])
    ids, is_thing = category_ids(classes), set(things(tuple(classes)))
    content = {
        "images": [
            {"id": number, "file_name": page["image"], "height": page["height"], "width": page["width"]}
            for page, number in zip(kept, numbers, strict=True)
        ],
        "categories": [
            {"id": ids[k], "name": name, "isthing": int(k in is_thing), "color": list(palette[k])}
            for k, name in enumerate(classes)
        ],
        "annotations": [
            {"image_id": number, "file_name": f"{page['image']}.png", "segments_info": page["found"]}
            for page, number in zip(kept, numbers, strict=True)
        ],
    }
    path = results.table("panoptic", "json")
    write_text(path, to_json(content))
    return [path.name, "panoptic/"]


def image_ids(names: Sequence[str]) -> list[int] | list[str]:
    """The images' ids: COCO's numbers where all names are such, as 000000000139 is 139; else the names themselves."""
    if all(name.isascii() and name.isdigit() for name in names):
        numbers = [int(name) for name in names]
        if len(set(numbers)) == len(numbers):
            return numbers
    return list(names)


TABLES: dict[str, Callable[[Results, Pages, Sequence[str], Palette], list[str]]] = {
    "classification": write_classes, "detection": write_objects, "panoptic": write_segments,
}  # fmt: skip
"""By task."""
