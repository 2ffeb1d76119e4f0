#!/usr/bin/env python
"""Turn a benchmark's original release into Parquet shards, once.

Checks the release against the expected tree first, then reads, checks and remaps every label on all cores (or nodes)
through Ray Data. Each file appears whole or not at all; a run that was killed continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.door import run

if TYPE_CHECKING:
    from datasets.sample import Benchmark, Item
    from datasets.shards import Manifest

EXAMPLES = """\
examples:
  python -m pipelines.prepare voc12 --source /data/VOCdevkit --out data/voc12
  python -m pipelines.prepare coco_voc --source /data/coco --out s3://bucket/coco_voc --splits train
  python -m pipelines.prepare folder --source /data/mine --out data/mine        # images/, masks/, classes.yaml
  python -m pipelines.prepare camvid --tree                                     # the tree that it expects
"""


def main() -> None:
    from datasets.catalog import BENCHMARKS

    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help=f"one of {', '.join(BENCHMARKS)}")
    parser.add_argument("--source", type=Path, help="folder of the original release")
    parser.add_argument("--out", help="folder or URI (s3://, gs://) for the shards; each split becomes a folder in it")
    parser.add_argument("--splits", nargs="+", help="default: every split that the source holds")
    parser.add_argument("--partial", action="store_true", help="accept a row count that is not the official one")
    parser.add_argument("--tree", action="store_true", help="show the tree that --source must hold; end")
    args = parser.parse_args()
    prepare_door(args)


def prepare_door(args: argparse.Namespace) -> None:
    """Run the parsed command line.

    Raises:
        RecipeError, DataError: bad input.
    """
    from datasets.catalog import BENCHMARKS
    from pipelines.cluster import ray_cluster
    from pipelines.recipe import RecipeError, Workers, nearest

    if args.dataset not in BENCHMARKS:
        hint = nearest(args.dataset, BENCHMARKS)
        raise RecipeError(f"no benchmark {args.dataset!r}{hint} Known: {', '.join(BENCHMARKS)}")
    if args.tree:
        print(BENCHMARKS[args.dataset](args.source or Path()).tree)
        return
    if args.source is None or args.out is None:
        raise RecipeError("--source DIR and --out URI are needed; --tree shows what DIR must hold")
    source = args.source.expanduser().resolve()
    if not source.is_dir():
        raise RecipeError(f"--source {source} is no folder; give the folder of the unpacked release")
    benchmark = BENCHMARKS[args.dataset](source)
    found = index_splits(benchmark, args.splits, args.partial)
    with ray_cluster(Workers(count=1, gpus=0)):
        for split, items in found.items():
            write_split(benchmark, split, items, args.out)


def index_splits(benchmark: Benchmark, wanted: list[str] | None, partial: bool) -> dict[str, list[Item]]:
    """Rows of the wanted splits, all checked before the first is written.

    Raises:
        RecipeError: an unknown split, or a row count that is not the official one.
        DataError: files are missing.
    """
    from datasets.sample import DataError
    from pipelines.recipe import RecipeError, nearest

    if unknown := [s for s in wanted or [] if s not in benchmark.splits]:
        raise RecipeError(f"{benchmark.name} has no split {unknown[0]!r}{nearest(unknown[0], benchmark.splits)} "
                          f"Known: {', '.join(benchmark.splits)}")  # fmt: skip
    print(f"{benchmark.name}: expects\n{benchmark.tree}\n")
    found: dict[str, list[Item]] = {}
    for split in wanted or benchmark.splits:
        official = benchmark.splits[split]
        try:
            items = benchmark.index(split)
        except DataError as error:
            if wanted:
                raise
            print(f"{split:>10}: left out, the source does not hold it ({str(error).splitlines()[0]})")
            continue
        print(f"{split:>10}: {len(items)} rows found, official {official if official is not None else 'count unknown'}")
        if official not in (None, len(items)) and not partial:
            raise RecipeError(
                f"{benchmark.name} {split} has {len(items)} rows, the release has {official}. Complete the source, or "
                "accept it with --partial (the manifest says so)."
            )
        if not items:
            raise RecipeError(f"{benchmark.name} {split} is empty: nothing to write")
        found[split] = items
    if not found:
        raise RecipeError(f"the source holds no split of {benchmark.name}; it expects\n{benchmark.tree}")
    return found


def write_split(benchmark: Benchmark, split: str, items: list[Item], out: str, quiet: bool = False) -> Manifest:
    """Write one split through Ray Data: a task per file, any number of tasks, the same bytes."""
    import ray

    from datasets.shards import plan_files, write_manifest
    from pipelines.preflight import locate

    uri = locate(out if "://" in out else str(Path(out).expanduser().resolve()), split)
    groups = plan_files(items)
    parts = [ray.put(group) for group in groups]
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    data = ray.data.from_items([{"index": i} for i in range(len(parts))], override_num_blocks=len(parts)).map(
        write_one,  # type: ignore[arg-type]
        fn_kwargs={"uri": uri, "parts": parts, "benchmark": benchmark, "split": split},
    )
    records, began = {}, time.monotonic()
    for row in data.iter_rows():
        record = json.loads(row["record"])
        records[row["index"]] = record
        if not quiet:
            progress(split, list(records.values()), len(items), time.monotonic() - began)
    manifest = write_manifest(
        uri,
        benchmark,
        split,
        [records[i] for i in range(len(parts))],
        benchmark.splits[split] not in (None, len(items)),
    )
    if not quiet:
        print(f"{split:>10}: {manifest.rows} rows in {uri}, hash {manifest.hash[:16]}")
    return manifest


def write_one(row: dict[str, Any], uri: str, parts: list[Any], benchmark: Benchmark, split: str) -> dict[str, Any]:
    """The task: read, check and write the rows of one file."""
    import ray

    from datasets.shards import write_part

    record = write_part(uri, int(row["index"]), ray.get(parts[row["index"]]), benchmark, split)
    return {"index": int(row["index"]), "record": json.dumps(record)}


def progress(split: str, records: list[dict[str, Any]], total: int, seconds: float) -> None:
    """A line for each file written."""
    rows, size = sum(r["rows"] for r in records), sum(r["bytes"] for r in records)
    rate = rows / max(seconds, 1e-9)
    kept = " (was there already)" if records[-1].get("kept") else ""
    print(f"{split:>10}: {rows}/{total} rows  {size / 1e6:.1f} MB  {rate:.0f} rows/s  ETA {(total - rows) / rate:.0f} s"
          f"  {records[-1]['name']}{kept}", flush=True)  # fmt: skip


def sample_shards(output: Path) -> Path:
    """The bundled sample below `output`, generated and sharded unless it is there; returns the shards' folder."""
    from datasets.catalog import BENCHMARKS
    from datasets.shapes import write_sample

    raw, shards = output / "sample" / "release", output / "sample" / "shards"
    wanted = {"coco_voc": ["train", "val"], "voc12_aug": ["train"], "voc12": ["train", "val", "trainval"]}
    if all((shards / name / split / "manifest.json").exists() for name, splits in wanted.items() for split in splits):
        return shards
    print(f"generating the bundled sample in {raw}", flush=True)
    write_sample(raw)
    for name, splits in wanted.items():
        benchmark = BENCHMARKS[name](raw / "coco" if name == "coco_voc" else raw)
        for split in splits:
            manifest = write_split(benchmark, split, benchmark.index(split), str(shards / name), quiet=True)
            print(f"{'sample':>18}  {name}/{split}: {manifest.rows} rows", flush=True)
    return shards


if __name__ == "__main__":
    run(main)
