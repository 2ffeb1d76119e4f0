"""DDP, synchronised norms and compilation around a model, without starting workers."""

import contextlib
import copy
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing._internal.distributed.fake_pg import FakeStore

from pipelines.training import learner
from pipelines.training.step import rehearse
from segmodels.backbone import BACKBONES, build_backbone, kind_of
from segmodels.losses import Objective
from segmodels.segmentor import build_segmentor
from segmodels.sync_norm import SyncBatchNorm, synchronised

HEADS = {
    "srnet": {"name": "srnet", "channels": 16, "nodes": 4, "dropout": 0.0},
    "encnet": {"name": "encnet", "channels": 16, "codes": 4, "dropout": 0.0},
}
CPU = torch.device("cpu")


class Parallel(nn.Module):
    """DDP without a group of processes."""

    def __init__(self, module, device_ids=None, **options):
        super().__init__()
        self.module, self.device_ids, self.options, self.hooks = module, device_ids, options, []

    def register_comm_hook(self, state, hook):
        self.hooks.append(hook)

    def forward(self, image):
        return self.module(image)


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    monkeypatch.setattr(learner, "DistributedDataParallel", Parallel)


def model(head="srnet"):
    return build_segmentor(
        num_classes=3,
        crop=(32, 32),
        backbone={"name": "test_resnet", "output_stride": 32},
        head=HEADS[head],
        aux={"name": "fcn", "channels": 8, "dropout": 0.0},
    )


def page(norm="sync", compress=None, compile=False, graphs=False):
    """What of a recipe decides how workers compute."""
    workers = SimpleNamespace(compress=compress, compile=compile, graphs=graphs)
    view = SimpleNamespace(crop=(32, 32))
    return SimpleNamespace(task="segmentation", norm=norm, workers=workers, view=view, seed=0, batch=4)


def norms(net):
    """Names of the batch norms with their types."""
    return {name: type(module) for name, module in net.named_modules() if isinstance(module, _BatchNorm)}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_every_norm_is_synchronised_those_of_vectors_too(head, device):
    built, device = model(head), torch.device(device)
    before = norms(built)
    assert nn.BatchNorm1d in before.values()
    net = learner.distribute(built, 2, device, page())
    assert type(net) is Parallel
    assert net.device_ids == ([device] if device.type == "cuda" else None)
    assert net.options == {"broadcast_buffers": False, "gradient_as_bucket_view": True}
    assert net.hooks == []
    assert norms(net.module) == dict.fromkeys(before, SyncBatchNorm)


def test_local_norms_stay_as_they_are_and_gradients_travel_as_asked():
    built = model()
    before = norms(built)
    net = learner.distribute(built, 2, torch.device("cuda"), page(norm="local", compress="bf16"))
    assert net.module is built
    assert norms(built) == before
    assert net.hooks == [bf16_compress_hook]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_one_worker_has_its_model_alone(device):
    built = model()
    before = norms(built)
    assert learner.distribute(built, 1, torch.device(device), page(compress="bf16")) is built
    assert norms(built) == before


