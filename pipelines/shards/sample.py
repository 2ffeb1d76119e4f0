"""The bundled sample: drawn and sharded on first use, each task's part when it is asked for."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets.sample import Benchmark

MASKS: dict[str, tuple[str, ...]] = {
    "coco_voc": ("train", "val"),
    "voc12_aug": ("train",),
    "voc12": ("train", "val", "trainval"),
}
TASKS: dict[str, tuple[str, ...]] = dict.fromkeys(("coco_instances", "coco_panoptic", "classes"), ("train", "val"))
"""The sample's benchmarks and their splits: of segmentation, and of the other tasks."""


def sample_shards(output: Path, wanted: Collection[str] = ()) -> Path:
    """The bundled sample below `output`, generated and sharded unless it is there; returns the shards' folder.

    Args:
        output: the folder of runs.
        wanted: splits such as `coco_instances/train`. Of the other tasks' benchmarks only the named ones are made;
            segmentation's are all made, unless all named splits are of other tasks.
    """
    named = {name.partition("/")[0] for name in wanted}
    if not named or named - set(TASKS):
        _shard(output, "release", MASKS)
    if tasks := {name: splits for name, splits in TASKS.items() if name in named}:
        _shard(output, "release_tasks", tasks)
    return output / "sample" / "shards"


def _shard(output: Path, kind: str, wanted: dict[str, tuple[str, ...]]) -> None:
    """Draw a release and shard these splits of it, unless all are there."""
    from datasets.manifest import MANIFEST
    from datasets.shapes import write_sample
    from datasets.task_sample import write_task_sample
    from pipelines.shards.writing import write_split

    raw, shards = output / "sample" / kind, output / "sample" / "shards"
    if all((shards / name / split / MANIFEST).exists() for name, splits in wanted.items() for split in splits):
        return
    print(f"generating the bundled sample in {raw}", flush=True)
    (write_sample if wanted is MASKS else write_task_sample)(raw)
    for name, splits in wanted.items():
        benchmark = _benchmark(name, raw)
        for split in splits:
            manifest = write_split(benchmark, split, benchmark.index(split), str(shards / name), 0, lambda line: None)
            print(f"{'sample':>18}  {name}/{split}: {manifest.rows} rows", flush=True)


def _benchmark(name: str, raw: Path) -> Benchmark:
    """A benchmark of the sample's release."""
    from datasets.catalog import BENCHMARKS
    from datasets.task_sample import classes

    if name == "classes":
        return classes(raw / name)
    return BENCHMARKS[name](raw / "coco" if name.startswith("coco_") else raw)
