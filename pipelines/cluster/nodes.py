"""What every node of a cluster must see: our packages, the output folder, the shards, the release that is prepared."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipelines.base.door import check_names
from pipelines.base.errors import InputError, SetupError

T = TypeVar("T")
LOOK_S = 180.0  # that a node has for a look, the start of a process included
LACKS_MEMORY = (
    "To use less memory, lower one of these keys of the recipe: workers.micro_batch (images at once), batch, "
    "view.crop, workers.feed_tasks, inference.batch, workers.count; or take machines with more memory"
)
AVOIDED: dict[str, str] = {}  # nodes that this process' tasks keep away from: id -> address
NODE_ID = "ray.io/node-id"  # the label by which Ray names a node


class BlindNode(RuntimeError):
    """A node does not see what others see. This is not an error of the input, which would end the run."""


def check_workers() -> None:
    """Look from one task on each node at what it imports.

    Raises:
        SetupError: a foreign package has one of our names there.
    """
    if trouble := [text for text in on_each_node(names_on_worker).values() if text]:
        raise SetupError(f"on a Ray worker: {trouble[0]}")


def alive() -> dict[str, str]:
    """The nodes of the cluster: id -> address."""
    import ray

    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def count_alive() -> int:
    """How many nodes the cluster has."""
    import ray

    return sum(bool(node["Alive"]) for node in ray.nodes())


def on_each_node(look: Callable[..., T], *words: Any, seconds: float = LOOK_S) -> dict[str, T]:
    """What a function returns on each node, by the node's address; a node that leaves before it answers is left out.

    Raises:
        SetupError: a node does not answer in time, or has no memory left.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    nodes, found = alive(), {}
    task = ray.remote(num_cpus=0, max_retries=0)(look)  # Ray would try for ever where memory is short
    asked = {task.options(scheduling_strategy=On(id_, soft=False)).remote(*words): id_ for id_ in nodes}
    ray.wait(list(asked), num_returns=len(asked), timeout=seconds)
    for answer, id_ in asked.items():
        name = f"{nodes[id_]} ({id_[:8]})"
        try:
            found[name] = ray.get(answer, timeout=0)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.OutOfMemoryError as error:
            raise SetupError(
                f"node {name} is out of memory: Ray killed even a small task there. {first_line(error)} {LACKS_MEMORY}"
            ) from None
        except ray.exceptions.RayError as error:
            if id_ in alive():
                raise SetupError(
                    f"node {name} does not answer within {seconds:g} s: {first_line(error)} Look at it (`ray status`, "
                    "its raylet's log), or take it out of the cluster"
                ) from None
    return found


