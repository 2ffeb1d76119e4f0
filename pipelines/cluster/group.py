"""A group of Ray Train workers whose processes talk to each other, only on their own addresses.

PyTorch's rendezvous listens on every interface of the machine. Here rank 0 hands it a socket that is bound to the
address by which the other workers know it: loopback in a local session.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import ray
import ray.train  # and no torch up here: Ray's controller reads this module too, and trains nothing
from ray.train.backend import Backend, BackendConfig

from pipelines.cluster.elastic import GROW_S, Choice
from pipelines.cluster.inside_ray import elastic, lean, worker_variables
from pipelines.cluster.nodes import avoid
from pipelines.cluster.sizes import Sizes, cores_here, fair_threads
from pipelines.cluster.waiting import limit
from pipelines.recipes.recipe import Workers

if TYPE_CHECKING:
    from ray.train import UserCallback
    from ray.train.torch import TorchTrainer

LOOPBACK = "127.0.0.1"


class NoRendezvous(Backend):
    """Leaves the process group to `process_group`; workers of a node see each other's GPUs, as NCCL wants."""

    share_cuda_visible_devices = True


@dataclass
class Group(BackendConfig):
    """What `TorchTrainer` asks of Ray's `TorchConfig`, without the rendezvous and its import of torch."""

    backend: str = "pipelines.cluster.group.process_group"

    @property
    def backend_cls(self) -> type[Backend]:
        return NoRendezvous

    @property
    def train_func_context(self) -> Any:
        """Ray's own, in which each worker's GPU is PyTorch's current one."""
        from ray.train.torch import TorchConfig

        return TorchConfig().train_func_context


def trainer(
    enter: Callable[[dict[str, Any]], Any],
    config: dict[str, Any],
    sizes: Sizes,
    name: str,
    storage: Path,
    failures: int,
    told: UserCallback | None = None,
    avoided: Collection[str] = (),
    workers: Workers | None = None,
    choice: Choice | None = None,
) -> TorchTrainer:
    """A trainer that runs `enter(config)` on `sizes.count` workers, or in this process when that is 0.

    Args:
        enter: what each worker runs.
        config: what it is given.
        failures: how often Ray starts the workers again.
        told: is told of each failure.
        avoided: ids of nodes on which no worker is to be.
        workers: the recipe's wishes, of which this takes how long it may wait for room.
        choice: with how many workers it goes on as nodes come and go; None for a number that stays.
    """
    from ray.train.torch import TorchTrainer

    again: dict[str, Any] = {"max_failures": failures, "controller_failure_limit": starts(workers)}
    # ray.train has two of each config, mypy sees the other
    where: dict[str, Any] = {"label_selector": avoid(avoided), "elastic_resize_monitor_interval_s": GROW_S}
    telling: dict[str, Any] = {"callbacks": [told] if told and sizes.count else None}
    kind: Any = lean(TorchTrainer)
    number: Any = sizes.count
    if choice and (ranging := elastic(kind, choice)):
        kind, number = ranging, (sizes.counts[0], sizes.counts[-1])
    return kind(
        enter,
        train_loop_config=config,
        torch_config=Group(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=number,
            use_gpu=bool(sizes.gpus),
            resources_per_worker={"CPU": sizes.cpus} | ({"GPU": 1} if sizes.gpus else {}),
            # GPUs talk best on one node; on CPUs each worker is to have a node's cores to itself
            placement_strategy="PACK" if sizes.gpus else "SPREAD",
            **where,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=ray.train.FailureConfig(**again),
            **telling,
            worker_runtime_env={"env_vars": worker_variables()},  # type: ignore[call-arg]  # ray.train has two of that name
        ),
    )


@contextlib.contextmanager
def process_group(minutes: float = 30.0) -> Iterator[None]:
    """The process group of this worker and the others, where there are others.

    After an error nothing waits for the others: they may sit in a collective, and NCCL's end would wait for it. Ray
    ends their processes, and this one.

    Args:
        minutes: how long a collective may wait for a worker.
    """
    import ray.train.torch
    import torch
    import torch.distributed as dist
    from ray.train.collective import broadcast_from_rank_zero

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    if world < 2:
        yield
        return
    timeout, listener, own = datetime.timedelta(minutes=minutes), None, ray.util.get_node_ip_address()
    if rank == 0:
        family = socket.AF_INET6 if ":" in own else socket.AF_INET
        listener = socket.create_server((own, 0), family=family, backlog=world)
    host, port = broadcast_from_rank_zero(listener.getsockname()[:2] if listener else None)
    name_interface(LOOPBACK if host == LOOPBACK else own)
    store = dist.TCPStore(host, port, world, listener is not None, timeout,
                          master_listen_fd=listener.detach() if listener else None)  # fmt: skip
    device = ray.train.torch.get_device()
    on_gpu = device.type == "cuda"
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=world, timeout=timeout,
        device_id=device if on_gpu else None,  # communicators are made here, where a broken link is told
    )  # fmt: skip
    try:
        yield
    except BaseException:
        if not on_gpu:  # gloo ends at once
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()
    torch.cuda.empty_cache()


def name_interface(address: str) -> None:
    """Have gloo and NCCL talk over the interface that carries this node's address, unless the user names one.

    Else they choose one by the machine's own name, which on many systems means loopback.
    """
    found = interface(address)
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if found else ():
        os.environ.setdefault(variable, found)


def interface(address: str) -> str:
    """The network interface of this machine that carries an address; empty where none does."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in addresses):
            return name
    return ""


def starts(workers: Workers | None) -> int:
    """How often Ray may try to find room for the workers, and to start them, before it gives up.

    The clock of `Waiting` ends a wait; this ends workers that die as they start.
    """
    seconds = float(os.environ.get("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "60"))
    return 3 + int(limit(workers or Workers()) / max(1.0, seconds))


def own_share(sizes: Sizes) -> int:
    """CPU threads of this worker: a fair share of what its own node has, 1 on GPUs."""
    here = ray.get_runtime_context().get_node_id()
    cpus = next((node["Resources"].get("CPU", 1.0) for node in ray.nodes() if node["NodeID"] == here), 1.0)
    cores = min(cores_here(), max(1, int(cpus)))
    return fair_threads(sizes, ray.train.get_context().get_local_world_size(), cores)
