"""Recipes: one flat YAML page <-> frozen dataclasses, strict about every key and type."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

RECIPES = Path(__file__).parent / "recipes"
# Keys that say where and with what a run executes, not what it computes: free to differ when a run is resumed.
PLACEMENT = ("output", "workers", "feed", "tracking", "log_every", "keep_last", "checkpoint_minutes")


class RecipeError(ValueError):
    """A recipe or a command line that cannot be run; the message names key, value, what is allowed and the cure."""


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


def nearest(given: str, allowed: typing.Iterable[str]) -> str:
    """`; did you mean 'x'?`, or a full stop when no name is near."""
    near = difflib.get_close_matches(given, list(allowed), 1, 0.5)
    return f"; did you mean {near[0]!r}?" if near else "."


def load_recipe(source: str | Path, overrides: typing.Sequence[str] = ()) -> Recipe:
    """Recipe of a YAML file (a path, or a name below pipelines/recipes) with `key=value` overrides applied.

    Raises:
        RecipeError: no such file, not YAML, an unknown key, a wrong type or an impossible value.
    """
    path = find_recipe(str(source))
    page = read_page(path, f"a recipe is a mapping of keys; see {RECIPES}")
    for override in overrides:
        apply_override(page, override)
    recipe = make_recipe(page)
    if recipe.name is None:
        recipe = dataclasses.replace(recipe, name=f"{path.stem}-{fingerprint(recipe)[:8]}")
    return recipe


def read_page(path: Path, wanted: str) -> dict[str, Any]:
    """The mapping that a YAML file holds; `wanted` ends the message when it holds something else.

    Raises:
        RecipeError: not YAML, or no mapping.
    """
    try:
        page = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not YAML: {error}") from None
    if not isinstance(page, dict):
        raise RecipeError(f"{path} holds {type(page).__name__}, {wanted}")
    return page


def make_recipe(page: dict[str, Any]) -> Recipe:
    """The recipe of a page, its keys, types and values checked; its name stays open where the page has none."""
    recipe = typing.cast(Recipe, convert(Recipe, page, ""))
    check(recipe)
    return recipe


def find_recipe(source: str) -> Path:
    """The file that `source` names: a path, or `reconet/camvid_resnet50s` below pipelines/recipes."""
    return find_page(source, RECIPES, "recipe")


def find_page(source: str, bundled: Path, what: str) -> Path:
    """The file that `source` names: a path, or a name below a folder.

    Raises:
        RecipeError: no such file.
    """
    for path in (Path(source), bundled / source, bundled / f"{source}.yaml"):
        if path.is_file():
            return path
    known = sorted(str(path.relative_to(bundled).with_suffix("")) for path in bundled.rglob("*.yaml"))
    raise RecipeError(f"no {what} {source!r}{nearest(source, known)} Bundled: {', '.join(known)}; or give a path.")


def apply_override(page: dict[str, Any], override: str) -> None:
    """Set `a.b=value` (value in YAML) in the page; list entries by position, stages by name too."""
    set_key(page, *read_override(override))


def read_override(override: str) -> tuple[str, Any]:
    """Key and value of `a.b=value`."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"override {override!r} is not of the form key=value, e.g. head.rank=32")
    try:
        return key, yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {override!r} cannot be applied: {error}") from None


