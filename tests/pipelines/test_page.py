"""What MLflow's page shows of a run: by which tags it is found, its note, its shards; the same after a replay."""

import importlib
import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.driver.run import run_recipe
from pipelines.recipes.reading import load_recipe
from pipelines.recipes.recipe import computed_part
from pipelines.runs import mlflow_client, mlflow_inputs, mlflow_note, note, provenance
from pipelines.runs.doubts import doubts
from pipelines.runs.folder import RunFolder
from pipelines.runs.record import read_record
from pipelines.runs.results import About, Result
from pipelines.runs.subject import benchmark, paper, subject

STAGES = [
    {"name": "first", "train": "voc12_aug/train", "val": "voc12/val", "steps": 4, "val_every": 0},
    {"name": "second", "train": "voc12/trainval", "steps": 3},
]
FACTS = {"rows": 11, "official_rows": 1449, "partial": True, "duplicates": 0, "skipped": 2,
         "classes_without_a_pixel": ["sofa"]}  # fmt: skip


def about(**changes):
    params = {f"shards.{part}{key}": value for part in ("train", "val")
              for key, value in {"": f"/data/voc12/{part}", ".hash": part * 12, ".rows": 11}.items()}  # fmt: skip
    costs = {
        "cost.parameters": 2_500_000,
        "cost.macs": 3 * 10**9,
        "cost.size": "32x32",
        "cost.convention": "conv+matmul",
    }
    found = About(params | costs, {}, ["road", "sky|blue"], "whole, scales 1.0, no flip", 4)
    return replace(found, **changes)


def result(stage, **changes):
    found = Result(stage, 26, 4, 11, 0.1, 0.4321, 0.5, 2, 10.0, "step-00000004.pt", "best.pt", "whole, no flip",
                   9000, ["road", "sky|blue"], [0.8, 0.0642])  # fmt: skip
    return replace(found, **changes)


@pytest.fixture
def chain(recipe_file, tmp_path):
    """A recipe of two stages and its folder, the first stage scored, the second without validation."""
    recipe, folder = load_recipe(recipe_file(stages=STAGES)), RunFolder(tmp_path / "run")
    for stage in recipe.stages:
        place = folder.stage(stage.name)
        place.path.mkdir(parents=True)
        about().write(place.about)
        unscored = {} if stage.val else {"val_rows": None, "miou": None, "miou_before": None, "best": None,
                                         "best_checkpoint": None, "iou": []}  # fmt: skip
        result(stage.name, **unscored).write(place.result)
    line = {"kind": "val", "step": 4, "time": 5, "miou": 0.4321, "accuracy": 0.5, "fwiou": 0.3, "iou": [0.8, 0.0642],
            "overlays": ["overlays/a b/step-00000004.png"]}  # fmt: skip
    folder.stage("first").record.write_text(json.dumps(line) + "\n")
    return recipe, folder


def written(chain, stages=None, origin=(), runs=(), error=""):
    recipe, folder = chain
    return note.write_up(recipe, folder, stages or recipe.stages, dict(origin), dict(runs), "top", error)


@pytest.mark.parametrize("metric", ["PQ", "box AP", "top-1"])
def test_classes_of_other_tasks_have_their_own_score(chain, metric):
    _, folder = chain
    place = folder.stage("first").result
    replace(Result.read(place), metric=metric).write(place)
    text = written(chain)
    assert text.startswith(f"**Result: 43.21 % {metric}** after first")
    assert f"**Classes** ({metric} in percent, after first): sky" in text


def test_tags_say_what_a_run_is_about(recipe_file):
    recipe = load_recipe(recipe_file(stages=STAGES, published="reconet/table8"))
    assert subject(recipe) == {
        "paper": "Long et al., CVPR 2015, arXiv:1411.4038", "head": "fcn", "trunk": "test_resnet", "benchmark": "voc12",
        "protocol": "whole, scales 1.0, no flip", "published": "reconet/table8"}  # fmt: skip
    first, second = recipe.stages
    assert subject(recipe, first) == subject(recipe)
    assert "protocol" not in subject(recipe, second)  # it is not validated
    assert (
        benchmark(
            replace(recipe, data="s3://bucket/x?endpoint_override=http://h:9"), replace(second, train="ade20k/train")
        )
        == "ade20k"
    )
    assert benchmark(replace(recipe, data="data/mine"), replace(first, val="val")) == "mine"
    assert paper("no head") == ""


