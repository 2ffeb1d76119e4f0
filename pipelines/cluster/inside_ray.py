"""All that this project uses of Ray and that Ray does not promise to keep.

Nothing here is imported with the module. Each function falls back to what Ray does without it, with a line in the log,
where a new Ray has lost one of its names, or where CONTEXT_HEADS_PUBLIC_RAY=1 turns all of it off. What is lost then is
time, not results: starts take longer, trials that were killed hold their CPUs and GPUs until their study ends, a
cluster that cannot be joined says so late, one that grows is asked only for what it has, the notice that a node will be
taken away brings no checkpoint, and a run with a range of workers keeps to the number that it began with, until the
same command is given again. And Ray Tune writes AWS keys of the environment to its logs again, and Ray Serve's replicas
listen on every address of their machine.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import psutil
import yaml

SWITCH = "CONTEXT_HEADS_PUBLIC_RAY"
HOOK = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"  # names a function that new processes call
OWNED = "trial:"  # what names of placement groups begin with
# Ray Train's callbacks that would start actors with nothing to do: datasets are the workers' own here, and placement
# groups go with the job, or by `reclaim`.
IDLE = ("DatasetsCallback", "PlacementGroupCleanerCallback")
DATA_THREADS = ("StreamingExecutor", "iter_threaded")  # how the names of Ray Data's threads that ask Ray begin
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
KEPT_S = 24 * 3600  # Ray ends idle processes after that, and all with their job
TIMEOUT_S = 10.0
ASK_S = 0.5  # between two questions of Ray Train's controller for room
KILLING = re.compile(r"Killing \d+ worker\(s\), kill details: Memory")
HEAD = "node:__internal_head__"  # a resource that only the head has
WORKER, CONTROLLER, TRIAL, FEED = (
    f"pipelines.warm.{kind}_imports" for kind in ("worker", "controller", "trial", "feed")
)
# What each function below names: MODULE:NAME. A test looks for all of them in the installed Ray.
TRAIN, TUNE = "ray.train.v2._internal", "ray.tune.execution.class_cache:ENV_VARS_TO_PROPAGATE"
HOOKED = (f"{TRAIN}.constants:ENV_VARS_TO_PROPAGATE", "ray._private.ray_constants:WORKER_PROCESS_SETUP_HOOK_ENV_VAR")
ENVIRONMENT = (
    *HOOKED,
    f"{TRAIN}.constants:get_env_vars_to_propagate",
    f"{TRAIN}.constants:RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR",
    f"{TRAIN}.constants:DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE",
)
NAMES: dict[str, tuple[str, ...]] = {
    "start_actors": (
        "ray.data._internal.cluster_autoscaler:get_or_create_autoscaling_coordinator",
        "ray.data._internal.stats:get_or_create_stats_actor",
    ),
    "greet": (
        "ray._raylet:GcsClient",
        "ray._common.usage.usage_constants:CLUSTER_METADATA_KEY",
    ),
    "found_address": ("ray._private.services:get_ray_address_from_environment",),
    "node_types": ("ray._private.state:state.get_cluster_config", "ray._private.services:start_monitor"),
    "store_bytes": ("ray._private.internal_api:node_stats",),
    "monitor_kills": ("ray._private.worker:_global_node", "ray._private.node:Node.get_logs_dir_path"),
    "leaving": (f"{TRAIN}.execution.context:get_train_context", f"{TRAIN}.execution.preemption:PreemptionContext"),
    "end_data_threads": ("ray.data._internal.block_batching.util:iter_threaded",),
    "lean": (
        "ray.train.torch:TorchTrainer._create_default_callbacks",
        "ray.train.torch:TorchTrainer._initialize_and_run_controller",
        f"{TRAIN}.callbacks.datasets:DatasetsCallback",
        f"{TRAIN}.callbacks.placement_group_callback:PlacementGroupCleanerCallback",
    ),
    "elastic": (
        f"{TRAIN}.execution.scaling_policy:ElasticScalingPolicy._count_possible_workers",
        f"{TRAIN}.execution.scaling_policy:ElasticScalingPolicy._get_reserved_resources",
        f"{TRAIN}.execution.scaling_policy:ElasticScalingPolicy._autoscaling_coordinator",
        f"{TRAIN}.execution.scaling_policy:NoopDecision",
        f"{TRAIN}.execution.callback:ControllerCallback.after_controller_state_update",
        f"{TRAIN}.execution.controller.state:ReschedulingState",
        "ray.train.torch:TorchTrainer._initialize_and_run_controller",
    ),
    "naming": (
        f"{TRAIN}.execution.callback:WorkerGroupCallback.before_worker_group_start",
        f"{TRAIN}.execution.worker_group.worker_group:placement_group",
    ),
    "near": ("ray.util.scheduling_strategies:NodeAffinitySchedulingStrategy",),
    "reclaim": ("ray._private.state:actors",),
    "prestart": (
        "ray._private.grpc_utils:init_grpc_channel",
        "ray._private.utils:get_runtime_env_info",
        "ray.core.generated.common_pb2:PYTHON",
        "ray.core.generated.node_manager_pb2:PrestartWorkersRequest",
        "ray.core.generated.node_manager_pb2_grpc:NodeManagerServiceStub",
    ),
    "hook": HOOKED[1:],
    "controller_hook": HOOKED,
    "controller_environment": ENVIRONMENT,
    "trial_hook": (TUNE, *HOOKED[1:]),
    "hide_secrets": (TUNE,),
    "stay_on_loopback": ("ray.serve._private.replica:add_port_to_grpc_server",),
}
log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")


def lost(names: tuple[str, ...]) -> list[str]:
    """Those of the names that the installed Ray does not have."""
    return [name for name in names if not has(name)]


def has(name: str) -> bool:
    """Whether the installed Ray has MODULE:NAME."""
    module, _, attributes = name.partition(":")
    try:
        functools.reduce(getattr, attributes.split("."), importlib.import_module(module))
    except (ImportError, AttributeError):
        return False
    return True


@functools.cache
def usable(function: str) -> bool:
    """Whether a function of this file may do what it does; says once why not."""
    if os.environ.get(SWITCH, "0") not in ("", "0"):
        log.info("%s is set: %s is left out", SWITCH, function)
        return False
    if missing := lost(NAMES[function]):
        log.warning("this Ray has lost %s: %s is left out, and Ray's own way is taken", ", ".join(missing), function)
        return False
    return True


def private(otherwise: Callable[..., Any]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Calls `otherwise` in the place of a function that is not usable."""

    def wrap(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **words: P.kwargs) -> R:
            return (function if usable(function.__name__) else otherwise)(*args, **words)

        return call

    return wrap


