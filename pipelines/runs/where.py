"""Where a run is, as people name it: a folder or a URI."""

from __future__ import annotations

from pathlib import Path

from datasets.storage import below
from pipelines.base.addresses import hide_secret
from pipelines.base.errors import InputError
from pipelines.recipes.recipe import Recipe

BUCKETS = ("s3", "gs", "gcs")


def is_bucket(output: str) -> bool:
    """Whether an address is in a bucket."""
    return output.partition("://")[0] in BUCKETS and "://" in output


def local_output(output: str) -> Path:
    """The folder for what is of this machine: a recipe's `output`; beside a bucket, its default.

    Raises:
        InputError: an address that is neither a folder nor a bucket.
    """
    if is_bucket(output):
        return Path(Recipe.output).expanduser().resolve()
    kind, mark, rest = output.partition("://")
    if mark and kind != "file":
        raise InputError(f"output = {hide_secret(output)}: allowed are a folder, s3:// and gs://")
    return Path(f"/{rest.lstrip('/')}" if mark else output).expanduser().resolve()


def address_of(recipe: Recipe) -> str:
    """Where the recipe's run is: a folder or a URI."""
    name = f"runs/{recipe.name}"
    return below(recipe.output, name) if is_bucket(recipe.output) else str(local_output(recipe.output) / name)


def shown_path(recipe: Recipe, folder: Path, path: Path) -> str:
    """A file of a run as people find it: its path, or its URI.

    Args:
        recipe: of the run.
        folder: of the run, or of a copy of it.
        path: the file's in that folder.
    """
    name = path.relative_to(folder).as_posix()
    return below(address_of(recipe), name) if is_bucket(recipe.output) else str(path)
