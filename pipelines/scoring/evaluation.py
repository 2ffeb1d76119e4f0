"""A checkpoint scored on a split: checked against the shards, then counted here or by Ray workers."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.manifest import Manifest
from datasets.shards import Shards
from pipelines.base.errors import InputError
from pipelines.cluster.device import device_here, device_of, precision_of
from pipelines.cluster.sizes import Sizes
from pipelines.feed.plan import open_shards
from pipelines.recipes.model import build_model, inference_by, inference_of, meta_model, spec_by
from pipelines.recipes.protocols import OWN, check_names, of_protocol
from pipelines.recipes.reading import convert_table
from pipelines.recipes.recipe import InferenceSpec, Recipe
from pipelines.runs.checkpoint import Checkpoint
from pipelines.runs.named import named_checkpoint
from pipelines.scoring.checks import check_sizes, check_window
from pipelines.scoring.counting import ImageCounts, Share, count_images
from pipelines.scoring.seen import digests
from segmodels.inference import Inference, protocol
from segmodels.kernels import settle_kernels
from segmodels.precision import spare_grouped
from segmodels.segmentor import Segmentor


@dataclass(frozen=True)
class Task:
    """A checkpoint to score on a split: all that a worker needs to know. Path and URI are absolute.

    `protocols` are the ways to predict, by name; `measures` what else is counted under each. `seen` of the rows were
    trained on. `precision` is one of `PRECISIONS`; `auto` is bf16 on GPUs that have it. `source` is the checkpoint's
    URI, where it has one: then `path` is this machine's copy.
    """

    path: Path
    recipe: Recipe
    uri: str
    manifest: Manifest
    protocols: Mapping[str, Inference]
    seen: int = 0
    precision: str = "auto"
    measures: tuple[str, ...] = ()
    source: str | None = None

    def named(self, given: str) -> Task:
        """The same, with the checkpoint as it was given."""
        return replace(self, source=given if "://" in given else None)

    @property
    def shown(self) -> str:
        """The checkpoint's address, for people."""
        return self.source or str(self.path)

    def words(self, name: str) -> str:
        """A protocol in words: rows, how they are predicted, and whether some of them were trained on."""
        rows = f"{self.manifest.benchmark} {self.manifest.split}, {self.manifest.rows} rows"
        seen = f"; {self.seen} OF THEM WERE TRAINED ON" if self.seen else ""
        return f"{rows}, {protocol(self.protocols[name])}{seen}"


@dataclass(frozen=True)
class Wishes:
    """What to score under: names of `PROTOCOLS`, and a protocol of one's own; and what else to count, of `MEASURES`.

    `overrides` are keys of `inference` and their values, as a recipe's page has them, in place of the recipe's;
    `average` is one of `AVERAGES`. Where there are any of these, or no names, a further protocol is called `OWN`.
    """

    names: Sequence[str] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    average: str | None = None
    measures: Sequence[str] = ()


def plan_evaluation(
    path: Path,
    checkpoint: Checkpoint,
    uri: str,
    wishes: Wishes | None = None,
    precision: str = "auto",
    allow_seen: bool = False,
) -> Task:
    """Check a checkpoint and a split against each other.

    Args:
        path: of the checkpoint.
        checkpoint: what it holds.
        uri: of the split's shards.
        wishes: the protocols; None for the recipe's own `inference`.
        precision: `auto`, `bf16`, `fp16` or `fp32`.
        allow_seen: score rows that were trained on too.

    Raises:
        DataError: shards that are missing or of another schema.
        InputError: other classes, unlabelled shards, rows that were trained on, an unknown protocol, or windows that
            the head cannot use.
    """
    shards = open_shards(uri)  # once: `count_images` reads the same ones
    check_labels(path, checkpoint, uri, shards.manifest)
    seen = int(np.isin(digests(shards), checkpoint.seen).sum())
    refuse_rows(seen, shards, allow_seen)
    recipe, wishes = checkpoint.recipe, wishes or Wishes()
    protocols = dict(wanted(recipe, wishes, shards))
    return Task(path, recipe, uri, shards.manifest, protocols, seen, precision, tuple(wishes.measures))


def refuse_rows(seen: int, shards: Shards, allow_seen: bool) -> None:
    """Refuse rows that were trained on, unless they are allowed.

    Args:
        seen: their number.

    Raises:
        InputError: there are some.
    """
    if seen and not allow_seen:
        raise InputError(
            f"{seen} of the {len(shards)} images of {shards.uri} were trained on by this checkpoint's chain: the score "
            "would mean nothing. Score on other rows, or add --allow-seen to see it labelled as such."
        )


