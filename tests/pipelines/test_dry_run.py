"""A plan before anything is taken: what it says, every reason against it, and what has no room on a GPU."""

import csv
import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import ray

from pipelines.base import machine
from pipelines.base.errors import InputError, RunFailed, SetupError
from pipelines.cluster import failures, gpus
from pipelines.cluster.sizes import Sizes
from pipelines.driver.dry_run import dry_run
from pipelines.driver.estimate import GIB, check_memory, estimate
from pipelines.driver.places import check_places, check_room, checkpoint_bytes
from pipelines.driver.planned import plan_stages
from pipelines.driver.run import run_recipe
from pipelines.recipes.model import meta_model
from pipelines.recipes.reading import load_recipe
from segmodels import entropy
from segmodels.gpus import GPUS

ONE = Sizes(1, 1, 1.0, 1, 1.0)


def facts():
    """What CUDA's allocator counted of the bundled recipes."""
    with (Path(__file__).parent / "gpu_recipes.csv").open() as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


@pytest.fixture
def no_ray(monkeypatch):
    """Ray must not start."""
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray starts"))


@pytest.fixture
def plan(no_ray, recipe_file, capsys, tmp_path):
    """What a dry run of the small recipe prints, and its reasons; it writes nothing."""

    written = []

    def show(*overrides, gpus=(), **changes):
        page = recipe_file(**changes) if changes or not written else written[0]
        written[:] = [page]
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        reasons = ""
        try:
            dry_run(load_recipe(page, overrides), gpus)
        except InputError as error:
            reasons = str(error)
        assert sorted(tmp_path.rglob("*")) == before
        return capsys.readouterr().out, reasons

    return show


# ---- what it says


def test_stages_steps_batch_memory_and_places_are_told(plan, shards, tmp_path):
    stages = [
        {"name": "first", "train": "voc12_aug/train", "steps": 5},
        {"name": "second", "train": "voc12/train", "val": "voc12/val", "epochs": 2, "lr": 0.5},
    ]
    told, reasons = plan(stages=stages, batch=6, workers={"count": 0, "gpus": 0, "micro_batch": 2})
    assert not reasons
    assert "nothing speaks against it" in told
    lines = {line.split()[0]: line.split() for line in told.splitlines() if line.strip()}
    assert lines["first"] == ["first", "26", "–", "5", "1.2", "0.01", "begins"]
    assert lines["second"] == ["second", "18", "11", "6", "2.0", "0.5", "begins"]
    assert "6 images = 1 x 6, by 3 forward pass(es) of 2" in told
    assert "time       unknown by measurement" in told
    assert str(tmp_path / "out/runs/tiny") in told
    assert f"sqlite:///{tmp_path / 'out/mlflow.db'}" in told
    cost = estimate(load_recipe(tmp_path / "tiny.yaml"), 21, 1, "fp32")
    assert f"{cost.peak / GIB:.2f} GiB at a step's peak for each worker in fp32" in told


def test_named_gpus_are_set_side_by_side_and_the_first_is_planned_with(plan):
    told, reasons = plan("workers.count=2", "workers.gpus=null", gpus=("H200", "T4"), feed="ray")
    assert not reasons
    assert "2 workers with one GPU each" in told
    lines = {line.split()[0]: line.split() for line in told.splitlines() if line.strip()}
    assert lines["H200"][:4] == ["H200", "bf16", "140.4", "yes"]
    assert lines["T4"][1] == "fp32"
    assert float(lines["T4"][4]) > float(lines["H200"][4])


def test_gpus_that_are_not_in_the_table_are_refused_at_once(plan):
    told, reasons = plan(gpus=("H2",))
    assert (told, reasons) == ("", "--gpu: GPU 'H2' is not in the table; allowed: T4, L4, A10, L40S, A100-80GB, "
                               "A100-40GB, H100, H200, B200. Did you mean 'H200'?")  # fmt: skip


