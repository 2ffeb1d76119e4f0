"""What this project measured of the papers' rows: read from MLflow, each number with its protocol.

A number is set next to a published row only if it is of that row's model, on that row's benchmark, and on all rows of
the split. What is left out is named with the reason.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.published.results import COMPARED, ResultTable, results_table
from pipelines.recipes.bundled import names_in
from pipelines.recipes.reading import RECIPES, load_recipe
from pipelines.recipes.recipe import LATER, flatten, to_page
from pipelines.runs.folder import StudyFolder
from pipelines.runs.mlflow_client import PARENT
from pipelines.runs.mlflow_reading import all_runs, text_of

SCORES = {"val/pixel_accuracy": "pixel accuracy"} | {f"val/{name}": name for name in COMPARED}
TESTS = re.compile(r"test/(?P<protocol>.+)/(?P<score>mIoU|pixel_accuracy)")
ONE_SCALE = ("single", "single-flip", "whole", "slide")  # protocols by name; the papers' own are of several scales
MODEL = ("backbone.", "head.")  # keys that make the model of a page
TRAINING = ("batch", "aux", "loss", "optim.", "view.", "stages.")  # and its training
WEIGHTS, PLACES = "backbone.weights", (".val", ".val_every")  # of them what only says where or when
UNSET = "None"
BEFORE = {f"optim.{key}": str(value) for key, value in LATER.items()}  # of runs up to 0.6
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """A score of a run, in percent.

    Attributes:
        table: the published table's id.
        row: its row, by all columns; None for a number that is set next to none.
        quantity: of `QUANTITIES`.
        protocol: how it was measured, in words.
        split: `BENCHMARK/SPLIT`.
        rows: of the split.
        seed: of the training.
        run: its name.
        id: of the run.
        changes: what the training has otherwise than the page, in words.
        why: what keeps it from a row.
    """

    table: str
    row: Row | None
    quantity: str
    value: float
    protocol: str
    split: str
    rows: str
    seed: str
    run: str
    id: str
    changes: str = ""
    why: str = ""

    @property
    def scales(self) -> str:
        """`single` or `multi`: at how many scales images were seen."""
        if found := re.search(r"scales ([\d. ]+)", self.protocol):
            return "single" if len(found[1].split()) == 1 else "multi"
        return "single" if self.protocol.removeprefix("protocol ") in ONE_SCALE else "multi"


@dataclass(frozen=True)
class Source:
    """A finished stage in MLflow, with the run that has its recipe and the study that it is a trial of, if any."""

    stage: Any
    recipe: Any
    study: Any

    @property
    def params(self) -> dict[str, str]:
        """Of recipe and stage."""
        return {**self.recipe.data.params, **self.stage.data.params}

    @property
    def variant(self) -> str | None:
        """Of the study."""
        return self.recipe.data.tags.get("variant")


def measured_of(client: Any) -> list[Measured]:
    """All scores of finished stages whose recipe or study names a published table; of a chain the last stage's."""
    runs = {run.info.run_id: run for run in all_runs(client)}
    sources = [source for run in runs.values() if (source := source_of(run, runs)) is not None]
    sources.sort(key=lambda source: source.stage.info.start_time)
    pages = functools.cache(lambda study: yaml.safe_load(text_of(client, study, StudyFolder(Path()).page.name) or "{}"))
    found = [score for source in sources for score in scores_of(source, target_of(source, pages))]
    latest = {(score.id, score.table, score.quantity, score.protocol, score.split): score for score in found}
    return list(latest.values())


def source_of(run: Any, runs: Mapping[str, Any]) -> Source | None:
    """A run as a stage that has ended and was scored; None for any other."""
    params = run.data.params
    if "stage.name" not in params or params.get("stage.val") in (None, "None") or run.info.status != "FINISHED":
        return None
    recipe = run if "head.name" in params else runs.get(run.data.tags.get(PARENT, ""))
    if recipe is None:
        return None
    return Source(run, recipe, runs.get(recipe.data.tags.get(PARENT, "")))


@dataclass(frozen=True)
class Target:
    """The table that a run is to meet, the rows that its model is, and how its training differs from the page's."""

    table: ResultTable
    rows: Sequence[Row]
    changes: str = ""
    why: str = ""


def target_of(source: Source, pages: Any) -> Target | None:
    """What a trial's study or else its recipe names; None where this is nothing, or no table that is known.

    Args:
        pages: study's run id -> its page.
    """
    if source.variant is not None:
        page = pages(source.study.info.run_id) if source.study is not None else {}
        row = (page.get("variants", {}).get(source.variant) or {}).get("published")
        if not page.get("published") or row is None:
            return None
        try:
            table = results_table(page["published"]["table"])
            return Target(table, [table.row(row)])
        except ValueError:  # of a study of one's own, or of another version's tables
            return None
    name = source.params.get("published", "None")
    if name == "None":
        return None
    try:
        table = results_table(name)
    except ValueError:
        return None
    return target_of_page(table, source.params)


