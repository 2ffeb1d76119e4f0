"""What who operates a cluster looks at: gauges, and on which machines a run was."""

import os
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from pipelines.base import machine
from pipelines.driver import gauges
from pipelines.runs.folder import RunFolder, StageFolder
from pipelines.runs.record import Record, read_record
from pipelines.training.machines import Machine, different, together

TRAIN = {"loss": 1.5, "images_per_s": 20.0, "data_wait": 0.25, "lr": 0.1}
NODE = Machine("10.0.0.5", "one", (0,), ("NVIDIA L4",), "Xeon", 48, 186, "570.1", {"torch": "2.15.0", "ray": "2.60.0"})


@pytest.fixture
def stages(tmp_path):
    """Two stages of a run, of which the first has trained a step before this process."""
    places = [StageFolder(tmp_path / name) for name in ("first", "second")]
    for place in places:
        place.checkpoints.mkdir(parents=True)
    with Record(places[0].record) as record:
        record.add("train", 1, **TRAIN | {"loss": 9.0})
    return places


def watch(places, before=0):
    return gauges.Watch([SimpleNamespace(place=place) for place in places], before)


def test_gauges_are_the_records_newest_numbers(stages):
    seen = watch(stages)
    values = seen.new()
    assert set(values) == {"stage", "checkpoint_age_seconds"}  # step 1 was an earlier process'
    with Record(stages[0].record) as record:
        record.add("train", 2, **TRAIN)
        record.add("note", 2, text="hello")
        record.add("train", 3, **TRAIN | {"loss": float("nan"), "images_per_s": 30.0})
        record.add("val", 3, miou=0.5)
    values = seen.new()
    assert {name: values[name] for name in ("step", "loss", "images_per_second", "data_wait_ratio", "miou_ratio")} == {
        "step": 3, "loss": 1.5, "images_per_second": 30.0, "data_wait_ratio": 0.25, "miou_ratio": 0.5}  # fmt: skip
    assert values["stage"] == 1
    assert set(values) == set(gauges.GAUGES)


def test_a_stage_that_ended_is_left_for_the_next(stages):
    seen = watch(stages, before=2)
    assert seen.new()["stage"] == 3
    with Record(stages[0].record) as record:
        record.add("train", 4, **TRAIN)
    stages[0].outcome.write_text("{}")
    values = seen.new()
    assert (values["step"], values["stage"]) == (4, 4)  # its last line is not lost
    stages[1].outcome.write_text("{}")
    assert "stage" not in seen.new()


def test_a_checkpoints_age_is_what_a_fault_would_cost(stages):
    seen = watch(stages)
    seen.began = time.time() - 50
    assert 50 <= seen.new()["checkpoint_age_seconds"] < 55
    for step, age in ((1, 40), (2, 20)):
        stages[0].checkpoint(step).write_text("")
        os.utime(stages[0].checkpoint(step), (time.time() - age,) * 2)
    assert 20 <= seen.new()["checkpoint_age_seconds"] < 25
    os.utime(stages[0].checkpoint(2), (time.time() + 60,) * 2)  # of a machine whose clock is ahead
    assert seen.new()["checkpoint_age_seconds"] == 0


def test_without_a_session_there_are_no_gauges(stages, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.util.metrics.Gauge", None)
    with gauges.gauged("x", [SimpleNamespace(place=stages[0])]):
        pass


def test_every_gauge_is_set_at_each_look(stages, monkeypatch):
    """Ray forgets one that was not set since its last report, and a line of the record may be minutes old."""
    told = []

    class Gauge:
        def __init__(self, name, text, labels):
            self.name = name

        def set(self, value, labels):
            told.append((self.name, value, labels["run"]))

    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.util.metrics.Gauge", Gauge)
    monkeypatch.setattr(gauges, "LOOK_S", 0.01)
    with gauges.gauged("x", [SimpleNamespace(place=stages[0])]):
        with Record(stages[0].record) as record:
            record.add("train", 2, **TRAIN)
        until = time.monotonic() + 10
        while told.count(("context_heads_loss", 1.5, "x")) < 3:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_workers_of_a_node_are_told_together():
    other = replace(NODE, address="10.0.0.6", host="two", ranks=(1,))
    nodes = together([replace(NODE, ranks=(2,), devices=("NVIDIA H200",)), other, NODE])
    assert [(node.host, node.ranks, node.devices) for node in nodes] == [
        ("one", (0, 2), ("NVIDIA L4", "NVIDIA H200")), ("two", (1,), ("NVIDIA L4",))]  # fmt: skip


def test_machines_that_differ_are_named():
    assert different([NODE]) == different([NODE, replace(NODE, address="10.0.0.6")]) == ""
    other = replace(NODE, address="10.0.0.6", driver="550.2", versions=NODE.versions | {"torch": "2.14.0"})
    text = "10.0.0.6 has torch 2.14.0 (2.15.0), GPU driver 550.2 (570.1), in brackets what 10.0.0.5 has"
    assert different([NODE, other]) == f"the machines differ: {text}"


def test_a_gpus_driver_is_asked_of_its_own_tool(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "$1" | sed "s/--query-gpu=driver_version/570.1/"\necho other\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert machine.gpu_driver() == "570.1"
    monkeypatch.setenv("PATH", "")
    assert machine.gpu_driver() == ""


@pytest.mark.ray
def test_each_start_of_workers_is_a_line(pair):
    folder, _ = pair
    lines, _ = read_record(RunFolder(folder).machines)
    assert [line["workers"] for line in lines] == [2]
