"""A run whose nodes come and go: which numbers of workers it takes, what it waits for, and that its curve stays."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipelines.base.door import ROOT
from pipelines.base.errors import InputError, RunFailed
from pipelines.cluster import elastic, growing, inside_ray, waiting
from pipelines.cluster.elastic import Choice
from pipelines.cluster.sizes import Node, Sizes, fed, in_short
from pipelines.driver import fit
from pipelines.driver.checks import check_share
from pipelines.driver.run import run_recipe
from pipelines.recipes.reading import load_recipe, make_recipe
from pipelines.recipes.recipe import Workers, counts_of, to_page
from pipelines.runs import note
from pipelines.runs.checkpoint import Numerics
from pipelines.runs.folder import StageFolder
from pipelines.runs.record import Record, read_record
from pipelines.runs.run import check_wishes
from pipelines.studies.study import check as check_study
from pipelines.training import learner
from pipelines.training.job import Job

ONE = {"CPU": 1.0}
SIZES = Sizes(2, 0, 0.33, 1, 0.33, (1, 2, 4))


# ---- the key


@pytest.mark.parametrize(
    ("batch", "count", "counts"),
    [(8, "[1, 8]", (1, 2, 4, 8)), (16, "[3, 20]", (4, 8, 16)), (6, "[2, 4]", (2, 3)), (8, "4", ()), (8, "null", ())],
)
def test_a_range_allows_the_numbers_by_which_the_batch_can_be_divided(batch, count, counts):
    assert counts_of(load_recipe("sample", [f"batch={batch}", f"workers.count={count}"])) == counts


def test_a_page_with_a_range_is_read_back_as_it_was():
    recipe = load_recipe("sample", ["workers.count=[1, 8]"])
    assert make_recipe(json.loads(json.dumps(to_page(recipe)))) == recipe


@pytest.mark.parametrize(
    ("overrides", "gpus", "message"),
    [
        (  # the sample recipe has norm: local
            [],
            0,
            r"see 16 with 1 worker, 8 with 2 workers, .*workers.micro_batch=4: then each sees 4; or one",
        ),
        (["workers.micro_batch=4"], 0, None),
        (["norm=sync"], 0, None),
        (["norm=sync"], 1, None),
        (
            ["norm=sync", "workers.micro_batch=4"],
            1,
            r"see 4 with 1 worker, 8 with 2.*Give workers.micro_batch=null",
        ),
        (["workers.micro_batch=1"], 0, r"workers.micro_batch"),  # a single image cannot be normalised
    ],
)
def test_a_range_in_which_norms_would_see_other_numbers_of_images_is_refused(overrides, gpus, message):
    recipe = load_recipe("sample", ["workers.count=[1, 4]", *overrides])
    sizes = Sizes(1, gpus, 1.0, 1, 1.0, counts_of(recipe))
    if message is None:
        check_share(recipe, sizes)
        return
    with pytest.raises(InputError, match=message):
        check_share(recipe, sizes)


def test_frozen_norms_see_none(monkeypatch):
    """Of a head without norms, behind a pretrained trunk whose norms are frozen."""
    recipe = load_recipe(
        "sample", ["workers.count=[1, 4]", "norm=local", "backbone.weights=hub:", "optim.freeze_norm=true"]
    )
    sizes = Sizes(1, 0, 1.0, 1, 1.0, counts_of(recipe))
    with pytest.raises(InputError, match="a batch norm would see"):
        check_share(recipe, sizes)  # the head's are fresh
    monkeypatch.setattr("pipelines.driver.checks.count_norms", lambda model: count_trunk(model))
    check_share(recipe, sizes)


def count_trunk(model):
    return sum(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in model.backbone.modules())


@pytest.mark.parametrize(
    ("count", "before", "message"),
    [
        ("[1, 4]", Numerics("fp32", 4, 2, False), None),
        ("[1, 4]", Numerics("fp32", 4, 3, False), None),
        ("4", Numerics("fp32", 4, 1, False), None),
        ("[1, 4]", Numerics("fp32", 2, 1, False), r"at once: 2 -> 4"),
    ],
)
def test_a_run_goes_on_with_a_range_or_another_number_where_norms_see_the_same(tmp_path, count, before, message):
    recipe = load_recipe("sample", [f"workers.count={count}", "norm=local", "workers.micro_batch=4"])
    if message is None:
        check_wishes(recipe, before, {}, tmp_path)
        return
    with pytest.raises(InputError, match=message):
        check_wishes(recipe, before, {}, tmp_path)


def test_a_studys_trials_keep_to_one_number():
    base = load_recipe("sample_small", ["workers.count=[1, 2]"])
    study = SimpleNamespace(seeds=[0], variants={"a": SimpleNamespace(set={})}, baseline=None, curve=None, search=None,
                            stop_early=None)  # fmt: skip
    with pytest.raises(InputError, match=r"workers.count = \(1, 2\): trials of a study keep to one number"):
        check_study(study, base)


# ---- how many workers


@pytest.fixture
def there(monkeypatch):
    """Nodes, their ids, and what is free, as the test sets them."""
    now = SimpleNamespace(nodes=[Node(1)], free={"CPU": 0.0}, time=0.0)
    monkeypatch.setattr(elastic, "present", lambda avoided: now.nodes)
    monkeypatch.setattr(elastic, "alive", lambda: {str(i): "" for i in range(len(now.nodes))})
    monkeypatch.setattr(elastic.time, "monotonic", lambda: now.time)
    monkeypatch.setattr("ray.available_resources", lambda: now.free)
    return now


def offered(cpus):
    return {str(i): {"CPU": each} for i, each in enumerate(cpus)}


@pytest.mark.parametrize(
    ("nodes", "gives", "number"),
    [
        ([Node(1)], [0.33], 1),
        ([Node(1)], [0.99], 1),  # Ray counts no feeding task
        ([Node(1), Node(1)], [0.99, 0.99], 2),
        ([Node(1)] * 3, [0.99] * 3, 2),  # three do not divide the batch
        ([Node(1)] * 4, [0.99] * 4, 4),
        ([Node(1)] * 4, [0.33, 0.33], 2),  # the rest is set apart for another run
        ([Node(1)] * 9, [0.99] * 9, 4),
        ([Node(1)], [0.99, 0.99], 1),  # a node that Ray still counts is lost
        ([Node(0.66)], [0.66], 1),  # without a spare place
        ([Node(0.33)], [0.33], 0),
        ([], [], 0),
    ],
)
def test_as_many_workers_as_find_a_place_and_divide_the_batch(there, tmp_path, nodes, gives, number):
    there.nodes = nodes
    assert Choice(SIZES, (), tmp_path / "note").number(offered(gives), 0) == number


@pytest.mark.parametrize(
    ("sizes", "nodes", "tasks"),
    [
        (Sizes(1, 0, 1.0, 1, 1.0), [Node(4)], 2),  # and a spare place
        (Sizes(2, 0, 0.33, 1, 0.33), [Node(1), Node(1)], 1),
        (Sizes(4, 1, 1.0, 1, 1.0), [Node(4), Node(48, 4)], 11),
        (Sizes(1, 0, 1.0, 1, 1.0), [Node(1)], 1),  # one is there even where it waits
    ],
)
def test_workers_start_as_many_feeding_tasks_as_find_a_place(sizes, nodes, tasks):
    assert fed(sizes, nodes) == dataclasses.replace(sizes, feed_tasks=tasks)


def test_a_worker_of_a_range_takes_its_size_from_the_start_that_it_is_of(monkeypatch):
    monkeypatch.setattr("ray.train.get_context", lambda: SimpleNamespace(get_world_size=lambda: 4))
    monkeypatch.setattr("pipelines.cluster.sizes.present", lambda avoided: [Node(12), Node(12)])
    sizes = Sizes(2, 0, 1.0, 1, 1.0, (1, 2, 4))
    assert fit.now(sizes, fixed=False) == Sizes(4, 0, 1.0, 4, 1.0)
    assert fit.now(sizes, fixed=True) == Sizes(4, 0, 1.0, 1, 1.0)


def test_what_ray_sets_apart_is_counted_without_losing_a_worker_to_rounding(there, tmp_path):
    """0.7 + 0.7 + 0.7 is less than three times 0.7 in floating point."""
    choice = Choice(Sizes(1, 0, 0.7, 1, 0.7, (1, 3)), (), tmp_path / "note")
    assert 0.7 + 0.7 + 0.7 < 3 * 0.7 or (0.7 + 0.7 + 0.7) // 0.7 < 3
    assert choice.carried({"a": {"CPU": 0.7 + 0.7 + 0.7}}) == 3
    assert Choice(Sizes(1, 1, 1.0, 1, 1.0, (1, 2)), (), tmp_path).carried({"a": {"CPU": 8.0, "GPU": 2.0}}) == 2


def test_a_group_that_trains_grows_into_what_is_free_and_never_shrinks(there, tmp_path):
    choice = Choice(SIZES, (), tmp_path / "note")
    there.nodes = [Node(1), Node(1)]
    assert choice.number(offered([0.99, 0.99]), 1) == 1  # somebody else's work is on the second
    there.free = {"CPU": 1.0}
    assert choice.number(offered([0.99, 0.99]), 1) == 2
    there.nodes = []
    assert choice.number({}, 2) == 2


def test_a_number_that_found_no_place_rests_until_nodes_change(there, tmp_path):
    choice, free = Choice(SIZES, (), tmp_path / "note"), offered([0.99] * 4)
    there.nodes, there.free = [Node(1)] * 4, {"CPU": 4.0}
    choice.refuse(4)
    assert choice.number(free, 0) == 2
    choice.refuse(2)
    assert choice.number(free, 0) == 1
    choice.refuse(1)
    assert choice.number(free, 0) == 1  # there is no smaller one
    there.time = elastic.REST_S + 1
    assert choice.number(free, 0) == 4
    choice.refuse(2)
    assert choice.number(free, 1) == 1
    there.nodes = [Node(1)] * 5
    assert choice.number(free, 1) == 4


# ---- what Ray Train's controller is told


class Trainer:
    """A trainer that hands back what its controller would get."""

    def __init__(self, config):
        self.scaling_config = config

    def _initialize_and_run_controller(self, **kwargs):
        return kwargs["scaling_policy"]


@pytest.fixture
def policy(there, tmp_path, monkeypatch):
    import ray.train

    there.choice = Choice(SIZES, (), tmp_path / "note")
    config = ray.train.ScalingConfig(
        num_workers=(1, 4), resources_per_worker={"CPU": 0.33}, elastic_resize_monitor_interval_s=0
    )
    made = inside_ray.elastic(Trainer, there.choice)(config)._initialize_and_run_controller(scaling_policy="Ray's")
    monkeypatch.setattr(type(made), "_get_reserved_resources", lambda self: offered([0.99] * len(there.nodes)))
    monkeypatch.setattr(type(made), "_maybe_send_resource_request", lambda self: None)
    monkeypatch.setattr(inside_ray.time, "sleep", lambda seconds: None)
    there.decide = lambda world: getattr(
        made.make_decision_for_running_worker_group(SimpleNamespace(start_time=0.0, num_workers=world), None)
        if world
        else made.make_decision_for_non_running_worker_group(),
        "num_workers",
        None,
    )
    there.policy = made
    return there


def test_the_controller_starts_what_fits_and_asks_for_a_checkpoint_before_it_ends_workers(policy):
    note = policy.choice.note
    assert policy.decide(0) == 1
    assert policy.decide(1) is None
    policy.nodes, policy.free = [Node(1)] * 3, {"CPU": 2.0}
    assert policy.decide(1) is None
    assert note.exists()
    assert policy.decide(1) is None  # the workers are at it
    note.unlink()
    assert policy.decide(1) == 2
    assert policy.decide(2) is None
    policy.nodes, policy.free = [Node(1)] * 4, {"CPU": 2.0}
    assert policy.decide(2) is None
    policy.nodes = [Node(1)]  # a node is lost meanwhile, and the workers with it
    assert policy.decide(0) == 1
    assert not note.exists()
    assert policy.decide(1) is None
    policy.nodes = []
    assert policy.decide(0) is None


def test_a_number_that_ray_could_not_start_is_noted(policy):
    from ray.train.v2._internal.execution.controller.state import ReschedulingState, RunningState, SchedulingState

    policy.nodes = [Node(1)] * 2
    assert policy.decide(0) == 2
    before = SchedulingState(scaling_decision=SimpleNamespace(num_workers=2))
    policy.policy.after_controller_state_update(before, RunningState())
    assert policy.decide(0) == 2
    policy.policy.after_controller_state_update(before, ReschedulingState(training_failed_error=None))
    assert policy.decide(0) == 1


def test_without_rays_private_names_a_run_keeps_to_its_number(monkeypatch, tmp_path):

    from pipelines.cluster import group

    made = []
    monkeypatch.setattr(group, "lean", lambda base: lambda *words, **named: made.append(named["scaling_config"]))
    for kind in (None, lambda *words, **named: made.append(named["scaling_config"])):
        monkeypatch.setattr(group, "elastic", lambda base, choice, kind=kind: kind)
        group.trainer(print, {}, SIZES, "n", tmp_path, 3, choice=Choice(SIZES, (), tmp_path / "note"))
    assert [config.num_workers for config in made] == [2, (1, 4)]


# ---- the size at the start, and the wait for it


@pytest.mark.parametrize(
    ("workers", "now", "more", "count", "gpus"),
    [
        (Workers(), [Node(1), Node(1)], [], 2, 0),
        (Workers(), [Node(1)], [], 1, 0),
        (Workers(gpus=1), [Node(4), Node(8, 4)], [], 4, 1),
        (Workers(gpus=1), [Node(4), Node(8, 3)], [], 2, 1),
        (Workers(), [Node(4), Node(8, 1)], [Node(8, 4)], 1, 1),
    ],
)
def test_a_run_begins_with_what_fits(monkeypatch, capsys, workers, now, more, count, gpus):
    monkeypatch.setattr(growing, "present", lambda: now)
    monkeypatch.setattr(growing, "to_come", lambda: more)
    sizes = growing.settled(workers, (1, 2, 4))
    assert (sizes.count, sizes.gpus, sizes.counts) == (count, gpus, (1, 2, 4))
    assert "(1, 2 or 4 as nodes come and go)" in capsys.readouterr().out


def test_where_the_fewest_do_not_fit_they_alone_are_asked_for(monkeypatch):
    there, asked = [Node(4)], []

    def ask_for(sizes, seconds, say):
        asked.append(sizes.count)
        there.append(Node(8, 4))
        return True

    monkeypatch.setattr(growing, "present", lambda: list(there))
    monkeypatch.setattr(growing, "to_come", lambda: [Node(8, 4)])
    monkeypatch.setattr(growing, "ask_for", ask_for)
    sizes = growing.settled(Workers(), (2, 4))
    assert (asked, sizes.count, sizes.gpus) == ([2], 2, 1)


def test_a_range_waits_for_its_fewest_says_so_and_not_for_ever(monkeypatch):
    now = SimpleNamespace(time=1000.0, groups=[("CREATED", 4)], nodes=[Node(1)] * 4, said=[])
    monkeypatch.setattr(waiting, "own_groups", lambda: now.groups)
    monkeypatch.setattr(waiting, "present", lambda avoided=(): now.nodes)
    monkeypatch.setattr(waiting, "free", lambda: "0 CPU(s)")
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now.time)
    wait = waiting.Waiting(dataclasses.replace(SIZES, counts=(2, 4)), Workers(wait_minutes=5.0), now.said.append)

    def look(seconds):
        now.time += seconds
        wait.look()

    look(3)
    now.groups, now.nodes = [], [Node(1)] * 2  # two nodes are lost: Ray is about to ask for a smaller group
    look(30)
    assert now.said == []
    now.nodes = [Node(1)] * 0 + [Node(0.5)]
    look(3)
    look(15)
    (line,) = now.said
    assert "waiting for room for 2 workers and 2 feeding tasks, 0.33 CPU each" in line
    assert "the cluster has 1 node of 0.5 CPU(s)" in line
    assert "at most 5 min 0 s (workers.wait_minutes)" in line
    assert "workers.count=[1, 2]" in line
    with pytest.raises(RunFailed, match=r"longer than workers.wait_minutes allows. The same command continues"):
        look(300)
    now.groups, now.nodes = [("CREATED", 2)], [Node(1)] * 2
    look(3)
    assert wait.wait is None


def test_a_range_is_told_to_people():
    assert in_short(SIZES) == "2 workers (1, 2 or 4 as nodes come and go) and 2 feeding tasks"
    assert in_short(SIZES.of(1)) == "1 worker and 1 feeding task"


# ---- the record, and the numbers


def test_another_number_of_workers_is_in_the_record(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr(learner, "distribute", lambda model, world, device, compiled: model)
    recipe = load_recipe(recipe_file(), ["norm=local", "workers.micro_batch=2"])
    job = Job(recipe, recipe.stages[0], tmp_path / "first", "unused", None, ("a",), ((0, 0, 0),), 4, 5,
              Sizes(2, 0, 1.0, 0, 1.0), 1)  # fmt: skip
    cpu = torch.device("cpu")
    begun = learner.make_learner(job, 0, 2, cpu)
    begun.progress = begun.progress.to(3)
    begun.keep()
    assert "before that" not in learner.make_learner(job, 0, 2, cpu).origin
    again = learner.make_learner(job, 0, 1, cpu).origin
    assert again.startswith("continues from its checkpoint at step 3; from here on 1 worker, before that 2: the same")
    assert again.endswith("; 1 worker on CPU, fp32")


def test_the_note_says_with_how_many_workers_a_stage_trained(tmp_path):
    stage = load_recipe("sample_small").stages[0]
    place = StageFolder(tmp_path / "aug")
    with Record(place.record) as record:
        for step, count in ((0, 2), (0, 2), (61, 1), (61, 1), (131, 2)):
            record.add("note", step, text="", workers=count)
    told = note.read_stage(place, stage)
    assert note.workers([told]).startswith("**Workers:** aug with 2, from step 61 on with 1, from step 131 on with 2.")
    assert note.workers([dataclasses.replace(told, workers=told.workers[:1])]) == ""


SCRIPT = """
import os, sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
from pipelines.cluster import group
from pipelines.driver.run import run_recipe
from pipelines.recipes.reading import load_recipe
from pipelines.runs.record import read_record

