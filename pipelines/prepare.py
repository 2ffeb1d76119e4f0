#!/usr/bin/env python
"""Turn a benchmark's original release into Parquet shards, once: the same command on a laptop and on a cluster.

First shows the tree that it expects and the one that it found; then reads, checks and remaps every label on all cores
(or nodes). Each file appears whole or not at all, the same command continues a killed run, and the number of workers
changes no byte. OUT/report.html shows what the shards hold.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.base.door import run, writable
from pipelines.shards.splits import check_replaced, index_splits, say, summarise

if TYPE_CHECKING:
    from datasets.exports.records import Own

EXAMPLES = """\
examples:
  python -m pipelines.prepare voc12 --source /data/VOCdevkit --out data/voc12
  python -m pipelines.prepare coco_voc --source /data/coco --out s3://bucket/coco_voc --splits train
  python -m pipelines.prepare camvid --source s3://bucket/releases/camvid --out data/camvid   # fetched first
  python -m pipelines.prepare folder --source /data/mine --out data/mine --val 0.1   # images/, masks/, classes.yaml
  python -m pipelines.prepare folder --source /data/export --dry-run             # which classes labels of a tool hold
  python -m pipelines.prepare folder --source /data/aerial --out data/aerial --tile 1024    # cut large images
  python -m pipelines.prepare camvid --tree                                     # the tree that it expects
