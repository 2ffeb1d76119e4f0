"""What rank 0 asks of all workers between two steps: to end, or to write a checkpoint before a node is taken away."""

from __future__ import annotations

from collections.abc import Callable

from pipelines.cluster.inside_ray import leaving
from pipelines.cluster.nodes import alive
from pipelines.runs.record import Record

LEAVING = -1  # asks for a checkpoint; no signal has this number
LEAVING_MINUTES = 1 / 6  # between checkpoints from then on: what comes after the last is computed again


class Notice:
    """Nodes of this training that Ray was told will be taken away (a spot node's notice, `ray drain-node`).

    Training goes on until a node is gone or its time is over; Ray then starts the workers again on other nodes.

    Args:
        asked: the signal that asks rank 0 to end, 0 while there is none.
    """

    def __init__(self, asked: Callable[[], int]) -> None:
        self.asked = asked
        self.answered: frozenset[str] = frozenset()

    def word(self) -> int:
        """What the workers are asked now: a signal, `LEAVING`, or 0."""
        return self.asked() or (LEAVING if leaving() - self.answered else 0)

    def answer(self, record: Record, word: int, step: int) -> bool:
        """Note a checkpoint that was asked for by `LEAVING`; returns whether training goes on, as it does then alone."""
        if word != LEAVING:
            return False
        new, addresses = sorted(leaving() - self.answered), alive()
        self.answered |= leaving()
        names = ", ".join(f"{addresses.get(node, 'a node')} ({node[:8]})" for node in new)
        text = f"notice that {names} will be taken away: checkpoint written, training goes on until then"
        record.add("note", step, text=text)
        return True

    def pace(self, minutes: float) -> float:
        """Minutes between checkpoints, where the recipe wants `minutes`."""
        return min(minutes, LEAVING_MINUTES) if self.answered else minutes
