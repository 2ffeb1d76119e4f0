"""What a server counts, in Prometheus' text."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Meters:
    """The counters of one server; each server has its own, so that two in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "context_heads_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "context_heads_request_seconds", "From the header to the last byte of the answer, seconds.", ["route"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.waiting = Gauge("context_heads_waiting", "Images that wait or are predicted.", registry=self.registry)
        self.replicas = Gauge("context_heads_replicas", "Replicas that run.", registry=self.registry)
        self.pixels = Counter("context_heads_pixels", "Pixels that were predicted.", registry=self.registry)
        self.batches = Histogram(
            "context_heads_batch_images", "Images that a predicted image shared its batch with, itself included.",
            buckets=BATCHES, registry=self.registry,
        )  # fmt: skip

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self.registry)


class Counting:
    """Counts every request and its time, whatever becomes of it.

    Args:
        app: what answers.
        meters: what counts.
        routes: paths that are counted under their name; all others are one, however many a stranger makes up.
    """

    def __init__(self, app: ASGIApp, meters: Meters, routes: Collection[str]) -> None:
        self.app, self.meters, self.routes = app, meters, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = time.perf_counter(), 500
        route = scope["path"] if scope["path"] in self.routes else "other"

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            self.meters.requests.labels(route, str(status)).inc()
            self.meters.seconds.labels(route).observe(time.perf_counter() - began)
