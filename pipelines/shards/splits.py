"""The splits of a release: which are there, how many rows each has, and what to say of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets.sample import Benchmark, Item


def say(line: str) -> None:
    """Print a line at once, into a pipe too."""
    print(line, flush=True)


def index_splits(
    benchmark: Benchmark, wanted: list[str] | None, partial: bool
) -> tuple[dict[str, list[Item]], dict[str, str]]:
    """Rows of the wanted splits, all checked before the first is written; and why others are left out.

    A split is left out only where nothing of it is there and nobody named it.

    Raises:
        InputError: an unknown split, or a row count that is not the official one.
        DataError: no split is there, or one is there in part or damaged.
    """
    from datasets.sample import ABSENT, DataError
    from pipelines.base.errors import InputError
    from pipelines.base.text import nearest

    if unknown := [s for s in wanted or [] if s not in benchmark.splits]:
        raise InputError(f"{benchmark.name} has no split {unknown[0]!r}{nearest(unknown[0], benchmark.splits)} "
                          f"Known: {', '.join(benchmark.splits)}")  # fmt: skip
    found: dict[str, list[Item]] = {}
    absent: dict[str, str] = {}
    for split in wanted or benchmark.splits:
        try:
            found[split] = benchmark.index(split)
        except DataError as error:
            absent[split] = str(error).replace(f"\n{benchmark.tree}", "").split("Expected is this folder")[0].strip()
            if error.kind != ABSENT or wanted:
                raise DataError(refused(benchmark, split, absent[split], bool(wanted))) from error
            continue
        check_count(benchmark, split, found[split], partial)
    if not found:
        reasons = "\n".join(f"{split}: {why}" for split, why in absent.items())
        raise DataError(f"the source holds no split of {benchmark.name}. {reasons}{published(benchmark)}")
    return found, absent


def refused(benchmark: Benchmark, split: str, why: str, named: bool) -> str:
    """The message about a split that is there in part, or damaged, or that was asked for and is not there."""
    others = "" if named or len(benchmark.splits) < 2 else "\nOr name the splits to prepare with --splits."
    return f"{benchmark.name} {split} is incomplete or damaged. {why}{published(benchmark)}{others}"


def published(benchmark: Benchmark) -> str:
    """The sentence that tells where the release is from; "" for the user's own folder."""
    return f"\nThe release is published at {benchmark.home}" if benchmark.home else ""


def check_count(benchmark: Benchmark, split: str, items: list[Item], partial: bool) -> None:
    """Say how many rows a split has, and compare with what was published.

    Raises:
        InputError: another count, unless that is accepted; or no row.
    """
    from pipelines.base.errors import InputError

    listed, official = listed_and_official(benchmark, split, items)
    of = f" of {listed} listed images" if listed != len(items) else ""
    say(f"{split:>11}: {len(items)} rows found{of}, official {official if official is not None else 'count unknown'}")
    if official not in (None, listed) and not partial:
        what = "listed images" if of else "rows"
        raise InputError(
            f"{benchmark.name} {split} has {listed} {what}, the release has {official}. Complete the source (it is "
            f"published at {benchmark.home}), or accept it with --partial (the manifest says so)."
        )
    if not items:
        raise InputError(f"{benchmark.name} {split} is empty: nothing to write")


def listed_and_official(benchmark: Benchmark, split: str, items: list[Item]) -> tuple[int, int | None]:
    """How many rows the source lists for a split, and how many were published; None where nothing was."""
    from datasets.sample import Rows

    if isinstance(items, Rows):
        return items.listed, benchmark.listed.get(split)
    return len(items), benchmark.splits[split]


def check_replaced(name: str, splits: Iterable[str], out: str) -> None:
    """Shards of another benchmark are not written over.

    Args:
        name: of the benchmark.
        splits: those that will be written below `out`.

    Raises:
        InputError: the place of one holds another benchmark's.
    """
    from datasets.manifest import MANIFEST, read_manifest
    from datasets.sample import DataError
    from datasets.storage import below, exists, locate
    from pipelines.base.errors import InputError

    for split in splits:
        system, path = locate(uri := below(out, split))
        if not exists(system, f"{path}/{MANIFEST}"):
            continue
        try:
            there = read_manifest(uri).benchmark
        except DataError:  # of another schema, or damaged: it will be written again
            continue
        if there != name:
            raise InputError(f"{uri} holds shards of {there}, not of {name}: give another --out, or remove it")


def summarise(facts: Mapping[str, Any], absent: Mapping[str, str]) -> None:
    """Print what the report says, in a line per split and per warning."""
    say(f"\n{'split':>11}  {'rows':>7}  {'official':>8}  never seen  twice  {'ignored':>7}  hash")
    for name, split in facts["splits"].items():
        official = "–" if split["official_rows"] is None else str(split["official_rows"])
        ignored = f"{split['ignored']['share']:.1%}" if split["labelled"] else "–"
        say(f"{name:>11}  {split['rows']:>7}  {official:>8}  {len(split['unseen']):>10}  {split['duplicates']:>5}  "
            f"{ignored:>7}  {split['hash'][:16]}")  # fmt: skip
    for pair in facts["overlaps"]:
        (a, b), (rows, _) = pair["splits"], pair["rows"]
        if pair["kind"] != "leak":
            say(f"{rows} image(s) of {a} are in {b} too: {pair['kind']}")
    for line in facts["notes"]:
        say(f"note  {line}")
    for line in facts["warnings"]:
        say(f"WARNING  {line}")
    for split, why in absent.items():
        first = why.partition("\n")[2].strip().split("\n")[0]
        say(f"left out: {split}. The source has nothing of it" + (f", such as {first}" if first else ""))
    if "path" in facts:
        say(f"look at {facts['path']}")
