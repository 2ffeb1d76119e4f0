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
        minutes: between checkpoints, as the recipe wants them.
    """

    def __init__(self, asked: Callable[[], int], minutes: float) -> None:
        self.asked, self.wanted = asked, minutes
        self.answered: frozenset[str] = frozenset()

    def word(self) -> int:
        """What the workers are asked now: a signal, `LEAVING`, or 0."""
        return self.asked() or (LEAVING if leaving() - self.answered else 0)

    def answer(self, record: Record, word: int, step: int) -> bool:
        """Note a checkpoint that was asked for by `LEAVING`; returns whether training goes on."""
        if word != LEAVING:
            return False
        new, addresses = sorted(leaving() - self.answered), alive()
        self.answered |= leaving()
        names = ", ".join(f"{addresses.get(node, 'a node')} ({node[:8]})" for node in new)
        text = f"notice that {names} will be taken away: checkpoint written, training goes on until then"
        record.add("note", step, text=text)
        return True

    @property
    def minutes(self) -> float:
        """Minutes between checkpoints."""
        return min(self.wanted, LEAVING_MINUTES) if self.answered else self.wanted
