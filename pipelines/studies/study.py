"""Studies: one YAML page -> variants x seeds of one recipe, which may differ only in the ablated keys.

    title: Tensor rank
    published: {table: reconet/table8, column: mIoU}     # the numbers to meet; optional
    recipe: reconet/voc12_resnet101s                     # below pipelines/recipes, or a path
    set: {stages.aug.epochs: 80}                         # for all variants; optional
    baseline: rank64                                     # what gains are measured against; optional
    variants:
      rank16: {set: {head.rank: 16}, published: {rank: 16}}
      rank64: {set: {head.rank: 64}, published: {rank: 64}}
    seeds: [0, 1, 2]
    curve: head.rank                                     # optional

Instead of `variants`, `grid: {head.rank: [16, 32], optim.lr: [0.01, 0.02]}` takes every combination, and
`search: {algorithm: optuna, trials: 30, space: {optim.lr: {log_uniform: [1.0e-4, 0.1]}}}` looks for the best one.
`stop_early: {algorithm: asha, grace: 0.2, reduction: 3}` ends the trials that fall behind.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from pipelines.base.errors import InputError
from pipelines.base.text import nearest
from pipelines.recipes.reading import convert, find_page, find_recipe, make_recipe, read_override, read_page, set_key
from pipelines.recipes.recipe import Recipe, fingerprint

STUDIES = Path(__file__).parent
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
RANGES = ("choice", "uniform", "log_uniform", "integer")


@dataclass(frozen=True)
class Variant:
    """`set`: what differs from the recipe. `published`: which row of the published table it is; null for none."""

    set: dict[str, Any] = field(default_factory=dict)
    published: dict[str, Any] | None = None


@dataclass(frozen=True)
class Published:
    """A table of pipelines/published and the column that is compared."""

    table: str
    column: str


@dataclass(frozen=True)
class Search:
    """`trials` points of `space`, key -> {choice: [...]} or {uniform | log_uniform | integer: [low, high]}.

    `pbt` trains `trials` members at once for `rounds` rounds; after each, the worst quarter goes on from the weights
    and near the values of the best.
    """

    algorithm: Literal["random", "optuna", "pbt"]
    trials: int
    space: dict[str, dict[str, Any]]
    rounds: int = 4


@dataclass(frozen=True)
class StopEarly:
    """Successive halving: at `grace` of the steps, and each `reduction` times later, all but the best 1 / `reduction`
    of the trials seen so far end."""

    algorithm: Literal["asha"] = "asha"
    grace: float = 0.2
    reduction: float = 3.0


@dataclass(frozen=True)
class Study:
    """A page, see above. Exactly one of `variants`, `grid`, `search`."""

    title: str
    recipe: str
    published: Published | None = None
    set: dict[str, Any] = field(default_factory=dict)
    baseline: str | None = None
    variants: dict[str, Variant] = field(default_factory=dict)
    grid: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    search: Search | None = None
    stop_early: StopEarly | None = None
    seeds: tuple[int, ...] = (0,)
    curve: str | None = None
    notes: str = ""


@dataclass(frozen=True)
class StudyPlan:
    """A study ready to be expanded: its name, the page, and the recipe's page with all that is common set."""

    name: str
    study: Study
    page: dict[str, Any]

    def recipe(self, trial: str, changes: Mapping[str, Any], seed: int) -> Recipe:
        """The recipe of a trial.

        Raises:
            InputError: a key that the recipe does not know, or a value that it refuses.
        """
        page = copy.deepcopy(self.page)
        for key, value in changes.items():
            set_key(page, key, copy.deepcopy(value))
        return make_recipe(page | {"seed": seed, "name": trial})


@dataclass(frozen=True)
class Trial:
    """One variant under one seed."""

    name: str
    variant: str
    seed: int
    recipe: Recipe


