"""The benchmarks by name."""

from collections.abc import Callable
from pathlib import Path

from datasets.exports.catalog import own_tree
from datasets.readers.ade20k import ade20k
from datasets.readers.camvid import camvid
from datasets.readers.camvid_full import camvid_full
from datasets.readers.cityscapes import cityscapes
from datasets.readers.coco import coco_voc
from datasets.readers.coco_instances import coco_instances
from datasets.readers.coco_panoptic import coco_panoptic
from datasets.readers.cocostuff import cocostuff10k, cocostuff164k
from datasets.readers.folder import folder
from datasets.readers.imagenet import imagenet
from datasets.readers.lip import lip
from datasets.readers.mapillary import mapillary
from datasets.readers.pascal_context import pascal_context59, pascal_context60
from datasets.readers.siftflow import siftflow
from datasets.readers.voc import voc12, voc12_aug
from datasets.sample import Benchmark

BENCHMARKS: dict[str, Callable[[Path], Benchmark]] = {
    "voc12": voc12,
    "voc12_aug": voc12_aug,
    "coco_voc": coco_voc,
    "coco_instances": coco_instances,
    "coco_panoptic": coco_panoptic,
    "cocostuff10k": cocostuff10k,
    "cocostuff164k": cocostuff164k,
    "ade20k": ade20k,
    "cityscapes": cityscapes,
    "pascal_context59": pascal_context59,
    "pascal_context60": pascal_context60,
    "camvid": camvid,
    "camvid_full": camvid_full,
    "siftflow": siftflow,
    "lip": lip,
    "mapillary": mapillary,
    "imagenet": imagenet,
    "folder": folder,
}


def tree_of(name: str) -> str:
    """The text that tells what the source of a benchmark must hold, and where it is published."""
    if name == "folder":  # its reader asks for the classes in the folder
        return own_tree()
    benchmark = BENCHMARKS[name](Path())
    return f"{benchmark.tree}\n\npublished at {benchmark.home}"
