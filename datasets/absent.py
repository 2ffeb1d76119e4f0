"""Imports without what they would load only because it is installed."""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def absent(*names: str) -> Iterator[None]:
    """In the body, importing these modules fails, unless they are loaded already.

    Args:
        names: modules that what is imported in the body can do without.
    """
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # Python's own mark for a module that is not to be found
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
