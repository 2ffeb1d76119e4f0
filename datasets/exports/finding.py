"""The images of an export: found where labels say, split and named by where they lie, with the size that is stored."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import ExifTags, Image

from datasets.readers.formats import READ
from datasets.readers.own_tree import SPLIT_OF
from datasets.sample import DAMAGED, DataError
from datasets.text import named, same_form, shown

PLACES = ("images", "img", "imgs", "jpegimages", "data", "obj_train_data")
"""Folders that hold images and say nothing else about them."""
TURNED = 5
"""From this EXIF orientation on, a viewer exchanges height and width."""


def images_of(files: Iterable[str]) -> list[str]:
    """Those of the files that are images, by their names."""
    return [path for path in files if os.path.splitext(path)[1].lower() in READ]


def split_of(path: str) -> str:
    """The split that one of the folders of a path names; "" where none does."""
    return next((SPLIT_OF[part.lower()] for part in path.split("/")[:-1] if part.lower() in SPLIT_OF), "")


def split_in_name(stem: str) -> str:
    """The split that the end of a file's name names: instances_val2017, instances_Train; "" where none does."""
    return SPLIT_OF.get(stem.rstrip("0123456789").rpartition("_")[2].lower(), "")


def id_of(path: str) -> str:
    """An image's id: its path without suffix, without folders that name only its split or that it is an image."""
    *folders, name = os.path.splitext(path)[0].split("/")
    kept = [part for part in folders if part.lower() not in SPLIT_OF and part.lower() not in PLACES]
    return shown("/".join([*kept, name]))


class Finder:
    """Finds the images that labels name: by a path from any of some folders, else by the file's name.

    Args:
        images: paths in the source.
    """

    def __init__(self, images: Sequence[str]) -> None:
        self.by_path = {same_form(path): path for path in images}
        self.by_name: dict[str, list[str]] = {}
        for path in images:
            self.by_name.setdefault(same_form(path.rpartition("/")[2]), []).append(path)

    def find(self, written: str, file: str, near: Sequence[str] = ()) -> str:
        """The path of an image in the source; as written where there is none.

        Args:
            written: as the labels name it; Windows' separators, absolute paths and `../` are understood.
            file: the annotation file, in whose folder is looked first.
            near: folders in which is looked next.

        Raises:
            DataError: several images have that name.
        """
        name = written.replace("\\", "/")
        for folder in (file.rpartition("/")[0], *near, ""):
            joined = os.path.normpath(os.path.join(folder, name)).lstrip("/")
            if found := self.by_path.get(same_form(joined)):
                return found
        alike = self.by_name.get(same_form(name.rpartition("/")[2]), [])
        if len(alike) > 1:
            raise DataError(f"{file}: {written!r} may be {named(alike)}; write its path below the folder there, or "
                            "rename one")  # fmt: skip
        return alike[0] if alike else name


def stored_size(path: Path) -> tuple[tuple[int, int], int]:
    """Height and width of an image as stored, and its EXIF orientation, 1 where it has none; from only its header.

    Raises:
        DataError: the header does not read.
    """
    try:
        with Image.open(path) as image:
            return (image.height, image.width), int(image.getexif().get(ExifTags.Base.Orientation, 1) or 1)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: damaged image ({error}); fetch the file again", DAMAGED) from error


def check_agrees(image: str, stored: tuple[int, int], turn: int, stated: tuple[int, int] | None, file: str) -> None:
    """Refuse labels that were drawn on an image of another size, or on it as a viewer turns it.

    Args:
        image: its path, for the message.
        stored: its height and width as stored.
        turn: its EXIF orientation.
        stated: height and width as the annotation states them; None where it does not.
        file: the annotation file, for the message.

    Raises:
        DataError: the sizes disagree, or nobody can tell on which picture the labels were drawn.
    """
    height, width = stored
    turned = turn >= TURNED and height != width
    if turn > 1 and not (turned and stated == stored):
        raise DataError(
            f"{image}: its EXIF orientation is {turn}: viewers show another picture than the {width}x{height} pixels "
            f"(width x height) that are stored. {file} "
            + (
                "was made of the picture as shown: turn the pixels (mogrify -auto-orient FILE)"
                if turned and stated == (width, height)
                else "does not show which of the two was labelled. If the picture as shown: turn the pixels (mogrify "
                "-auto-orient FILE). If the pixels as stored: remove the mark (exiftool -Orientation= FILE)"
            )
        )
    if stated is not None and stated != stored:
        raise DataError(
            f"{image}: the image is {width}x{height} pixels (width x height), {file} says {stated[1]}x{stated[0]}: "
            "labels of another size or image. Put the labelled image there, or export the labels again"
        )
