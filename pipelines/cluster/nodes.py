"""What every node of a cluster must see: our packages, the output folder, the release that is prepared."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines.base.door import check_names
from pipelines.base.errors import SetupError

if TYPE_CHECKING:
    pass

T = TypeVar("T")


def check_workers() -> None:
    """Look from one task on each node at what it imports.

    Raises:
        SetupError: a foreign package bears one of our names there.
    """
    if trouble := [text for text in on_each_node(names_on_worker).values() if text]:
        raise SetupError(f"on a Ray worker: {trouble[0]}")


def on_each_node(look: Callable[..., T], *words: Any) -> dict[str, T]:
    """What a function returns on each node, by the node's address."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    task = ray.remote(num_cpus=0)(look)
    answers = [task.options(scheduling_strategy=On(node, soft=False)).remote(*words) for node in nodes]
    found = ray.get(answers)
    return {f"{address} ({node[:8]})": answer for (node, address), answer in zip(nodes.items(), found, strict=True)}


def check_nodes(folder: Path, tracking: str) -> None:
    """On several nodes, what they share must be shared.

    Args:
        folder: the run's; must exist.
        tracking: MLflow's URI.

    Raises:
        SetupError: MLflow's store is a local file, or a node does not see what this one writes to `folder`.
    """
    import ray

    count = sum(node["Alive"] for node in ray.nodes())
    if count < 2:
        return
    if not tracking.startswith(("http:", "https:", "databricks", "postgresql", "mysql", "mssql")):
        raise SetupError(
            f"the cluster has {count} nodes, and MLflow's store is the local file {tracking}: on a file system that "
            "nodes share it breaks. Start `mlflow server` on one node, and set MLFLOW_TRACKING_URI=http://HOST:5000."
        )
    probe = folder / f".probe-{secrets.token_hex(8)}"
    probe.write_text("")
    try:
        blind = [address for address, sees in on_each_node(sees_file, str(probe)).items() if not sees]
    finally:
        probe.unlink(missing_ok=True)
    if blind:
        raise SetupError(
            f"{len(blind)} of {count} nodes ({', '.join(blind[:3])}) do not see {folder}: checkpoints would be lost "
            "with a node. Set `output` to a folder on a file system that all nodes share (NFS, EFS, Lustre)."
        )


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
    import ray

    from pipelines.cluster.nodes import on_each_node, sees_file

    count = sum(node["Alive"] for node in ray.nodes())
    if count < 2:
        return

    def refuse(flag: str, place: object, cure: str, seen: dict[str, Any]) -> None:
        if blind := [address for address, sees in seen.items() if not sees]:
            raise SetupError(
                f"{len(blind)} of {count} nodes ({', '.join(blind[:3])}) do not see {flag} {place}. Put it on a file "
                f"system that all nodes share (NFS, EFS, Lustre), {cure}"
            )

    cure = "or run on this machine alone with --workers 0"
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
