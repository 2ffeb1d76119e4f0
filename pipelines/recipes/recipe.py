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
from pipelines.recipes.protocols import check_measures, check_names
from pipelines.recipes.tasks import OWN, SEGMENTATION, TASKS

# The rule of a run's identity. A key that can change what a run computes, beyond the order in which floating-point sums
# are taken, is part of it: another value is another run. All other keys are here, each with what a change of it does.
# Of the workers, `precision`, `compress` and how many images a norm sees at once (`micro_batch`, and `count` with
# `norm: local`) are part of the identity; a checkpoint notes them as they were, see `Numerics`.
PLACED = {
    "name": "names the run",
    "published": "the number that is shown next to it",
    "experiment": "where MLflow shows it",
    "tracking": "which MLflow",
    "output": "where files go",
    "data": "where shards are; their rows are compared by their hash",
    "feed": "both give the same batches, bit for bit",
    "overlays": "pictures",
    "explain": "pictures",
    "protocols": "how the weights are scored once they are trained",
    "measures": "what else is counted then",
    "log_every": "lines of the record",
    "keep_last": "checkpoints that stay",
    "checkpoint_minutes": "checkpoints between validations",
    "mlflow_model": "a program of the best weights",
}
PLACED_WORKERS = {
    "count": "rounding, with synchronised norms or frozen ones; with `norm: local` see above. A range is of numbers "
    "that agree in it",
    "gpus": "rounding; see above for norms",
    "channels_last": "rounding: another order of the same sums",
    "compile": "rounding, likewise",
    "graphs": "rounding, likewise",
    "deterministic": "rounding: kernels that add up in a fixed order",
    "recompute": "rounding, likewise: what is computed again is the same",
    "micro_batch": "rounding of accumulated gradients; see above for norms",
    "feed_tasks": "nothing",
    "max_failures": "nothing",
    "hang_minutes": "nothing",
    "wait_minutes": "nothing",
}


def key(about: str, default: Any = dataclasses.MISSING) -> Any:
    """A field of a recipe: what it means, for `train --keys`, and its default; a table's is made again each time."""
    if callable(default):
        return field(default_factory=default, metadata={"about": about})
    return field(default=default, metadata={"about": about})


@dataclass(frozen=True)
class Backbone:
    """The trunk: a network that is trained for classification, and gives the features."""

    name: str = key(
        "a trunk; `python -m segmodels backbones` lists them; `timm/NAME` is any of timm's networks", "resnet50s"
    )
    output_stride: Literal[8, 16, 32, 4] = key(
        "pixels per cell of the last map; hrnet_w48 takes only 4, wideresnet38 only 8, df1, df2 and some of timm's "
        "networks only 32",
        8,
    )
    weights: str | None = key(
        "where the trunk starts: path or URI of a state dict, `hub:` for timm's download, null for random weights", None
    )
    multi_grid: tuple[int, ...] | None = key(
        "dilations of the blocks of a ResNet's last stage, such as [2, 8, 16] at output stride 8 (EMANet); null for "
        "[2, 4, 4]",
        None,
    )
    context: dict[str, Any] | None = key(
        "what stands in the blocks of a ResNet besides: {name: sr, place: layer4} or nonlocal or isa there, or at "
        "before_last_of_layer3; {name: se, place: blocks}, cbam or sr, a gate in every block; null for nothing",
        None,
    )
    neck: str | None = key("`jpu` makes a map at stride 8 of a trunk at output stride 32; null for none", None)


