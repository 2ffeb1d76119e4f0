"""Published rows with what was measured of them: only like next to like, nothing measured stays empty, none is lost."""

import csv
import dataclasses
import io
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines import compare
from pipelines.base.door import run as open_door
from pipelines.base.errors import InputError
from pipelines.published.results import results_table
from pipelines.recipes.reading import load_recipe
from pipelines.recipes.recipe import flatten, to_page
from pipelines.runs.mlflow_reading import store_to_read
from pipelines.scoring.beside import beside, csv_text, left_out, markdown, scores_beside
from pipelines.scoring.measured import measured_of

PAGE = "reconet/voc12_resnet101s"
WHOLE = "whole, scales 1.0, no flip"
MULTI = "whole, scales 0.75 1.0 1.25, flip"
STUDY = """
published: {table: reconet/table8, column: mIoU}
variants:
  low: {set: {head.rank: 16}, published: {rank: 16}}
  odd: {set: {head.rank: 17}, published: null}
"""


def recipe_params(page, *overrides):
    return {key: str(value) for key, value in flatten(to_page(load_recipe(page, list(overrides)))).items()}


def stage_params(split, rows=1449, official=1449, protocol=WHOLE):
    return {
        "stage.name": "last", "stage.val": split, "shards.val.rows": str(rows), "protocol": protocol,
        "shards.val.official_rows": str(official),
    }  # fmt: skip


class Store:
    """A client's reading half, on runs that a test puts there."""

    def __init__(self):
        self.runs, self.texts = [], {}

    def add(self, name, *, params, metrics=None, tags=None, status="FINISHED"):
        number = f"id{len(self.runs)}"
        info = SimpleNamespace(run_id=number, run_name=name, status=status, start_time=len(self.runs))
        self.runs.append(
            SimpleNamespace(info=info, data=SimpleNamespace(params=params, metrics=metrics or {}, tags=tags or {}))
        )
        return number

    def chain(self, name, page, *stages, overrides=()):
        """A chain of stages, each its parameters and metrics."""
        parent = self.add(name, params=recipe_params(page, "data=/data", *overrides))
        for params, metrics in stages:
            self.add(f"{name}/stage", params=params, metrics=metrics, tags={"mlflow.parentRunId": parent})

    def search_experiments(self):
        return [SimpleNamespace(experiment_id="0")]

    def search_runs(self, experiments, max_results, page_token):
        """One run an answer: whoever forgets the token sees one."""
        at = int(page_token or 0)
        page = SimpleNamespace(token=str(at + 1) if at + 1 < len(self.runs) else None)
        return type("Page", (list,), {"token": page.token})(self.runs[at : at + 1])

    def list_artifacts(self, run):
        return [SimpleNamespace(path=name) for owner, name in self.texts if owner == run]

    def download_artifacts(self, run, name, folder):
        path = f"{folder}/{name}"
        with open(path, "w") as file:
            file.write(self.texts[run, name])
        return path


def lines(store, table, **row):
    table = results_table(table)
    return beside(measured_of(store), table, table.row(row))


def test_a_run_of_a_page_stands_next_to_its_row_with_its_protocol():
    store = Store()
    store.chain("one", PAGE, (stage_params("voc12/val"), {"val/mIoU": 80.5}))
    assert lines(store, "reconet/table8", rank=64) == [
        f"mIoU 80.50 (1 seed): voc12/val, 1449 rows, {WHOLE}; OTHER SCALES THAN PUBLISHED; run one"
    ]
    assert lines(store, "reconet/table8", rank=32) == []


def test_seeds_have_one_mean_and_protocols_never_mix():
    store = Store()
    for name, seed, score in (("s0", 0, 80.0), ("s1", 1, 81.0), ("s2", 2, 82.0)):
        metrics = {"val/mIoU": score, "test/reconet/mIoU": score + 1}
        store.chain(name, PAGE, (stage_params("voc12/val"), metrics), overrides=[f"seed={seed}"])
    store.chain("again", PAGE, (stage_params("voc12/val"), {"val/mIoU": 83.0}), overrides=["seed=2"])
    single, multi = lines(store, "reconet/table8", rank=64)
    assert single.startswith("mIoU 81.33 ± ")  # the last run of seed 2 counts, not both
    assert "(3 seeds)" in single
    assert single.endswith("runs s0, s1, again")
    assert multi == "mIoU 82.00 ± 2.48 (3 seeds): voc12/val, 1449 rows, protocol reconet; runs s0, s1, s2"


