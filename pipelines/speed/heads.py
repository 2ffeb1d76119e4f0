"""The contexts of the heads against the public codes' forms of them, and every head by itself.

A peer is the form of the public code written plainly: a loop over ranks, an explicit N x N softmax, groups by copies.
Both forms have the same weights and inputs; before any time is taken, their outputs in float32 are compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from pipelines.speed.report import Report, ratios, spread

if TYPE_CHECKING:
    from pipelines.speed.rounds import Measured
    from pipelines.speed.units import Unit

REPEATS = 7
SMALL = (2, 512, 48, 48)  # B, C, H, W on a CPU; two images, as the batch norms of pooled vectors need in training
COLUMNS = (
    "unit", "form", "mode", "C", "settings", "type", "input",
    "forward, ms", "forward + backward, ms", "peak, MiB", "GMACs an image",
    "forward, plain / ours", "both, plain / ours", "peak, plain / ours", "ours is", "difference",
)  # fmt: skip
TYPES = ("fp32", "bf16")
FASTER, SMALLER = 2.0, 4.0
NOISE, BYTES = 0.03, 0.005  # what a time's and a peak's ratio may be off 1 and count as equal
NOTES = (
    "times: medians of rounds in turn, on a GPU by the wall clock, on a CPU with one thread of the processor's time, "
    "which other work hardly lengthens, with more threads by the wall clock; ratios: medians of the rounds' own, and "
    "their range",
    "forward: without a graph; forward + backward: of a training step, gradients of inputs and weights; peak: of both "
    "passes, besides weights and inputs, with gradients; in evaluation of the forward pass alone",
    "peak on a CPU: the most bytes of storages alive at once that operations returned (memory.py), so without a "
    "kernel's own workspace; on a GPU: the allocator's peak above what was held before",
    f"ours is: forward, both, peak; equal within noise: a time whose median ratio is within {NOISE:.0%} of 1 and whose "
    f"rounds are on both sides of 1, a peak within {BYTES:.1%}",
    "GMACs: convolutions and products of matrices only; difference: of the outputs in float32, relative to the "
    "greatest",
)


@dataclass(frozen=True)
class Pair(Report):
    """Two tables in one report."""

    second: Report | None = None

    def markdown(self) -> str:
        """The first table and, if it has rows, the second."""
        parts = [super().markdown() if self.rows else "", self.second.markdown() if self.second else ""]
        return "\n".join(filter(None, parts))


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--only", nargs="+", metavar="NAME", help="units or heads; a name of both picks both")
    parser.add_argument("--size", nargs=2, type=int, metavar=("H", "W"), help="of the maps, in cells")
    parser.add_argument(
        "--batch", type=int, help="images in training, and in evaluation beside 1 (default 2; on a GPU 4, TGM + TRM 16)"
    )
    parser.add_argument("--channels", type=int, help="C (default 512)")
    parser.add_argument("--dtype", nargs="+", metavar="TYPE", help="of fp32, bf16 (default fp32; on a GPU both)")


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be measured.

    Raises:
        InputError: an unknown unit, head or type, or a size of no use.
    """
    from pipelines.base.errors import InputError
    from pipelines.base.text import nearest
    from pipelines.speed.units import UNITS
    from segmodels.heads.catalog import HEADS

    for given, known in ((args.only or [], [*UNITS, *HEADS]), (args.dtype or [], TYPES)):
        if unknown := [name for name in given if name not in known]:
            listing = ", ".join(dict.fromkeys(known))
            raise InputError(f"no unit, head or type {unknown[0]!r}{nearest(unknown[0], known)} Known: {listing}")
    if min(args.size or [16]) < 16 or (args.batch or 2) < 2 or (args.channels or 32) % 32:
        raise InputError("allowed: --size of 16 cells or more, --batch of 2 or more, --channels a multiple of 32")


def measure(args: argparse.Namespace) -> Report:
    """The units with their peers, then the heads."""
    from pipelines.speed.units import UNITS
    from pipelines.speed.whole import head_table
    from segmodels.heads.catalog import HEADS
    from segmodels.precision import default_device

    device = default_device().type
    args.dtype = args.dtype or (list(TYPES) if device == "cuda" else ["fp32"])
    wanted = args.only or [*UNITS, *HEADS]
    rows, notes, measured = unit_rows(args, {name: UNITS[name] for name in UNITS if name in wanted}, device)
    heads = [name for name in HEADS if name in wanted]
    second = head_table(args, heads, device) if heads else None
    title = "Contexts of the heads against their public codes' plain forms"
    return Pair(title, COLUMNS, rows, [*NOTES, *notes], measured, second)