def test_a_note_begins_with_the_result_and_its_protocol(chain):
    text = written(chain)
    assert text.startswith("**Result: 43.21 % mIoU** after first, on all 11 rows of voc12/val (whole, no flip).")
    lines = [re.sub(r"\s+", " ", line) for line in text.splitlines()]
    assert "| first | 26 | 4 | 10.00 | 43.21 | 50.00 (2) | 11 |" in lines
    assert "| second | 26 | 4 | – | – | – | – |" in lines
    assert "**Classes** (IoU in percent, after first): sky\\|blue 6.42, road 80.00." in text
    assert "2.50 M parameters; 3 GMACs at 32x32 (conv+matmul); 3 s of training without validation" in text
    assert written(chain, error="no room").startswith("**Failed:** no room\n\n**Result:")
    only = written(chain, chain[0].stages[1:])
    assert only.startswith("**Result:** no score.")
    assert "Stage 2 of 2, from the weights of first." in only
    recipe, folder = chain
    result("second", miou=0.6).write(folder.stage("second").result)  # the last one that was scored is the result
    twice = replace(recipe, stages=(recipe.stages[0], replace(recipe.stages[1], val="ade20k/val")))
    assert written((twice, folder)).startswith("**Result: 60.00 % mIoU** after second, on all 11 rows of ade20k/val")


@pytest.mark.parametrize("key", ["weights", "backbone.weights"])
def test_a_note_says_what_of_a_file_of_weights_was_taken(chain, key):
    recipe, folder = chain
    assert "**Weights**" not in written(chain)
    told = {f"{key}.taken": "90 entries", f"{key}.left": "2 of fc", f"{key}.missing": "nothing"}
    about(params={**about().params, **told}).write(folder.stage("first").about)
    trunk = replace(recipe.backbone, weights="a.pth" if key != "weights" else None)
    given = replace(recipe, weights="a.pth" if key == "weights" else None, backbone=trunk)
    text = written((given, folder))
    assert "**Weights** of `a.pth`: taken: 90 entries; left: 2 of fc; missing: nothing." in text
    assert "output stride 32 from weights `a.pth`" in text


def test_published_numbers_are_in_a_table_of_their_own(chain):
    recipe, folder = chain
    text = written((replace(recipe, published="reconet/table2"), folder))
    (part,) = [part for part in text.split("\n\n**") if "88.5" in part]
    assert part.startswith("Published, for comparison:** RecoNet Table 2, voc12 test")
    assert "nothing of it was measured here" in part
    assert "43.21" not in part
    assert "EMANet" not in part  # the paper's own rows
    assert "Published" not in written(chain)


def test_a_note_has_the_scores_of_each_protocol_with_its_interval(chain, monkeypatch):
    tested = {"test/single/mIoU": 43.2, "test/ms_flip/mIoU": 45.678, "test/ms_flip/mIoU_low": 40.1,
              "test/ms_flip/mIoU_high": 51.2, "cost/GMACs@512x512": 12.34}  # fmt: skip
    monkeypatch.setattr(note, "values_of", lambda line, names: tested)
    lines = [re.sub(r"\s+", " ", line) for line in written(chain).splitlines()]
    assert "| first | ms_flip | 45.68 | 40.10 to 51.20 | |" in lines
    assert "| first | single | 43.20 | not computed | |" in lines
    assert "12.34 GMACs at 512x512" in " ".join(lines)