group.GROW_S = 0.5
page, flag = sys.argv[1], Path(sys.argv[2])

def paced(plan, kind, tasks, cpus):
    from pipelines.feed.batches import train_batches
    for batch in train_batches(plan, kind, tasks, cpus):
        if plan.steps > 10 and not flag.exists():
            time.sleep(0.3)
        yield batch

def lines():
    return read_record(record)[0]

def wait(what, seconds=120):
    until = time.monotonic() + seconds
    while not what(lines()):
        if time.monotonic() > until:
            return
        time.sleep(0.1)

def steps(found):
    return max([line["step"] for line in found if line["kind"] == "train"], default=0)

def disturb():
    try:
        wait(lambda found: steps(found) > 4)
        node = cluster.add_node(num_cpus=1)
        wait(lambda found: any("before that 1" in line.get("text", "") for line in found))
        begun = steps(lines())
        wait(lambda found: steps(found) > begun + 4)
        cluster.remove_node(node, allow_graceful=True)  # else Ray believes in it for a minute
        wait(lambda found: [line["workers"] for line in found if "workers" in line][-1:] == [1])
    finally:
        flag.write_text("")

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster._shutdown_at_exit = False  # a node that a thread adds can set no handler of signals; `finally` ends all
try:
    os.environ["RAY_ADDRESS"] = cluster.address
    recipe = load_recipe(page)
    record = Path(recipe.output) / "runs" / recipe.name / "second/record.jsonl"
    threading.Thread(target=disturb, daemon=True).start()
    run_recipe(recipe, paced)