def unit_rows(
    args: argparse.Namespace, units: dict[str, Unit], device: str
) -> tuple[list[list[str]], list[str], dict[str, object]]:
    """Rows, notes on the goals, and every value, of all units and types."""
    from pipelines.speed.unit_case import Case

    rows: list[list[str]] = []
    measured: dict[str, object] = {}
    notes, behind = [], []
    made = (
        (Case(name, unit, (images, channels, size), device, tested=tested), dtype)
        for name, unit in units.items()
        for batch, channels, size in [shape(args, unit, device)]
        for images, tested in ((batch, False), (batch, True), (1, True))
        for dtype in args.dtype
    )
    for case, dtype in made:
        apart = case.agree()
        ours, plain = case.contest(dtype, args.repeats)
        against = compare(ours, plain)
        key = f"{case.name} {dtype}" + (f" in evaluation, batch {case.batch}" if case.tested else "")
        rows += two_rows(case, dtype, (ours, plain), against, apart)
        measured[key] = {form: vars(m) for form, m in (("ours", ours), ("plain", plain))} | {"difference": apart}
        notes += [] if case.tested else goals(key, case.unit, against)
        if wrong := shortfall(against):
            behind.append(f"{key} ({wrong})")
    listing = ", ".join(behind) or "none"
    verdict = f"goal: none slower or larger than its plain form: {listing}"
    return rows, [*notes, f"{verdict}, {'MISSED' if behind else 'met'}"], measured


def shape(args: argparse.Namespace, unit: Unit, device: str) -> tuple[int, int, tuple[int, int]]:
    """B, C and (H, W) of a unit."""
    batch, channels, *size = unit.gpu if device == "cuda" else SMALL
    height, width = args.size or size
    return args.batch or batch, args.channels or channels, (height, width)


def compare(ours: Measured, plain: Measured) -> dict[str, list[float]]:
    """Plain to ours, round by round; of the peak the one value."""
    return {
        "forward": ratios(plain.forward, ours.forward),
        "both": ratios(plain.both, ours.both),
        "peak": [plain.peak / ours.peak],
    }


def two_rows(
    case: Any, dtype: str, pair: Sequence[Measured], against: dict[str, list[float]], apart: float
) -> Iterable[list[str]]:
    """The row of ours and the row of its peer, which has the ratios."""
    found = ", ".join(verdicts(against).values())
    ends: list[list[str]] = [[""] * 5, [*(spread(values, 2) for values in against.values()), found, f"{apart:.0e}"]]
    for form, m, macs, end in zip(("ours", "plain"), pair, case.macs(), ends, strict=True):
        times = (f"{1e3 * median(values):.1f}" if values else "–" for values in (m.forward, m.both))
        start = [case.name, form, case.mode, str(case.channels), case.unit.settings, dtype, case.label]
        yield [*start, *times, f"{m.peak / 2**20:.1f}", f"{macs:.3f}", *end]


def goals(key: str, unit: Unit, against: dict[str, list[float]]) -> list[str]:
    """The note on a unit that has to be much faster or much smaller."""
    from pipelines.speed.unit_case import drawn_peaks

    if not unit.goal:
        return []
    faster, smaller = median(against["both"]), against["peak"][0]
    met = "met" if faster >= FASTER or smaller >= SMALLER else "MISSED"
    ours, plain = drawn_peaks(unit)
    size = f"{' x '.join(map(str, unit.gpu))} in fp32 by the CPU's count: {ours / 2**20:.0f} MiB, {plain / ours:.2f}x"
    reached = f"{faster:.2f}x, {smaller:.2f}x, {met}"
    return [f"goal: {key} {FASTER:g}x faster or {SMALLER:g}x smaller: {reached} (smaller at {size})"]


def verdicts(against: dict[str, list[float]]) -> dict[str, str]:
    """What ours is in each respect: by the median ratio, and equal where the rounds do not agree on a side."""
    words = {"forward": ("faster", "slower"), "both": ("faster", "slower"), "peak": ("smaller", "larger")}
    return {
        what: "equal" if equal(what, values) else words[what][median(values) < 1]
        for what, values in against.items()
        if values
    }


def equal(what: str, values: list[float]) -> bool:
    """Whether ratios are 1 but for noise."""
    apart = abs(median(values) - 1)
    return apart <= BYTES if what == "peak" else apart <= NOISE and min(values) <= 1 <= max(values)


def shortfall(against: dict[str, list[float]]) -> str:
    """Where ours is behind, with the ratio."""
    behind = [what for what, found in verdicts(against).items() if found in ("slower", "larger")]
    return ", ".join(f"{what} {median(against[what]):.2f}" for what in behind)
