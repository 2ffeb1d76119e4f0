"""The papers' tables of results as data, and that the recipes here follow what the papers state."""

import math
import re
import sys

import pytest

from pipelines import compare
from pipelines.base.errors import InputError
from pipelines.published.results import (
    QUANTITIES,
    published_values,
    read_table,
    read_training,
    result_tables,
    results_table,
)
from pipelines.published.tables import PAPERS
from pipelines.recipes.bundled import names_in
from pipelines.recipes.reading import RECIPES, load_recipe, make_recipe
from pipelines.studies.files import published_of
from pipelines.studies.study import STUDIES, load_study

TABLES = [table for paper in PAPERS for table in result_tables(paper)[1]]
TRAININGS = [training for paper in PAPERS for training in result_tables(paper)[2]]
FOLLOWED = [training for training in TRAININGS if training.pages]


def test_all_tables_are_there():
    assert {p: (len(result_tables(p)[1]), sum(len(t.rows) for t in result_tables(p)[1])) for p in PAPERS} == {
        "reconet": (12, 104), "srnet": (13, 133), "ctnet": (9, 91), "ocnet": (13, 152),
    }  # fmt: skip
    assert len({table.id for table in TABLES}) == 47
    assert len(FOLLOWED) == 27


@pytest.mark.parametrize(
    ("table", "where", "column", "value"),
    [
        ("reconet/table8", {"rank": 64}, "mIoU", 82.1),
        ("reconet/table9", {"method": "EMANet"}, "GFLOPs_delta", 43.1),
        ("srnet/table3a", {"squeeze": "GHP", "reasoning": "SA"}, "mIoU", 79.5),
        ("srnet/table3a", {"squeeze": None, "reasoning": None}, "mIoU", 74.8),
        ("ctnet/table1", {"kernels": [9, 17, 33, 65]}, "mIoU", 53.3),
        ("ocnet/table1", {"method": "Base-OC (ISA, Local+Global)"}, "mIoU", 79.1),
        ("ocnet/table4", {"method": "Base-OC (ISA)"}, "GFLOPs", 386.0),
        ("srnet/table9a", {"backbone": "R-101", "detector": "+SR"}, "GFLOPs_is_delta", True),
    ],
)
def test_rows_as_printed(table, where, column, value):
    assert results_table(table).row(where)[column] == value


def test_means_over_the_printed_classes():
    # where all classes are printed their mean is the row's, but for rounding and the rows that the notes name
    off = {}
    for table in TABLES:
        total = next((column for column in ("mIoU", "mean") if column in table.columns), None)
        for row in table.rows:
            if row.get("per_class") is not None and table.id != "reconet/table1":  # background is not printed there
                gap = abs(math.fsum(row["per_class"]) / len(row["per_class"]) - row[total])
                if gap > 0.07:
                    off.setdefault(table.id, []).append(row["method"])
    assert off == {"srnet/table1": ["dilated FCN", "+SR Head"], "srnet/table6": ["SRNet-WiderResNet"]}


def test_deltas_follow_from_the_values():
    rows = results_table("srnet/table3a").rows
    assert all(row["delta"] == pytest.approx(row["mIoU"] - rows[0]["mIoU"]) for row in rows[1:])


def test_a_label_names_table_column_and_protocol():
    assert results_table("reconet/table8").label("mIoU") == (
        "RecoNet Table 8, mIoU: voc12 val, MS+flip, scales 0.75 1.0 1.25 1.5 1.75 2.0, backbone resnet101"
    )
    assert results_table("reconet/table10").label("GFLOPs").startswith("RecoNet Table 10, GFLOPs: input 512x64x64")