def load_study(
    source: str | Path,
    *,
    recipe: str | None = None,
    benchmark: str | None = None,
    seeds: int | None = None,
    name: str | None = None,
    overrides: Sequence[str] = (),
) -> StudyPlan:
    """The study of a YAML file (a path, or a name below pipelines/studies).

    Args:
        recipe: replaces the page's.
        benchmark: B trains on B/train and validates on B/val.
        seeds: N replaces the page's by 0 .. N-1.
        name: of the study's folder; else from its file and what its base recipe computes.
        overrides: `key=value`, for all variants.

    Raises:
        InputError: no such file, an unknown key, or a plan that cannot be.
    """
    path = find_page(str(source), STUDIES, "study")
    study = cast(Study, convert(Study, read_page(path, f"a study is a mapping of keys; see {STUDIES}", Study), ""))
    if seeds is not None:
        if seeds < 1:
            raise InputError(f"--seeds {seeds}: one or more")
        study = dataclasses.replace(study, seeds=tuple(range(seeds)))
    found = find_recipe(recipe or study.recipe)
    page = read_page(found, "a recipe is a mapping of keys")
    given = dict(map(read_override, overrides))
    check_overrides(study, given)
    if name is not None and not NAME.fullmatch(name):
        raise InputError(f"--name {name!r}: letters, digits, - _ . are allowed in names")
    common = copy.deepcopy(study.set) | given
    for key, value in common.items():
        set_key(page, key, copy.deepcopy(value))
    if benchmark:
        common |= benchmark_keys(page, benchmark)
        for key, value in common.items():
            set_key(page, key, copy.deepcopy(value))
    base = make_recipe(page | {"seed": 0, "name": None})
    variants = variants_of(study.grid) if study.grid else study.variants
    if study.grid and study.variants:
        raise InputError("a study has one of variants, grid and search; this one has variants and grid")
    study = dataclasses.replace(study, recipe=recipe or study.recipe, set=common, variants=variants, grid={})
    check(study, base)
    stem = "-".join(path.with_suffix("").relative_to(STUDIES).parts if path.is_relative_to(STUDIES) else [path.stem])
    return StudyPlan(name or f"{stem}-{fingerprint(base)[:8]}", study, page)


def to_yaml(plan: StudyPlan) -> str:
    """The study as a page of its own, with all that the command line set."""
    page = json.loads(json.dumps(dataclasses.asdict(plan.study)))
    return yaml.safe_dump({k: v for k, v in page.items() if v not in (None, {}, "")}, sort_keys=False, width=110)


def check_overrides(study: Study, given: Mapping[str, Any]) -> None:
    """A key of the command line that every trial sets itself would change nothing.

    Raises:
        InputError: it would not.
    """
    own = {"seed": "--seeds N", "name": "--name NAME"}
    sets = [variant.set for variant in study.variants.values()]
    sets += [study.grid] if study.grid else [study.search.space] if study.search else []
    for key in given:
        if key in own:
            raise InputError(f"{key}= is the study's: use {own[key]}")
        if sets and all(any(key == k or key.startswith(f"{k}.") for k in each) for each in sets):
            raise InputError(f"{key}= changes nothing: every variant sets it; copy the page and change it there")


def benchmark_keys(page: Mapping[str, Any], benchmark: str) -> dict[str, str]:
    """What lets the recipe's only stage train and validate on another benchmark's shards.

    Raises:
        InputError: it has several stages, whose parts one name cannot replace.
    """
    stages = page.get("stages") or []
    if len(stages) != 1:
        names = [str(stage.get("name")) for stage in stages]
        raise InputError(
            f"--benchmark {benchmark}: the recipe has {len(stages)} stages ({', '.join(names)}), each with its own "
            f"shards; set them one by one, e.g. stages.{names[0] if names else 0}.train={benchmark}/train, or take a "
            "recipe of one stage"
        )
    return {"stages.0.train": f"{benchmark}/train", "stages.0.val": f"{benchmark}/val"}


def variants_of(grid: Mapping[str, Sequence[Any]]) -> dict[str, Variant]:
    """Every combination of the grid's values, named by them: `rank16-lr0.01`."""
    if empty := [key for key, values in grid.items() if not values]:
        raise InputError(f"grid.{empty[0]} is empty: list its values")
    ends = [key.rsplit(".", 1)[-1] for key in grid]
    short = [end if ends.count(end) == 1 else key for key, end in zip(grid, ends, strict=True)]
    variants: dict[str, Variant] = {}
    for values in itertools.product(*grid.values()):
        name = "-".join(f"{key}{word(value)}" for key, value in zip(short, values, strict=True))
        if name in variants:
            raise InputError(f"two points of the grid have the name {name!r}: give them as named variants")
        variants[name] = Variant(set=dict(zip(grid, values, strict=True)))
    return variants


def word(value: Any) -> str:
    """A value as a part of a name."""
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^\w.]+", "_", text).strip("_")


