"""The walk in this process: train, resume, stop on nan, refuse what would mislead."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.base.door import ROOT
from pipelines.base.errors import InputError, RunFailed, SetupError, Stopped
from pipelines.cluster.device import fix_order
from pipelines.driver.run import run_recipe
from pipelines.feed.batches import train_batches
from pipelines.recipes.model import build_model
from pipelines.recipes.reading import load_recipe
from pipelines.recipes.recipe import micro_batch
from pipelines.runs import checkpoint
from pipelines.runs.checkpoint import Progress
from pipelines.runs.folder import step_name
from pipelines.runs.record import read_record
from pipelines.runs.results import About
from pipelines.runs.run import locked, settle
from pipelines.runs.stopping import LOOK_S, stoppable
from pipelines.scoring import evaluation
from pipelines.scoring import validate as validating
from pipelines.training import learner as learning
from pipelines.training import notice
from pipelines.training import score as scoring
from pipelines.training import stage as loop
from pipelines.training import step as stepping
from pipelines.training.meter import Meter
from pipelines.training.pulse import Pulse
from pipelines.training.scaling import Scaling
from segmodels.precision import Float32Conv

TWO_STAGES = [
    {"name": "first", "train": "voc12_aug/train", "val": "voc12/val", "steps": 4, "val_every": 0},
    {"name": "second", "train": "voc12/trainval", "steps": 3, "lr": 0.001},
]


def weights(folder, stage="first", step=5, name="tiny"):
    return checkpoint.load(folder / "out/runs" / name / stage / "checkpoints" / step_name(step))["model"]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
def test_a_chain_runs_hands_its_weights_on_and_ends_in_a_table(recipe_file, tmp_path, capsys, monkeypatch):
    page = recipe_file(stages=TWO_STAGES)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    results = run_recipe(load_recipe(page))
    assert not list((tmp_path / "here").iterdir())  # all lies below `output`
    shown = capsys.readouterr().out
    assert [r.stage for r in results] == ["first", "second"]
    assert results[0].miou_before is not None
    assert results[1].miou is None
    assert "mIoU before" in shown
    assert "whole, scales 1.0, no flip" in shown
    assert "starts from the weights of first (step 4), classifier included" in shown
    assert f"sqlite:///{tmp_path / 'out/mlflow.db'}" in shown
    folder = tmp_path / "out/runs/tiny"
    assert (folder / "first/best.pt").is_file()
    before = checkpoint.load(folder / "first/checkpoints/step-00000004.pt")["model"]
    after = checkpoint.load(folder / "second/checkpoints/step-00000003.pt")["model"]
    near = max(float((after[k] - before[k]).abs().max()) for k in before if k.endswith("conv1.weight"))
    assert 0 < near < 0.05  # the second stage began at the first one's end


@pytest.mark.slow
def test_what_is_slow_on_a_busy_machine_has_the_whole_time_before_a_worker_hangs_each(recipe_file, monkeypatch):
    """Set-up, reading the record of old, the first batch of a validation, pictures, a step: a beat between any two."""
    heard = []

    def follow(place, name):
        original = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *args, **kw: [heard.append(name), original(*args, **kw)][1])

    for place, name in (
        (learning, "build_model"), (loop, "Record"), (validating, "Confusion"), (validating, "predict"),
        (scoring, "predict"), (scoring, "draw_overlays"), (stepping, "rate_factor"), (Pulse, "beat"),
    ):  # fmt: skip
        follow(place, name)
    run_recipe(load_recipe(recipe_file()))
    slow = [name for name in heard if name != "beat"]
    assert {"build_model", "Record", "Confusion", "predict", "draw_overlays", "rate_factor"} == set(slow)
    followed = [pair for pair in itertools.pairwise(heard) if "beat" not in pair]
    assert set(followed) <= {("draw_overlays", "predict")}, followed  # an overlay is one image predicted


@pytest.mark.slow
def test_a_finished_run_does_nothing_and_says_so(recipe_file, capsys):
    recipe = load_recipe(recipe_file())
    first = run_recipe(recipe)
    capsys.readouterr()
    assert run_recipe(recipe) == first
    assert "is finished, nothing to do" in capsys.readouterr().out


@pytest.mark.slow
def test_the_loss_falls(recipe_file, tmp_path):
    run = [{"name": "first", "train": "voc12/train", "steps": 40}]
    run_recipe(load_recipe(recipe_file(stages=run, optim={"lr": 0.05, "warmup": 2, "head_lr_scale": 1})))
    losses = [line["loss"] for line in read_record(tmp_path / "out/runs/tiny/first/record.jsonl")[0] if "loss" in line]
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


@pytest.mark.slow
def test_a_killed_driver_continues_in_mid_epoch_to_the_same_weights(recipe_file, tmp_path):
    recipe = recipe_file(checkpoint_minutes=0.0)  # 18 rows, batch 4: step 3 lies in the middle of an epoch
    run_recipe(load_recipe(recipe, ["name=whole"]))
    whole = checkpoint.load(tmp_path / "out/runs/whole/first/checkpoints/step-00000005.pt")["model"]
    code = (
        "import os; from pipelines.runs import checkpoint; from pipelines.recipes.reading import load_recipe;"
        "from pipelines.driver.run import run_recipe; save = checkpoint.save\n"
        "def die(path, content):\n"
        "    if path.name == 'step-00000003.pt': os.kill(os.getpid(), 9)\n"  # step 3 is recorded, and not saved
        "    save(path, content)\n"
        f"checkpoint.save = die; run_recipe(load_recipe({str(recipe)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == -9, done.stderr
    folder = tmp_path / "out/runs/tiny/first"
    assert losses_of(folder / "record.jsonl")[-1][0] == checkpoint.newest(folder / "checkpoints")["step"] + 1 == 3
    run_recipe(load_recipe(recipe))
    assert equal(weights(tmp_path), whole)
    assert [step for step, _ in losses_of(folder / "record.jsonl")] == [1, 2, 3, 4, 5]  # none twice, none lost
    (run,) = (run.info.run_id for run in runs_of(tmp_path) if run.info.run_name == "tiny/first")
    points = client_of(tmp_path).get_metric_history(run, "train/loss")
    assert [(point.step, point.value) for point in points] == losses_of(folder / "record.jsonl")


EXACT = {"head": {"name": "fcn", "channels": 16, "dropout": 0.0},
         "aux": {"name": "fcn", "stage": 3, "channels": 8, "dropout": 0.0},
         "optim": {"lr": 0.01, "head_lr_scale": 1, "freeze_norm": True}}  # fmt: skip


def pretrained(recipe_file, tmp_path, names, batch=4):
    """Runs that have finished a stage `before`, whose norms the next stage freezes; as 0.3.5 left them, they may go on
    in any way."""
    before = {"name": "before", "train": "voc12_aug/train", "steps": 2}
    run_recipe(load_recipe(recipe_file(**EXACT, batch=batch, stages=[before]), ["name=base"]))
    for name in names:
        shutil.copytree(tmp_path / "out/runs/base/before", tmp_path / f"out/runs/{name}/before")
        path = tmp_path / f"out/runs/{name}/before/checkpoints" / step_name(2)
        content = checkpoint.load(path)
        checkpoint.save(path, {k: v for k, v in content.items() if k not in ("format", "numerics")})
    return before


@pytest.mark.slow
def test_accumulation_gives_the_gradients_of_the_whole_batch(recipe_file, tmp_path):
    """With frozen norms and no dropout, parts with unlike numbers of labelled pixels add up to the whole."""
    before = pretrained(recipe_file, tmp_path, ("whole", "parts"))
    page = EXACT | {"stages": [before, {"name": "first", "train": "voc12/train", "steps": 2}]}
    results = []
    for name, micro in (("whole", "null"), ("parts", "2")):
        run_recipe(load_recipe(recipe_file(**page), [f"name={name}", f"workers.micro_batch={micro}"]))
        path = tmp_path / f"out/runs/{name}/first/checkpoints/step-00000002.pt"
        results.append(checkpoint.load(path)["model"])
    worst = max(float((results[0][k] - results[1][k]).abs().max()) for k in results[0])
    assert worst < 1e-5


@pytest.mark.ray
def test_two_workers_of_4_images_learn_what_one_of_8_does(ray_session, recipe_file, tmp_path):
    """DDP's mean over workers with unlike numbers of labelled pixels, norms over all of them; no dropout; rounding."""
    stages = [{"name": "first", "train": "voc12/train", "steps": 3}]
    page, results = EXACT | {"batch": 8, "stages": stages, "optim": {"lr": 0.01, "head_lr_scale": 1}}, []
    for name, where in (("one", []), ("two", ["workers.count=2", "feed=ray"])):
        run_recipe(load_recipe(recipe_file(**page), [f"name={name}", *where]))
        path = tmp_path / f"out/runs/{name}/first/checkpoints/step-00000003.pt"
        results.append(checkpoint.load(path)["model"])
    worst = max(float((results[0][k] - results[1][k]).abs().max()) for k in results[0])
    assert worst < 1e-5


