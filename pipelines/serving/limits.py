"""What a server takes: bytes, pixels and kinds of images, and what it says to the rest, before anything is decoded."""

from __future__ import annotations

import hmac
import os
from dataclasses import dataclass
from pathlib import Path

from pipelines.base.errors import InputError
from pipelines.base.files import to_json

TOKEN = "CONTEXT_HEADS_TOKEN"  # the variable that holds a server's token
LEAST_TOKEN = 16  # characters: shorter ones can be guessed


@dataclass(frozen=True)
class Limits:
    """The most that one request may ask for.

    Attributes:
        bytes: of an image file.
        pixels: of an image.
        waiting: requests at a time, those that wait for a replica included; their bytes are in memory.
        body_s: seconds in which a body must have arrived.
        answer_s: seconds in which a replica must have answered.
    """

    bytes: int = 20 << 20
    pixels: int = 16_000_000
    waiting: int = 32
    body_s: float = 30.0
    answer_s: float = 120.0

    @property
    def values(self) -> int:
        """Of probabilities in one answer, pixels times classes; two bytes each."""
        return 4 * self.pixels


class Refusal(Exception):
    """A request that is not answered: what was given, what is allowed, and the cure.

    Args:
        status: of HTTP.
        given: what the request was or held.
        allowed: what it may be.
        cure: what to do.
    """

    def __init__(self, status: int, given: str, allowed: str, cure: str) -> None:
        super().__init__(status, given, allowed, cure)
        self.status, self.given, self.allowed, self.cure = status, given, allowed, cure

    @property
    def body(self) -> bytes:
        """The refusal as JSON."""
        error = {"given": self.given, "allowed": self.allowed, "cure": self.cure}
        return to_json({"status": self.status, "error": error}).encode()

    @property
    def headers(self) -> dict[str, str]:
        """What HTTP wants next to the status."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": "1"} if self.status == 503 else {}


def check_bytes(count: int, limits: Limits) -> None:
    """Refuse a body that is too large, by what it announces or by what has come.

    Raises:
        Refusal: status 413.
    """
    if count > limits.bytes:
        raise Refusal(
            413, f"a body of {count:,} bytes or more", f"at most {limits.bytes:,} bytes",
            "send a smaller file: JPEG in place of PNG, or fewer pixels",
        )  # fmt: skip


def check_pixels(height: int, width: int, limits: Limits) -> None:
    """Refuse an image that is too large once decoded.

    Raises:
        Refusal: status 413.
    """
    if height * width > limits.pixels:
        raise Refusal(
            413, f"an image of {width:,}x{height:,} pixels (width x height)", f"at most {limits.pixels:,} pixels",
            "send a smaller image, cut it into tiles, or have it predicted from a file: python -m pipelines.predict",
        )  # fmt: skip


def check_values(height: int, width: int, classes: int, limits: Limits) -> None:
    """Refuse an answer that would be too large.

    Raises:
        Refusal: status 413.
    """
    if (count := height * width * classes) > limits.values:
        raise Refusal(
            413, f"probabilities of {width:,}x{height:,} pixels in {classes} classes: {count:,} values",
            f"at most {limits.values:,} values", "send a smaller image, or ask for answer=mask",
        )  # fmt: skip


def read_token(path: Path | None) -> str | None:
    """A server's token: from the file, else from the environment, else None. It is never an argument: `ps` shows those.

    Raises:
        InputError: the file does not read, or the token is too short or holds what a header cannot.
    """
    if path is not None:
        try:
            token, place = path.expanduser().read_text(encoding="utf-8").strip(), f"--token-file {path}"
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"--token-file {path}: cannot be read: {error}. Give a file that holds the token"
            ) from None
    elif TOKEN in os.environ:
        token, place = os.environ[TOKEN].strip(), TOKEN
    else:
        return None
    if len(token) < LEAST_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
        raise InputError(
            f"{place}: a token has {LEAST_TOKEN} or more printable ASCII characters without spaces, this one has "
            f"{len(token)}. Make one: python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return token


def check_token(given: str | None, token: str | None) -> None:
    """Make sure that a request holds the server's token, where there is one; the time taken tells nothing of it.

    Args:
        given: the request's; None where it has none.
        token: the server's; None where everybody may ask.

    Raises:
        Refusal: status 401.
    """
    fits = hmac.compare_digest((given or "").encode("utf-8", "replace"), (token or "").encode())
    if token is not None and not fits:
        raise Refusal(
            401, "no token" if given is None else "a wrong token", "the token that this server was started with",
            "send the header `Authorization: Bearer TOKEN`",
        )  # fmt: skip
