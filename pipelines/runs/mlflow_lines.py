"""Lines of a record as MLflow's metrics, pictures and tables."""

from __future__ import annotations

import json
import re
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.base import pictures
from pipelines.recipes.tasks import TASKS
from pipelines.runs.folder import StageFolder
from pipelines.runs.mlflow_client import Point, send_metrics, set_tags
from pipelines.runs.mlflow_faults import first_line
from pipelines.runs.results import About, f1_of, mean_of, percent, score_of

METRICS = {
    "train": {"loss": "train/loss", "lr": "train/lr", "epoch": "train/epoch", "images_per_s": "speed/images_per_s",
              "data_wait": "speed/data_wait_share", "save_wait": "speed/save_wait_share",
              "gpu_mib": "speed/gpu_peak_mib",
              "loss_scale": "train/loss_scale", "left_out": "train/steps_left_out"},
    "val": {"miou": "val/mIoU", "accuracy": "val/pixel_accuracy", "fwiou": "val/fwIoU"},
    "test": {"miou": "mIoU", "accuracy": "pixel_accuracy", "mean_accuracy": "mean_accuracy", "fwiou": "fwIoU",
             "mean_f1": "mF1", "miou_low": "mIoU_low", "miou_high": "mIoU_high"},
}  # fmt: skip
GPU = {
    "utilization": "utilization_percent",
    "memory_mib": "memory_mib",
    "power_w": "power_w",
    "peak_mib": "torch_peak_mib",
}  # of a worker's GPU, below gpu/RANK
KINDS = ("confusion", "iou", "iou_table")

CURVES = "curves.png"
CHAIN = {"train/loss": "chain/train_loss", "train/lr": "chain/lr"}
CHAIN |= {f"val/{task.metric}": f"chain/val_{task.metric}" for task in TASKS.values()}


def metric_names(names: Iterable[str]) -> list[str]:
    """Names as MLflow takes them in those of metrics, each its own: it refuses all but letters, digits, few signs.

    Two names that MLflow or its database would take for one (a comma and a semicolon, both replaced; upper and lower
    case in MySQL) get numbers.
    """
    plain = [plain_name(name) for name in names]
    folded = [name.casefold() for name in plain]
    taken = {name for name in folded if folded.count(name) == 1}
    pairs = enumerate(zip(plain, folded, strict=True))
    return [name if fold in taken else numbered(name, i, taken) for i, (name, fold) in pairs]


def plain_name(name: str) -> str:
    """A name with _ for each sign that a metric may not have; composed, since accents of their own are such signs."""
    composed = unicodedata.normalize("NFC", name)
    return re.sub(r"[^\w.\- ]", "_", composed).strip(". ")[:200] or "_"


def numbered(name: str, number: int, taken: set[str]) -> str:
    """The name with a number that nobody else has, `number` if possible; it is taken from now on."""
    while f"{name} {number}".casefold() in taken:
        number += 1
    taken.add(f"{name} {number}".casefold())
    return f"{name} {number}"


def send_lines(client: Any, run: str, place: StageFolder, lines: Sequence[Mapping[str, Any]]) -> None:
    """Metrics of a record's lines in batches, on what the workers compute, then pictures and tables of validations."""
    about = About.read(place.about)
    names = metric_names(about.classes)
    points = [Point(k, v, line["time"], line["step"]) for line in lines for k, v in values_of(line, names).items()]
    send_metrics(client, run, points)
    for line in lines:
        set_tags(client, run, line.get("computes", {}))
        if line["kind"] == "val":
            send_validation(client, run, place, line, about)
        if line["kind"] == "head":
            for picture in line["pictures"]:
                client.log_artifact(run, str(place.path / picture), str(Path(picture).parent))
        for name, scores in line.get("tests", {}).items():
            send_test(client, run, place, name, scores, about)


def send_chain_lines(client: Any, run: str, before: int, lines: Sequence[Mapping[str, Any]]) -> None:
    """The same lines on the chain's run, where all stages share one axis of steps.

    Args:
        before: steps of the stages before this one.
    """
    rest = [(line, {**line, "iou": []}) if "iou" in line else (line, line) for line in lines]
    points = [
        Point(CHAIN[k], v, line["time"], before + line["step"])
        for line, short in rest
        for k, v in values_of(short, []).items()
        if k in CHAIN
    ]
    send_metrics(client, run, points)