@pytest.mark.slow
def test_in_fp16_steps_without_finite_gradients_are_left_out_counted_and_the_scale_goes_on_after_a_stop(
    recipe_file, tmp_path
):
    run = [{"name": "first", "train": "voc12/train", "steps": 5}]
    page = recipe_file(stages=run, checkpoint_minutes=0.0)
    words, lines = ["workers.precision=fp16"], {}
    with stop_at(tmp_path / "out/runs/tiny/first", 2, signal.SIGTERM), pytest.raises(Stopped):
        run_recipe(load_recipe(page, words))
    for name in ("tiny", "whole"):
        run_recipe(load_recipe(page, [*words, f"name={name}"]))
        record = read_record(tmp_path / f"out/runs/{name}/first/record.jsonl")[0]
        lines[name] = [(e["step"], e["loss"], e["loss_scale"], e["left_out"]) for e in record if e["kind"] == "train"]
    assert lines["tiny"] == lines["whole"]
    assert equal(weights(tmp_path), weights(tmp_path, name="whole"))
    *_, scale, left_out = lines["whole"][-1]
    assert scale == 2.0 ** (16 - left_out)  # halved by each of them


def test_adamw_leaves_a_step_out_too_and_does_not_count_it():
    found, weight = Scaling(torch.device("cpu")), torch.nn.Parameter(torch.zeros(9))
    adamw = torch.optim.AdamW([weight], lr=1.0, weight_decay=0.0, fused=True)
    for factor, left, steps in ((torch.inf, 1, 0), (1.0, 1, 1), (torch.nan, 2, 1), (1.0, 2, 2)):
        adamw.zero_grad()
        found.scaled((weight * factor).sum()).backward()
        found.step(adamw)
        assert found.line()["left_out"] == left
        assert torch.allclose(weight, torch.tensor(-float(steps)))  # equal gradients move by the rate
        assert adamw.state[weight]["step"] == steps


