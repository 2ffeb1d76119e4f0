"""How full Ray's object store gets, asked of the raylets while something else runs."""

from __future__ import annotations

import threading
from typing import Any

POLL_S = 0.1


class StorePeak(threading.Thread):
    """Watches all nodes of the session from a thread; `bytes` is the fullest that one store was.

    Public calls do not tell: `available_resources()` keeps saying that the whole store is free.
    """

    def __init__(self) -> None:
        super().__init__(name="store-peak", daemon=True)
        self.bytes = self.spilled = 0
        self.ending = threading.Event()

    def __enter__(self) -> StorePeak:
        self.start()
        return self

    def __exit__(self, *unused: Any) -> None:
        self.ending.set()
        self.join()

    def run(self) -> None:
        import ray
        from ray._private.internal_api import node_stats

        nodes = [(n["NodeManagerAddress"], n["NodeManagerPort"]) for n in ray.nodes() if n["Alive"]]
        while not self.ending.wait(POLL_S):
            for address, port in nodes:
                stats = node_stats(address, port, include_memory_info=False).store_stats
                self.bytes = max(self.bytes, stats.object_store_bytes_used)
                self.spilled = max(self.spilled, stats.spilled_bytes_total)
