"""A learner as a run has it, but alone, without shards or Ray: for measurements and tests of single steps."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import torch

from pipelines.cluster.sizes import Sizes
from pipelines.feed.batch import Batch
from pipelines.recipes.model import meta_model, train_mode
from pipelines.recipes.reading import load_recipe
from pipelines.recipes.recipe import Recipe, Stage
from pipelines.training.job import Job
from pipelines.training.learner import Learner, make_learner
from segmodels.checks import keywords_of
from segmodels.heads.catalog import HEADS

RECIPE = "reconet/voc12_coco_resnet101s"
TERMS = {"presence": "se", "class_prior": "cp"}  # outputs that are vectors; the others are maps
SMALL = ["backbone.name=resnet18", "backbone.output_stride=16", "view.crop=[64,64]", "aux.channels=16"]
NARROW = {"channels": 32, "rank": 4, "key_channels": 8, "nodes": 4, "kernels": [9], "bases": 4, "codes": 4,
          "partition": [2, 2]}  # fmt: skip
STEPS = 10_000  # of the stage that is trained a part of: the rate hardly falls


def head_words(name: str, small: bool) -> list[str]:
    """A recipe's keys for a head, with a loss term for each of its outputs.

    Args:
        name: a key of `HEADS`.
        small: narrow, on a small trunk, for CPUs.
    """
    known = keywords_of(HEADS[name])
    head = {"name": name} | ({k: v for k, v in NARROW.items() if k in known} if small else {})
    words = ["backbone.weights=null", *(SMALL if small else []), f"head={head}", "inference.mode=slide"]
    if name == "ocr":  # its coarse map is an auxiliary head's
        words = [word for word in words if not word.startswith("aux.")] + ["aux=null"]
    recipe = load_recipe(RECIPE, [*words, "workers.gpus=0"])
    outputs = meta_model(recipe, 2).train()(torch.zeros(2, 3, *recipe.view.crop, dtype=torch.uint8, device="meta"))
    terms = {output: {TERMS.get(output, "cross_entropy"): 1.0 if output == "logits" else 0.4} for output in outputs}
    return [*words, f"loss={terms}"]


def lone_recipe(words: list[str]) -> Recipe:
    """The recipe of a measurement, with a stage that nothing is read for."""
    recipe = load_recipe(RECIPE, ["backbone.weights=null", *words])
    stage = Stage("lone", "nothing", steps=STEPS)
    return dataclasses.replace(recipe, name="lone", stages=(stage,), tracking=None)


def lone_learner(words: list[str], device: torch.device, classes: int = 21, rank: int = 0, world: int = 1) -> Learner:
    """What a worker trains, from random weights that the recipe's seed draws; with several, in a process group.

    Args:
        words: `key=value` of the recipe.
        device: on which it is.
        classes: K.
        rank: of this worker.
        world: workers.
    """
    recipe = lone_recipe(words)
    names = tuple(f"class {k}" for k in range(classes))
    sizes = Sizes(world, int(device.type == "cuda"), 1.0, 1, 1.0)
    with tempfile.TemporaryDirectory() as folder:  # without a checkpoint, and none is written
        job = Job(
            recipe=recipe, stage=recipe.stages[0], folder=Path(folder), train="", val=None, classes=names,
            palette=((0, 0, 0),) * classes, rows=recipe.batch, steps=STEPS, sizes=sizes,
            threads=torch.get_num_threads(),
        )  # fmt: skip
        learner = make_learner(job, rank, world, device)
    train_mode(learner.model, learner.frozen)
    return learner


def with_batch(learner: Learner, batch: int) -> Learner:
    """The same learner, for steps of so many images."""
    learner.job = dataclasses.replace(learner.job, recipe=dataclasses.replace(learner.job.recipe, batch=batch))
    return learner


def drawn_batch(learner: Learner, seed: int = 0) -> Batch:
    """A batch of noise on the host, a tenth of it without a label; each worker its share."""
    recipe, classes = learner.job.recipe, len(learner.job.classes)
    generator = torch.Generator().manual_seed(seed)
    height, width = recipe.view.crop
    image = torch.randint(0, 256, (recipe.batch, height, width, 3), dtype=torch.uint8, generator=generator)
    mask = torch.randint(0, classes, (recipe.batch, height, width), dtype=torch.uint8, generator=generator)
    mask[:, : height // 10] = 255
    share = recipe.batch // learner.world
    own = slice(learner.rank * share, (learner.rank + 1) * share)
    return Batch(image.permute(0, 3, 1, 2)[own], mask[own])
