"""Lines of a record as MLflow's metrics, pictures and tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.base import pictures
from pipelines.runs.folder import StageFolder
from pipelines.runs.mlflow_client import Point, send_metrics
from pipelines.runs.results import About

METRICS = {
    "train": {"loss": "train/loss", "lr": "train/lr", "epoch": "train/epoch", "images_per_s": "speed/images_per_s",
              "data_wait": "speed/data_wait_share", "gpu_mib": "speed/gpu_peak_mib"},
    "val": {"miou": "val/mIoU", "accuracy": "val/pixel_accuracy", "fwiou": "val/fwIoU"},
}  # fmt: skip


def metric_names(classes: Sequence[str]) -> list[str]:
    """Names of the classes' IoU as MLflow takes them: it refuses all but letters, digits and a few signs."""
    plain = [re.sub(r"[^\w.\- ]", "_", name).strip(".")[:200] or "_" for name in classes]
    return [f"{name} {i}" if plain.count(name) > 1 else name for i, name in enumerate(plain)]


def send_lines(client: Any, run: str, place: StageFolder, lines: Sequence[Mapping[str, Any]]) -> None:
    """Metrics of a record's lines in batches, then pictures and tables of each validation."""
    about = About.read(place.about)
    names = metric_names(about.classes)
    points = [Point(k, v, line["time"], line["step"]) for line in lines for k, v in values_of(line, names).items()]
    send_metrics(client, run, points)
    for line in lines:
        if line["kind"] == "val":
            send_validation(client, run, place, line, about)


def values_of(line: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    """The metrics of a line of the record; scores in percent, of classes that are there.

    Args:
        names: of the classes, as `metric_names` gives them.
    """
    values = {METRICS[line["kind"]][k]: v for k, v in line.items() if k in METRICS.get(line["kind"], {})}
    if line["kind"] == "system":
        values = {f"system/{k}": v for k, v in line["values"].items()}
    elif line["kind"] == "train":  # up to 0.3.5 a record has no terms
        values |= {f"train/loss/{term}": v for term, v in line.get("terms", {}).items()}
    elif line["kind"] == "val":
        values |= {f"val/IoU/{name}": v for name, v in zip(names, line["iou"], strict=True)}
        return {k: v * 100 for k, v in values.items() if v is not None}
    return {k: v for k, v in values.items() if v is not None}


def send_validation(client: Any, run: str, place: StageFolder, line: Mapping[str, Any], about: About) -> None:
    """Overlays, confusion matrix and IoU bars of one validation; sent again they take the place of the first."""
    classes, step = about.classes, f"step-{line['step']:08d}"
    how = f"{line['rows']} rows, {about.protocol}"
    title = f"{place.path.name}, step {line['step']}: mIoU {line['miou'] * 100:.2f} %\n{how}"
    for picture in line["overlays"]:
        client.log_artifact(run, str(place.path / picture), f"overlays/{Path(picture).parent.name}")
    counts = np.load(place.path / line["counts"])
    client.log_figure(run, pictures.confusion_figure(counts, classes, title), f"confusion/{step}.png")
    client.log_figure(run, pictures.iou_figure(line["iou"], classes, title), f"iou/{step}.png")
    percent = [None if v is None or v != v else round(v * 100, 2) for v in line["iou"]]
    table = {"class": list(classes), "IoU_percent": percent, "true_pixels": counts.sum(1).tolist(),
             "predicted_pixels": counts.sum(0).tolist()}  # fmt: skip
    name = f"iou_table/{step}.json"
    if name not in {file.path for file in client.list_artifacts(run, "iou_table")}:  # it would be added to
        client.log_table(run, data=table, artifact_file=name)
