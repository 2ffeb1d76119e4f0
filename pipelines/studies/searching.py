"""Which trial comes next: those of a list, or points of a space, each a pure function of what is known by then.

Tune asks one `Queue` (`searcher.py`). What it was told is in the trials' folders, as plain JSON, before a trial
starts: a study whose driver was killed reads them again, and draws what it would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from pipelines.base.errors import SetupError
from pipelines.base.files import write_json
from pipelines.runs.run import keep_recipe
from pipelines.studies.study import Search, StudyPlan
from pipelines.studies.trial import TrialContext, TrialEnd, ended

Space = Mapping[str, Mapping[str, Any]]
History = Sequence[tuple[Mapping[str, Any], float]]


class Source(Protocol):
    """Names trials one after the other."""

    def next(self) -> str | None:
        """The next trial, its folder written; None while it depends on others that still run."""

    def left(self) -> int:
        """How many it will still name."""


class Listed:
    """Trials known beforehand."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)

    def next(self) -> str | None:
        return self.names.pop(0)

    def left(self) -> int:
        return len(self.names)


class Searched:
    """The points of a search: those under way when the driver was killed first, then new ones."""

    def __init__(self, plan: StudyPlan, search: Search, place: TrialContext) -> None:
        self.plan, self.search, self.place = plan, search, place
        self.seed = plan.study.seeds[0]
        self.names = [f"trial{index:03d}" for index in range(search.trials)]
        self.waiting = [name for name in self.names if self.known(name) and self.end(name) is None]
        self.fresh = [index for index, name in enumerate(self.names) if not self.known(name)]

    def known(self, name: str) -> bool:
        return self.place.files(name).point.exists()

    def end(self, name: str) -> TrialEnd | None:
        return ended(self.plan.recipe(name, self.place.point(name), self.seed), self.place.trial(name))

    def left(self) -> int:
        return len(self.waiting) + len(self.fresh)

    def next(self) -> str | None:
        if self.waiting:
            return self.waiting.pop(0)
        index = self.fresh.pop(0)
        ends = {name: self.end(name) for name in self.names if self.known(name)}
        history = [(self.place.point(name), end.miou) for name, end in ends.items() if end and end.miou is not None]
        point = PROPOSALS[self.search.algorithm](self.search.space, self.seed, index, history)
        write_trial(self.plan, self.place, self.names[index], point, self.seed)
        return self.names[index]


def write_trial(plan: StudyPlan, place: TrialContext, name: str, point: Mapping[str, Any], seed: int) -> None:
    """The folder of a trial at a point of the space; the point last, as it makes the trial known."""
    files = place.files(name)
    files.recipe.unlink(missing_ok=True)  # of a driver killed before it wrote the point
    keep_recipe(plan.recipe(name, point, seed), files.path)
    write_json(files.point, point)


def draw(space: Space, seed: int, index: int, history: History) -> dict[str, Any]:
    """Trial `index` of a random search."""
    generator = np.random.default_rng([seed, index])
    return {key: value_at(spec, float(generator.uniform())) for key, spec in space.items()}


def value_at(spec: Mapping[str, Any], share: float) -> Any:
    """The value of a range at a share of it, 0 to 1."""
    kind, values = next(iter(spec.items()))
    if kind == "choice":
        return values[min(int(share * len(values)), len(values) - 1)]
    low, high = map(float, values)
    if kind == "log_uniform":
        return float(low * (high / low) ** share)
    return min(int(low + share * (high - low + 1)), int(high)) if kind == "integer" else low + share * (high - low)


def tpe(space: Space, seed: int, index: int, history: History) -> dict[str, Any]:
    """Trial `index` of Optuna's tree-structured Parzen estimator, told all that ended before.

    Raises:
        SetupError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise SetupError(
            "search.algorithm = optuna needs the package: `uv pip install optuna`; algorithm: random needs nothing"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ranges = {key: distribution(optuna.distributions, spec) for key, spec in space.items()}
    state = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=state))
    for point, score in history:
        told = {key: place_of(space[key], value) for key, value in point.items()}
        study.add_trial(optuna.trial.create_trial(params=told, distributions=ranges, value=score))
    asked = study.ask(ranges).params
    return {key: space[key]["choice"][value] if "choice" in space[key] else value for key, value in asked.items()}


def distribution(kinds: Any, spec: Mapping[str, Any]) -> Any:
    """A range as Optuna's; choices by their place in the list, as lists and mappings are choices too."""
    kind, values = next(iter(spec.items()))
    if kind == "choice":
        return kinds.CategoricalDistribution(range(len(values)))
    if kind == "integer":
        return kinds.IntDistribution(*map(int, values))
    return kinds.FloatDistribution(*map(float, values), log=kind == "log_uniform")


def place_of(spec: Mapping[str, Any], value: Any) -> Any:
    """A value as Optuna knows it."""
    return spec["choice"].index(value) if "choice" in spec else value


PROPOSALS: dict[str, Callable[[Space, int, int, History], dict[str, Any]]] = {"random": draw, "optuna": tpe}
