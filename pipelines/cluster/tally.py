"""A number that workers anywhere on the cluster add to, and that the driver looks at while they do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from pipelines.base.polling import Polling

LOOK_S = 2.0


class Tally:
    """A sum, in an actor of its own."""

    def __init__(self) -> None:
        self.sum = 0

    def add(self, number: int) -> None:
        """Add to it."""
        self.sum += number

    def total(self) -> int:
        """What it is by now."""
        return self.sum


@contextlib.contextmanager
def tallied(tell: Callable[[int], object]) -> Iterator[Any]:
    """An actor with `add`, for the workers of the body; `tell` is given its sum every few seconds."""
    import ray

    tally: Any = ray.remote(num_cpus=0)(Tally).remote()  # type: ignore[arg-type,attr-defined]  # an actor, not a task

    def look() -> None:
        with contextlib.suppress(ray.exceptions.GetTimeoutError):
            tell(ray.get(tally.total.remote(), timeout=LOOK_S))

    try:
        with Polling(look, lambda: LOOK_S, "tally"):
            yield tally
    finally:
        ray.kill(tally)
