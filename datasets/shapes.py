"""The bundled sample: drawn pictures in the real layouts of COCO 2017 and VOC 2012, made from only a seed."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as rle_api

from datasets.drawing import Thing, draw_scene
from datasets.readers.coco import VOC_NAME
from datasets.readers.labels import colour_map
from datasets.readers.voc import CLASSES
from datasets.sample import IGNORE, DataError
from datasets.storage import temporary_name

VERSION = 1
MARKER = "sample.json"
CATEGORIES = {
    "person": 1, "bicycle": 2, "car": 3, "motorcycle": 4, "airplane": 5, "bus": 6, "train": 7, "boat": 9, "bird": 16,
    "cat": 17, "dog": 18, "horse": 19, "sheep": 20, "cow": 21, "bottle": 44, "chair": 62, "couch": 63,
    "potted plant": 64, "dining table": 67, "tv": 72,
    "truck": 8, "zebra": 24, "umbrella": 28, "cup": 47, "banana": 52, "clock": 85,
}  # fmt: skip
"""COCO's own ids; the last line's categories are not among VOC's classes."""
OTHERS = [name for name in CATEGORIES if name not in VOC_NAME]


def write_sample(
    root: Path,
    seed: int = 0,
    *,
    coco: int = 800,
    coco_val: int = 40,
    train: int = 120,
    aug: int = 240,
    val: int = 60,
    size: tuple[int, int] = (96, 128),
) -> None:
    """Write `root/coco` and `root/VOCdevkit`, or keep them where exactly this sample is already complete.

    Args:
        root: the folder to make.
        seed: of all pictures; one seed and one set of counts give the same bytes.
        coco: images of COCO's train split.
        coco_val: images of COCO's val split.
        train: images of VOC's train list.
        aug: images of VOC's trainaug list, including those of train.
        val: images of VOC's val list.
        size: least and greatest height and width, pixels.

    Raises:
        DataError: the folder holds something else.
    """
    root = Path(root).absolute()
    counts = {"coco": coco, "coco_val": coco_val, "train": train, "aug": aug, "val": val, "size": list(size)}
    if aug < train:
        raise DataError(f"aug is {aug}, train {train}; trainaug holds the images of train, so aug is train or more")
    marker = json.dumps({"version": VERSION, "seed": seed} | counts)

    def write(draft: Path) -> None:
        _write_coco(draft / "coco", seed, {"train": coco, "val": coco_val}, size)
        _write_voc(draft / "VOCdevkit/VOC2012", seed, {"train": train, "val": val, "aug": aug - train}, size)

    write_whole(root, marker, write)


def write_whole(root: Path, marker: str, write: Callable[[Path], None]) -> None:
    """Write a folder whole or not at all, or keep it where exactly this one is already complete.

    Args:
        root: the folder to make, absolute.
        marker: what is in it, in a line of its own file.
        write: writes the content to an empty place.

    Raises:
        DataError: the folder holds something else.
    """
    if _is_written(root, marker):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    draft = root.parent / temporary_name(root.name)
    try:
        write(draft)
        (draft / MARKER).write_text(marker)
        _rename(draft, root, marker)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _is_written(root: Path, marker: str) -> bool:
    if not root.exists() or not any(root.iterdir()):
        return False
    found = (root / MARKER).read_text() if (root / MARKER).is_file() else "no sample"
    if found != marker:
        raise DataError(f"{root} holds {found}, not {marker}; name another folder or remove this one")
    return True


def _rename(draft: Path, root: Path, marker: str) -> None:
    try:
        draft.rename(root)
    except OSError:  # another process was first
        if not _is_written(root, marker):
            raise


def _scenes(
    seed: int, domain: str, count: int, size: tuple[int, int], start: int
) -> Iterator[tuple[np.ndarray, list[Thing]]]:
    """Pictures of 1-3 objects and a few dull ones; the first object's class cycles, so that every class occurs."""
    for i in range(start, start + count):
        rng = np.random.default_rng([seed, len(domain), i])
        numbers = [i % 20 + 1, *rng.integers(1, 21, rng.integers(0, 3)), *[0] * rng.integers(1, 4)]
        crowd = int(rng.integers(1, 21)) if domain == "coco" and i % 10 == 3 else 0
        shape = (int(rng.integers(size[0], size[1] + 1)), int(rng.integers(size[0], size[1] + 1)))
        yield draw_scene(rng, shape, [int(n) for n in numbers], domain, crowd)


