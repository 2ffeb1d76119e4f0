"""The benchmarks' arithmetic by hand, and the commands at their smallest."""

import argparse
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from datasets.shards import Shards
from datasets.transforms import TrainView
from pipelines.base.door import run
from pipelines.bench import COMMANDS, build_parser, main
from pipelines.cluster.sizes import Sizes
from pipelines.feed.plan import SamplePlan, read_blocks
from pipelines.speed.drain import merge, steady
from pipelines.speed.feed import plan_of, recipe_of
from pipelines.speed.feed_node import blank_blocks, parts_of, together
from pipelines.speed.report import Report, goal, interleave, ratios, spread, table, write_json
from pipelines.speed.spans import account
from pipelines.speed.step import amortised


def test_ratios_are_of_neighbours_in_time():
    fast, slow = [10.0, 5.0, 20.0], [5.0, 2.5, 40.0]  # the machine slowed down in round 2, the case itself in round 3
    assert ratios(fast, slow) == [2.0, 2.0, 0.5]
    assert spread(ratios(fast, slow), 2) == "2.00 (0.50 to 2.00)"
    with pytest.raises(ValueError, match="zip"):
        ratios(fast, slow[:2])


def test_spread_is_median_least_and_greatest():
    assert spread([3.0, 1.0, 2.26, 9.0]) == "2.6 (1.0 to 9.0)"
    assert spread([0.4321], 2, scale=100) == "43.21"
    assert spread([]) == "–"


def test_goals_say_what_was_met():
    assert goal("speed", 0.951, 0.95) == "goal: speed >= 0.95: 0.95, met"
    assert goal("gap", 0.4, 0.3, least=False) == "goal: gap <= 0.3: 0.40, MISSED"


def test_cases_take_turns_after_a_round_that_is_not_counted():
    calls = []
    measured = interleave({name: lambda name=name: calls.append(name) or float(len(calls)) for name in "ab"}, 2)
    assert calls == list("ababab")
    assert measured == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_table_is_markdown_with_names_left_and_numbers_right():
    assert table(["x", "images/s"], [["resident", "7"], ["b", "123"]]).splitlines() == [
        "| x        | images/s |",
        "|----------|---------:|",
        "| resident |        7 |",
        "| b        |      123 |",
    ]
    with pytest.raises(ValueError, match="a row of 1 cells under 2 columns"):
        table(["x", "y"], [["only"]])


def test_json_holds_header_table_and_every_value(tmp_path):
    report = Report("Title", ["a", "b"], [["x", "1"]], ["a note"], {"x": [1.0]})
    write_json(tmp_path / "report.json", "step", {"date": "today"}, report)
    read = json.loads((tmp_path / "report.json").read_text())
    assert read["command"] == "step"
    assert read["header"] == {"date": "today"}
    assert read["measured"] == {"x": [1.0]}
    assert report.markdown().endswith("| x   |   1 |\n\n- a note\n")


def test_feed_rates_are_of_whole_tasks_in_the_second_half(monkeypatch):
    for rows in ("LONE_ROWS", "TASK_ROWS"):
        monkeypatch.setattr(f"pipelines.feed.batches.{rows}", 96)
    plan = SamplePlan(
        "unused", rows=512, view=None, seed=0, batch=16, steps=100, world=2
    )  # 12 steps of 8 images a task
    assert steady(plan, tasks=1) == (60, 96)
    assert steady(plan, tasks=2) == (72, 96)


