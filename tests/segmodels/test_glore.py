"""GloRe against naive loops over positions and nodes, written from its equations."""

import pytest
import torch

from segmodels.heads.catalog import build_head
from segmodels.heads.glore import GlobalReasoning, glore_head
from segmodels.plain.glore import glore_plain

B, C, H, W, STATES, NODES = 2, 6, 5, 3, 4, 3


def unit(normalize=True):
    """A GloRe unit in float64, every weight and statistic far from its start, the zero of the last norm too."""
    module = GlobalReasoning(C, states=STATES, nodes=NODES, normalize=normalize).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    module.norm.running_mean.normal_()
    module.norm.running_var.uniform_(0.5, 2)
    return module


def naive(module, x, normalize):
    weight, bias = module.project.weight.flatten(1), module.project.bias
    adjacency, update = module.adjacency.weight[:, :, 0], module.update.weight[:, :, 0]
    extend, norm, images = module.extend.weight.flatten(1), module.norm, []
    for image in x:
        pixels = image.flatten(1).T
        s = [weight[:STATES] @ p + bias[:STATES] for p in pixels]
        b = [weight[STATES:] @ p + bias[STATES:] for p in pixels]
        v = [sum(b[n][k] * s[n] for n in range(H * W)) / (H * W if normalize else 1) for k in range(NODES)]
        mixed = [sum(adjacency[k, j] * v[j] for j in range(NODES)) + module.adjacency.bias[k] for k in range(NODES)]
        z = [update @ torch.relu(m + node) for m, node in zip(mixed, v, strict=True)]
        y = [extend @ sum(b[n][k] * z[k] for k in range(NODES)) for n in range(H * W)]
        images.append(torch.stack(y, 1))
    y = torch.stack(images)
    mean, var = norm.running_mean.view(-1, 1), norm.running_var.view(-1, 1)
    if norm.training:
        mean = y.mean((0, 2), keepdim=True)
        var = ((y - mean) ** 2).mean((0, 2), keepdim=True)
    y = (y - mean) / (var + 1e-4) ** 0.5 * norm.weight.view(-1, 1) + norm.bias.view(-1, 1)
    return x + y.view(x.shape)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def compare(fast, slow, leaves):
    assert relative(fast, slow) < 1e-10
    probe = torch.randn_like(fast)
    pairs = zip(torch.autograd.grad(fast, leaves, probe), torch.autograd.grad(slow, leaves, probe), strict=True)
    assert max(relative(a, b) for a, b in pairs) < 1e-10


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("training", [False, True])
def test_equals_the_loops_and_the_plain_form_in_outputs_and_gradients(normalize, training):
    module = unit(normalize).train(training)
    x = torch.randn(B, C, H, W, dtype=torch.float64, requires_grad=True)
    leaves = [x, *module.parameters()]
    compare(module(x), naive(module, x, normalize), leaves)
    compare(module(x), glore_plain(module, x), leaves)


def test_starts_as_the_identity():
    x = torch.randn(B, C, H, W)
    for training in (False, True):
        assert torch.equal(GlobalReasoning(C).train(training)(x), x)


def test_normalized_nodes_do_not_grow_with_the_map():
    module = unit().eval()
    x = torch.randn(B, C, H, W, dtype=torch.float64)
    high = torch.cat([x, x], 2)
    assert torch.allclose(module(high)[:, :, :H], module(x))
    module.normalize = False
    assert not torch.allclose(module(high)[:, :, :H], module(x))


def test_head_is_the_unit_between_two_3x3():
    head = glore_head([8], 3, channels=C, states=STATES, nodes=NODES).eval()
    torch.nn.init.ones_(head.context.context.norm.weight)
    x = torch.randn(2, 8, 5, 3)
    expected = head.classify(head.context.refine(head.context.context(head.reduce(x))))
    assert torch.equal(head([x])["logits"], expected)
    assert head.context.refine[0].kernel_size == (3, 3)


def test_golden(golden):
    golden(lambda: GlobalReasoning(512), 185600, 0.7398, (1, 512, 64, 64))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"states": 0}, "states is 0; allowed: an integer of at least 1"),
        ({"nodes": -1}, "nodes is -1; allowed: an integer of at least 1"),
        ({"channels": 0}, "channels is 0"),
        ({"normalize": 1}, "normalize is 1; allowed: bool"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_bad_values(keywords, message):
    with pytest.raises(ValueError, match=message):
        build_head("glore", [8], 3, **{"channels": C} | keywords)