@dataclass(frozen=True)
class Optim:
    """The optimizer, and how its rate falls in each stage."""

    name: Literal["sgd", "adamw"] = key("sgd with momentum, or adamw; PyTorch's", "sgd")
    lr: float = key("learning rate of the trunk; head and aux learn at lr * head_lr_scale", 0.01)
    momentum: float = key("of sgd, 0 to below 1", 0.9)
    nesterov: bool = key("of sgd: Nesterov's momentum", False)
    betas: tuple[float, float] = key("of adamw: decay of its averages of gradients and of their squares", (0.9, 0.999))
    eps: float = key("of adamw: what is added to the root of the squares", 1e-8)
    weight_decay: float = key("L2 penalty of sgd; adamw's decay, in units of the rate, 0.01 to 0.05 mostly", 1e-4)
    decay_norm_and_bias: bool = key(
        "whether the weights of norms and biases, and what else timm's network spares, decay too", True
    )
    schedule: Literal["poly", "cosine", "step"] = key(
        "how the rate falls: poly to 0 by a power, cosine to 0 by half a wave, step by gamma at milestones", "poly"
    )
    power: float = key("of poly: lr * (1 - step / steps) ** power", 0.9)
    milestones: tuple[float, ...] = key("of step: shares of a stage's steps, such as [0.6, 0.9]", ())
    gamma: float = key("of step: what the rate is multiplied by at each milestone", 0.1)
    warmup: int = key("steps in which the rate rises to lr", 0)
    head_lr_scale: float = key("rate of head and aux as a multiple of the trunk's", 10.0)
    layer_decay: float = key(
        "rate of a layer of the trunk as a multiple of that of the layer after it, such as 0.75 for a ViT; the last "
        "learns at lr. 1 for one rate; else for trunks whose layers timm names",
        1.0,
    )
    freeze_norm: bool = key(
        "pretrained batch norms keep their running statistics and normalise by them; for finetuning with few images",
        False,
    )
    ema: float = key(
        "decay of a running average of the weights, such as 0.999, lower in the first steps; the average is validated, "
        "kept and handed on instead of the weights; 0 for none",
        0.0,
    )


@dataclass(frozen=True)
class View:
    """What training sees of an image: scaled, padded and cropped, flipped, its colours changed."""

    crop: tuple[int, int] = key(
        "height and width of the training crop, in pixels; of detection and panoptic: the short side that an image is "
        "resized to, and the longest that the long one may be",
        (512, 512),
    )
    scale: tuple[float, float] = key(
        "range of factors by which an image is scaled before it is cropped; of classification: range of the share of "
        "its area that is cropped; of detection and panoptic: range of factors of the short side",
        (0.5, 2.0),
    )
    flip: float = key("probability of a flip from left to right", 0.5)
    rotate: float = key("largest rotation to either side, in degrees", 0.0)
    brightness: float = key("largest change of brightness, as a share", 0.0)
    contrast: float = key("largest change of contrast, as a share", 0.0)
    saturation: float = key("largest change of saturation, as a share", 0.0)
    hue: float = key("largest change of hue, as a share", 0.0)


@dataclass(frozen=True)
class Stage:
    """One training; a recipe's stages follow each other, each from the weights of the one before."""

    name: str = key("the stage's folder, and its name in overrides: stages.NAME.lr=0.01")
    train: str = key("shards to train on: a folder below `data`, or a URI")
    val: str | None = key("shards to validate on; null for none, then there is no score", None)
    epochs: float | None = key("how often all images are seen; give epochs or steps", None)
    steps: int | None = key("batches; give epochs or steps", None)
    lr: float | None = key("replaces optim.lr in this stage", None)
    warmup: int | None = key("replaces optim.warmup in this stage", None)
    val_every: float = key("epochs between validations; 0 validates only before and after", 1.0)


@dataclass(frozen=True)
class InferenceSpec:
    """How a model predicts on whole images."""

    mode: Literal["whole", "slide"] = key(
        "the image at once, or in sliding windows whose probabilities are averaged", "whole"
    )
    window: tuple[int, int] | None = key("height and width of a sliding window, in pixels; null for view.crop", None)
    stride: tuple[int, int] | None = key("pixels between windows; null for 2/3 of the window", None)
    scales: tuple[float, ...] = key("scales of the image that are averaged", (1.0,))
    flip: bool = key("average with the flipped image", False)
    batch: int = key("images of one size that are predicted at once", 8)