def test_published_values_of_variants():
    wanted = {"a": {"rank": 16}, "b": None, "c": {"rank": 128}}
    assert published_values("reconet/table8", "mIoU", wanted) == {"a": 81.2, "b": None, "c": 80.7}
    wanted = {"se": {"method": "2*3x3"}}
    assert published_values("srnet/table4", "mIoU", wanted) == {"se": None}  # a row whose mIoU is not printed


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: results_table("reconet/tabel8"), "unknown published table 'reconet/tabel8'.*Did you mean 'reconet/"),
        (lambda: results_table("reconet/table8").row({"rnk": 1}), "column of reconet/table8: 'rnk'.*Did you mean 'ra"),
        (lambda: results_table("reconet/table8").row({"rank": 65}), "no row of {rank: 65}; it has rank: 16; rank: 32"),
        (lambda: results_table("reconet/table7").row({"backbone": "resnet101"}), "3 rows, name more columns than"),
        (lambda: published_values("reconet/table8", "miou", {}), "'miou'; allowed: rank, mIoU"),
        (
            lambda: published_values("srnet/table2", "computation", {"a": {"method": "CCNet"}}),
            "no number that is compared",
        ),
        (lambda: result_tables("recnet"), "unknown paper 'recnet'"),
    ],
)
def test_what_is_not_there_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


TABLE = {"id": "reconet/table0", "title": "", "benchmark": None, "split": None, "columns": ["rank", "mIoU"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [{"rank": 1}]}, "lacks mIoU; write null"),
        ({"rows": [{"rank": 1, "mIoU": 2.0, "miou": 2.0}]}, "unknown key 'miou' of a row"),
        ({"rows": [], "titel": ""}, "unknown key 'titel'"),
        ({"columns": ["per_class"], "classes": ["a", "b"], "rows": [{"per_class": [1.0]}]}, "1 values per class, 2"),
    ],
)
def test_a_wrong_table_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        read_table(TABLE | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stated": {"4.1": {"lrate": 1}}}, "unknown key 'lrate' of a training reconet/x"),
        ({"stated": {"lr": {"lr": 1}}}, "training reconet/x: 'lr' is no section, table or figure"),
        ({"stated": {"4.1": {"lr": 1}, "Table 7": {"lr": 2}}}, "reconet/x has lr twice"),
        ({"stated": {"IV-A": {"lr": 1}}, "silent": ["lr"]}, "reconet/x has lr twice; a fact is stated in one place"),
        ({"silent": ["lrate"]}, "unknown key 'lrate'"),
        ({"stages": [{"train": "voc12/train"}]}, "training reconet/x: None is no section"),
        ({"stages": [{"at": "Fig. 11", "trian": "voc12/train"}]}, "unknown key 'trian' of a stage of training reco"),
    ],
)
def test_a_wrong_training_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        read_training({"id": "reconet/x", "benchmark": "voc12", "pages": []} | change)


def facts(recipe):
    """What a recipe says of every fact that papers state."""
    stage, loss = recipe.stages[0], recipe.loss
    return {
        "train": stage.train, "lr": stage.lr or recipe.optim.lr, "epochs": stage.epochs, "steps": stage.steps,
        "batch": recipe.batch, "crop": list(recipe.view.crop), "scale": list(recipe.view.scale),
        "rotate": recipe.view.rotate, "brightness": round(recipe.view.brightness * 255),
        "weight_decay": recipe.optim.weight_decay, "momentum": recipe.optim.momentum, "power": recipe.optim.power,
        "aux_weight": loss.get("aux", {}).get("cross_entropy", 0), "cp_weight": loss.get("class_prior", {}).get("cp"),
        "output_stride": recipe.backbone.output_stride, "neck": recipe.backbone.neck,
        "scales": list(recipe.inference.scales), "ohem": "ohem" in loss.get("logits", {}),
    }  # fmt: skip


