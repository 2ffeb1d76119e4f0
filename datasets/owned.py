"""Folders of this user's own, where copies of what is elsewhere are kept."""

import os
from pathlib import Path

from datasets.sample import DataError


def own_folder(variable: str, name: str) -> Path:
    """The folder of copies of a kind: below the one that an environment variable names, else in the user's own cache.

    A folder that users share gets one for each, which nobody else can enter: a copy is trusted without a look at it.

    Args:
        variable: of the environment.
        name: of the kind.

    Raises:
        DataError: somebody else owns it, or it cannot be made.
    """
    given = os.environ.get(variable)
    if not given:
        return Path.home() / ".cache/context-heads" / name
    folder = Path(given).expanduser().absolute() / f"user-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise DataError(f"{variable} = {given}: {error}; name a folder that you can write to") from error
    if found.st_uid != os.getuid():
        raise DataError(f"{folder} belongs to another user: name another folder by {variable}")
    return folder
