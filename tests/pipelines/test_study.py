"""Studies without Ray's workers: the page, what is refused, which trials come of it, who stops and who comes next."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from datasets.sample import DataError
from pipelines.base.door import ROOT
from pipelines.base.errors import InputError
from pipelines.base.files import to_json, write_text
from pipelines.cluster.sizes import Sizes
from pipelines.recipes.reading import load_recipe
from pipelines.recipes.recipe import Workers
from pipelines.runs import checkpoint
from pipelines.runs.folder import step_name
from pipelines.runs.results import About, Result
from pipelines.studies.fair import check_fair, check_models, check_samples, covered, expand
from pipelines.studies.files import settings_of
from pipelines.studies.study import load_study, to_yaml, variants_of
from pipelines.studies.table import build, numbers
from pipelines.studies.trial import Points, TrialContext, end, ended, row_of

PAGE = {
    "title": "Width of the head",
    "baseline": "narrow",
    "variants": {"narrow": {"set": {"head.channels": 8}}, "wide": {"set": {"head.channels": 16}}},
    "seeds": [0, 1],
}
RANK = {
    "search": {"algorithm": "random", "trials": 3, "space": {"optim.lr": {"log_uniform": [1e-4, 0.1]}}},
    "seeds": [0],
}
WITHOUT = {"variants": {}, "baseline": None}


@pytest.fixture
def study_file(recipe_file, tmp_path):
    """Writes PAGE, changed, on top of the tiny recipe, itself changed by `recipe`."""

    def write(recipe=None, /, **changes):
        page = {**PAGE, "recipe": str(recipe_file(**{"workers": {"count": 1, "gpus": 0}, **(recipe or {})})), **changes}
        path = tmp_path / "width.yaml"
        path.write_text(
            yaml.safe_dump({key: value for key, value in page.items() if value is not None}, sort_keys=False)
        )
        return path

    return write


def test_variants_times_seeds_differ_in_the_ablated_key_and_the_seed_alone(study_file):
    plan = load_study(study_file())
    trials = expand(plan)
    assert [t.name for t in trials] == ["narrow-seed0", "narrow-seed1", "wide-seed0", "wide-seed1"]
    assert [(t.recipe.head["channels"], t.recipe.seed) for t in trials] == [(8, 0), (8, 1), (16, 0), (16, 1)]
    alike = [dataclasses.replace(t.recipe, head={}, seed=0, name=None) for t in trials]
    assert all(recipe == alike[0] for recipe in alike)
    check_fair(plan, trials)
    check_models(plan, trials)


def test_a_difference_that_nobody_asked_for_is_refused(study_file):
    plan = load_study(study_file())
    trials = expand(plan)
    odd = dataclasses.replace(trials[3].recipe, optim=dataclasses.replace(trials[3].recipe.optim, lr=0.5))
    with pytest.raises(
        InputError, match=r"unfair: wide-seed1 has optim.lr = 0.5, narrow-seed0 has 0.01.*head.channels"
    ):
        check_fair(plan, [*trials[:3], dataclasses.replace(trials[3], recipe=odd)])


@pytest.mark.parametrize(
    ("key", "allowed", "may"),
    [
        ("head.rank", "head.rank", True),
        ("head.rank", "head", True),
        ("aux", "aux.stage", True),  # from none to some
        ("head.ranks", "head.rank", False),
        ("stages.0.epochs", "stages.first.epochs", True),
        ("stages.0.epochs", "stages.first.lr", False),
        ("optim.lr", "optim.power", False),
    ],
)
def test_which_keys_may_differ(key, allowed, may):
    assert covered(key, [allowed]) is may


def test_a_grid_is_every_combination_named_by_its_values():
    variants = variants_of({"head.rank": (16, 32), "optim.lr": (0.01,), "view.crop": ([64, 64], [32, 48])})
    assert list(variants) == ["rank16-lr0.01-crop64_64", "rank16-lr0.01-crop32_48", "rank32-lr0.01-crop64_64",
                              "rank32-lr0.01-crop32_48"]  # fmt: skip
    assert variants["rank32-lr0.01-crop32_48"].set == {"head.rank": 32, "optim.lr": 0.01, "view.crop": [32, 48]}
    assert list(variants_of({"head.lr": (1,), "optim.lr": (2,)})) == ["head.lr1-optim.lr2"]


def test_the_command_line_reaches_all_variants_and_the_page_that_is_kept(study_file, tmp_path):
    plan = load_study(study_file(), seeds=3, overrides=["optim.lr=0.5"], benchmark="camvid")
    trials = expand(plan)
    assert {t.recipe.seed for t in trials} == {0, 1, 2}
    assert {t.recipe.optim.lr for t in trials} == {0.5}
    assert {(t.recipe.stages[0].train, t.recipe.stages[0].val) for t in trials} == {("camvid/train", "camvid/val")}
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(plan))
    assert [t.recipe for t in expand(load_study(again))] == [t.recipe for t in trials]
    assert load_study(study_file()).name != plan.name  # it computes something else
    assert load_study(study_file(seeds=[5])).name == load_study(study_file()).name  # more seeds go on with the study


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": {}}, "unknown key 'variant'; did you mean 'variants'"),
        ({"grid": {"head.channels": [8]}}, "this one has variants and grid"),
        (RANK, "this one has .'variants', 'search'."),
        ({"variants": None, "baseline": None}, "this one has none of them"),
        ({"baseline": "narow"}, "is no variant; did you mean 'narrow'"),
        ({"curve": "head.chanels"}, "no variant sets it; did you mean 'head.channels'"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": [1, 1]}, "one is there twice"),
        ({"variants": {"a b": {"set": {"batch": 2}}}, "baseline": None}, "variant 'a b': letters"),
        ({"variants": {"a": {"set": {"seed": 2}}}, "baseline": None}, "variant 'a' sets seed"),
        ({"variants": {"a": {"set": {"task": "panoptic"}}}, "baseline": None}, "variant 'a' sets task: that is the"),
        ({"recipe": "reconet/camvid_resnet50"}, "no recipe .* did you mean 'reconet/camvid_resnet50s'"),
        ({"set": {"head.channels.0": 2}}, "nothing is below|cannot be applied"),
        ({"stop_early": {"grace": 1.5}}, "grace = 1.5: a share"),
        ({"stop_early": {"reduction": 1}}, "reduction = 1.0: above 1"),
        ({"stop_early": {"grace": 0.5}}, "no stage validates before its end.*stages.first.val_every=1"),
        ({"grid": {"head.channels": []}, **WITHOUT}, "grid.head.channels is empty"),
        ({"recipe_": {"workers": {"count": 0, "gpus": 0}}}, "workers.count = 0: the trials"),
        ({"recipe_": {"stages": [{"name": "a", "train": "voc12/train", "steps": 2}]}}, "no stage has `val`"),
    ],
)
def test_what_a_page_may_not_hold(study_file, changes, message):
    changes = dict(changes)
    with pytest.raises(InputError, match=message):
        load_study(study_file(changes.pop("recipe_", None), **changes))


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"trials": 0}, "search.trials = 0"),
        ({"space": {}}, "search.space is empty"),
        ({"space": {"optim.lr": {"range": [1, 2]}}}, "one of choice, uniform, log_uniform, integer"),
        ({"space": {"optim.lr": {"uniform": [2, 1]}}}, "low < high"),
        ({"space": {"optim.lr": {"log_uniform": [0, 1]}}}, "both above 0"),
        ({"space": {"optim.lr": {"uniform": [1]}}}, "two numbers"),
        ({"algorithm": "optna"}, "'optuna'"),
    ],
)
def test_what_a_search_may_not_hold(study_file, search, message):
    page = WITHOUT | RANK | {"search": RANK["search"] | search}
    with pytest.raises(InputError, match=message):
        load_study(study_file(**page))


def test_a_search_has_one_seed(study_file):
    with pytest.raises(InputError, match=r"one seed, seeds = .0, 1."):
        load_study(study_file(**(WITHOUT | RANK | {"seeds": [0, 1]})))


def test_an_unknown_key_in_a_grid_names_variant_and_nearest_key(study_file):
    plan = load_study(study_file(grid={"optim.momentun": [0.5, 0.9]}, **WITHOUT))
    with pytest.raises(InputError, match=r"variant 'momentun0.5': unknown key 'optim.momentun'"):
        expand(plan)


def test_all_variants_that_cannot_be_built_are_named_at_once(study_file):
    bad = {"bad": {"set": {"head.chanels": 4}}, "worse": {"set": {"backbone.name": "resnet17"}}}
    plan = load_study(study_file(variants={"good": {}} | bad, baseline="good"))
    with pytest.raises(InputError) as caught:
        check_models(plan, expand(plan))
    text = str(caught.value)
    assert text.startswith("2 of 3 cannot be built")
    assert "variant 'bad'" in text
    assert "chanels" in text
    assert "variant 'worse'" in text
    assert "'good'" not in text


def test_the_corners_of_a_space_are_built_before_a_search_starts(study_file):
    space = {"head.channels": {"choice": [8, 16]}, "backbone.output_stride": {"choice": [8, 5]}}
    plan = load_study(study_file(**(WITHOUT | RANK | {"search": RANK["search"] | {"space": space}})))
    with pytest.raises(InputError, match=r"point head.channels=8, backbone.output_stride=5: .*allowed are 8, 16, 32"):
        check_models(plan, [])


def test_several_stages_cannot_be_replaced_by_one_benchmark(study_file):
    run = [{"name": n, "train": "voc12/train", "val": "voc12/val", "steps": 2} for n in ("one", "two")]
    with pytest.raises(InputError, match=r"2 stages \(one, two\).*stages.one.train=camvid/train"):
        load_study(study_file({"stages": run}), benchmark="camvid")


def test_missing_shards_are_said_of_the_variant(study_file, shards):
    plan = load_study(study_file(variants={"here": {}, "away": {"set": {"stages.first.train": "nowhere/train"}}},
                                 baseline="here"))  # fmt: skip
    with pytest.raises(DataError, match=r"variant 'away': .*nowhere"):
        check_samples(plan, expand(plan), str(shards))


def test_variants_that_see_other_samples_are_said_so_in_the_caption(study_file, shards):
    plan = load_study(study_file())
    assert check_samples(plan, expand(plan), str(shards))[1] == ""
    plan = load_study(study_file(variants={"a": {}, "b": {"set": {"view.crop": [64, 64]}}}, baseline="a"))
    assert "view.crop decide(s) them" in check_samples(plan, expand(plan), str(shards))[1]
    odd = dataclasses.replace(load_study(study_file()).study)
    trials = expand(load_study(study_file()))
    trials[2:] = [dataclasses.replace(t, recipe=dataclasses.replace(t.recipe, batch=2)) for t in trials[2:]]
    with pytest.raises(InputError, match="unfair: the variants do not train on the same samples"):
        check_samples(dataclasses.replace(plan, study=odd), trials, str(shards))


@pytest.mark.parametrize(
    ("workers", "cluster", "at_once", "size"),
    [
        (Workers(count=2, gpus=1), {"cores": 64, "gpus": 8, "logical": 64.0}, 4, (2, 1, 1.0, 6)),
        (Workers(count=2, gpus=0), {"cores": 2, "gpus": 0, "logical": 5.0}, 1, (2, 0, 1.0, 1)),
        (Workers(count=1, gpus=0), {"cores": 2, "gpus": 0, "logical": 6.0}, 2, (1, 0, 1.0, 1)),
        (Workers(count=None, gpus=None), {"cores": 32, "gpus": 4, "logical": 32.0}, 1, (4, 1, 1.0, 6)),
    ],
)
def test_trials_at_once_follow_from_the_cluster_and_fit_into_it(workers, cluster, at_once, size):
    from pipelines.studies.tuning import room

    sizes, found = room(workers, **cluster)
    assert found == at_once
    assert (sizes.count, sizes.gpus, sizes.cpus, sizes.feed_tasks) == size
    needed = found * (sizes.count * (sizes.cpus + sizes.feed_tasks * sizes.feed_cpus) + sizes.cpus)
    assert needed <= cluster["logical"] + 1e-9
    assert found * sizes.count * sizes.gpus <= cluster["gpus"]


def test_more_trials_at_once_than_fit_are_refused_with_the_arithmetic():
    from pipelines.studies.tuning import room

    with pytest.raises(
        InputError, match=r"5 trial\(s\) at once on 64 core\(s\) and 8 GPU\(s\) leave 12 core\(s\) and 1"
    ):
        room(Workers(count=2, gpus=1), cores=64, gpus=8, logical=64.0, wanted=5)
    with pytest.raises(InputError, match=r"workers.count = 4 with one GPU each: the cluster has 2 GPU"):
        room(Workers(count=4, gpus=1), cores=64, gpus=2, logical=64.0)


SPACE = {"a": {"choice": [[1, 2], "x"]}, "b": {"log_uniform": [1e-4, 1e-1]}, "c": {"integer": [2, 4]},
         "d": {"uniform": [-1, 1]}}  # fmt: skip


def test_random_points_lie_in_the_space_and_follow_from_seed_and_place():
    from pipelines.studies.searching import draw

    points = [draw(SPACE, 3, index, []) for index in range(200)]
    assert points == [draw(SPACE, 3, index, []) for index in range(200)]
    assert points != [draw(SPACE, 4, index, []) for index in range(200)]
    assert {str(p["a"]) for p in points} == {"[1, 2]", "x"}
    assert {p["c"] for p in points} == {2, 3, 4}
    assert all(1e-4 <= p["b"] <= 0.1 and -1 <= p["d"] <= 1 for p in points)
    below = sum(p["b"] < 10**-2.5 for p in points)
    assert 70 < below < 130  # uniform in the logarithm


def test_optuna_follows_from_what_ended_and_finds_the_peak():
    from pipelines.studies.searching import tpe

    space = {"x": {"uniform": [0, 1]}, "kind": {"choice": ["good", "bad"]}}
    history = []
    for index in range(40):
        point = tpe(space, 1, index, history)
        history.append((point, -((point["x"] - 0.7) ** 2) - (point["kind"] == "bad")))
    assert tpe(space, 1, 40, history) == tpe(space, 1, 40, json.loads(json.dumps(history)))
    late = [point for point, _ in history[25:]]
    assert sum(point["kind"] == "good" for point in late) > 10
    assert sum(abs(point["x"] - 0.7) < 0.2 for point in late) > 8


def place_of(tmp_path):
    return TrialContext(tmp_path / "study", "", tmp_path, Sizes(1, 0, 1.0, 1, 1.0))


def result(stage="first", miou=None, steps=1, images_per_s=0.0):
    return Result(stage, 4, steps, 2, 0.0, miou, miou, steps, images_per_s, "unused", None, "whole", 5)


def finish(place, name, miou, stage="first"):
    folder = place.trial(name) / stage
    folder.mkdir(parents=True, exist_ok=True)
    result(stage, miou).write(folder / "done.json")


def test_a_search_goes_on_where_a_killed_driver_left_it(study_file, tmp_path):
    from pipelines.studies.searching import Searched

    page = WITHOUT | RANK | {"search": RANK["search"] | {"algorithm": "optuna", "trials": 15}}
    plan = load_study(study_file(**page))
    whole = Searched(plan, plan.study.search, place_of(tmp_path / "whole"))
    parts = Searched(plan, plan.study.search, place_of(tmp_path / "parts"))
    for index in range(15):
        for source in (whole, parts):
            assert source.next() == f"trial{index:03d}"
        if index == 12:  # killed while trial 12 ran: it comes first, nothing that ended comes again
            parts = Searched(plan, plan.study.search, place_of(tmp_path / "parts"))
            assert parts.left() == 3
            assert parts.next() == "trial012"
        for source in (whole, parts):
            finish(source.place, f"trial{index:03d}", (index * 7 % 15) / 15)
    names = [f"trial{index:03d}" for index in range(15)]
    assert [whole.place.point(name) for name in names] == [parts.place.point(name) for name in names]
    assert whole.left() == parts.left() == 0


def test_how_a_trial_ended_is_read_from_its_folder(study_file, tmp_path):
    plan, place = load_study(study_file()), place_of(tmp_path)
    trial = expand(plan)[0]
    folder = place.trial(trial.name)
    folder.mkdir(parents=True)
    assert ended(trial.recipe, folder) is None
    assert row_of("narrow", 0, trial.recipe, folder)["status"] == "waiting"
    (folder / "ended.json").write_text(json.dumps({"status": "stopped", "miou": 0.2, "progress": 0.4, "time": 1}))
    assert ended(trial.recipe, folder).status == "stopped"
    assert row_of("narrow", 0, trial.recipe, folder)["miou"] is None  # half trained: it is in no mean
    finish(place, trial.name, 0.5)  # by workers that were not gone yet
    assert ended(trial.recipe, folder).status == "stopped"
    (folder / "ended.json").unlink()
    card = {"cost.parameters": 7, "cost.macs": 2e9, "cost.activation_bytes": 3 << 20}
    About(card, {}, [], "whole", 1).write(folder / "first/about.json")
    result(miou=0.5, images_per_s=12.5).write(folder / "first/done.json")
    (folder / "first/record.jsonl").write_text(
        '{"kind": "train", "gpu_mib": 40.0}\n{"kind": "train", "gpu_mib": 44.0}\n'
    )
    row = row_of("narrow", 0, trial.recipe, folder)
    assert row.pop("tests")["validation"]["scores"]["mIoU"] == 0.5  # no protocols were asked for
    assert row == {
        "variant": "narrow", "seed": 0, "status": "done", "miou": 0.5, "parameters": 7, "gmacs": 2.0,
        "activation_mib": 3.0, "memory_mib": 44.0, "images_per_s": 12.5}  # fmt: skip


def test_a_study_with_an_unfinished_trial_of_other_views_is_refused_before_ray_starts(
    study_file, tmp_path, monkeypatch
):
    from datasets.transforms import VIEWS
    from pipelines.runs.run import keep_recipe
    from pipelines.studies import run

    plan = load_study(study_file())
    trial = expand(plan)[2]
    folder = tmp_path / "out/studies" / plan.name / "trials" / trial.name
    folder.mkdir(parents=True)
    keep_recipe(trial.recipe, folder)
    checkpoint.save(folder / "first/checkpoints" / step_name(2), {"views": VIEWS + 1})

    def begin(*args):
        raise StopIteration

    monkeypatch.setattr(run, "check", begin)  # what comes next
    for status, expected in {None: InputError, "failed": InputError, "stopped": StopIteration}.items():
        if status:
            end(folder, status)
        with pytest.raises(expected, match="wide-seed0/first.* --name OTHER" if expected is InputError else None):
            run.run_study(plan)


def test_points_are_told_once_with_progress_over_all_stages(tmp_path):
    points = Points(tmp_path, [("one", 10), ("two", 30)])

    def write(stage, *steps):
        (tmp_path / stage).mkdir(exist_ok=True)
        with (tmp_path / stage / "record.jsonl").open("a") as file:
            for step in steps:
                file.write(json.dumps({"kind": "val", "step": step, "miou": step / 100, "time": 1}) + "\n")
                file.write(json.dumps({"kind": "train", "step": step, "time": 1}) + "\n")

    write("one", 0, 5, 10)
    assert [(p["progress"], p["miou"]) for p in points.new()] == [(0.125, 0.05), (0.25, 0.1)]
    write("two", 15)
    assert [p["progress"] for p in points.new()] == [0.625]
    assert list(points.new()) == []


def test_halving_after_a_restart_decides_as_if_it_had_never_ended(study_file, tmp_path):
    """Three trials that ended before are told again; the fourth is judged by their quarter-way scores."""
    from ray.tune.schedulers import TrialScheduler

    from pipelines.studies.tuning import scheduler

    run = [{"name": "first", "train": "voc12/train", "val": "voc12/val", "steps": 8, "val_every": 0.4}]
    plan = load_study(study_file({"stages": run}, stop_early={"grace": 0.25, "reduction": 2}))
    place = place_of(tmp_path)
    trials = expand(plan)
    for trial, miou in zip(trials[:3], (0.1, 0.2, 0.3), strict=True):
        folder = place.trial(trial.name) / "first"
        folder.mkdir(parents=True)
        About({}, {}, [], "whole", 8).write(folder / "about.json")
        line = {"kind": "val", "step": 2, "miou": miou, "time": 1}
        (folder / "record.jsonl").write_text(json.dumps(line) + "\n")
    asha = scheduler(place, plan.study.stop_early, trials[:3])
    late = SimpleNamespace(trial_id="late")
    for miou, progress, wanted in ((0.15, 0.25, "STOP"), (0.25, 0.25, "CONTINUE"), (0.1, 0.2, "CONTINUE")):
        asha.on_trial_add(None, late)
        late.trial_id = f"late{miou}"
        asha.on_trial_add(None, late)
        got = asha.on_trial_result(None, late, {"progress": progress, "miou": miou})
        assert got == getattr(TrialScheduler, wanted)
    assert scheduler(place, None, trials).on_trial_result(None, late, {"miou": 0.0}) == TrialScheduler.CONTINUE


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "1", "--interval", "95"], "one number has no interval; give two seeds or more, e.g. --seeds 3"),
        (["--interval", "100"], "above 0 and below 100"),
        (["--at-once", "0"], "one trial or more"),
        (["--seeds", "0"], "--seeds 0: one or more"),
        (["optim.lrr=3"], "unknown key 'optim.lrr'"),
        (["head.channels=4"], "head.channels= changes nothing: every variant sets it"),
        (["seed=3"], "seed= is the study's: use --seeds N"),
        (["--name", "../x"], "letters, digits"),
    ],
)
def test_wishes_that_cannot_be(study_file, monkeypatch, words, message):
    monkeypatch.setattr(sys, "argv", ["ablate", str(study_file()), *words])
    with pytest.raises(InputError, match=message):
        importlib.import_module("pipelines.ablate").main()


def test_the_door_shows_a_study_without_running_it(study_file, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ablate", str(study_file()), "--print", "--seeds", "1", "--name", "mine"])
    importlib.import_module("pipelines.ablate").main()
    out = capsys.readouterr().out
    assert "# mine: 2 trials: narrow-seed0, wide-seed0" in out
    assert yaml.safe_load(out)["variants"]["wide"]["set"] == {"head.channels": 16}
    path = ROOT / "pipelines" / "ablate.py"
    assert path.stat().st_mode & 0o111
    assert path.read_text().startswith("#!/usr/bin/env python\n")


def population(study_file, tmp_path, members=4, rounds=3):
    from pipelines.studies.population import Population

    search = {
        "algorithm": "pbt",
        "trials": members,
        "rounds": rounds,
        "space": {"optim.lr": {"log_uniform": [1e-3, 1.0]}},
    }
    plan = load_study(study_file(**(WITHOUT | RANK | {"search": search})))
    return Population(plan, plan.study.search, place_of(tmp_path))


def end_part(place, name, miou, step):
    """What a part leaves: its last checkpoint, its best weights, its result."""
    folder = place.trial(name) / "first"
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    last = folder / "checkpoints" / f"step-{step:08d}.pt"
    last.write_text(name)
    (folder / "best.pt").write_text(name)
    result(miou=miou, steps=step).write(folder / "done.json")


def test_the_worst_of_a_population_goes_on_from_the_best(study_file, tmp_path):
    members = population(study_file, tmp_path)
    first = [members.next() for _ in range(4)]
    assert first == [f"member{m:02d}-round0" for m in range(4)]
    assert members.next() is None  # round 1 waits for the scores of round 0
    for name, miou in zip(first, (0.3, 0.5, 0.1, 0.4), strict=True):
        end_part(members.place, name, miou, 2)
    second = [members.next() for _ in range(4)]
    part = {name: json.loads((members.place.trial(name) / "part.json").read_text()) for name in second}
    assert [part[name]["origin"] for name in second] == [first[0], first[1], first[1], first[3]]
    assert part[second[0]]["until"] == pytest.approx(2 / 3)
    trials = [SimpleNamespace(name=name) for name in (first[0], second[0])]
    shares = [point["steps"] for point in settings_of(members.plan, members.place, trials).values()]
    assert shares == [0.3333, 0.6667]  # the table says how far each line was trained
    rates = [members.place.point(name)["optim.lr"] for name in (*first, *second)]
    assert [rates[4], rates[5], rates[7]] == [rates[0], rates[1], rates[3]]
    assert rates[6] not in (rates[1], rates[2])
    taken = members.place.trial(second[2]) / "first"
    assert (taken / "checkpoints/step-00000002.pt").read_text() == first[1]
    assert (taken / "best.pt").read_text() == first[1]

    for name in second:
        end(members.place.trial(name), "failed", why="no luck")
    assert members.left() == 4
    assert members.next() is None  # nobody left a checkpoint to go on from: the search is over
    assert members.left() == 0
    for name in second:
        (members.place.trial(name) / "ended.json").unlink()

    again = population(study_file, tmp_path)  # a driver killed now writes nothing anew, and asks for what is left
    assert again.left() == 8
    assert [again.next() for _ in range(4)] == second
    assert [members.place.point(name)["optim.lr"] for name in second] == rates[4:]


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"trials": 1}, r"1 member\(s\)"),
        ({"space": {"head.channels": {"choice": [8, 16]}}}, "search.space.head.channels: members"),
        ({"space": {"view.crop": {"choice": [[32, 32]]}}}, "search.space.view.crop: members"),
    ],
)
def test_what_a_population_cannot_share(study_file, search, message):
    page = WITHOUT | RANK | {"search": RANK["search"] | {"algorithm": "pbt"} | search}
    with pytest.raises(InputError, match=message):
        load_study(study_file(**page))


@pytest.mark.slow
def test_a_part_ends_at_its_step_and_goes_on_in_another_folder_with_another_rate(recipe_file, tmp_path, monkeypatch):
    """Half of the steps at one rate, then from its checkpoint at another: the record shows both, from one schedule."""
    from pipelines.driver import jobs
    from pipelines.driver.run import run_recipe
    from pipelines.runs.record import read_record

    make, halves = jobs.make_job, []

    def part(*words):
        halves.append(dataclasses.replace(make(*words), until=2 if not halves else 4))
        return halves[-1]

    monkeypatch.setattr(jobs, "make_job", part)
    page = recipe_file(
        stages=[{"name": "first", "train": "voc12/train", "val": "voc12/val", "steps": 4, "val_every": 0}]
    )
    run_recipe(load_recipe(page, ["name=one", "optim.warmup=0"]))
    folder = tmp_path / "out/runs"
    assert [f.name for f in sorted((folder / "one/first/checkpoints").iterdir())] == ["step-00000002.pt"]
    (folder / "two/first/checkpoints").mkdir(parents=True)
    for name in ("checkpoints/step-00000002.pt", "best.pt"):
        (folder / "two/first" / name).hardlink_to(folder / "one/first" / name)
    run_recipe(load_recipe(page, ["name=two", "optim.warmup=0", "optim.lr=0.5"]))
    lines = [line for name in ("one", "two") for line in read_record(folder / name / "first/record.jsonl")[0]]
    rates = [line["lr"] for line in lines if line["kind"] == "train"]
    assert rates == pytest.approx([0.01, 0.01 * 0.75**0.9, 0.5 * 0.5**0.9, 0.5 * 0.25**0.9])
    assert [line["step"] for line in lines if line["kind"] == "val"] == [0, 2, 4]


def train_here(plan, place, trial, stop=False):
    """A trial trained in this process; or begun and then stopped early."""
    from pipelines.driver.fit import fit
    from pipelines.driver.jobs import make_jobs
    from pipelines.driver.planned import plan_stages
    from pipelines.driver.weights import localise
    from pipelines.runs.run import keep_recipe
    from pipelines.runs.screen import shown

    folder = place.trial(trial.name)
    folder.mkdir(parents=True)
    keep_recipe(trial.recipe, folder)
    weights = localise(trial.recipe.backbone.weights, place.output)
    jobs, parts = make_jobs(trial.recipe, plan_stages(trial.recipe, place.root), folder, place.sizes, weights)
    with shown([] if stop else parts):
        fit(jobs, folder)
    if stop:
        end(folder, "stopped", progress=0.5, miou=0.125)


@pytest.mark.slow
def test_mlflow_nests_stages_only_where_there_are_several_and_knows_how_trials_ended(study_file, shards, tmp_path):
    import mlflow

    from pipelines.studies.tracker import StudyTracker

    last = {"name": "last", "train": "voc12/trainval", "steps": 2}
    run = [{"name": "first", "train": "voc12/train", "val": "voc12/val", "steps": 2, "val_every": 0}]
    page = study_file({"stages": run}, variants={"one": {}, "two": {"set": {"stages": [*run, last]}}, "bad": {}},
                      baseline="one", seeds=[0])  # fmt: skip
    plan = load_study(page)
    trials = expand(plan)
    place = TrialContext(tmp_path / "study", str(shards), tmp_path / "out", Sizes(0, 0, 1.0, 0, 1.0))
    train_here(plan, place, trials[0])
    train_here(plan, place, trials[1])
    train_here(plan, place, trials[2], stop=True)
    for _ in range(2):  # a second driver finds the same runs
        tracker = StudyTracker(plan, trials[0].recipe, place)
        for trial in trials:
            tracker.add(trial)
        tracker.deliver()
    assert not tracker.trackers  # all had arrived before
    rows = [{"variant": name, "seed": seed, "status": "done", "miou": first + 0.2 * seed}
            for name, first in (("one", 0.4), ("bad", 0.3)) for seed in (0, 1)]  # fmt: skip
    page = numbers(build("Width", {"one": {}, "bad": {}}, rows, "voc12 val", baseline="bad"))
    (place.folder / "table.json").write_text(to_json(page))
    tracker.close({}, "one-seed0", "FINISHED")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'out/mlflow.db'}")
    runs = {run.info.run_id: run for run in client.search_runs(["1"])}
    above = {run.info.run_name: runs.get(run.data.tags.get("mlflow.parentRunId")) for run in runs.values()}
    names = {name: run.info.run_name if run else None for name, run in above.items()}
    assert names == {plan.name: None, "one-seed0": plan.name, "two-seed0": plan.name, "bad-seed0": plan.name,
                     "two-seed0/first": "two-seed0", "two-seed0/last": "two-seed0"}  # fmt: skip
    found = {run.info.run_name: run for run in runs.values()}
    assert {name: found[name].info.status for name in names} == dict.fromkeys(names, "FINISHED") | {
        "bad-seed0": "KILLED"
    }
    assert found["bad-seed0"].data.tags["trial"] == "stopped at 50%"
    done = json.loads((place.trial("one-seed0") / "first/done.json").read_text())
    score = done["miou"] * 100
    assert found["one-seed0"].data.metrics["mIoU"] == found["one-seed0"].data.metrics["val/mIoU"] == score
    assert found["one-seed0"].data.metrics["final/mIoU"] == score
    assert found[plan.name].data.metrics == pytest.approx({  # best seeds are none of a study's numbers
        "mIoU/one": 50.0, "mIoU/bad": 40.0, "mIoU_half_width/one": 127.062, "mIoU_half_width/bad": 127.062,
        "gain/one": 10.0, "gain_half_width/one": 0.0, "seeds/one": 2, "seeds/bad": 2})  # fmt: skip
    assert "train/loss" in found["one-seed0"].data.metrics
    assert "train/loss" not in found["two-seed0"].data.metrics
    shards = [data.dataset.name for data in found[plan.name].inputs.dataset_inputs]
    assert sorted(shards) == ["voc12/train", "voc12/trainval", "voc12/val"]
    tags = found[plan.name].data.tags
    assert (tags["head"], tags["benchmark"]) == ("fcn", "voc12")
    assert tags["mlflow.note.content"].startswith("# ")
    assert "python -m pipelines.ablate" in tags["mlflow.note.content"]
    assert found["one-seed0"].data.tags["command"] == tags["command"]
    assert tags["best.run"] == found["one-seed0"].info.run_id
    assert checkpoint.load(Path(tags["best.checkpoint"].removeprefix("file://")))["step"] == done["best_step"]


@pytest.mark.slow
def test_a_study_that_began_without_mlflow_is_sent_by_replay(study_file, shards, tmp_path, capsys, monkeypatch):
    import mlflow

    from pipelines.studies.files import Numbers, write_files
    from pipelines.studies.tracker import StudyTracker

    plan = load_study(study_file({"tracking": "http://127.0.0.1:9"}, seeds=[0]))
    trials = expand(plan)
    place = TrialContext(tmp_path / "out/studies/width", str(shards), tmp_path / "out", Sizes(0, 0, 1.0, 0, 1.0))
    tracker = StudyTracker(plan, trials[0].recipe, place)
    write_text(place.study.page, to_yaml(plan))
    with tracker.sending():
        train_here(plan, place, trials[0])
        tracker.add(trials[0])
    train_here(plan, place, trials[1], stop=True)
    tracker.add(trials[1])
    files, best = write_files(plan, place, trials, "voc12 val", Numbers({}, ""), "", 0.95)
    tracker.close(files, best, "FINISHED")
    told = capsys.readouterr().err
    assert told.count("warning: MLflow at http://127.0.0.1:9 cannot be used") == 1
    assert "lacks parts of the study (2 trial(s) and the table)" in told
    assert f"python -m pipelines.replay {place.folder}" in told

    uri = f"sqlite:///{tmp_path / 'out/mlflow.db'}"
    for folder in (place.folder, place.trial(trials[0].name)):  # a trial is sent with its study
        monkeypatch.setattr(sys, "argv", ["replay", str(folder), "--tracking", uri])
        importlib.import_module("pipelines.replay").main()
    shown = capsys.readouterr().out
    assert f"{uri} has everything of width: 2 trial(s) sent" in shown
    assert "has everything of width, and had it before" in shown
    client = mlflow.MlflowClient(tracking_uri=uri)
    found = {run.info.run_name: run for run in client.search_runs(["1"])}
    assert {name: run.info.status for name, run in found.items()} == {
        plan.name: "FINISHED", "narrow-seed0": "FINISHED", "wide-seed0": "KILLED"}  # fmt: skip
    parent = found[plan.name]
    assert {run.data.tags.get("mlflow.parentRunId") for run in found.values()} == {None, parent.info.run_id}
    assert found["wide-seed0"].data.tags["variant"] == "wide"
    assert parent.data.tags["best.trial"] == "narrow-seed0"
    assert parent.data.metrics["mIoU/narrow"] == found["narrow-seed0"].data.metrics["mIoU"]
    assert "mIoU/wide" not in parent.data.metrics
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"table.html", "table.json", "study.yaml", "best_trial.json"} <= artifacts
    for name in ("table.json", "mlflow.json"):
        json.loads((place.folder / name).read_text(), parse_constant=lambda word: 1 / 0)


def test_a_study_of_an_output_that_was_moved_is_the_same_run(study_file, tmp_path):
    from pipelines.studies.tracker import StudyTracker

    plan = load_study(study_file())
    base = expand(plan)[0].recipe
    ids = []
    for output in (tmp_path / "out", tmp_path / "moved"):
        if ids:
            (tmp_path / "out").rename(output)
        place = TrialContext(output / "studies/width", "", output, Sizes(0, 0, 1.0, 0, 1.0))
        tracker = StudyTracker(plan, base, place)
        tracker.connect()
        ids.append(tracker.run_id)
    assert ids[0] == ids[1]
    tracker.client.delete_run(tracker.run_id)
    again = StudyTracker(plan, base, place)
    again.connect()
    assert again.run_id == ids[0]
    assert again.ui_command().endswith(f"/#/experiments/1/runs/{ids[0]}?workflowType=machine_learning")

    try:
        raise RuntimeError("no node is left")
    except RuntimeError:
        again.close({}, None, "FAILED")
    run = again.client.get_run(again.run_id)
    assert (run.info.status, run.data.tags["error"]) == ("FAILED", "no node is left")
    assert "error.txt" in [file.path for file in again.client.list_artifacts(again.run_id)]
    with StudyTracker(plan, base, place).sending():
        run = again.client.get_run(again.run_id)
        assert (run.info.status, "error" in run.data.tags) == ("RUNNING", False)


def test_a_server_that_dies_while_a_studys_run_is_created_leaves_one_run_of_it(study_file, tmp_path, monkeypatch):
    import mlflow

    from pipelines.studies.tracker import StudyTracker

    plan = load_study(study_file())
    base = expand(plan)[0].recipe
    place = TrialContext(tmp_path / "study", "", tmp_path / "out", Sizes(0, 0, 1.0, 0, 1.0))
    place.folder.mkdir()
    original = mlflow.MlflowClient.log_batch

    def answer_lost(*args, **words):
        original(*args, **words)
        raise ConnectionError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_batch", answer_lost)
        with pytest.raises(ConnectionError, match="gone"):
            StudyTracker(plan, base, place).connect()
    again = StudyTracker(plan, base, place)
    again.connect()
    (run,) = again.client.search_runs(["1"])
    assert run.info.run_id == again.run_id
    assert run.data.params["recipe"] == plan.study.recipe


def test_a_trial_is_followed_where_another_waits_for_its_place():
    from pipelines.studies.searcher import Queue
    from pipelines.studies.searching import Listed

    for early in (True, False):
        queue = Queue(Listed(list("abcde")), 2, early)
        handed = [queue.suggest(str(number)) for number in range(5)]
        assert [trial["name"] for trial in handed] == list("abcde")
        assert [trial["followed"] for trial in handed] == [early, early, early, False, False]


def test_processes_start_early_beside_gpus_and_spare_cores_alone():
    from pipelines.studies.tuning import spare

    assert spare(Sizes(2, 1, 1.0, 1, 1.0), 2, 4)
    assert spare(Sizes(1, 0, 1.0, 1, 1.0), 1, 2)
    assert not spare(Sizes(2, 0, 1.0, 1, 1.0), 1, 2)
    assert not spare(Sizes(1, 0, 1.0, 1, 1.0), 2, 2)
