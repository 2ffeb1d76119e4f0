"""Archives that the benchmarks' test servers take: their folders, file names, values and sizes."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from datasets.readers import ade20k, cityscapes, lip, pascal_context, voc
from pipelines.base.errors import InputError
from pipelines.base.files import replacing
from pipelines.serving.results import Results, png, read_values

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every file in an archive, so that the same masks give the same bytes."""


@dataclass(frozen=True)
class Form:
    """What a server takes.

    Args:
        about: the server, and where its rules are published.
        classes: names of the classes that a checkpoint must have; several lists where several will do.
        names: what the id of an image is like, as a pattern.
        example: of an id.
        images: of the test split as published; None where there is no test server.
        folder: in the archive.
        archive: its file name, `.zip` or `.tgz`.
        coloured: whether the PNGs keep the palette; grey ones are read alike by every library.
        size: (H, W) that all masks must have, pixels; None for their image's own.
        ending: what the file name of an image has behind its id.
    """

    about: str
    classes: tuple[tuple[str, ...], ...]
    names: str
    example: str
    images: int | None
    folder: str
    archive: str
    coloured: bool = False
    size: tuple[int, int] | None = None
    ending: str = ""


FORMS = {
    "voc12": Form(
        "PASCAL VOC 2012, competition 6 (trained on any data): the development kit's page, section on submission",
        (voc.CLASSES,), r"\d{4}_\d{6}", "2008_000006", voc.SPLITS["test"],
        "results/VOC2012/Segmentation/comp6_test_cls", "results.tgz", coloured=True,
    ),
    "cityscapes": Form(
        "Cityscapes, pixel-level semantic labelling: PNGs of 2048x1024 label ids, CITY_SEQUENCE_FRAME*.png",
        (tuple(name for name, _ in cityscapes.LABELS.values()),), r"[a-z-]+_\d{6}_\d{6}", "berlin_000000_000019",
        cityscapes.COUNTS["test"], "", "results.zip", size=(1024, 2048), ending="_leftImg8bit",
    ),
    "ade20k": Form(
        "ADE20K scene parsing: PNGs of the values 1 to 150, named as the images",
        (ade20k.CLASSES,), r"ADE_(test|val|train)_\d{8}", "ADE_test_00000001", ade20k.COUNTS["test"], "", "results.zip",
    ),
    "lip": Form(
        "LIP, single-person parsing: PNGs of the values 0 to 19, named as the images",
        (tuple(lip.NAMES),), r"\d+(_\d+)?", "100034_483681", lip.COUNTS["test"], "", "results.zip",
    ),
    "pascal_context": Form(
        "PASCAL-Context has no test server: the split val in the values of PASCAL in Detail, 1 to 59 (0: none of them)",
        (tuple(pascal_context.LABELS.values()), ("background", *pascal_context.LABELS.values())),
        r"\d{4}_\d{6}", "2008_000008", None, "", "results.zip",
    ),
}  # fmt: skip


def check_classes(benchmark: str, classes: Sequence[str]) -> None:
    """Refuse a checkpoint whose classes are not the benchmark's, in its order.

    Raises:
        InputError: it knows others.
    """
    if tuple(classes) not in FORMS[benchmark].classes:
        wanted = FORMS[benchmark].classes[0]
        raise InputError(
            f"--submission {benchmark}: the checkpoint knows {len(classes)} classes {list(classes[:3])}…, the server "
            f"wants {len(wanted)} {list(wanted[:3])}…; give a checkpoint that was trained on {benchmark}"
        )


def image_ids(benchmark: str, names: Sequence[str]) -> dict[str, str]:
    """Name of a result -> id of its image, as the server knows it.

    Raises:
        InputError: a name that is none of the benchmark's, or two images of one id.
    """
    form, found = FORMS[benchmark], dict[str, str]()
    for name in names:
        number = name.rpartition("/")[2].removesuffix(form.ending)
        if not re.fullmatch(form.names, number):
            raise InputError(
                f"--submission {benchmark}: {name!r} is no image of it, whose ids are like {form.example}; give the "
                "images under their published names, or the shards of the split"
            )
        if number in found:
            raise InputError(f"--submission {benchmark}: {found[number]} and {name} are both the image {number}")
        found[number] = name
    return {name: number for number, name in found.items()}


def write_archive(benchmark: str, results: Results, ids: dict[str, str]) -> Path:
    """Pack the masks as the server takes them; the archive is whole, or not there.

    Args:
        benchmark: a key of FORMS.
        results: the folder that holds the masks, in the benchmark's values.
        ids: of `image_ids`.

    Returns:
        The archive.

    Raises:
        InputError: a mask of a size that the server refuses.
    """
    form = FORMS[benchmark]
    path, folder = results.path / form.archive, f"{form.folder}/" if form.folder else ""
    with replacing(path) as temporary:
        pack = tarred if path.suffix == ".tgz" else zipped
        pack(temporary, ((f"{folder}{number}.png", results.mask(name)) for name, number in sorted(ids.items())), form)
    return path


def content(mask: Path, form: Form) -> bytes:
    """A mask's file as the server takes it.

    Raises:
        InputError: the mask has another size than the server wants.
    """
    values = read_values(mask)
    if form.size and values.shape != form.size:
        raise InputError(
            f"{mask}: {values.shape[1]}x{values.shape[0]} pixels (width x height), the server takes "
            f"{form.size[1]}x{form.size[0]}; predict the images in their published size"
        )
    return mask.read_bytes() if form.coloured else png(Image.fromarray(values))


Entries = Iterable[tuple[str, Path]]


def zipped(path: Path, entries: Entries, form: Form) -> None:
    """Write a zip, whose files are stored as they are: PNGs do not shrink."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, mask in entries:
            archive.writestr(zipfile.ZipInfo(name, EPOCH), content(mask, form))


def tarred(path: Path, entries: Entries, form: Form) -> None:
    """Write a gzipped tar."""
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for name, mask in entries:
            data, info = content(mask, form), tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
