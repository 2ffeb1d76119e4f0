"""Words and numbers for people."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence


def nearest(given: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or a full stop when no name is near."""
    near = difflib.get_close_matches(given, list(allowed), 1, 0.5)
    return f"; did you mean {near[0]!r}?" if near else "."


def clock(seconds: float) -> str:
    """h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def duration(seconds: float) -> str:
    """Seconds as 42 s, 3 min 10 s or 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def padded(rows: Sequence[Sequence[str]], right: Collection[int] = (), least: int = 0) -> list[list[str]]:
    """The cells of rows, padded so that columns line up.

    Args:
        rows: of the same number of cells.
        right: columns that are flush right.
        least: narrowest column, in characters.
    """
    widths = [max(least, *map(len, column)) for column in zip(*rows, strict=True)]
    return [
        [cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    ]
