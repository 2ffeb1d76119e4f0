"""A port, and the loop that answers on it until it is asked to end."""

from __future__ import annotations

import ipaddress
import logging
import socket
import sys
from typing import TYPE_CHECKING

from pipelines.base.errors import InputError

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

IDLE_CONNECTIONS = 256  # besides those that are answered
DRAIN_S = 15  # at the end, for answers that were begun


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listener(host: str, port: int) -> socket.socket:
    """A socket that listens; 0 takes any port that is free.

    Raises:
        InputError: the port is taken, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"--host {host}: {error.strerror}. Give an address of this machine") from None
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(IDLE_CONNECTIONS)
    except OSError as error:
        made.close()
        raise InputError(
            f"--host {host} --port {port}: {error.strerror}. Give another --port (0: any that is free), or an "
            "address of this machine"
        ) from None
    return made


def address_of(listening: socket.socket) -> str:
    """Where a socket listens, as a URL."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def answer(app: FastAPI, listening: socket.socket, waiting: int, log: bool) -> None:
    """Answer until SIGTERM or Ctrl-C, which are raised again once what was begun is answered.

    Args:
        app: what answers.
        listening: of `listener`.
        waiting: requests that are answered at a time.
        log: print a line for each request.
    """
    import uvicorn

    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # a client's bad HTTP is not news
    if log:
        shown = logging.StreamHandler(sys.stdout)
        shown.setFormatter(logging.Formatter("%(asctime)s  %(message)s"))
        access = logging.getLogger("uvicorn.access")
        access.addHandler(shown)
        access.setLevel(logging.INFO)
    uvicorn.Server(settings(app, waiting, log)).run(sockets=[listening])


def settings(app: FastAPI, waiting: int, log: bool) -> uvicorn.Config:
    """How uvicorn answers: with bounds, and without telling what it is."""
    import uvicorn

    return uvicorn.Config(
        app, loop="asyncio", lifespan="off", ws="none", log_config=None, access_log=log, server_header=False,
        proxy_headers=False, limit_concurrency=waiting + IDLE_CONNECTIONS, timeout_graceful_shutdown=DRAIN_S,
    )  # fmt: skip
