"""Which GPUs the workers of a run may get: their names and memory, asked before one is taken."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable

from pipelines.base.errors import SetupError
from pipelines.base.machine import gpu_memories
from pipelines.cluster.nodes import on_each_node
from segmodels.gpus import known_gpu

LABEL = "accelerator_type:"  # of the resource by which Ray says what a node's GPUs are
Found = tuple[str, float]  # name, GiB


def gpus_here() -> list[Found]:
    """The kinds of this machine's GPUs, those that CUDA_VISIBLE_DEVICES leaves."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [] if visible == "" else kinds(gpu_memories(visible or ""))


def gpus_of_nodes() -> list[Found]:
    """The kinds of GPUs of the nodes of the Ray session, asked of each; none where nobody answers."""
    try:
        return kinds(found for answer in on_each_node(gpu_memories).values() for found in answer)
    except SetupError:
        return []


def gpus_by_label() -> list[Found]:
    """The same by what Ray says of its nodes, with the memory of the table: no process is started anywhere."""
    import ray

    labels = {key[len(LABEL) :] for node in ray.nodes() if node["Alive"] for key in node["Resources"] if LABEL in key}
    known = ((label, known_gpu(label)) for label in sorted(labels))
    return [(label, gpu.memory_gib if gpu else math.nan) for label, gpu in known]


def kinds(found: Iterable[Found]) -> list[Found]:
    """Each kind once, the smallest memory first."""
    return sorted(set(found), key=lambda gpu: gpu[1])
