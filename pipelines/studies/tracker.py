"""Sends the trials' records of a study to MLflow while they grow."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from pipelines.base.files import to_json
from pipelines.recipes.recipe import Recipe, flatten
from pipelines.runs.mlflow_client import default_uri
from pipelines.runs.provenance import note_origin
from pipelines.runs.subject import subject
from pipelines.studies.study import StudyPlan
from pipelines.studies.study_run import StudyRun
from pipelines.studies.trial import TrialContext


class StudyTracker(StudyRun):
    """The MLflow runs of a study that is about to run; see `StudyRun`."""

    def __init__(self, plan: StudyPlan, base: Recipe, place: TrialContext) -> None:
        """Args:
        plan: the study.
        base: the recipe of all trials.
        place: where they are.

        Raises:
            SetupError: MLflow can never be at the address.
        """
        tags = subject(base) | {"study": plan.name}
        params = {"seeds": list(plan.study.seeds), "recipe": plan.study.recipe} | fixed(base)
        about = {
            "name": plan.name,
            "title": plan.study.title,
            "experiment": base.experiment,
            "tags": tags,
            "params": params,
        }
        note_origin(place.study.origin)
        super().__init__(place.study, place.output, base.tracking or default_uri(place.output), about)


def fixed(base: Recipe) -> dict[str, Any]:
    """The base recipe's keys, as parameters of the study."""
    page = {k: v for k, v in dataclasses.asdict(base).items() if k not in ("seed", "name")}
    return flatten(json.loads(to_json(page)), "base")