@pytest.mark.slow
def test_time_is_by_the_runs_own_speed_or_that_of_one_next_to_it(plan, tmp_path):
    plan()
    recipe = load_recipe(tmp_path / "tiny.yaml")
    other = tmp_path / "out/runs/other"
    (other / "first").mkdir(parents=True)
    from pipelines.recipes.recipe import to_yaml
    from pipelines.runs.provenance import hardware

    (other / "recipe.yaml").write_text(to_yaml(dataclasses.replace(recipe, name="other")))
    (other / "origin.json").write_text(json.dumps(hardware()))
    lines = [{"kind": "train", "images_per_s": speed} for speed in (1.0, 4.0, 9.0)]
    (other / "first/record.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told, _ = plan()
    assert "5 s without validation, at 4.0 images/s (run other of" in told  # 5 steps of 4 images
    told, _ = plan("batch=2")
    assert "unknown by measurement" in told
    (other / "origin.json").write_text(json.dumps({"hardware": "8 x H200"}))
    assert "unknown by measurement" in plan()[0]
    own = tmp_path / "out/runs/tiny/first"
    own.mkdir(parents=True)
    (own / "record.jsonl").write_text(json.dumps({"kind": "train", "images_per_s": 2.0}) + "\n")
    assert "10 s without validation, at 2.0 images/s (this run so far)" in plan()[0]


# ---- every reason


def test_every_reason_is_given_and_each_is_what_a_run_itself_would_say(plan, tmp_path):
    changes = {
        "head.channels=0": "channels",
        "tracking=nowhere": "MLflow cannot be",
        "backbone.weights=/none.pth": "no such file",
        "stages.first.train=voc12/nothing": "voc12/nothing",
        "workers.count=3": "cannot be split over 3 workers",
    }
    _, told = plan(*[change for change in changes if not change.startswith("workers")])
    assert told.startswith("4 reasons why tiny would fail:\n  1. ")
    for change, message in changes.items():
        if change.startswith("workers"):
            continue
        assert message in told
        with pytest.raises((InputError, SetupError, ValueError)) as alone:
            run_recipe(load_recipe(tmp_path / "tiny.yaml", [change]))
        assert str(alone.value) in told


def test_all_stages_and_all_of_their_faults_are_looked_at(plan):
    stages = [
        {"name": "a", "train": "voc12/gone", "steps": 5},
        {"name": "b", "train": "voc12/train", "val": "voc12/missing", "steps": 1, "warmup": 3},
        {"name": "c", "train": "voc12/trainval", "val": "voc12/val", "steps": 5},
    ]
    told, reasons = plan(stages=stages)
    for message in ("voc12/gone", "voc12/missing", "warmup = 3 steps, but the stage has only 1", "stage c: "):
        assert message in reasons
    assert reasons.startswith("4 reasons")
    first = next(line for line in told.splitlines() if line.startswith("a "))
    assert first.split()[:5] == ["a", "?", "?", "?", "?"]


def test_a_disk_without_room_and_a_folder_that_is_held_are_reasons(plan, tmp_path, monkeypatch):
    plan()
    recipe = load_recipe(tmp_path / "tiny.yaml")
    planned = plan_stages(recipe, recipe.data)
    folder = tmp_path / "out/runs/tiny"
    needed = checkpoint_bytes(recipe, planned)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=needed - 1))
    with pytest.raises(SetupError, match=r"keep fewer \(keep_last\)"):
        check_room(recipe, folder, planned)
    assert "keep_last" in plan()[1]
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=needed))
    check_room(recipe, folder, planned)
    from pipelines.runs.run import locked

    with locked(folder), pytest.raises(SetupError, match="another process trains in"):
        check_places(recipe, tmp_path / "out", folder, planned)


def test_checkpoints_take_what_they_were_planned_to(recipe_file, tmp_path):
    stages = [{"name": "first", "train": "voc12/train", "steps": 1}]
    recipe = load_recipe(recipe_file(stages=stages, optim={"ema": 0.9}, keep_last=1))
    planned = plan_stages(recipe, recipe.data)
    run_recipe(recipe)
    (written,) = (tmp_path / "out/runs/tiny").rglob("*.pt")
    assert written.stat().st_size == pytest.approx(checkpoint_bytes(recipe, planned), rel=0.2)  # and names, seen rows


# ---- room on a GPU


@pytest.fixture
def whole():
    """A small model on large crops, whose step holds about a GiB."""
    return load_recipe("sample_small", ["view.crop=[512,512]", "workers.gpus=1"])