def test_a_step_that_is_left_out_moves_nothing_the_first_one_too():
    """Momentum begins at 0 all the same: 1, then 1.5, where its decay is a half and gradients are 1."""
    found, weight = Scaling(torch.device("cpu")), torch.nn.Parameter(torch.zeros(1 << 16))
    sgd = torch.optim.SGD([weight], lr=1.0, momentum=0.5, fused=True)
    torch.full_like(weight, torch.nan)  # what the next allocation finds
    for factor, left, at in ((torch.inf, 1, 0.0), (1.0, 1, -1.0), (torch.inf, 2, -1.0), (1.0, 2, -2.5)):
        sgd.zero_grad()
        found.scaled((weight * factor).sum()).backward()
        found.step(sgd)
        assert found.line()["left_out"] == left
        assert bool((weight == at).all())
    assert found.line()["loss_scale"] == 2.0**14


def test_an_operation_without_a_fixed_order_ends_a_deterministic_run_at_once(recipe_file, tmp_path, monkeypatch):
    def step(*_):
        raise RuntimeError(
            "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set "
            "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation"
        )

    monkeypatch.setattr(loop, "train_step", step)
    with pytest.raises(InputError, match=r"deterministic = true: adaptive_avg_pool2d_\w+ does not .*ion\. Train w"):
        run_recipe(load_recipe(recipe_file(), ["workers.deterministic=true"]))
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")
    fix_order(False)


@pytest.mark.slow
def test_the_learning_rate_is_the_papers_at_every_step(recipe_file, tmp_path):
    """lr (1 - t/T)^0.9, reached from a tenth in a straight line; per stage, with accumulation, stopped and resumed."""

    def wanted(t, steps, lr, warmup):
        curve = lr * (1 - max(t, warmup) / steps) ** 0.9
        return curve if t >= warmup else lr / 10 + (curve - lr / 10) * t / warmup

    run = [
        {"name": "first", "train": "voc12/train", "steps": 9},
        {"name": "second", "train": "voc12/train", "steps": 4, "lr": 0.003, "warmup": 0},
    ]
    page = recipe_file(stages=run, optim={"lr": 0.02, "warmup": 3, "head_lr_scale": 2, "power": 0.9},
                       checkpoint_minutes=0.0, workers={"count": 0, "gpus": 0, "micro_batch": 2})  # fmt: skip
    with stop_at(tmp_path / "out/runs/tiny/first", 5, signal.SIGTERM), pytest.raises(Stopped):
        run_recipe(load_recipe(page))
    run_recipe(load_recipe(page))
    for stage, steps, lr, warmup in (("first", 9, 0.02, 3), ("second", 4, 0.003, 0)):
        lines = read_record(tmp_path / f"out/runs/tiny/{stage}/record.jsonl")[0]
        rates = [line["lr"] for line in lines if line["kind"] == "train"]
        assert rates == pytest.approx([wanted(t, steps, lr, warmup) for t in range(steps)], rel=1e-12)


@contextlib.contextmanager
def stop_at(folder, step, number):
    """Send this process a signal once the stage in `folder` has logged `step`; it is noticed soon after."""

    def send():
        while not any(line["step"] >= step for line in read_record(folder / "record.jsonl")[0] if "loss" in line):
            time.sleep(0.005)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send, daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.runs.stopping.LOOK_S", 0.005)
        thread.start()
        yield
    thread.join(1)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_a_signal_writes_a_checkpoint_and_the_same_command_ends_at_the_same_weights(
    recipe_file, tmp_path, number, code, capsys
):
    run = [{"name": "first", "train": "voc12/train", "val": "voc12/val", "steps": 20, "val_every": 0}]
    page = recipe_file(stages=run, log_every=3)
    before = signal.getsignal(number)
    run_recipe(load_recipe(page, ["name=whole"]))
    folder = tmp_path / "out/runs/tiny"
    with stop_at(folder / "first", 3, number), pytest.raises(Stopped, match="same command continues") as caught:
        run_recipe(load_recipe(page))
    assert caught.value.code == code
    kept = checkpoint.newest(folder / "first/checkpoints")
    assert 3 <= kept["step"] < 20
    assert not (folder / "stop.txt").exists()
    assert signal.getsignal(number) == before
    assert {run.info.status for run in runs_of(tmp_path) if "tiny" in run.info.run_name} == {"KILLED"}
    run_recipe(load_recipe(page))
    assert equal(weights(tmp_path, step=20), weights(tmp_path, step=20, name="whole"))
    first, whole = (losses_of(tmp_path / f"out/runs/{name}/first/record.jsonl") for name in ("tiny", "whole"))
    assert first == whole  # the same steps with the same means, though the interval was cut
    assert {run.info.status for run in runs_of(tmp_path)} == {"FINISHED"}
    assert len(runs_of(tmp_path)) == 4  # two parents, two stages: the resume went on in the same ones