def wanted(recipe: Recipe, wishes: Wishes, shards: Shards) -> Iterator[tuple[str, Inference]]:
    """The protocols that are asked for, by name, each checked against the model and the sizes of the images."""
    check_names(wishes.names)
    pairs = shards.manifest.flip_pairs
    for name in wishes.names:
        with of_protocol(name):
            check_protocol(recipe, spec_by(name, recipe.inference), shards)
        yield name, replace(inference_by(name, recipe), flip_pairs=pairs)
    if wishes.overrides or wishes.average or not wishes.names:
        spec = override_inference(recipe.inference, wishes.overrides)
        check_protocol(recipe, spec, shards)
        try:
            yield OWN, replace(inference_of(recipe, spec), flip_pairs=pairs, average=wishes.average or "probabilities")
        except ValueError as error:
            raise InputError(f"--average: {error}") from None


def check_protocol(recipe: Recipe, spec: InferenceSpec, shards: Shards) -> None:
    """The model must be able to predict the images of a split in this way.

    Raises:
        InputError: it is not.
    """
    check_window(recipe, spec, meta_model(recipe, 2).window)
    check_sizes(recipe, spec, shards.uri, shards)


def check_labels(path: Path, checkpoint: Checkpoint, uri: str, manifest: Manifest) -> None:
    """Make sure that a split has labels, of the classes that the checkpoint knows.

    Raises:
        InputError: it has none, or others.
    """
    if not manifest.labelled or not manifest.rows:
        raise InputError(f"{uri} holds {manifest.rows} rows, labelled: {manifest.labelled}: nothing to score")
    check_known(path, checkpoint, uri, manifest)


def check_known(path: Path, checkpoint: Checkpoint, uri: str, manifest: Manifest) -> None:
    """Make sure that a split has the classes that the checkpoint knows.

    Raises:
        InputError: it has others.
    """
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
    task: Task,
    checkpoint: Checkpoint,
    share: Share | None = None,
    beat: Callable[[int], None] = lambda images: None,
) -> dict[str, ImageCounts]:
    """Confusion counts of each image of the split under each protocol, of all workers.

    Args:
        task: from `plan_evaluation`.
        checkpoint: its checkpoint.
        share: what this process does of it; None for everything, on a GPU where there is one.
        beat: is given the images that this process has counted since the last call.
    """
    share = share or Share(device_here())
    model = load_model(task.recipe, checkpoint, share.device)
    precision, batch = precision_of(task.precision, share.device), task.recipe.inference.batch
    settle_kernels(share.device, precision)
    spare_grouped(model, share.device, precision)
    inferences = list(task.protocols.values())
    counts = count_images(model, task.uri, inferences, share, precision, batch, beat, measures=task.measures)
    return dict(zip(task.protocols, counts, strict=True))


def load_model(recipe: Recipe, checkpoint: Checkpoint, device: torch.device) -> Segmentor:
    """The checkpoint's segmentor, laid out in memory as in training."""
    model = build_model(recipe, len(checkpoint.classes))
    model.load_state_dict(checkpoint.model)
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    return model.to(device, memory_format=layout)  # type: ignore[call-overload]


def evaluate_on_ray(task: Task, sizes: Sizes, beat: Callable[[int], None]) -> dict[str, ImageCounts]:
    """As `evaluate_here`, by several workers; `beat` is given the images that all of them have counted."""
    from pipelines.cluster.group import trainer
    from pipelines.cluster.tally import tallied

    def enter(config: dict[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
        # imported in the worker: Ray's controller need not load the models too
        from pipelines.scoring.evaluation import evaluate_worker

        return evaluate_worker(pickle.loads(config["task"]), config["tally"], config["gpus"])

    with tempfile.TemporaryDirectory() as folder, tallied(beat) as tally:
        config = {"task": pickle.dumps(task), "tally": tally, "gpus": sizes.gpus}
        job = trainer(enter, config, sizes, "evaluate", Path(folder), failures=0)
        found = job.fit().return_value  # type: ignore[attr-defined]
    classes = len(task.manifest.classes)
    counts = [ImageCounts(classes, entries, task.measures, sums) for entries, sums in found]
    return dict(zip(task.protocols, counts, strict=True))


def evaluate_worker(task: Task, tally: Any, gpus: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """One Ray worker's part; returns entries and sums of all workers, by protocol: Ray's controller has no torch.

    Args:
        task: what is scored.
        tally: is told of the images that were counted, see `tallied`.
        gpus: that it was given.
    """
    import ray.train

    from pipelines.cluster.group import process_group

    context = ray.train.get_context()
    checkpoint = Checkpoint.read(named_checkpoint(task.source) if task.source else task.path, mapped=True)
    with process_group():
        share = Share(device_of(gpus), context.get_world_rank(), context.get_world_size())
        counts = evaluate_here(task, checkpoint, share, lambda images: tally.add.remote(images))
        return [(each.entries, each.sums) for each in counts.values()]
