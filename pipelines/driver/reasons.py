"""Every reason why a run would fail, where a run itself ends at the first."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pipelines.base.errors import InputError, users_message


class Reasons:
    """What checks raised, each once, in their order."""

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Go on after a body that raises an error written for the user, or a value that a builder refuses; keep why."""
        try:
            yield
        except ValueError as error:
            self.add(users_message(error) or str(error))
        except Exception as error:
            message = users_message(error)
            if message is None:
                raise
            self.add(message)

    def add(self, message: str) -> None:
        """Keep a message."""
        if message not in self.found:
            self.found.append(message)

    def refuse(self, what: str) -> None:
        """End with all of them.

        Raises:
            InputError: there is any.
        """
        if self.found:
            count = "1 reason" if len(self.found) == 1 else f"{len(self.found)} reasons"
            listed = "\n".join(f"  {number}. {text}" for number, text in enumerate(self.found, 1))
            raise InputError(f"{count} why {what} would fail:\n{listed}")