def test_the_notice_that_a_machine_will_be_taken_away_writes_a_checkpoint_and_training_goes_on(
    recipe_file, tmp_path, monkeypatch
):
    """Though neither a line nor a checkpoint is due."""
    notices = iter([frozenset()] * 3)
    monkeypatch.setattr(notice, "leaving", lambda: next(notices, frozenset({"a" * 32})))
    monkeypatch.setattr(notice, "alive", dict)
    stages = [{"name": "first", "train": "voc12/train", "steps": 8}]
    run_recipe(load_recipe(recipe_file(stages=stages, log_every=100, checkpoint_minutes=60)))
    folder = tmp_path / "out/runs/tiny/first"
    kept = sorted(path.name for path in folder.glob("checkpoints/step-*.pt"))
    assert kept == ["step-00000004.pt", "step-00000008.pt"]
    (text,) = (line["text"] for line in read_record(folder / "record.jsonl")[0] if "notice" in line.get("text", ""))
    assert text.endswith("(aaaaaaaa) will be taken away: checkpoint written, training goes on until then")


def losses_of(path):
    return [(line["step"], line["loss"]) for line in read_record(path)[0] if line["kind"] == "train"]


def client_of(tmp_path):
    import mlflow

    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'out/mlflow.db'}")


def runs_of(tmp_path):
    client = client_of(tmp_path)
    return client.search_runs([client.get_experiment_by_name("context-heads").experiment_id])


def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

    with stoppable(tmp_path):
        interrupt()
        assert (tmp_path / "stop.txt").read_text() == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            interrupt()
    assert not (tmp_path / "stop.txt").exists()


@pytest.mark.slow
def test_a_checkpoint_brings_everything_back(recipe_file, tmp_path):
    """Optimizer, schedule, generators, best score and tracked runs: the state of a resume is that of the save."""
    run = [{"name": "first", "train": "voc12/train", "val": "voc12/val", "steps": 6, "val_every": 0.5}]
    page = recipe_file(stages=run, checkpoint_minutes=0.0, keep_last=9)
    with stop_at(tmp_path / "out/runs/tiny/first", 4, signal.SIGTERM), pytest.raises(Stopped):
        run_recipe(load_recipe(page))
    folder = tmp_path / "out/runs/tiny/first"
    kept = checkpoint.newest(folder / "checkpoints")
    momenta = [entry["momentum_buffer"] for entry in kept["optimizer"]["state"].values()]
    assert momenta
    assert all(momentum.abs().sum() > 0 for momentum in momenta)
    scores = [line["miou"] for line in read_record(folder / "record.jsonl")[0] if line["kind"] == "val"]
    assert kept["state"]["best"] == max(scores)
    before = json.loads((folder.parent / "mlflow.json").read_text())
    seen = []
    original = checkpoint.newest

    def spy(place, mapped=False, **words):  # mapped: the driver's look before the training
        found = original(place, mapped, **words)
        seen.extend([] if mapped else [found])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "newest", spy)
        run_recipe(load_recipe(page))
    assert seen[0]["step"] == kept["step"]
    after = json.loads((folder.parent / "mlflow.json").read_text())
    assert after["parent"] == before["parent"]
    assert after["stages"] == before["stages"]
    run_recipe(load_recipe(page, ["name=whole"]))
    last, whole = (
        checkpoint.load(tmp_path / f"out/runs/{name}/first/checkpoints/step-00000006.pt") for name in ("tiny", "whole")
    )
    assert equal(last["model"], whole["model"])
    for a, b in zip(last["optimizer"]["state"].values(), whole["optimizer"]["state"].values(), strict=True):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])
    for key in ("best", "best_step", "before", "after"):
        assert last["state"][key] == whole["state"][key]


