"""A run's folder and its copy in a bucket: what changed on one side is brought to the other, in whole files.

Each file has one writer at a time, so nothing is ever merged. A bucket shows an object when its upload has ended, never
in part. Files go up in the order in which a reader may rely on them, see `COMMIT`: whoever finds a checkpoint finds all
lines of the record before it, and whoever finds a line finds the pictures that it names.
"""

from __future__ import annotations

import os
import posixpath
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
from pyarrow import fs

from datasets.sample import DataError
from datasets.storage import below, is_temporary, locate
from pipelines.base.addresses import hide_secret
from pipelines.base.files import replacing
from pipelines.runs.folder import LEFT_HERE, commit_of

T = TypeVar("T")
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds between attempts at a bucket that fails, each with up to half more
CHUNK = 32 << 20  # bytes of one request for a part of an object
AT_ONCE = 8  # small files that travel together


class StoreFailed(RuntimeError):
    """A bucket does not take or give a file, after several attempts. Not an error of the input: a later may succeed."""


class State(NamedTuple):
    """A file as it was last seen: its bytes and its time, in ns on a disk and in s in a bucket."""

    size: int
    time: int


class Mirror:
    """A folder of this machine and its copy below a URI.

    It may be used by several threads; one of them travels at a time.

    Args:
        folder: of this machine.
        uri: where its copy is.

    Raises:
        DataError: no bucket answers there.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder, self.uri = folder, uri
        self.system, self.root = locate(uri)
        self.sent: dict[str, State] = {}  # our files, as they were when both sides were last equal
        self.met: dict[str, State] = {}  # the bucket's, likewise
        self.listed: dict[str, State] = {}  # the bucket's, as they were last listed
        self.lock = threading.RLock()

    def push(self, pauses: tuple[float, ...] = PAUSES) -> None:
        """Bring what is new here to the bucket, and remove there what was removed here.

        Raises:
            StoreFailed: the bucket does not take it.
        """
        with self.lock:
            found = self.here()
            new = [name for name, state in found.items() if self.sent.get(name) != state]
            for group in grouped(new):
                self.together(lambda name: self.upload(name, found[name], pauses), group)
            for name in [name for name in self.sent if name not in found]:
                attempt(partial(self.delete, name), self.at(name), pauses)
                del self.sent[name]
                self.met.pop(name, None)

    def pull(self, wanted: Callable[[str], bool] = lambda name: True, pauses: tuple[float, ...] = PAUSES) -> None:
        """Bring what is new in the bucket here, and remove here what was removed there.

        Args:
            wanted: which files, by their names.
            pauses: between attempts.

        Raises:
            StoreFailed: the bucket does not give it.
        """
        with self.lock:
            first = self.there(pauses)
            # what others are relied on by is read before the others are listed, and gets its name after them
            late = [name for name in self.changed(first, wanted) if commit_of(name) and small(name)]
            content = {name: self.read(name, first[name].size, pauses) for name in late}
            listed = self.there(pauses) | {name: first[name] for name in late} if late else first
            early = [name for name in self.changed(listed, wanted) if name not in content]
            for group in grouped(early):
                self.together(lambda name: self.download(name, listed[name], pauses), group)
            for name in sorted(late, key=commit_of):
                self.place(name, content[name], first[name])
            for name in [name for name in self.met if name not in listed and wanted(name)]:
                (self.folder / name).unlink(missing_ok=True)
                del self.met[name]
                self.sent.pop(name, None)

    def look(self, name: str) -> None:
        """Bring one small file here, if it is new; cheaper than `pull`, which lists all.

        Raises:
            StoreFailed: the bucket does not answer.
        """
        info = attempt(lambda: self.system.get_file_info(f"{self.root}/{name}"), self.at(name), ())
        if info.type == fs.FileType.File and self.met.get(name) != state_of(info):
            self.download(name, state_of(info), ())

    def send(self, name: str) -> None:
        """Bring one small file to the bucket.

        Raises:
            StoreFailed: the bucket does not take it.
        """
        if state := state_here(self.folder / name):
            self.upload(name, state, PAUSES)

    @property
    def address(self) -> str:
        """The URI without its options, for people."""
        return hide_secret(self.uri).partition("?")[0].rstrip("/")

    def at(self, name: str) -> str:
        """The URI of a file, for people."""
        return hide_secret(below(self.uri, name))

    def here(self) -> dict[str, State]:
        """The files of the folder that belong into the bucket, but for empty ones; later turns are looked at first."""
        names = list(self.files())
        found = {}
        for commit in sorted({commit_of(name) for name in names} | {0}, reverse=True):
            for name in names if commit else self.files():
                if commit_of(name) == commit and (state := state_here(self.folder / name)) and state.size:
                    found[name] = state
        return found

    def files(self) -> Iterator[str]:
        """Names of the folder's files, but for those that stay on this machine."""
        for where, folders, files in os.walk(self.folder):
            base = os.path.relpath(where, self.folder)
            folders[:] = [name for name in folders if not name.startswith(".") and (base, name) not in LEFT_HERE]
            for name in files:
                if not name.startswith("."):
                    yield name if base == "." else posixpath.join(*Path(base).parts, name)

    def there(self, pauses: tuple[float, ...]) -> dict[str, State]:
        """The bucket's files below the URI."""
        selector = fs.FileSelector(self.root, recursive=True, allow_not_found=True)
        listed = attempt(lambda: self.system.get_file_info(selector), hide_secret(self.uri), pauses)
        names = {posixpath.relpath(info.path, self.root): info for info in listed if info.type == fs.FileType.File}
        self.listed = {n: state_of(info) for n, info in names.items() if not is_temporary(posixpath.basename(n))}
        return self.listed

    def changed(self, listed: dict[str, State], wanted: Callable[[str], bool]) -> list[str]:
        """Names of the bucket's files that are not as they were last met; what was changed here since then stays."""
        new = [name for name, state in listed.items() if wanted(name) and self.met.get(name) != state]
        return [name for name in new if state_here(self.folder / name) in (None, self.sent.get(name))]

    def together(self, travel: Callable[[str], None], names: list[str]) -> None:
        """Several files at once, where they are small; one after the other where they are not."""
        if len(names) < 2 or not all(map(small, names)):
            for name in names:
                travel(name)
            return
        with ThreadPoolExecutor(min(AT_ONCE, len(names)), "bucket") as pool:
            list(pool.map(travel, names))

    def upload(self, name: str, state: State, pauses: tuple[float, ...]) -> None:
        """Bring a file to the bucket, and see that all of it arrived."""
        path, target = self.folder / name, f"{self.root}/{name}"

        def send() -> None:
            # in one piece: a stream that is closed after half of the pieces would leave half a file
            content = content_of(path, state.size)
            stream = self.system.open_output_stream(target)
            stream.write(content)
            stream.close()
            info = self.system.get_file_info(target)
            if info.type != fs.FileType.File or info.size != len(content):
                raise OSError(f"{info.size} of {len(content)} bytes arrived")
            self.met[name] = state_of(info)

        try:
            attempt(send, self.at(name), pauses)
        except FileNotFoundError:  # pruned or replaced since it was listed: the next push sees that
            return
        self.sent[name] = state

    def read(self, name: str, size: int, pauses: tuple[float, ...]) -> bytes:
        """The content of a file of the bucket."""

        def get() -> bytes:
            with self.system.open_input_file(f"{self.root}/{name}") as source:
                return source.read()

        return attempt(get, self.at(name), pauses) if size else b""

    def download(self, name: str, state: State, pauses: tuple[float, ...]) -> None:
        """Bring a file here, whole or not at all; one that is gone by now is left out."""

        def get() -> None:
            with replacing(self.folder / name) as temporary:
                fetch(self.system, f"{self.root}/{name}", temporary)

        try:
            attempt(get, self.at(name), pauses)
        except FileNotFoundError:
            return
        self.note(name, state)

    def place(self, name: str, content: bytes, state: State) -> None:
        """Give a file that was read its name here."""
        with replacing(self.folder / name) as temporary:
            temporary.write_bytes(content)
        self.note(name, state)

    def note(self, name: str, state: State) -> None:
        """Both sides are equal."""
        self.met[name] = state
        if found := state_here(self.folder / name):
            self.sent[name] = found

    def delete(self, name: str) -> None:
        """Remove a file from the bucket; one that is gone is fine."""
        try:
            self.system.delete_file(f"{self.root}/{name}")
        except FileNotFoundError:
            return


