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
    """The file system, and the path within it, of a local path or a file://, s3:// or gs:// URI.

    Raises:
        DataError: pyarrow knows no such URI, or no bucket answers.
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
    """`name` itself when it is a URI or an absolute path, else below the root, a path or a URI with its options."""
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
    """What lies directly in a folder, in order of names: name -> is a folder. Empty where there is no folder."""
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
        raise DataError(f"{path}: missing; run prepare again or copy the shards anew") from error


@contextmanager
def written_whole(system: fs.FileSystem, path: str) -> Iterator[pa.NativeFile]:
    """A stream to a file that bears its name only once it is closed without an error."""
    folder, name = posixpath.split(path)
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
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
    """A stream that knows the checksum of what was written to it, so that nothing is read back for it.

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
        """Of all bytes so far, hexadecimal."""
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
        """Pass it on."""
        self.stream.flush()

    def close(self) -> None:
        """Leave the stream open: who opened it closes it."""
        self.closed = True


def is_temporary(name: str) -> bool:
    """Whether a file is what a killed `written_whole` left."""
    return name.startswith(".") and name.endswith(".tmp")