@pytest.mark.slow
def test_network_and_loss_are_compiled_as_one(monkeypatch):
    made, graphs = made_learner(0, 1, compile=True), []
    count = counting(graphs)
    monkeypatch.setattr(torch, "compile", lambda given, mode=None: torch._dynamo.optimize(count, nopython=True)(given))
    compiled = learner.forward_pass(made)
    image, mask = batch_of(0)
    shares = torch.ones(()), 1.0
    for found, expected in zip(compiled(image, mask, *shares), made.losses(image, mask, *shares), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert len(graphs) == 1
    wish, asked = made_learner(0, 1, compile=True, graphs=True), {}
    monkeypatch.setattr(torch, "compile", lambda given, **options: asked.update(options))
    learner.forward_pass(wish)
    assert asked == {"mode": "reduce-overhead"}


@pytest.fixture
def two_that_do_not_talk():
    """A process group of two whose messages arrive nowhere, in this process alone."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


@pytest.mark.slow
def test_norms_over_all_workers_compile_without_a_break(two_that_do_not_talk):
    """Forward and backward; PyTorch's own break the graph at each norm."""
    net = synchronised(model("encnet"))
    assert len(norms(net)) > 15
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    Objective(TERMS)(compiled(batch_of(0)[0]), batch_of(0)[1], 1.0, 1.0)[0].backward()
    assert all(parameter.grad is not None for name, parameter in net.named_parameters() if "presence" not in name)


def counting(graphs):
    """A backend that compiles nothing, and keeps what it is given."""

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    return backend


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
        for head in HEADS:
            steps_agree_with_one_process(rank, world, head)
    if world == 2:
        one_message_gives_all_buffers(rank)
        compressed_gradients_are_near(rank)
    else:
        resumed_steps_agree(rank, world)


def steps_agree_with_one_process(rank, world, head):
    """Gradients, and statistics of all norms, of shares of a batch: in float64, those of the whole in one process."""
    torch.manual_seed(2)
    whole = model(head).double()
    net = learner.distribute(copy.deepcopy(whole), world, CPU, page())
    objective = Objective(TERMS | ({"presence": {"se": 0.2}} if head == "encnet" else {}))
    for step in range(2):
        torch.manual_seed(step)
        image, mask = torch.randint(0, 256, (8, 3, 32, 32)).byte(), torch.randint(0, 3, (8, 32, 32)).byte()
        share = slice(rank * 8 // world, (rank + 1) * 8 // world)
        for made, part in ((whole, slice(None)), (net, share)):
            made.zero_grad()
            objective(made(image[part]), mask[part], 1.0, 1.0)[0].backward()
    for (name, found), expected in zip(net.module.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, msg=lambda text, name=name: f"{name}: {text}")
    for (name, found), expected in zip(net.module.named_buffers(), whole.buffers(), strict=True):
        torch.testing.assert_close(found, expected, msg=lambda text, name=name: f"{name}: {text}")
    net.eval(), whole.eval()
    with torch.no_grad():
        torch.testing.assert_close(net(image)["logits"], whole(image)["logits"])


def one_message_gives_all_buffers(rank):
    """Buffers of all types, and of lengths that no type's size divides."""
    holder = nn.Module()
    given = {"a": torch.rand(3), "b": torch.tensor(5), "c": torch.rand(1).double(), "d": torch.tensor([True, False])}
    for name, value in given.items():
        holder.register_buffer(name, value.clone() if rank == 0 else torch.zeros_like(value))
    own = [given]
    dist.broadcast_object_list(own)
    sent, broadcast = [], dist.broadcast
    dist.broadcast = lambda *args: (sent.append(args), broadcast(*args))
    learner.share_buffers(holder, 2)
    dist.broadcast = broadcast
    assert len(sent) == 1
    for name, value in own[0].items():
        assert torch.equal(getattr(holder, name), value), name


def compressed_gradients_are_near(rank):
    """Half of the bytes: within the 8 bits of bf16, and not the same."""
    plain, small = (made_learner(rank, 2, compress=compress) for compress in (None, "bf16"))
    for made in (plain, small):
        torch.manual_seed(rank)
        made.losses(*batch_of(rank), 1.0, 1.0)[0].backward()
    wide = torch.cat([parameter.grad.flatten() for parameter in plain.model.parameters()])
    half = torch.cat([parameter.grad.flatten() for parameter in small.model.parameters()])
    assert float((half - wide).norm()) < 0.005 * float(wide.norm())
    assert not torch.equal(half, wide)


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
    x = torch.randn(2, 3, 4, 4).bfloat16().requires_grad_()  # as autocast gives it
    narrow = synchronised(nn.BatchNorm2d(3))(x)
    narrow.sum().backward()
    assert narrow.dtype == x.grad.dtype == torch.bfloat16
    assert float(x.grad.abs().max()) < 0.05  # the output's sum is 0 whatever x is


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


TERMS = {"logits": {"cross_entropy": 1.0}, "aux": {"cross_entropy": 0.4}}


def made_learner(rank, world, **wishes):
    torch.manual_seed(1)
    built, recipe = model(), page(**wishes)
    made = SimpleNamespace(
        job=SimpleNamespace(recipe=recipe), rank=rank, world=world, micro=2, device=CPU, channels_last=False,
        model=built, frozen=(), autocast=contextlib.nullcontext, objective=Objective(TERMS),
        optimizer=torch.optim.SGD(built.parameters(), lr=0.1, momentum=0.9),
        net=learner.distribute(built, world, CPU, recipe),
    )  # fmt: skip
    made.losses = learner.forward_pass(SimpleNamespace(**vars(made) | {"job": SimpleNamespace(recipe=page())}))
    rehearse(made)
    return made


def batch_of(seed):
    torch.manual_seed(seed)
    return torch.randint(0, 256, (2, 3, 32, 32)).byte(), torch.randint(0, 3, (2, 32, 32)).byte()


def advance(made, step):
    made.optimizer.zero_grad(set_to_none=True)
    made.losses(*batch_of(100 * step + made.rank), 1.0, 1.0)[0].backward()
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


def filled(built):
    """A model of the meta device with weights, so scaled that maps neither vanish nor grow; in no time."""
    noise = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    built = built.to_empty(device="cpu").eval()
    for name, value in built.state_dict().items():
        fan_in = value[0].numel() if value.ndim > 1 else 1
        drawn = noise.repeat(-(-value.numel() // len(noise)))[: value.numel()].view(value.shape) * (2 / fan_in) ** 0.5
        value.copy_(1 + drawn.abs() if name.endswith("running_var") else drawn)
    return built


@pytest.mark.parametrize(
    "name", [*BACKBONES, *(f"timm/{n}" for n in ("regnety_002", "tf_efficientnet_lite0", "dla34"))]
)
def test_the_conversion_keeps_what_a_trunk_computes(name):
    """Activations and all: timm's norms may hold one, which PyTorch's converter drops."""
    with torch.device("meta"):
        built = build_backbone(name=name, output_stride=max(kind_of(name).output_strides), weights=None)
    built, x = filled(built), torch.randn(1, 3, 32, 32)
    keys, before = list(built.state_dict()), {key for key, m in built.named_modules() if isinstance(m, _BatchNorm)}
    with torch.no_grad():
        expected = built(x)
        found = synchronised(built)(x)
    assert list(built.state_dict()) == keys
    assert {key for key, m in built.named_modules() if isinstance(m, SyncBatchNorm)} == before
    for one, other in zip(found, expected, strict=True):
        assert 1e-3 < float(other.std()) < 1e6  # neither dead nor drowned
        assert torch.equal(one, other)
