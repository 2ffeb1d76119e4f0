"""Ray Serve: replicas that each hold the model, and the way from the HTTP side to one of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import ray
from ray import serve
from ray.serve.config import ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig, ReplicaState

from pipelines.base.door import PROJECT
from pipelines.base.errors import RunFailed
from pipelines.cluster.inside_ray import stay_on_loopback
from pipelines.cluster.sizes import Sizes, several, threads
from pipelines.serving.answers import Answer, Kind
from pipelines.serving.batching import Found, Picture, Predictor
from pipelines.serving.limits import Refusal
from pipelines.serving.opened import Plan

AHEAD = 2  # batches that a replica takes in: one is decoded while the other is predicted
STATUS_S = 1.0  # how long what Serve said of its replicas counts
DRAIN_S = 0.2  # that a replica has at its end: the front has waited for all that was begun


class Replica:
    """One process with the model."""

    def __init__(self, plan: Plan, gpus: int, threads: int) -> None:
        import torch

        from segmodels.loading import load

        stay_on_loopback()
        model = load(plan.path, device="cuda" if gpus else "cpu", precision=plan.precision, inference=plan.inference)
        self.predictor = Predictor(model, plan.limits)
        # OpenMP counts its threads per thread that asks: so one thread predicts, and knows the number
        self.predicting = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,))
        self.predicting.submit(self.predictor.warm).result()
        self.together.set_max_batch_size(plan.batch)  # type: ignore[attr-defined]
        self.together.set_batch_wait_timeout_s(plan.wait_s)  # type: ignore[attr-defined]

    @serve.batch
    async def together(self, pictures: list[Picture]) -> list[Found | Refusal]:
        """Predict what has come in meanwhile, while the loop takes in more."""
        return await asyncio.get_running_loop().run_in_executor(self.predicting, self.predictor.predict, pictures)

    async def __call__(self, data: bytes, kind: Kind, mask: bool) -> Answer | Refusal:
        """Answer one image."""
        try:
            picture = await asyncio.to_thread(self.predictor.decode, data, kind)
        except Refusal as refusal:
            return refusal
        found = await self.together(picture)  # type: ignore[arg-type, misc]
        return (
            found if isinstance(found, Refusal) else await asyncio.to_thread(self.predictor.encode, found, kind, mask)
        )


class Replicas:
    """The replicas of one server, seen from the process that speaks HTTP.

    Args:
        name: of the application on its cluster.
        handle: to its replicas.
        told: how many there are and on what, in words.
    """

    def __init__(self, name: str, handle: DeploymentHandle, told: str) -> None:
        self.name, self.handle, self.told = name, handle, told
        self.looked, self.count = -STATUS_S, 0

    async def answer(self, data: bytes, kind: Kind, mask: bool) -> Answer | Refusal:
        """What a replica says of an image."""
        try:
            return await self.handle.remote(data, kind, mask)
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError, RayServeException):
            return Refusal(503, "an image whose replica was lost", "the same again", "try again in a few seconds")

    async def running(self) -> int:
        """How many replicas run."""
        if time.monotonic() - self.looked > STATUS_S:
            self.looked, self.count = time.monotonic(), await asyncio.to_thread(running, self.name)
        return self.count


def running(name: str) -> int:
    """How many replicas of an application run."""
    app = serve.status().applications.get(name)
    deployments = app.deployments.values() if app else ()
    return sum(deployment.replica_states.get(ReplicaState.RUNNING, 0) for deployment in deployments)


@contextlib.contextmanager
def deployed(plan: Plan, sizes: Sizes) -> Iterator[Replicas]:
    """Replicas on the Ray session that there is, each with its model; they end with the body.

    Args:
        plan: what they run.
        sizes: how many, and what each has of the machines.

    Raises:
        RunFailed: a replica does not start.
    """
    name = f"{PROJECT}-{uuid.uuid4().hex[:8]}"  # a cluster may have several servers
    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # what goes wrong arrives as an exception
    quiet = LoggingConfig(enable_access_log=False, log_level=logging.WARNING)
    serve.start(proxy_location=ProxyLocation.Disabled, logging_config=quiet)  # HTTP is the front's
    deployment = serve.deployment(
        name="model",
        num_replicas=sizes.count,
        max_ongoing_requests=AHEAD * plan.batch,
        ray_actor_options={"num_cpus": sizes.cpus, "num_gpus": sizes.gpus},
        graceful_shutdown_timeout_s=DRAIN_S,
        graceful_shutdown_wait_loop_s=DRAIN_S / 2,
        logging_config=quiet,
    )(Replica)
    try:
        yield Replicas(name, started(deployment.bind(plan, sizes.gpus, threads(sizes)), name, quiet), told(sizes))
    finally:
        serve.delete(name)  # Serve's controller stays on a cluster, for the next: it takes no CPU


def started(app: serve.Application, name: str, logging_config: LoggingConfig) -> DeploymentHandle:
    """A handle to an application, once its replicas have their model.

    Raises:
        RunFailed: one does not start.
    """
    try:
        return serve.run(app, name=name, route_prefix=None, logging_config=logging_config)
    except RuntimeError as error:
        raise RunFailed(f"the replicas do not start: {' '.join(str(error).split())[:2000]}") from error


def told(sizes: Sizes) -> str:
    """The replicas in words."""
    each = "one GPU" if sizes.gpus else several(threads(sizes), "CPU thread")
    return f"{several(sizes.count, 'replica')} with {each}{' each' if sizes.count > 1 else ''}"
