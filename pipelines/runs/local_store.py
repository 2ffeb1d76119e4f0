"""MLflow's store when it is an sqlite file: its address, and its artifacts, which are next to it wherever it is moved.

MLflow keeps the location of artifacts as absolute paths, of experiments and of runs, and has no call that changes
them (`mlflow db move-resources` of 3.17 leaves those of runs as they are). After a move, all further artifacts would go
to the old place, which would be created again, and old ones would not be found. So `bring_along` rewrites these two
columns in the file itself: they have been the same since MLflow's first sqlite store.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

STORE = "mlflow.db"  # below a run's output
ARTIFACTS = "mlartifacts"  # the folder next to the store
SCHEME = "sqlite:///"


def sqlite_uri(path: Path) -> str:
    """The address of a store in a file; `%` and `?` would mean something else in it."""
    return SCHEME + str(path).replace("%", "%25").replace("?", "%3F")


def file_of(uri: str) -> Path | None:
    """The file of an sqlite store; None for any other address."""
    name = unquote(uri.removeprefix(SCHEME).partition("?")[0]) if uri.startswith(SCHEME) else ""
    return Path(name) if name and name != ":memory:" else None


def artifact_location(uri: str, experiment: str) -> str | None:
    """Where the artifacts of a new experiment go: next to an sqlite store; None for the server's own choice."""
    path = file_of(uri)
    if path is None:
        return None
    return (path.resolve().parent / ARTIFACTS / (re.sub(r"[^\w.\- ]", "_", experiment).strip(". ") or "_")).as_uri()


@contextlib.contextmanager
def without_stray_folder(uri: str) -> Iterator[None]:
    """While the body opens a store: MLflow makes the folder of its file, and spells it as it is in the address."""
    path = file_of(uri)
    stray = Path(uri.removeprefix(SCHEME)).parent if path else None
    known = stray is None or stray.exists()
    try:
        yield
    finally:
        if stray is not None and not known and path is not None and stray != path.parent:
            with contextlib.suppress(OSError):  # not empty, or never made
                stray.rmdir()


def bring_along(uri: str) -> str:
    """Let experiments and runs of a store that was moved, or copied, have their artifacts next to it.

    Returns:
        What is to be said of it; empty where nothing had to be done.
    """
    path = file_of(uri)
    if path is None or not path.is_file():
        return ""
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=5)) as store, store:
            return repoint(store, path.resolve().parent / ARTIFACTS)
    except sqlite3.Error as error:
        fresh = "no such table" in str(error)  # MLflow makes them
        return "" if fresh else f"whether its artifacts are next to {path} could not be looked up: {error}"


def repoint(store: sqlite3.Connection, home: Path) -> str:
    """Rewrite the locations that are below another folder than `home`; see `bring_along`."""
    moved, left = 0, 0
    for experiment, location in store.execute("SELECT experiment_id, artifact_location FROM experiments").fetchall():
        old, new = moved_location(location or "", home)
        if new is None:
            continue
        store.execute(
            "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (new.as_uri(), experiment)
        )
        runs = "SELECT run_uuid, artifact_uri FROM runs WHERE experiment_id = ?"
        for run, uri in store.execute(runs, (experiment,)).fetchall():
            rest = run_folder(uri or "", old)
            if rest is None:
                continue
            if (old / rest).exists() and not (new / rest).exists():  # written there since the move
                left += 1
                continue
            store.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", ((new / rest).as_uri(), run))
            moved += 1
        repoint_models(store, old, new)
    kept = f"; those of {left} run(s) are still where it was before, and are found there" if left else ""
    return f"the store was moved: artifacts of {moved} run(s) are found in {home} now{kept}" if moved or left else ""


def repoint_models(store: sqlite3.Connection, old: Path, new: Path) -> None:
    """The same for logged models and for versions of registered ones."""
    for table, column in (("logged_models", "artifact_location"), ("model_versions", "storage_location")):
        for (uri,) in store.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall():
            rest = run_folder(uri or "", old)
            if rest is not None and ((new / rest).exists() or not (old / rest).exists()):
                store.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", ((new / rest).as_uri(), uri))


def moved_location(location: str, home: Path) -> tuple[Path, Path | None]:
    """Where an experiment's artifacts were, and where they are now; None where nothing is to be changed."""
    old = path_of(location)
    if old is None or ARTIFACTS not in old.parts:
        return Path(), None
    parts = old.parts
    new = home.joinpath(*parts[len(parts) - parts[::-1].index(ARTIFACTS) :])
    same = old == new or old.resolve() == new
    elsewhere = old.exists() and not new.exists()  # put there on purpose
    return old, None if same or elsewhere else new


def run_folder(uri: str, old: Path) -> Path | None:
    """A run's folder below its experiment's; None where it is elsewhere."""
    path = path_of(uri)
    return path.relative_to(old) if path is not None and path.is_relative_to(old) else None


def path_of(location: str) -> Path | None:
    """The folder of a location; None for one that is no folder."""
    if "://" not in location:
        return Path(location) if location.startswith("/") else None
    parts = urlsplit(location)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None