@pytest.mark.parametrize(("tasks", "turn"), [(1, 126), (2, 30), (8, 120)])
def test_feed_takes_as_few_epochs_as_give_a_rate(tasks, turn, shards):
    args = argparse.Namespace(batch=16, crop=(32, 32), tasks=tasks, epochs=None)
    recipe, uri = recipe_of(args, 1), str(shards / "voc12" / "train")
    sizes = Sizes(count=1, gpus=0, cpus=1, feed_tasks=tasks, feed_cpus=1)
    plan = plan_of(args, recipe, uri, sizes)
    epochs = -(-4 * turn * 16 // plan.rows)
    assert plan.steps == epochs * plan.rows // 16
    first, last = steady(plan, tasks)
    assert first % turn == last % turn == 0
    assert last - first in (turn, 2 * turn)
    for asked, taken in ((1, epochs), (epochs + 3, epochs + 3)):
        args.epochs = asked
        assert plan_of(args, recipe, uri, sizes).steps == taken * plan.rows // 16


def test_feed_rates_wait_for_the_slowest_worker(monkeypatch):
    for rows in ("BLOCK_ROWS", "LONE_ROWS"):
        monkeypatch.setattr(f"pipelines.feed.batches.{rows}", 2)  # a task a step
    plan = SamplePlan("unused", rows=8, view=None, seed=0, batch=4, steps=4, world=2)  # two steps an epoch
    parts = [
        {"kind": "ray", "asked": [0.0, 3.0, 3.5, 5.0], "came": [3.0, 3.5, 4.5, 5.1]},
        {"kind": "ray", "asked": [0.0, 2.0, 3.6, 4.0], "came": [2.0, 3.6, 4.0, 5.5]},
    ]
    (merged,) = merge([{"rounds": [part]} for part in parts], plan, tasks=1)
    assert merged["first_s"] == 3.0
    assert merged["images_per_s"] == pytest.approx(4 / (5.5 - 4.5))  # the last step alone: 4 images in 1 s
    assert merged["gap_s"] == pytest.approx(1.6)
    assert merged["border_s"] == pytest.approx(1.0)  # step 2 begins epoch 1


@pytest.fixture
def chain(tmp_path):
    """What a chain leaves, with made-up times: begun at 1000 s, ended at 1060 s."""

    def put(path, text, at):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (at, at))

    run, shards = tmp_path / "runs/sample-1", tmp_path / "sample/shards"
    put(tmp_path / "sample/release/first.jpg", "", 1010)
    put(tmp_path / "sample/release/sample.json", "", 1014)
    for name in ("coco_voc/train", "coco_voc/val", "voc12_aug/train", "voc12/train", "voc12/val", "voc12/trainval"):
        put(shards / name / "manifest.json", "", 1020)
    put(run / "recipe.yaml", "{batch: 8, stages: [{name: first, train: x, steps: 1}]}", 1021)
    (run / "ray" / "fit-1022000000000").mkdir(parents=True)
    lines = [
        {"kind": "note", "step": 0, "time": 1030_000},
        {"kind": "val", "step": 0, "time": 1032_000},
        {"kind": "train", "step": 10, "time": 1038_000, "images_per_s": 20.0},  # 4 s for 80 images: 2 s of waiting
        {"kind": "train", "step": 20, "time": 1042_000, "images_per_s": 20.0},
        {"kind": "val", "step": 20, "time": 1045_000},
    ]
    put(run / "first" / "record.jsonl", "".join(json.dumps(line) + "\n" for line in lines), 1045)
    put(run / "first" / "outcome.json", "{}", 1046)
    return run


def test_the_parts_of_a_chain_add_up(chain):
    spans = account(chain.parents[1], 1000.0, 1060.0, imported=6.0)
    seconds = {span.name: round(span.seconds, 3) for span in spans}
    assert [*seconds.values()][:6] == [6, 4, 4, 6, 1, 1]
    assert [v for k, v in seconds.items() if k.startswith("first: ")] == [8, 2, 2, 8, 3, 1]
    assert seconds["end: last upload, table, Ray's end"] == 14
    assert sum(seconds.values()) == 2 * seconds["the whole chain"] == 120
    assert all(a.began + a.seconds == pytest.approx(b.began) for a, b in itertools.pairwise(spans[:-1]))


def test_a_timeline_is_shown_when_there_is_one(chain):
    (chain / "timeline.json").write_text(json.dumps([{"name": "Ray's start", "began": 5.0, "seconds": 3.5}]))
    spans = account(chain.parents[1], 1000.0, 1060.0, imported=6.0)
    assert [(s.name, s.began, s.seconds) for s in spans if s.name.startswith("driver")] == [
        ("driver: Ray's start", 5.0, 3.5)
    ]


def test_transform_at_its_smallest(tmp_path, capsys):
    file = tmp_path / "transform.json"
    main(["transform", "--rows", "2", "--repeats", "2", "--crop", "32", "40", "--json", str(file)])
    shown, data = capsys.readouterr().out, json.loads(file.read_text())
    assert "| whole path" in shown
    assert "crop 32x40" in shown
    assert all(len(values) == 2 and min(values) > 0 for values in data["measured"]["images_per_s"].values())
    pairs = zip(*(data["measured"]["images_per_s"][k] for k in ("geometry alone", "albumentations")), strict=True)
    assert data["measured"]["ratios"]["geometry alone"] == [ours / peer for ours, peer in pairs]


@pytest.mark.slow
def test_compiling_is_paid_for_by_shorter_steps():
    """A line of 80 images; eager steps of 8 take 0.8 s, compiled ones 0.4 s, whose first line took 20 s more."""
    eager, compiled = [10.0, *[10.0] * 5], [80 / 24, *[20.0] * 5]
    measured = {"fp32": {"resident": [eager]}, "fp32+compile": {"resident": [compiled]}, "bf16": {"resident": [eager]}}
    note = "compiling fp32+compile took 20.0 s, a step 400 ms for 800: "
    assert amortised(measured, 80, 8) == [f"{note}paid for after 50 steps"]
    slower = measured | {"fp32+compile": {"resident": [[80 / 30, *[8.0] * 5]]}}
    assert amortised(slower, 80, 8)[0].endswith("never paid for: its steps are no shorter")


