"""CCNet against loops over pixels and their crosses, written from its equations."""

import pytest
import torch
from naive_layers import agree, cbr, conv, relative, scramble

from segmodels.heads.catalog import build_head
from segmodels.heads.ccnet import CrissCross, ccnet_head
from segmodels.heads.maps import Maps
from segmodels.plain.ccnet import ccnet_plain

B, C, E, H, W = 2, 4, 3, 5, 3


def unit(**switches):
    return scramble(CrissCross(C, E, **{"recurrences": 2} | switches))


def images(*size):
    return torch.randn(size or (B, C, H, W), dtype=torch.float64, requires_grad=True)


def cross_of(i, j, h, w):
    """The positions of the row and the column of (i, j), itself once."""
    return [(i, other) for other in range(w)] + [(other, j) for other in range(h) if other != i]


def weights_of(q, k, b, i, j):
    energies = torch.stack([(q[b, :, i, j] * k[b, :, m, n]).sum() for m, n in cross_of(i, j, *q.shape[2:])])
    return energies.exp() / energies.exp().sum()


def naive(unit, x):
    gamma = 1 if unit.gamma is None else unit.gamma
    for _ in range(unit.recurrences):
        q, k, v = conv(unit.query, x), conv(unit.key, x), conv(unit.value, x)
        h, w = x.shape[2:]
        pixels = [
            sum(a * v[b, :, m, n] for a, (m, n) in zip(weights_of(q, k, b, i, j), cross_of(i, j, h, w), strict=True))
            for b in range(x.shape[0])
            for i in range(h)
            for j in range(w)
        ]
        x = gamma * torch.stack(pixels).view(x.shape[0], h, w, -1).permute(0, 3, 1, 2) + x
    return x


@pytest.mark.parametrize("recurrences", [1, 2, 3])
@pytest.mark.parametrize("gate", [True, False])
def test_equals_the_loop_in_outputs_and_gradients(recurrences, gate):
    rcca, x = unit(recurrences=recurrences, gate=gate), images()
    assert agree(rcca(x), naive(rcca, x), [x, *rcca.parameters()])


@pytest.mark.parametrize("size", [(1, C, 1, 4), (2, C, 4, 1), (1, C, 1, 1)])
def test_one_row_one_column_and_one_pixel(size):
    rcca, x = unit(), images(*size)
    assert agree(rcca(x), naive(rcca, x), [x, *rcca.parameters()])


def test_equals_the_public_form():
    rcca, x = unit(), images()
    assert agree(rcca(x), ccnet_plain(rcca, x), [x, *rcca.parameters()])
    last = x.detach().contiguous(memory_format=torch.channels_last)
    assert relative(rcca(last), ccnet_plain(rcca, x)) < 1e-10


@pytest.mark.parametrize("training", [False, True])
def test_head_equals_its_equations(training):
    head = scramble(ccnet_head([3, 6], 5, channels=C, key_channels=E, dropout=0.0)).train(training)
    x = images(B, 6, H, W)
    y = cbr(head.after, naive(head.rcca, cbr(head.reduce, x)))
    logits = conv(head.classify[1], cbr(head.fuse, torch.cat([x, y], 1)))
    assert agree(head([None, x])["logits"], logits, [x, *head.parameters()])


def test_starts_as_the_identity_and_reaches_the_cross_then_everything():
    x = images()
    assert torch.equal(CrissCross(C, E, 2).double()(x), x)
    for recurrences, reached in ((1, H + W - 1), (2, H * W)):
        rcca = unit(recurrences=recurrences)
        (gradient,) = torch.autograd.grad(rcca(x)[0, :, 1, 1].sum(), x)
        assert gradient[0].any(0).sum() == reached
        assert not gradient[1].any()


def test_map_is_the_cross_of_the_asked_pixel_in_the_last_recurrence():
    rcca, x, maps = unit(), images(), Maps((0.5, 0.9))
    assert torch.equal(rcca(x, maps), rcca(x))
    i, j = maps.cell((H, W))
    before = naive(unit_of_one(rcca), x)
    q, k = conv(rcca.query, before), conv(rcca.key, before)
    expected = torch.zeros(B, H, W, dtype=torch.float64)
    for b in range(B):
        for weight, (m, n) in zip(weights_of(q, k, b, i, j), cross_of(i, j, H, W), strict=True):
            expected[b, m, n] = weight
    assert relative(maps["cross"], expected) < 1e-10
    assert not maps["cross"].requires_grad


def unit_of_one(rcca):
    """The same weights, one recurrence."""
    one = unit(recurrences=1)
    one.load_state_dict(rcca.state_dict())
    return one


def test_head_hands_maps_on():
    head, maps = ccnet_head([6], 5, channels=C, key_channels=E).eval(), Maps()
    head([torch.randn(1, 6, H, W)], maps)
    assert maps["cross"].shape == (1, H, W)
    assert maps["cross"].sum().item() == pytest.approx(1)


def test_published_cost(golden):
    """The published count leaves the one parameter γ out."""
    golden(lambda: CrissCross(512, 64, 2, gate=False), 328320, 3.2883, (1, 512, 64, 64))
    golden(lambda: ccnet_head([2048], 21, gate=False), 23935125, 99.969, (1, 2048, 64, 64), as_list=True)
    golden(lambda: ccnet_head([2048], 21), 23935126, 99.969, (1, 2048, 64, 64), as_list=True)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"recurrences": 0}, "recurrences is 0; allowed: an integer of at least 1"),
        ({"key_channels": 0}, "key_channels is 0; allowed"),
        ({"channels": -1}, "channels is -1; allowed"),
        ({"gate": 1}, "gate is 1; allowed: bool"),
        ({"dropout": 1.0}, "dropout is 1.0; allowed"),
        ({"recurrence": 2}, r"unknown keyword 'recurrence' of head 'ccnet'.*'recurrences'\?"),
    ],
)
def test_bad_values(keywords, message):
    with pytest.raises(ValueError, match=message):
        build_head("ccnet", [8], 3, **{"channels": 4, "key_channels": 2} | keywords)
