"""Checkpoints as files: read without running code from them, and written small for use."""

import json
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

FORMAT = 1
USED = ("recipe", "classes", "palette", "flip_pairs", "stage", "step")
"""What a file for use holds besides the weights, where the checkpoint has it."""
TRAINING = "aux."
"""How the names of weights begin that only training needs."""
PAGE = "context-heads"
"""The key of a safetensors file's metadata that holds USED, as JSON."""


class FileError(ValueError):
    """A file that cannot be used; the message, written for the user, says which, why, and what helps."""


def read(path: Path, mapped: bool = False, verified: bool = True) -> dict[str, Any]:
    """Content of a checkpoint that training wrote, or of a file for use; tensors on the CPU.

    Args:
        path: the file.
        mapped: leave the tensors in the file until they are looked at.
        verified: compare every part of the file with its checksum first, which reads all of it; safetensors has none.

    Raises:
        FileError: no such file, not a checkpoint of ours, cut off, damaged, or of another format.
    """
    if not path.is_file():
        raise FileError(f"no checkpoint {path}; a run's are in RUN/STAGE/checkpoints and RUN/STAGE/best.pt")
    try:
        content = read_safetensors(path) if is_safetensors(path) else read_archive(path, mapped, verified)
    except (RuntimeError, ValueError, EOFError, NotImplementedError, KeyError, pickle.UnpicklingError,
            zipfile.BadZipFile) as error:  # fmt: skip
        reason = str(error) or type(error).__name__
        raise FileError(
            f"{path} is no readable checkpoint (cut off, damaged, or not of this project): {reason}"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise FileError(f"{path} has checkpoint format {found}, this version reads {FORMAT}")
    return content


def read_archive(path: Path, mapped: bool, verified: bool) -> Any:
    """What `torch.save` wrote; nothing in it is run."""
    if not zipfile.is_zipfile(path):  # torch.save writes one, its directory last: this finds the cut-off file
        raise zipfile.BadZipFile("not a whole archive")
    if verified:
        verify(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def verify(path: Path) -> None:
    """Compare each part of the archive with the CRC-32 that PyTorch writes next to it, and its header with its index.

    Raises:
        zipfile.BadZipFile: one differs.
    """
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"{damaged} is not what its checksum says")


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors does: the length of a header that fits into the file, then JSON."""
    with path.open("rb") as file:
        begin = file.read(9)
    return len(begin) == 9 and begin[8:] == b"{" and struct.unpack("<Q", begin[:8])[0] < path.stat().st_size


def read_safetensors(path: Path) -> dict[str, Any]:
    """What `write_safetensors` wrote.

    Raises:
        ValueError: the file is cut off, or lacks our page.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            page = (file.metadata() or {}).get(PAGE)
            if page is None:
                raise ValueError(f"its metadata lack {PAGE!r}: weights alone do not say what model they are of")
            return json.loads(page) | {"model": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def for_use(content: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a checkpoint that prediction needs: weights but for training's own, classes, palette, recipe.

    Args:
        content: what `read` gives, or mappings and lists of the same keys.
    """
    weights = {name: value for name, value in content["model"].items() if not name.startswith(TRAINING)}
    return {"format": FORMAT, **{key: content[key] for key in USED if key in content}, "model": weights}


def write_safetensors(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint for use as safetensors, which other programs read too; `read` reads it back.

    Args:
        path: the file; the caller sees to it that it is written whole or not at all.
        content: what `read` gives.
    """
    from safetensors.torch import save_file

    kept = for_use(content)
    weights = {name: value.contiguous() for name, value in kept.pop("model").items()}
    save_file(weights, path, {PAGE: json.dumps(kept, allow_nan=False)})