@dataclass(frozen=True)
class Cluster:
    """What answers at an address: versions of `ray` and `python` (empty where it does not say), its `nodes`' addresses.

    `refusal` is why it does not talk to us; `here` whether one of its nodes is on this machine, None where unknown.
    """

    ray: str = ""
    python: str = ""
    nodes: tuple[str, ...] = ()
    here: bool | None = None
    refusal: str = ""


@private(otherwise=lambda address: None)
def greet(address: str) -> Cluster | None:
    """What answers at HOST:PORT.

    Raises:
        TimeoutError: nothing that speaks Ray's language.
    """
    import ray
    from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    try:
        client = GcsClient(address=address)
        said = client.internal_kv_get(CLUSTER_METADATA_KEY, namespace=b"cluster", timeout=TIMEOUT_S)
        nodes = [node for node in client.get_all_node_info(timeout=TIMEOUT_S).values() if node.state == node.ALIVE]
    except ray.exceptions.AuthenticationError as error:
        return Cluster(refusal=str(error))
    except ray.exceptions.RpcError as error:
        raise TimeoutError(str(error)) from None
    here = any(Path(node.raylet_socket_name.removeprefix("unix://")).exists() for node in nodes) if nodes else None
    addresses, facts = tuple(node.node_manager_address for node in nodes), json.loads(said or "{}")
    return Cluster(facts.get("ray_version", ""), facts.get("python_version", ""), addresses, here)


