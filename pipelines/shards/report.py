"""What the splits of a benchmark hold, and what they share: gathered from the shards, for people and for programs.

Facts of one split are in its manifest. What only several splits together tell (an image in train and in val) is in
`report.json` and `report.html` next to them. Each `prepare` writes these again from all splits that are there, so the
hash that names a split's shards does not depend on which other splits were prepared.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datasets.text import named
from pipelines.base.files import to_json

if TYPE_CHECKING:
    from datasets.sample import Benchmark
    from datasets.shards import Shards

NAMED = 10  # duplicates that are listed by their ids
PICTURES = 8  # rows of a split on its sheet
WIDTH = 240  # of a picture, pixels


def reported(benchmark: Benchmark, out: str) -> dict[str, Any]:
    """The facts of `write_report`; where that fails, a warning instead: the shards are whole without it.

    Args:
        benchmark: as in `write_report`.
        out: as in `write_report`.
    """
    try:
        return write_report(benchmark, out)
    except Exception as error:
        line = f"the shards are whole, but no report of them could be made ({type(error).__name__}: {error})"
        return {"splits": {}, "overlaps": [], "notes": list(benchmark.notes), "warnings": [line]}


def write_report(benchmark: Benchmark, out: str) -> dict[str, Any]:
    """Write OUT/report.json and OUT/report.html about all splits below OUT; returns the facts.

    Args:
        benchmark: whose shards they are.
        out: folder or URI of the benchmark.

    Raises:
        DataError: shards that do not read.
    """
    from datasets.storage import below, locate, written_whole
    from pipelines.shards.page import page

    splits = open_splits(benchmark, out)
    facts = gather(benchmark, splits)
    sheets = {}
    for name, shards in splits.items():
        try:
            sheets[name] = sheet(shards)
        except Exception as error:
            facts["warnings"].append(f"{name} has no pictures here ({type(error).__name__}: {error})")
    content = {"report.json": to_json(facts, indent=1) + "\n", "report.html": page(facts, sheets)}
    for name, text in content.items():
        system, path = locate(below(out, name))
        with written_whole(system, path) as stream:
            stream.write(text.encode())
    return facts | {"path": below(out, "report.html")}


def open_splits(benchmark: Benchmark, out: str) -> dict[str, Shards]:
    """The splits of the benchmark below OUT, in its order; last those of another folder of the user."""
    from datasets.manifest import MANIFEST
    from datasets.shards import Shards
    from datasets.storage import below, exists, locate, names_in

    found, folders = {}, names_in(*locate(out))
    for split in dict.fromkeys([*benchmark.splits, *(name for name, is_folder in folders.items() if is_folder)]):
        system, path = locate(uri := below(out, split))
        if exists(system, f"{path}/{MANIFEST}"):
            found[split] = Shards(uri)
    return {split: shards for split, shards in found.items() if shards.manifest.benchmark == benchmark.name}


def gather(benchmark: Benchmark, splits: Mapping[str, Shards]) -> dict[str, Any]:
    """All facts, and the warnings."""
    rows = {name: dict(zip(shards.ids, shards.sha256, strict=True)) for name, shards in splits.items()}
    facts: dict[str, Any] = {
        "benchmark": benchmark.name,
        "home": benchmark.home,
        "classes": benchmark.classes,
        "palette": benchmark.palette,
        "splits": {name: split_facts(shards) for name, shards in splits.items()},
        "not_prepared": {name: rows for name, rows in benchmark.splits.items() if name not in splits},
        "overlaps": overlaps(rows),
        "notes": [*benchmark.notes, *ignored_notes(benchmark, splits), *undrawn(splits), *large(benchmark, splits)],
    }
    return facts | {"warnings": warnings(facts)}


def ignored_notes(benchmark: Benchmark, splits: Mapping[str, Shards]) -> list[str]:
    """How many pixels of each split are ignored, and why, for the user's own folder."""
    what = benchmark.ignored
    return [f"{name}: {shards.manifest.histogram[-1]:,} pixels are ignored: {what}" for name, shards in splits.items()
            if what and shards.manifest.labelled and shards.manifest.histogram[-1]]  # fmt: skip