def small(name: str) -> bool:
    """Whether a file is small by its kind: all but weights."""
    return not name.endswith(".pt")


def grouped(names: list[str]) -> Iterator[list[str]]:
    """Names in the order in which they may be relied on, those that do not rely on each other together."""
    for key in sorted({(commit_of(name), not small(name)) for name in names}):
        yield sorted(name for name in names if (commit_of(name), not small(name)) == key)


def attempt(call: Callable[[], T], place: str, pauses: tuple[float, ...]) -> T:
    """What a call of a bucket gives, tried again after each of some pauses (s).

    Raises:
        StoreFailed: it failed each time.
        FileNotFoundError: there is no such file.
    """
    said = ""
    for pause in (*pauses, None):
        try:
            return call()
        except FileNotFoundError:
            raise
        except (DataError, OSError, pa.ArrowException) as error:
            said = " ".join(str(error).split()) or type(error).__name__
        if pause is not None:
            time.sleep(pause * (1 + random.random() / 2))
    # outside of the handler: what it is caused by would be taken for an error of the input
    raise StoreFailed(hide_secret(said if place in said else f"{place}: {said}"))


def fetch(system: Any, source: str, path: Path) -> None:
    """Copy a bucket's file to one of this machine, in large parts."""
    with path.open("wb") as sink, system.open_input_file(source) as stream:
        while data := stream.read(CHUNK):
            sink.write(data)


def content_of(path: Path, size: int) -> Any:
    """The first `size` bytes of a file, mapped; of a record only its whole lines."""
    if not size:
        return b""
    with pa.memory_map(str(path)) as file:
        content = file.read_buffer(size)
    if path.suffix == ".jsonl":
        return content.slice(0, content.to_pybytes().rfind(b"\n") + 1)
    return content


def state_of(info: fs.FileInfo) -> State:
    """A bucket's file as it is."""
    return State(info.size, int((info.mtime_ns or 0) // 10**9))


def state_here(path: Path) -> State | None:
    """A file as it is on this machine; None where it is gone."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return State(found.st_size, found.st_mtime_ns)