def _write_coco(folder: Path, seed: int, counts: dict[str, int], size: tuple[int, int]) -> None:
    start = 1
    for split, count in counts.items():
        (folder / f"{split}2017").mkdir(parents=True)
        images, notes = [], []
        for key, (image, things) in enumerate(_scenes(seed, "coco", count, size, start), start):
            name = f"{key:012d}.jpg"
            write_jpeg(folder / f"{split}2017" / name, image)
            images.append({"id": key, "file_name": name, "height": image.shape[0], "width": image.shape[1]})
            notes += [_annotation(thing, key, key * 100 + n) for n, thing in enumerate(things)]
        start += count
        categories = [{"id": number, "name": name} for name, number in CATEGORIES.items()]
        content = {"images": images, "annotations": notes, "categories": categories}
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))


def _annotation(thing: Thing, image: int, key: int) -> dict[str, Any]:
    """COCO's record of an object: crowds have plain run lengths, every seventh object compressed ones."""
    voc_name = CLASSES[thing.number]
    name = next((c for c, v in VOC_NAME.items() if v == voc_name), OTHERS[key % len(OTHERS)])
    rle = rle_api.encode(np.asfortranarray(thing.mask.astype(np.uint8)))
    segmentation: Any = [np.round(thing.polygon.reshape(-1), 2).tolist()]
    if thing.crowd:
        segmentation = {"size": rle["size"], "counts": run_lengths(thing.mask)}
    elif key % 7 == 0:
        segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
    return {
        "id": key, "image_id": image, "category_id": CATEGORIES[name], "iscrowd": int(thing.crowd),
        "segmentation": segmentation, "area": float(rle_api.area(rle)), "bbox": rle_api.toBbox(rle).tolist(),
    }  # fmt: skip


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's plain run lengths of a bool mask (H, W): columns first, beginning with a run of zeros."""
    flat = np.concatenate([[False], mask.reshape(-1, order="F")])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()


def _write_voc(folder: Path, seed: int, counts: dict[str, int], size: tuple[int, int]) -> None:
    for name in ("JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    lists: dict[str, list[str]] = {}
    start = 1
    for split, count in counts.items():
        lists[split] = [f"{2007 + i % 6}_{i:06d}" for i in range(start, start + count)]
        for stem, (image, things) in zip(lists[split], _scenes(seed, "voc", count, size, start), strict=True):
            write_jpeg(folder / "JPEGImages" / f"{stem}.jpg", image)
            if split != "aug":
                _write_palette_png(folder / "SegmentationClass" / f"{stem}.png", _mask(things, border=True))
            if split != "val":
                mask = Image.fromarray(_mask(things, border=False))
                mask.save(folder / "SegmentationClassAug" / f"{stem}.png")
        start += count
    lists["trainval"], lists["trainaug"] = lists["train"] + lists["val"], lists["train"] + lists.pop("aug")
    for name, stems in lists.items():
        (folder / "ImageSets/Segmentation" / f"{name}.txt").write_text("\n".join(sorted(stems)) + "\n")


def _mask(things: list[Thing], border: bool) -> np.ndarray:
    """Paint the things in the order drawn; VOC's border is 255, one pixel on either side of each outline."""
    mask = np.zeros(things[0].mask.shape, np.uint8)
    kernel = np.ones((3, 3), np.uint8)
    for thing in things:
        mask[thing.mask] = thing.number
        if border and thing.number:
            filled = thing.mask.astype(np.uint8)
            mask[cv2.dilate(filled, kernel) != cv2.erode(filled, kernel)] = IGNORE
    return mask


def _write_palette_png(path: Path, mask: np.ndarray) -> None:
    image = Image.fromarray(mask).convert("P")
    image.putdata(mask.reshape(-1).tolist())
    image.putpalette([channel for colour in colour_map(256) for channel in colour])
    image.save(path)


def write_jpeg(path: Path, image: np.ndarray) -> None:
    """Write an image uint8 (H, W, 3) RGB."""
    path.write_bytes(cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
