"""A checkpoint looked at before anything starts: whether it can be served, and what is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.base.errors import InputError, SetupError
from pipelines.cluster.nodes import count_alive, on_each_node, sees_file
from pipelines.serving.answers import About, described
from pipelines.serving.limits import Limits


@dataclass(frozen=True)
class Plan:
    """What replicas run: all that one needs to know.

    Attributes:
        path: of the checkpoint, absolute.
        inference: keys of the recipe's `inference` in place of its own.
        precision: `auto`, `bf16`, `fp16` or `fp32`.
        limits: what a request may ask for.
        batch: most images that are predicted together.
        wait_s: how long the first image of a batch waits for others.
    """

    path: Path
    inference: Mapping[str, Any]
    precision: str
    limits: Limits
    batch: int
    wait_s: float


def look(plan: Plan) -> About:
    """What is told of the model that replicas are to run.

    Raises:
        FileError: the checkpoint does not read.
        InputError: its head cannot predict in the way that is asked for.
    """
    from segmodels.loading import load

    try:
        model = load(plan.path, device="cpu", precision=plan.precision, inference=plan.inference)
    except ValueError as error:
        if type(error) is not ValueError:  # a FileError says all
            raise
        raise InputError(f"{plan.path}: {error}") from None
    window, bound = model.inference.window, model.segmentor.window
    if bound is not None and window != tuple(bound):
        given = f"--window {window[0]} {window[1]}" if window else "--mode whole"
        raise InputError(
            f"{given}: this head is bound to windows of its training crop, {bound[0]}x{bound[1]} pixels (H x W). Leave "
            f"it out, or give --mode slide --window {bound[0]} {bound[1]}"
        )
    page = model.recipe
    return About(
        name=str(page.get("name") or plan.path.parent.name),
        backbone=page["backbone"]["name"],
        head=page["head"]["name"],
        protocol=model.protocol,
        classes=described(model.classes, model.palette),
    )


def check_seen(path: Path) -> None:
    """On several nodes, each must see the checkpoint.

    Raises:
        SetupError: one does not.
    """
    if (count := count_alive()) < 2:
        return
    if blind := [address for address, sees in on_each_node(sees_file, str(path)).items() if not sees]:
        raise SetupError(
            f"{len(blind)} of {count} nodes ({', '.join(blind[:3])}) do not see {path}. Put it on a file system that "
            "all nodes share (NFS, EFS, Lustre), or serve on this machine alone: unset RAY_ADDRESS"
        )
