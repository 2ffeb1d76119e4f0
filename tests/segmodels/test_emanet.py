"""EMANet against loops over pixels and bases, written from its equations, and its moving average over two processes."""

import contextlib

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from naive_layers import agree, cbr, conv, norm, relative, scramble
from torch.nn.parallel import DistributedDataParallel

from segmodels.heads.catalog import build_head
from segmodels.heads.emanet import ExpectationMaximisation, emanet_head
from segmodels.heads.maps import Maps

B, C, K, T, H, W = 2, 4, 3, 3, 5, 3


def unit(iterations=T, momentum=0.9, gradient=True):
    return scramble(ExpectationMaximisation(C, K, iterations, momentum=momentum, gradient=gradient))


def images(*size):
    return torch.randn(size or (B, C, H, W), dtype=torch.float64, requires_grad=True)


def naive_step(x, mu):
    """One E-step and one M-step of one image: x[n], mu[k] -> z[n][k], mu[k]."""
    z = []
    for pixel in x:
        energies = torch.stack([(pixel * base).sum() for base in mu])
        z.append(energies.exp() / energies.exp().sum())
    fresh = []
    for k in range(len(mu)):
        share = 1e-6 + sum(row[k] for row in z)
        base = sum(row[k] / share * pixel for row, pixel in zip(z, x, strict=True))
        fresh.append(base / (1e-6 + (base**2).sum() ** 0.5))
    return z, fresh


def naive(emau, x):
    """relu(μZᵀ), then the last μ of each image as (B, C, K), and its Z as (B, N, K)."""
    points = conv(emau.before, x)
    maps, bases, shares = [], [], []
    for image in points.flatten(2).mT:
        mu = list(emau.bases[0].T)
        for _ in range(emau.iterations - 1):
            mu = [base.detach() for base in naive_step(image, mu)[1]]
        z, mu = naive_step(image if emau.gradient else image.detach(), mu)
        maps.append(torch.stack([sum(z_k * base for z_k, base in zip(row, mu, strict=True)) for row in z]))
        bases.append(torch.stack(mu, 1))
        shares.append(torch.stack(z))
    y = torch.stack(maps).mT.unflatten(2, x.shape[2:]).clamp(min=0)
    y = (norm(emau.behind[1], conv(emau.behind[0], y)) + x).clamp(min=0)
    return y, torch.stack(bases), torch.stack(shares)


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_equals_the_loop_in_outputs_and_gradients(iterations, gradient, training):
    emau, x = unit(iterations, gradient=gradient).train(training), images()
    leaves = [x, *(p for p in emau.parameters() if p.requires_grad)]
    assert agree(emau(x), naive(emau, x)[0], leaves)


def test_published_form_freezes_what_no_gradient_reaches():
    frozen = {name for name, p in unit(gradient=False).named_parameters() if not p.requires_grad}
    assert frozen == {"before.weight", "before.bias"}
    assert all(p.requires_grad for p in unit().parameters())


@pytest.mark.parametrize("training", [False, True])
def test_head_equals_its_equations(training):
    keywords = {"channels": C, "out_channels": 6, "bases": K, "dropout": 0.0}
    head = scramble(emanet_head([3, 7], 5, **keywords)).train(training)
    x = images(B, 7, H, W)
    y = cbr(head.context.narrow, naive(head.context.emau, cbr(head.reduce, x))[0])
    assert agree(head([None, x])["logits"], conv(head.classify[1], y), [x, *head.parameters()])


def test_convolutions_start_as_in_the_public_code():
    """Normal, of std (2 / C)^½. With PyTorch's own start no base is told apart, and the frozen one never changes that.

    Measured on 16 kinds of cells with noise: 1.1 nats of entropy of the responsibilities against 4.15, where all bases
    alike are ln 64 = 4.16.
    """
    torch.manual_seed(0)
    emau = ExpectationMaximisation(512, 64, 3, momentum=0.9, gradient=False).eval()
    for layer in (emau.before, emau.behind[0]):
        assert layer.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.01)
    kinds = torch.randn(16, 512)[torch.arange(1024) % 16].T.reshape(1, 512, 32, 32)
    x, entropies = (kinds + 0.5 * torch.randn(1, 512, 32, 32)).relu(), []
    for _ in range(2):
        maps = Maps()
        emau(x, maps)
        z = maps["responsibilities"]
        entropies.append(-(z * z.clamp(min=1e-30).log()).sum(1).mean().item())
        emau.before.reset_parameters()
    assert entropies[0] < 2 < 4 < entropies[1]


def test_bases_start_at_length_1():
    bases = ExpectationMaximisation(32, 16, 3, momentum=0.9, gradient=True).bases
    assert torch.allclose(bases.norm(dim=1), torch.ones(1, 16))
    assert bases.mean().abs() < 0.05


