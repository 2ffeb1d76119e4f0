"""All that is said of a split's counts under one protocol: scores, how sure they are, and what was measured besides."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.base.files import replacing
from pipelines.scoring.bootstrap import Certainty, certainty
from pipelines.scoring.calibration import Calibration, reliability_figure
from pipelines.scoring.counting import ImageCounts
from pipelines.scoring.measures import Reading, read_measures
from segmodels.metrics import Scores, scores


@dataclass(frozen=True)
class Judged:
    """A protocol's scores, their intervals, and what its measures say, by name."""

    scores: Scores
    sure: Certainty
    readings: Mapping[str, Reading]

    @classmethod
    def of(cls, counts: ImageCounts, rows: int, classes: Sequence[str]) -> Judged:
        """From the counts of a split's images; `rows` is their number, `classes` are the names."""
        readings = read_measures(counts.measures, counts.sums, classes)
        return cls(scores(counts.total()), certainty(counts.by_class(rows)), readings)

    def numbers(self) -> dict[str, Any]:
        """Scores, intervals (`…_low`, `…_high`), images that hold each class, and what was measured, as JSON."""
        miou, (low, high) = self.sure.miou, self.spans()
        return dataclasses.asdict(self.scores) | {
            "miou_low": miou.low, "miou_high": miou.high, "iou_low": low, "iou_high": high, "images": self.sure.images,
            "measured": {name: value for each in self.readings.values() for name, value in each.metrics.items()},
        }  # fmt: skip

    def spans(self) -> tuple[list[float], list[float]]:
        """Low and high ends of the classes' intervals; nan for an absent class."""
        return [each.low for each in self.sure.iou], [each.high for each in self.sure.iou]

    def pages(self) -> dict[str, Any]:
        """What each measure says in full, as JSON; `lines` are its table for people."""
        return {name: {**each.page, "lines": list(each.lines)} for name, each in self.readings.items()}

    def draw(self, folder: Path, ending: str, title: str) -> Iterator[Path]:
        """Write the pictures of its measures: calibrationENDING.png; yields the files."""
        if "calibration" in self.readings:
            path = folder / f"calibration{ending}.png"
            figure = reliability_figure(Calibration(**self.readings["calibration"].page), title)
            with replacing(path) as temporary:
                figure.savefig(temporary, dpi=110)
            yield path
