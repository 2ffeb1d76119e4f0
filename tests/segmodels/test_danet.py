"""DANet against loops over pixels and channels, written from its equations."""

import pytest
import torch
from naive_layers import agree, cbr, conv, relative, scramble
from torch import Tensor

from segmodels.cost import conv_matmul_macs
from segmodels.heads.catalog import build_head
from segmodels.heads.danet import ChannelAttention, PositionAttention, danet_head
from segmodels.heads.maps import Maps
from segmodels.plain.danet import cam_plain, pam_plain
from segmodels.segmentor import classifier_keys

B, C, E, H, W = 2, 4, 3, 5, 3


def images(*size):
    return torch.randn(size or (B, C, H, W), dtype=torch.float64, requires_grad=True)


def softmax(energies):
    energies = torch.stack(energies)
    return energies.exp() / energies.exp().sum(0)


def naive_pam(pam, x):
    q, k, v = (conv(layer, x).flatten(2) for layer in (pam.query, pam.key, pam.value))
    n = range(q.shape[2])
    pixels = []
    for i in n:
        weights = softmax([(q[:, :, i] * k[:, :, j]).sum(1) for j in n])
        pixels.append(sum(weights[j][:, None] * v[:, :, j] for j in n))
    return pam.alpha * torch.stack(pixels, 2).view_as(x) + x


def naive_cam(cam, x):
    f, c, channels = x.flatten(2), range(x.shape[1]), []
    for i in c:
        energies = torch.stack([(f[:, i] * f[:, j]).sum(1) for j in c])
        weights = softmax(list(energies.max(0).values - energies))
        channels.append(sum(weights[j][:, None] * f[:, j] for j in c))
    return cam.beta * torch.stack(channels, 1).view_as(x) + x


UNITS = {
    "pam": (lambda: PositionAttention(C, E), naive_pam, pam_plain),
    "cam": (ChannelAttention, naive_cam, cam_plain),
}


@pytest.mark.parametrize("name", UNITS)
def test_equals_the_loop_and_the_public_form(name):
    build, naive, plain = UNITS[name]
    made, x = scramble(build()), images()
    leaves = [x, *made.parameters()]
    assert agree(made(x), naive(made, x), leaves)
    assert agree(made(x), plain(made, x), leaves)
    last = x.detach().contiguous(memory_format=torch.channels_last)
    assert relative(made(last), naive(made, x)) < 1e-10


@pytest.mark.parametrize("name", UNITS)
def test_starts_as_the_identity(name):
    x = images()
    assert torch.equal(UNITS[name][0]().double()(x), x)


def test_channel_attention_favours_the_unlike():
    cam = scramble(ChannelAttention())
    x = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    x[0, 0], x[0, 1] = 3, -3
    assert torch.allclose(cam(x)[0, 0], torch.full((2, 2), 3 - 0.7 * 3, dtype=torch.float64))


def test_no_channel_weight_is_a_number_below_the_least_normal_one(monkeypatch):
    """A CPU is a hundred times as slow with them. What is left out is far below rounding, in gradients too."""
    seen, real = [], Tensor.softmax

    def watched(energies, dim):
        seen.append(real(energies, dim))
        return seen[-1]

    def least(weights):
        return weights[weights > 0].min().item()

    x = torch.arange(1.0, 65.0).view(1, 64, 1, 1) / 8 * torch.ones(1, 64, 2, 2)
    monkeypatch.setattr(Tensor, "softmax", watched)
    cam = ChannelAttention()
    torch.nn.init.ones_(cam.beta)
    cam(x), cam_plain(cam, x)
    assert least(seen[0]) > torch.finfo(torch.float32).tiny > least(seen[1])
    x = x.double().requires_grad_()
    assert agree(cam.double()(x), cam_plain(cam, x), [x, cam.beta])


