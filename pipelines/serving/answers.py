"""From an image file to what a client is told of it: decoded, predicted, encoded, without Ray and without HTTP."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from pipelines.base.files import to_json
from pipelines.serving.limits import Refusal

Kind = Literal["areas", "mask", "probabilities"]
MEDIA: dict[str, str] = {"areas": "application/json", "mask": "image/png", "probabilities": "application/x-npz"}
KINDS = ("image/jpeg", "image/png", "image/webp", "image/tiff", "image/bmp")
"""Kinds of images that are read: what `segmodels/images.py` decodes."""


@dataclass(frozen=True)
class About:
    """What is told of a model: its name, trunk and head, how it predicts, and its classes with id and colour."""

    name: str
    backbone: str
    head: str
    protocol: str
    classes: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Answer:
    """What is said of an image: a body of its kind's media type, the image's pixels, and the images of its batch."""

    body: bytes
    pixels: int
    batch: int


class Model(Protocol):
    """What predicts."""

    async def answer(self, data: bytes, kind: Kind, mask: bool) -> Answer | Refusal:
        """What an image file is answered with; `mask`: the areas with the mask, too."""

    async def running(self) -> int:
        """How many replicas can answer."""


def colour(rgb: Sequence[int]) -> str:
    """A colour as HTML spells it."""
    return "#" + "".join(f"{part:02x}" for part in rgb)


def described(classes: Sequence[str], palette: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """The classes as JSON has them."""
    return [
        {"id": id_, "name": name, "colour": colour(rgb)}
        for id_, (name, rgb) in enumerate(zip(classes, palette, strict=True))
    ]


def areas(mask: np.ndarray, classes: Sequence[dict[str, Any]], protocol: str, png: bytes | None) -> bytes:
    """The classes of a mask, the largest area first, as JSON.

    Args:
        mask: class ids uint8 (H, W).
        classes: of `described`.
        protocol: how it was predicted, in words.
        png: the mask as a file, to be held too.
    """
    counts = np.bincount(mask.reshape(-1), minlength=len(classes))
    found = [
        {**classes[id_], "pixels": int(counts[id_]), "share": float(counts[id_] / mask.size)}
        for id_ in np.argsort(-counts, kind="stable")
        if counts[id_]
    ]
    page = {"height": mask.shape[0], "width": mask.shape[1], "protocol": protocol, "classes": found}
    return to_json(page if png is None else page | {"mask": base64.b64encode(png).decode()}).encode()


def palette_png(mask: np.ndarray, palette: Sequence[Sequence[int]]) -> bytes:
    """A mask uint8 (H, W) as a PNG whose values are the class ids, shown in their colours."""
    image, out = Image.fromarray(mask), io.BytesIO()
    image.putpalette([part for rgb in palette for part in rgb])
    image.save(out, "PNG")
    return out.getvalue()


def npz(probabilities: np.ndarray, classes: Sequence[str]) -> bytes:
    """Probabilities (K, H, W) as float16, with the names of the classes, as NumPy's archive."""
    out = io.BytesIO()
    np.savez(out, probabilities=probabilities.astype(np.float16), classes=np.array(classes, dtype=np.str_))
    return out.getvalue()
