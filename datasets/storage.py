"""Whole files or none, on a local disk or in a bucket."""

import hashlib
import os
import posixpath
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
from pyarrow import fs

from datasets.sample import DataError


def locate(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a local path or a file://, s3:// or gs:// URI, and the path within it.

    Raises:
        DataError: pyarrow does not know this kind of URI, or no bucket answers.
    """
    if "://" not in str(uri):
        return fs.LocalFileSystem(), os.path.abspath(uri)
    try:
        system, path = fs.FileSystem.from_uri(str(uri))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{uri}: {error}; allowed are local paths, file://, s3:// and gs://") from error
    except OSError as error:  # S3 asks the bucket for its region at once
        cure = "check network, bucket and credentials, or name the region: s3://BUCKET/FOLDER?region=REGION"
        raise DataError(f"{uri}: {error}; {cure}") from error
    return system, path.rstrip("/")


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
