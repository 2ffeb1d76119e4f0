"""The bundled sample of the other tasks: scenes with objects, stuff and one class, in COCO's layouts and by folder.

The objects are the drawn ones of `drawing.py`, in front of the stuff of `grounds.py`; there are few kinds, so that a
tiny network learns them in minutes. Instances and panoptic segments are labels of the same images.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle_api

from datasets.drawing import draw_scene
from datasets.grounds import STUFF, VOID, draw_ground
from datasets.readers import coco_categories
from datasets.readers.coco_categories import THINGS
from datasets.readers.labels import read_image
from datasets.sample import Benchmark, Item, Sample, Segment
from datasets.shapes import write_jpeg, write_whole

VERSION = 1
KINDS = {"airplane": 1, "boat": 4, "car": 7, "cow": 10, "horse": 13, "potted plant": 16}
"""COCO's name of a kind of object -> the number whose outline, texture and hue it has in `drawing.py`."""
LEAST_PIXELS = 24
"""Of an object that is in view; of less there is no record, and its pixels are of no segment."""
CROWD_EVERY = 10
TREE = """\
DIR/
  train/KIND/ID.jpg
  val/KIND/ID.jpg"""


@dataclass(frozen=True)
class Region:
    """An object, or a kind of stuff, as it is seen in a scene.

    Args:
        name: COCO's.
        crowd: whether it is a group under one outline.
        mask: bool (H, W).
    """

    name: str
    crowd: bool
    mask: np.ndarray


def write_task_sample(
    root: Path,
    seed: int = 0,
    *,
    train: int = 320,
    val: int = 60,
    size: tuple[int, int] = (72, 112),
    class_train: int = 360,
    class_val: int = 120,
    class_size: tuple[int, int] = (56, 80),
) -> None:
    """Write `root/coco` (instances and panoptic) and `root/classes`, or keep them where exactly these are complete.

    Args:
        root: the folder to make.
        seed: of all pictures; one seed and one set of counts give the same bytes.
        train, val: scenes of the two splits.
        size: least and greatest height and width of a scene, pixels.
        class_train, class_val: images of one object.
        class_size: their least and greatest height and width, pixels.

    Raises:
        DataError: the folder holds something else.
    """
    counts = {"train": train, "val": val, "class_train": class_train, "class_val": class_val}
    sizes = {"size": list(size), "class_size": list(class_size)}
    marker = json.dumps({"tasks": VERSION, "seed": seed} | counts | sizes)

    def write(draft: Path) -> None:
        _write_coco(draft / "coco", seed, {"train": train, "val": val}, size)
        _write_classes(draft / "classes", seed, {"train": class_train, "val": class_val}, class_size)

    write_whole(Path(root).absolute(), marker, write)


def _scene(
    rng: np.random.Generator, size: tuple[int, int], names: list[str], crowd: str
) -> tuple[np.ndarray, list[Region]]:
    """An image uint8 (H, W, 3), and what is seen in it: stuff, then objects; no two share a pixel."""
    shape = (int(rng.integers(size[0], size[1] + 1)), int(rng.integers(size[0], size[1] + 1)))
    ground, kinds = draw_ground(rng, shape)
    numbers = [KINDS[name] for name in names]
    image, things = draw_scene(rng, shape, numbers, "coco", KINDS.get(crowd, 0), ground)
    owner = np.full(shape, VOID, np.int16)
    for place, thing in enumerate(things):
        owner[thing.mask] = place
    free = owner == VOID
    regions = [Region(name, False, free & (kinds == place)) for place, name in enumerate(STUFF)]
    by_number = {number: name for name, number in KINDS.items()}
    regions += [Region(by_number[t.number], t.crowd, owner == place) for place, t in enumerate(things)]
    return image, [region for region in regions if region.mask.sum() >= LEAST_PIXELS]


def _scenes(seed: int, count: int, size: tuple[int, int], start: int) -> Iterator[tuple[np.ndarray, list[Region]]]:
    """Scenes of 1-3 objects, some with a crowd; the first object's kind cycles, so that every kind occurs."""
    names = list(KINDS)
    for i in range(start, start + count):
        rng = np.random.default_rng([seed, VERSION, i])
        chosen = [names[i % len(names)], *rng.choice(names, rng.integers(0, 3))]
        yield _scene(rng, size, list(map(str, chosen)), str(rng.choice(names)) if i % CROWD_EVERY == 0 else "")


