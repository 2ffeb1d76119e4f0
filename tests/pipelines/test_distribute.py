"""DDP, synchronised norms and compilation around a model, without starting workers."""

import contextlib
import copy
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipelines.training import learner
from pipelines.training.step import rehearse
from segmodels.backbone import BACKBONES, build_backbone
from segmodels.losses import Objective
from segmodels.segmentor import build_segmentor
from segmodels.sync_norm import SyncBatchNorm, SyncBatchNormAct, synchronised

HEADS = {
    "srnet": {"name": "srnet", "channels": 16, "nodes": 4},
    "encnet": {"name": "encnet", "channels": 16, "codes": 4},
}


class Parallel(nn.Module):
    """DDP without a group of processes."""

    def __init__(self, module, device_ids=None, **options):
        super().__init__()
        self.module, self.device_ids, self.options = module, device_ids, options


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    monkeypatch.setattr(learner, "DistributedDataParallel", Parallel)


def model(head="srnet"):
    return build_segmentor(
        num_classes=3,
        crop=(32, 32),
        backbone={"name": "test_resnet", "output_stride": 32},
        head=HEADS[head],
        aux={"name": "fcn", "channels": 8},
    )


def norms(net):
    """Names of the batch norms with their types."""
    kind = nn.modules.batchnorm._BatchNorm
    return {name: type(module) for name, module in net.named_modules() if isinstance(module, kind)}


@pytest.mark.parametrize("head", HEADS)
def test_on_gpus_every_norm_is_synchronised_those_of_vectors_too(head):
    built = model(head)
    before, device = norms(built), torch.device("cuda", 1)
    assert nn.BatchNorm1d in before.values()
    net = learner.distribute(built, 2, device, False)
    assert type(net) is Parallel
    assert net.device_ids == [device]
    assert norms(net.module) == dict.fromkeys(before, SyncBatchNorm)


@pytest.mark.parametrize("head", HEADS)
def test_on_cpus_norms_stay_as_they_are(head):
    built = model(head)
    before = norms(built)
    net = learner.distribute(built, 2, torch.device("cpu"), False)
    assert type(net) is Parallel
    assert net.device_ids is None
    assert net.module is built
    assert norms(built) == before


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_one_worker_has_its_model_alone(device):
    built = model()
    before = norms(built)
    assert learner.distribute(built, 1, torch.device(device), False) is built
    assert norms(built) == before


@pytest.mark.parametrize("world", [1, 2])
def test_what_is_compiled_is_the_whole(world):
    built = model()
    net = learner.distribute(built, world, torch.device("cuda", 0), True)
    assert isinstance(net, torch._dynamo.OptimizedModule)
    assert type(net._orig_mod) is (Parallel if world > 1 else type(built))
    assert SyncBatchNorm in norms(net).values() if world > 1 else net._orig_mod is built


def in_processes(work, world, folder):
    """`work(rank, world, folder)` in so many processes of one gloo group."""
    torch.multiprocessing.start_processes(enter, (work, world, str(folder)), world, start_method="spawn")