@dataclass(frozen=True)
class Workers:
    """Who trains, and how it computes."""

    count: int | tuple[int, int] | None = key(
        "train workers: null for one per GPU of the cluster, without GPUs one; 0 for this process, without Ray where "
        "feed=torch; [LEAST, MOST] for as many as a cluster carries while nodes come and go, of the numbers by "
        "which the batch can be divided",
        None,
    )
    gpus: Literal[0, 1] | None = key("GPUs of each worker; null for 1 where there are any", None)
    precision: Literal["auto", "bf16", "fp16", "fp32"] = key(
        "of the network; auto is bf16 on GPUs that have it, else fp32; fp16, for GPUs of before Ampere, comes with a "
        "scaled loss",
        "auto",
    )
    channels_last: bool | None = key(
        "memory layout; null for GPUs only: dilated convolutions on CPUs are many times slower with it", None
    )
    compile: bool = key("torch.compile of network and loss", False)
    graphs: bool = key(
        "CUDA graphs of what is compiled, for steps that wait for the CPU: torch.compile's reduce-overhead; GPUs only",
        False,
    )
    deterministic: bool = key(
        "only kernels that add up in a fixed order, so that GPUs too give the same bits twice; slower, and an "
        "operation that has no such kernel ends the run",
        False,
    )
    recompute: bool = key(
        "compute layers of a head again in the backward pass and keep less, for a longer step; of the heads ocnet and "
        "sa2x, others have none that can",
        False,
    )
    compress: Literal["bf16"] | None = key(
        "how gradients travel between workers: bf16 for half the bytes, for slow networks; null for as they are", None
    )
    micro_batch: int | None = key(
        "most images that a worker holds at once; gradients add up to the batch; null for its whole share", None
    )
    feed_tasks: int | None = key(
        "Ray Data tasks, or loader processes of feed=torch, that decode for each worker; null for a share of the cores",
        None,
    )
    max_failures: int = key("how often dead workers are replaced", 3)
    hang_minutes: float = key(
        "a worker without progress for so long is ended and replaced; more than the longest compilation takes", 30.0
    )
    wait_minutes: float = key("how long a run waits for room on a cluster, and for nodes that it asked for", 30.0)

    @property
    def number(self) -> int | None:
        """The number of workers, where the page gives one."""
        return self.count if isinstance(self.count, int) else None


