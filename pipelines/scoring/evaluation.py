"""A checkpoint scored on a split: checked against the shards, then counted here or by Ray workers."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.manifest import Manifest
from pipelines.base.errors import InputError
from pipelines.cluster.sizes import Sizes
from pipelines.feed.plan import open_shards
from pipelines.recipes.model import build_model, inference_of, meta_model
from pipelines.recipes.reading import convert_table
from pipelines.recipes.recipe import InferenceSpec, Recipe
from pipelines.runs.checkpoint import Checkpoint
from pipelines.scoring.checks import check_sizes, check_window
from pipelines.scoring.seen import digests
from pipelines.scoring.validate import validate
from segmodels.inference import Inference, protocol
from segmodels.loading import settle_precision
from segmodels.segmentor import Segmentor


@dataclass(frozen=True)
class Task:
    """A checkpoint to score on a split: all that a worker needs to know. Path and URI are absolute.

    `recipe` is the checkpoint's, with the `inference` that was asked for. `seen` of the rows were trained on.
    `precision` is `bf16`, `fp32` or `auto`: bf16 on GPUs that have it.
    """

    path: Path
    recipe: Recipe
    uri: str
    manifest: Manifest
    inference: Inference
    seen: int = 0
    precision: str = "auto"

    @property
    def protocol(self) -> str:
        """In words: rows, how they are predicted, and whether some of them were trained on."""
        rows = f"{self.manifest.benchmark} {self.manifest.split}, {self.manifest.rows} rows"
        seen = f"; {self.seen} OF THEM WERE TRAINED ON" if self.seen else ""
        return f"{rows}, {protocol(self.inference)}{seen}"


def plan_evaluation(
    path: Path,
    checkpoint: Checkpoint,
    uri: str,
    overrides: Mapping[str, Any] | None = None,
    precision: str = "auto",
    allow_seen: bool = False,
) -> Task:
    """Check a checkpoint and a split against each other.

    Args:
        path: of the checkpoint.
        checkpoint: what it holds.
        uri: of the split's shards.
        overrides: keys of `inference` and their values, as a recipe's page has them, in place of the recipe's.
        precision: `auto`, `bf16` or `fp32`.
        allow_seen: score rows that were trained on too.

    Raises:
        DataError: shards that are missing or of another schema.
        InputError: other classes, unlabelled shards, rows that were trained on, or a window the head cannot use.
    """
    shards = open_shards(uri)  # once: `validate` reads the same ones
    check_labels(path, checkpoint, uri, shards.manifest)
    seen = int(np.isin(digests(shards), checkpoint.seen).sum())
    if seen and not allow_seen:
        raise InputError(
            f"{seen} of the {len(shards)} images of {uri} were trained on by this checkpoint's chain: the score would "
            "mean nothing. Score on other rows, or add --allow-seen to see it labelled as such."
        )
    spec = override_inference(checkpoint.recipe.inference, overrides or {})
    recipe = replace(checkpoint.recipe, inference=spec)
    check_window(recipe, spec, meta_model(recipe, 2).window)
    check_sizes(recipe, spec, uri, shards)
    inference = replace(inference_of(recipe, spec), flip_pairs=shards.manifest.flip_pairs)
    return Task(path, recipe, uri, shards.manifest, inference, seen, precision)


def check_labels(path: Path, checkpoint: Checkpoint, uri: str, manifest: Manifest) -> None:
    """Make sure that a split has labels, of the classes that the checkpoint knows.

    Raises:
        InputError: it has none, or others.
    """
    if not manifest.labelled or not manifest.rows:
        raise InputError(f"{uri} holds {manifest.rows} rows, labelled: {manifest.labelled}: nothing to score")
    known, there = list(checkpoint.classes), list(manifest.classes)
    if known != there:
        raise InputError(
            f"{path} knows {len(known)} classes {known[:4]}…, {uri} has {len(there)} {there[:4]}…: "
            "they must be the same, in this order"
        )


def override_inference(spec: InferenceSpec, overrides: Mapping[str, Any]) -> InferenceSpec:
    """A recipe's `inference` with other values; of another mode, without the recipe's window and stride.

    Raises:
        InputError: an unknown key, or a value of a wrong type.
    """
    given = convert_table(InferenceSpec, dict(overrides), "inference")
    if "mode" in overrides and given.mode != spec.mode:
        spec = replace(spec, window=None, stride=None)
    return replace(spec, **{name: getattr(given, name) for name in overrides})


def evaluate_here(
    task: Task, checkpoint: Checkpoint, rank: int = 0, world: int = 1, device: torch.device | None = None
) -> np.ndarray:
    """Counts of the split int64 (K, K), rows truth, on this process' share of the rows, summed over the workers.

    Args:
        task: from `plan_evaluation`.
        checkpoint: its checkpoint.
        rank: of this process among the workers.
        world: workers.
        device: where to predict; by default a GPU where there is one.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(task.recipe, checkpoint, device)
    precision = settle_precision(task.precision, device)
    return validate(model, task.uri, task.inference, device, rank, world, precision, task.recipe.inference.batch)


def load_model(recipe: Recipe, checkpoint: Checkpoint, device: torch.device) -> Segmentor:
    """The checkpoint's segmentor, laid out in memory as in training."""
    model = build_model(recipe, len(checkpoint.classes))
    model.load_state_dict(checkpoint.model)
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    return model.to(device, memory_format=layout)  # type: ignore[call-overload]


def evaluate_on_ray(task: Task, sizes: Sizes) -> np.ndarray:
    """Counts of the split int64 (K, K), rows truth, by several workers."""
    from pipelines.cluster.group import trainer

    def enter(config: dict[str, Any]) -> list[list[int]]:
        # imported in the worker: Ray's controller need not load the models too
        from pipelines.scoring.evaluation import evaluate_worker

        return evaluate_worker(pickle.loads(config["task"]))

    with tempfile.TemporaryDirectory() as folder:
        job = trainer(enter, {"task": pickle.dumps(task)}, sizes, "evaluate", Path(folder), failures=0)
        return np.array(job.fit().return_value, np.int64)  # type: ignore[attr-defined]


def evaluate_worker(task: Task) -> list[list[int]]:
    """One Ray worker's part; the counts are summed over the workers."""
    import ray.train
    import ray.train.torch

    from pipelines.cluster.group import process_group

    context, checkpoint = ray.train.get_context(), Checkpoint.read(task.path, mapped=True)
    with process_group():
        rank, world = context.get_world_rank(), context.get_world_size()
        return evaluate_here(task, checkpoint, rank, world, ray.train.torch.get_device()).tolist()
