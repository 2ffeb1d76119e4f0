"""What other commands read back from MLflow: runs of all experiments, and small files of theirs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.base.errors import InputError
from pipelines.runs.local_store import STORE, file_of, sqlite_uri
from pipelines.runs.mlflow_client import default_uri

PAGE = 1000  # runs of one answer


def store_to_read(tracking: str | None, output: Path, there: bool = False) -> str | None:
    """The address of a store that is there; None where none was named and none was made yet.

    Reading must not make a store, which MLflow does wherever it is sent.

    Args:
        tracking: the address that was asked for, if any.
        output: the folder whose store is taken otherwise, unless the environment names one.
        there: take that folder's store whatever the environment names.

    Raises:
        InputError: the store that was asked for is a file that does not exist.
    """
    uri = tracking or (sqlite_uri(output / STORE) if there else default_uri(output))
    path = file_of(uri)
    if path is None or path.is_file():
        return uri
    if tracking:
        raise InputError(f"--tracking {tracking}: there is no file {path}; runs make it, and it is named at their end")
    return None


def all_runs(client: Any) -> Iterator[Any]:
    """The runs of all experiments that are not deleted."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    token = None
    while experiments:
        page = client.search_runs(experiments, max_results=PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def text_of(client: Any, run: str, name: str) -> str | None:
    """A text among the artifacts of a run; None where it has no such file."""
    if name not in {file.path for file in client.list_artifacts(run)}:
        return None
    with tempfile.TemporaryDirectory() as folder:
        return Path(client.download_artifacts(run, name, folder)).read_text(encoding="utf-8")