def values_of(line: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    """The metrics of a line of the record; scores in percent, of classes that are there.

    Args:
        names: of the classes, as `metric_names` gives them.
    """
    if line["kind"] == "test":
        return tested(line["tests"])
    if line["kind"] == "head":
        return dict(line["numbers"])
    values = {METRICS[line["kind"]][k]: v for k, v in line.items() if k in METRICS.get(line["kind"], {})}
    if line["kind"] == "system":
        values = {f"system/{k}": v for k, v in line["values"].items()}
    elif line["kind"] == "train":  # up to 0.3.5 a record has no terms
        values |= {f"train/loss/{term}": v for term, v in line.get("terms", {}).items()}
        values |= {f"gpu/{rank}/{GPU[k]}": v for rank, gpu in enumerate(line.get("gpus", ())) for k, v in gpu.items()}
    elif line["kind"] == "val":
        if "metric" in line:
            return task_values(line, names)
        f1 = f1_of(line["iou"])
        values |= {f"val/IoU/{name}": v for name, v in zip(names, line["iou"], strict=True)}
        values |= {f"val/F1/{name}": v for name, v in zip(names, f1, strict=True)} | {"val/mF1": mean_of(f1)}
        return {k: v * 100 for k, v in values.items() if v is not None}
    return {k: v for k, v in values.items() if v is not None}


def task_values(line: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    """The metrics of a validation of another task than segmentation, in percent: all its numbers, and of each class."""
    metric = score_of(line)
    values = {f"val/{metric}": line["miou"]} | {f"val/{name}": value for name, value in line["named"].items()}
    if line["iou"]:
        values |= {f"val/{metric}/{name}": v for name, v in zip(names, line["iou"], strict=True)}
    return {f"{k}": v * 100 for k, v in values.items() if v is not None}


def tested(tests: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The metrics of a stage's protocols, in percent: `test/PROTOCOL/mIoU` and its like, and those of measures."""
    found: dict[str, float | None] = {}
    for name, scores in tests.items():
        known = {METRICS["test"][key]: value for key, value in scores.items() if key in METRICS["test"]}
        found |= {f"test/{name}/{key}": value for key, value in {**known, **scores.get("measured", {})}.items()}
    return {key: value * 100 for key, value in found.items() if value is not None}


def send_test(client: Any, run: str, place: StageFolder, name: str, scores: Mapping[str, Any], about: About) -> None:
    """Confusion matrix, IoU bars, a table, and measures of one protocol; sent again they replace the first."""
    span = f" [{percent(scores['miou_low'])}, {percent(scores['miou_high'])}]" if "miou_low" in scores else ""
    title = (
        f"{place.path.name}, best weights: mIoU {percent(scores['miou'])} %{span}\n{scores['rows']} rows, {name}: "
        f"{scores['protocol']}"
    )
    counts = np.load(place.path / scores["counts"])
    names = [f"test/{name}/{kind}" for kind in KINDS]
    spans = [scores[key] for key in ("iou_low", "iou_high") if key in scores]
    send_scores(client, run, names, title, scores["iou"], counts, about, spans)
    for picture in scores.get("pictures", []):
        client.log_artifact(run, str(place.path / picture), f"test/{name}")
    if scores.get("measured"):
        pages = json.loads(place.measures(name).read_text())
        text = "\n\n".join("\n".join([title, *page["lines"]]) for page in pages.values())
        client.log_text(run, text, f"test/{name}/measures.txt")


def send_validation(client: Any, run: str, place: StageFolder, line: Mapping[str, Any], about: About) -> None:
    """Overlays, confusion matrix, bars and a table of one validation; sent again they replace the first."""
    step = f"step-{line['step']:08d}"
    title = (
        f"{place.path.name}, step {line['step']}: {score_of(line)} {percent(line['miou'])} %\n{line['rows']} rows, "
        f"{about.protocol}"
    )
    for picture in line["overlays"]:
        client.log_artifact(run, str(place.path / picture), f"overlays/{Path(picture).parent.name}")
    if "metric" in line:
        send_task_scores(client, run, step, title, line, place, about)
        return
    counts = np.load(place.path / line["counts"])
    send_scores(client, run, [f"{kind}/{step}" for kind in KINDS], title, line["iou"], counts, about)


def send_task_scores(
    client: Any, run: str, step: str, title: str, line: Mapping[str, Any], place: StageFolder, about: About
) -> None:
    """Bars of another task's score of each class, and the confusion of images where it counts these.

    Args:
        client: MLflow's.
        run: its id.
        step: of the validation, as the pictures' name.
        title: of the pictures.
        line: of the record.
        place: of the stage.
        about: of the stage.
    """
    counts = np.load(place.path / line["counts"]) if "counts" in line else None
    for name, draw in pictures.class_figures(score_of(line), line["iou"], about.classes, title, counts).items():
        send_figure(client, run, f"{name}/{step}.png", draw)


def send_scores(
    client: Any,
    run: str,
    names: Sequence[str],
    title: str,
    iou: Sequence[float | None],
    counts: np.ndarray,
    about: About,
    spans: Sequence[Sequence[float | None]] = (),
) -> None:
    """Confusion matrix, IoU bars and a table of the classes.

    Args:
        client: MLflow's.
        run: its id.
        names: of the three, without their endings.
        title: of the pictures.
        iou: of each class, a fraction.
        counts: confusion counts (K, K).
        about: of the stage.
        spans: low and high ends of the intervals of `iou`, where there are any.
    """
    confusion, bars, table = names
    shown, low, high = (
        [float("nan") if value is None else value for value in values] for values in (iou, *(spans or ((), ())))
    )
    send_figure(client, run, f"{confusion}.png", lambda: pictures.confusion_figure(counts, about.classes, title))
    send_figure(client, run, f"{bars}.png", lambda: pictures.iou_figure(shown, about.classes, title, low, high))
    there = {file.path for file in client.list_artifacts(run, table.rpartition("/")[0])}
    if f"{table}.json" not in there:  # it would be added to
        client.log_table(run, data=table_of(about.classes, iou, counts), artifact_file=f"{table}.json")


def send_figure(client: Any, run: str, name: str, draw: Callable[[], Any]) -> None:
    """A figure; one that cannot be drawn costs a line on the screen, not what comes after it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(name).name
        try:
            draw().savefig(path)
        except Exception as error:  # whatever matplotlib can raise
            print(f"warning: {name} cannot be drawn, MLflow does without: {first_line(error)}", file=sys.stderr)
            return
        client.log_artifact(run, str(path), name.rpartition("/")[0] or None)


def table_of(classes: Sequence[str], iou: Sequence[float | None], counts: np.ndarray) -> dict[str, list[Any]]:
    """Scores and pixels of each class, column by column."""

    def column(values: Sequence[float | None]) -> list[float | None]:
        return [None if v is None or v != v else round(v * 100, 2) for v in values]

    return {"class": list(classes), "IoU_percent": column(iou), "F1_percent": column(f1_of(iou)),
            "true_pixels": counts.sum(1).tolist(), "predicted_pixels": counts.sum(0).tolist()}  # fmt: skip
