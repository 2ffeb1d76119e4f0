"""Processes that are up, and through their imports, before they are asked for.

Ray starts a process when an actor needs one, and ours then import PyTorch and timm: most of the time between two trials
of a study, and before the first batch of a run. So each process of a trial has the raylet of its node start one more of
its kind, which the next trial is given; and the driver of a run has its workers started while it still looks at its
input. Processes are of a kind where their runtime environments agree, which also name what they import.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
from collections.abc import Iterator, Mapping

import grpc
import ray
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR as HOOK  # a function that new processes call

KEPT_S = 24 * 3600  # Ray ends idle processes after that, and all with their job
TIMEOUT_S = 10.0
WORKER, CONTROLLER, TRIAL, FEED = (
    f"pipelines.prestart.{kind}_imports" for kind in ("worker", "controller", "trial", "feed")
)


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Import in the body without the garbage collector, a fifth faster; its later searches pass by what was loaded.

    An error ends the body alone: it comes again where the module is used, and is told there.
    """
    gc.disable()
    try:
        with contextlib.suppress(Exception):
            yield
    finally:
        gc.freeze()
        gc.enable()


def worker_imports() -> None:
    """What a train worker imports."""
    with imports():
        import ray.data
        import ray.train.torch  # noqa: F401

        import pipelines.group
        import pipelines.loop  # noqa: F401


def controller_imports() -> None:
    """What Ray Train's controller imports: no torch, it trains nothing."""
    with imports():
        import pipelines.group  # noqa: F401


def feed_imports() -> None:
    """What a feeding task imports: no torch either."""
    with imports():
        import ray.data  # noqa: F401

        import pipelines.plan  # noqa: F401


def trial_imports() -> None:
    """What a trial's own actor imports."""
    with imports():
        import ray.tune  # noqa: F401

        import pipelines.stages  # noqa: F401


def one_more() -> None:
    """Have Ray start one more process of this one's kind on this node; returns at once."""
    prestart(ray.get_runtime_context().get_runtime_env_string(), 1)


def prestart(environment: str, count: int) -> None:
    """Have Ray start processes on this node, idle until an actor of their kind is made; returns at once.

    Where a busy raylet does not answer, they are started when they are needed, as ever.

    Args:
        environment: their runtime environment, spelled as Ray does, which compares the text.
        count: how many.
    """
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.utils import get_runtime_env_info
    from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc
    from ray.runtime_env import RuntimeEnv

    info = get_runtime_env_info(RuntimeEnv.deserialize(environment))
    info.serialized_runtime_env = environment
    context = ray.get_runtime_context()
    here = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    request = node_manager_pb2.PrestartWorkersRequest(  # type: ignore[attr-defined]
        language=common_pb2.PYTHON,  # type: ignore[attr-defined]
        job_id=bytes.fromhex(context.get_job_id()), runtime_env_info=info,
        keep_alive_duration_secs=KEPT_S, num_workers=count,
    )  # fmt: skip
    address = f"{here['NodeManagerAddress']}:{here['NodeManagerPort']}"
    with contextlib.suppress(grpc.RpcError), init_grpc_channel(address) as channel:
        node_manager_pb2_grpc.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=TIMEOUT_S)


@contextlib.contextmanager
def controller_hook() -> Iterator[None]:
    """While the body runs, controllers that Ray Train starts from this process import what `CONTROLLER` names."""
    from ray.train.v2._internal import constants

    before = os.environ.get(HOOK)
    constants.ENV_VARS_TO_PROPAGATE.add(HOOK)
    os.environ[HOOK] = CONTROLLER
    try:
        yield
    finally:
        constants.ENV_VARS_TO_PROPAGATE.discard(HOOK)
        os.environ.pop(HOOK)
        if before is not None:
            os.environ[HOOK] = before


def controller_environment() -> str:
    """The runtime environment of a controller that Ray Train starts from this process."""
    from ray.train.v2._internal import constants

    with controller_hook():
        variables = constants.get_env_vars_to_propagate()
    variables.setdefault(
        constants.RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR, constants.DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE
    )
    return child_environment(ray.get_runtime_context().get_runtime_env_string(), variables)


def worker_environment() -> str:
    """The runtime environment of the workers of such a controller."""
    return child_environment(controller_environment(), {HOOK: WORKER})


def feed_environment() -> str:
    """The runtime environment of the feeding tasks of such workers."""
    return child_environment(worker_environment(), {HOOK: FEED})


def child_environment(parent: str, variables: Mapping[str, str]) -> str:
    """Ray's text of the runtime environment of an actor that names variables, made in a process that has `parent`."""
    from ray.runtime_env import RuntimeEnv

    whole = json.loads(parent or "{}")
    if not whole:
        return RuntimeEnv(env_vars=dict(variables)).serialize()
    whole["env_vars"] = whole.get("env_vars", {}) | dict(variables)
    return json.dumps(whole, sort_keys=True, separators=(",", ":"))  # as its C++ writes it
