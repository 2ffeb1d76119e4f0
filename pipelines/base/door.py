"""What every door shares: package names checked first, one clear message and exit code 2 for bad input."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from pipelines.base.errors import RunFailed, SetupError, Stopped, users_message

ROOT = Path(__file__).resolve().parents[2]
OURS = ("datasets", "pipelines", "segmodels")
TERMINATED = threading.Event()  # SIGTERM came where nothing had to be saved first


def check_names() -> None:
    """Make sure that `datasets`, `pipelines` and `segmodels` are ours, in this process.

    HuggingFace's `datasets` bears the same name as ours; imported by mistake it fails far from the cause.

    Raises:
        SetupError: another package of that name comes first on the path, or ours is not found.
    """
    for name in OURS:
        loaded = sys.modules.get(name)
        spec = None if loaded else importlib.util.find_spec(name)
        found = getattr(loaded, "__file__", None) if loaded else (spec.origin if spec else None)
        wanted = ROOT / name / "__init__.py"
        if found is None or Path(found).resolve() != wanted:
            raise SetupError(
                f"the package {name!r} that Python finds is {found}, ours is {wanted}. Run from {ROOT} with "
                f"`python -m pipelines.NAME`, put {ROOT} first on PYTHONPATH, or uninstall the other package."
            )


def run(main: Callable[[], None], *, resumes: bool = False) -> None:
    """Open a door: bad input ends in one message on stderr and exit code 2, Ctrl-C in 130, SIGTERM in 143.

    Args:
        main: what the door does.
        resumes: whether the same command, typed again, goes on from what an interrupted one had written.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations calls home on import otherwise
    gc.set_threshold(50_000)  # every 700 objects, as is usual, a fifth of the imports' time is searches for garbage
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)
    try:
        check_names()
        main()
    except (KeyboardInterrupt, SystemExit) as left:
        # while Ray starts, its own handler answers SIGTERM, with sys.exit(15)
        terminated = TERMINATED.is_set() or (isinstance(left, SystemExit) and left.code == signal.SIGTERM)
        if isinstance(left, SystemExit) and not terminated:
            raise
        after = "; the same command goes on from what was saved" if resumes else ""
        print(f"\nstopped{after}", file=sys.stderr)
        sys.exit(128 + (signal.SIGTERM if terminated else signal.SIGINT))
    except Stopped as stop:
        print(f"\n{stop}", file=sys.stderr)
        sys.exit(stop.code)
    except RunFailed as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        message = users_message(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def terminate(number: int, frame: FrameType | None) -> None:
    """The doors' answer to SIGTERM: as to Ctrl-C, which Ray knows how to pass on."""
    TERMINATED.set()
    raise KeyboardInterrupt


def writable(option: str, folder: Path) -> Path:
    """The folder of a command line's option, made where it is missing, before anything is computed for it.

    Raises:
        SetupError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise SetupError(f"{option}: cannot write to {folder}: {error.strerror}. Give another place") from None