@dataclass(frozen=True)
class Recipe:
    """A whole experiment: a chain of stages."""

    stages: tuple[Stage, ...] = key("the trainings, one after the other")
    task: Literal["segmentation", "classification", "detection", "panoptic"] = key(
        "what is learnt: of each pixel, of the whole image, objects with boxes and masks, or things and stuff; see "
        "`head` for what each takes",
        "segmentation",
    )
    name: str | None = key("the run's folder below output/runs; null for the page's name and a hash", None)
    published: str | None = key("the published table that this is to meet: PAPER/TABLE", None)
    seed: int = key("of fresh weights, of the order of images, of their views", 0)
    data: str = key("folder or URI of the shards; `sample:` for the bundled sample", "sample:")
    batch: int = key("images of a step, of all workers together", 16)
    weights: str | None = key(
        "a checkpoint of this project from which the whole model starts: path or URI, such as another run's best.pt; "
        "where its classes are others, classifiers are fresh; null for none",
        None,
    )
    backbone: Backbone = key("the trunk, or only its name", Backbone)
    head: dict[str, Any] = key(
        "name and keywords of the head, or only its name; `python -m segmodels NAME` shows those of segmentation; "
        "classification takes classifier, detection mask_rcnn or cascade_mask_rcnn, panoptic panoptic_fpn",
        lambda: {"name": "fcn"},
    )
    aux: dict[str, Any] | None = key(
        "likewise for a second head on an earlier `stage` (1 to 4), only in training", None
    )
    loss: dict[str, dict[str, Any]] = key(
        "output of the model -> term -> weight, or a mapping of `weight` and the term's options; `python -m segmodels "
        "losses` lists them",
        lambda: {"logits": {"cross_entropy": 1.0}},
    )
    norm: Literal["sync", "local"] = key(
        "whether batch norms see the images of all workers (sync), so that the number of workers changes nothing but "
        "rounding, or only those of their own worker, which costs no talk between workers (local)",
        "sync",
    )
    optim: Optim = key("the optimizer, and how its rate falls", Optim)
    view: View = key("what training sees of an image", View)
    inference: InferenceSpec = key("how `evaluate` predicts", InferenceSpec)
    validation: InferenceSpec | None = key("how the stages predict when they validate; null for the same way", None)
    protocols: tuple[str, ...] = key(
        "how a stage's best weights are scored once at its end, all in one pass over the val rows, such as [single, "
        "reconet]; `python -m pipelines.evaluate --help` lists them",
        (),
    )
    measures: tuple[str, ...] = key(
        "what else is counted under the protocols: boundary (F-score of outlines, trimap IoU), strata (small, middle, "
        "large objects), calibration",
        (),
    )
    workers: Workers = key("who trains, and how it computes", Workers)
    feed: Literal["ray", "torch"] = key("Ray Data or a torch DataLoader; both give the same batches", "ray")
    tracking: str | None = key("address of MLflow; null for MLFLOW_TRACKING_URI, else output/mlflow.db", None)
    experiment: str = key("experiment of MLflow", "context-heads")
    output: str = key(
        "folder for runs, the sample and the local MLflow store; s3://BUCKET/FOLDER, gs://BUCKET/FOLDER for runs alone",
        "~/context-heads",
    )
    overlays: int = key("validation images whose prediction is drawn at each validation", 4)
    explain: int = key(
        "validation images on which the context maps of a stage's best weights are drawn once, at its end, where the "
        "head gives any; its numbers are then taken too (0: neither)",
        2,
    )
    log_every: int = key("steps between two lines of the record", 10)
    keep_last: int = key("checkpoints of a stage that stay", 2)
    checkpoint_minutes: float = key("most minutes between two checkpoints", 10.0)
    mlflow_model: bool = key(
        "log the best weights of the last stage as an MLflow model, at the end of a run that segments", True
    )


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
    demand(recipe.explain >= 0, f"explain = {recipe.explain}: 0 (none) or more")
    demand(recipe.batch >= 1, f"batch = {recipe.batch}: must be 1 or more images")
    rates = [rate for rate in (recipe.optim.lr, *(stage.lr for stage in recipe.stages)) if rate is not None]
    demand(min(rates) >= 0, f"lr = {min(rates)}: 0 or more")
    check_optim(recipe.optim)
    demand(min(recipe.view.crop) >= 8, f"view.crop = {recipe.view.crop}: at least 8 pixels each way")
    demand(0 < recipe.view.scale[0] <= recipe.view.scale[1], f"view.scale = {recipe.view.scale}: 0 < low <= high")
    demand(0 <= recipe.view.flip <= 1, f"view.flip = {recipe.view.flip}: a probability, 0 to 1")
    for spec in (recipe.inference, recipe.validation or recipe.inference):
        demand(
            min(spec.scales, default=0) > 0 and len(set(spec.scales)) == len(spec.scales),
            f"scales = {list(spec.scales)}: one or more numbers above 0, none twice",
        )
        demand(spec.batch >= 1, f"batch of inference = {spec.batch}: 1 or more")
    check_names(recipe.protocols)
    check_measures(recipe.measures)
    demand(bool(recipe.protocols) or not recipe.measures, "measures without protocols: name one, such as [single]")
    demand("name" in recipe.head, "head lacks its name, e.g. {name: fcn}")
    check_task(recipe)
    demand(recipe.aux is None or "name" in recipe.aux, "aux lacks its name, e.g. {name: fcn, stage: 3}")
    demand((recipe.workers.number or 0) >= 0, f"workers.count = {recipe.workers.count}: 0 or more, or null")
    demand(
        recipe.weights is None or recipe.backbone.weights is None,
        "weights and backbone.weights are both given: the first is of the whole model, trunk included; give one",
    )
    check_split(recipe.batch, recipe.workers.number or 1)
    check_range(recipe)
    demand((recipe.workers.micro_batch or 1) >= 1, "workers.micro_batch: 1 or more, or null")
    check_graphs(recipe.workers)
    demand(recipe.workers.hang_minutes > 0, f"workers.hang_minutes = {recipe.workers.hang_minutes}: above 0")
    demand(recipe.workers.wait_minutes > 0, f"workers.wait_minutes = {recipe.workers.wait_minutes}: above 0")
    places = [recipe.data, recipe.output, recipe.tracking, recipe.weights, recipe.backbone.weights]
    places += splits_of(recipe)
    for place in places:
        demand(
            not holds_secret(place),
            f"{hide_secret(str(place))} holds a user or password, which would be logged. {CURE}",
        )
    demand(recipe.log_every >= 1 and recipe.keep_last >= 1, "log_every and keep_last must be 1 or more")