@pytest.mark.slow
def test_what_has_no_room_is_refused_with_the_micro_batch_that_has(whole):
    small = 1.0 + 0.3 * estimate(whole, 21, 1, "bf16").peak / GIB  # CUDA's own beside a third of the step
    with pytest.raises(InputError) as told:
        check_memory(whole, 21, ONE, [("H200", 140.4), ("NVIDIA Small", small)])
    assert "workers.micro_batch=4: " in str(told.value)
    assert f"NVIDIA Small has {small:.1f} GiB" in str(told.value)
    parts = dataclasses.replace(whole, workers=dataclasses.replace(whole.workers, micro_batch=4))
    check_memory(parts, 21, ONE, [("NVIDIA Small", small)])


@pytest.mark.slow
def test_a_head_that_can_compute_again_is_told_to_where_that_has_room():
    """OCNet's; its step then has the estimate that is named, and nothing is proposed twice."""
    words = ["view.crop=[1024,1024]", "workers.gpus=1", "batch=2", "head={name: ocnet, scheme: pyramid, attention: sa}"]
    recipe, again = (load_recipe("sample_small", [*words, f"workers.recompute={on}"]) for on in ("false", "true"))
    lower, kept = (estimate(r, 21, 1, "bf16").peak / GIB for r in (again, recipe))
    assert lower + 0.7 < kept
    with pytest.raises(InputError) as told:
        check_memory(recipe, 21, ONE, [("NVIDIA Small", lower + 1.1)])  # 1 GiB of it is CUDA's own
    assert f"Give workers.recompute=true: {lower:.1f} GiB" in str(told.value)
    with pytest.raises(InputError) as told:
        check_memory(again, 21, ONE, [("NVIDIA Small", lower / 2)])
    assert "workers.recompute" not in str(told.value)


@pytest.mark.slow
def test_room_is_asked_only_of_gpus_whose_memory_is_known(whole):
    assert check_memory(whole, 21, ONE, []) == ""
    assert check_memory(whole, 21, ONE, [("MIG", math.nan)]) == ""
    assert check_memory(whole, 21, dataclasses.replace(ONE, gpus=0), [("Small", 1.0)]) == ""
    assert check_memory(whole, 21, ONE, [("H200", GPUS["H200"].memory_gib)]) == ""
    peak = estimate(whole, 21, 1, "bf16").peak / GIB
    assert "that is close" in check_memory(whole, 21, ONE, [("Just", peak + 1.0)])