@pytest.mark.slow
def test_a_run_of_adamw_and_cosine_goes_on_bit_for_bit(recipe_file, tmp_path):
    """Both averages, their count of steps, and the rate: half a wave after a warmup."""
    page = recipe_file(
        stages=[{"name": "first", "train": "voc12/train", "steps": 6}], checkpoint_minutes=0.0,
        optim={"name": "adamw", "schedule": "cosine", "lr": 1e-3, "warmup": 2, "betas": [0.9, 0.95]},
    )  # fmt: skip
    with stop_at(tmp_path / "out/runs/tiny/first", 3, signal.SIGTERM), pytest.raises(Stopped):
        run_recipe(load_recipe(page))
    run_recipe(load_recipe(page))
    run_recipe(load_recipe(page, ["name=whole"]))
    last, whole = (
        checkpoint.load(tmp_path / f"out/runs/{name}/first/checkpoints/step-00000006.pt") for name in ("tiny", "whole")
    )
    assert equal(last["model"], whole["model"])
    kept = zip(last["optimizer"]["state"].values(), whole["optimizer"]["state"].values(), strict=True)
    assert all(equal(a, b) and set(a) == {"step", "exp_avg", "exp_avg_sq"} and a["step"] == 6 for a, b in kept)
    lines = read_record(tmp_path / "out/runs/tiny/first/record.jsonl")[0]
    rates = [line["lr"] for line in lines if line["kind"] == "train"]
    wave = [(1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    assert rates == pytest.approx([1e-3 * rate for rate in (0.1, (0.1 + wave[2]) / 2, *wave[2:])], rel=1e-12)


@pytest.mark.slow
def test_a_run_starts_from_the_checkpoint_of_another_and_knows_its_rows(recipe_file, tmp_path, capsys):
    stages = [{"name": "first", "train": "voc12/train", "val": "voc12/val", "steps": 2, "val_every": 0}]
    page = recipe_file(stages=stages)
    run_recipe(load_recipe(page, ["seed=5"]))
    start = tmp_path / "out/runs/tiny/first/checkpoints/step-00000002.pt"
    capsys.readouterr()
    run_recipe(
        load_recipe(page, [f"weights={start}", "name=second", "stages.first.steps=1", "optim.lr=0", "optim.warmup=0"])
    )
    told = capsys.readouterr().out
    before = checkpoint.load(start)["model"]
    after = checkpoint.load(tmp_path / "out/runs/second/first/checkpoints/step-00000001.pt")["model"]
    learnt = [key for key in before if "running" not in key and "tracked" not in key]
    assert all(torch.equal(before[key], after[key]) for key in learnt)  # classifiers too: the classes are the same
    folder = tmp_path / "out/runs/second/first"
    assert f"starts from {start}; taken: {len(before)} entries of first (step 2)" in told
    params = About.read(folder / "about.json").params
    assert params["weights.taken"].startswith(f"{len(before)} entries of first (step 2)")
    assert params["weights.sha256"] == hashlib.sha256(start.read_bytes()).hexdigest()
    swapped = [{"name": "first", "train": "voc12/val", "val": "voc12/train", "steps": 2}]
    for key in ("weights", "backbone.weights"):
        with pytest.raises(InputError, match=r"are trained on, by this stage .* or the run whose weights it starts"):
            run_recipe(load_recipe(recipe_file(stages=swapped), [f"{key}={start}", "name=third"]))
    with pytest.raises(InputError, match=r"weights = .*another model \(backbone test_resnet.* as backbone\.weights to"):
        run_recipe(load_recipe(page, [f"weights={start}", "name=third", "head=gc"]))


def test_micro_batches_divide_the_share():
    recipe = load_recipe("sample", ["batch=12", "workers.micro_batch=5"])
    assert [micro_batch(recipe, world) for world in (1, 2, 3)] == [4, 3, 4]


def test_nan_stops_with_the_step_and_its_samples_named(recipe_file, tmp_path):
    """Whether the loss is looked at after each step or much later."""
    plans = []

    def feed(plan, *words):
        plans.append(plan)
        return train_batches(plan, *words)

    page = recipe_file(optim={"lr": 1e9, "head_lr_scale": 1}, stages=[
        {"name": "first", "train": "voc12/train", "steps": 12}])  # fmt: skip
    folder, failures = tmp_path / "out/runs/tiny/first", []
    for words in ([], ["name=late", "log_every=3000"]):
        with pytest.raises(RunFailed, match=r"the loss became (nan|inf) at step \d+, on the samples 2") as caught:
            run_recipe(load_recipe(page, words), feed)
        failures.append(str(caught.value))
    step = losses_of(folder / "record.jsonl")[-1][0] + 1
    assert f"at step {step}, on the samples {', '.join(plans[0].ids(step - 1))}. Nothing" in failures[0]
    assert failures[0] == failures[1]
    assert not list(folder.glob("checkpoints/*.pt"))


def test_a_loss_that_is_nan_is_not_saved_because_somebody_stops_the_run(recipe_file, tmp_path):
    given = itertools.count()

    def feed(plan, *words):
        for batch in train_batches(plan, *words):
            if next(given) == 6:
                (tmp_path / "out/runs/tiny/stop.txt").write_text("SIGTERM")
                time.sleep(3 * LOOK_S)
            yield batch

    recipe = load_recipe(recipe_file(optim={"lr": 1e9, "head_lr_scale": 1}, log_every=3000, stages=[
        {"name": "first", "train": "voc12/train", "steps": 12}]))  # fmt: skip
    with pytest.raises(RunFailed, match=r"the loss became (nan|inf) at step [1-6], .*name=OTHER"):
        run_recipe(recipe, feed)
    assert next(given) == 7  # the signal came, and at the next step nothing was saved
    assert not list((tmp_path / "out/runs/tiny/first").glob("checkpoints/*.pt"))


def meter_of(progress, rank):
    recipe = load_recipe("sample", ["batch=4", "aux=null", "loss={logits: {cross_entropy: 1.0}}"])
    job = SimpleNamespace(recipe=recipe, rows=8, steps=4)
    return Meter(
        SimpleNamespace(
            job=job,
            progress=progress,
            device=torch.device("cpu"),
            rank=rank,
            world=2,
            saving=SimpleNamespace(taken=float),
            optimizer=SimpleNamespace(param_groups=[{"lr": 0.1}]),
            scaling=None,
        )
    )


def test_losses_that_a_checkpoint_carries_are_counted_once_whatever_the_number_of_workers(monkeypatch):
    """Each worker has its part of a step's loss; what all of them load is the first one's checkpoint."""
    parts, both = ([[0.5, 5.0], [0.25, 2.5]], [[0.125, 1.0], [1.0, 4.0]]), [[0.625, 6.0], [1.25, 6.5]]
    meters = [meter_of(Progress(), rank) for rank in (0, 1)]
    for meter, part in zip(meters, parts, strict=True):
        for value in part:
            meter.add(torch.tensor(value))
    for meter, others in zip(meters, parts[::-1], strict=True):
        monkeypatch.setattr(
            torch.distributed, "all_reduce", lambda mine, others=others: mine.add_(torch.tensor(others))
        )
        assert meter.losses().tolist() == both
    kept = meters[0].carry(Progress(), 2)
    assert (kept.losses, kept.terms) == ((0.625, 1.25), ((6.0,), (6.5,)))
    resumed = [meter_of(kept, rank) for rank in (0, 1)]
    assert sum(torch.stack(meter.kept) for meter in resumed).tolist() == both
    line = resumed[0].line(np.array(both), 2)
    assert (line["loss"], line["terms"]) == (0.9375, {"logits.cross_entropy": 6.25})
    old = meter_of(dataclasses.replace(kept, terms=()), 0)  # 0.3.5 kept no terms
    assert [entry[0].item() for entry in old.kept] == [0.625, 1.25]
    assert all(entry[1].isnan() for entry in old.kept)


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_rows(recipe_file, shards, tmp_path, part):
    """Its steps, and its score, would be of both."""
    data = tmp_path / "data"
    shutil.copytree(shards, data)
    stage = {"name": "first", "train": "voc12_aug/train", "val": "voc12/val", "steps": 2}
    recipe = load_recipe(recipe_file(data=str(data), stages=[stage]))
    run_recipe(recipe)
    assert run_recipe(recipe)  # finished: there is nothing to go on with
    for name in ("done.json", "outcome.json"):
        (tmp_path / "out/runs/tiny/first" / name).unlink()
    changed = data / stage[part]
    manifest = json.loads((changed / "manifest.json").read_text())
    (changed / "manifest.json").write_text(json.dumps(manifest | {"digest": "0" * 64}))  # a name of other rows
    with pytest.raises(InputError, match=rf"stage first: .*{changed.name} holds other rows than when .*name=…"):
        run_recipe(recipe)
    (changed / "manifest.json").write_text(json.dumps(manifest))
    assert run_recipe(recipe)[0].steps == 2


def test_scoring_on_trained_rows_is_refused(recipe_file):
    stage = {"name": "first", "train": "voc12/trainval", "val": "voc12/val", "steps": 2}
    with pytest.raises(InputError, match="11 of the 11 images of voc12/val are trained on"):
        run_recipe(load_recipe(recipe_file(stages=[stage])))
    later = {"name": "second", "train": "voc12_aug/train", "val": "voc12/val", "steps": 2}
    with pytest.raises(InputError, match=r"by this stage .*, one before it"):
        run_recipe(load_recipe(recipe_file(stages=[{**stage, "val": None}, later])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: {"classes": m["classes"][:-1], "palette": m["palette"][:-1]},
            r"has 21 classes .* has 20 .*the same",
        ),
        (lambda m: {"files": [], "rows": 0}, r"stage first: .*val has 0 rows"),
        (lambda m: {"labelled": False}, r"stage first: .*val has 11 rows, labelled: False"),
    ],
)
def test_splits_that_do_not_fit_or_hold_nothing_are_refused(recipe_file, shards, tmp_path, change, message):
    val = tmp_path / "val"
    shutil.copytree(shards / "voc12/val", val)
    manifest = json.loads((val / "manifest.json").read_text())
    (val / "manifest.json").write_text(json.dumps(manifest | change(manifest)))
    stage = {"name": "first", "train": "voc12/train", "val": str(val), "steps": 2}
    with pytest.raises(InputError, match=message):
        run_recipe(load_recipe(recipe_file(stages=[stage])))


class Waits(TorchDispatchMode):
    """Counts what would make a CPU wait for its GPU: values, or sizes that depend on values, asked for by the host."""

    names = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "bincount")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(function.__name__.startswith(name) for name in self.names):
            self.found.append(function.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.slow
def test_the_host_waits_for_no_step_but_those_that_are_logged(recipe_file, monkeypatch, precision):
    """But for a look at the stop note, which is taken on CPUs alone. With all options of the step."""
    waits, reached, original, look = Waits(), [], loop.train_mode, Meter.losses

    def enter(*words):
        original(*words)
        waits.__enter__()

    def losses(meter):
        reached.append(len(waits.found))
        return look(meter)

    monkeypatch.setattr(loop, "train_mode", enter)
    monkeypatch.setattr(Meter, "losses", losses)
    words = [f"workers.precision={precision}", "workers.micro_batch=2", "workers.channels_last=true", "log_every=6"]
    words += ["optim.ema=0.9", "loss={logits: {ohem: 1.0, dice: 1.0, boundary: 1.0}, aux: {cross_entropy: 0.4}}"]
    run_recipe(load_recipe(recipe_file(stages=[{"name": "first", "train": "voc12/train", "steps": 6}]), words))
    assert reached[0] == 6, waits.found


@pytest.mark.slow
def test_bf16_channels_last_and_compiled_steps_learn_what_plain_ones_do(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))  # needs no compiler
    page, seen = recipe_file(stages=[{"name": "first", "train": "voc12/train", "steps": 4}]), {}
    forms = {
        "plain": [],
        "compiled": ["workers.compile=true"],
        "last": ["workers.channels_last=true"],
        "bf16": ["workers.precision=bf16"],
        "fp16": ["workers.precision=fp16"],
        "ordered": ["workers.deterministic=true"],
    }
    for name, words in forms.items():
        run_recipe(load_recipe(page, [f"name={name}", *words]))
        seen[name] = [loss for _, loss in losses_of(tmp_path / f"out/runs/{name}/first/record.jsonl")]
    for name, tolerance in (("compiled", 1e-4), ("last", 1e-4), ("bf16", 3e-2), ("fp16", 3e-2), ("ordered", 0)):
        assert seen[name] == pytest.approx(seen["plain"], rel=tolerance), name
    run_recipe(load_recipe(page, ["name=after"]))
    assert not torch.are_deterministic_algorithms_enabled()  # each run sets its own
    assert seen["bf16"] != pytest.approx(seen["plain"], rel=1e-6)  # it is another precision


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "spared"), [("bf16", True), ("fp32", False)])
def test_grouped_convolutions_are_spared_low_precision_where_a_cpu_trains_and_scores(
    recipe_file, shards, tmp_path, monkeypatch, precision, spared
):
    page = recipe_file(
        backbone={"name": "timm/test_efficientnet", "output_stride": 32, "weights": None},
        stages=[{"name": "first", "train": "voc12/train", "steps": 2}],
    )
    models, distribute = [], learning.distribute
    monkeypatch.setattr(learning, "distribute", lambda model, *rest: models.append(model) or distribute(model, *rest))
    run_recipe(load_recipe(page, [f"workers.precision={precision}"]))
    path = tmp_path / "out/runs/tiny/first/checkpoints" / step_name(2)
    trained = checkpoint.Checkpoint.read(path)
    monkeypatch.setattr(evaluation, "count_images", lambda model, *rest, **more: models.append(model) or [None])
    plan = evaluation.plan_evaluation(path, trained, str(shards / "voc12/val"), precision=precision)
    evaluation.evaluate_here(plan, trained)
    for model in models:
        grouped = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1]
        assert grouped
        assert [isinstance(m, Float32Conv) for m in grouped] == [spared] * len(grouped)
    assert len(models) == 2


