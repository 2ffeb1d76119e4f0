"""Recipes: one flat YAML page <-> frozen dataclasses, strict about every key and type."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from pipelines.base.addresses import CURE, hide_secret, holds_secret
from pipelines.base.errors import InputError

# The rule of a run's identity. A key that can change what a run computes, beyond the order in which floating-point sums
# are taken, is part of it: another value is another run. All other keys are here, each with what a change of it does.
# Of the workers, `precision` and how many images a norm sees at once (`micro_batch`, and `count` without synchronised
# norms) are part of the identity; a checkpoint notes both as they were, see `Numerics`.
PLACED = {
    "name": "names the run",
    "published": "the number that is shown next to it",
    "experiment": "where MLflow shows it",
    "tracking": "which MLflow",
    "output": "where files go",
    "data": "where shards are; their rows are compared by their hash",
    "feed": "both give the same batches, bit for bit",
    "overlays": "pictures",
    "log_every": "lines of the record",
    "keep_last": "checkpoints that stay",
    "checkpoint_minutes": "checkpoints between validations",
}
PLACED_WORKERS = {
    "count": "rounding, with synchronised norms or frozen ones; else see above",
    "gpus": "rounding; see above for norms",
    "channels_last": "rounding: another order of the same sums",
    "compile": "rounding, likewise",
    "micro_batch": "rounding of accumulated gradients; see above for norms",
    "feed_tasks": "nothing",
    "max_failures": "nothing",
    "hang_minutes": "nothing",
}


@dataclass(frozen=True)
class Backbone:
    """`output_stride`: hrnet_w48 takes 4 alone, wideresnet38 8, df1 and df2 32; the others 8, 16 or 32.

    `weights`: null (random), a path or URI of a state dict, or `hub:` for timm's download. `multi_grid`: dilations of
    the blocks of a ResNet's last stage, such as [2, 8, 16] at output stride 8 (EMANet); null for 2, 4, 4.
    `neck`: `jpu` makes a map at stride 8 of a trunk at output stride 32; null for none.
    """

    name: str = "resnet50s"
    output_stride: Literal[8, 16, 32, 4] = 8
    weights: str | None = None
    multi_grid: tuple[int, ...] | None = None
    neck: str | None = None


@dataclass(frozen=True)
class Optim:
    """SGD. `lr` is the trunk's rate; head and aux run at `lr * head_lr_scale`. `warmup` in steps.

    `freeze_norm`: batch norms keep their running statistics and normalise by them (finetuning with few images).
    `ema`: decay of a running average of the weights, such as 0.999, below it in the first steps; validated, kept and
    handed on instead of the weights themselves. 0 for none.
    """

    lr: float = 0.01
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    decay_norm_and_bias: bool = True
    power: float = 0.9
    warmup: int = 0
    head_lr_scale: float = 10.0
    freeze_norm: bool = False
    ema: float = 0.0


@dataclass(frozen=True)
class View:
    """Training view: `scale` range, then pad and crop to `crop` (height, width) pixels; `flip` probability."""

    crop: tuple[int, int] = (512, 512)
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    rotate: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0


@dataclass(frozen=True)
class Stage:
    """One training. `train`, `val`: folders of shards below `data`, or URIs. Exactly one of `epochs` and `steps`.

    `val_every` in epochs; 0 validates before and after alone. `lr` replaces `optim.lr` in this stage.
    """

    name: str
    train: str
    val: str | None = None
    epochs: float | None = None
    steps: int | None = None
    lr: float | None = None
    warmup: int | None = None
    val_every: float = 1.0


@dataclass(frozen=True)
class InferenceSpec:
    """How a model predicts on whole images. `window` defaults to the crop, `stride` to 2/3 of the window.

    `batch`: images of one size that are predicted at once.
    """

    mode: Literal["whole", "slide"] = "whole"
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    batch: int = 8


@dataclass(frozen=True)
class Workers:
    """`count`: train workers (null: one per GPU of the cluster, else 1; 0: this process, no Ray).

    `micro_batch`: most images that one worker holds at once; gradients accumulate up to the global batch.
    `channels_last`: null means on GPUs; dilated convolutions on CPUs are many times slower with it.
    `feed_tasks`: Ray Data tasks (or loader processes) that decode for each worker. `max_failures`: restarts.
    `hang_minutes`: a worker without progress for so long is ended and replaced; above the longest compilation.
    """

    count: int | None = None
    gpus: Literal[0, 1] | None = None
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    channels_last: bool | None = None
    compile: bool = False
    micro_batch: int | None = None
    feed_tasks: int | None = None
    max_failures: int = 3
    hang_minutes: float = 30.0


@dataclass(frozen=True)
class Recipe:
    """A whole experiment. `batch` is global; `output` holds runs, the sample and the MLflow store.

    `loss`: output of the model -> term -> weight, or a mapping of `weight` and the term's options.
    `inference` is how `evaluate` predicts; `validation` how the stages do meanwhile (null: the same way).
    """

    stages: tuple[Stage, ...]
    name: str | None = None
    published: str | None = None
    seed: int = 0
    data: str = "sample:"
    batch: int = 16
    backbone: Backbone = field(default_factory=Backbone)
    head: dict[str, Any] = field(default_factory=lambda: {"name": "fcn"})
    aux: dict[str, Any] | None = None
    loss: dict[str, dict[str, Any]] = field(default_factory=lambda: {"logits": {"cross_entropy": 1.0}})
    optim: Optim = field(default_factory=Optim)
    view: View = field(default_factory=View)
    inference: InferenceSpec = field(default_factory=InferenceSpec)
    validation: InferenceSpec | None = None
    workers: Workers = field(default_factory=Workers)
    feed: Literal["ray", "torch"] = "ray"
    tracking: str | None = None
    experiment: str = "context-heads"
    output: str = "~/context-heads"
    overlays: int = 4
    log_every: int = 10
    keep_last: int = 2
    checkpoint_minutes: float = 10.0


def check(recipe: Recipe) -> None:
    """What the types cannot say.

    Raises:
        InputError: an impossible value.
    """

    def demand(holds: bool, message: str) -> None:
        if not holds:
            raise InputError(message)

    demand(len(recipe.stages) > 0, "stages is empty: name at least one, e.g. {name: train, train: camvid/train}")
    names = [stage.name for stage in recipe.stages]
    demand(len(set(names)) == len(names), f"stages share a name: {names}; each needs its own")
    for name in [*names, recipe.name or "x"]:
        demand(bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*", name)), f"name {name!r}: letters, digits, - _ . are allowed")
    for stage in recipe.stages:
        demand(
            (stage.epochs is None) != (stage.steps is None), f"stage {stage.name}: give epochs or steps, one of them"
        )
        demand((stage.epochs or stage.steps or 0) > 0, f"stage {stage.name}: epochs and steps must be above 0")
        demand(stage.val_every >= 0, f"stage {stage.name}: val_every = {stage.val_every} epochs, must be 0 or more")
    demand(0 <= recipe.seed < 2**32, f"seed = {recipe.seed}: 0 to 2**32 - 1")
    demand(recipe.overlays >= 0, f"overlays = {recipe.overlays}: 0 (none) or more")
    demand(recipe.batch >= 1, f"batch = {recipe.batch}: must be 1 or more images")
    rates = [rate for rate in (recipe.optim.lr, *(stage.lr for stage in recipe.stages)) if rate is not None]
    demand(min(rates) >= 0, f"lr = {min(rates)}: 0 or more")
    demand(0 <= recipe.optim.momentum < 1, f"optim.momentum = {recipe.optim.momentum}: 0 to below 1")
    demand(0 <= recipe.optim.ema < 1, f"optim.ema = {recipe.optim.ema}: a decay, 0 (none) to below 1")
    demand(min(recipe.view.crop) >= 8, f"view.crop = {recipe.view.crop}: at least 8 pixels each way")
    demand(0 < recipe.view.scale[0] <= recipe.view.scale[1], f"view.scale = {recipe.view.scale}: 0 < low <= high")
    demand(0 <= recipe.view.flip <= 1, f"view.flip = {recipe.view.flip}: a probability, 0 to 1")
    for spec in (recipe.inference, recipe.validation or recipe.inference):
        demand(min(spec.scales, default=0) > 0, f"scales = {list(spec.scales)}: one or more numbers above 0")
        demand(spec.batch >= 1, f"batch of inference = {spec.batch}: 1 or more")
    demand("name" in recipe.head, "head lacks its name, e.g. {name: fcn}")
    demand(recipe.aux is None or "name" in recipe.aux, "aux lacks its name, e.g. {name: fcn, stage: 3}")
    demand((recipe.workers.count or 0) >= 0, f"workers.count = {recipe.workers.count}: 0 or more, or null")
    demand((recipe.workers.micro_batch or 1) >= 1, "workers.micro_batch: 1 or more, or null")
    demand(recipe.workers.hang_minutes > 0, f"workers.hang_minutes = {recipe.workers.hang_minutes}: above 0")
    places = [recipe.data, recipe.tracking, recipe.backbone.weights]
    places += [uri for stage in recipe.stages for uri in (stage.train, stage.val)]
    for place in places:
        demand(
            not holds_secret(place),
            f"{hide_secret(str(place))} holds a user or password, which would be logged. {CURE}",
        )
    demand(recipe.log_every >= 1 and recipe.keep_last >= 1, "log_every and keep_last must be 1 or more")


def to_page(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain lists and mappings, every default written out."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as a YAML page that `load_recipe` reads back to an equal recipe."""
    return yaml.safe_dump(to_page(recipe), sort_keys=False, default_flow_style=None, width=110)


