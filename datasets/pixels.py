"""Decoded pixels of PNG images, kept on this machine: PNG is the one format that takes longer than all the rest.

A view of Cityscapes takes 30 ms of a core, of which 25 decode. Pixels that are kept are mapped into memory, and only
the rows of a view are read.
"""

import os
import platform
import shutil
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from datasets.sample import PNG, decode_image
from datasets.storage import temporary_name

LEAST_PIXELS = 1 << 16  # of an image: of smaller ones opening a file is no faster
MEMORY_SHARE = 0.25  # of the machine's memory, which pixels may take: from a slow disk they would be slower than PNG
DISK_SHARE = 0.5  # of what is free on the disk
KEPT_S = 24 * 3600.0  # what nobody has read for so long is removed
LOOK_EVERY = 64  # images that a process would add before it looks again what others have added
LIMIT = "PIXEL_CACHE_GIB"
BOOT = Path("/proc/sys/kernel/random/boot_id")


class Pixels:
    """Pixels of images by their sha256, in files that many processes write and read at once.

    A file is whole or not there, until the machine ends: its folder is named after the machine's start, so that nothing
    is read whose last pages may never have reached the disk.

    Args:
        folder: where they are kept; made when the first is.
        limit: bytes; by default $PIXEL_CACHE_GIB, else a quarter of the machine's memory, but at most half of what is
            free on the disk. 0 keeps none.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        started = BOOT.read_text().strip() if BOOT.exists() else ""
        self.folder = folder / f"{platform.node()}.{started}"
        self.limit = (usual_limit() if limit is None else limit) if started else 0
        self.used = self.asked = 0
        self.writes = True

    def decode(self, data: bytes, sha256: str) -> np.ndarray:
        """As `decode_image`; a PNG's pixels are kept where there is room.

        Args:
            data: the file's bytes.
            sha256: theirs, hexadecimal.

        Raises:
            DataError: as `decode_image`.
        """
        image = decode_image(data)
        if self.limit and self.writes and data.startswith(PNG) and image.shape[0] * image.shape[1] >= LEAST_PIXELS:
            with suppress(OSError):
                self._keep(image, sha256)
        return image

    def find(self, sha256: str) -> np.ndarray | None:
        """The pixels of an image, uint8 (H, W, 3), mapped for reading only; None where they are not kept."""
        if not self.limit:
            return None
        path = self._path(sha256)
        try:
            image = np.load(path, mmap_mode="r", allow_pickle=False)
            os.utime(path)
        except (OSError, ValueError, EOFError):
            return None
        return image.view(np.ndarray)

    def _path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.npy"

    def _keep(self, image: np.ndarray, sha256: str) -> None:
        """Write an image where there is room for it."""
        if self.asked % LOOK_EVERY == 0:
            self._look()
        self.asked += 1
        if self.used + image.nbytes > self.limit:
            return
        path = self._path(sha256)
        until = self.folder / temporary_name(path.name)
        try:
            with until.open("wb") as stream:
                np.save(stream, image)
            until.replace(path)
        except OSError:
            until.unlink(missing_ok=True)
            self.writes = False  # a full disk, say: it would be as full for the next image
            raise
        self.used += image.nbytes

    def _look(self) -> None:
        """Make the folder, remove what is too old or of an earlier start of this machine, and sum up the rest."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for other in self.folder.parent.glob(f"{platform.node()}.*"):
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)
        self.used, old = 0, time.time() - KEPT_S
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):
                found = entry.stat()
                if found.st_mtime < old:
                    os.unlink(entry.path)
                else:
                    self.used += found.st_size
        free = shutil.disk_usage(self.folder).free
        self.limit = min(self.limit, self.used + int(DISK_SHARE * free))


def usual_limit() -> int:
    """Bytes that the user allows, else a share of the machine's memory."""
    if given := os.environ.get(LIMIT):
        return int(float(given) * 2**30)
    return int(MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
