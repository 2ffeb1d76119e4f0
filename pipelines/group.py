"""A group of Ray Train workers whose processes talk to each other, on their own addresses alone.

PyTorch's rendezvous listens on every interface of the machine. Here rank 0 hands it a socket that is bound to the
address by which the other workers know it: loopback in a local session.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train  # and no torch up here: Ray's controller reads this module too, and trains nothing
from ray.train.backend import Backend, BackendConfig

from pipelines.cluster import Sizes
from pipelines.prestart import HOOK, WORKER, controller_hook

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

LOOPBACK = "127.0.0.1"
OWNED = "trial:"  # what names of placement groups begin with
# Ray Train's callbacks that would start actors with nothing to do: datasets are the workers' own here, and placement
# groups go with the job, or by `reclaim`.
IDLE = ("DatasetsCallback", "PlacementGroupCleanerCallback")


class NoRendezvous(Backend):
    """Leaves the process group to `connected`; workers of a node see each other's GPUs, as NCCL wants."""

    share_cuda_visible_devices = True


@dataclass
class Group(BackendConfig):
    """What `TorchTrainer` asks of Ray's `TorchConfig`, without the rendezvous and its import of torch."""

    backend: str = "pipelines.group.connected"

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

    class Lean(TorchTrainer):
        """Without the actors that do nothing for us: each is a process whose imports take seconds."""

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # ray.train has two of that name
            kept = [callback for callback in callbacks if type(callback).__name__ not in IDLE]
            owner = ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None
            return kept if owner is None else [*kept, naming(owner)]

        def _initialize_and_run_controller(self, **kwargs: Any) -> Any:
            with controller_hook():
                return super()._initialize_and_run_controller(**kwargs)  # type: ignore[misc]

    return Lean(
        enter,  # type: ignore[arg-type]
        train_loop_config=config,
        torch_config=Group(),  # type: ignore[arg-type]
        scaling_config=ray.train.ScalingConfig(
            num_workers=sizes.count,
            use_gpu=bool(sizes.gpus),
            resources_per_worker={"CPU": sizes.cpus} | ({"GPU": 1} if sizes.gpus else {}),
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=ray.train.FailureConfig(max_failures=failures),
            worker_runtime_env={"env_vars": {HOOK: WORKER}},  # type: ignore[call-arg]  # as above
        ),
    )


def naming(owner: str) -> Any:
    """A callback of Ray Train's controller that names each placement group after the trial's actor, for `reclaim`."""
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback
    from ray.train.v2._internal.execution.worker_group import worker_group
    from ray.util import placement_group

    class Named(WorkerGroupCallback):
        def before_worker_group_start(self, context: Any) -> None:
            name = f"{OWNED}{owner}:{uuid.uuid4().hex}"
            worker_group.placement_group = functools.partial(placement_group, name=name)  # Ray gives it none

    return Named()


def reclaim() -> int:
    """Remove the placement groups of trials whose actor is dead; returns how many.

    Ray 2.60 removes one with the job that made it, not with the actor: a trial that was stopped early or killed would
    hold its CPUs and GPUs until the study ends, and the next would wait for ever. (Train's own cleaner of them is a
    process of 600 MB per trial, and asks the dashboard.)
    """
    from ray._private.state import actors  # the public ones need a dashboard
    from ray.util import placement_group_table, remove_placement_group
    from ray.util.placement_group import PlacementGroup, PlacementGroupID

    count = 0
    for key, group in placement_group_table().items():
        if group["state"] == "REMOVED" or not group["name"].startswith(OWNED):
            continue
        owner = group["name"].removeprefix(OWNED).partition(":")[0]
        if actors(owner).get("State", "DEAD") == "DEAD":
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(key))))
            count += 1
    return count


@contextlib.contextmanager
def connected(minutes: float = 30.0) -> Iterator[None]:
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
