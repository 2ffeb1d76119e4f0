"""Images and masks that lie in folders of their own: which belong together, and what is left over."""

import itertools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from datasets.exports.finding import id_of, stored_size
from datasets.exports.records import Told
from datasets.readers.own_tree import SPLIT_OF, SPLITS
from datasets.sample import DataError, Item
from datasets.text import named, same_form


def check_pairs(source: Path, bare: list[str], lonely: Iterable[str], told: Told, notes: list[str]) -> None:
    """Refuse images without a mask and masks without an image, unless a person decided otherwise.

    Args:
        source: the folder.
        bare: images without a mask.
        lonely: masks without an image.
        told: what a person decided.
        notes: takes what was decided.

    Raises:
        DataError: there are some.
    """
    lonely, refused = list(lonely), []
    if bare and told.unannotated == "refuse" and not told.unpaired:
        refused.append(f"{len(bare):,} image(s) without a mask: {named(bare)}. Label them, keep them as images without "
                       "an object with --unannotated empty, or leave them out with --unannotated drop")  # fmt: skip
    if lonely and not told.unpaired:
        refused.append(f"masks without an image: {named(lonely)}. Add the images, or leave these masks out with "
                       "--allow-unpaired")  # fmt: skip
    if refused:
        raise DataError(f"{source}: images and masks do not pair.\n  " + "\n  ".join(refused))
    if bare:
        kept = "kept as images without an object" if keeps(told) else "left out"
        notes.append(f"{kept}, {len(bare):,} image(s) without a mask: {named(bare)}")
    if lonely:
        notes.append(f"left out, {len(lonely):,} mask(s) without an image: {named(lonely)}")


def key_of(path: str, folder: str) -> str:
    """A path below images/ or masks/ without its suffix, its split in one spelling.

    Args:
        path: in the source.
        folder: `images/` or `masks/`.
    """
    inside = os.path.splitext(path.removeprefix(folder))[0]
    first, _, rest = inside.partition("/")
    split = SPLIT_OF.get(first.lower(), "") if rest else ""
    return same_form(f"{split}/{rest}" if split else inside)


def keeps(told: Told) -> bool:
    """Whether images without a mask are kept, as images without an object."""
    return told.unannotated == "empty"


def bare_item(source: Path, image: str, unlabelled: int) -> Item:
    """An image without a mask that is kept: all of it is unlabelled."""
    (height, width), _ = stored_size(source / image)
    return Item(id_of(image), str(source / image), (height, width, unlabelled, ()))


def by_split(source: Path, rows: Mapping[str, list[Item]], tree: str) -> dict[str, list[Item]]:
    """The rows of each split, sorted; where none is named, all are train.

    Raises:
        DataError: only some rows are of a named split, there are none, or two share an id.
    """
    rows = {split: items for split, items in rows.items() if items}
    if not rows:
        raise DataError(f"{source}: no image with a label. Expected is:\n{tree}")
    if "" in rows and len(rows) > 1:
        raise DataError(f"{source}: {len(rows[''])} image(s) belong to no split, such as {rows[''][0].image}, others "
                        f"to {', '.join(s for s in rows if s)}; put all into folders of splits (train, val, test), or "
                        "none")  # fmt: skip
    if "" in rows:
        rows = {"train": rows[""]}
    done = {split: sorted(rows[split], key=lambda item: item.id) for split in SPLITS if split in rows}
    for items in done.values():
        for one, other in itertools.pairwise(items):
            if one.id == other.id:
                raise DataError(f"{source}: two images are called {one.id!r}: {one.image}, {other.image}; rename one, "
                                "and export again")  # fmt: skip
    return done
