"""What all doors share: package names checked first, one clear message and exit code 2 for bad input."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import importlib.util
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from pipelines.base.errors import InputError, RunFailed, SetupError, Stopped, users_message
from pipelines.base.text import plain

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "context-heads"
VERSION = "0.8.0"  # pyproject.toml has it too, which does not travel with the code
OURS = ("datasets", "pipelines", "segmodels")
FOREIGN = "arrow_dataset.py"  # a file of HuggingFace's `datasets`; ours has none of that name
TERMINATED = threading.Event()  # SIGTERM came where nothing had to be saved first


def check_names() -> None:
    """Make sure that `datasets`, `pipelines` and `segmodels` are ours, in this process.

    HuggingFace has a package `datasets` too; imported by mistake it fails far from the cause.

    Raises:
        SetupError: another package of that name comes first on the path or is in the same folder, or ours is not
            found.
    """
    for name in OURS:
        loaded = sys.modules.get(name)
        spec = None if loaded else importlib.util.find_spec(name)
        found = getattr(loaded, "__file__", None) if loaded else (spec.origin if spec else None)
        wanted = ROOT / name / "__init__.py"
        if found is None or Path(found).resolve() != wanted:
            raise SetupError(
                f"Python finds the package {name!r} in {found}, but ours is {wanted}. Run from {ROOT} with "
                f"`python -m pipelines.NAME`, put {ROOT} first on PYTHONPATH, or uninstall the other package."
            )
    if (ROOT / "datasets" / FOREIGN).exists():
        raise SetupError(
            f"HuggingFace's package `datasets` is installed into the folder of ours, {ROOT / 'datasets'}: each "
            f"overwrites files of the other. Install {PROJECT} into an environment of its own, or run from a checkout."
        )


def run(main: Callable[[], None], *, resumes: bool = False) -> None:
    """Open a door: bad input ends in one message on stderr and exit code 2, Ctrl-C in 130, SIGTERM in 143.

    Args:
        main: what the door does.
        resumes: whether the same command continues from what an interrupted one has written.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations calls home on import otherwise
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # its name of old
        # else a GPU's memory falls to pieces where images of many sizes and scales are predicted
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    gc.set_threshold(50_000)  # with the usual 700, a fifth of the imports' time is spent on searches for garbage
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)
    with forgiving_output():
        if sys.argv[1:] == ["--version"]:
            print(PROJECT, VERSION)
            return
        try:
            check_names()
            main()
        except (KeyboardInterrupt, SystemExit) as left:
            leave(left, resumes)
        except Stopped as stop:
            end(f"\n{stop}", stop.code)
        except RunFailed as error:
            end(f"error: {error}", 1)
        except ModuleNotFoundError as error:
            if not error.name or error.name.split(".")[0] in OURS:
                raise
            end(f"error: {lacks(error.name)}", 2)
        except Exception as error:
            message = users_message(error)
            if message is None:
                raise
            end(f"error: {message}", 2)


def lacks(name: str) -> str:
    """What to say of a package that is not installed."""
    head = f"Python at {sys.executable} has no package {name!r}."
    if (ROOT / "pyproject.toml").is_file():
        return f"{head} Run in the project's environment: `uv run python -m pipelines.NAME`, from {ROOT}."
    return f"{head} {PROJECT} was installed without what it depends on: install it again, without --no-deps."


def program() -> str:
    """How the door that runs is called on the command line, for its help."""
    return f"python -m pipelines.{Path(sys.argv[0]).stem}"


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Give the parser of a door that trains the options to show what it would do."""
    add = parser.add_argument
    add("--dry-run", action="store_true", help="show what would be done, needed and written, how long it would take, "
        "and every reason why it would fail (then exit code 2), and start nothing; end")  # fmt: skip
    add("--gpu", action="append", default=[], metavar="NAME", help="with --dry-run: plan with this GPU instead of "
        "those that are there, such as H200; may be given again")  # fmt: skip


def leave(left: BaseException, resumes: bool) -> None:
    """End after Ctrl-C, SIGTERM or an exit that the door asked for."""
    # while Ray starts, its own handler answers SIGTERM, with sys.exit(15)
    terminated = TERMINATED.is_set() or (isinstance(left, SystemExit) and left.code == signal.SIGTERM)
    if isinstance(left, SystemExit) and not terminated:
        raise left
    after = "; the same command continues from what was saved" if resumes else ""
    end(f"\nstopped{after}", 128 + (signal.SIGTERM if terminated else signal.SIGINT))


def end(message: str, code: int) -> None:
    """Say why on stderr, and leave with the code."""
    print(plain(message), file=sys.stderr)
    sys.exit(code)


def terminate(number: int, frame: FrameType | None) -> None:
    """The doors' answer to SIGTERM: as to Ctrl-C, which Ray knows how to pass on."""
    TERMINATED.set()
    raise KeyboardInterrupt


class Forgiving:
    """A text stream whose reader may leave, as `head` does: what is written after that is dropped, without an error."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write, as long as anybody reads."""
        try:
            return self.stream.write(text)
        except BrokenPipeError:
            self.close_pipe()
            return len(text)

    def flush(self) -> None:
        """Flush, as long as anybody reads."""
        try:
            self.stream.flush()
        except BrokenPipeError:
            self.close_pipe()

    def close_pipe(self) -> None:
        """Lead the stream to nowhere, with what it still holds: Python flushes it once more at its end."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def forgiving_output() -> Iterator[None]:
    """Within the body, stdout and stderr show each line at once, also in a file or pipe, and survive a closed pipe."""
    before = sys.stdout, sys.stderr
    if before != (sys.__stdout__, sys.__stderr__) or not all(hasattr(stream, "reconfigure") for stream in before):
        yield  # a test's, or there is none
        return
    for stream in before:
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    sys.stdout, sys.stderr = Forgiving(before[0]), Forgiving(before[1])
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdout, sys.stderr = before
        for name in [name for name in sys.modules if name.endswith("colorama.initialise")]:
            atexit.unregister(sys.modules[name].reset_all)  # it would end the output of a terminal with ESC[0m


def writable(option: str, folder: Path) -> Path:
    """The folder that an option of the command line names, created where it is missing, before anything is computed.

    Raises:
        InputError: it is a bucket's URI.
        SetupError: nothing can be written there.
    """
    check_local(option, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise SetupError(f"{option}: cannot write to {folder}: {error.strerror}. Give another place") from None


def check_local(option: str, path: Path) -> None:
    """Refuse the URI of a bucket where a path of this machine is meant.

    Raises:
        InputError: it is one.
    """
    if scheme := re.match(r"([a-z0-9]{2,}):/", str(path)):  # a path has lost its second slash
        raise InputError(f"{option}: {scheme[1]}://… is a URI; allowed: a folder of this machine")
