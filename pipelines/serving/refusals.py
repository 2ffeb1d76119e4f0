"""How errors of HTTP are said: as JSON, with what was given, what is allowed, and the cure."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pipelines.serving.limits import Refusal

GONE = 499  # nginx' status for a client that left; only the counters see it
JSON = "application/json"
SHOWN = 200  # characters of what a stranger sent


def add_refusals(app: FastAPI) -> None:
    """Have an application say its errors so."""
    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(HTTPException, unrouted)
    app.add_exception_handler(RequestValidationError, misasked)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, failed)


def response(refusal: Refusal) -> Response:
    """A refusal, sent."""
    return Response(refusal.body, refusal.status, refusal.headers, JSON)


async def refused(request: Request, error: Exception) -> Response:
    """The answer to a request that is not predicted."""
    if not isinstance(error, Refusal):
        raise error
    return response(error)


async def unrouted(request: Request, error: Exception) -> Response:
    """The answer to a path or a method that there is not."""
    if not isinstance(error, HTTPException):
        raise error
    headers = dict(error.headers or {})
    methods = next((value for name, value in headers.items() if name.lower() == "allow"), None)
    allowed = f"{methods} here" if methods else f"/, {', '.join(request.app.openapi()['paths'])}"
    asked = f"{request.method} {request.url.path[:SHOWN]}"
    answer = response(Refusal(error.status_code, asked, allowed, "see /openapi.json for all that can be asked"))
    answer.headers.update(headers)
    return answer


async def misasked(request: Request, error: Exception) -> Response:
    """The answer to a query with a bad value."""
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    name, given = first["loc"][-1], str(first.get("input"))[:SHOWN]
    allowed = str(first["msg"]).removeprefix("Input should be ")
    return response(Refusal(422, f"{name}={given}", f"{name}: {allowed}", "correct it; /openapi.json has all of them"))


async def gone(request: Request, error: Exception) -> Response:
    """The client left while it sent."""
    return Response(status_code=GONE)


async def failed(request: Request, error: Exception) -> Response:
    """A fault of ours, whose traceback is in the log."""
    return response(Refusal(500, "a request that this server failed on", "any", "see the server's log, and report it"))
