"""Damage inside an image file that decoders pass over: checked once, when shards are written or verified."""

import contextlib
import os
import re
import tempfile
import threading
import zlib
from collections.abc import Iterator

import numpy as np

from datasets.sample import DAMAGED, PNG, DataError, decode_image

CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"tRNS")
"""The chunks of a PNG that its pixels depend on; the end is checked by itself."""
STRAY, PADDING = 2, 16
"""So many bytes behind the last pixels of a JPEG are some writer's habit; so many where all of them are the same."""
DECODERS = r"JPEG|libpng|imgcodecs|grfmt|loadsave|TIFF|^> |^where$|^\s*'channels|^$"
"""What lines of decoders look like."""
LISTENING = threading.Lock()


def decode_checked(data: bytes) -> np.ndarray:
    """Decode an image as `decode_image` does, and refuse what the decoder only warns of.

    libjpeg fills the rest of a broken stream with grey and writes a line to stderr, so this reads stderr meanwhile.

    Args:
        data: the file's bytes, JPEG or PNG.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        DataError: the file is damaged.
    """
    if data.startswith(PNG):
        check_png(data)
    with hearing() as heard:
        image = decode_image(data)
    for line in heard:
        if _tells_damage(line, data):
            raise DataError(f"damaged image (the decoder says: {line}); fetch the file again", DAMAGED)
    return image


def check_png(data: bytes) -> None:
    """Check the checksums that a PNG holds; decoders skip some of them.

    Raises:
        DataError: a chunk is cut or damaged, or the compressed pixels do not end.
    """
    view, place, pixels = memoryview(data), len(PNG), zlib.decompressobj()
    kind = b""
    while kind != b"IEND":
        length, kind = int.from_bytes(view[place : place + 4]), bytes(view[place + 4 : place + 8])
        chunk, end = view[place + 4 : place + 8 + length], place + 12 + length
        if end > len(data):
            raise DataError(f"truncated PNG ({len(data)} bytes); fetch the file again", DAMAGED)
        if kind in CRITICAL and zlib.crc32(chunk) != int.from_bytes(view[end - 4 : end]):
            raise DataError(f"damaged PNG (checksum of its chunk {kind.decode()}); fetch the file again", DAMAGED)
        if kind == b"IDAT":
            _inflate(pixels, chunk[4:])
        place = end
    if not pixels.eof:
        raise DataError("damaged PNG (a part of its pixels is missing); fetch the file again", DAMAGED)


def _inflate(stream: "zlib._Decompress", chunk: memoryview) -> None:
    """Decompress some pixels, a MiB at a time, and drop them."""
    try:
        stream.decompress(chunk, 1 << 20)
        while stream.unconsumed_tail:
            stream.decompress(stream.unconsumed_tail, 1 << 20)
    except zlib.error as error:
        raise DataError(f"damaged PNG ({error}); fetch the file again", DAMAGED) from error


def _tells_damage(line: str, data: bytes) -> bool:
    """Whether a decoder's line means that pixels are wrong or missing."""
    stray = re.search(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9", line)
    if not stray:
        return bool(re.search(r"Corrupt JPEG|Premature end of JPEG|libpng error", line))
    count, end = int(stray[1]), data.rfind(b"\xff\xd9")
    return count > (PADDING if len(set(data[end - count : end])) == 1 else STRAY)


@contextlib.contextmanager
def hearing() -> Iterator[list[str]]:
    """The lines that decoders write to stderr in the body, known when it ends; others are passed on."""
    lines: list[str] = []
    with LISTENING, tempfile.TemporaryFile() as heard:
        try:
            kept = os.dup(2)
        except OSError:  # a process without stderr: nothing is heard
            yield lines
            return
        os.dup2(heard.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(kept, 2)
            heard.seek(0)
            lines += heard.read().decode(errors="replace").splitlines()
            for line in lines:
                if not re.search(DECODERS, line):
                    os.write(kept, f"{line}\n".encode())
            os.close(kept)
