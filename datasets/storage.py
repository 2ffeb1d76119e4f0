"""Whole files or none, on a local disk or in a bucket."""

import hashlib
import os
import posixpath
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self, TypeVar, cast

import pyarrow as pa
from pyarrow import fs

from datasets.sample import DataError

T = TypeVar("T")
FIRST_S = 30.0  # that a bucket has for its first answer
GS_FIRST_S, GS_S = 5, 60  # how long Google's library tries again, at first and later; by itself a quarter of an hour
CHECKSUMS = "AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
USUAL = "check the network, the bucket's name, its endpoint (AWS_ENDPOINT_URL) and the credentials"
# what the libraries say -> what helps; the first that is found counts
CURES = {
    r"\b411\b|MissingContentLength|aws-chunked|trailer|checksum|XAmzContentSHA256Mismatch|NotImplemented": (
        f"an S3 server of before 2025 (Ceph, MinIO, Google's S3 door) does not know today's checksums: set {CHECKSUMS}"
    ),
    r"OAuth2|access token|credentials|ACCESS_DENIED|AccessDenied|PERMISSION_DENIED|UNAUTHENTICATED|\b40[13]\b|"
    r"SignatureDoesNotMatch|InvalidAccessKeyId": (
        "give credentials that may read (and, to prepare, write) it: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
        "~/.aws/credentials, GOOGLE_APPLICATION_CREDENTIALS; a public bucket of Google's is gs://anonymous@BUCKET/FOLDER"
    ),
    r"NO_SUCH_BUCKET|NoSuchBucket|Bucket '[^']*' not found|NOT_FOUND|\b404\b": (
        "there is no such bucket; correct its name, or make it first"
    ),
    r"NETWORK_CONNECTION|CURL error|curlCode": f"{USUAL}; on AWS, naming the region helps: s3://BUCKET?region=REGION",
    r"resolving region|PermanentRedirect|\b301\b": "name the bucket's region: s3://BUCKET/FOLDER?region=REGION",
}
_met: set[str] = set()  # buckets that have answered this process


def locate(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a local path or a file://, s3:// or gs:// URI, and the path within it.

    A bucket is asked at once whether it answers; errors of its file system are `DataError`s with their cure.

    Raises:
        DataError: pyarrow does not know this kind of URI, or no bucket answers.
    """
    if "://" not in str(uri):
        return fs.LocalFileSystem(), os.path.abspath(uri)
    try:
        return _remote(str(uri)) if str(uri).startswith(("s3://", "gs://", "gcs://")) else _opened(str(uri))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{uri}: {error}; allowed are local paths, file://, s3:// and gs://") from error


def _opened(uri: str) -> tuple[fs.FileSystem, str]:
    """What pyarrow makes of a URI."""
    system, path = fs.FileSystem.from_uri(uri)
    return system, path.rstrip("/")


def _remote(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a bucket, which has answered, and the path within it."""
    place = re.sub(r"^(\w+://[^/?]*)[^?]*", r"\1", uri)  # the bucket and its options
    with _told(uri):
        if place not in _met:
            first, path = answered(lambda: _opened(_patient(uri, GS_FIRST_S)), FIRST_S)
            answered(lambda: first.get_file_info(path), FIRST_S)
            _met.add(place)
        system, path = answered(lambda: _opened(_patient(uri, GS_S)), FIRST_S)
    return cast(fs.FileSystem, Bucket(system, uri)), path


def _patient(uri: str, seconds: int) -> str:
    """A gs:// URI whose errors come after so many seconds of trying; the user's own limit counts.

    On S3 a small file takes one request instead of the three of a larger one.
    """
    if not uri.startswith(("gs://", "gcs://")):
        return with_option(uri, "allow_delayed_open=true")
    return with_option(uri, f"retry_limit_seconds={seconds}")


def with_option(uri: str, option: str) -> str:
    """The URI with one more option, NAME=VALUE; one that it has already stays."""
    if f"{option.partition('=')[0]}=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}{option}"


class Bucket:
    """A bucket's file system: its errors name the URI and the cure, and while it is silent signals are answered."""

    def __init__(self, system: fs.FileSystem, uri: str) -> None:
        self.system, self.uri = system, uri

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.system, name)
        if not callable(found):
            return found

        def call(*words: Any, **options: Any) -> Any:
            with _told(self.uri):
                made = answered(lambda: found(*words, **options))
            return Upload(made, self.uri) if name == "open_output_stream" else made

        return call

    def __reduce__(self) -> tuple[Any, ...]:
        return Bucket, (self.system, self.uri)


class Upload:
    """A stream into a bucket, whose errors are said like those of `Bucket`."""

    def __init__(self, stream: pa.NativeFile, uri: str) -> None:
        self.stream, self.uri = stream, uri

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, data: bytes) -> int:
        """Pass the bytes on."""
        with _told(self.uri):
            return self.stream.write(data)

    def close(self) -> None:
        """End the file: only now may the bucket refuse it."""
        with _told(self.uri):
            self.stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@contextmanager
