"""EncNet against loops over pixels and codewords, and against the explicit residual tensor."""

import pytest
import torch
from naive_layers import assert_parity, cbr, conv, draw, linear, norm, randomise, relative, relu, sigmoid

from segmodels.heads.catalog import build_head
from segmodels.heads.encnet import EncModule, Encoding, encnet_head
from segmodels.heads.maps import Maps
from segmodels.layers import Classifier
from segmodels.plain.encnet import encnet_plain
from segmodels.sync_norm import SyncBatchNorm, synchronised

B, C, H, W, CODES = 2, 6, 5, 3, 4


def naive_encoding(unit, x):
    """E and A, pixel by pixel and codeword by codeword."""
    d, s = unit.codewords, unit.scale
    e, rows = 0, []
    for i in range(H):
        for j in range(W):
            pixel = x[:, :, i, j]
            residuals = [pixel - d[k] for k in range(CODES)]
            scores = [(s[k] * (residuals[k] ** 2).sum(1)).exp() for k in range(CODES)]
            a = torch.stack([score / sum(scores) for score in scores], 1)
            e = e + torch.stack([a[:, k, None] * residuals[k] for k in range(CODES)], 1)
            rows.append(a)
    return e, torch.stack(rows, 2).view(B, CODES, H, W)


def naive(net, x):
    """The module's output, and e."""
    encoded, a = naive_encoding(net.encoding, cbr(net.project, x))
    encoded = relu(norm(net.norm, encoded))
    e = sum(encoded[:, k] for k in range(CODES)) / CODES
    return relu(x + x * sigmoid(linear(net.gate, e))[:, :, None, None]), e, a


@pytest.mark.parametrize("training", [False, True])
def test_module_equals_its_equations(training):
    net = randomise(EncModule(C, CODES)).train(training)
    x, maps = draw(B, C, H, W), Maps()
    slow, _, a = naive(net, x)
    assert_parity(net(x, maps), slow, net, x)
    assert set(maps) == {"assignment"}
    assert relative(maps["assignment"], a) < 1e-10


def test_head_equals_its_equations():
    head = randomise(encnet_head([8], 3, channels=C, codes=CODES)).eval()
    x = draw(B, 8, H, W)
    outputs = head([x])
    y, e, _ = naive(head.context, cbr(head.reduce, x))
    assert outputs["presence"].shape == (B, 3)
    assert relative(outputs["presence"], conv(head.presence, e[:, :, None, None])[:, :, 0, 0]) < 1e-10
    fast = torch.cat([outputs["logits"].flatten(1), outputs["presence"]], 1)
    slow = torch.cat([conv(head.classify[1], y).flatten(1), conv(head.presence, e[:, :, None, None]).flatten(1)], 1)
    assert_parity(fast, slow, head, x)


@pytest.mark.parametrize("training", [False, True])
def test_equals_the_plain_form(training):
    net = randomise(EncModule(C, CODES)).train(training)
    x = draw(B, C, H, W)
    assert_parity(net(x), encnet_plain(net, x), net, x)


def test_stays_precise_far_from_the_codewords_and_under_autocast():
    unit = Encoding(64, CODES)
    torch.nn.init.normal_(unit.codewords)
    x = 8 + torch.randn(B, 64, H, W).bfloat16()
    exact = Encoding(64, CODES).double()
    exact.load_state_dict(unit.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        e, a = unit(x)
    assert e.dtype == a.dtype == torch.float32
    wanted_e, wanted_a = exact(x.double())
    assert (a - wanted_a).abs().max() < 1e-3
    assert relative(e.double(), wanted_e) < 1e-3


def test_start_is_the_authors():
    unit = Encoding(64, 32)
    assert unit.codewords.abs().max() <= (32 * 64) ** -0.5
    assert unit.codewords.std().item() == pytest.approx((32 * 64) ** -0.5 / 3**0.5, rel=0.05)
    assert ((unit.scale < 0) & (unit.scale >= -1)).all()


def test_cost(golden):
    golden(lambda: EncModule(512, 32), 542304, 1.2082, (1, 512, 64, 64))
    golden(lambda: encnet_head([2048], 21), 10002058, 39.907, (1, 2048, 64, 64), as_list=True)


def test_presence_is_a_classifier_and_can_be_left_out():
    head = encnet_head([8], 3, channels=C)
    assert [name for name, m in head.named_modules() if isinstance(m, Classifier)] == ["classify.1", "presence"]
    bare = encnet_head([8], 3, channels=C, se=False).eval()
    assert set(bare([torch.randn(1, 8, H, W)])) == {"logits"}
    assert "presence.weight" not in bare.state_dict()


def test_norm_over_codewords_is_synchronised_and_takes_one_image():
    head = encnet_head([8], 3, channels=C, codes=CODES)
    assert head.train()([torch.randn(1, 8, H, W)])["logits"].isfinite().all()
    converted = synchronised(head)
    assert isinstance(converted.context.norm, SyncBatchNorm)
    assert not [m for m in converted.modules() if isinstance(m, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d)]


def test_maps_come_through_the_head():
    head, maps = encnet_head([8], 3, channels=C, codes=CODES).eval(), Maps()
    x = torch.randn(1, 8, H, W)
    assert torch.equal(head([x], maps)["logits"], head([x])["logits"])
    assert maps["assignment"].shape == (1, CODES, H, W)
    assert torch.allclose(maps["assignment"].sum(1), torch.ones(1, H, W))
    assert not maps["assignment"].requires_grad


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"codes": 0}, "codes is 0; allowed: an integer of at least 1"),
        ({"codes": 3.5}, "codes is 3.5; allowed: int"),
        ({"channels": -1}, "channels is -1"),
        ({"se": 1}, "se is 1; allowed: bool"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"code": 3}, r"unknown keyword 'code' of head 'encnet'.*Did you mean 'codes'\?"),
    ],
)
def test_bad_values(keywords, message):
    with pytest.raises(ValueError, match=message):
        build_head("encnet", [8], 3, **{"channels": 4} | keywords)
