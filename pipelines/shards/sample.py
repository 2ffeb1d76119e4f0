"""The bundled sample: drawn and sharded on first use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def sample_shards(output: Path) -> Path:
    """The bundled sample below `output`, generated and sharded unless it is there; returns the shards' folder."""
    from datasets.catalog import BENCHMARKS
    from datasets.manifest import MANIFEST
    from datasets.shapes import write_sample
    from pipelines.shards.writing import write_split

    raw, shards = output / "sample" / "release", output / "sample" / "shards"
    wanted = {"coco_voc": ["train", "val"], "voc12_aug": ["train"], "voc12": ["train", "val", "trainval"]}
    if all((shards / name / split / MANIFEST).exists() for name, splits in wanted.items() for split in splits):
        return shards
    print(f"generating the bundled sample in {raw}", flush=True)
    write_sample(raw)
    for name, splits in wanted.items():
        benchmark = BENCHMARKS[name](raw / "coco" if name == "coco_voc" else raw)
        for split in splits:
            manifest = write_split(benchmark, split, benchmark.index(split), str(shards / name), 0, lambda line: None)
            print(f"{'sample':>18}  {name}/{split}: {manifest.rows} rows", flush=True)
    return shards
