"""One process at a time for a run in a bucket, where there are no locks: a note that its holder renews."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import time
from collections.abc import Iterator
from typing import Any

import psutil

from pipelines.base.errors import SetupError
from pipelines.base.files import to_json
from pipelines.base.polling import Polling
from pipelines.runs.mirror import StoreFailed, attempt

RENEW_S = 10.0
LAPSE_S = 35.0  # a note that stays as it is for so long is of a process that was killed
OLD_S = 900.0  # an older one is not watched: S3 refuses requests of machines whose clocks are so far off
SETTLE_S = 1.0  # two processes that begin at once: the later note counts
LOOK_S = 1.0


class Lease:
    """The note at a place of a bucket.

    Args:
        system: the bucket's file system.
        path: of the note in it.
        place: the run's address, for people.
    """

    def __init__(self, system: Any, path: str, place: str) -> None:
        self.system, self.path, self.place = system, path, place
        own = psutil.Process()
        self.own = {"host": host(), "pid": own.pid, "began": own.create_time(), "id": secrets.token_hex(8)}
        self.beat = 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold it while the body runs.

        Raises:
            SetupError: another process holds it.
            StoreFailed: the bucket cannot be read, or not be written.
        """
        if (other := self.read()) and not is_gone(other):
            self.watch(other)
        self.write()
        time.sleep(SETTLE_S)
        if (other := self.read()) and other["id"] != self.own["id"]:
            raise self.taken(other)
        try:
            with Polling(self.renew, lambda: RENEW_S, "lease"):
                yield
        finally:  # after the last renewal
            with contextlib.suppress(StoreFailed, FileNotFoundError):
                attempt(lambda: self.system.delete_file(self.path), self.place, ())

    def watch(self, other: dict[str, Any]) -> None:
        """Wait until another's note has lapsed.

        Raises:
            SetupError: it is renewed meanwhile.
        """
        print(
            f"{self.place}: a process on {other['host'].partition('/')[0]} trained into it, and did not say that it "
            f"ended; it is watched for {LAPSE_S:g} s",
            flush=True,
        )
        until = time.monotonic() + LAPSE_S
        while time.monotonic() < until:
            time.sleep(LOOK_S)
            now = self.read()
            if now is None:
                return
            if (now["id"], now["beat"]) != (other["id"], other["beat"]):
                raise self.taken(now)

    def taken(self, other: dict[str, Any]) -> SetupError:
        """What to say of another holder."""
        return SetupError(
            f"another process trains in {self.place} (process {other['pid']} on {other['host'].partition('/')[0]}); "
            "wait for it, or give this run its own name=…"
        )

    def read(self) -> dict[str, Any] | None:
        """The note as it is now; None where there is none."""

        def get() -> bytes:
            with self.system.open_input_stream(self.path) as stream:
                return stream.read()

        try:
            return json.loads(attempt(get, self.place, ()))
        except FileNotFoundError:
            return None

    def write(self) -> None:
        """Put ours there."""
        self.beat += 1
        note = self.own | {"beat": self.beat, "time": time.time()}

        def put() -> None:
            with self.system.open_output_stream(self.path) as stream:
                stream.write(to_json(note).encode())

        attempt(put, self.place, ())

    def renew(self) -> None:
        """Say that this process still runs; while the bucket is silent nobody else could begin either."""
        with contextlib.suppress(StoreFailed):
            self.write()


def host() -> str:
    """This machine, and which of its process numbers are meant: containers have their own."""
    try:
        return f"{platform.node()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{platform.node()}/"


def is_gone(note: dict[str, Any]) -> bool:
    """Whether the process of a note cannot run any more."""
    if time.time() - note["time"] > OLD_S:
        return True
    if note["host"] != host():
        return False
    try:
        return abs(psutil.Process(note["pid"]).create_time() - note["began"]) > 1
    except psutil.NoSuchProcess:
        return True
