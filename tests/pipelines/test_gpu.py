"""What only a GPU can show: `pytest -m gpu -n 0`; skipped where there is none, but GPU_TESTS=cpu runs it on the CPU."""

import json
import os
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipelines import evaluate
from pipelines.driver.run import run_recipe
from pipelines.recipes.reading import load_recipe
from pipelines.speed.gpu_checks import (
    after_steps,
    apart,
    deterministic,
    moved,
    no_waits,
    parity,
    quiet_step,
    unlike,
)
from pipelines.speed.gpu_pair import compared, xception_kept
from pipelines.speed.gpu_timing import peak_gib
from pipelines.speed.lone import SMALL, drawn_batch, head_words, lone_learner
from pipelines.training.step import train_step
from segmodels.heads.attention import attention
from segmodels.heads.catalog import HEADS
from segmodels.precision import settle_precision
from segmodels.step_cost import step_cost

pytestmark = pytest.mark.gpu
RECONET = [*SMALL, "head.channels=32", "head.rank=4", "batch=4"]


@pytest.fixture(scope="module")
def device():
    """The GPU, or what stands in for it."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    if os.environ.get("GPU_TESTS") == "cpu":
        return torch.device("cpu")
    pytest.skip("no CUDA device; GPU_TESTS=cpu runs the same on the CPU")


def best_precision(device):
    return settle_precision("auto", device)


@pytest.mark.parametrize("head", HEADS)
def test_a_heads_numbers_are_those_of_a_cpu_in_float64(head, device):
    learner = lone_learner([*head_words(head, small=True), "batch=2", "view.crop=[65,81]"], torch.device("cpu"))
    far = parity(learner.model, moved(drawn_batch(learner), learner).image, device)
    assert far["fp32"] <= 1e-4
    assert far["bf16"] <= 2e-2


@pytest.mark.parametrize("head", HEADS)
def test_a_heads_step_waits_for_nothing_and_every_parameter_gets_a_finite_gradient(head, device):
    words = [*head_words(head, small=True), "batch=2", f"workers.precision={best_precision(device)}"]
    loss, wrong = quiet_step(lone_learner(words, device))
    assert loss == loss
    assert wrong == 0


def test_a_wait_would_be_seen(device):
    if device.type == "cpu":
        pytest.skip("a CPU's operations wait for nothing")
    with pytest.raises(RuntimeError, match="synchroniz"), no_waits(device):
        torch.ones(3, device=device).nonzero()


@pytest.mark.parametrize("kind", ["ohem: 1.0, dice: 1.0, boundary: 1.0", "lovasz_softmax: 1.0"])
def test_no_loss_waits_either(kind, device):
    words = [*RECONET, "workers.micro_batch=2", "optim.ema=0.9", f"loss={{logits: {{{kind}}}, aux: {{ohem: 0.4}}}}"]
    loss, wrong = quiet_step(lone_learner(words, device))
    assert loss == loss
    assert wrong == 0


def test_the_same_steps_give_the_same_weights_where_kernels_are_deterministic(device):
    weights = []
    for _ in range(2):
        learner = lone_learner(RECONET, device)
        with deterministic():
            weights.append(after_steps(learner, 4))
    assert unlike(*weights) == 0
    assert unlike(weights[0], after_steps(lone_learner(["seed=1", *RECONET], device), 1)) > 0  # the count counts


def test_auto_is_what_the_device_computes_in(device):
    native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    assert (best_precision(device) == "bf16") == native
    learner = lone_learner([*RECONET, "workers.precision=auto"], device)
    assert learner.precision == best_precision(device)
    seen = []
    next(m for m in learner.model.modules() if isinstance(m, nn.Conv2d)).register_forward_hook(
        lambda module, given, output: seen.append(output.dtype)
    )
    train_step(learner, drawn_batch(learner), 0)
    assert seen == [torch.bfloat16 if native else torch.float32]


@pytest.mark.parametrize("head", ["fcn", "reconet", "ocnet", "danet"])
def test_a_steps_peak_is_the_estimate(head, device):
    """Within 10 % of what is counted without a device."""
    if device.type == "cpu":
        pytest.skip("a CPU has no allocator that counts")
    words = [*head_words(head, small=False), "backbone.name=resnet50s", "workers.precision=bf16", "batch=4"]
    learner = lone_learner(words, device)
    batch, recipe = drawn_batch(learner), learner.job.recipe
    train_step(learner, batch, 0)  # momentum is made
    peak, _ = peak_gib(lambda: train_step(learner, batch, 1), device)
    counted = step_cost(learner.model, learner.objective, recipe.view.crop, 4, precision="bf16")
    assert peak * 2**30 == pytest.approx(counted.peak, rel=0.1)


def test_two_processes_add_up_to_one_and_the_own_synchronised_norm_is_pytorchs(device):
    far = compared(device.type, 8)
    assert len(far) == 4
    assert max(far.values()) <= 1e-4, far


def test_xception_keeps_its_activations_where_norms_are_synchronised(device):
    assert xception_kept(device.type) <= 1e-5


def test_channels_last_computes_the_same(device):
    losses, gradients = [], []
    for last in ("true", "false"):
        learner = lone_learner([*RECONET, "workers.precision=fp32", f"workers.channels_last={last}"], device)
        with deterministic():
            found, _ = train_step(learner, drawn_batch(learner), 0)
        losses.append(found[0].item())
        gradients.append([p.grad for p in learner.model.parameters()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert max(apart(a, b) for a, b in zip(*gradients, strict=True)) <= 2e-2  # TF32 in convolutions on a GPU


@pytest.mark.parametrize("head", ["reconet", "srnet", "ctnet", "ocnet"])
def test_a_model_compiles_to_one_graph_that_computes_the_same(head, device):
    learner = lone_learner([*head_words(head, small=True), "batch=2", "workers.precision=fp32"], device)
    batch = moved(drawn_batch(learner), learner)
    eager = learner.model.eval()(batch.image)["logits"].detach()
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    compiled = torch.compile(learner.model, fullgraph=True, backend=backend)
    assert apart(compiled(batch.image)["logits"].detach(), eager) <= 1e-3
    torch._dynamo.reset()


@pytest.mark.parametrize("shape", [(2, 1, 96, 16, 16), (1, 2, 200, 32, 8)])
def test_attention_is_its_definition_whatever_kernel_is_taken(shape, device):
    batch, heads, cells, wide, values = shape
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(batch, heads, cells, wide, generator=generator).to(device) for _ in range(2))
    v = torch.randn(batch, heads, cells, values, generator=generator).to(device)
    wanted = (q.double() @ k.double().mT / wide**0.5).softmax(-1) @ v.double()
    assert apart(attention(q, k, v), wanted) <= 5e-3
    half = [x.bfloat16() for x in (q, k, v)]
    assert apart(F.scaled_dot_product_attention(*half), wanted) <= 3e-2


def test_micro_batches_add_up_to_the_whole(device):
    found = []
    for words in ([], ["workers.micro_batch=2"]):
        learner = lone_learner([*RECONET, "workers.precision=fp32", *words], device)
        for module in learner.model.modules():  # each part would normalise by its own images, and draw its own masks
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.Dropout2d):
                module.eval()
        loss = train_step(learner, drawn_batch(learner), 0)[0][0].item()
        found.append((loss, [p.grad for p in learner.model.parameters()]))
    (whole, gradients), (parts, others) = found
    assert parts == pytest.approx(whole, rel=1e-4)
    assert max(apart(a, b) for a, b in zip(gradients, others, strict=True) if b.abs().max() > 1e-6) <= 2e-2


def test_evaluate_gives_the_score_of_the_training(device, recipe_file, shards, tmp_path, monkeypatch):
    """A run on the device, in this process; then its checkpoint by the door that scores."""
    gpus = int(device.type == "cuda")
    page = recipe_file(workers={"count": 0, "gpus": gpus, "precision": "fp32"}, explain=0, overlays=0)
    (result,) = run_recipe(load_recipe(page))
    note = (tmp_path / "out/runs/tiny/first/record.jsonl").read_text()
    assert ("on CPU, fp32" in note) == (device.type == "cpu")
    words = [result.best_checkpoint, shards / "voc12/val", "--precision", "fp32", "--out", tmp_path / "scores"]
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, words)])
    evaluate.main()
    found = json.loads((tmp_path / "scores/scores.json").read_text())
    assert found["miou"] == pytest.approx(result.best, abs=1e-6)
