"""The bundled studies: every variant builds, every published row is there, every table of the papers is complete."""

import re
import sys

import pytest

from pipelines.ablate import EXAMPLES, main
from pipelines.published.results import published_values, results_table
from pipelines.studies.fair import check_fair, check_models, expand
from pipelines.studies.files import Numbers
from pipelines.studies.run import check
from pipelines.studies.study import STUDIES, load_study

BUNDLED = sorted(str(path.relative_to(STUDIES).with_suffix("")) for path in STUDIES.rglob("*.yaml"))
# Rows without a variant, and why.
LEFT_OUT = {"reconet/table9": ["ResNet-101 (base)"]}  # a cost alone, no mIoU


@pytest.mark.parametrize("name", BUNDLED)
def test_every_variant_builds_and_differs_in_what_is_ablated_alone(name, hollow):
    plan = load_study(name, seeds=1)
    trials = expand(plan)
    check_models(plan, trials)
    check_fair(plan, trials)
    assert plan.study.search or plan.study.baseline
    recipes = [repr(trial.recipe).replace(trial.name, "") for trial in trials]
    assert len(set(recipes)) == len(recipes)  # no variant is another under a second name


@pytest.mark.parametrize("line", [line for line in EXAMPLES.splitlines() if re.search(r"ablate \w+/\w+", line)])
def test_the_examples_of_the_help_can_be_typed(line, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ablate", *line.split()[3:], "--print"])
    main()
    assert "trials: " in capsys.readouterr().out


def test_every_row_of_the_papers_tables_has_a_variant():
    used = {}
    for name in BUNDLED:
        study = load_study(name).study
        if study.published:
            wanted = {key: variant.published for key, variant in study.variants.items()}
            values = published_values(study.published.table, study.published.column, wanted)
            assert values[study.baseline] is not None, f"{name}: gains need the baseline's number"
            table = results_table(study.published.table)
            used.setdefault(table.id, []).extend(table.row(where) for where in wanted.values() if where)
    assert set(used) == {
        "reconet/table7", "reconet/table8", "reconet/table9", "reconet/table12", "srnet/table3a", "srnet/table4",
        "ctnet/table1", "ctnet/table2", "ctnet/table5", "ctnet/table6",
        "ocnet/table1", "ocnet/table2", "ocnet/table3", "ocnet/table5",
    }  # fmt: skip
    for id, rows in used.items():
        missing = [row for row in results_table(id).rows if row not in rows]
        assert [row["method"] for row in missing] == LEFT_OUT.get(id, []), id
        assert len(rows) == len({repr(row) for row in rows}), f"{id}: two variants of one row"


def test_figures_without_numbers_publish_nothing():
    for name in ("srnet/nodes", "srnet/ratio", "ctnet/single_kernels", "ctnet/loss_weights"):
        study = load_study(name).study
        assert study.published is None
        assert "figure without numbers" in study.notes


def test_studies_keep_to_the_protocol_of_their_table():
    def scored(name, variant):
        plan = load_study(name, seeds=1)
        recipe = next(trial.recipe for trial in expand(plan) if trial.variant == variant)
        spec = recipe.validation or recipe.inference
        return len(spec.scales), spec.flip

    assert scored("reconet/rank", "rank64") == (6, True)  # MS+flip
    assert scored("reconet/heads", "reconet") == (1, False)  # the column mIoU_SS
    assert scored("reconet/components", "resnet101") == (1, False)
    assert scored("reconet/components", "resnet101-ms") == (6, True)
    assert scored("ctnet/kernels", "se") == (6, True)
    assert scored("ctnet/modules", "occm-resnet50") == (1, False)
    assert scored("srnet/squeeze_reasoning", "ghp-gcn") == scored("ocnet/partition", "fcn") == (1, False)


def test_every_variant_has_the_protocol_that_it_is_scored_under(tmp_path, recipe_file, shards):
    page = tmp_path / "study.yaml"
    page.write_text(
        f"{{title: t, recipe: {recipe_file()}, set: {{workers.count: 1}}, baseline: plain, variants: "
        "{plain: {}, flipped: {set: {validation: {mode: whole, flip: true}}}}}"
    )
    plan = load_study(page)
    trials = expand(plan)
    protocol = check(plan, trials[0].recipe, trials, Numbers({}, ""), str(shards)).protocol
    assert protocol["plain"].startswith("voc12/val, 11 rows, whole, scales 1.0, no flip; 5 steps")
    assert protocol["flipped"].startswith("voc12/val, 11 rows, whole, scales 1.0, flip; 5 steps")
