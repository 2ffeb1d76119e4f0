"""LatentGNN against naive loops over positions and latent nodes, written from its equations."""

import pytest
import torch
from naive_layers import compare

from segmodels.heads.catalog import build_head
from segmodels.heads.latentgnn import LatentGraph, latentgnn_head
from segmodels.plain.latentgnn import latentgnn_plain

B, C, H, W, D, STRIDE = 2, 8, 5, 3, 4, 2
N, INNER = H * W, C // STRIDE


def unit():
    """A block in float64, every weight and statistic far from its start, γ too."""
    module = LatentGraph(C, latent=D, stride=STRIDE).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return module


def batch_norm(norm, y):
    """Over all dimensions but the second, with the batch's statistics in training; y is (B, C, N)."""
    mean, var = norm.running_mean.view(-1, 1), norm.running_var.view(-1, 1)
    if norm.training:
        mean = y.mean((0, 2), keepdim=True)
        var = ((y - mean) ** 2).mean((0, 2), keepdim=True)
    return (y - mean) / (var + norm.eps) ** 0.5 * norm.weight.view(-1, 1) + norm.bias.view(-1, 1)


def conv_norm(layers, y):
    return batch_norm(layers[1], torch.einsum("oc,bcn->bon", layers[0].weight.flatten(1), y))


def normal(vector):
    return vector / (vector**2).sum() ** 0.5 if vector.any() else vector * 0


def columns(y):
    return torch.stack([torch.stack([normal(image[:, n]) for n in range(N)], 1) for image in y])


def naive(module, x):
    both = conv_norm(module.reduce, x.flatten(2))
    f, f_back = columns(both[:, :INNER]), columns(both[:, INNER:])
    psi = torch.relu(conv_norm(module.to_latent, f))
    psi_back = columns(torch.relu(conv_norm(module.to_visible, f_back)))
    images = []
    for b in range(B):
        nodes = []
        for k in range(D):
            row = normal(psi[b, k])
            nodes.append(sum(row[n] * f[b, :, n] for n in range(N)))
        mixed = []
        for k in range(D):
            weights = torch.stack([(normal(nodes[k]) * normal(nodes[j])).sum().exp() for j in range(D)])
            mixed.append(sum(w * node for w, node in zip(weights / weights.sum(), nodes, strict=True)))
        images.append(torch.stack([sum(psi_back[b, k, n] * mixed[k] for k in range(D)) for n in range(N)], 1))
    return x + module.gamma * conv_norm(module.restore, torch.stack(images)).view(x.shape)


@pytest.mark.parametrize("training", [False, True])
def test_equals_the_loops_in_outputs_and_gradients(training):
    module = unit().train(training)
    x = torch.randn(B, C, H, W, dtype=torch.float64, requires_grad=True)
    compare(module(x), naive(module, x), [x, *module.parameters()])


def test_equals_the_plain_form():
    module = unit().eval()
    x = torch.randn(B, C, H, W, dtype=torch.float64, requires_grad=True)
    compare(module(x), latentgnn_plain(module, x), [x, *module.parameters()])


def test_starts_as_the_identity():
    x = torch.randn(B, C, H, W)
    for training in (False, True):
        assert torch.equal(LatentGraph(C, latent=D).train(training)(x), x)


def test_a_dead_node_has_finite_gradients():
    module = unit().float().train()
    torch.nn.init.constant_(module.to_latent[1].bias, -100.0)
    torch.nn.init.constant_(module.to_visible[1].bias[:1], -100.0)
    y = module(torch.randn(B, C, H, W))
    y.square().sum().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in module.parameters())


def test_head_with_and_without_a_second_convolution():
    x = torch.randn(2, 8, 5, 3)
    head = latentgnn_head([8], 3, channels=C, latent=D).eval()
    torch.nn.init.ones_(head.context.gamma)
    assert torch.equal(head([x])["logits"], head.classify(head.context(head.reduce(x))))
    head = latentgnn_head([8], 3, channels=C, latent=D, second_conv=True).eval()
    expected = head.classify(head.context.refine(head.context.context(head.reduce(x))))
    assert torch.equal(head([x])["logits"], expected)


def test_golden(golden):
    """The table leaves γ out: 224144 without it."""
    golden(lambda: LatentGraph(512), 224144 + 1, 1.0176, (1, 512, 64, 64))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"stride": 3}, "stride is 3; allowed: a divisor of channels, which is 8"),
        ({"stride": 0}, "stride is 0; allowed: an integer of at least 1"),
        ({"latent": 0}, "latent is 0; allowed: an integer of at least 1"),
        ({"channels": 0}, "channels is 0"),
        ({"second_conv": 1}, "second_conv is 1; allowed: bool"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_bad_values(keywords, message):
    with pytest.raises(ValueError, match=message):
        build_head("latentgnn", [8], 3, **{"channels": C, "latent": D} | keywords)
