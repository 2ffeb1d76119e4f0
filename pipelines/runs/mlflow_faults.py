"""What is wrong with an address of MLflow, or with the store that is there, and what helps against just that."""

from __future__ import annotations

import re
import shlex
import socket
from importlib.metadata import entry_points, version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from pipelines.base.addresses import CURE, hide_secret, holds_secret
from pipelines.base.errors import SetupError
from pipelines.base.text import nearest
from pipelines.runs.local_store import file_of

PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}  # of servers
ELSEWHERE = "unset MLFLOW_TRACKING_URI (and the recipe's `tracking`) to log into a local sqlite file"


def check_address(uri: str) -> None:
    """Refuse an address at which MLflow can never be; whether it is there now is not asked.

    Raises:
        SetupError: the address holds a secret, or is neither a server's nor a database's.
    """
    if holds_secret(uri):
        raise SetupError(f"MLflow's address {hide_secret(uri)} holds a user or password. {CURE}")
    if wrong := fault_of(uri):
        raise SetupError(
            f"MLflow cannot be at {uri!r}: {wrong}. Give a server (http://HOST:5000) or a database "
            f"(sqlite:////FOLDER/mlflow.db), or {ELSEWHERE}."
        )


def fault_of(uri: str) -> str:
    """Why MLflow can never be at an address; empty for one at which it can."""
    scheme = re.split(r"[:+]", uri)[0]
    plugins = {point.name for point in entry_points(group="mlflow.tracking_store")} - {"file-plugin"}
    if scheme == "databricks" or scheme in plugins:
        return ""
    if "://" not in uri:
        return "it has no scheme"
    if scheme not in {*PORTS, "sqlite"}:
        return f"unknown scheme {scheme!r}{nearest(scheme, [*PORTS, 'sqlite'])}".rstrip(".")
    if scheme == "sqlite":
        return "" if file_of(uri) else "it names no file"
    try:
        parts = urlsplit(uri)
        return "" if parts.hostname and parts.port != 0 else "it names no host"
    except ValueError as error:  # a port that is none
        return str(error)


def explain(uri: str, error: Exception) -> str:
    """What went wrong with the store at an address, and what helps against just that."""
    return f"MLflow at {uri} cannot be used: {first_line(error).rstrip('.')}. {cure(uri, error)}".rstrip()


def cure(uri: str, error: Exception) -> str:
    """What helps against an error of MLflow."""
    text, path = f"{type(error).__name__} {error}", file_of(uri)
    if "out-of-date database schema" in text:
        return schema_cure(uri, text)
    if "database is locked" in text:
        return (
            f"Another process holds {path} for writing: end it, or wait (`fuser -v {shlex.quote(str(path))}` names "
            "it). On a network file system start `mlflow server`, and set MLFLOW_TRACKING_URI=http://HOST:5000."
        )
    if "readonly database" in text or "unable to open database file" in text:
        return f"{path} and its folder must be writable by this user, on a disk with room; or {ELSEWHERE}."
    if "not a database" in text or "malformed" in text:
        return f"{path} is damaged, or no store: put a copy of it back, or move it away and a new one is made."
    if isinstance(error, ModuleNotFoundError) or "NoSuchModuleError" in text:
        return f"The database's driver is not installed: install it (uv pip install …), or {ELSEWHERE}."
    if "must be in the 'active' state" in text or "RESOURCE_DOES_NOT_EXIST" in text:
        return "It was deleted there: the next try restores it, or makes it again from the record."
    if not isinstance(error, ConnectionError | TimeoutError | socket.gaierror) and not from_client(error):
        return ""
    return server_cure(text) if path is None else f"Move {path} away to begin a new store, or {ELSEWHERE}."


def from_client(error: Exception) -> bool:
    """Whether an error is of MLflow or of what it reaches a store with."""
    return type(error).__module__.partition(".")[0] in ("mlflow", "requests", "sqlalchemy", "urllib3")


def server_cure(text: str) -> str:
    """What helps against an answer of a server, or against none."""
    if re.search(r"\b403\b|Invalid Host", text):
        return "Start the server with `--allowed-hosts HOST` for the name in the address, or give the user the right."
    if re.search(r"\b401\b|UNAUTHENTICATED", text):
        return "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment."
    if re.search(r"\b404\b|ENDPOINT_NOT_FOUND", text):
        return "Something else answers there: look at the address and its port."
    return f"Start the server, or {ELSEWHERE}."


def schema_cure(uri: str, text: str) -> str:
    """What helps against a store of another version: MLflow says of both kinds that they are old."""
    spec = find_spec("mlflow")
    found = re.search(r"found version (\w+)", text)
    known = Path(spec.origin if spec and spec.origin else "").parent / "store/db_migrations/versions"
    if found and known.is_dir() and not any(known.glob(f"{found[1]}_*.py")):
        return (
            f"A newer MLflow than the {version('mlflow')} of this environment wrote it: install that version here, or "
            "give this run another store (MLFLOW_TRACKING_URI=sqlite:////FOLDER/mlflow.db)."
        )
    return f"An older MLflow wrote it. Copy the store, then run:  uv run mlflow db upgrade {shlex.quote(uri)}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