def first_line(error: BaseException) -> str:
    """The first line of an error, as a sentence."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
    return f"{text}."


def output_folder(output: str) -> Path:
    """The folder that a recipe's `output` names.

    Raises:
        InputError: it is a bucket's URI.
    """
    kind, mark, rest = output.partition("://")
    if mark and kind != "file":
        raise InputError(
            f"output = {output}: only runs can be written to a bucket; studies, and MLflow's store, need a folder, on "
            "several nodes one on a file system that all of them share (NFS, EFS, Lustre)"
        )
    return Path(f"/{rest.lstrip('/')}" if mark else output).expanduser().resolve()


def check_nodes(folder: Path, tracking: str, shards: Iterable[str | None] = (), bucket: str | None = None) -> None:
    """On several nodes, what they share must be shared.

    Args:
        folder: the run's; must exist.
        tracking: MLflow's URI.
        shards: folders or URIs of the splits that are read.
        bucket: the run's URI, where it is in a bucket: then no node needs to see `folder`.

    Raises:
        SetupError: MLflow's store is a local file, or a node does not see what this one writes to `folder`, or not
            the bucket, or not the shards.
    """
    count = count_alive()
    if count < 2:
        return
    if not tracking.startswith(("http:", "https:", "databricks", "postgresql", "mysql", "mssql")):
        raise SetupError(
            f"the cluster has {count} nodes, and MLflow's store is the local file {tracking}: on a file system that "
            "nodes share it breaks. Start `mlflow server` on one node, and set MLFLOW_TRACKING_URI=http://HOST:5000."
        )
    if bucket:
        check_bucket(bucket)
    else:
        check_folder(folder, count)
    check_data(list(dict.fromkeys(uri for uri in shards if uri)))


def check_folder(folder: Path, count: int) -> None:
    """Each of `count` nodes must see what this one writes to a folder.

    Raises:
        SetupError: one does not.
    """
    probe = folder / f".probe-{secrets.token_hex(8)}"
    probe.write_text("")
    try:
        blind = [address for address, sees in on_each_node(sees_file, str(probe)).items() if not sees]
    finally:
        probe.unlink(missing_ok=True)
    if blind:
        raise SetupError(
            f"{len(blind)} of {count} nodes ({', '.join(blind[:3])}) do not see {folder}: checkpoints would be lost "
            "with a node. Set `output` to a folder on a file system that all nodes share (NFS, EFS, Lustre), or to a "
            "bucket (s3://, gs://)."
        )


def check_bucket(uri: str) -> None:
    """Each node must be able to write to a bucket.

    Raises:
        SetupError: one is not.
    """
    answers = on_each_node(takes_a_file, uri)
    if silent := {address: why for address, why in answers.items() if why}:
        raise SetupError(
            f"{len(silent)} of {len(answers)} nodes ({', '.join(list(silent)[:3])}) cannot write to {uri}: "
            f"{next(iter(silent.values()))}. Each node needs the credentials: a file that AWS_SHARED_CREDENTIALS_FILE "
            "or GOOGLE_APPLICATION_CREDENTIALS names, or the node's own profile"
        )


def takes_a_file(uri: str) -> str:
    """Why this node cannot write to a bucket; empty where it can."""
    from datasets.sample import DataError
    from datasets.storage import locate, temporary_name

    try:
        system, path = locate(uri)
        name = f"{path}/{temporary_name('probe')}"
        with system.open_output_stream(name) as stream:
            stream.write(b"probe")
        system.delete_file(name)
    except (DataError, OSError) as error:
        return first_line(error).rstrip(".")
    return ""


def check_data(uris: Sequence[str]) -> None:
    """On several nodes, each must read the same shards.

    Raises:
        SetupError: a node does not see them, or sees others.
    """
    if not uris or count_alive() < 2:
        return
    answers = on_each_node(manifests, uris)
    wanted = manifests(uris)
    for place, uri in enumerate(uris):
        odd = {address: found[place] for address, found in answers.items() if found[place] != wanted[place]}
        if odd:
            address, found = next(iter(odd.items()))
            why = found.partition("!")[2].removeprefix(f"{uri}: ") or "another manifest.json is there"
            raise SetupError(
                f"{len(odd)} of {len(answers)} nodes ({', '.join(list(odd)[:3])}) do not see the shards {uri}, or not "
                f"those that this one sees ({address}: {why}). Put `data` where every node sees it: "
                "a shared file system, the same folder on each, or a bucket that each may read"
            )


def manifests(uris: Sequence[str]) -> list[str]:
    """The sha256 of each split's manifest as this node reads it, else `!` and why it does not."""
    from datasets.manifest import MANIFEST
    from datasets.sample import DataError
    from datasets.storage import below, locate, read_bytes

    def look(uri: str) -> str:
        try:
            return hashlib.sha256(read_bytes(*locate(below(uri, MANIFEST)))).hexdigest()
        except (DataError, OSError) as error:
            return f"!{first_line(error)}"

    return [look(uri) for uri in uris]


def check_sight(uris: Iterable[str | None], files: Iterable[Path]) -> None:
    """Make sure that this worker's node, which may have joined after `check_nodes`, sees shards and files.

    Raises:
        BlindNode: it does not.
    """
    for path in files:
        if not path.exists():
            raise blind(path.parent, "no such folder")
    splits = [uri for uri in uris if uri]
    for uri, found in zip(splits, manifests(splits), strict=True):
        if found.startswith("!"):
            raise blind(uri, found[1:])


def blind(place: object, why: str) -> BlindNode:
    """What a process says whose node does not see a place."""
    import ray

    node = f"{ray.util.get_node_ip_address()} <{ray.get_runtime_context().get_node_id()}>"
    return BlindNode(f"{node} {place}: {why.removeprefix(f'{place}: ')}")


def avoid(nodes: Collection[str]) -> dict[str, str] | None:
    """The label selector that keeps processes away from nodes, by their ids; None where there are none."""
    return {NODE_ID: f"!in({','.join(sorted(nodes))})"} if nodes else None


def sees_file(path: str) -> bool:
    """Whether this node has the file."""
    return os.path.exists(path)


def names_on_worker() -> str | None:
    """The complaint of `check_names` in this process, or None."""
    try:
        check_names()
    except SetupError as error:
        return str(error)
    return None


def check_shared(source: Path, out: str) -> None:
    """On several nodes, each must see the release, and what the others write.

    Raises:
        SetupError: a node sees only its own disk.
    """
    count = count_alive()
    if count < 2:
        return

    def refuse(flag: str, place: object, cure: str, seen: dict[str, Any]) -> None:
        if blind := [address for address, sees in seen.items() if not sees]:
            raise SetupError(
                f"{len(blind)} of {count} nodes ({', '.join(blind[:3])}) do not see {flag} {place}. Put it on a file "
                f"system that all nodes share (NFS, EFS, Lustre), {cure}"
            )

    cure = "or run only on this machine with --workers 0"
    refuse("--source", source, cure, on_each_node(sees_file, str(source)))
    if "://" in out:
        return
    folder = Path(out).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".probe-{secrets.token_hex(8)}"
    probe.write_text("")
    try:
        refuse("--out", folder, f"name a bucket (s3://, gs://), {cure}", on_each_node(sees_file, str(probe)))
    finally:
        probe.unlink(missing_ok=True)