def _told(uri: str) -> Iterator[None]:
    """What goes wrong in the body is said with the URI and the cure; a missing file is left to the caller."""
    try:
        yield
    except (FileNotFoundError, pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise
    except (OSError, pa.ArrowException) as error:
        shown = re.sub(r"://(?!anonymous@)[^/@]*@", "://***@", uri)
        raise DataError(f"{shown}: {_short(error)}; {cure(str(error))}") from error


def cure(text: str) -> str:
    """What helps against an error of a bucket's library."""
    return next((help for pattern, help in CURES.items() if re.search(pattern, text, re.I)), USUAL)


def _short(error: BaseException) -> str:
    """What a library says, without its internals."""
    text = " ".join(str(error).split()) or f"{type(error).__name__}: no answer in {FIRST_S:g} s"
    return re.split(r" error_info=| Learn more about", text)[0][:400].rstrip(". ")


def answered(call: Callable[[], T], seconds: float = float("inf")) -> T:
    """What a call of a library returns, made in a thread: Python answers no signal while a library's call is silent.

    Raises:
        TimeoutError: it took longer.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    box: list[Callable[[], T]] = []

    def run() -> None:
        try:
            value = call()
            box.append(lambda: value)
        except BaseException as error:
            box.append(_raiser(error))

    thread, until = threading.Thread(target=run, name="bucket", daemon=True), time.monotonic() + seconds
    thread.start()
    while thread.is_alive():
        thread.join(0.2)  # a join without end would hold signals back
        if thread.is_alive() and time.monotonic() > until:
            raise TimeoutError
    return box[0]()


def _raiser(error: BaseException) -> Callable[[], Any]:
    """A call that raises an error."""

    def call() -> Any:
        raise error

    return call


def below(root: str, name: str) -> str:
    """`name` itself where it is a URI or an absolute path, else `name` below the root.

    Args:
        root: a path, or a URI, whose options are kept.
        name: a path or a URI.
    """
    if "://" in name or os.path.isabs(name):
        return name
    if "://" not in root:
        return os.path.join(os.path.realpath(os.path.expanduser(root)), name)
    place, mark, query = root.partition("?")  # s3://BUCKET/FOLDER?region=… keeps its options
    return f"{place.rstrip('/')}/{name}{mark}{query}"


def exists(system: fs.FileSystem, path: str) -> bool:
    """Whether a file or folder is there."""
    return system.get_file_info(path).type != fs.FileType.NotFound


def names_in(system: fs.FileSystem, folder: str) -> dict[str, bool]:
    """The contents of a folder in order of their names: name -> is a folder. Empty where there is no folder."""
    found = system.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    return {info.base_name: info.type == fs.FileType.Directory for info in sorted(found, key=lambda i: i.base_name)}


def read_bytes(system: fs.FileSystem, path: str) -> bytes:
    """The whole file.

    Raises:
        DataError: there is no such file.
    """
    try:
        with system.open_input_stream(path) as stream:
            return stream.read()
    except FileNotFoundError as error:
        raise DataError(f"{path}: missing; run prepare again or copy the shards again") from error


def temporary_name(name: str) -> str:
    """The name of a file or folder until it is whole: hidden, and no other writer's."""
    return f".{name}.{uuid.uuid4().hex}.tmp"


def is_temporary(name: str) -> bool:
    """Whether a name is of `temporary_name`: a killed writer left the file."""
    return name.startswith(".") and name.endswith(".tmp")


@contextmanager
def written_whole(system: fs.FileSystem, path: str, until: str | None = None) -> Iterator[pa.NativeFile]:
    """A stream to a file that gets its name only when it is closed without an error.

    Args:
        system: the file system.
        path: of the file; its folder is made.
        until: the file's name until then; by default a `temporary_name`.
    """
    folder, name = posixpath.split(path)
    temporary = f"{folder}/{until or temporary_name(name)}"
    system.create_dir(folder, recursive=True)
    try:
        with system.open_output_stream(temporary) as stream:
            yield stream
        system.move(temporary, path)
    except BaseException:
        with suppress(DataError, OSError):  # the error that came first counts
            if exists(system, temporary):
                system.delete_file(temporary)
        raise


class Hashed:
    """A stream that computes the checksum of what is written to it, so that nobody reads the file again for it.

    Args:
        stream: where the bytes go.
    """

    closed = False

    def __init__(self, stream: pa.NativeFile) -> None:
        self.stream = stream
        self.bytes = 0
        self._sum = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """The checksum of all bytes so far, hexadecimal."""
        return self._sum.hexdigest()

    def write(self, data: bytes) -> int:
        """Pass the bytes on."""
        self._sum.update(data)
        self.stream.write(data)
        self.bytes += len(data)
        return len(data)

    def tell(self) -> int:
        """Bytes so far."""
        return self.bytes

    def flush(self) -> None:
        """Flush the stream."""
        self.stream.flush()

    def close(self) -> None:
        """Leave the stream open: its owner closes it."""
        self.closed = True