def check(study: Study, base: Recipe) -> None:
    """What the types cannot say.

    Raises:
        InputError: what cannot be run or would mislead.
    """

    def demand(holds: bool, message: str) -> None:
        if not holds:
            raise InputError(message)

    given = [kind for kind in ("variants", "search") if getattr(study, kind)]
    demand(len(given) == 1, f"a study has one of variants, grid and search; this one has {given or 'none of them'}")
    demand(len(study.seeds) > 0, "seeds is empty: list them, e.g. [0, 1, 2]")
    demand(len(set(study.seeds)) == len(study.seeds), f"seeds = {list(study.seeds)}: one is there twice")
    for name in study.variants:
        demand(bool(NAME.fullmatch(name)), f"variant {name!r}: letters, digits, - _ . are allowed in names")
    demand(
        study.baseline is None or study.baseline in study.variants,
        f"baseline = {study.baseline!r} is no variant{nearest(str(study.baseline), study.variants)} Variants: "
        f"{', '.join(study.variants)}",
    )
    keys = ablated(study)
    demand(
        study.curve is None or study.curve in keys,
        f"curve = {study.curve!r}: no variant sets it{nearest(str(study.curve), keys)} Set are: {', '.join(keys)}",
    )
    for name, variant in study.variants.items():
        for key in ("seed", "name", "task", "output", "tracking"):
            demand(key not in variant.set, f"variant {name!r} sets {key}: that is the study's, not a variant's")
    demand(any(stage.val for stage in base.stages), "no stage has `val`: a study compares scores; name shards for one")
    demand(
        base.workers.count != 0,
        "workers.count = 0: the trials of a study run on Ray's workers; give workers.count=1 or more",
    )
    demand(
        not isinstance(base.workers.count, tuple),
        f"workers.count = {base.workers.count}: trials of a study keep to one number of workers; give it",
    )
    if study.stop_early:
        check_stop_early(study.stop_early, base)
    if study.search:
        check_search(study, study.search, base)


def check_stop_early(rule: StopEarly, base: Recipe) -> None:
    """Trials can only be stopped by scores that come while they train."""
    if not 0 < rule.grace < 1:
        raise InputError(f"stop_early.grace = {rule.grace}: a share of a trial's steps, above 0 and below 1")
    if rule.reduction <= 1:
        raise InputError(f"stop_early.reduction = {rule.reduction}: above 1; all but the best 1/reduction end")
    if not any(stage.val and stage.val_every > 0 for stage in base.stages):
        raise InputError(
            "stop_early needs scores while the trials train, and no stage validates before its end: set val_every to "
            f"a number of epochs above 0, e.g. stages.{base.stages[-1].name}.val_every=1"
        )


def check_search(study: Study, search: Search, base: Recipe) -> None:
    """A space that can be drawn from, one seed."""
    if search.trials < 1 or search.rounds < 1:
        raise InputError(f"search.trials = {search.trials}, search.rounds = {search.rounds}: each 1 or more")
    if not search.space:
        raise InputError("search.space is empty: e.g. {optim.lr: {log_uniform: [1.0e-4, 0.1]}}")
    for key, spec in search.space.items():
        check_range(f"search.space.{key}", spec)
    if len(study.seeds) != 1:
        raise InputError(
            f"a search tries each point with one seed, seeds = {list(study.seeds)}: give one, and make the best point "
            "and the baseline the variants of a study with several seeds"
        )
    if search.algorithm == "pbt":
        check_population(study, search, base)


def check_population(study: Study, search: Search, base: Recipe) -> None:
    """Members take over each other's weights in mid-training."""
    if study.stop_early:
        raise InputError("search.algorithm = pbt replaces the worst by itself: leave stop_early out")
    if search.trials < 2 or len(base.stages) != 1:
        raise InputError(
            f"search.algorithm = pbt with {search.trials} member(s) and {len(base.stages)} stage(s): it takes two "
            "members or more, and a recipe of one stage"
        )
    if wrong := [
        key for key in search.space if key.split(".")[0] not in ("optim", "loss", "view") or key == "view.crop"
    ]:
        raise InputError(
            f"search.space.{wrong[0]}: members of a population take over each other's weights, so only keys of optim, "
            "loss and view (but its crop) may differ; algorithm: optuna searches any key"
        )


def check_range(key: str, spec: Mapping[str, Any]) -> None:
    """`{choice: [...]}`, or two numbers, the lower first."""
    if len(spec) != 1 or next(iter(spec)) not in RANGES:
        raise InputError(f"{key} = {dict(spec)}: one of {', '.join(RANGES)}, e.g. {{choice: [1, 2]}}")
    kind, values = next(iter(spec.items()))
    if not isinstance(values, list) or not values:
        raise InputError(f"{key}.{kind} = {values!r}: give a list")
    if kind == "choice":
        return
    try:
        low, high = map(float, values)
    except (TypeError, ValueError):
        raise InputError(f"{key}.{kind} = {values!r}: give two numbers, [low, high]") from None
    if not low < high or (kind == "log_uniform" and low <= 0):
        raise InputError(f"{key}.{kind} = {values!r}: low < high" + (", both above 0" if kind == "log_uniform" else ""))


def ablated(study: Study) -> list[str]:
    """The keys that some variant sets, or that the search draws."""
    keys = [key for variant in study.variants.values() for key in variant.set]
    return list(dict.fromkeys([*keys, *(study.search.space if study.search else ())]))
