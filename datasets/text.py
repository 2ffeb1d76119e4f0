"""Text of files and names, whatever wrote them: encodings, line ends, Unicode's normal forms, lists in messages."""

import codecs
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

NAMED = 10
"""How many entries of a list a message names; it counts the others."""

MARKS = {
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
"""How a text file begins -> its encoding; UTF-32's mark begins as UTF-16's does, so it comes first."""


def decode_text(data: bytes) -> str:
    """Decode a text file: by its mark, else as UTF-8, else as Windows' Latin-1.

    Windows PowerShell writes UTF-16; without a mark it is recognised by zeros in every second byte.

    Args:
        data: the file's bytes.
    """
    for mark, encoding in MARKS.items():
        if data.startswith(mark):
            return data.decode(encoding, "replace")
    for encoding, zeros in (("utf-16-le", data[1::2]), ("utf-16-be", data[::2])):
        if len(data) >= 4 and len(data) % 2 == 0 and zeros.count(0) > len(zeros) // 2:
            return data.decode(encoding, "replace")
    for encoding in ("utf-8", "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1")


def read_text(path: Path) -> str:
    """The text of a file of any encoding, see `decode_text`."""
    return decode_text(path.read_bytes())


def lines_of(text: str) -> list[str]:
    """The lines of a text without surrounding blanks, and without empty ones; ends are those of any system.

    `str.splitlines` would also cut at characters that may occur within a name.
    """
    return [line for raw in re.split(r"\r\n|\r|\n", text) if (line := raw.strip())]


def shown(name: str | Path) -> str:
    """A name from a disk as text that can be printed and stored: bytes that are not UTF-8 are read as Latin-1."""
    text = str(name)
    try:
        text.encode()
    except UnicodeEncodeError:  # Python's stand-ins for such bytes
        return decode_text(os.fsencode(text))
    return text


def same_form(name: str) -> str:
    """A name in one form, to compare by: macOS and some archives spell é as e and an accent."""
    return unicodedata.normalize("NFC", shown(name))


def named(entries: Iterable[object], most: int = NAMED, between: str = ", ") -> str:
    """The first entries, and how many more there are: `a, b, ... and 124 more`.

    Args:
        entries: what is listed.
        most: how many are written out.
        between: the separator.
    """
    listed = [shown(str(entry)) for entry in entries]
    more = f"{between}... and {len(listed) - most:,} more" if len(listed) > most else ""
    return between.join(listed[:most]) + more