def set_key(page: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of a page to a value as YAML gives it.

    Raises:
        RecipeError: the key leads nowhere.
    """
    *parents, last = key.split(".")
    node: Any = page
    try:
        for part in parents:
            if isinstance(node, dict):
                if node.get(part) is None:
                    node[part] = {}
                node = node[part]
            else:
                node = node[position(node, part, key)]
        node[last if isinstance(node, dict) else position(node, last, key)] = value
    except (TypeError, IndexError) as error:
        raise RecipeError(f"override {f'{key}={value}'!r} cannot be applied: {error}") from None


def position(entries: Any, part: str, key: str) -> int:
    """Place of a list entry given by number or by its `name`."""
    if not isinstance(entries, list):
        raise RecipeError(f"override {key!r}: nothing lies below {part!r}, whose parent is the value {entries!r}")
    names = [entry.get("name", "") if isinstance(entry, dict) else "" for entry in entries]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(entries):
        return int(part)
    raise RecipeError(f"override {key!r}: no entry {part!r}; allowed: 0..{len(entries) - 1} or {names}")


def convert(kind: Any, value: Any, key: str) -> Any:
    """`value` as read from YAML, checked against a type hint and made that type."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return convert_table(kind, value, key)
    if origin in (typing.Union, types.UnionType):
        inner = next(arg for arg in args if arg is not type(None))
        return None if value is None else convert(inner, value, key)
    if origin is Literal:
        if value not in args or isinstance(value, bool):
            raise RecipeError(f"{key} = {value!r}: allowed are {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        return convert_tuple(args, value, key)
    if origin is dict:
        if not isinstance(value, dict):
            raise wrong(key, value, "a mapping")
        return {str(k): convert(args[1], v, f"{key}.{k}") for k, v in value.items()}
    return convert_scalar(kind, value, key)


def convert_table(kind: Any, value: Any, key: str) -> Any:
    """A dataclass from a mapping; unknown and missing keys are errors."""
    if not isinstance(value, dict):
        raise wrong(key, value, f"a mapping with the keys {', '.join(f.name for f in dataclasses.fields(kind))}")
    hints = typing.get_type_hints(kind)
    for name in value:
        if name not in hints:
            where = f"{key}.{name}" if key else str(name)
            raise RecipeError(f"unknown key {where!r}{nearest(str(name), hints)} Allowed: {', '.join(hints)}")
    required = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in required if name not in value]:
        raise RecipeError(f"{key or 'the recipe'} lacks the key(s) {', '.join(missing)}")
    return kind(**{n: convert(hints[n], v, f"{key}.{n}" if key else str(n)) for n, v in value.items()})


def convert_tuple(args: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    """A list of fixed or free length."""
    free = len(args) == 2 and args[1] is Ellipsis
    if not isinstance(value, list) or (not free and len(value) != len(args)):
        raise wrong(key, value, "a list" if free else f"a list of {len(args)}, e.g. [512, 512]")
    return tuple(convert(args[0] if free else args[i], v, f"{key}.{i}") for i, v in enumerate(value))


def convert_scalar(kind: type, value: Any, key: str) -> Any:
    """int, float, bool or str; YAML reads `1e-5` as a string, which is taken for the number that it is."""
    if kind is float and not isinstance(value, bool):
        try:
            number = float(value) if isinstance(value, (int, float, str)) else None
        except ValueError:
            number = None
        if number is not None and math.isfinite(number):
            return number
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise wrong(key, value, {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind])


def wrong(key: str, value: Any, wanted: str) -> RecipeError:
    return RecipeError(f"{key or 'the recipe'} = {value!r} is {type(value).__name__}: give {wanted}")


def check(recipe: Recipe) -> None:
    """What the types cannot say.

    Raises:
        RecipeError: an impossible value.
    """

    def demand(holds: bool, message: str) -> None:
        if not holds:
            raise RecipeError(message)

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


CURE = (
    "Leave it out of the address, and set the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
)


def holds_secret(uri: str | None) -> bool:
    """Whether a URI has a user or password before its host."""
    return bool(uri and "://" in uri and "@" in uri.split("://", 1)[1].split("/", 1)[0])


def hide_secret(uri: str) -> str:
    """The URI without what stands before its host."""
    return re.sub(r"://[^/]*@", "://***@", uri)


def to_page(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain lists and mappings, every default written out."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as a YAML page that `load_recipe` reads back to an equal recipe."""
    return yaml.safe_dump(to_page(recipe), sort_keys=False, default_flow_style=None, width=110)


def computed_part(recipe: Recipe) -> dict[str, Any]:
    """The page without its name and placement: what decides the numbers."""
    return {k: v for k, v in to_page(recipe).items() if k not in (*PLACEMENT, "name")}


def fingerprint(recipe: Recipe) -> str:
    """sha256 of what decides the numbers; the same command finds the same run by it."""
    return hashlib.sha256(json.dumps(computed_part(recipe), sort_keys=True).encode()).hexdigest()


def flatten(page: Any, key: str = "") -> dict[str, Any]:
    """`{'head.rank': 64, ...}` for MLflow's parameters and for naming what differs between two recipes."""
    if isinstance(page, dict):
        pairs = list(page.items())
    elif isinstance(page, list) and any(isinstance(entry, dict) for entry in page):
        pairs = [(entry.get("name", str(i)), entry) for i, entry in enumerate(page)]
    else:
        return {key: page}
    return {k: v for part, value in pairs for k, v in flatten(value, f"{key}.{part}" if key else part).items()}
