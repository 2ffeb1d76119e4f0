"""Errors whose message is written for the user, and how to find one inside what a library raised."""

from __future__ import annotations

import errno
import re

from pipelines.base.text import plain

USERS = ("DataError", "FileError", "InputError", "SetupError")  # errors whose message is written for the user
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
AFTER_FULL = "What was written before is whole; make room, and the same command goes on from there."


class SetupError(RuntimeError):
    """The machine, the cluster or the installation lacks something that the run needs; the message names the cure."""


class RunFailed(RuntimeError):
    """Training stopped for a reason other than its input; the message says what is saved and what to do."""


class Stopped(RuntimeError):
    """Training stopped because it was asked to, and wrote a checkpoint; `code` is the exit code of the process."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def users_message(error: BaseException | None) -> str | None:
    """The message written for the user, found in an error or in its causes; None for a fault of this code."""
    first, seen = error, 0
    while error is not None and seen < 20:
        if type(error).__name__ in USERS:
            return str(error)
        if isinstance(error, OSError) and error.errno in FULL:
            return f"{error}. {AFTER_FULL}"
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
        seen += 1
    # An error of a Ray Data task arrives only as the text of its tracebacks.
    text = plain(str(first))
    found = re.search(rf"^(?:\w+\.)*(?:{'|'.join(USERS)}): (.+?)(?:\n\n|\nThe above|\Z)", text, re.M | re.S)
    if found is None and (full := re.search(rf"\[Errno (?:{'|'.join(map(str, FULL))})\] .+", text)):
        return f"{full[0].strip()}. {AFTER_FULL}"
    return found[1].strip() if found else None


class InputError(ValueError):
    """A recipe or a command line that cannot be run; the message names key, value, what is allowed and the cure."""