def test_single_and_multi_scale_have_rows_of_their_own():
    store = Store()
    metrics = {"val/mIoU": 78.0, "test/reconet/mIoU": 79.0, "test/single/mIoU": 78.0}
    store.chain("c", "reconet/cityscapes_resnet101s", (stage_params("cityscapes/val", 500, 500), metrics))
    one = lines(store, "reconet/table12", backbone="resnet101", ms_flip=0)
    assert [line.partition(";")[0] for line in one] == [
        f"mIoU 78.00 (1 seed): cityscapes/val, 500 rows, {WHOLE}",
        "mIoU 78.00 (1 seed): cityscapes/val, 500 rows, protocol single",
    ]
    (many,) = lines(store, "reconet/table12", backbone="resnet101", ms_flip=1)
    assert "mIoU 79.00" in many
    assert "OTHER SCALES" not in many


@pytest.mark.parametrize(
    ("key", "scales", "words"),
    [
        ("test/slide/mIoU", "single", "protocol slide"),
        ("test/ocnet/mIoU", "multi", "protocol ocnet"),
        ("test/recipe/mIoU", "multi", "protocol recipe, scales 0.75 1.0 1.25 1.5 1.75 2.0, flip"),
    ],
)
def test_named_protocols_say_at_how_many_scales(key, scales, words):
    store = Store()
    store.chain("r", PAGE, (stage_params("voc12/val"), {key: 80.0}))
    (found,) = measured_of(store)
    assert (found.scales, found.protocol) == (scales, words)


def test_another_training_of_the_same_model_says_what_is_other():
    store = Store()
    stage = stage_params("voc12/val"), {"val/mIoU": 70.0}
    store.chain("short", PAGE, stage, overrides=["stages.aug.epochs=2", "workers.count=4", "loss.logits.ohem=1.0"])
    (line,) = lines(store, "reconet/table8", rank=64)
    assert line.endswith("; trained with stages.aug.epochs=2.0, loss.logits.ohem=1.0; run short")


@pytest.mark.parametrize(
    ("overrides", "stage", "why"),
    [
        (["head.rank=32"], stage_params("voc12/val"), "its model is that of no page of the table"),
        (["head.gpm=false"], stage_params("voc12/val"), "its model is that of no page of the table"),
        ([], stage_params("voc12/train"), "scored on voc12/train, the table is of voc12 val"),
        ([], stage_params("camvid/val"), "scored on camvid/val, the table is of voc12 val"),
        ([], stage_params("voc12/val", 60), "scored on 60 of 1449 rows"),
        (["data=sample:"], stage_params("voc12/val"), "scored on the bundled sample"),
        ([], {k: v for k, v in stage_params("voc12/val").items() if k != "protocol"}, "does not record its protocol"),
    ],
)
def test_what_is_not_the_rows_is_left_out_with_the_reason(overrides, stage, why):
    store = Store()
    store.chain("other", PAGE, (stage, {"val/mIoU": 80.0}), overrides=overrides)
    table, found = results_table("reconet/table8"), measured_of(store)
    assert [beside(found, table, row) for row in table.rows] == [[]] * 7
    (line,) = left_out(found, table)
    assert line.startswith("not set beside a row: other, mIoU 80.00 (")
    assert why in line


def test_rows_of_the_same_number_are_the_split_whatever_its_name():
    """PASCAL-Context's validation rows are what OCNet calls its test split, of 5105 rows."""
    store = Store()
    stage = stage_params("pascal_context60/val", 5105, 5105), {"val/mIoU": 53.0}
    store.chain("p", "ocnet/pascal_context60_resnet101s", stage)
    assert lines(store, "ocnet/table9", method="OCNet (w/ Base-OC)", backbone="ResNet-101")


