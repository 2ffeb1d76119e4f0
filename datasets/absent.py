"""Imports without the optional modules that they would load only because those are installed."""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def absent(*names: str) -> Iterator[None]:
    """In the body, importing these modules fails, unless they are loaded already.

    Args:
        names: modules; the imports in the body must work without them.
    """
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # Python's own mark for a module that it must not find
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
