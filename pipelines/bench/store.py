"""How full Ray's object store gets, asked of the raylets while something else runs."""

from __future__ import annotations

from pipelines.bench.watch import Watch


class StorePeak(Watch):
    """Watches all nodes of the session from a thread; `bytes` is the fullest that one store was.

    Public calls do not tell: `available_resources()` keeps saying that the whole store is free.
    """

    POLL_S = 0.1

    def __init__(self) -> None:
        import ray  # not before a door has set it up

        super().__init__()
        self.bytes = self.spilled = 0
        self.nodes = [(n["NodeManagerAddress"], n["NodeManagerPort"]) for n in ray.nodes() if n["Alive"]]

    def look(self) -> None:
        from ray._private.internal_api import node_stats

        for address, port in self.nodes:
            stats = node_stats(address, port, include_memory_info=False).store_stats
            self.bytes = max(self.bytes, stats.object_store_bytes_used)
            self.spilled = max(self.spilled, stats.spilled_bytes_total)
