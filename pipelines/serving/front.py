"""The HTTP side of a server: routes, token, limits, counters. What predicts is behind `Model`, in other processes.

Ray Serve's own proxy takes in a body as fast as it comes, whatever the application behind it allows. So the process
that the user starts speaks HTTP itself, with a bound for each body and for their number, and asks Serve's replicas.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from pipelines.base.door import PROJECT, VERSION
from pipelines.serving.answers import KINDS, MEDIA, About, Kind, Model
from pipelines.serving.counted import Counting, Meters
from pipelines.serving.limits import Limits, Refusal, check_bytes, check_token
from pipelines.serving.refusals import JSON, add_refusals

PAGE = Path(__file__).with_name("page.html")
# The page names no other place, and a browser that obeys this could load nothing from one.
POLICY = (
    "default-src 'none'; img-src 'self' blob: data:; connect-src 'self'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
NO_IMAGE = ("multipart/", "text/", JSON)  # how types begin of bodies that are surely none


class Front:
    """The routes of one server.

    Args:
        model: what predicts.
        about: what page and programs are told of the model.
        limits: what a request may ask for.
        token: that a request must hold; None where everybody may ask.
    """

    def __init__(self, model: Model, about: About, limits: Limits, token: str | None = None) -> None:
        self.model, self.about, self.limits, self.token = model, about, limits, token
        self.meters, self.taken = Meters(), 0

    def app(self) -> FastAPI:
        """The application, for any ASGI server."""
        made = FastAPI(
            title=PROJECT, version=VERSION, docs_url=None, redoc_url=None,  # those load scripts from other places
            description="Semantic segmentation of images. Errors are JSON: what was given, what is allowed, a cure.",
        )  # fmt: skip
        closed = [Depends(self.allow)]
        made.get("/", response_class=Response, include_in_schema=False)(self.page)
        made.post("/predict", response_class=Response, dependencies=closed, **PREDICT)(self.predict)
        made.get("/model", dependencies=closed, summary="Classes, colours, protocol, limits")(self.describe)
        made.get("/healthz", summary="Whether this process answers")(self.health)
        made.get("/readyz", summary="Whether a replica can predict")(self.ready)
        made.get("/metrics", response_class=Response, dependencies=closed, summary="For Prometheus")(self.metrics)
        routes = [getattr(route, "path", "") for route in made.routes]
        made.add_middleware(Counting, meters=self.meters, routes=routes)
        add_refusals(made)
        return made

    async def allow(
        self, given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]
    ) -> None:
        """Refuse a request without the token."""
        check_token(given.credentials if given else None, self.token)

    async def page(self) -> Response:
        """The page for people."""
        headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
        return Response(PAGE.read_bytes(), media_type="text/html; charset=utf-8", headers=headers)

    async def predict(
        self,
        request: Request,
        answer: Annotated[Kind, Query(description="areas: JSON; mask: palette PNG; probabilities: npz")] = "areas",
        mask: Annotated[bool, Query(description="with answer=areas: the mask too, as base64 of its PNG")] = False,
    ) -> Response:
        """Predict the image that is the body."""
        with self.place():
            data = await self.body(request)
            try:
                async with asyncio.timeout(self.limits.answer_s):
                    said = await self.model.answer(data, answer, mask)
            except TimeoutError:
                raise Refusal(
                    504, f"an image that took longer than {self.limits.answer_s:g} s", "what is answered in that time",
                    "send a smaller image, or try again when fewer wait",
                ) from None  # fmt: skip
        if isinstance(said, Refusal):
            raise said
        self.meters.pixels.inc(said.pixels)
        self.meters.batches.observe(said.batch)
        return Response(said.body, media_type=MEDIA[answer])

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place among those that are answered: memory holds no more bodies than there are places."""
        if self.taken >= self.limits.waiting:
            raise Refusal(
                503, "one more request", f"{self.limits.waiting} at a time", "try again in a second, or add --replicas"
            )
        self.taken += 1
        self.meters.waiting.set(self.taken)
        try:
            yield
        finally:
            self.taken -= 1
            self.meters.waiting.set(self.taken)

    async def body(self, request: Request) -> bytes:
        """The image file that is a request's body.

        Raises:
            Refusal: another kind of body, too many bytes, or they come too slowly.
        """
        check_kind(request)
        check_bytes(int(request.headers.get("content-length") or 0), self.limits)
        data = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_s):
                async for part in request.stream():
                    check_bytes(len(data) + len(part), self.limits)
                    data += part
        except TimeoutError:
            raise Refusal(
                408, f"{len(data):,} bytes in {self.limits.body_s:g} s", "a body that comes whole in that time",
                "send a smaller file, or over a faster line",
            ) from None  # fmt: skip
        return bytes(data)

    async def describe(self) -> dict[str, Any]:
        """What the model knows, and what a request may ask for."""
        limits = {"bytes": self.limits.bytes, "pixels": self.limits.pixels, "kinds": KINDS}
        return asdict(self.about) | {"limits": limits}

    async def health(self) -> dict[str, str]:
        """This process answers."""
        return {"status": "alive"}

    async def ready(self) -> dict[str, Any]:
        """How many replicas can predict.

        Raises:
            Refusal: none.
        """
        if count := await self.model.running():
            return {"status": "ready", "replicas": count}
        raise Refusal(503, "0 replicas that run", "1 or more", "wait: Ray Serve starts them again")

    async def metrics(self) -> Response:
        """The counters."""
        self.meters.replicas.set(await self.model.running())
        return Response(self.meters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def check_kind(request: Request) -> None:
    """Refuse a body that says of itself that it is no image; what others are, their first bytes tell later.

    Raises:
        Refusal: status 415.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    packed = request.headers.get("content-encoding", "identity").lower()
    if packed != "identity" or kind.startswith(NO_IMAGE):
        raise Refusal(
            415, f"a body of type {kind}" if packed == "identity" else f"a body packed by {packed}",
            f"an image file: {', '.join(KINDS)}",
            "send the file itself as the body: curl --data-binary @FILE -H 'Content-Type: image/jpeg' URL",
        )  # fmt: skip


PREDICT: dict[str, Any] = {
    "summary": "Predict an image",
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in KINDS},
        }
    },
    "responses": {
        200: {
            "description": "areas: classes with their pixels and shares; mask: class ids with a palette; "
            "probabilities: npz with `probabilities` float16 (K, H, W) and `classes`",
            "content": {media: {} for media in MEDIA.values()},
        },
        401: {"description": "no token, or a wrong one"},
        408: {"description": "the body came too slowly"},
        413: {"description": "too many bytes, pixels, or probabilities"},
        415: {"description": "no image of a kind that is read"},
        422: {"description": "a damaged image, or a bad parameter"},
        503: {"description": "too many requests at a time, or no replica runs"},
        504: {"description": "it took too long"},
    },
}