@private(otherwise=lambda: "auto")
def found_address() -> str:
    """The address of the cluster that runs on this machine, which `auto` stands for; empty where none does."""
    from ray._private.services import get_ray_address_from_environment

    try:
        return get_ray_address_from_environment("auto", None) or ""
    except ConnectionError:
        return ""


@private(otherwise=list)
def node_types() -> list[tuple[dict[str, float], int]]:
    """The kinds of nodes that an autoscaler may start: resources, and the most nodes of it. Empty where nobody says.

    Ray has a place for them, which nothing fills in 2.60. What its autoscaler was started with is on the command
    line of a process on the head.
    """
    from ray._private.state import state

    config = state.get_cluster_config()
    if config and config.node_group_configs:
        return [(dict(kind.resources), kind.max_count) for kind in config.node_group_configs]
    return types_in(on_head(autoscaling_config))


def types_in(config: Mapping[str, Any]) -> list[tuple[dict[str, float], int]]:
    """The kinds of worker nodes in a cluster's YAML page, as `node_types` gives them."""
    most, kinds = config.get("max_workers", 0), config.get("available_node_types") or {}
    found = []
    for name, kind in kinds.items():
        count = kind.get("max_workers", 0 if name == config.get("head_node_type") else most)
        found.append((dict(kind.get("resources") or {}), min(count, most)))
    return [(resources, count) for resources, count in found if count > 0]


def autoscaling_config() -> dict[str, Any]:
    """The page that the autoscaler on this machine was started with; empty where none runs."""
    import ray

    cluster, flag = f"--gcs-address={ray.get_runtime_context().gcs_address}", "--autoscaling-config="
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        page = next((word.removeprefix(flag) for word in words if word.startswith(flag)), None)
        if page and cluster in words and any(word.endswith("monitor.py") for word in words):
            with contextlib.suppress(OSError, yaml.YAMLError):
                return yaml.safe_load(Path(page).expanduser().read_text()) or {}
    return {}


def on_head(call: Callable[[], R], seconds: float = 60.0) -> R:
    """What a function returns on the cluster's head."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    head = next((node["NodeID"] for node in ray.nodes() if node["Alive"] and HEAD in node["Resources"]), None)
    if head is None or head == ray.get_runtime_context().get_node_id():
        return call()
    task = ray.remote(num_cpus=0, max_retries=1)(call).options(scheduling_strategy=On(head, soft=False))
    return ray.get(task.remote(), timeout=seconds)


@private(otherwise=lambda: None)
def start_actors() -> None:
    """Start two actors of Ray Data's that it would otherwise start one after the other during training.

    They outlive the trainings, and are no children of theirs, whose imports they would repeat. They stay for as long as
    the cluster does, and a node that holds one is never idle: so they are the head's.
    """
    on_head(data_actors)


def data_actors() -> None:
    """Start the two on this node."""
    from ray.data._internal.cluster_autoscaler import get_or_create_autoscaling_coordinator
    from ray.data._internal.stats import get_or_create_stats_actor

    get_or_create_autoscaling_coordinator()
    get_or_create_stats_actor()


@private(otherwise=lambda address, port: (0, 0))
def store_bytes(address: str, port: int) -> tuple[int, int]:
    """Bytes that the object store of a node holds, and those that it has spilled.

    Public calls do not tell: `available_resources()` keeps saying that the whole store is free.
    """
    from ray._private.internal_api import node_stats

    stats = node_stats(address, port, include_memory_info=False).store_stats
    return stats.object_store_bytes_used, stats.spilled_bytes_total


@private(otherwise=lambda: 0)
def monitor_kills() -> int:
    """How often Ray's memory monitor has killed workers on this node; no call tells what became of a lost worker."""
    from ray._private.worker import _global_node

    if _global_node is None:
        return 0
    logs: list[Path] = sorted(Path(_global_node.get_logs_dir_path()).glob("raylet*.out"))
    return sum(len(KILLING.findall(log.read_text(errors="replace"))) for log in logs)


