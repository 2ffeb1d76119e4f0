"""A trained model from its file alone: `model = segmodels.load("best.pt"); mask = model.predict("street.jpg")`."""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from segmodels.files import FileError, for_use, read
from segmodels.images import Picture, as_rgb
from segmodels.inference import Inference, predict, protocol
from segmodels.precision import autocast, default_device, settle_precision
from segmodels.segmentor import Segmentor, build_segmentor
from segmodels.tiles import PIXELS, tiles


@dataclass(frozen=True)
class Model:
    """A trained model that predicts images.

    Attributes:
        segmentor: the network, in evaluation mode.
        classes: K names; a mask's value is the position.
        palette: K colours, RGB 0..255.
        recipe: the page that it was trained by.
        inference: how it predicts.
        device: where it computes.
        precision: `bf16`, `fp16` or `fp32`.
        pixels: a larger image is predicted in tiles of about so many, see `tiles.py`.
    """

    segmentor: Segmentor
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    recipe: Mapping[str, Any]
    inference: Inference
    device: torch.device
    precision: str
    pixels: int = PIXELS

    @property
    def protocol(self) -> str:
        """The inference in words."""
        return protocol(self.inference)

    @overload
    def predict(self, picture: Picture, *, probabilities: bool = ..., colours: bool = ...) -> np.ndarray: ...

    @overload
    def predict(
        self, picture: list[Picture], *, probabilities: bool = ..., colours: bool = ...
    ) -> list[np.ndarray]: ...

    def predict(
        self, picture: Picture | list[Picture], *, probabilities: bool = False, colours: bool = False
    ) -> np.ndarray | list[np.ndarray]:
        """The class of each pixel of an image, at the image's own size.

        Args:
            picture: a path, a PIL image, or an array (grey, RGB, RGBA; 8 or 16 bits); or a list of them.
            probabilities: give float32 (K, H, W), whose sum over the classes is 1, instead of classes.
            colours: give the classes in the palette's colours, uint8 (H, W, 3) RGB, instead of their numbers.

        Returns:
            uint8 (H, W), classes 0..K-1; of a list, a list.

        Raises:
            FileError: a file that is missing, damaged, too large or no image.
            TypeError: something else than an image.
            ValueError: an array of another shape or type; both options; or a head whose crop the inference leaves.
        """
        if probabilities and colours:
            raise ValueError("probabilities and colours are both asked for; allowed: one of them")
        if isinstance(picture, list):
            return [self.predict(one, probabilities=probabilities, colours=colours) for one in picture]
        image = as_rgb(picture)
        if probabilities:
            return self.fill(image, np.empty((len(self.classes), *image.shape[:2]), np.float32))
        mask = self.fill(image, np.empty(image.shape[:2], np.uint8))
        return np.array(self.palette, np.uint8)[mask] if colours else mask

    def fill(self, image: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Predict an image, tile by tile, into `out`; returns it.

        Args:
            image: uint8 (H, W, 3) RGB.
            out: for classes uint8 (H, W), or for probabilities float32 (K, H, W).
        """
        for rows, columns in tiles(image.shape[:2], self.inference, self.pixels):  # type: ignore[arg-type]
            part = np.ascontiguousarray(image[rows.seen, columns.seen].transpose(2, 0, 1))
            given = torch.from_numpy(part).unsqueeze(0).to(self.device)
            with torch.inference_mode(), self.computing():
                found = predict(self.segmentor, given, self.inference)
            kept = found[0, :, rows.inner, columns.inner]
            if out.ndim == 2:
                out[rows.kept, columns.kept] = kept.argmax(0).to(torch.uint8).cpu().numpy()
            else:
                out[:, rows.kept, columns.kept] = kept.cpu().numpy()
        return out

    def computing(self) -> AbstractContextManager[Any]:
        """The context in which the network computes."""
        return autocast(self.device, self.precision)


def load(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    precision: str = "auto",
    inference: Mapping[str, Any] | None = None,
    pixels: int = PIXELS,
) -> Model:
    """A trained model from `best.pt`, any checkpoint of a run, or a file that `export` wrote as safetensors.

    Args:
        path: the file. Nothing in it is run.
        device: where it computes; by default a GPU where there is one.
        precision: `auto` is bf16 on GPUs that have it, as in training; or `bf16`, `fp16`, `fp32`.
        inference: keys of the recipe's `inference` in place of its own: `{"scales": [1.0], "flip": False}`.
        pixels: a larger image is predicted in tiles of about so many.

    Raises:
        FileError: the file is missing, damaged, or not of this project.
        ValueError: an unknown key or a bad value.
    """
    place = Path(path).expanduser()
    return model_of(
        read(place, mapped=True), place, device=device, precision=precision, inference=inference, pixels=pixels
    )


def model_of(
    content: Mapping[str, Any],
    path: Path,
    *,
    device: str | torch.device | None = None,
    precision: str = "auto",
    inference: Mapping[str, Any] | None = None,
    pixels: int = PIXELS,
) -> Model:
    """The model of what `files.read` gives; see `load`.

    Args:
        content: of the file, or the part of it that `files.for_use` leaves.
        path: of the file, for messages.
        device: as in `load`.
        precision: as in `load`.
        inference: as in `load`.
        pixels: as in `load`.

    Raises:
        FileError: it does not say how its classes are mirrored.
        ValueError: an unknown key or a bad value.
    """
    given = torch.device(device or default_device())
    page = content["recipe"]
    how = inference_of(changed(page["inference"], inference or {}), page["view"]["crop"])
    how = replace(how, flip_pairs=mirrored(content, how.flip, path))
    return Model(
        segmentor=segmentor_of(content, given),
        classes=tuple(content["classes"]),
        palette=tuple((r, g, b) for r, g, b in content["palette"]),
        recipe=page,
        inference=how,
        device=given,
        precision=settle_precision(precision, given),
        pixels=pixels,
    )


def segmentor_of(content: Mapping[str, Any], device: torch.device) -> Segmentor:
    """The network of a checkpoint with its weights, in evaluation mode, without what only training needs.

    Args:
        content: what `files.read` gives.
        device: where it computes.
    """
    page = content["recipe"]
    if (task := page.get("task", "segmentation")) != "segmentation":
        raise FileError(f"this checkpoint is of task: {task}; only those of task: segmentation predict masks")
    model = build_segmentor(
        num_classes=len(content["classes"]),
        crop=tuple(page["view"]["crop"]),
        backbone=page["backbone"] | {"weights": None},
        head=page["head"],
    )
    model.load_state_dict(for_use(content)["model"])
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    return model.eval().to(device, memory_format=layout)  # type: ignore[call-overload]


def inference_of(page: Mapping[str, Any], crop: Sequence[int]) -> Inference:
    """How a recipe's page says to predict; a sliding window without a size has that of the training crop.

    Args:
        page: the recipe's `inference`; keys that say nothing of how to predict, such as `batch`, may be there.
        crop: (h, w) of the training crop in pixels.

    Raises:
        ValueError: an unknown key or a bad value.
    """
    known = {field.name for field in fields(Inference)}
    if unknown := set(page) - known - {"batch"}:
        raise ValueError(f"inference has no {', '.join(sorted(unknown))}; allowed: {', '.join(sorted(known))}")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in page.items() if key in known}
    slides = given.get("mode", Inference.mode) == "slide"
    window = tuple(given.get("window") or crop) if slides else None
    return Inference(**given | {"window": window})


def changed(page: Mapping[str, Any], wishes: Mapping[str, Any]) -> dict[str, Any]:
    """A page's `inference` with other values; of another mode, without its window and stride."""
    other = wishes.get("mode", page.get("mode")) != page.get("mode")
    kept = {key: value for key, value in page.items() if not (other and key in ("window", "stride"))}
    return {**kept, **wishes}


def mirrored(content: Mapping[str, Any], flip: bool, path: Path) -> tuple[tuple[int, int], ...]:
    """The classes that change places in a mirrored image, as a checkpoint notes them.

    Args:
        content: what `files.read` gives.
        flip: whether images will be mirrored.
        path: of the checkpoint.

    Raises:
        FileError: the file is of before they were noted (0.4), its classes have sides, and images will be mirrored.
    """
    if "flip_pairs" in content:
        return tuple((left, right) for left, right in content["flip_pairs"])
    sided = [name for name in content["classes"] if name.lower().startswith(("left", "right"))]
    if sided and flip:
        raise FileError(
            f"{path} was written by a version that does not note which classes change places in a mirrored image, and "
            f"it has {', '.join(sided[:4])}…; predict without mirrored images (flip: false), or train again"
        )
    return ()
