"""A study's further scores by hand: protocols of the same training, pixel accuracy, IoU of each class."""

import dataclasses
import json

import pytest

from pipelines.base.files import to_json
from pipelines.runs.results import Result
from pipelines.studies.files import published_of
from pipelines.studies.scores import further, scores_of
from pipelines.studies.study import load_study
from pipelines.studies.table import build, cells, html, markdown, metrics_of, numbers, text


def result(miou, multi, classes=("sky", "cow"), accuracy=0.9):
    tests = {
        "single": {"protocol": "whole, scales 1.0, no flip", "miou": miou, "accuracy": accuracy, "iou": [miou, None]},
        "ms": {"protocol": "whole, scales 0.5 1.0, flip", "miou": multi, "accuracy": accuracy, "iou": [multi, 0.5]},
    }
    return Result(
        stage="s", rows=1, steps=1, val_rows=4, miou_before=0.0, miou=miou, best=miou, best_step=1, images_per_s=1.0,
        checkpoint="", best_checkpoint="", protocol="whole", time=0, classes=classes, iou=[miou, None],
        accuracy=accuracy, tests=tests,
    )  # fmt: skip


def row(variant, seed, miou, multi, **more):
    tests = scores_of(result(miou, multi, **more))
    return {"variant": variant, "seed": seed, "status": "done", "miou": miou, "tests": tests}


ROWS = [row("a", 0, 0.40, 0.44), row("a", 1, 0.42, 0.46), row("b", 0, 0.50, 0.55), row("b", 1, 0.50, 0.55)]
TABLE = build("Heads", {"a": {}, "b": {}, "c": {}}, ROWS, "whole", baseline="a")


def test_single_and_multi_scale_of_one_training_stand_side_by_side():
    shown = {line["variant"]: line for line in cells(TABLE)}
    # a: 0.40, 0.42: mean 0.41, s = 0.01414, half = 12.706 · 0.01414 / √2 = 0.1271
    assert shown["a"]["measured"] == "41.00 ± 12.71 (2 seeds)"
    assert shown["a"]["single mIoU"] == "41.00 ± 12.71"
    assert shown["a"]["ms mIoU"] == "45.00 ± 12.71"
    assert shown["b"]["ms mIoU"] == "55.00 ± 0.00"
    assert shown["b"]["pixel accuracy"] == shown["b"]["ms pixel accuracy"] == "90.00 ± 0.00"
    assert shown["c"]["ms mIoU"] == shown["c"]["pixel accuracy"] == "-"
    assert "ms: whole, scales 0.5 1.0, flip." in " ".join(text(TABLE).split())


def test_iou_of_each_class_over_the_variants():
    lines = text(TABLE).splitlines()
    place = lines.index("IoU of each class, percent, ms")
    assert [line.split() for line in lines[place + 1 : place + 4]] == [
        ["class", "a", "b", "c"],
        ["sky", "45.00", "±", "12.71", "55.00", "±", "0.00", "-"],
        ["cow", "50.00", "±", "0.00", "50.00", "±", "0.00", "-"],
    ]
    single = lines.index("IoU of each class, percent, single")
    assert not any(line.startswith("cow") for line in lines[single:place])  # absent from all of them
    assert "| sky | 45.00 ± 12.71 | 55.00 ± 0.00 | - |" in markdown(TABLE)
    assert '<td class="text">cow</td><td class="measured">50.00 ± 0.00</td>' in html(TABLE)


def test_the_printed_iou_of_each_class_stands_behind_the_measured():
    table = build(
        "Heads", {"a": {}, "b": {}}, ROWS, "whole", baseline="a", published_classes={"b": (51.5, 20), "a": (1.0, 2, 3)}
    )
    lines = text(table).splitlines()
    place = lines.index("IoU of each class, percent, ms")
    assert lines[place + 1].split() == ["class", "a", "b", "b", "published"]  # a has another number of classes
    assert lines[place + 3].split()[-1] == "20"
    assert "| sky | 45.00 ± 12.71 | 55.00 ± 0.00 | 51.5 |" in markdown(table)
    assert '<td class="published">51.5</td></tr>' in html(table)
    numbers_ = published_of(load_study("srnet/per_class"))
    assert numbers_.classes["sr"][15] == 89.6  # bus
    assert len(numbers_.classes["fcn"]) == 19