def check_task(recipe: Recipe) -> None:
    """What a task takes of a recipe.

    Raises:
        InputError: a head of another task, or a key that only segmentation has.
    """
    task, name = TASKS[recipe.task], recipe.head["name"]
    owner = next((other for other, facts in TASKS.items() if name in facts.heads), SEGMENTATION)
    if owner != recipe.task:
        allowed = ", ".join(task.heads) or "those of `python -m segmodels`"
        raise InputError(f"head {name!r} is of task: {owner}, this recipe has task: {recipe.task}; allowed: {allowed}")
    if recipe.task == SEGMENTATION:
        return
    page, plain = flatten(to_page(recipe)), flatten(to_page(Recipe(stages=recipe.stages)))
    for key in OWN:
        inside = {k for k in page.keys() | plain.keys() if k == key or k.startswith(f"{key}.")}
        if changed := sorted(k for k in inside if page.get(k) != plain.get(k)):
            raise InputError(
                f"{changed[0]} = {page.get(changed[0])}: of task: {SEGMENTATION} only, this recipe has task: "
                f"{recipe.task}; leave it out"
            )
    if recipe.task == "classification" and recipe.view.scale[1] > 1:
        raise InputError(
            f"view.scale = {list(recipe.view.scale)}: with task: classification it is the range of the share of the "
            "image's area that is cropped, at most 1; such as [0.08, 1]"
        )


# Keys that belong to one optimizer or one schedule; with another they may only be what they are by default.
OWNED = {
    "name": {"momentum": "sgd", "nesterov": "sgd", "betas": "adamw", "eps": "adamw"},
    "schedule": {"power": "poly", "milestones": "step", "gamma": "step"},
}