def large(benchmark: Benchmark, splits: Mapping[str, Shards]) -> list[str]:
    """Splits of the user's own folder whose images are better cut into tiles."""
    from datasets.tiles import LARGE

    lines = []
    for name, shards in splits.items():
        sides = [max(size) for size in shards.sizes.tolist()]
        if benchmark.name == "folder" and (count := sum(side > LARGE for side in sides)):
            lines.append(f"{name}: {count:,} image(s) have a side of more than {LARGE:,} pixels, up to {max(sides):,}; "
                         "each crop decodes the whole image. --tile 1024 cuts them")  # fmt: skip
    return lines


def undrawn(splits: Mapping[str, Shards]) -> list[str]:
    """What the legends of the pictures cannot show."""
    from pipelines.base.pictures import drawable

    names = dict.fromkeys(name for shards in splits.values() for name in shards.manifest.classes)
    lost = [name for name in names if drawable(name) != name]
    if not lost:
        return []
    return [f"the font of the pictures lacks letters of {named(lost)}: legends show □ and the class's number instead, "
            "tables the whole names"]  # fmt: skip


def split_facts(shards: Shards) -> dict[str, Any]:
    """What the manifest says, the sizes of the images, and rows whose images are the same."""
    from datasets.balance import WEIGHTS

    manifest = shards.manifest
    sizes = Counter(map(tuple, shards.sizes.tolist()))
    by_image: dict[str, list[str]] = defaultdict(list)
    for name, sha256 in zip(shards.ids, shards.sha256, strict=True):
        by_image[sha256].append(name)
    labelled = sum(manifest.histogram[:-1])
    return {
        "rows": manifest.rows,
        "classes": list(manifest.classes),
        "palette": [list(colour) for colour in manifest.palette],
        "official_rows": manifest.official_rows,
        "partial": manifest.partial,
        "labelled": manifest.labelled,
        "classified": manifest.classified,
        "hash": manifest.hash,
        "files": len(manifest.files),
        "bytes": sum(file["bytes"] for file in manifest.files),
        "histogram": manifest.histogram,
        "images": manifest.images,
        "unseen": manifest.unseen if manifest.labelled or manifest.classified else [],
        "boundary": {reach: n / max(1, labelled) for reach, n in manifest.boundary.items()},
        "weights": {name: weigh(manifest) for name, (_, weigh) in WEIGHTS.items()} if manifest.labelled else {},
        "sizes": [{"height": h, "width": w, "rows": n} for (h, w), n in sizes.most_common(5)],
        "least_size": [min(column) for column in zip(*sizes, strict=True)],
        "greatest_size": [max(column) for column in zip(*sizes, strict=True)],
        # The reader compares each mask with its image, and a difference stops the preparation with the file's name.
        "size_mismatches": 0,
        "duplicates": manifest.duplicates,
        "pictured": [shards.ids[row] for row in spread_rows(len(shards), PICTURES)],
        "duplicate_ids": [ids for ids in by_image.values() if len(ids) > 1][:NAMED],
        "ignored": {
            "pixels": manifest.histogram[-1],
            "share": manifest.histogram[-1] / max(1, sum(manifest.histogram)),
        },
        "skipped": list(manifest.skipped),
    }


