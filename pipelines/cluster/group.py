"""A group of Ray Train workers whose processes talk to each other, only on their own addresses.

PyTorch's rendezvous listens on every interface of the machine. Here rank 0 hands it a socket that is bound to the
address by which the other workers know it: loopback in a local session.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train  # and no torch up here: Ray's controller reads this module too, and trains nothing
from ray.train.backend import Backend, BackendConfig

from pipelines.cluster.inside_ray import WORKER, hook, lean
from pipelines.cluster.sizes import Sizes

if TYPE_CHECKING:
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
) -> TorchTrainer:
    """A trainer that runs `enter(config)` on `sizes.count` workers, or in this process when that is 0."""
    from ray.train.torch import TorchTrainer

    return lean(TorchTrainer)(
        enter,
        train_loop_config=config,
        torch_config=Group(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=sizes.count,
            use_gpu=bool(sizes.gpus),
            resources_per_worker={"CPU": sizes.cpus} | ({"GPU": 1} if sizes.gpus else {}),
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=ray.train.FailureConfig(max_failures=failures),
            worker_runtime_env={"env_vars": hook(WORKER)},  # type: ignore[call-arg]  # ray.train has two of that name
        ),
    )


@contextlib.contextmanager
def process_group(minutes: float = 30.0) -> Iterator[None]:
    """The process group of this worker and the others, where there are others.

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
    timeout, listener = datetime.timedelta(minutes=minutes), None
    if rank == 0:
        listener = socket.create_server((ray.util.get_node_ip_address(), 0), backlog=world)
    host, port = broadcast_from_rank_zero(listener.getsockname()[:2] if listener else None)
    if host == LOOPBACK:  # else gloo and NCCL choose an interface by the machine's name
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback())
        os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback())
    store = dist.TCPStore(host, port, world, listener is not None, timeout,
                          master_listen_fd=listener.detach() if listener else None)  # fmt: skip
    backend = "nccl" if ray.train.torch.get_device().type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()
        torch.cuda.empty_cache()


def loopback() -> str:
    """Name of this machine's loopback interface."""
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