finally:
    import ray
    ray.shutdown()
    cluster.shutdown()
"""


def page_of(recipe_file, **changes):
    """Two stages: in the first norms are synchronised, in the second all of them are frozen."""
    stages = [{"name": "first", "train": "voc12/train", "steps": 2},
              {"name": "second", "train": "voc12/train", "val": "voc12/val", "steps": 100, "val_every": 0}]  # fmt: skip
    optim = {"lr": 0.01, "warmup": 1, "head_lr_scale": 2, "freeze_norm": True}
    workers = {"gpus": 0, "feed_tasks": 1, **changes.pop("workers", {})}
    heads = {"head": {"name": "fcn", "channels": 16, "dropout": 0.0},  # its masks are drawn for each worker
             "aux": {"name": "fcn", "stage": 3, "channels": 8, "dropout": 0.0}}  # fmt: skip
    return recipe_file(stages=stages, optim=optim, workers=workers, **heads, **changes)


def losses(folder):
    lines = [line for line in read_record(folder / "second/record.jsonl")[0] if line["kind"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return np.array([line["loss"] for line in lines])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.xdist_group("commands")
def test_while_a_node_comes_and_goes_the_curve_is_that_of_one_worker(recipe_file, tmp_path):
    """1 -> 2 -> 1 workers on a real cluster of two nodes: no step is lost to the growth, and none is seen twice."""
    run_recipe(load_recipe(page_of(recipe_file, name="fixed", workers={"count": 0})))
    page = page_of(recipe_file, name="ranging", feed="ray", workers={"count": [1, 2]})
    short = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": short}
    try:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, page, tmp_path / "flag"],
            cwd=ROOT, capture_output=True, text=True, timeout=400, env=environment,
        )  # fmt: skip
    finally:
        shutil.rmtree(short, ignore_errors=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "1 worker (1 or 2 as nodes come and go)" in done.stdout
    runs = tmp_path / "out/runs"
    notes = [line for line in read_record(runs / "ranging/second/record.jsonl")[0] if line["kind"] == "note"]
    (way,) = [line["step"] for line in notes if line["text"].startswith("nodes have joined: more workers go on")]
    grown = next(line for line in notes if "from here on 2 workers, before that 1" in line["text"])
    assert grown["text"].startswith(f"continues from its checkpoint at step {way};")
    assert [line["workers"] for line in notes if "workers" in line] == [1, 2, 1], notes
    fixed, ranging = losses(runs / "fixed"), losses(runs / "ranging")
    assert len(fixed) == len(ranging) == 100
    np.testing.assert_allclose(ranging, fixed, rtol=1e-4)
    found = [json.loads((runs / name / "second/done.json").read_text())["miou"] for name in ("fixed", "ranging")]
    assert found[1] == pytest.approx(found[0], abs=1e-3)
