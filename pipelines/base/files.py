"""Files that are written whole or not at all, and JSON that every reader takes."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TEMPORARY = ".*.tmp*"  # what a killed writer leaves


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name next to `path`, with its suffix; renamed to it when the body ends, removed when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file: afterwards it is whole, or as it was."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, indented; see `to_json`."""
    write_text(path, to_json(value, indent=1))


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON as its standard has it: NaN and infinity, which it does not know, become null."""
    return json.dumps(finite(value), indent=indent, allow_nan=False)


def finite(value: Any) -> Any:
    """The value with None for each float that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return value
