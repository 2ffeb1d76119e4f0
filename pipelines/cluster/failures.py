"""Why workers ended: what Ray tells of it in pages, in a sentence, and whether another attempt could succeed."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ray.train import UserCallback

from pipelines.base.errors import users_message
from pipelines.cluster.inside_ray import monitor_kills
from pipelines.cluster.nodes import on_each_node
from pipelines.runs.record import read_record

# what Ray's memory monitor, CUDA, PyTorch and Python say; Ray's list of possible causes of a crash uses other words
SHORT = re.compile(
    r"OutOfMemoryError|running low on memory|memory usage threshold|out of memory|MemoryError|can't allocate memory"
    r"|STATUS_ALLOC_FAILED",
    re.I,
)
GPU = re.compile(r"CUDA out of memory|CUDA error: out of memory|CU(?:BLAS|DNN)_STATUS_ALLOC_FAILED", re.I)
VALIDATES = re.compile(r"\bin (?:score|score_best|show_best|validate|validate_task|draw_overlays|draw_task_overlays)\b")
BLIND = re.compile(r"BlindNode: (\S+) <(\w+)> ([^\n]+)")
DIED = re.compile(r"ActorDiedError|WorkerCrashedError|NodeDiedError|ActorUnavailableError")
PARTED = re.compile(
    r"Connection (?:closed|reset) by peer|Broken pipe|remote process exited|ncclRemoteError|NCCL error", re.I
)
LOST = re.compile(
    r"node (?:has )?died|node was terminated|raylet (?:has )?died|missed too many heart|node is dead", re.I
)
GRACE_S = 8.0  # that nodes have to tell what their kernels did: training waits for it
VMSTAT = Path("/proc/vmstat")
CGROUP = Path("/sys/fs/cgroup/memory.events")


@dataclass(frozen=True)
class Failure:
    """How an attempt at training ended.

    `kind`: gpu (its memory), memory (a machine's), blind (a node that does not see its data), fault (of the input),
    left (its node was taken away after notice), died, or raised (any other exception). `text` is a sentence, `whole`
    all that Ray says; `node` and `address` are those of a blind one.
    `final`: another attempt of the same kind would end the same way.
    """

    kind: str
    text: str
    node: str = ""
    address: str = ""
    final: bool = False
    whole: str = ""

    @property
    def counts(self) -> bool:
        """Whether it is one of the failures of which `workers.max_failures` are allowed."""
        return not self.node and self.kind != "left"


class Ended(RuntimeError):
    """Ends Ray's attempts: another would fail the same way, or has to be made elsewhere."""


class Told(UserCallback):
    """Runs in Ray Train's controller: notes each failure for the driver, and ends attempts that are pointless.

    Args:
        notes: the file of notes, on the controller's machine, which is the driver's.
        records: of the stages, by which progress is told.
        kills: how often memory ran out on each node before, as `count_kills` gives it.
    """

    def __init__(self, notes: Path, records: Sequence[Path], kills: Mapping[str, tuple[int, int]]) -> None:
        self.notes, self.records, self.kills = notes, list(records), dict(kills)
        self.steps = steps_in(self.records)
        self.left = ""

    def after_exception(self, run_context: object, worker_exceptions: Mapping[int, Exception]) -> None:
        """What Ray calls with the errors, by rank."""
        steps = steps_in(self.records)
        failure = judge(worker_exceptions, self.killers(worker_exceptions), steps > self.steps)
        failure = replace(failure, whole="\n\n".join(f"worker {r}: {whole(e)}" for r, e in worker_exceptions.items()))
        self.steps = steps
        if failure.kind == "left":  # until all workers have ended, Ray tells of it at each look
            if failure.text == self.left:
                return
            self.left = failure.text
        with self.notes.open("a") as file:
            file.write(json.dumps(asdict(failure)) + "\n")
        if failure.final:
            raise Ended(failure.text)

    def killers(self, errors: Mapping[int, Exception]) -> list[str]:
        """What killed processes since the last look because memory ran out, where workers died without a message."""
        texts = [whole(error) for error in errors.values()]
        if not any(DIED.search(text) or PARTED.search(text) for text in texts):
            return []
        now, found = count_kills(), []
        for node, counts in now.items():
            before = self.kills.get(node, counts)
            found += [f"the kernel of {node}"] if counts[0] > before[0] else []
            found += [f"Ray's memory monitor on {node}"] if counts[1] > before[1] else []
        self.kills |= now
        return found


def judge(errors: Mapping[int, Exception], killers: Sequence[str], advanced: bool) -> Failure:
    """What the errors of an attempt's workers mean.

    Args:
        errors: by rank.
        killers: what killed processes during the attempt because memory ran out.
        advanced: whether the attempt came further than the one before.
    """
    texts = {rank: whole(error) for rank, error in sorted(errors.items())}
    for text in texts.values():
        if found := BLIND.search(text):
            address, node, what = found.groups()
            return Failure("blind", f"node {address} does not see {what}", node, address, final=True)
    for error in errors.values():
        if message := users_message(error):
            return Failure("fault", message, final=True)
    if killers:
        text = f"a worker ran out of memory: {' and '.join(killers)} killed processes"
        return Failure("memory", text, final=not advanced)
    for rank, text in texts.items():
        if GPU.search(text):  # the next attempt asks for as much
            where = ", in a validation" if VALIDATES.search(text) else ""
            return Failure("gpu", memory_text(rank, text) + where, final=True)
    for rank, text in texts.items():
        if SHORT.search(text):
            return Failure("memory", memory_text(rank, text), final=not advanced)
    for rank, error in sorted(errors.items()):
        if was_taken(error):
            return Failure("left", f"worker {rank}{place(texts[rank])} ended: its node was taken away, after notice")
    for rank, text in texts.items():
        if DIED.search(text):
            return Failure("died", died_text(rank, text))
    rank, text = next(iter(texts.items()))
    if PARTED.search(text):
        return Failure("died", f"worker {rank} lost the connection to another, whose process or node ended")
    return Failure("raised", f"worker {rank}: {last_line(text)}")


def memory_text(rank: int, text: str) -> str:
    """How a worker ran out of memory, in a sentence."""
    lines = [line.strip() for line in text.splitlines() if SHORT.search(line)]
    return f"worker {rank} ran out of memory: {lines[0][:300].rstrip('. ')}"


def died_text(rank: int, text: str) -> str:
    """What is known of a worker that died without a message, in a sentence."""
    how = "its node was lost" if LOST.search(text) else "it crashed, or was killed from outside, and left no message"
    return f"worker {rank}{place(text)} died: {how}"


def place(text: str) -> str:
    """Where a worker was, for a sentence; empty where Ray does not say."""
    where = re.search(r"\bip: (\S+)", text)
    return f" on {where[1]}" if where else ""


def was_taken(error: BaseException) -> bool:
    """Whether a worker died because its node was drained: such an end is no failure for Ray, nor for us."""
    inner = getattr(error, "health_check_failure", None) or error
    return bool(getattr(inner, "preempted", False))


def whole(error: BaseException | None) -> str:
    """An error with those that it stands for, as text."""
    parts: list[str] = []
    while error is not None and len(parts) < 10:
        parts.append(f"{type(error).__name__}: {error}")
        inner = (getattr(error, name, None) for name in ("health_check_failure", "_base_exc", "cause"))
        error = next((e for e in inner if isinstance(e, BaseException)), None) or error.__cause__ or error.__context__
    return "\n".join(parts)


def last_line(text: str) -> str:
    """The last line of a text that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")


def steps_in(records: Iterable[Path]) -> int:
    """How much training the records hold; what is repeated after a failure is not written again."""
    return sum(line["kind"] in ("train", "val") for path in records for line in read_record(path)[0])


def kernel_kills() -> int:
    """Processes that this machine's kernel has killed so far because memory ran out, in this container or outside."""
    counts = [0]
    for path in (VMSTAT, CGROUP):
        with contextlib.suppress(OSError):
            counts += [int(count) for count in re.findall(r"^oom_kill (\d+)$", path.read_text(), re.M)]
    return max(counts)


def kills_here() -> tuple[int, int]:
    """How often the kernel, and how often Ray's memory monitor, has killed processes on this machine for memory."""
    return kernel_kills(), monitor_kills()


def count_kills() -> dict[str, tuple[int, int]]:
    """The same of each node of the cluster; nothing where nodes do not answer."""
    try:
        return on_each_node(kills_here, seconds=GRACE_S)
    except Exception:  # a node that is short of memory cannot even say so
        return {}


class Notes:
    """The driver's end of what `Told` writes: each failure once."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset = path, 0
        self.failures: list[Failure] = []

    def new(self) -> list[Failure]:
        """Those that were not given yet."""
        lines, self.offset = read_record(self.path, self.offset)
        found = [Failure(**line) for line in lines]
        self.failures += found
        return found