def test_what_speaks_against_shipping_is_said(chain):
    recipe, _ = chain
    stage, last = recipe.stages
    facts = about(
        shards={"train": FACTS | {"skipped": 0, "partial": False, "classes_without_a_pixel": ["x"]}, "val": FACTS}
    )
    ended = [(stage, facts, result("first")), (last, None, result("second", miou=None))]
    told = list(doubts(replace(recipe, data="sample:"), ended, {"git.uncommitted_changes": "True"}))
    for part in ("the weights of second were not scored; the score above is of first", "generated", "random weights",
                 "voc12/val has only 11 of 1449 rows", "2 damaged row(s) were left out of voc12/val", "no commit has",
                 "1 class(es) have no pixel in voc12/val (sofa)", "under one seed"):  # fmt: skip
        assert [line for line in told if part in line], part
    assert not [line for line in told if "voc12_aug/train" in line or "was chosen by" in line]
    competed = [(replace(stage, val_every=0.1), None, result("first"))]
    assert any(
        "`best.pt` of first was chosen by the rows that its score is of" in d for d in doubts(recipe, competed, {})
    )
    whole = replace(recipe, data="/data", backbone=replace(recipe.backbone, weights="hub:"))
    assert len(list(doubts(whole, [(stage, about(), result("first"))], {}))) == 1


def test_the_command_of_a_note_trains_the_same(chain, tmp_path):
    from pipelines.recipes.recipe import to_yaml

    recipe, folder = chain
    folder.recipe.write_text(to_yaml(recipe))
    words = shlex.split(written(chain).split("```")[1])
    assert words[:3] == ["python", "-m", "pipelines.train"]
    again = load_recipe(Path(words[3]), words[4:])
    assert computed_part(again) == computed_part(recipe)
    assert again.name == f"{recipe.name}-again"


def test_pictures_of_a_note_are_artifacts_of_the_scored_stage(chain):
    text = written(chain, runs={"first": "abc", "second": "def"})
    shown = re.findall(r"!\[.*\]\(get-artifact\?path=(.*)&run_uuid=(.*)\)", text)
    assert shown == [("curves.png", "top"), ("overlays%2Fa%20b%2Fstep-00000004.png", "abc")]
    assert "get-artifact" not in written(chain)


def test_a_note_never_replaces_what_somebody_wrote(empty_store, tmp_path):
    import shutil

    shutil.copy(empty_store, tmp_path / "mlflow.db")
    with mlflow_client.open_client(f"sqlite:///{tmp_path / 'mlflow.db'}") as client:
        run = client.create_run(client.create_experiment("x", (tmp_path / "files").as_uri())).info.run_id

        def shown():
            return client.get_run(run).data.tags[mlflow_client.NOTE]

        client.set_tag(run, mlflow_client.NOTE, "`final/mIoU` in percent: first, whole")  # an older version's
        for text in ("one", "two"):
            mlflow_note.send_note(client, run, text)
            assert shown().startswith(f"{text}\n")
        lines = "\n".join(f"line {i}" for i in range(2000))
        mlflow_note.send_note(client, run, lines)
        assert len(shown()) <= mlflow_client.TEXT_CHARS
        assert re.search(r"\nline \d+\n\n… \(whole in the artifact `note.md`\)", shown())
        assert Path(client.download_artifacts(run, "note.md", str(tmp_path))).read_text() == lines
        assert mlflow_note.spaced("| a | b |\n| :--- | ---: |\n| 1 | – |\na | b") == (
            "| a&emsp; | b&emsp; |\n| :--- | ---: |\n| 1&emsp; | –&emsp; |\na | b"
        )
        client.set_tag(run, mlflow_client.NOTE, shown().replace("line 7\n", "line 7: I saw this\n"))
        mlflow_note.send_note(client, run, "three")
        assert "I saw this" in shown()