def test_of_a_chain_the_last_scored_stage_counts_and_unfinished_ones_do_not():
    store = Store()
    parent = store.add("c", params=recipe_params(PAGE, "data=/data"))
    tags = {"mlflow.parentRunId": parent}
    for score, status in ((70.0, "FINISHED"), (80.0, "FINISHED"), (90.0, "RUNNING"), (95.0, "KILLED")):
        store.add("c/x", params=stage_params("voc12/val"), metrics={"val/mIoU": score}, tags=tags, status=status)
    (line,) = lines(store, "reconet/table8", rank=64)
    assert line.startswith("mIoU 80.00 ")


def test_a_trial_belongs_to_the_row_of_its_variant():
    store = Store()
    study = store.add("rank", params={})
    store.texts[study, "study.yaml"] = STUDY
    for variant in ("low", "odd"):
        params = {
            **recipe_params(PAGE, "data=/data"),
            **stage_params("voc12/val", protocol=MULTI),
        }
        tags = {"mlflow.parentRunId": study, "variant": variant}
        store.add(f"rank-{variant}", params=params, metrics={"val/mIoU": 75.0}, tags=tags)
    assert lines(store, "reconet/table8", rank=16) == [
        f"mIoU 75.00 (1 seed): voc12/val, 1449 rows, {MULTI}; run rank-low"
    ]
    assert {m.run for m in measured_of(store)} == {"rank-low"}


@pytest.fixture
def found():
    store = Store()
    metrics = {"val/mIoU": 52.5, "val/pixel_accuracy": 80.0, "test/ctnet/mIoU": 53.5}
    stage = stage_params("pascal_context59/val", 5105, 5105), metrics
    store.chain("ct", "ctnet/pascal_context59_resnet50s", stage)
    return measured_of(store)


def test_csv_has_every_published_number_and_empty_cells_where_nothing_is_measured(found):
    page = list(csv.DictReader(io.StringIO(csv_text(["ctnet"], found))))
    table5 = [line for line in page if line["table"] == "ctnet/table5"]
    assert len(table5) == 12  # six rows, single and multi
    filled = [line for line in table5 if line["measured"]]
    columns = ("published column", "published", "measured", "same scales")
    assert [tuple(line[column] for column in columns) for line in filled] == [
        ("SS", "51.7", "52.5000", "true"), ("MS", "53.3", "53.5000", "true")
    ]  # fmt: skip
    assert {line["row"] for line in filled} == {"method CTNet, backbone resnet50, CCM 1, SCM 1"}
    pixels = [line for line in page if line["quantity"] == "pixel accuracy"]
    assert len(pixels) == 6  # Table 2; measured was another row's
    assert not any(line["measured"] for line in pixels)


def test_markdown_keeps_published_and_measured_in_columns_of_their_own(found):
    text = markdown(["ctnet"], found, "a store")
    (row,) = re.findall(r"^\| CTNet \| resnet50 \| 1 \| 1 \| .*$", text, re.M)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[4:6] == ["51.7", "53.3"]
    assert cells[6].count("<br>") == 1
    (empty,) = re.findall(r"^\| OCCM \| resnet50 .*$", text, re.M)
    assert empty.endswith("|  |")
    assert "ctnet/table3" not in text
    assert "Head cost increments" not in text  # costs are not measured by runs


def test_a_score_of_the_whole_table_is_kept_apart_from_the_printed_numbers(found):
    table = results_table("ctnet/table5")
    before = [dict(row) for row in table.rows]
    scores_beside(found, table, table.rows[2])
    assert [dict(row) for row in table.rows] == before
    assert all(dataclasses.is_dataclass(score) for score in found)


