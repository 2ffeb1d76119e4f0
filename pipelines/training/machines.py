"""On which machines the workers of a training are: their addresses, devices and versions, in the run's folder."""

from __future__ import annotations

import socket
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch.distributed as dist

from pipelines.base import machine
from pipelines.base.door import VERSION
from pipelines.cluster.device import device_of, named
from pipelines.runs.folder import RunFolder
from pipelines.runs.provenance import versions
from pipelines.runs.record import append


@dataclass(frozen=True)
class Machine:
    """A node with workers: `ranks` of them, each with its entry in `devices`; `driver` is that of its GPUs."""

    address: str
    host: str
    ranks: tuple[int, ...]
    devices: tuple[str, ...]
    cpu: str
    cores: int
    memory_gib: int
    driver: str
    versions: dict[str, str]


def note_machines(run: RunFolder, gpus: int) -> str:
    """Note, once for each start of the workers, where they are; to be called by all of them.

    Args:
        gpus: of each worker, 0 or 1.

    Returns:
        On rank 0 what people should know: that machines have other versions than the first; else empty.
    """
    import ray.train

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    own = own_machine(rank, gpus, context.get_local_rank() == 0)
    found = [own] * world
    if world > 1:
        dist.all_gather_object(found, own)
    if rank:
        return ""
    nodes = together(found)
    line: dict[str, Any] = {"time": int(time.time() * 1000), "workers": world, "nodes": list(map(asdict, nodes))}
    with run.machines.open("a") as file:
        append(file, line)
    return different(nodes)


def own_machine(rank: int, gpus: int, first: bool) -> Machine:
    """This worker's machine, with this worker alone.

    Args:
        gpus: of the worker.
        first: whether it is the node's first, which alone asks for the GPUs' driver.
    """
    import ray

    device = device_of(gpus)
    driver = machine.gpu_driver() if first and device.type == "cuda" else ""
    facts = {name.removeprefix("version."): text for name, text in versions().items()}
    return Machine(
        address=ray.util.get_node_ip_address(), host=socket.gethostname(), ranks=(rank,), devices=(named(device),),
        cpu=machine.cpu_model(), cores=machine.cores(), memory_gib=round(machine.memory_gib()),
        driver=driver, versions={"context-heads": VERSION} | facts,
    )  # fmt: skip


def together(entries: Sequence[Machine]) -> list[Machine]:
    """Machines with all of their workers, in the order of their first ranks."""
    nodes: dict[tuple[str, str], list[Machine]] = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: entry.ranks):
        nodes[entry.address, entry.host].append(entry)
    return [
        replace(group[0], ranks=sum((e.ranks for e in group), ()), devices=sum((e.devices for e in group), ()))
        for group in nodes.values()
    ]


def different(nodes: Sequence[Machine]) -> str:
    """What to say where machines have other versions than the first; empty where all are alike."""
    first, told = nodes[0], []
    for node in nodes[1:]:
        there = first.versions | {"GPU driver": first.driver}
        other = [f"{name} {text} ({there.get(name)})" for name, text in
                 (node.versions | {"GPU driver": node.driver}).items() if text != there.get(name)]  # fmt: skip
        told += [f"{node.address} has {', '.join(other)}"] if other else []
    return f"the machines differ: {'; '.join(told)}, in brackets what {first.address} has" if told else ""