@private(otherwise=frozenset)
def leaving() -> frozenset[str]:
    """Ids of nodes of this worker's training that Ray was told will be taken away; nothing outside of a worker.

    The public call is a barrier of all workers through an actor, too slow for each step.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    try:
        info = get_train_context().preemption_context.preemption_info
    except RuntimeError:  # Ray's local mode has none
        return frozenset()
    return frozenset(info.preempted_node_ids) if info else frozenset()


@private(otherwise=lambda seconds: None)
def end_data_threads(seconds: float) -> None:
    """Wait for Ray Data's threads: one that wakes after `ray.shutdown()` would end the process with exit code 1."""
    for thread in threading.enumerate():
        if thread.name.startswith(DATA_THREADS):
            thread.join(seconds)


@private(otherwise=dict)
def near() -> dict[str, Any]:
    """Options of a task that is to run on this node, or where there is room while this node has none.

    Ray Data spreads tasks over the cluster by itself, and their blocks over its network; its public wish for a node
    would wait for that node for ever.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    here = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": On(here, soft=True, _spill_on_unavailable=True)}


@private(otherwise=lambda base: base)
def lean(base: type) -> type:
    """Ray Train's trainer without the actors that do nothing for us: each is a process whose imports take seconds."""
    import ray

    class Lean(base):  # type: ignore[misc, valid-type]
        def _create_default_callbacks(self) -> list[Any]:
            kept = [callback for callback in super()._create_default_callbacks() if type(callback).__name__ not in IDLE]
            owner = ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None
            named = naming(owner) if owner is not None else None
            return kept if named is None else [*kept, named]

        def _initialize_and_run_controller(self, **kwargs: Any) -> Any:
            with controller_hook():
                return super()._initialize_and_run_controller(**kwargs)

    return Lean


@private(otherwise=lambda base, choice: None)
def elastic(base: type, choice: Any) -> type | None:
    """Ray Train's trainer, whose own policy for a range of workers takes only the numbers that a `Choice` takes.

    Ray's would take any number in the range, without room for feeding tasks, would end workers between two checkpoints
    when nodes join, and asks in a loop without a pause while the fewest workers do not fit.
    """
    import ray
    from ray.train.v2._internal.execution.controller.state import ReschedulingState
    from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision

    class Chosen(ElasticScalingPolicy):
        world, wanted = 0, None

        def make_decision_for_non_running_worker_group(self) -> Any:
            self.world, self.wanted = 0, None
            choice.withdraw()
            decision = super().make_decision_for_non_running_worker_group()
            if isinstance(decision, NoopDecision):
                time.sleep(ASK_S)
            return decision

        def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
            self.world = worker_group_state.num_workers
            decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
            if self.wanted is None and not isinstance(decision, NoopDecision):
                self.wanted = decision
                choice.ask()
            if self.wanted is None or not choice.is_answered:
                return NoopDecision()
            wanted, self.wanted = self.wanted, None
            return wanted

        def _get_reserved_resources(self) -> Any:
            asked = self._autoscaling_coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
            try:  # of the nodes that there are now: what Ray's policy asks for is up to 20 s old
                return ray.get(asked, timeout=TIMEOUT_S)
            except ray.exceptions.RayError:
                return None

        def _count_possible_workers(self, reserved_resources: Any) -> int:
            return choice.number(reserved_resources, self.world)

        def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
            if isinstance(current_state, ReschedulingState):
                choice.refuse(previous_state.scaling_decision.num_workers)

    class Elastic(base):  # type: ignore[misc, valid-type]
        def _initialize_and_run_controller(self, **kwargs: Any) -> Any:
            kwargs["scaling_policy"] = Chosen(self.scaling_config)
            return super()._initialize_and_run_controller(**kwargs)

    return Elastic


@private(otherwise=lambda owner: None)
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