@pytest.mark.slow
def test_only_norms_that_were_pretrained_are_frozen_and_the_record_says_which(recipe_file, tmp_path, capsys):
    """A fresh head's norms would normalise by the statistics of nothing; the backbone's come with its weights."""
    backbone = build_model(load_recipe(recipe_file()), 21).backbone
    torch.save(backbone.trunk.state_dict(), tmp_path / "trunk.pt")
    stages = [{"name": name, "train": "voc12/train", "steps": 2} for name in ("first", "second")]
    page = recipe_file(stages=stages, optim={"lr": 0.01, "freeze_norm": True})
    run_recipe(load_recipe(page, [f"backbone.weights={tmp_path}/trunk.pt"]))
    notes = re.findall(r"(\w+)  starts from .*; (.*batch norms? .*)", capsys.readouterr().out)
    (_, some), (_, every) = notes
    assert re.fullmatch(r"\d+ of \d+ batch norms are frozen; the other 2 are fresh, and learn", some)
    assert re.fullmatch(r"(\d+) of \1 batch norms are frozen", every)
    first, second = (weights(tmp_path, stage, 2) for stage in ("first", "second"))
    moved = {key for key in first if "running" in key and not torch.equal(first[key], second[key])}
    assert moved == set()
    fresh = {key for key, value in first.items() if key.endswith("running_var") and not bool((value == 1).all())}
    assert {key.split(".")[0] for key in fresh} >= {"head", "aux"}
    trunk = backbone.state_dict()
    assert all(torch.equal(first[f"backbone.{key}"], trunk[key]) for key in trunk if "running" in key)
    run_recipe(load_recipe(page, ["name=random"]))
    assert "no batch norm is frozen, since none is pretrained" in capsys.readouterr().out


