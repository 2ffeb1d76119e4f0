"""Population-based training (Jaderberg et al., arXiv:1711.09846), its rounds in step so that it is reproducible.

Each member trains a part of the steps per round, as a trial of its own folder. When all have ended a round, the worst
quarter goes on from the weights and near the point of a member of the best quarter, the others from their own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.base.files import write_json
from pipelines.runs.folder import StageFolder
from pipelines.runs.results import Result
from pipelines.runs.run import keep_recipe
from pipelines.studies.searching import draw
from pipelines.studies.study import Search, StudyPlan
from pipelines.studies.trial import Part, TrialContext, TrialEnd, ended

QUARTER = 0.25
FACTORS = (0.8, 1.2)
REDRAW = 0.25  # how often a value is drawn again instead of moved


class Population:
    """Member by member, round by round; a round's trials are named once the one before it has ended."""

    def __init__(self, plan: StudyPlan, search: Search, place: TrialContext) -> None:
        self.plan, self.search, self.place, self.seed = plan, search, place, plan.study.seeds[0]
        self.stage = plan.recipe("member", {}, self.seed).stages[0].name
        self.names = [name_of(member, turn) for turn in range(search.rounds) for member in range(search.trials)]
        self.todo = [name for name in self.names if not (self.known(name) and self.end(name))]

    def known(self, name: str) -> bool:
        """Whether the trial's folder is written."""
        return self.place.files(name).point.exists()

    def end(self, name: str) -> TrialEnd | None:
        """How a trial ended."""
        return ended(self.plan.recipe(name, self.place.point(name), self.seed), self.place.trial(name))

    def left(self) -> int:
        return len(self.todo)

    def next(self) -> str | None:
        name = self.todo[0]
        member, turn = place_in(name)
        if turn:
            before = [name_of(other, turn - 1) for other in range(self.search.trials)]
            ends = [self.end(other) if self.known(other) else None for other in before]
            if None in ends:
                return None
            if all(end and end.status == "failed" for end in ends):
                self.todo.clear()  # nobody has weights to go on from
                return None
        if not self.known(name):
            self.write(name, member, turn)
        return self.todo.pop(0)

    def write(self, name: str, member: int, turn: int) -> None:
        """The folder of a member's next part, with the checkpoint that it goes on from; the point last."""
        files, origin = self.place.files(name), None
        point = draw(self.search.space, self.seed, member, [])
        if turn:
            origin, moves = self.origin(member, turn)
            point = self.place.point(origin)
            point = self.near(point, member, turn) if moves else point
            self.take_over(self.place.files(origin).stage(self.stage), files.stage(self.stage))
        files.recipe.unlink(missing_ok=True)
        keep_recipe(self.plan.recipe(name, point, self.seed), files.path)
        Part((turn + 1) / self.search.rounds, origin).write(files.part)
        write_json(files.point, point)

    def origin(self, member: int, turn: int) -> tuple[str, bool]:
        """Whose weights a member goes on from, and whether its point moves; one that failed takes over too."""
        names = [name_of(other, turn - 1) for other in range(self.search.trials)]
        scores = {name: end.miou if (end := self.end(name)) else None for name in names}
        ranked = sorted((n for n in names if scores[n] is not None), key=lambda n: (-float(scores[n] or 0), n))
        if not ranked:
            return names[member], False
        number = max(1, int(len(names) * QUARTER))
        best, worst = ranked[:number], [*ranked[max(number, len(names) - number) :], *(set(names) - set(ranked))]
        if names[member] not in worst:
            return names[member], False
        return best[int(self.generator(member, turn).integers(len(best)))], True

    def generator(self, member: int, turn: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, member, turn])

    def near(self, point: Mapping[str, Any], member: int, turn: int) -> dict[str, Any]:
        """A point near another: numbers times 0.8 or 1.2 within their range, now and then a value drawn again."""
        generator = self.generator(member, turn)
        generator.integers(2)
        fresh = draw(self.search.space, self.seed, self.search.trials * (turn + 1) + member, [])
        moved = {}
        for key, spec in self.search.space.items():
            kind, values = next(iter(spec.items()))
            again, factor = generator.uniform() < REDRAW, FACTORS[int(generator.integers(2))]
            if again or kind == "choice":
                moved[key] = fresh[key] if again else point[key]
            else:
                low, high = map(float, values)
                value = min(max(float(point[key]) * factor, low), high)
                moved[key] = round(value) if kind == "integer" else value
        return moved

    def take_over(self, source: StageFolder, target: StageFolder) -> None:
        """Link the last checkpoint and the best weights of a part, so that the next goes on from them."""
        target.checkpoints.mkdir(parents=True, exist_ok=True)
        last = Result.read(source.result).steps
        for old, new in ((source.checkpoint(last), target.checkpoint(last)), (source.best, target.best)):
            new.unlink(missing_ok=True)
            os.link(old, new)


def name_of(member: int, turn: int) -> str:
    return f"member{member:02d}-round{turn}"


def place_in(name: str) -> tuple[int, int]:
    """Member and round of a name."""
    member, turn = name.removeprefix("member").split("-round")
    return int(member), int(turn)