@pytest.mark.slow
def test_step_with_a_resident_batch(tmp_path, capsys):
    small = ["backbone.output_stride=32", "head.channels=8", "aux.channels=8", "view.crop=[32,32]", "batch=2"]
    file = tmp_path / "step.json"
    words = ["--feeds", "resident", "--steps", "12", "--rows", "4", "--repeats", "1", "--json", str(file)]
    main(["step", *small, *words])
    (runs,) = json.loads(file.read_text())["measured"]["fp32"].values()
    assert len(runs[0]) == 6  # lines of the record
    assert "| fp32, resident" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["transform", "--repeats", "0"], "one round or more"),
        (["transform", "--images", "nowhere"], "leave it out to measure on drawn pictures"),
        (["transform", "--json", "nowhere/a.json"], "make it first"),
        (["feed", "--workers", "3", "--batch", "16"], "must fall into equal shares"),
        (["step", "--forms", "bf61"], "did you mean 'bf16'"),
        (["step", "--feeds", "feed=ray"], "lacks `resident`"),
        (["step", "--steps", "3"], "at least 12 steps"),
        (["startup", "output=x"], "--keep DIR"),
        (["accuracy"], "--data is needed"),
        (["accuracy", "--data", "x", "--recipes", "fcn/camvid_resnet50"], "did you mean 'fcn/camvid_resnet50s'"),
    ],
)
def test_bad_input_ends_in_one_message(words, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    with pytest.raises(SystemExit) as ended:
        run(main)
    shown = capsys.readouterr().err
    assert ended.value.code == 2
    assert shown.startswith("error: ")
    assert message in shown


def test_every_command_explains_itself():
    parser = build_parser()
    assert "examples:" in parser.format_help()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    assert list(commands.choices) == list(COMMANDS)
    assert all(len(command.description.splitlines()) > 2 for command in commands.choices.values())


def test_numbered_pictures_differ_in_bytes_and_not_in_pixels():
    import io

    import cv2
    import numpy as np
    from PIL import Image

    from datasets.sample import decode_image
    from pipelines.speed.prepare import FORMS, numbered

    picture = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)
    for ending, options in FORMS.values():
        data = cv2.imencode(ending, picture, options)[1].tobytes()
        first, second = numbered(data, 1), numbered(data, 2)
        assert len({data, first, second}) == 3
        assert (decode_image(first) == decode_image(data)).all()
        assert (decode_image(second) == decode_image(data)).all()
        if ending == ".png":
            assert Image.open(io.BytesIO(first)).text == {"number": "00000001"}  # read only where its checksum holds


@pytest.mark.ray
def test_prepare_at_its_smallest(ray_session, tmp_path, capsys):
    file = tmp_path / "prepare.json"
    small = ["--gib", "0.0004", "--size", "40", "50", "--workers", "2", "--repeats", "2", "--folder", str(tmp_path)]
    main(["prepare", *small, "--json", str(file)])
    shown, data = capsys.readouterr().out, json.loads(file.read_text())["measured"]
    assert "goal: prepare / pure, rows/s >= 0.8" in shown
    assert "there already" in shown
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    images = list((folder / "images").iterdir())
    assert data["rows"] == len(images) == len({path.read_bytes() for path in images})
    assert sum(path.stat().st_size for path in images) >= 0.0004 * 2**30
    assert len(data["rounds"]) == 2
    assert all(min(case.values()) > 0 for turn in data["rounds"] for case in turn.values())


def test_seconds_of_a_process_that_ended_are_not_taken_off_the_others():
    from pipelines.speed.processes import processor_seconds, processor_seconds_since

    busy = "import time\nwhile time.process_time() < 0.3: pass\nprint(1, flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        before = processor_seconds()
        process.stdin.close()
    assert sum(before.values()) >= 0.3
    assert 0 <= processor_seconds_since(before) < 0.3


def test_parts_of_an_image_are_told_apart(shards):
    plan = SamplePlan(str(shards / "voc12/train"), 18, TrainView((32, 32), (1, 1)), seed=0, batch=2, steps=1)
    parts = parts_of(plan, 2)
    assert set(parts) == {"read", "decode", "transform"}  # small JPEGs are not kept
    assert all(len(found) == 2 and min(found) > 0 for found in parts.values())


def test_of_large_pngs_the_kept_pixels_are_a_part(shards, monkeypatch):
    plan = SamplePlan(str(shards / "voc12/train"), 18, TrainView((32, 32), (1, 1)), seed=0, batch=2, steps=1)
    split = Shards(plan.shards)
    sizes = dict(zip(split.sha256, split.sizes.tolist(), strict=True))

    def kept(pixels, sha256):
        found = np.zeros((*sizes[sha256], 3), np.uint8)
        found.flags.writeable = False
        return found

    monkeypatch.setattr("datasets.pixels.Pixels.find", kept)
    assert len(parts_of(plan, 1)["kept pixels: read and transform"]) == 1


@pytest.mark.ray
@pytest.mark.parametrize("read", [read_blocks, blank_blocks])
def test_consumers_get_all_their_batches_at_once(ray_session, shards, read):
    plan = SamplePlan(str(shards / "voc12/train"), 18, TrainView((32, 32), (1, 1)), seed=0, batch=4, steps=150, world=2)
    assert 0 < together(plan, 2, 1, read) < 1e5
