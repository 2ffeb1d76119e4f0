"""RAY_ADDRESS: whether the cluster that it names can be joined from here, found out in seconds."""

from __future__ import annotations

import os
import platform
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pipelines.base.errors import SetupError
from pipelines.cluster.inside_ray import Cluster, found_address, greet

TRIES, TRY_S, PAUSE_S = 3, 2.0, 1.0  # of a connection: a head that only starts again is there a moment later
GREETING_S = 15.0
ALONE = "or unset RAY_ADDRESS to run only on this machine"
SUBMIT = "ray job submit --working-dir . -- python pipelines/voc_pretrain.py"
T = TypeVar("T")


def check_address(given: str) -> None:
    """Make sure that Ray's own way of joining, which is silent for a quarter of an hour, will not wait in vain.

    Args:
        given: RAY_ADDRESS.

    Raises:
        SetupError: it does not name a cluster, nothing answers, or the cluster refuses this machine.
    """
    if "://" in given:
        raise other_kind(given)
    address = found_address() if given == "auto" else given
    if address == "auto":  # Ray will look for it
        return
    if not address:
        raise SetupError(
            "RAY_ADDRESS = auto: no Ray cluster runs on this machine. Start one (`ray start --head`), name another "
            f"(RAY_ADDRESS=HOST:6379), {ALONE}"
        )
    if not has_token():
        raise SetupError(
            "RAY_AUTH_MODE = token, and there is no token: put the cluster's into ~/.ray/auth_token, name its file in "
            "RAY_AUTH_TOKEN_PATH, or, for a cluster without one, unset RAY_AUTH_MODE"
        )
    host, port = parts(address)
    knock(address, host, port)
    try:
        cluster = within(lambda: greet(address), GREETING_S)
    except TimeoutError:
        raise SetupError(
            f"RAY_ADDRESS = {given}: something listens there, and does not answer as a Ray cluster. The address is "
            f"the one that `ray start --head` printed, by default HOST:6379; correct it, {ALONE}"
        ) from None
    if cluster:
        check_cluster(given, cluster)


def other_kind(given: str) -> SetupError:
    """What to say of an address of another kind."""
    kind = given.partition("://")[0]
    if kind in ("http", "https"):
        return SetupError(
            f"RAY_ADDRESS = {given} is where jobs are submitted, and no process can join a cluster there. Submit this "
            f"one: `{SUBMIT} …` takes that address; or name the cluster itself (RAY_ADDRESS=HOST:6379), {ALONE}"
        )
    if kind == "ray":
        return SetupError(
            f"RAY_ADDRESS = {given} is Ray Client's, which Ray Train cannot be driven through. Run on one of the "
            f"cluster's machines with RAY_ADDRESS=HOST:6379, or submit a job: `{SUBMIT} …`, {ALONE}"
        )
    return SetupError(f"RAY_ADDRESS = {given}: {kind}:// is not a cluster's address; give HOST:6379, {ALONE}")


def has_token() -> bool:
    """Whether there is a token where this environment asks for one; without it Ray aborts the process."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token" or os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return True
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    try:
        return bool((Path(named) if named else Path.home() / ".ray/auth_token").read_text().strip())
    except OSError:
        return False


def parts(address: str) -> tuple[str, int]:
    """Host and port of an address.

    Raises:
        SetupError: it has none.
    """
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdigit() and 0 < int(port) < 65536):
        raise SetupError(f"RAY_ADDRESS = {address} is not HOST:PORT, such as 10.0.0.5:6379; correct it, {ALONE}")
    return host.strip("[]"), int(port)


def knock(address: str, host: str, port: int) -> None:
    """Make sure that something listens.

    Raises:
        SetupError: nothing does, or there is no machine of that name.
    """
    for left in reversed(range(TRIES)):
        try:
            socket.create_connection((host, port), timeout=TRY_S).close()
            return
        except socket.gaierror as error:
            why = f"there is no machine named {host!r} ({error.strerror})"
            break
        except OSError as error:
            why = f"nothing listens there ({error.strerror or error})"
            if left:
                time.sleep(PAUSE_S)
    raise SetupError(
        f"RAY_ADDRESS = {address}: {why}. Start the cluster (`ray start --head` on its first machine), correct the "
        f"address, {ALONE}"
    )


def check_cluster(given: str, cluster: Cluster) -> None:
    """Make sure that what answers will take this process in.

    Raises:
        SetupError: it asks for a token, runs another Ray or Python, or has no node on this machine.
    """
    import ray

    if cluster.refusal:
        raise SetupError(
            f"RAY_ADDRESS = {given}: the cluster asks for its token, and got none or another. Set RAY_AUTH_MODE=token, "
            "and put the cluster's token into ~/.ray/auth_token or name its file in RAY_AUTH_TOKEN_PATH"
        )
    own = {"Ray": ray.__version__, "Python": platform.python_version()}
    length = 2 if os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL") == "minor" else 3
    theirs = {"Ray": cluster.ray, "Python": cluster.python}
    for name, version in theirs.items():
        if version and version.split(".")[:length] != own[name].split(".")[:length]:
            raise SetupError(
                f"RAY_ADDRESS = {given}: the cluster runs {name} {version}, this environment has {name} {own[name]}. "
                f"They must be equal: install {name} {version} here, or {name} {own[name]} on every node"
            )
    if cluster.here is False:
        raise SetupError(
            f"RAY_ADDRESS = {given}: this machine is not one of the cluster's nodes ({', '.join(cluster.nodes[:4])}). "
            f"Join it (`ray start --address={given}`), run on one of them, or submit a job: `{SUBMIT} …`"
        )


def within(call: Callable[[], T], seconds: float) -> T:
    """The result of a call within a time limit; signals are handled while it runs.

    Raises:
        TimeoutError: it took longer.
    """
    box: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            box.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    until = time.monotonic() + seconds
    while thread.is_alive() and time.monotonic() < until:
        thread.join(0.1)
    if thread.is_alive():
        raise TimeoutError
    if errors:
        raise errors[0]
    return box[0]