def test_average_over_micro_batches_moves_the_bases():
    emau, first, second = unit(momentum=0.8).train(), images(), images()
    start = emau.bases.clone()
    mean = sum(naive(emau, x)[1].mean(0, keepdim=True) for x in (first, second)) / 2
    emau(first), emau(second)
    assert torch.equal(emau.bases, start)
    emau.after_step()
    assert relative(emau.bases, 0.8 * start + 0.2 * mean) < 1e-10
    assert not emau.total.any()
    assert not emau.batches.any()


def test_nothing_moves_in_evaluation_or_without_a_batch():
    emau = unit().eval()
    start = emau.bases.clone()
    emau(images())
    emau.after_step()
    assert torch.equal(emau.bases, start)
    emau.train()(images())
    emau.after_step()
    assert not torch.equal(emau.bases, start)


def test_checkpoint_holds_the_bases_and_not_the_sums():
    assert {name for name in unit().state_dict() if "." not in name} == {"bases"}


def test_map_is_the_last_responsibilities():
    emau, x, maps = unit().eval(), images(), Maps()
    assert torch.equal(emau(x, maps), emau(x))
    assert relative(maps["responsibilities"].flatten(2).mT, naive(emau, x)[2]) < 1e-10
    assert maps["responsibilities"].shape == (B, K, H, W)
    head, maps = emanet_head([6], 5, channels=C, bases=K).eval(), Maps()
    head([torch.randn(1, 6, H, W)], maps)
    assert set(maps) == {"responsibilities"}


def test_norm_momentum_reaches_all_norms():
    head = emanet_head([6], 5, channels=C, bases=K, norm_momentum=0.25)
    momenta = [m.momentum for m in head.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert momenta == [0.25] * 3
    assert emanet_head([6], 5, channels=C).reduce[1].momentum == 3e-4


def test_published_cost(golden):
    emau = lambda: ExpectationMaximisation(512, 64, 3, momentum=0.9, gradient=True)  # noqa: E731
    golden(emau, 525824, 3.0870, (1, 512, 64, 64))
    golden(lambda: emanet_head([2048], 21), 11149589, 46.596, (1, 2048, 64, 64), as_list=True)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"bases": 0}, "bases is 0; allowed: an integer of at least 1"),
        ({"iterations": 0}, "iterations is 0; allowed"),
        ({"channels": 0}, "channels is 0; allowed"),
        ({"out_channels": 0}, "out_channels is 0; allowed"),
        ({"momentum": 1.0}, "momentum is 1.0; allowed: from 0 to below 1"),
        ({"norm_momentum": 0.0}, "norm_momentum is 0.0; allowed: above 0 to 1"),
        ({"gradient": 0}, "gradient is 0; allowed: bool"),
        ({"dropout": 1.0}, "dropout is 1.0; allowed"),
    ],
)
def test_bad_values(keywords, message):
    with pytest.raises(ValueError, match=message):
        build_head("emanet", [8], 3, **{"channels": 4} | keywords)


STEPS, MICRO, WORLD = 2, 3, 2


def batch(rank, step, micro):
    return torch.randn(2, 6, H, W, generator=torch.Generator().manual_seed(100 * rank + 10 * step + micro))


def small_head():
    torch.manual_seed(7)
    return emanet_head([6], 5, channels=C, out_channels=4, bases=K).train()


def work(rank, folder):
    """One process: steps of several micro-batches, as the training loop runs them. Saves the bases and all mean μ."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    head, inputs, history = small_head(), [], []
    net, emau = DistributedDataParallel(head), head.context.emau
    emau.register_forward_pre_hook(lambda _, given: inputs.append(given[0].detach()))
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    for step in range(STEPS):
        start, means = emau.bases.clone(), []
        for micro in range(MICRO):
            with contextlib.nullcontext() if micro == MICRO - 1 else net.no_sync():
                net([batch(rank, step, micro)])["logits"].square().mean().backward()
            means.append(naive(emau, inputs.pop())[1].mean(0, keepdim=True).detach())
        optimizer.step()
        optimizer.zero_grad()
        emau.after_step()
        history.append({"start": start, "means": means, "bases": emau.bases.clone()})
    torch.save(history, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_with_different_data_keep_equal_bases(tmp_path):
    mp.spawn(work, (str(tmp_path),), nprocs=WORLD)
    for step in zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)), strict=True):
        assert torch.equal(step[0]["bases"], step[1]["bases"])
        assert relative(step[0]["means"][0], step[1]["means"][0]) > 1e-3  # their data differ
        mean = sum(mu for rank in step for mu in rank["means"]) / (WORLD * MICRO)
        assert relative(step[0]["bases"], 0.9 * step[0]["start"] + 0.1 * mean) < 1e-5
        assert relative(step[0]["bases"], step[0]["start"]) > 1e-2