def enter(rank, work, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    work(rank, world, folder)
    dist.destroy_process_group()


def tries(rank, world, folder):
    if world != 3:  # whose shares of 8 images are not equal
        norms_agree(rank, world)
    if world > 2:
        resumed_steps_agree(rank, world)


def norms_agree(rank, world):
    """Shares of a batch against the whole in one process: outputs, gradients and statistics of all kinds of norm."""
    for kind, shape in {nn.BatchNorm2d: (8, 5, 3, 7), nn.BatchNorm1d: (8, 5), BatchNormAct2d: (8, 5, 4, 2)}.items():
        torch.manual_seed(0)
        whole = kind(5, eps=1e-3, momentum=0.3).double()
        nn.init.normal_(whole.weight), nn.init.normal_(whole.bias)
        own = synchronised(copy.deepcopy(whole))
        x, grad = (torch.randn(shape, dtype=torch.float64) * 3 + 5 for _ in range(2))
        share = slice(rank * 8 // world, (rank + 1) * 8 // world)
        expected, part = x.clone().requires_grad_(), x[share].clone().requires_grad_()
        y = whole(expected)
        y.backward(grad)
        found = own(part)
        found.backward(grad[share])
        torch.testing.assert_close(found, y[share])
        torch.testing.assert_close(part.grad, expected.grad[share])
        for mine, theirs in zip(own.parameters(), whole.parameters(), strict=True):
            dist.all_reduce(mine.grad)
            torch.testing.assert_close(mine.grad, theirs.grad)
        for mine, theirs in zip(own.buffers(), whole.buffers(), strict=True):
            torch.testing.assert_close(mine, theirs)
    narrow = synchronised(nn.BatchNorm2d(3))(torch.randn(2, 3, 4, 4).bfloat16())  # as autocast gives it
    assert narrow.dtype == torch.bfloat16


def resumed_steps_agree(rank, world):
    """Four steps, and two more from the weights after the second, to the last bit."""
    straight = made_learner(rank, world)
    states = []
    for step in range(4):
        advance(straight, step)
        states.append(copy.deepcopy((straight.model.state_dict(), straight.optimizer.state_dict())))
    again = made_learner(rank, world)
    again.model.load_state_dict(states[1][0])
    again.optimizer.load_state_dict(states[1][1])
    for step in (2, 3):
        advance(again, step)
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, states[3][0][name]), name


def made_learner(rank, world):
    torch.manual_seed(1)
    built = model()
    recipe = SimpleNamespace(view=SimpleNamespace(crop=(32, 32)), seed=0)
    made = SimpleNamespace(
        job=SimpleNamespace(recipe=recipe), rank=rank, world=world, micro=2, device=torch.device("cpu"),
        channels_last=False, model=built, frozen=(), autocast=contextlib.nullcontext,
        objective=Objective({"logits": {"cross_entropy": 1.0}, "aux": {"cross_entropy": 0.4}}),
        optimizer=torch.optim.SGD(built.parameters(), lr=0.1, momentum=0.9),
        net=learner.distribute(built, world, torch.device("cpu"), False),
    )  # fmt: skip
    rehearse(made)
    return made


def advance(made, step):
    torch.manual_seed(100 * step + made.rank)
    image, mask = torch.randint(0, 256, (2, 3, 32, 32)).byte(), torch.randint(0, 3, (2, 32, 32)).byte()
    made.optimizer.zero_grad(set_to_none=True)
    made.objective(made.net(image), mask, 1.0, 1.0)[0].backward()
    made.optimizer.step()


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3, 4])
def test_workers_normalise_and_add_up_as_they_must(world, tmp_path):
    in_processes(tries, world, tmp_path)


def test_a_rehearsal_leaves_the_model_as_it_was(monkeypatch):
    monkeypatch.setattr(learner, "DistributedDataParallel", lambda net, **options: net)
    made = made_learner(0, 3)
    torch.manual_seed(1)
    for name, value in model().state_dict().items():
        assert torch.equal(value, made.model.state_dict()[name]), name
    assert all(parameter.grad is None for parameter in made.model.parameters())


@pytest.mark.parametrize("name", BACKBONES)
def test_the_conversion_keeps_what_a_trunk_computes(name):
    with torch.device("meta"):
        built = build_backbone(name=name, output_stride=max(BACKBONES[name].output_strides), weights=None)
    before = {key: (type(m), getattr(m, "act", None)) for key, m in built.named_modules() if isinstance(m, _BatchNorm)}
    keys, after = list(built.state_dict()), dict(synchronised(built).named_modules())
    assert list(built.state_dict()) == keys
    for key, (kind, act) in before.items():
        assert kind in (nn.BatchNorm2d, nn.BatchNorm1d, BatchNormAct2d)
        assert type(after[key]) is (SyncBatchNorm if act is None else SyncBatchNormAct)
        assert getattr(after[key], "act", None) is act


def test_xception_keeps_its_activations():
    built = build_backbone(name="xception65", output_stride=16, weights=None).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for before, after in zip(built(x), synchronised(copy.deepcopy(built))(x), strict=True):
            torch.testing.assert_close(after, before)