def check_optim(optim: Optim) -> None:
    """What the types cannot say of the optimizer.

    Raises:
        InputError: an impossible value, or a key of another optimizer or schedule than the recipe's.
    """

    def demand(name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise InputError(f"optim.{name} = {getattr(optim, name)}: {allowed}")

    demand("momentum", 0 <= optim.momentum < 1, "0 to below 1")
    demand("ema", 0 <= optim.ema < 1, "a decay, 0 (none) to below 1")
    demand("betas", all(0 <= beta < 1 for beta in optim.betas), "two numbers, each 0 to below 1")
    demand("eps", optim.eps > 0, "above 0")
    demand("gamma", 0 < optim.gamma <= 1, "above 0, to 1")
    demand("layer_decay", 0 < optim.layer_decay <= 1, "above 0, to 1 (one rate for all layers)")
    demand("nesterov", not optim.nesterov or optim.momentum > 0, "Nesterov's momentum needs optim.momentum above 0")
    rising = sorted(set(optim.milestones)) == list(optim.milestones)
    inside = all(0 < milestone < 1 for milestone in optim.milestones)
    demand("milestones", rising and inside, "shares of a stage's steps, above 0 and below 1, rising: [0.6, 0.9]")
    for chooser, keys in OWNED.items():
        for name, owner in keys.items():
            default, chosen = getattr(Optim, name), getattr(optim, chooser)
            cure = f"leave it out, or give optim.{name}={json.dumps(default)}"
            demand(
                name,
                chosen == owner or getattr(optim, name) == default,
                f"of optim.{chooser}={owner}, this recipe has {chosen}; {cure}",
            )
    demand("milestones", optim.schedule != "step" or bool(optim.milestones), "step needs some: [0.6, 0.9]")


def check_graphs(workers: Workers) -> None:
    """CUDA graphs are made of what is compiled, and of whole steps.

    Raises:
        InputError: there is no such thing.
    """
    if workers.graphs and not (workers.compile and workers.gpus != 0):
        raise InputError(
            "workers.graphs = true: CUDA graphs are made of what is compiled, on GPUs; give workers.compile=true, and "
            "not workers.gpus=0"
        )
    if workers.graphs and workers.micro_batch is not None:
        raise InputError(
            "workers.graphs = true with a micro_batch: a CUDA graph's gradients are gone with its next pass; give "
            "workers.micro_batch=null"
        )


def splits_of(recipe: Recipe) -> list[str]:
    """The splits that the stages name, without those that are null."""
    return [uri for stage in recipe.stages for uri in (stage.train, stage.val) if uri]


def check_split(batch: int, workers: int) -> None:
    """The batch must fall into equal parts.

    Raises:
        InputError: it does not.
    """
    if batch % workers:
        fits = [n for n in range(1, batch + 1) if batch % n == 0]
        raise InputError(f"batch = {batch} cannot be split over {workers} workers; workers.count may be {fits}")


def counts_of(recipe: Recipe) -> tuple[int, ...]:
    """The numbers of workers that a range allows: those by which the batch can be divided. Empty without a range."""
    if not isinstance(recipe.workers.count, tuple):
        return ()
    least, most = recipe.workers.count
    return tuple(n for n in range(max(1, least), min(most, recipe.batch) + 1) if recipe.batch % n == 0)


def check_range(recipe: Recipe) -> None:
    """A range of workers must hold a number by which the batch can be divided.

    Raises:
        InputError: it does not, or is none.
    """
    if not isinstance(recipe.workers.count, tuple):
        return
    least, most = recipe.workers.count
    if not 1 <= least <= most:
        raise InputError(f"workers.count = [{least}, {most}]: [LEAST, MOST], 1 <= LEAST <= MOST")
    if not counts_of(recipe):
        fits = [n for n in range(1, recipe.batch + 1) if recipe.batch % n == 0]
        raise InputError(
            f"workers.count = [{least}, {most}]: batch = {recipe.batch} cannot be split over any of these; a range "
            f"must hold one of {fits}"
        )


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
    machine, or are as in runs of old, do not.
    """
    kept = {key: getattr(recipe, key) for key in ("data", "published")}
    unset = {"overlays": Recipe.overlays, "experiment": Recipe.experiment}  # as in runs of old
    asked = {key: getattr(recipe.workers, key) for key in ("precision", "micro_batch", "compress")}
    given = {f"workers.{key}": value for key, value in asked.items() if value != getattr(Workers, key)}
    content = computed_part(recipe) | kept | unset | given
    if recipe.norm == Recipe.norm:  # up to 0.5 there was no such key
        del content["norm"]
    if recipe.weights is None:  # up to 0.6, likewise
        del content["weights"]
    if recipe.task == SEGMENTATION:  # up to 0.7, likewise
        del content["task"]
    if recipe.backbone.context is None:  # likewise
        content["backbone"] = {key: value for key, value in content["backbone"].items() if key != "context"}
    content["optim"] = {k: v for k, v in content["optim"].items() if k not in LATER or v != LATER[k]}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# Keys of `optim` that came with 0.7, with their defaults as a page has them: without them a run computes what it did.
LATER = {
    name: list(value) if isinstance(value := getattr(Optim, name), tuple) else value
    for name in ("name", "betas", "eps", "schedule", "milestones", "gamma", "layer_decay")
}


def norm_batch(recipe: Recipe, world: int) -> int:
    """Images that a batch norm sees at once in training, where it is not frozen."""
    return micro_batch(recipe, world) * (world if recipe.norm == "sync" else 1)


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