def test_reading_makes_no_store(tmp_path, monkeypatch):
    assert store_to_read(None, tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="there is no file"):
        store_to_read(f"sqlite:///{tmp_path}/gone.db", tmp_path)
    (tmp_path / "mlflow.db").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert store_to_read(None, tmp_path) == "http://127.0.0.1:1"
    assert store_to_read(None, tmp_path, there=True) == f"sqlite:///{tmp_path}/mlflow.db"


def test_the_door_reads_a_store_and_writes_both_files(tmp_path, empty_store, monkeypatch, capsys):
    import mlflow

    shutil.copy(empty_store, tmp_path / "mlflow.db")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("e", artifact_location=str(tmp_path))
    parent = client.create_run(experiment, run_name="mine").info.run_id
    for key, value in recipe_params("ctnet/pascal_context60_resnet101s", "data=/data").items():
        client.log_param(parent, key, value)
    run = client.create_run(experiment, run_name="mine/context", tags={"mlflow.parentRunId": parent}).info.run_id
    for key, value in stage_params("pascal_context60/val", 5105, 5105).items():
        client.log_param(run, key, value)
    client.log_metric(run, "val/mIoU", 54.25)
    client.set_terminated(run)
    files = [str(tmp_path / "new" / name) for name in ("r.csv", "r.md")]
    words = ["compare", "results", "ctnet", "--output", str(tmp_path), "--csv", files[0], "--markdown", files[1]]
    monkeypatch.setattr(sys, "argv", words)
    compare.main()
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if "54.25" in line]
    assert re.match(r"CTNet +ResNet-101 +55\.5 +mIoU 54\.25 \(1 seed\): pascal_context60/val, 5105 rows", line)
    assert "ctnet: 9 tables, 91 rows, all published; 1 of them measured here" in shown
    assert re.search(r"^CTNet +ResNet-50 +52\.9 +–$", shown, re.M)
    assert all("54.25" in Path(file).read_text() for file in files)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "nowhere"], "--output nowhere: no such folder"),
        (["--tracking", "sqlite:////nowhere/x.db"], "there is no file /nowhere/x.db"),
        (["--tracking", "x", "--output", "y"], "give one"),
        (["--csv", "/"], "--csv / is a folder"),
    ],
)
def test_a_store_that_is_not_there_is_refused(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare", "results", "ctnet", *words])
    with pytest.raises(SystemExit) as left:
        open_door(compare.main)
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_the_door_without_a_store_shows_every_row_empty(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare", "results", "ctnet", "--output", str(tmp_path)])
    compare.main()
    shown = capsys.readouterr().out
    assert "0 of them measured here" in shown
    assert "measured: nothing, there is no" in shown
    assert list(tmp_path.iterdir()) == []


def test_scores_of_other_tasks_stand_next_to_their_rows():
    store = Store()
    words = "short side 800, long side at most 1333"
    for page, steps in (("", 90000), ("_2x", 180000)):
        metrics = {"val/box AP": steps / 5000, "val/mask AP50": 50.0, "val/box AP small": 1.0, "val/box AP/person": 2.0}
        stage = stage_params("coco_instances/val", 5000, 5000, words)
        store.chain(f"run{page}", f"ocnet/coco_mask_rcnn_resnet50_isa{page}", (stage, metrics))
    once = lines(store, "ocnet/table12", method="+ISA", schedule="1x")
    assert once == [
        f"box AP 18.00 (1 seed): coco_instances/val, 5000 rows, {words}; run run",
        f"mask AP50 50.00 (1 seed): coco_instances/val, 5000 rows, {words}; run run",
    ]
    twice = lines(store, "ocnet/table12", method="+ISA", schedule="2x")  # of the same model: the page tells them apart
    assert [line.partition(":")[0] for line in twice] == ["box AP 36.00 (1 seed)", "mask AP50 50.00 (1 seed)"]
    assert lines(store, "ocnet/table12", method="+NL", schedule="1x") == []
    text = csv_text(["ocnet"], measured_of(store))
    found = [row for row in csv.DictReader(io.StringIO(text)) if row["runs"] == "run" and row["quantity"] == "box AP"]
    assert [(row["published"], row["measured"]) for row in found] == [("38.8", "18.0000")]
