"""Sends a chain's stages to MLflow while they grow, and what a server that was away missed, once it is back."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from pipelines.runs.folder import StageFolder

POLL_S = 0.5
RETRY_S = 15.0  # while the server is away
GOES_ON = "  training goes on; the record keeps everything and is sent when MLflow is back"


class Sender:
    """Delivers stages to MLflow as they grow; tries again every `RETRY_S` while the server is away.

    Args:
        tracker: the chain's `Tracker`.
        places: the stages, in their order.
    """

    def __init__(self, tracker: Any, places: Sequence[StageFolder]) -> None:
        self.tracker, self.places, self.away = tracker, places, not tracker.ready

    def pause(self) -> float:
        """Seconds until it tries again."""
        return RETRY_S if self.away else POLL_S

    def deliver(self) -> None:
        """All stages that have begun, in their order."""
        try:
            self.tracker.connect()
            for place in self.places:
                if place.record.exists():
                    self.tracker.deliver(place)
        except Exception as error:  # whatever a client can raise
            self.tracker.warn(error)
            if not self.away:
                print(GOES_ON, file=sys.stderr, flush=True)
            self.away = True
        else:
            if self.away:
                print(f"MLflow at {self.tracker.uri} is back and has everything", file=sys.stderr, flush=True)
            self.away, self.tracker.told = False, ""