def overlaps(splits: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    """The pairs of splits that share images, byte for byte.

    A pair is "by design" where one of the two is exactly the union of the other and further splits (VOC's trainval).
    It is a "leak" where one of the two is for training, by its name, and the other is not; else it is "shared".

    Args:
        splits: name -> id -> sha256 of the image.
    """
    images = {name: {sha256: key for key, sha256 in rows.items()} for name, rows in splits.items()}
    found = []
    for a, b in itertools.combinations(images, 2):
        if not (both := images[a].keys() & images[b].keys()):
            continue
        rows = [key for key, sha256 in splits[a].items() if sha256 in both]
        other = sum(sha256 in both for sha256 in splits[b].values())
        kind = "by design" if _is_union(a, b, images) or _is_union(b, a, images) else (
            "leak" if a.startswith("train") != b.startswith("train") else "shared"
        )  # fmt: skip
        pairs = [[key, images[b][splits[a][key]]] for key in rows[:NAMED]]
        found.append({"splits": [a, b], "rows": [len(rows), other], "kind": kind, "first": pairs})
    return found


def _is_union(whole: str, part: str, images: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether `whole` is exactly what `part` and other splits within it hold together."""
    inside = [name for name, held in images.items() if name != whole and held.keys() < images[whole].keys()]
    together = set().union(*(images[name] for name in inside))
    return part in inside and len(inside) > 1 and together == images[whole].keys()


def warnings(facts: Mapping[str, Any]) -> list[str]:
    """Warnings for those who train on these shards, one line each."""
    lines = []
    for name, split in facts["splits"].items():
        if split["classes"] != list(facts["classes"]):
            first = named(split["classes"])
            lines.append(f"{name} was prepared with other classes ({first}): prepare it again, or remove its folder")
        if split["partial"] and split["official_rows"] is not None:
            lines.append(f"{name} is partial: {split['rows']} of the official {split['official_rows']} rows")
        elif split["partial"]:
            lines.append(f"{name} is partial: {split['rows']} rows, made of a part of the published images")
        if split["skipped"]:
            first = named((entry["why"] for entry in split["skipped"]), between="; ")
            lines.append(f"{name} lacks {len(split['skipped'])} damaged row(s), left out as asked for: {first}")
        if not (split["labelled"] or split["classified"]):
            lines.append(f"{name} has no labels: it cannot be trained on or scored")
        if split["unseen"]:
            lines.append(f"{name} never shows {len(split['unseen'])} class(es): {named(split['unseen'])}")
        if split["duplicates"]:
            same = split["duplicate_ids"][0]
            first, more = named(same, most=5, between=" = "), split["duplicates"] - len(same) + 1
            others = f" and {more} more" if more else ""
            lines.append(f"{name} holds {split['duplicates']} image(s) that it holds already: {first}{others}")
    for pair in facts["overlaps"]:
        (a, b), (rows, _) = pair["splits"], pair["rows"]
        if pair["kind"] == "leak":
            ids = [one if one == other else f"{one} = {other}" for one, other in pair["first"]]
            first = named([*ids, *[""] * (rows - len(ids))], most=3)
            lines.append(
                f"{rows} image(s) of {a} are in {b} too ({first}): a score on the one means nothing for a model "
                "trained on the other"
            )
    return lines


def sheet(shards: Shards) -> Any:
    """Rows evenly spread over a split, each image above its mask: RGB uint8 (H, W, 3)."""
    from pipelines.base.pictures import contact_sheet

    rows = spread_rows(len(shards), PICTURES)
    manifest = shards.manifest
    return contact_sheet((picture(shards, i) for i in rows), manifest.classes, manifest.palette, width=WIDTH)


def spread_rows(total: int, wanted: int) -> Sequence[int]:
    """At most `wanted` row numbers, evenly spread from the first to the last."""
    import numpy as np

    return [int(i) for i in np.unique(np.linspace(0, total - 1, min(wanted, total)).astype(int))]


def picture(shards: Shards, row: int) -> tuple[str, Any, Any]:
    """Id, image RGB uint8 (H, W, 3) and mask uint8 (H, W) or None of a row, read without copying its file."""
    from datasets.sample import decode_image, decode_mask

    stored = shards.peek(row)
    return stored["id"], decode_image(stored["image"]), decode_mask(stored["mask"]) if stored["mask"] else None