@pytest.mark.parametrize("training", FOLLOWED, ids=lambda training: training.id)
def test_recipes_follow_what_is_stated(training):
    for page in training.pages:
        recipe = load_recipe(page)
        has = facts(recipe)
        assert {key: has[key] for key in training.facts} == training.facts
        for stage, said in zip(recipe.stages, training.stages, strict=False):
            given = {"train": stage.train, "epochs": stage.epochs, "steps": stage.steps}
            given["lr"] = stage.lr or recipe.optim.lr
            told = {key: value for key, value in said.items() if key != "at" and value is not None}
            assert {key: given[key] for key in told} == told
        assert len(recipe.stages) == max(1, len(training.stages))
        results_table(recipe.published)  # the number to meet is in the project


# A fact that is not stated, as the comments of pages name it.
NAMED = {
    "lr": "rate", "batch": "batch", "crop": "crop", "steps": "steps", "weight_decay": "decay", "power": "power",
    "momentum": "momentum", "epochs": "epochs", "aux_weight": "weight of aux", "scale": "range of scales",
    "scales": "the scales of ms",
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in names_in(RECIPES) if load_recipe(name).published])
def test_a_page_follows_one_training_and_names_all_that_it_leaves_open(name):
    """Every number of a paper's page is stated at a place of the paper, or the page says that it is not."""
    (training,) = (training for training in TRAININGS if name in training.pages)
    recipe = load_recipe(name)
    length = "epochs" if recipe.stages[0].epochs else "steps"
    wanted = {"batch", "crop", "weight_decay", "momentum", "power", "aux_weight", "scale"}
    if recipe.task != "segmentation":
        wanted -= {"power", "aux_weight"}
    wanted |= {"scales"} if len(recipe.inference.scales) > 1 else set()
    wanted |= {"lr", length} if len(recipe.stages) == 1 else set()  # else each stage has its own
    assert wanted <= set(training.facts) | set(training.silent)
    assert all("at" in stage for stage in training.stages)
    text = (RECIPES / f"{name}.yaml").read_text()
    said = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))
    left = [part for part in said.lower().split(". ") if re.search("not (re)?stated?|nor are|said is no more", part)]
    silent = {NAMED[fact] for fact in training.silent} | {"rate" for s in training.stages if s["lr"] is None}
    if len(recipe.inference.scales) == 1:
        silent.discard("the scales of ms")
    assert {word for word in silent if not any(word in part for part in left)} == set()


def test_what_a_paper_does_not_state_is_claimed_nowhere():
    """What the audit of the papers' text found to be claimed without a source."""
    known = {training.id: training for training in TRAININGS}
    for id, facts_ in (
        ("srnet/camvid", {"lr", "weight_decay", "momentum", "power"}),
        ("srnet/pascal_context", {"lr", "weight_decay", "momentum", "power"}),
        ("srnet/ade20k", {"weight_decay", "momentum", "power"}),
        ("srnet/cityscapes_realtime", {"aux_weight"}),
    ):
        assert facts_ <= set(known[id].silent)
    assert known["ctnet/voc2012"].stages[1]["train"] is None
    assert known["ocnet/cityscapes_test"].stated["4.4"] == {"ohem": True}


def test_contradictions_within_the_papers_stand_next_to_the_numbers(monkeypatch, capsys):
    found = [(table, entry) for table in TABLES for entry in table.also]
    assert len(found) == 18
    for table, entry in found:
        row = table.row(entry["row"])
        assert row[entry["column"]] is not None
        assert entry["says"] in table.elsewhere(row, entry["column"])
    monkeypatch.setattr(sys, "argv", ["compare", "results", "ctnet", "--published-only"])
    compare.main()
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "CTNet resnet101 1 1 54.4 56.2*" in lines
    assert "* method OSCM, backbone resnet101, CCM 0, SCM 1: MS 54.5; 54.6 in Table 4" in lines
    assert sum(bool(re.search(r"\d\*( |$)", line)) for line in lines) == 13  # the paper's contradictions
    assert "of mce-9-17-33-65 elsewhere: 52.9 in the prose" in published_of(load_study("ctnet/kernels")).label


SETTINGS = {"rank", "TGM_TRM", "GPM", "aux", "ms_flip", "ft", "channels", "CCM", "SCM", "P_h", "P_w", "width_px"}


