"""What the trials of a study score besides the metric that is compared: of segmentation pixel accuracy, protocols and
IoU of each class; of other tasks the further scores that papers print, and the metric of each class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.recipes.tasks import beside
from pipelines.runs.results import Result, score_of_class
from pipelines.scoring.intervals import DONE, Interval, t_interval

VALIDATION = "validation"  # stands for the protocol by which stages validate, whose words the table has anyway
KINDS = {"mIoU": "miou", "pixel accuracy": "accuracy"}  # of segmentation, under each protocol
LOGGED = {"pixel accuracy": "pixel_accuracy"}  # what MLflow has under another name
Cells = Mapping[str, Interval]  # by variant


@dataclass(frozen=True)
class Score:
    """A column: what is scored, under which protocol, and the mean of each variant that has one, as fractions."""

    protocol: str
    kind: str
    cells: Cells

    @property
    def heading(self) -> str:
        """Its name over the column."""
        return self.kind if self.protocol == VALIDATION else f"{self.protocol} {self.kind}"

    @property
    def metric(self) -> str:
        """Its name in MLflow, before that of a variant."""
        place = "val" if self.protocol == VALIDATION else f"test/{self.protocol}"
        return f"{place}/{LOGGED.get(self.kind, self.kind)}"


@dataclass(frozen=True)
class Further:
    """All that a study's table shows besides the compared metric.

    Attributes:
        scores: columns.
        classes: protocol -> class -> the IoU, or what else the metric is, of each variant.
        words: protocol -> how it predicts, one for each of several where variants differ.
        printed: variant -> published IoU of each class in percent, in the order of the classes.
        of_class: what is scored of each class.
    """

    scores: tuple[Score, ...] = ()
    classes: Mapping[str, Mapping[str, Cells]] | None = None
    words: Mapping[str, str] | None = None
    printed: Mapping[str, Sequence[float]] | None = None
    of_class: str = "IoU"


def scores_of(result: Result) -> dict[str, Any]:
    """A trial's part: `tests`, by protocol, each with `scores` by kind, `iou` by class, and its words, `protocol`."""
    own = {"miou": result.miou, "accuracy": result.accuracy, "iou": result.iou, "protocol": result.protocol}
    found: dict[str, Mapping[str, Any]] = {VALIDATION: own, **result.tests}
    return {
        name: {
            "scores": scores_by_kind(result, test),
            "iou": dict(zip(result.classes, test["iou"], strict=True)) if test["iou"] else {},
            "protocol": test["protocol"],
        }
        for name, test in found.items()
    }


def scores_by_kind(result: Result, test: Mapping[str, Any]) -> dict[str, float | None]:
    """Kind -> score, of segmentation under a protocol, of other tasks as a stage validated."""
    if result.metric == Result.metric:
        return {kind: test[key] for kind, key in KINDS.items()}
    return {kind: result.named.get(kind) for kind in (result.metric, *beside(result.metric))}


def further(rows: Sequence[Mapping[str, Any]], confidence: float = 0.95, metric: str = Result.metric) -> Further:
    """The further scores of the trials that are done, over their seeds.

    Args:
        rows: one trial each; `tests` as `scores_of` gives them.
        confidence: of the intervals.
        metric: what is compared.
    """
    done = [row for row in rows if row["status"] == DONE and row.get("tests")]
    names = list(dict.fromkeys(name for row in done for name in row["tests"]))
    words: dict[str, str] = {}
    for name in names:
        said = {row["tests"][name]["protocol"]: None for row in done if name in row["tests"]}
        words[name] = "; or ".join(said)
    classes = {name: per_class([row for row in done if name in row["tests"]], name, confidence) for name in names}
    return Further(
        tuple(columns(done, names, confidence, metric)),
        {name: found for name, found in classes.items() if found},
        {name: said for name, said in words.items() if name != VALIDATION},
        of_class=score_of_class(metric),
    )


def columns(done: Sequence[Mapping[str, Any]], names: Sequence[str], confidence: float, metric: str) -> Iterator[Score]:
    """The scores of each protocol, of the validation without the compared one."""
    for name in names:
        tested = [(row["variant"], row["tests"][name]["scores"]) for row in done if name in row["tests"]]
        for kind in dict.fromkeys(kind for _, scores in tested for kind in scores):
            values = [(variant, scores.get(kind)) for variant, scores in tested]
            if (name, kind) != (VALIDATION, metric) and (cells := over_seeds(values, confidence)):
                yield Score(name, kind, cells)


def per_class(done: Sequence[Mapping[str, Any]], name: str, confidence: float) -> dict[str, Cells]:
    """IoU of each class under a protocol, or what else the metric is."""
    classes = dict.fromkeys(label for row in done for label in row["tests"][name]["iou"])
    found = {
        label: over_seeds([(row["variant"], row["tests"][name]["iou"].get(label)) for row in done], confidence)
        for label in classes
    }
    return {label: cells for label, cells in found.items() if cells}


def over_seeds(values: Sequence[tuple[str, float | None]], confidence: float) -> dict[str, Interval]:
    """The mean of each variant over its seeds; a value that is missing counts for nothing."""
    found: dict[str, list[float]] = {}
    for variant, value in values:
        if value is not None and value == value:
            found.setdefault(variant, []).append(value)
    return {variant: t_interval(each, confidence) for variant, each in found.items()}


def short(mean: Interval | None) -> str:
    """Percent without the number of seeds, which stands next to the compared score: "43.21 ± 1.10"."""
    if mean is None:
        return "-"
    half = "" if mean.half is None else f" ± {mean.half * 100:.2f}"
    return f"{mean.mean * 100:.2f}{half}"