def test_gpus_are_asked_of_the_drivers_tool(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "NVIDIA H200, 143771"\necho "NVIDIA L4, 23034"\necho "NVIDIA H200, 143771"\n'
                    '[ "$3" = -i ] && echo "Only, $4" || true\n')  # fmt: skip
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.gpus() == ["NVIDIA H200", "NVIDIA L4", "NVIDIA H200"]
    assert gpus.gpus_here() == [("NVIDIA L4", 23034 / 1024), ("NVIDIA H200", 143771 / 1024)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert gpus.gpus_here()[0] == ("Only", 3 / 1024)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.gpus_here() == []


@pytest.mark.long
@pytest.mark.parametrize("fact", facts(), ids=lambda fact: fact["recipe"])
def test_steps_of_all_recipes_are_as_cudas_allocator_counted_them(fact, as_it_was):
    compare(fact, (1, 4, 8))


@pytest.mark.slow
def test_steps_of_one_recipe_are_as_cudas_allocator_counted_them(as_it_was):
    compare(next(fact for fact in facts() if fact["recipe"] == "srnet/cityscapes_df2"), (1, 4))


@pytest.fixture
def as_it_was(monkeypatch):
    """What holds less since version 0.3.5, of which the facts are: losses of many classes."""
    monkeypatch.setattr(entropy, "LARGE_BYTES", math.inf)


def compare(fact, worlds):
    """A recipe's step against the facts, within 10 %; on HRNet we count 13 % less bytes, and do not know why."""
    near = 0.13 if "hrnet" in fact["recipe"] else 0.1
    # version 0.3.5 always computed again what it can
    recipe, classes = load_recipe(fact["recipe"], ["workers.recompute=true"]), int(fact["classes"])
    buckets = 4 * sum(p.numel() for p in meta_model(recipe, classes).parameters())
    for world in worlds:
        if not fact[f"peak_{world}"]:
            continue
        # With several GPUs the facts are those of a step that keeps no gradients between steps, as DDP's buckets do
        peak = estimate(recipe, classes, world, "bf16").peak - buckets * (world > 1)
        assert peak / GIB == pytest.approx(float(fact[f"peak_{world}"]), rel=near)
    if recipe.backbone.neck == "jpu":  # PyTorch's counter, the facts', overstates gradients of grouped convolutions
        return
    cost = estimate(recipe, classes, 1, "bf16")
    assert cost.flops / 1e12 == pytest.approx(float(fact["tflop"]), rel=0.1)
    assert 1e3 * cost.roofline(GPUS["H200"]) == pytest.approx(float(fact["roofline_ms"]), rel=near)


# ---- out of memory


def exhausted(plan, kind, tasks, cpus):
    """A feed whose first batch is what CUDA says where its memory is out."""
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB")
    yield


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="in this process"),
        pytest.param({"workers": {"count": 1, "gpus": 0, "max_failures": 3}, "feed": "ray"}, id="on a worker",
                     marks=pytest.mark.ray),
    ],
)  # fmt: skip
def test_out_of_memory_is_said_with_the_cure_and_not_tried_again(changes, request, recipe_file, tmp_path, capsys):
    if changes:
        request.getfixturevalue("ray_session")
        own = sys.modules[exhausted.__module__]  # which no worker can import
        ray.cloudpickle.register_pickle_by_value(own)
        request.addfinalizer(lambda: ray.cloudpickle.unregister_pickle_by_value(own))
    stages = [{"name": "first", "train": "voc12/train", "steps": 4}]
    recipe = load_recipe(recipe_file(stages=stages, **changes))
    with pytest.raises(RunFailed) as failed:
        run_recipe(recipe, exhausted)
    told = str(failed.value)
    cost = estimate(recipe, 21, 1, "bf16")
    assert "ran out of memory: " in told
    assert "Tried to allocate 2.00 GiB" in told
    assert "workers.micro_batch=2 holds fewer images at once" in told
    assert f"holds {cost.peak / GIB:.2f} GiB" in told
    assert "view.crop" in told
    assert "workers.count" in told
    record = (tmp_path / "out/runs/tiny/first/record.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["kind"] == "note" for line in record) == 1  # one attempt
    assert "restart" not in capsys.readouterr().out


def test_memory_that_ran_out_in_a_validation_is_said_so():
    text = "Traceback\n  File score.py, line 3, in validate\ntorch.OutOfMemoryError: CUDA out of memory. Tried"
    failure = failures.judge({2: RuntimeError(text)}, [], advanced=True)
    assert (failure.kind, failure.final) == ("gpu", True)
    assert failure.text.endswith("torch.OutOfMemoryError: CUDA out of memory. Tried, in a validation")


# ---- studies


@pytest.mark.slow
def test_a_study_shows_its_trials_and_all_that_speaks_against_them(no_ray, shards, tmp_path, capsys):
    from pipelines.studies.dry_run import dry_run_study
    from pipelines.studies.study import load_study

    given = [f"data={shards}", f"output={tmp_path / 'out'}", "workers.gpus=null"]
    dry_run_study(load_study("sample/rank", seeds=2, overrides=given), ["L4"])
    told = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in told.splitlines() if line.strip()}
    assert lines["rank1"][1:4] == ["0", "of", "2"]
    assert float(lines["rank16"][4]) >= float(lines["rank1"][4])
    assert "nothing speaks against it" in told
    assert not (tmp_path / "out").exists()
    page = tmp_path / "mine.yaml"
    page.write_text(
        "title: T\nrecipe: sample_small\nbaseline: a\nvariants: {a: {set: {head.rank: 1}}, b: {set: {head.rank: 0}}}\n"
    )
    with pytest.raises(InputError) as reasons:
        dry_run_study(load_study(page, overrides=[*given, "stages.aug.train=voc12/gone"]))
    assert "variant 'b'" in str(reasons.value)
    assert "voc12/gone" in str(reasons.value)