def test_many_classes_do_not_flood_the_terminal():
    names = tuple(f"class {i}" for i in range(60))
    rows = [row("a", 0, 0.4, 0.5, classes=("x", "y"))]
    rows[0]["tests"]["ms"]["iou"] = dict.fromkeys(names, 0.5)
    table = build("Heads", {"a": {}}, rows, "whole")
    assert "60 classes, in the Markdown and HTML tables" in text(table)
    assert "class 59" not in text(table)
    assert "class 59" in markdown(table)


def test_numbers_and_metrics_are_those_of_the_table():
    page = json.loads(to_json(numbers(TABLE)))
    assert page["protocols"] == {"single": "whole, scales 1.0, no flip", "ms": "whole, scales 0.5 1.0, flip"}
    (one,) = [line for line in page["variants"] if line["variant"] == "b"]
    assert one["scores"]["test/ms/mIoU"] == pytest.approx(55)
    assert one["iou"]["ms"] == {"sky": pytest.approx(55), "cow": pytest.approx(50)}
    metrics = metrics_of(page)
    assert metrics["test/ms/mIoU/a"] == pytest.approx(45)
    assert metrics["val/pixel_accuracy/b"] == pytest.approx(90)
    assert metrics["mIoU/a"] == pytest.approx(41)
    assert not any(name.endswith("/c") and "mIoU" in name for name in metrics)


def test_trials_that_are_not_done_or_of_older_versions_count_for_nothing():
    assert further([{"variant": "a", "status": "failed"}, {"variant": "a", "status": "done", "miou": 0.5}]).scores == ()
    old = {"variant": "a", "status": "done", "tests": scores_of(result(0.5, 0.6, accuracy=None))}
    assert [score.heading for score in further([old]).scores] == ["single mIoU", "ms mIoU"]


def test_protocols_that_differ_between_variants_are_both_said():
    rows = [row("a", 0, 0.4, 0.5), row("b", 0, 0.4, 0.5)]
    rows[1]["tests"]["ms"]["protocol"] = "slide"
    assert further(rows).words["ms"] == "whole, scales 0.5 1.0, flip; or slide"


def detected(box, mask, person):
    """A result of detection: its own metric, all its numbers, of each class the metric."""
    named = {"box AP": box, "box AP50": box + 0.2, "box AP small": 0.01, "mask AP": mask}
    return dataclasses.replace(
        result(box, 0.0), tests={}, accuracy=None, metric="box AP", named=named,
        classes=("background", "person"), iou=[None, person],
    )  # fmt: skip


def test_another_task_has_the_scores_that_papers_print_and_its_own_of_each_class():
    rows = [
        {"variant": v, "seed": 0, "status": "done", "miou": box, "tests": scores_of(detected(box, mask, person))}
        for v, box, mask, person in (("plain", 0.30, 0.25, 0.5), ("sr", 0.32, 0.28, 0.6))
    ]
    table = build("Blocks", {"plain": {}, "sr": {}}, rows, "short side 800", baseline="plain", metric="box AP")
    (_, shown) = cells(table)
    assert (shown["measured"], shown["gain measured"]) == ("32.00 (1 seed)", "+2.00")
    assert [shown[name] for name in ("box AP50", "mask AP")] == ["52.00", "28.00"]
    assert not {"box AP small", "box AP", "pixel accuracy"} & set(shown)
    lines = text(table).splitlines()
    place = lines.index("box AP of each class, percent")
    assert [line.split() for line in lines[place + 1 :]] == [["class", "plain", "sr"], ["person", "50.00", "60.00"]]
    metrics = metrics_of(json.loads(to_json(numbers(table))))
    assert metrics["val/mask AP/sr"] == pytest.approx(28)
    assert metrics["box AP/sr"] == pytest.approx(32)
