"""How full Ray's object store gets, asked of the raylets while something else runs."""

from __future__ import annotations

from pipelines.base.polling import Polling
from pipelines.cluster.inside_ray import store_bytes


class StorePeak(Polling):
    """Watches all nodes of the session from a thread; `bytes` is the fullest that one store was."""

    def __init__(self) -> None:
        import ray  # not before a door has set it up

        super().__init__(self.measure, lambda: 0.1, "store-peak")
        self.bytes = self.spilled = 0
        self.nodes = [(n["NodeManagerAddress"], n["NodeManagerPort"]) for n in ray.nodes() if n["Alive"]]

    def measure(self) -> None:
        """Ask each node."""
        for address, port in self.nodes:
            used, spilled = store_bytes(address, port)
            self.bytes, self.spilled = max(self.bytes, used), max(self.spilled, spilled)