def test_channel_energies_keep_float32_under_autocast():
    """All channels share an energy of 1020, at which bfloat16 counts in eights; one pixel tells them apart."""
    cam, x = ChannelAttention(), torch.full((1, 16, 16, 16), 2.0)
    torch.nn.init.ones_(cam.beta)
    x[0, :, 0, 0] = torch.linspace(-2, 2, 16)
    with torch.autocast("cpu", torch.bfloat16):
        half, plain = cam(x)[..., 0, 0], cam_plain(cam, x)[..., 0, 0]
    assert relative(half, cam(x)[..., 0, 0]) < 0.02
    assert relative(plain, cam(x)[..., 0, 0]) > 0.1


@pytest.mark.parametrize("switches", [{}, {"pam": False}, {"cam": False}])
def test_head_equals_its_equations(switches):
    head = scramble(danet_head([3, 6], 5, channels=C, key_channels=E, dropout=0.0, **switches)).train()
    x, branches = images(B, 6, H, W), {}
    for name in head.attend:
        y = UNITS[name][1](head.attend[name], cbr(head.reduce[name], x))
        branches[name] = cbr(head.after[name], y)
    expected = {"logits": conv(head.classify[1], sum(branches.values()))}
    if not switches:
        expected |= {name: conv(head.classify_branch[name][1], branches[name]) for name in branches}
    assert set(branches) == {"pam", "cam"} - set(switches)
    outputs = head([None, x])
    assert set(outputs) == set(expected)
    for name, output in outputs.items():
        assert agree(output, expected[name], [x, *head.parameters()])
    assert set(head.eval()([None, x])) == {"logits"}


def test_three_classifiers_are_found():
    assert len(classifier_keys(danet_head([6], 5, channels=C))) == 6
    assert len(classifier_keys(danet_head([6], 5, channels=C, cam=False))) == 2


def test_key_channels_0_is_an_eighth():
    assert danet_head([6], 5, channels=24, key_channels=0).attend["pam"].query.out_channels == 3
    assert danet_head([6], 5, channels=4, key_channels=0).attend["pam"].query.out_channels == 1
    assert danet_head([6], 5, channels=512).attend["pam"].query.out_channels == 64


def test_map_is_the_row_of_the_asked_pixel():
    pam, x, maps = scramble(PositionAttention(C, E)), images(), Maps((0.9, 0.5))
    assert torch.equal(pam(x, maps), pam(x))
    i, j = maps.cell((H, W))
    q, k = conv(pam.query, x), conv(pam.key, x).flatten(2)
    expected = softmax([(q[:, :, i, j] * k[:, :, n]).sum(1) for n in range(H * W)]).T.view(B, H, W)
    assert relative(maps["position"], expected) < 1e-10
    head, maps = danet_head([6], 5, channels=C).eval(), Maps()
    head([torch.randn(1, 6, H, W)], maps)
    assert set(maps) == {"position"}


def test_published_cost(golden):
    """The published count has all three classifiers, which only training evaluates."""
    golden(lambda: PositionAttention(512, 64), 328321, 11.0059, (1, 512, 64, 64))
    golden(ChannelAttention, 1, 2.1475, (1, 512, 64, 64))
    golden(lambda: danet_head([2048], 21), 23957697, 109.922, (1, 2048, 64, 64), as_list=True)
    with torch.device("meta"):
        head, x = danet_head([2048], 21).eval(), [torch.zeros(1, 2048, 64, 64)]
        evaluated = conv_matmul_macs(head, x)
        head.training = True  # only of the head: batch norms, which see one image, stay in evaluation
        trained = conv_matmul_macs(head, x)
    assert trained == pytest.approx(109.922e9, abs=0.0005e9)
    assert trained - evaluated == 2 * 512 * 21 * 64 * 64


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"pam": False, "cam": False}, "pam and cam are both false; allowed: one or both.*head: fcn"),
        ({"key_channels": -1}, "key_channels is -1; allowed"),
        ({"channels": 0}, "channels is 0; allowed: an integer of at least 1"),
        ({"pam": 1}, "pam is 1; allowed: bool"),
        ({"dropout": 1.0}, "dropout is 1.0; allowed"),
    ],
)
def test_bad_values(keywords, message):
    with pytest.raises(ValueError, match=message):
        build_head("danet", [8], 3, **{"channels": 4} | keywords)