@pytest.mark.slow
def test_another_recipe_under_the_same_name_is_refused(recipe_file):
    run_recipe(load_recipe(recipe_file()))
    with pytest.raises(InputError, match=r"another recipe \(head.channels: 16 -> 8\)"):
        run_recipe(load_recipe(recipe_file(), ["head.channels=8"]))


@pytest.mark.slow
def test_a_run_is_what_it_computes(recipe_file, tmp_path):
    """Precision, and how many images a norm sees at once, are part of a run: finished, or in the middle of a stage."""
    page = recipe_file()
    run_recipe(load_recipe(page, ["optim.freeze_norm=false"]))
    placed = ["overlays=2", "experiment=other", "published=null", "log_every=2", "workers.precision=fp32",
              "workers.channels_last=true", "workers.compile=true", "workers.micro_batch=4"]  # fmt: skip
    assert run_recipe(load_recipe(page, placed))  # a share of 4 images is one pass, by default too
    for name in ("done.json", "outcome.json", None):
        for wish, message in (
            ("workers.precision=bf16", r"precision: fp32 -> bf16\). Give it workers.precision=fp32"),
            ("workers.micro_batch=2", r"images that a batch norm sees at once: 4 -> 2"),
            ("workers.compress=bf16", r"compression of gradients: None -> bf16\).*workers.compress=null"),
            ("norm=local", r"another recipe \(norm: 'sync' -> 'local'\)"),
        ):
            with pytest.raises(InputError, match=message):
                run_recipe(load_recipe(page, [wish]))
        if name:
            (tmp_path / "out/runs/tiny/first" / name).unlink()
    assert run_recipe(load_recipe(page, ["workers.precision=fp32"]))


