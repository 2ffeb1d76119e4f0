"""SE, CBAM and the global context block against loops over pixels and channels."""

import pytest
import torch
from naive_layers import assert_parity, conv, draw, linear, norm, randomise, relative, relu, sigmoid, softmax

from segmodels.heads.catalog import build_head
from segmodels.heads.cbam import CBAM, largest
from segmodels.heads.gc import GlobalContext
from segmodels.heads.maps import Maps
from segmodels.heads.se import SqueezeExcitation

B, C, H, W = 2, 6, 5, 3


def average(x):
    return torch.stack([sum(x[:, :, i, j] for i in range(H) for j in range(W))]).squeeze(0) / (H * W)


def mlp(layers, x):
    """Linear, ReLU, linear."""
    return linear(layers[2], relu(linear(layers[0], x)))


def test_se_equals_its_equations():
    net = randomise(SqueezeExcitation(C, 3))
    x = draw(B, C, H, W)
    gate = sigmoid(mlp(net.gate, average(x)))
    assert_parity(net(x), torch.stack([x[:, c] * gate[:, c, None, None] for c in range(C)], 1), net, x)


@pytest.mark.parametrize("training", [False, True])
def test_cbam_equals_its_equations(training):
    net = randomise(CBAM(C, 3, 5, spatial=True)).train(training)
    x = draw(B, C, H, W)
    largest = torch.stack([torch.stack([x[b, c].flatten().sort().values[-1] for c in range(C)]) for b in range(B)])
    gate = sigmoid(mlp(net.channel.mlp, average(x)) + mlp(net.channel.mlp, largest))
    y = x * gate[:, :, None, None]
    pooled = torch.stack([y.sort(1).values[:, -1], sum(y[:, c] for c in range(C)) / C], 1)
    spatial = sigmoid(norm(net.spatial.norm, conv(net.spatial.conv, pooled)))
    maps = Maps()
    assert_parity(net(x, maps), y * spatial, net, x)
    assert set(maps) == {"spatial_gate"}
    assert maps["spatial_gate"].shape == (B, 1, H, W)
    assert relative(maps["spatial_gate"], spatial) < 1e-10


def test_the_gradient_of_a_maximum_goes_to_one_of_the_greatest():
    x = torch.tensor([[[3.0, 5.0, 5.0]]], requires_grad=True)
    (gradient,) = torch.autograd.grad(largest(x, 2).sum(), x)
    assert sorted(gradient.flatten().tolist()) == [0, 0, 1]
    assert torch.equal(largest(x.detach(), 2), largest(x, 2))


def test_cbam_without_the_spatial_gate_gates_only_channels():
    net = randomise(CBAM(C, 3, 5, spatial=False))
    x, maps = draw(B, C, H, W), Maps()
    gate = sigmoid(mlp(net.channel.mlp, average(x)) + mlp(net.channel.mlp, x.amax((2, 3))))
    assert_parity(net(x, maps), x * gate[:, :, None, None], net, x)
    assert not maps


def transform(net, x):
    """Linear, layer norm, ReLU, linear."""
    first, layer, _, last = net.transform
    y = linear(first, x)
    mean = y.mean(1, keepdim=True)
    y = (y - mean) / (((y - mean) ** 2).mean(1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias
    return linear(last, relu(y))


@pytest.mark.parametrize("fusion", ["add", "scale"])
@pytest.mark.parametrize("pooling", ["attention", "average"])
def test_gc_equals_its_equations(pooling, fusion):
    net = randomise(GlobalContext(C, 2, pooling, fusion))
    x, maps = draw(B, C, H, W), Maps()
    context = average(x)
    if pooling == "attention":
        weights = softmax(conv(net.mask, x).flatten(1), 1).view(B, H, W)
        context = sum(weights[:, i, j, None] * x[:, :, i, j] for i in range(H) for j in range(W))
    y = transform(net, context)[:, :, None, None]
    assert_parity(net(x, maps), x + y if fusion == "add" else x * sigmoid(y), net, x)
    assert set(maps) == ({"attention"} if pooling == "attention" else set())
    if maps:
        assert maps["attention"].shape == (B, 1, H, W)
        assert relative(maps["attention"][:, 0], weights) < 1e-10


def test_gc_starts_as_the_identity():
    x = torch.randn(B, C, H, W)
    assert torch.equal(GlobalContext(C, 2, "attention", "add")(x), x)
    assert torch.allclose(GlobalContext(C, 2, "attention", "scale")(x), x / 2)


def test_se_cost(golden):
    golden(lambda: SqueezeExcitation(512, 16), 33312, 0.0, (1, 512, 64, 64))


@pytest.mark.parametrize("name", ["cbam", "gc"])
def test_maps_come_through_the_head(name):
    head, maps = build_head(name, [8], 3, channels=8, reduction=2).eval(), Maps()
    x = torch.randn(1, 8, H, W)
    assert torch.equal(head([x], maps)["logits"], head([x])["logits"])
    (value,) = maps.values()
    assert value.shape == (1, 1, H, W)
    assert not value.requires_grad


@pytest.mark.parametrize(
    ("name", "keywords", "message"),
    [
        ("se", {"reduction": 0}, "reduction is 0; allowed: an integer of at least 1"),
        ("se", {"reduction": 3}, "reduction is 3; allowed: a divisor of channels, which is 8"),
        ("se", {"channels": 0}, "channels is 0"),
        ("se", {"reducton": 2}, r"unknown keyword 'reducton' of head 'se'.*Did you mean 'reduction'\?"),
        ("cbam", {"reduction": 3}, "reduction is 3; allowed: a divisor of channels, which is 8"),
        ("cbam", {"kernel": 4}, "kernel is 4; allowed: odd sizes"),
        ("cbam", {"kernel": 0}, "kernel is 0; allowed: an integer of at least 1"),
        ("cbam", {"spatial": "yes"}, "spatial is 'yes'; allowed: bool"),
        ("gc", {"reduction": 3}, "reduction is 3; allowed: a divisor of channels, which is 8"),
        ("gc", {"reduction": 8}, "reduction is 8 with channels 8; allowed: 4 at most"),
        ("gc", {"pooling": "avg"}, r"unknown pooling 'avg'; allowed: attention, average"),
        ("gc", {"fusion": "mul"}, r"unknown fusion 'mul'; allowed: add, scale"),
    ],
)
def test_bad_values(name, keywords, message):
    with pytest.raises(ValueError, match=message):
        build_head(name, [8], 3, **{"channels": 8, "reduction": 2} | keywords)
