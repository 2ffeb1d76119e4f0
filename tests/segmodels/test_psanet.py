"""PSANet against loops over pairs of pixels, written from its equations."""

import pytest
import torch
import torch.nn.functional as F
from naive_layers import agree, cbr, conv, relative, scramble

from segmodels.heads.catalog import build_head
from segmodels.heads.maps import Maps
from segmodels.heads.psanet import PointAttention, psanet_head
from segmodels.plain.psanet import psanet_plain

B, D, C, H, W = 2, 6, 4, 3, 2
both = pytest.mark.parametrize("collect", [True, False])


def unit(collect, size=(H, W)):
    return scramble(PointAttention(D, C, size, collect=collect))


def images(*size):
    return torch.randn(size or (B, D, H, W), dtype=torch.float64, requires_grad=True)


def shrunk(x, size):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def naive(unit, x):
    """The attention's result, and the weight of each source for each target as {(target, source): (B,)}."""
    h, w = unit.size
    x = shrunk(cbr(unit.reduce, x), unit.size)
    over = conv(unit.offsets[1], cbr(unit.offsets[0], x)).unflatten(1, (2 * h - 1, 2 * w - 1))
    cells = [(i, j) for i in range(h) for j in range(w)]
    pixels, table = [], {}
    for target in cells:
        energies = []
        for source in cells:
            at, to = (target, source) if unit.collect else (source, target)  # who predicts, and about whom
            energies.append(over[:, to[0] - at[0] + h - 1, to[1] - at[1] + w - 1, at[0], at[1]])
        weights = torch.stack(energies).exp() / torch.stack(energies).exp().sum(0)
        table |= {(target, source): weight for source, weight in zip(cells, weights, strict=True)}
        pixels.append(sum(table[target, s][:, None] * x[:, :, s[0], s[1]] for s in cells))
    return torch.stack(pixels, 2).unflatten(2, (h, w)), table


@both
@pytest.mark.parametrize(("size", "cells"), [((H, W), (H, W)), ((5, 3), (3, 2)), ((4, 6), (2, 3)), ((1, 4), (1, 2))])
def test_equals_the_loop_and_the_public_form(collect, size, cells):
    psa, x = unit(collect, cells), images(B, D, *size)
    leaves = [x, *psa.parameters()]
    assert agree(psa(x), naive(psa, x)[0], leaves)
    assert agree(psa(x), psanet_plain(psa, x), leaves)
    last = x.detach().contiguous(memory_format=torch.channels_last)
    assert relative(psa(last), naive(psa, x)[0]) < 1e-10


@pytest.mark.parametrize("kind", ["bi", "collect", "distribute"])
@pytest.mark.parametrize("shrink", [1, 2])
def test_head_equals_its_equations(kind, shrink):
    size = (5, 3)
    head = scramble(psanet_head([3, D], 5, channels=C, kind=kind, shrink=shrink, dropout=0.0, feature_size=size))
    head, x = head.train(), images(B, D, *size)
    assert [branch.collect for branch in head.branches] == {
        "bi": [True, False], "collect": [True], "distribute": [False]
    }[kind]  # fmt: skip
    y = cbr(head.project, torch.cat([naive(branch, x)[0] for branch in head.branches], 1))
    y = cbr(head.fuse, torch.cat([x, shrunk(y, size)], 1))
    assert agree(head([None, x])["logits"], conv(head.classify[1], y), [x, *head.parameters()])


@pytest.mark.parametrize(("size", "cells"), [((59, 59), (30, 30)), ((64, 128), (32, 64)), ((5, 4), (3, 2))])
def test_attention_works_on_the_rounded_half(size, cells):
    with torch.device("meta"):
        head = psanet_head([D], 5, channels=C, feature_size=size)
    assert [branch.size for branch in head.branches] == [cells, cells]
    assert head.branches[0].offsets[1].out_channels == (2 * cells[0] - 1) * (2 * cells[1] - 1)


@both
def test_map_is_that_of_the_asked_pixel(collect):
    psa, x, maps = unit(collect), images(), Maps((0.9, 0.1))
    assert torch.equal(psa(x, maps), psa(x))
    asked, table = maps.cell((H, W)), naive(psa, x)[1]
    expected = torch.zeros(B, H, W, dtype=torch.float64)
    for i in range(H):
        for j in range(W):
            expected[:, i, j] = table[(asked, (i, j)) if collect else ((i, j), asked)]
    assert set(maps) == {"collect" if collect else "distribute"}
    assert relative(next(iter(maps.values())), expected) < 1e-10


def test_head_hands_both_maps_out():
    head, maps = psanet_head([D], 5, channels=C, feature_size=(5, 3)).eval(), Maps()
    head([torch.randn(1, D, 5, 3)], maps)
    assert {name: tuple(m.shape) for name, m in maps.items()} == {"collect": (1, 3, 2), "distribute": (1, 3, 2)}


def test_index_is_rebuilt_and_not_in_checkpoints():
    head = psanet_head([D], 5, channels=C, feature_size=(5, 3))
    assert not [name for name in head.state_dict() if "index" in name]
    assert head.feature_size == (5, 3)


def test_wrong_size_names_given_allowed_and_cure():
    head = psanet_head([D], 5, channels=C, feature_size=(5, 3)).eval()
    with pytest.raises(ValueError, match=r"\(5, 4\).*\(5, 3\).*windows of the training crop"):
        head([torch.zeros(1, D, 5, 4)])


def test_published_cost(golden):
    build = lambda: psanet_head([2048], 21, feature_size=(64, 64))  # noqa: E731
    golden(build, 27677205, 93.863, (1, 2048, 64, 64), as_list=True)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"feature_size": None}, r"feature_size is None; allowed: \(h, w\) in cells"),
        ({"feature_size": (0, 3)}, "feature_size is 0; allowed"),
        ({"kind": "colect"}, r"unknown kind 'colect'; allowed: bi, collect, distribute. Did you mean 'collect'\?"),
        ({"shrink": 0}, "shrink is 0; allowed: an integer of at least 1"),
        ({"channels": 0}, "channels is 0; allowed"),
        ({"dropout": 1.0}, "dropout is 1.0; allowed"),
    ],
)
def test_bad_values(keywords, message):
    with pytest.raises(ValueError, match=message):
        build_head("psanet", [8], 3, **{"channels": 4, "feature_size": (5, 3)} | keywords)