@pytest.mark.slow
def test_a_run_of_old_whose_norms_were_local_is_refused_with_the_cure(recipe_file, tmp_path):
    """Up to 0.5 there was no key, and each CPU worker normalised its own share."""
    page, folder = recipe_file(), tmp_path / "out/runs/tiny"
    run_recipe(load_recipe(page))
    lines = (folder / "recipe.yaml").read_text().splitlines(keepends=True)
    assert "norm: sync\n" in lines
    (folder / "recipe.yaml").write_text("".join(line for line in lines if line != "norm: sync\n"))
    run_recipe(load_recipe(page))  # one process: nothing is another
    path = folder / "first/checkpoints" / step_name(5)
    content = {key: value for key, value in checkpoint.load(path).items() if key != "format"}
    old = {"precision": "fp32", "per_norm": 2, "world": 2, "synchronised": False}
    checkpoint.save(path, content | {"numerics": old})
    two = "workers.count=2"
    with pytest.raises(InputError, match=r"at once: 2 -> 4\).*workers.count=2 and norm=local name=tiny \(up to 0.5"):
        run_recipe(load_recipe(page, [two]))
    settle(load_recipe(page, [two, "norm=local"]), folder)
    with pytest.raises(InputError, match=r"at once: 2 -> 1\)"):
        settle(load_recipe(page, ["workers.count=4", "norm=local"]), folder)


@pytest.mark.slow
def test_numerics_that_the_machine_settles_are_compared_where_they_are_known(recipe_file, tmp_path, monkeypatch):
    page = recipe_file()
    run_recipe(load_recipe(page))
    for name in ("done.json", "outcome.json"):
        (tmp_path / "out/runs/tiny/first" / name).unlink()
    monkeypatch.setattr(learning, "set_up_process", lambda job, device: "bf16")  # another kind of machine, and `auto`
    with pytest.raises(InputError, match=r"precision: fp32 -> bf16"):
        run_recipe(load_recipe(page))


@pytest.mark.slow
def test_views_of_another_version_are_refused_by_the_driver_while_there_are_steps_to_train(
    recipe_file, tmp_path, monkeypatch
):
    from pipelines.driver import run

    recipe, folder = load_recipe(recipe_file()), tmp_path / "out/runs/tiny"
    run_recipe(recipe)
    (last, *_) = folder.glob("first/checkpoints/step-*.pt")
    content = torch.load(last, weights_only=True)
    torch.save(content | {"views": content["views"] + 1}, last)
    assert run_recipe(recipe)  # finished: it says so and trains nothing
    (folder / "first/done.json").unlink()
    (folder / "first/outcome.json").unlink()
    monkeypatch.setattr(run, "plan_stages", None)  # found before anything of the shards is read
    with pytest.raises(InputError, match=r"first/checkpoints: .* other views from the same seeds.*name=OTHER"):
        run_recipe(recipe)


def test_two_processes_cannot_train_one_run(recipe_file, tmp_path):
    folder = tmp_path / "out/runs/tiny"
    folder.mkdir(parents=True)
    code = f"import filelock, sys; lock = filelock.FileLock({str(folder / '.lock')!r}); lock.acquire();"
    code += "print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(SetupError, match="another process trains"), locked(folder):
            pass
        with pytest.raises(SetupError, match=r"another process trains in .*tiny; wait for it, or .* name=…"):
            run_recipe(load_recipe(recipe_file()))
        other.stdin.close()
    with pytest.raises(ConnectionError), locked(tmp_path):  # another folder would not help
        raise ConnectionRefusedError(111, "no server")
    with pytest.raises(SetupError, match=r"cannot write to .*output=DIR"), locked(tmp_path):
        raise PermissionError(13, "not yours")
    with locked(tmp_path):
        pass


def test_other_classes_get_a_fresh_classifier(recipe_file, tmp_path, shards, capsys):
    other = tmp_path / "renamed"
    shutil.copytree(shards / "voc12" / "train", other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["classes"][3] = "dragon"
    (other / "manifest.json").write_text(json.dumps(manifest))
    run = [
        {"name": "first", "train": "voc12/train", "steps": 2},
        {"name": "second", "train": str(other), "steps": 2},
    ]
    run_recipe(load_recipe(recipe_file(stages=run)))
    assert (
        "initialised again: head.classify.1.weight, head.classify.1.bias, aux.classify.1.weight"
        in capsys.readouterr().out
    )


def test_a_validation_that_counts_other_pixels_than_the_manifest_stops(recipe_file, tmp_path, shards):
    other = tmp_path / "miscounted"
    shutil.copytree(shards / "voc12" / "val", other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["histogram"][0] += 1
    (other / "manifest.json").write_text(json.dumps(manifest))
    stage = {"name": "first", "train": "voc12/train", "val": str(other), "steps": 2}
    with pytest.raises(RunFailed, match="each must be read exactly once"):
        run_recipe(load_recipe(recipe_file(stages=[stage])))