def test_shards_are_datasets_with_their_hash(recipe_file):
    stage = load_recipe(recipe_file()).stages[0]
    train, val = mlflow_inputs.shards_of(about(shards={"val": FACTS}), stage)
    assert (train.use, train.name, train.digest) == ("training", "voc12/train", "traintraintr")
    assert (val.use, val.profile["num_rows"], val.profile["official_rows"]) == ("validation", 11, 1449)
    assert [mlflow_inputs.kind(uri) for uri in ("/x", "s3://b/x", "gs://b/x")] == ["local", "s3", "gs"]
    assert mlflow_inputs.short("s3://bucket/shards/voc12/val?region=eu") == "voc12/val"
    assert not list(mlflow_inputs.shards_of(About({"steps": 6}, {}, [], "whole", 6), stage))


def everything(uri, folder):
    """All that a store has of a run, under names instead of ids."""
    state = json.loads((folder / "mlflow.json").read_text())
    names = {state["parent"]: "PARENT", **{run: name for name, run in state["stages"].items()}}
    found = {}
    with mlflow_client.open_client(uri) as client:
        for run, name in names.items():
            there = client.get_run(run)
            tags = {k: v for k, v in there.data.tags.items() if k != mlflow_client.KEY}
            tags[mlflow_client.NOTE] = re.sub(r"<!--.*-->", "", tags[mlflow_client.NOTE])
            for other, word in names.items():
                tags = {key: value.replace(other, word) for key, value in tags.items()}
            metrics = {key: [(p.step, p.value, p.timestamp) for p in client.get_metric_history(run, key)]
                       for key in there.data.metrics}  # fmt: skip
            inputs = [(i.dataset.to_dictionary(), [t.value for t in i.tags]) for i in there.inputs.dataset_inputs]
            files = sorted(file.path for file in client.list_artifacts(run))
            order = sorted(inputs, key=lambda pair: pair[0]["name"])
            found[name] = (there.info.run_name, there.info.status, tags, there.data.params, metrics, order, files)
            found[f"time of {name}"] = (there.info.start_time, there.info.end_time)
    return found


@pytest.mark.slow
def test_a_page_is_whole_and_a_replay_makes_the_same(recipe_file, tmp_path, monkeypatch):
    run_recipe(load_recipe(recipe_file(stages=STAGES, protocols=["single"])))
    folder, first = tmp_path / "out/runs/tiny", f"sqlite:///{tmp_path / 'out/mlflow.db'}"
    shown = everything(first, folder)
    name, status, tags, _, metrics, inputs, files = shown["PARENT"]
    assert (name, status) == ("tiny", "FINISHED")
    assert tags["benchmark"] == "voc12"
    assert tags["version"]
    assert tags["hardware"]
    assert tags["mlflow.source.name"]
    assert tags[mlflow_client.NOTE].startswith("**Result: ")
    assert "voc12/val has only 11 of" in tags[mlflow_client.NOTE]
    assert (
        f"| first&emsp; | single&emsp; | {metrics['first/test/single/mIoU'][0][1]:.2f}&emsp; |"
        in tags[mlflow_client.NOTE]
    )
    assert metrics["cost/params_M"]
    assert [(data["name"], use) for data, use in inputs] == [
        ("voc12/trainval", ["training"]), ("voc12/val", ["validation"]), ("voc12_aug/train", ["training"])]  # fmt: skip
    assert {"curves.png", "recipe.yaml"} <= set(files)
    losses = [line for line in read_record(folder / "second/record.jsonl")[0] if line["kind"] == "train"]
    assert [(s, v) for s, v, _ in metrics["chain/train_loss"][-3:]] == [(4 + x["step"], x["loss"]) for x in losses]
    assert [step for step, _, _ in metrics["chain/val_mIoU"]] == [0, 4]
    assert "Stage 2 of 2" in shown["second"][2][mlflow_client.NOTE]
    assert [data["name"] for data, _ in shown["second"][5]] == ["voc12/trainval"]

    other = f"sqlite:///{tmp_path / 'other.db'}"
    monkeypatch.setattr(provenance, "provenance", lambda: {"command": "another machine's"})
    monkeypatch.setattr(sys, "argv", ["replay", str(folder), "--tracking", other])
    importlib.import_module("pipelines.replay").main()
    assert everything(other, folder) == shown