def computed_part(recipe: Recipe) -> dict[str, Any]:
    """What of the page decides the numbers, but for the workers' numerics."""
    return {key: value for key, value in to_page(recipe).items() if key not in PLACED and key != "workers"}


def fingerprint(recipe: Recipe) -> str:
    """sha256 of what is known of the numbers before anything is opened; the same command finds the same run by it.

    Names of data and published numbers belong to it, since rows are not known yet; numerics that are left to the
    machine do not.
    """
    kept = {key: getattr(recipe, key) for key in ("data", "published")}
    unset = {"overlays": Recipe.overlays, "experiment": Recipe.experiment}  # as in runs of old
    asked = {key: getattr(recipe.workers, key) for key in ("precision", "micro_batch")}
    given = {f"workers.{key}": value for key, value in asked.items() if value != getattr(Workers, key)}
    return hashlib.sha256(json.dumps(computed_part(recipe) | kept | unset | given, sort_keys=True).encode()).hexdigest()


def micro_batch(recipe: Recipe, world: int) -> int:
    """Images of one forward pass: the largest part of a worker's share that `workers.micro_batch` allows."""
    share = recipe.batch // world
    most = recipe.workers.micro_batch or share
    return next(size for size in range(min(most, share), 0, -1) if share % size == 0)


def flatten(page: Any, key: str = "") -> dict[str, Any]:
    """`{'head.rank': 64, ...}` for MLflow's parameters and for naming what differs between two recipes."""
    if isinstance(page, dict):
        pairs = list(page.items())
    elif isinstance(page, list) and any(isinstance(entry, dict) for entry in page):
        pairs = [(entry.get("name", str(i)), entry) for i, entry in enumerate(page)]
    else:
        return {key: page}
    return {k: v for part, value in pairs for k, v in flatten(value, f"{key}.{part}" if key else part).items()}
