"""Words and numbers for people."""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Callable, Collection, Iterable, Sequence

COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def plain(text: str) -> str:
    """The text without the colours that Ray gives to its messages."""
    return COLOURS.sub("", text)


def first_sentence(error: BaseException) -> str:
    """The beginning of a library's message, without its full stop; the error's kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0].rstrip(".")


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


class Progress:
    """Says every few seconds how far a count is, and when it will end.

    Args:
        total: what is to be reached.
        things: what is counted.
        tell: is given a line.
        every: seconds between two lines, and before the first: what is short is not commented.
        rate: say how many a second, too.
    """

    def __init__(
        self, total: int, things: str, tell: Callable[[str], object], every: float = 5.0, rate: bool = False
    ) -> None:
        self.total, self.things, self.tell, self.every, self.rate = total, things, tell, every, rate
        self.began = self.told = time.monotonic()

    def reach(self, done: int) -> None:
        """Note that so many are done."""
        now = time.monotonic()
        if now - self.told < self.every or not 0 < done < self.total:
            return
        self.told = now
        left = (now - self.began) / done * (self.total - done)
        rate = f"  {done / (now - self.began):.2g} {self.things}/s" if self.rate else ""
        self.tell(f"  {done:,} of {self.total:,} {self.things}  {done / self.total:.0%}{rate}  ETA {clock(left)}")


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