"""
ACCEPT = {
    "--partial": "a row count that is not the official one, and with it classes without a pixel",
    "--allow-unpaired": "folder: images without a mask and masks without an image; they are left out and named",
    "--allow-outside": "folder: outlines that reach beyond their image; they are cut at its edge",
    "--allow-unseen": "classes without a pixel in train",
    "--allow-ignored": "a split of which more than half of the pixels are ignored",
    "--skip-damaged": "rows whose image or mask is damaged; they are left out and named",
}

OWN = ("labels", "unlabelled", "unannotated", "line_width", "val", "tile", "dry_run", "allow_unpaired", "allow_outside")
"""The options of `folder`."""


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
    accepting(parser.add_argument_group("accept what is otherwise an error; report and manifest say so"))
    own_options(parser.add_argument_group("your own folder, whatever tool labelled it (`folder --tree` shows formats)"))
    parser.add_argument("--tree", action="store_true", help="show the tree that --source must hold; end")
    args = parser.parse_args()
    prepare_door(args)


def own_options(group: argparse._ArgumentGroup) -> None:
    """Add the options of the benchmark `folder`."""
    from datasets.exports.catalog import NAMES
    from datasets.exports.records import UNANNOTATED, UNLABELLED

    group.add_argument("--labels", choices=NAMES, help="the format of the labels (default: recognised by the files)")
    group.add_argument("--unlabelled", choices=UNLABELLED, help="pixels without a label are a class background "
                       "(default), or ignored")  # fmt: skip
    group.add_argument("--unannotated", choices=UNANNOTATED, help="images without an annotation are refused (default), "
                       "kept as images without an object (empty), or left out (drop)")  # fmt: skip
    group.add_argument(
        "--line-width", type=int, metavar="PIXELS", help="draw lines so wide (default: they are refused)"
    )
    group.add_argument("--val", type=float, default=0.0, metavar="SHARE", help="make a split val of this share of the "
                       "images, such as 0.1; their ids' hashes decide, the same each time")  # fmt: skip
    group.add_argument("--tile", type=int, metavar="N", help="cut images of more than N pixels a side into equal parts "
                       "of at most N, without overlap")  # fmt: skip
    group.add_argument("--dry-run", action="store_true", help="read all labels, list classes, splits and what was "
                       "decided; write nothing")  # fmt: skip


def accepting(group: argparse._ArgumentGroup) -> None:
    """Add the options that accept what is otherwise an error."""
    for option, text in ACCEPT.items():
        group.add_argument(option, action="store_true", help=text)


def prepare_door(args: argparse.Namespace) -> None:
    """Run the parsed command line.

    Raises:
        InputError, DataError, SetupError: bad input.
    """
    from datasets.catalog import BENCHMARKS, tree_of
    from pipelines.cluster.nodes import check_shared
    from pipelines.shards.listing import show_own
    from pipelines.shards.release import drawn_tree, local_release
    from pipelines.shards.report import reported
    from pipelines.shards.writing import Rules, write_split

    check_words(args)
    if args.tree:
        print(tree_of(args.dataset))
        return
    source = local_release(args.source, args.stage)
    own = own_folder(args, source) if args.dataset == "folder" else None
    benchmark = own.benchmark if own else BENCHMARKS[args.dataset](source)
    print(f"{benchmark.name}: expects\n{benchmark.tree}\n\nfound\n{drawn_tree(source)}\n", flush=True)
    if own:
        show_own(own)
    found, absent = index_splits(benchmark, args.splits, args.partial)
    if args.dry_run:
        print("nothing was written (--dry-run)")
        return
    check_replaced(benchmark.name, found, args.out)
    if "://" not in args.out:
        writable("--out", Path(args.out))
    ignored = args.allow_ignored or args.unlabelled == "ignore"  # who asks for it knows
    rules = Rules(args.allow_unseen or args.partial, ignored, args.skip_damaged)
    with started(args.workers) as workers:
        if workers:
            check_shared(source, args.out)
        for split, items in found.items():
            write_split(benchmark, split, items, args.out, workers, say, rules)
    summarise(reported(benchmark, args.out), absent)


def own_folder(args: argparse.Namespace, source: Path) -> Own:
    """The user's own folder, read as the command line says.

    Raises:
        DataError: labels of no known format, or that do not fit their images.
    """
    from datasets.exports.catalog import own_data
    from datasets.exports.records import Told

    told = Told(args.unlabelled or "background", args.unannotated or "refuse", args.allow_unpaired, args.allow_outside,
                args.line_width or 0, args.skip_damaged, args.val)  # fmt: skip
    return own_data(source, args.labels, told, args.tile or 0, count=args.dry_run)


def check_words(args: argparse.Namespace) -> None:
    """Refuse words of the command line that cannot be meant.

    Raises:
        InputError: an unknown benchmark, a value out of its range, or an option of another benchmark.
    """
    from datasets.catalog import BENCHMARKS
    from pipelines.base.errors import InputError
    from pipelines.base.text import nearest

    if args.dataset not in BENCHMARKS:
        hint = nearest(args.dataset, BENCHMARKS)
        raise InputError(f"no benchmark {args.dataset!r}{hint} Known: {', '.join(BENCHMARKS)}")
    if args.tree:
        return
    if args.source is None or (args.out is None and not args.dry_run):
        raise InputError("--source DIR and --out URI are needed; --tree shows what DIR must hold")
    if args.workers is not None and args.workers < 0:
        raise InputError(f"--workers {args.workers}: 1 or more, or 0 for only this process")
    if args.dataset != "folder" and (given := [option for option in OWN if vars(args)[option]]):
        option = f"--{given[0].replace('_', '-')}"
        raise InputError(f"{option} is for `folder`: the splits and labels of {args.dataset} are published")
    for option, least in (("tile", 64), ("line_width", 1)):
        if (value := vars(args)[option]) is not None and value < least:
            raise InputError(f"--{option.replace('_', '-')} {value}: allowed are {least} pixels or more")
    if not 0 <= args.val < 1:
        raise InputError(f"--val {args.val:g}: allowed is a share of the images between 0 and 1, such as 0.1")


@contextlib.contextmanager
def started(workers: int | None) -> Iterator[int]:
    """Start Ray where it is needed; yields how many files to write at once."""
    from pipelines.cluster.session import ray_cluster
    from pipelines.cluster.sizes import machine, totals
    from pipelines.recipes.recipe import Workers

    if workers == 0:
        yield 0
        return
    with ray_cluster(Workers(count=1, gpus=0)):
        yield workers or (totals()["cores"] if os.environ.get("RAY_ADDRESS") else machine()[0])


if __name__ == "__main__":
    run(main, resumes=True)