@private(otherwise=lambda: 0)
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


def one_more() -> None:
    """Have Ray start one more process of this one's kind on this node; returns at once."""
    import ray

    prestart(ray.get_runtime_context().get_runtime_env_string(), 1)


@private(otherwise=lambda environment, count: None)
def prestart(environment: str, count: int) -> None:
    """Have Ray start processes on this node, idle until an actor of their kind is made; returns at once.

    Where a busy raylet does not answer, they are started when they are needed, as ever.

    Args:
        environment: their runtime environment, spelled as Ray does, which compares the text.
        count: how many.
    """
    import grpc
    import ray
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


@private(otherwise=lambda kind: {})
def hook(kind: str) -> dict[str, str]:
    """The environment of a process of ours that imports what `kind`, one of the names above, imports first."""
    return {HOOK: kind}


@private(otherwise=contextlib.nullcontext)
def controller_hook() -> contextlib.AbstractContextManager[None]:
    """While the body runs, controllers that Ray Train starts from this process import what `CONTROLLER` names."""
    from ray.train.v2._internal import constants

    return hooked(constants.ENV_VARS_TO_PROPAGATE, CONTROLLER)


@private(otherwise=contextlib.nullcontext)
def trial_hook() -> contextlib.AbstractContextManager[None]:
    """While the body runs, actors that Tune starts import what `TRIAL` names before they are given a trial."""
    from ray.tune.execution import class_cache

    return hooked(class_cache.ENV_VARS_TO_PROPAGATE, TRIAL)


@contextlib.contextmanager
def hooked(propagated: set[str], kind: str) -> Iterator[None]:
    """While the body runs, what hands `propagated` variables on hands the hook on, too."""
    before = os.environ.get(HOOK)
    propagated.add(HOOK)
    os.environ[HOOK] = kind
    try:
        yield
    finally:
        propagated.discard(HOOK)
        os.environ.pop(HOOK)
        if before is not None:
            os.environ[HOOK] = before


@private(otherwise=lambda: None)
def hide_secrets() -> None:
    """Keep Tune from handing AWS keys to its actors by a runtime environment, which Ray writes to its logs."""
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE -= {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}


@private(otherwise=lambda: None)
def stay_on_loopback() -> None:
    """Have the Serve replica in this process listen only on this machine; to be called while it is made.

    Each has a gRPC server, on every address, which unpickles what it is sent. Handles do not need it: they call actors.
    """
    from ray.serve._private import replica

    open_port = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: open_port(server, "127.0.0.1:0")


@private(otherwise=lambda: "")
def controller_environment() -> str:
    """The runtime environment of a controller that Ray Train starts from this process."""
    import ray
    from ray.train.v2._internal import constants

    with controller_hook():
        variables = constants.get_env_vars_to_propagate()
    variables.setdefault(
        constants.RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR, constants.DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE
    )
    return child_environment(ray.get_runtime_context().get_runtime_env_string(), variables)


def worker_variables() -> dict[str, str]:
    """The environment of a train worker, on whichever node: what it imports first, and its GPU's allocator as here."""
    given = {name: os.environ[name] for name in ALLOCATOR if name in os.environ}
    return hook(WORKER) | given


def worker_environment() -> str:
    """The runtime environment of the workers of such a controller."""
    return child_environment(controller_environment(), worker_variables())


def feed_environment() -> str:
    """The runtime environment of the feeding tasks of such workers."""
    return child_environment(worker_environment(), hook(FEED))


def child_environment(parent: str, variables: Mapping[str, str]) -> str:
    """Ray's text of the runtime environment of an actor that names variables, made in a process that has `parent`."""
    from ray.runtime_env import RuntimeEnv

    whole = json.loads(parent or "{}")
    if not whole:
        return RuntimeEnv(env_vars=dict(variables)).serialize()
    whole["env_vars"] = whole.get("env_vars", {}) | dict(variables)
    return json.dumps(whole, sort_keys=True, separators=(",", ":"))  # as its C++ writes it
