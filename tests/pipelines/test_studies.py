"""The bundled studies: every variant builds, every published row is there, every table of the papers is complete."""

import re
import sys

import pytest

from pipelines.ablate import EXAMPLES, main
from pipelines.published.results import published_values, results_table
from pipelines.recipes.reading import load_recipe
from pipelines.recipes.tasks import metric_of
from pipelines.studies.fair import check_fair, check_models, expand, page_of
from pipelines.studies.files import Numbers
from pipelines.studies.run import check
from pipelines.studies.study import STUDIES, load_study
from segmodels.checks import keywords_of
from segmodels.heads.catalog import HEADS

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


@pytest.mark.parametrize("head", ["fcn", "reconet", "srnet", "ctnet", "ocnet"])
def test_the_study_of_five_heads_compares_the_bundled_pages(head):
    (trial,) = [t for t in expand(load_study("camvid/heads", seeds=1)) if t.variant == head]
    page = load_recipe(f"{head}/camvid_efficientnet_lite0")
    for key in ("head", "loss", "aux", "optim", "view", "batch", "inference"):
        assert getattr(trial.recipe, key) == getattr(page, key), key


@pytest.mark.parametrize("line", [line for line in EXAMPLES.splitlines() if re.search(r"ablate \w+/\w+", line)])
def test_the_examples_of_the_help_can_be_typed(line, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ablate", *line.split()[3:], "--print"])
    main()
    assert "trials: " in capsys.readouterr().out


def test_every_row_of_the_papers_tables_has_a_variant():
    used, columns = {}, {}
    for name in BUNDLED:
        study = load_study(name).study
        if study.published:
            wanted = {key: variant.published for key, variant in study.variants.items()}
            metric = metric_of(load_recipe(study.recipe).task)
            values = published_values(study.published.table, study.published.column, wanted, metric)
            assert values[study.baseline] is not None, f"{name}: gains need the baseline's number"
            table = results_table(study.published.table)
            columns.setdefault(table.id, set()).add(study.published.column)
            mine = [table.row(where) for where in wanted.values() if where]
            assert len(mine) == len({repr(row) for row in mine}), f"{name}: two variants of one row"
            used.setdefault(table.id, []).extend(mine)
    assert set(used) == {
        "reconet/table7", "reconet/table8", "reconet/table9", "reconet/table12", "srnet/table3a", "srnet/table4",
        "srnet/table1", "ctnet/table1", "ctnet/table2", "ctnet/table4", "ctnet/table5", "ctnet/table6",
        "ocnet/table1", "ocnet/table2", "ocnet/table3", "ocnet/table5", "srnet/table9a", "srnet/table9b",
        "srnet/table10", "ocnet/table12",
    }  # fmt: skip
    for id, rows in used.items():
        missing = [row for row in results_table(id).rows if row not in rows]
        assert [row["method"] for row in missing] == LEFT_OUT.get(id, []), id
        assert len(columns[id]) > 1 or len(rows) == len({repr(row) for row in rows}), f"{id}: two variants of one row"


# What a variant must be by the name of the row that it cites: the head, and those of its keywords that the name says.
METHODS = {
    "FCN": ("fcn", {}), "Dilated ResNet-50": ("fcn", {}), "Dilated ResNet-101": ("fcn", {}),
    "dilated FCN": ("fcn", {"conv": False}), "PSPNet": ("psp", {}), "PSP": ("psp", {}), "PPM": ("psp", {}),
    "ASPP": ("aspp", {"final_conv": False}), "DeepLabV3+": ("deeplabv3plus", {}), "DANet": ("danet", {}),
    "PSANet": ("psanet", {}), "CCNet": ("ccnet", {}), "EMANet": ("emanet", {}), "RecoNet": ("reconet", {}),
    "CFNet": ("cfnet", {}), "EncNet": ("encnet", {}), "2*3x3": ("srnet", {"squeeze": "none"}),
    "SE": ("se", {"second_conv": True}), "NL": ("nonlocal", {"second_conv": True}),
    "A2Net": ("a2", {"second_conv": True}), "CGNL": ("cgnl", {}), "RCCA": ("ccnet", {}),
    "Encoding": ("encnet", {"second_conv": True}), "ANN": ("ann", {"afnb": False, "second_conv": True}),
    "EMAU": ("emanet", {"out_channels": 512}), "SR (GAP)": ("srnet", {"squeeze": "gap"}),
    "SR (GHP)": ("srnet", {"squeeze": "ghp"}), "+SR Head": ("srnet", {"squeeze": "ghp"}),
    "CTNet": ("ctnet", {"arrangement": "ctnet"}), "OSCM": ("ctnet", {"arrangement": "oscm"}),
    "OCCM": ("ctnet", {"arrangement": "occm"}), "PANet (parallel CTNet)": ("ctnet", {"arrangement": "panet"}),
    "CTNet+SE": ("ctnet", {"gate": "se"}), "CTNet+ECA": ("ctnet", {"gate": "eca"}),
    "CTNet+MCE": ("ctnet", {"gate": "mce"}), "CTNet+Max": ("ctnet", {"pooling": "max"}),
    "CTNet+Mix": ("ctnet", {"pooling": "mix"}), "CTNet+Avg": ("ctnet", {"pooling": "avg"}),
    "SA-2x": ("sa2x", {}), "Efficient Attention": ("efficient", {}),
    **{f"{name} ({kind.upper()})": ("ocnet", {"scheme": scheme, "attention": kind})
       for scheme, name in {"base": "Base-OC", "pyramid": "Pyramid-OC", "asp": "ASP-OC"}.items()
       for kind in ("sa", "isa")},
    **{f"Base-OC (ISA, {order})": ("ocnet", {"order": order.lower().replace("+", "_")})
       for order in ("Global+Local", "Local+Global", "Global", "Local")},
}  # fmt: skip
# What its settings must be by a column of that row: of the recipe, the value.
FITS = {
    "rank": lambda recipe, value: recipe.head["rank"] == value,
    "TGM_TRM": lambda recipe, value: recipe.head.get("tgm_trm", True) == bool(value),
    "GPM": lambda recipe, value: recipe.head.get("gpm", True) == bool(value),
    "aux": lambda recipe, value: (recipe.aux is not None) == bool(value),
    "ms_flip": lambda recipe, value: (len(recipe.validation.scales) == 6, recipe.validation.flip) == (value,) * 2,
    "ft": lambda recipe, value: [stage.name for stage in recipe.stages] == ["aug", "finetune"][: 1 + value],
    "squeeze": lambda recipe, value: recipe.head.get("squeeze") == (value and value.lower()),
    "reasoning": lambda recipe, value: recipe.head.get("reasoning", "none") == (value or "none").lower(),
    "kernels": lambda recipe, value: value is None or list(recipe.head["kernels"]) == value,
    "P_h": lambda recipe, value: value is None or recipe.head["partition"][0] == value,
    "P_w": lambda recipe, value: value is None or recipe.head["partition"][1] == value,
    "CCM": lambda recipe, value: (recipe.head.get("arrangement", "ctnet") != "oscm") == bool(value),
    "SCM": lambda recipe, value: (recipe.head.get("arrangement", "ctnet") != "occm") == bool(value),
    "dataset": lambda recipe, value: recipe.stages[-1].val.startswith(value),
    "backbone": lambda recipe, value: value is None or recipe.backbone.name == f"{value.replace('ResNet-', 'resnet')}s",
}  # fmt: skip


OF_TABLES = [name for name in BUNDLED if load_study(name).study.published]
OF_TASKS = [name for name in OF_TABLES if load_recipe(load_study(name).study.recipe).task != "segmentation"]


@pytest.mark.parametrize("name", OF_TASKS)
def test_a_variant_of_another_task_is_the_page_of_the_row_that_it_cites(name):
    plan = load_study(name, seeds=1)
    table = results_table(plan.study.published.table)
    pages = {repr(table.row(where)): page for page, (where,) in table.models.items()}
    cited = []
    for trial in expand(plan):
        page = load_recipe(pages[repr(table.row(plan.study.variants[trial.variant].published))])
        ours, theirs = page_of(trial.recipe), page_of(page)
        differs = {key for key in ours | theirs if ours.get(key) != theirs.get(key)}
        assert differs <= {"name", "stages.0.val_every"}, f"{trial.variant}: {differs}"
        cited.append(page.name)
    assert len(cited) == len(set(cited)) == len(table.rows)


@pytest.mark.parametrize("name", [name for name in OF_TABLES if name not in OF_TASKS])
def test_a_variant_is_what_the_row_that_it_cites_names(name):
    plan = load_study(name, seeds=1)
    table = results_table(plan.study.published.table)
    for trial in expand(plan):
        where = plan.study.variants[trial.variant].published
        if where is None:
            continue
        row, head = table.row(where), trial.recipe.head
        if "method" in row:
            kind, said = METHODS[row["method"]]
            defaults = keywords_of(HEADS[kind])
            assert head["name"] == kind, f"{trial.variant} cites {row['method']}"
            assert {key: head.get(key, defaults[key]) for key in said} == said, trial.variant
        wrong = [c for c in table.columns if c in FITS and not FITS[c](trial.recipe, row[c])]
        assert wrong == [], f"{trial.variant} cites {row}"


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


def test_a_study_says_what_its_trials_wait_for_and_why_they_died(tmp_path, capsys, monkeypatch):
    from types import SimpleNamespace

    from pipelines.cluster.sizes import Sizes
    from pipelines.studies import watch as watching
    from pipelines.studies.trial import SAID, TrialContext, timeline

    place = TrialContext(tmp_path / "study", "", tmp_path, Sizes(1, 0, 1.0, 1, 2.0))
    watch = watching.Watch(place, lambda name: name, SimpleNamespace(add=lambda trial: None), 2, 1)
    trial = SimpleNamespace(
        config={"name": "wide-seed0"}, status="PENDING", get_error=lambda: "Trace\n\x1b[31mOSError: no disk\n"
    )
    now, events = [100.0], watch.callback()
    monkeypatch.setattr(watching.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(watching, "free", lambda: "0 CPU(s)")
    for now[0] in (100.0, 105.0, 111.0, 115.0):  # it says so after ten seconds, and not again for a minute
        events.on_step_end(0, [trial])
    assert (
        capsys.readouterr().out == f"{'wide-seed0':>24}  waits for its process, which needs 1 CPU; free are 0 CPU(s)\n"
    )

    timeline(place.trial("wide-seed0"), SAID, text="of an earlier run of the study")
    events.on_trial_start(0, [trial], trial)
    trial.status = "RUNNING"
    timeline(place.trial("wide-seed0"), SAID, text="waiting for room for 1 worker")
    for now[0] in (120.0, 200.0):
        events.on_step_end(0, [trial])
    timeline(place.trial("wide-seed0"), SAID, text="rank 0 was killed")
    events.on_trial_recover(0, [trial], trial)
    events.on_trial_start(0, [trial], trial)
    shown = [line.strip().partition("  ")[2] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["starts", "waiting for room for 1 worker", "rank 0 was killed", "died: OSError: no disk",
                     "starts again, from its last checkpoint"]  # fmt: skip