def _write_coco(folder: Path, seed: int, counts: dict[str, int], size: tuple[int, int]) -> None:
    start = 1
    (folder / "annotations").mkdir(parents=True)
    for split, count in counts.items():
        pngs = folder / "annotations" / f"panoptic_{split}2017"
        for place in (folder / f"{split}2017", pngs):
            place.mkdir()
        images, objects, segments = [], [], []
        for key, (image, regions) in enumerate(_scenes(seed, count, size, start), start):
            stem = f"{key:012d}"
            write_jpeg(folder / f"{split}2017" / f"{stem}.jpg", image)
            height, width = image.shape[:2]
            images.append({"id": key, "file_name": f"{stem}.jpg", "height": height, "width": width})
            entries = [_entry(region, key * 100 + n) for n, region in enumerate(regions)]
            objects += [entry | {"image_id": key} for entry in entries if "segmentation" in entry]
            infos = [{k: v for k, v in entry.items() if k != "segmentation"} for entry in entries]
            segments.append({"image_id": key, "file_name": f"{stem}.png", "segments_info": infos})
            _write_ids(pngs / f"{stem}.png", regions, [entry["id"] for entry in entries])
        start += count
        for kind, notes in (("instances", objects), ("panoptic", segments)):
            content = {"images": images, "annotations": notes, "categories": _categories(kind)}
            (folder / "annotations" / f"{kind}_{split}2017.json").write_text(json.dumps(content))


def _entry(region: Region, key: int) -> dict[str, Any]:
    """COCO's record of a region; only a thing's has its outline."""
    rle = rle_api.encode(np.asfortranarray(region.mask, np.uint8))
    number, _ = (THINGS | coco_categories.STUFF)[region.name]
    outline = {"segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}} if region.name in THINGS else {}
    return outline | {
        "id": key, "category_id": number, "iscrowd": int(region.crowd), "area": int(rle_api.area(rle)),
        "bbox": rle_api.toBbox(rle).tolist(),
    }  # fmt: skip


def _categories(kind: str) -> list[dict[str, Any]]:
    names = THINGS if kind == "instances" else THINGS | coco_categories.STUFF
    return [{"id": number, "name": name} for name, (number, _) in names.items()]


def _write_ids(path: Path, regions: list[Region], ids: list[int]) -> None:
    """COCO's panoptic PNG: a segment's id is R + 256 G + 65536 B, 0 where there is none."""
    packed = np.zeros(regions[0].mask.shape, np.int32)
    for region, key in zip(regions, ids, strict=True):
        packed[region.mask] = key
    Image.fromarray(np.stack([packed >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)).save(path)


def _write_classes(folder: Path, seed: int, counts: dict[str, int], size: tuple[int, int]) -> None:
    start, names = 1, list(KINDS)
    for split, count in counts.items():
        for name in names:
            (folder / split / name).mkdir(parents=True)
        for i in range(start, start + count):
            name = names[i % len(names)]
            image, _ = _scene(np.random.default_rng([seed, VERSION, len("classes"), i]), size, [name], "")
            write_jpeg(folder / split / name / f"{i:06d}.jpg", image)
        start += count


def classes(source: Path) -> Benchmark:
    """Images of one object, in a folder of its kind's name; the class is a segment that is the whole image."""
    splits: dict[str, int | None] = {"train": None, "val": None}
    palette = tuple(THINGS[name][1] for name in KINDS)
    index = partial(_index_classes, Path(source))
    return Benchmark("classes", tuple(KINDS), palette, splits, TREE, index, read_class, "")


def _index_classes(source: Path, split: str) -> list[Item]:
    files = sorted((source / split).glob("*/*.jpg"), key=lambda path: path.stem)
    return [Item(path.stem, str(path), list(KINDS).index(path.parent.name)) for path in files]


def read_class(item: Item) -> Sample:
    """Read an image and its class; there is no mask.

    Raises:
        DataError: a damaged image.
    """
    data, (height, width) = read_image(item.image)
    rle = rle_api.encode(np.ones((height, width), np.uint8, order="F"))["counts"]
    whole = Segment(int(item.label), False, (0.0, 0.0, float(width), float(height)), rle)  # type: ignore[call-overload]
    return Sample(item.id, data, None, (whole,))
