#!/usr/bin/env python
"""Turn a benchmark's original release into Parquet shards, once: the same command on a laptop and on a cluster.

Shows the tree that it expects beside the one that it found first; then reads, checks and remaps every label on all
cores (or nodes). Each file appears whole or not at all, a run that was killed continues where it stopped, and the
number of workers changes no byte. OUT/report.html says what the shards hold, for a person to look at.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.door import run, writable

if TYPE_CHECKING:
    from datasets.sample import Benchmark, Item

EXAMPLES = """\
examples:
  python -m pipelines.prepare voc12 --source /data/VOCdevkit --out data/voc12
  python -m pipelines.prepare coco_voc --source /data/coco --out s3://bucket/coco_voc --splits train
  python -m pipelines.prepare camvid --source s3://bucket/releases/camvid --out data/camvid   # fetched first
  python -m pipelines.prepare folder --source /data/mine --out data/mine        # images/, masks/, classes.yaml
  python -m pipelines.prepare camvid --tree                                     # the tree that it expects
"""


def main() -> None:
    from datasets.catalog import BENCHMARKS

    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help=f"one of {', '.join(BENCHMARKS)}")
    parser.add_argument("--source", help="folder of the original release, or its file://, s3:// or gs:// URI")
    parser.add_argument("--out", help="folder or URI (s3://, gs://) for the shards; each split becomes a folder in it")
    parser.add_argument("--splits", nargs="+", help="default: every split that the source holds")
    parser.add_argument("--workers", type=int, metavar="N", help="files written at once (default: all cores of the "
                        "machine or cluster; 0: one after the other in this process, without Ray)")  # fmt: skip
    parser.add_argument("--stage", type=Path, metavar="DIR", help="where the release of a bucket is kept (default: "
                        "$RELEASE_CACHE, else ~/.cache/context-heads/releases); all nodes must see it")  # fmt: skip
    parser.add_argument("--partial", action="store_true", help="accept a row count that is not the official one")
    parser.add_argument("--tree", action="store_true", help="show the tree that --source must hold; end")
    args = parser.parse_args()
    prepare_door(args)


def prepare_door(args: argparse.Namespace) -> None:
    """Run the parsed command line.

    Raises:
        RecipeError, DataError, SetupError: bad input.
    """
    from datasets.catalog import BENCHMARKS, tree_of
    from pipelines.recipe import RecipeError, nearest
    from pipelines.release import check_shared, drawn_tree, local_release
    from pipelines.report import write_report
    from pipelines.sharding import write_split

    if args.dataset not in BENCHMARKS:
        hint = nearest(args.dataset, BENCHMARKS)
        raise RecipeError(f"no benchmark {args.dataset!r}{hint} Known: {', '.join(BENCHMARKS)}")
    if args.tree:
        print(tree_of(args.dataset))
        return
    if args.source is None or args.out is None:
        raise RecipeError("--source DIR and --out URI are needed; --tree shows what DIR must hold")
    if args.workers is not None and args.workers < 0:
        raise RecipeError(f"--workers {args.workers}: 1 or more, or 0 for this process alone")
    source = local_release(args.source, args.stage)
    benchmark = BENCHMARKS[args.dataset](source)
    print(f"{benchmark.name}: expects\n{benchmark.tree}\n\nfound\n{drawn_tree(source)}\n", flush=True)
    found, absent = index_splits(benchmark, args.splits, args.partial)
    check_replaced(benchmark.name, found, args.out)
    if "://" not in args.out:
        writable("--out", Path(args.out))
    with started(args.workers) as workers:
        if workers:
            check_shared(source, args.out)
        for split, items in found.items():
            write_split(benchmark, split, items, args.out, workers, say)
    summarise(write_report(benchmark, args.out), absent)


def say(line: str) -> None:
    """Print a line at once, into a pipe too."""
    print(line, flush=True)


@contextlib.contextmanager
def started(workers: int | None) -> Iterator[int]:
    """Ray, unless nobody needs it; gives the number of files to write at once."""
    from pipelines.cluster import machine, ray_cluster, totals
    from pipelines.recipe import Workers

    if workers == 0:
        yield 0
        return
    with ray_cluster(Workers(count=1, gpus=0)):
        yield workers or (totals()["cores"] if os.environ.get("RAY_ADDRESS") else machine()[0])


def index_splits(
    benchmark: Benchmark, wanted: list[str] | None, partial: bool
) -> tuple[dict[str, list[Item]], dict[str, str]]:
    """Rows of the wanted splits, all checked before the first is written; and why others are left out.

    Raises:
        RecipeError: an unknown split, or a row count that is not the official one.
        DataError: files are missing.
    """
    from datasets.sample import DataError
    from pipelines.recipe import RecipeError, nearest

    if unknown := [s for s in wanted or [] if s not in benchmark.splits]:
        raise RecipeError(f"{benchmark.name} has no split {unknown[0]!r}{nearest(unknown[0], benchmark.splits)} "
                          f"Known: {', '.join(benchmark.splits)}")  # fmt: skip
    found: dict[str, list[Item]] = {}
    absent: dict[str, str] = {}
    for split in wanted or benchmark.splits:
        official = benchmark.splits[split]
        try:
            items = benchmark.index(split)
        except DataError as error:
            absent[split] = str(error).replace(f"\n{benchmark.tree}", "").split("Expected is this folder")[0].strip()
            say(f"{split:>11}: left out. {absent[split]}")
            continue
        say(f"{split:>11}: {len(items)} rows found, official {official if official is not None else 'count unknown'}")
        if official not in (None, len(items)) and not partial:
            raise RecipeError(
                f"{benchmark.name} {split} has {len(items)} rows, the release has {official}. Complete the source (it "
                f"is published at {benchmark.home}), or accept it with --partial (the manifest says so)."
            )
        if not items:
            raise RecipeError(f"{benchmark.name} {split} is empty: nothing to write")
        found[split] = items
    if absent and (wanted or not found or not benchmark.home):  # one's own folder has the splits that it names
        whole = "no split" if not found else f"not all of {', '.join(wanted or benchmark.splits)}"
        reasons = "\n".join(f"{split}: {why}" for split, why in absent.items())
        where = f"\nThe release is published at {benchmark.home}" if benchmark.home else ""
        raise DataError(f"the source holds {whole} of {benchmark.name}. {reasons}{where}")
    return found, absent


def check_replaced(name: str, splits: Iterable[str], out: str) -> None:
    """Shards of another benchmark are not written over.

    Args:
        name: of the benchmark.
        splits: those that will be written below `out`.

    Raises:
        RecipeError: the place of one holds another benchmark's.
    """
    from datasets.manifest import MANIFEST, read_manifest
    from datasets.sample import DataError
    from datasets.storage import below, exists, locate
    from pipelines.recipe import RecipeError

    for split in splits:
        system, path = locate(uri := below(out, split))
        if not exists(system, f"{path}/{MANIFEST}"):
            continue
        try:
            there = read_manifest(uri).benchmark
        except DataError:  # of another schema, or damaged: to be made anew
            continue
        if there != name:
            raise RecipeError(f"{uri} holds shards of {there}, not of {name}: give another --out, or remove it")


def summarise(facts: Mapping[str, Any], absent: Mapping[str, str]) -> None:
    """Print what the report says, in a line per split and per warning."""
    say(f"\n{'split':>11}  {'rows':>7}  {'official':>8}  never seen  twice  hash")
    for name, split in facts["splits"].items():
        official = "–" if split["official_rows"] is None else str(split["official_rows"])
        say(f"{name:>11}  {split['rows']:>7}  {official:>8}  {len(split['unseen']):>10}  {split['duplicates']:>5}  "
            f"{split['hash'][:16]}")  # fmt: skip
    for pair in facts["overlaps"]:
        (a, b), (rows, _) = pair["splits"], pair["rows"]
        if pair["kind"] != "leak":
            say(f"{rows} image(s) of {a} are in {b} too: {pair['kind']}")
    for line in facts["warnings"]:
        say(f"WARNING  {line}")
    for split, why in absent.items():
        say(f"left out: {split}. {why.splitlines()[0].rstrip(':')}")
    say(f"look at {facts['path']}")


def sample_shards(output: Path) -> Path:
    """The bundled sample below `output`, generated and sharded unless it is there; returns the shards' folder."""
    from datasets.catalog import BENCHMARKS
    from datasets.shapes import write_sample
    from pipelines.sharding import write_split

    raw, shards = output / "sample" / "release", output / "sample" / "shards"
    wanted = {"coco_voc": ["train", "val"], "voc12_aug": ["train"], "voc12": ["train", "val", "trainval"]}
    if all((shards / name / split / "manifest.json").exists() for name, splits in wanted.items() for split in splits):
        return shards
    print(f"generating the bundled sample in {raw}", flush=True)
    write_sample(raw)
    for name, splits in wanted.items():
        benchmark = BENCHMARKS[name](raw / "coco" if name == "coco_voc" else raw)
        for split in splits:
            manifest = write_split(benchmark, split, benchmark.index(split), str(shards / name), 0, lambda line: None)
            print(f"{'sample':>18}  {name}/{split}: {manifest.rows} rows", flush=True)
    return shards


if __name__ == "__main__":
    run(main, resumes=True)