def test_every_column_of_numbers_says_what_it_measures():
    numbers = {
        column
        for table in TABLES
        for column in table.columns
        if any(isinstance(row[column], int | float) and not isinstance(row[column], bool) for row in table.rows)
    }
    assert numbers - SETTINGS == set(QUANTITIES)


STUDIES_OF_TABLES = [name for name in names_in(STUDIES) if load_study(name).study.published]


@pytest.mark.parametrize("name", STUDIES_OF_TABLES)
def test_every_study_cites_a_column_of_what_it_measures(name):
    plan = load_study(name)
    given = plan.study.published
    assert QUANTITIES[given.column] == "mIoU"
    numbers = published_of(plan)
    assert any(value is not None for value in numbers.values.values())
    # and tested at as many scales, where the paper says at how many
    table, spec = results_table(given.table), make_recipe(plan.page)
    spec = spec.validation or spec.inference
    has = "single" if spec.scales == (1.0,) and not spec.flip else "multi"
    rows = [table.row(v.published) for v in plan.study.variants.values() if v.published]
    assert {table.scales(row, given.column) for row in rows} <= {"", has} or "ms_flip" in table.columns


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("pixAcc", "column 'pixAcc' of ocnet/table1 holds pixel accuracy, but measured is mIoU, which is in: mIoU"),
        ("P_h", "holds no number that is compared"),
    ],
)
def test_a_study_that_cites_another_quantity_is_refused(tmp_path, column, message):
    page = tmp_path / "study.yaml"
    text = (STUDIES / "ocnet/partition.yaml").read_text()
    assert "column: mIoU" in text
    page.write_text(text.replace("column: mIoU", f"column: {column}"))
    with pytest.raises(InputError, match=message):
        published_of(load_study(page))


def test_every_page_with_a_table_has_its_rows_there():
    pages = {page: table for table in TABLES for page in table.models}
    named = {name: load_recipe(name).published for name in names_in(RECIPES)}
    assert {page: table.id for page, table in pages.items()} == {k: v for k, v in named.items() if v}
    for page, table in pages.items():
        rows = [table.row(where) for where in table.models[page]]
        assert len({id(row) for row in rows}) == len(rows) > 0
        columns = [*table.columns_of("mIoU"), *table.columns_of("top-1 accuracy")]
        assert any(row[column] is not None for row in rows for column in columns)


@pytest.mark.parametrize(
    ("table", "where", "column", "scales"),
    [
        ("reconet/table8", {"rank": 64}, "mIoU", "multi"),
        ("reconet/table9", {"method": "PSPNet"}, "mIoU_SS", "single"),
        ("reconet/table12", {"backbone": "resnet101", "ms_flip": 1}, "mIoU", "multi"),
        ("srnet/table3a", {"squeeze": "GHP", "reasoning": "SA"}, "mIoU", "single"),
        ("srnet/table6", {"method": "DFN"}, "mIoU", ""),
        ("ctnet/table5", {"method": "CTNet", "backbone": "resnet50"}, "SS", "single"),
        ("ctnet/table1", {"kernels": [9]}, "mIoU", "multi"),
    ],
)
def test_scales_of_a_printed_number(table, where, column, scales):
    table = results_table(table)
    assert table.scales(table.row(where), column) == scales


def test_the_door_lists_every_row(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare", "results", "srnet", "--published-only"])
    compare.main()
    shown = capsys.readouterr().out
    assert shown.count("published:") == 13
    assert "srnet: 13 tables, 133 rows, all published" in shown
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert "GHP GCN 79.9 5.1" in lines
    assert "2*3x3 - 108.74 11.8 108.0 FCN" in lines
    assert any(
        line.startswith(
            "training [srnet/camvid]: III-D: output_stride 8; IV-C: crop 640 640, epochs 100; not stated: lr"
        )
        for line in lines
    )