def target_of_page(table: ResultTable, params: Mapping[str, str]) -> Target:
    """The rows of the page whose model a run has; of several, of that whose training is nearest to the run's."""
    found = {page: differing(params, page_params(page)) for page in table.models}
    fits = [page for page, other in found.items() if not any(key.startswith(MODEL) for key in other)]
    if not fits:
        pages = ", ".join(table.models) or "none"
        return Target(table, [], why=f"its model is that of no page of the table ({pages})")
    page = min(fits, key=lambda page: len(found[page]))
    changes = ", ".join(f"{key}={params.get(key, 'unset')}" for key in found[page])
    return Target(table, [table.row(row) for row in table.models[page]], changes)


def differing(params: Mapping[str, str], page: Mapping[str, str]) -> list[str]:
    """Keys of model and training that a run has otherwise than a page, also those that only one of them has."""
    params = BEFORE | {**params}
    keys = [key for key in {**page, **params} if key.startswith((*MODEL, *TRAINING)) and not key.startswith(WEIGHTS)]
    return [key for key in keys if not key.endswith(PLACES) and params.get(key, UNSET) != page.get(key, UNSET)]


@functools.cache
def page_params(page: str) -> dict[str, str]:
    """A bundled recipe as MLflow has it."""
    if page not in names_in(RECIPES):
        raise ValueError(f"published pages name the recipe {page!r}, which is not bundled")
    return {key: str(value) for key, value in flatten(to_page(load_recipe(page))).items()}


def scores_of(source: Source, target: Target | None) -> Iterator[Measured]:
    """The scores of a stage, each with the row of the target that it belongs to."""
    if target is None:
        return
    params, metrics = source.params, source.stage.data.metrics
    split = "/".join(Path(params["stage.val"]).parts[-2:])
    kept = {
        "table": target.table.id, "split": split, "rows": params.get("shards.val.rows", "?"),
        "seed": params.get("seed", "0"), "run": source.recipe.info.run_name, "id": source.recipe.info.run_id,
        "changes": target.changes,
    }  # fmt: skip
    why = target.why or wrong_rows(target, params, split)
    for key, value in metrics.items():
        test = TESTS.fullmatch(key)
        if key in SCORES:
            quantity, protocol = SCORES[key], params.get("protocol", "")
        elif test:
            quantity, protocol = SCORES[f"val/{test['score']}"], words_of(test["protocol"], params)
        else:
            continue
        if not protocol:
            yield Measured(row=None, quantity=quantity, value=value, protocol="not recorded", **kept,
                           why=why or "a run of 0.4.0 or before does not record its protocol")  # fmt: skip
            continue
        score = Measured(row=None, quantity=quantity, value=value, protocol=protocol, why=why, **kept)
        yield placed(score, target)


def words_of(name: str, params: Mapping[str, str]) -> str:
    """A named protocol in words; the one that is as the recipe's `inference` has it with that one's scales."""
    if name != "recipe":
        return f"protocol {name}"
    scales = " ".join(re.findall(r"[\d.]+", params.get("inference.scales", "1.0")))
    return f"protocol recipe, scales {scales}, {'flip' if params.get('inference.flip') == 'True' else 'no flip'}"


def wrong_rows(target: Target, params: Mapping[str, str], split: str) -> str:
    """Why a split is not the table's; empty where it is."""
    table, (benchmark, _, name) = target.table, split.partition("/")
    known = [row.get("dataset") for row in target.rows if row.get("dataset")] or (table.benchmark or "").split(", ")
    here, official = params.get("shards.val.rows"), params.get("shards.val.official_rows", "None")
    counted = re.search(r"\((\d+)\)", table.split or "")
    names = re.split(r"[/ ]", (table.split or "").partition("(")[0].strip())
    if benchmark not in known or not (name in names or (counted and counted[1] == official)):
        return f"scored on {split}, the table is of {table.benchmark} {table.split}"
    if params.get("data", "") == "sample:":
        return "scored on the bundled sample"
    return f"scored on {here} of {official} rows" if official not in ("None", here) else ""


def placed(score: Measured, target: Target) -> Measured:
    """The score with its row: of rows that differ by the number of scales, the one that fits."""
    if score.why or not target.table.columns_of(score.quantity):
        return score
    column = target.table.columns_of(score.quantity)[0]
    fits = [row for row in target.rows if target.table.scales(row, column) in ("", score.scales)]
    row = fits[0] if fits else target.rows[0]
    return Measured(**{**vars(score), "row": row})
