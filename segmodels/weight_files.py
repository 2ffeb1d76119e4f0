"""The tensors of a file of weights, whatever stands around them. Nothing in a file is run."""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".safetensors")
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # a running average is what its author validated

Shapes = Mapping[str, tuple[int, ...]]


class Unreadable(ValueError):
    """A file that holds no tensors which can be read without running code."""


@dataclass(frozen=True)
class Entries:
    """What a file holds: its tensors by name, and the keys that they were found under.

    `ordered` says whether they stand as they were written, which safetensors does not keep.
    """

    tensors: Mapping[str, Tensor]
    under: str
    ordered: bool

    @property
    def shapes(self) -> Shapes:
        """The shape of each."""
        return shapes(self.tensors)


def read_entries(path: str) -> Entries:
    """The tensors of a file.

    Raises:
        Unreadable, ValueError, FileNotFoundError: as `load_weights`.
    """
    file = Path(path)
    if file.suffix not in SUFFIXES:
        raise ValueError(f"weights is {path!r}; allowed: null, 'hub', or a file ending in {', '.join(SUFFIXES)}")
    if not file.is_file():
        raise FileNotFoundError(f"no weights at {path!r}; give an existing file, 'hub' to download, or null for none")
    if file.suffix == ".safetensors":
        return unwrapped(read(file, load_file), file, ordered=False)
    return unwrapped(read(file, lambda f: torch.load(f, map_location="cpu", weights_only=True)), file, ordered=True)


def read(file: Path, load: Any) -> Any:
    """What a reader makes of a file.

    Raises:
        Unreadable: nothing.
    """
    size = f"{file} ({file.stat().st_size:,} bytes)"
    try:
        return load(file)
    except pickle.UnpicklingError as error:
        if not (odd := re.search(r"GLOBAL ([\w.]+)", str(error))):
            raise Unreadable(f"{size} is no state dict that PyTorch reads; download it again") from None
        raise Unreadable(
            f"{size} holds, besides tensors, a pickled {odd[1]}: code, which is not run here. If you trust the file, "
            "save its tensors alone where that is installed: python -c \"import torch; s = torch.load('OLD.pth', "
            "weights_only=False); torch.save(s.get('state_dict', s), 'NEW.pth')\""
        ) from None
    except Exception as error:  # whatever a file that is none of PyTorch's raises
        first = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise Unreadable(f"{size} is no state dict that PyTorch reads: {first}; download it again") from None


def unwrapped(content: Any, file: Path, ordered: bool) -> Entries:
    """The state dict of what a file holds, from under the keys that trainings put it under.

    Raises:
        Unreadable: there is none.
    """
    under: list[str] = []
    while isinstance(content, Mapping):
        inner = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping) and content[key]), None)
        if inner is None:
            break
        content, under = content[inner], [*under, inner]
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        keys = f" of the keys {list(content)[:5]}" if isinstance(content, Mapping) else ""
        raise Unreadable(
            f"{file} is no state dict that PyTorch reads: a {type(content).__name__}{keys} without tensors; give a "
            f"mapping of names to tensors, plain or below one of {', '.join(WRAPPERS)}"
        )
    return Entries(tensors, ".".join(under), ordered)


def shapes(state: Mapping[str, Tensor]) -> Shapes:
    """The shape of each tensor of a state dict."""
    return {key: tuple(value.shape) for key, value in state.items()}
