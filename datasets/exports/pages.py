"""The JSON files of exports, parsed once, with messages that name the file."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from datasets.readers.files import of_file
from datasets.sample import DataError
from datasets.text import read_text

FORM_ERRORS = (KeyError, TypeError, ValueError, AttributeError, IndexError)


def read_json(source: Path, path: str) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: the file is empty, or no JSON.
    """
    text = read_text(source / path)
    if not text.strip():
        raise DataError(f"{path}: the file is empty; export the annotations again, or remove it")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: no JSON ({error}); the file is cut or changed, export the annotations again"
        ) from error


def json_files(source: Path, files: list[str], keys: set[str]) -> dict[str, dict[str, Any]]:
    """Those of the JSON files that are mappings with all of some keys.

    Raises:
        DataError: a file is empty, or no JSON.
    """
    pages = ((path, read_json(source, path)) for path in files if path.lower().endswith(".json"))
    return {path: page for path, page in pages if isinstance(page, dict) and keys <= set(page)}


def first_with(source: Path, files: list[str], keys: set[str], most: int = 20) -> str:
    """The first of the first few JSON files that is a mapping with all of some keys; "" where none is."""
    for path in [path for path in files if path.lower().endswith(".json")][:most]:
        try:
            page = read_json(source, path)
        except DataError:  # reported where the format is read
            continue
        if isinstance(page, dict) and keys <= set(page):
            return path
    return ""


@contextmanager
def in_form(path: str, what: str) -> Iterator[None]:
    """In the body, errors of a file of another form become one that names the file, and what it is not.

    Raises:
        DataError: the body met another form, or raised it.
    """
    try:
        with of_file(path):
            yield
    except DataError:
        raise
    except FORM_ERRORS as error:
        told = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: not {what} ({told}); export the annotations again") from error


def corners(points: Any, at: str) -> np.ndarray:
    """Corners as float64 (n, 2).

    Raises:
        DataError: they are no pairs of numbers.
    """
    try:
        found = np.asarray(points, np.float64)
        return found.reshape(len(found), 2)
    except (TypeError, ValueError) as error:
        raise DataError(f"{at}: its corners are no pairs of numbers. Draw it again") from error
