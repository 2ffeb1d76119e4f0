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

    Raises:
        InputError: an unknown split, or a row count that is not the official one.
        DataError: files are missing.
    """
    from datasets.sample import DataError
    from pipelines.base.errors import InputError
    from pipelines.base.text import nearest

    if unknown := [s for s in wanted or [] if s not in benchmark.splits]:
        raise InputError(f"{benchmark.name} has no split {unknown[0]!r}{nearest(unknown[0], benchmark.splits)} "
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
            raise InputError(
                f"{benchmark.name} {split} has {len(items)} rows, the release has {official}. Complete the source (it "
                f"is published at {benchmark.home}), or accept it with --partial (the manifest says so)."
            )
        if not items:
            raise InputError(f"{benchmark.name} {split} is empty: nothing to write")
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
        except DataError:  # of another schema, or damaged: to be made anew
            continue
        if there != name:
            raise InputError(f"{uri} holds shards of {there}, not of {name}: give another --out, or remove it")


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
