"""SRNet against naive loops over channels, positions and nodes, written from its equations."""

import copy

import pytest
import torch
from naive_layers import compare

from segmodels.heads.catalog import build_head
from segmodels.heads.maps import Maps
from segmodels.heads.srnet import SqueezeReasoning, srnet_head
from segmodels.plain.srnet import srnet_plain

B, C, H, W, K, INNER = 2, 12, 5, 3, 3, 6

UNITS = [
    {},
    {"ghp_sum": True},
    {"squeeze": "gap"},
    {"squeeze": "gap", "reasoning": "none"},
    {"reasoning": "none"},
    {"squeeze": "gap", "reasoning": "fc"},
    {"squeeze": "gap", "reasoning": "sa"},
    {"reasoning": "fc"},
    {"reasoning": "sa"},
    {"reasoning": "eq5"},
    {"layout": "official"},
    {"layout": "official", "reasoning": "none"},
    {"layout": "official", "reasoning": "fc"},
    {"layout": "official", "reasoning": "sa"},
]
every_unit = pytest.mark.parametrize("keywords", UNITS, ids=lambda k: "-".join(map(str, k.values())) or "default")


def unit(**keywords):
    """An SR unit in float64, every weight and statistic far from its start."""
    module = SqueezeReasoning(C, **{"nodes": K, "fc_hidden": 5} | keywords).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    for norm in module.modules():
        if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
        if isinstance(norm, torch.nn.GroupNorm):
            norm.eps = 0.5  # else the norm cancels the gate's size, and with it the gradient to compare
    return module


def batch_norm(norm, y, dim):
    """Batch norm over all dimensions but `dim`, with the batch's statistics in training."""
    rest = [d for d in range(y.ndim) if d != dim]
    shape = [-1 if d == dim else 1 for d in range(y.ndim)]
    mean, var = norm.running_mean.view(shape), norm.running_var.view(shape)
    if norm.training:
        mean = y.mean(rest, keepdim=True)
        var = ((y - mean) ** 2).mean(rest, keepdim=True)
    return (y - mean) / (var + norm.eps) ** 0.5 * norm.weight.view(shape) + norm.bias.view(shape)


def matrix(layer):
    return layer.weight.flatten(1)


def naive_reason(module, kind, g):
    """Equations (5) and (6) on g (B, K, d), node by node."""
    r, d = module.reason, g.shape[2]
    if kind == "fc":
        hidden = torch.relu(g.flatten(1) @ r[1].weight.T + r[1].bias)
        return (hidden @ r[3].weight.T + r[3].bias).view(g.shape)
    if kind == "gcn":
        a, w = matrix(r.adjacency), matrix(r.update)
        mixed = torch.stack([sum(a[k, j] * g[:, j] for j in range(K)) for k in range(K)], 1)
        z = torch.relu(batch_norm(r.adjacency_norm, mixed, 1)) + g
        updated = torch.stack([sum(w[i, j] * z[:, :, j] for j in range(d)) for i in range(d)], 2)
        return torch.relu(batch_norm(r.update_norm, updated, 2))
    if kind == "eq5":
        mix = torch.eye(K, dtype=g.dtype) - matrix(r.adjacency)
        return torch.relu(torch.stack([(matrix(r.update) @ graph.mT @ mix.mT).mT for graph in g]))
    if kind == "sa":
        rows = []
        for graph in g:
            theta, phi, rho = ([matrix(m) @ node for node in graph] for m in (r.theta, r.phi, r.rho))
            rows.append(torch.stack([sum((phi[i] @ theta[j]) * rho[i] for i in range(K)) for j in range(K)]))
        return torch.relu(torch.stack(rows))
    return g


def naive(module, x, *, squeeze="ghp", reasoning="gcn", layout="paper", ghp_sum=False):
    t, *pair = (torch.einsum("oc,bchw->bohw", w, x) for w in matrix(module.project).split(INNER))
    if squeeze == "gap":
        g = torch.stack([torch.stack([t[b, c].sum() / (H * W) for c in range(INNER)]) for b in range(B)])
    else:
        left, right = pair if layout == "official" else (t, pair[0])
        cells = [(h, w) for h in range(H) for w in range(W)]
        g = torch.stack(
            [torch.stack([sum(left[b, c][p] * right[b, c][p] for p in cells) for c in range(INNER)]) for b in range(B)]
        ) / (1 if ghp_sum else H * W)
    out = naive_reason(module, reasoning, g.view(B, K, INNER // K)).reshape(B, INNER)
    gated = torch.stack([torch.stack([t[b, c] * out[b, c] for c in range(INNER)]) for b in range(B)])
    if layout == "paper":
        return batch_norm(module.norm, torch.einsum("oc,bchw->bohw", matrix(module.restore), gated), 1) + x
    y = torch.stack([matrix(module.restore)[o, 0] * gated[:, o * INNER // C] for o in range(C)], 1)
    groups = y.split(C // INNER, 1)
    y = torch.cat([(v - v.mean((1, 2, 3), keepdim=True)) / spread(v, module.norm.eps) for v in groups], 1)
    return y * module.norm.weight.view(1, -1, 1, 1) + module.norm.bias.view(1, -1, 1, 1) + x


def spread(v, eps):
    return (v.var((1, 2, 3), keepdim=True, unbiased=False) + eps) ** 0.5


@every_unit
@pytest.mark.parametrize("training", [False, True])
def test_equals_the_loops_in_outputs_and_gradients(keywords, training):
    module = unit(**keywords).train(training)
    x = torch.randn(B, C, H, W, dtype=torch.float64, requires_grad=True)
    compare(module(x), naive(module, x, **keywords), [x, *module.parameters()])


@every_unit
def test_equals_the_plain_form(keywords):
    module = unit(**keywords).eval()
    x = torch.randn(B, C, H, W, dtype=torch.float64, requires_grad=True)
    compare(module(x), srnet_plain(module, x), [x, *module.parameters()])


def test_the_mean_takes_maps_of_any_size_and_the_sum_does_not():
    """A map repeated twice as high squeezes to the same mean, and to twice the sum."""
    x = torch.randn(B, C, H, W, dtype=torch.float64)
    high = torch.cat([x, x], 2)
    mean = unit(reasoning="none").eval()
    summed = copy.deepcopy(mean)
    summed.ghp_sum = True
    assert torch.allclose(mean(high)[:, :, :H], mean(x))
    assert not torch.allclose(summed(high)[:, :, :H], summed(x))


def test_squeeze_in_half_precision_sums_in_float32():
    """9409 products of 16 make 150544, where float16 ends at 65504."""
    fours = torch.full((1, INNER, 97, 97), 4, dtype=torch.float16)
    assert SqueezeReasoning(C, nodes=K).squeeze([fours, fours]).tolist() == [[16.0] * INNER]


def test_official_layout_keeps_of_a_gate_only_whether_it_is_zero():
    module = unit(layout="official", reasoning="none").eval()
    module.norm.eps = 0.0
    x = torch.randn(B, C, H, W, dtype=torch.float64)
    y = module(x)
    module.reason = torch.nn.ReLU()
    positive = (module.squeeze(module.project(x).chunk(3, 1)) > 0).repeat_interleave(C // INNER, 1)
    module.norm.eps = 1e-12
    changed = module(x)
    assert positive.any()
    assert not positive.all()
    assert torch.allclose(changed[positive], y[positive])
    bias = module.norm.bias.expand(B, -1)[~positive]
    assert torch.allclose((changed - x)[~positive], bias[:, None, None].expand(-1, H, W))


def test_maps_are_each_nodes_most_salient_channel_and_the_units_input_and_output():
    module = unit().eval()
    x = torch.randn(B, C, H, W, dtype=torch.float64)
    maps = Maps()
    assert torch.equal(module(x, maps), module(x))
    t = torch.einsum("oc,bchw->bohw", matrix(module.project)[:INNER], x)
    gated = t * module.reason(module.squeeze(module.project(x).chunk(2, 1)).view(B, K, -1)).reshape(B, INNER, 1, 1)
    for image in range(B):
        for k in range(K):
            mine = [(gated[image, c].abs().mean().item(), c) for c in range(INNER) if c * K // INNER == k]
            salient = max(mine)[1]
            assert maps["node_channels"][image, k] == salient
            assert torch.allclose(maps["nodes"][image, k], gated[image, salient])
    assert torch.equal(maps["unit_input"], x)
    assert torch.equal(maps["unit_output"], module(x))
    head, maps = srnet_head([8], 3, channels=C, nodes=K).eval(), Maps()
    head([torch.randn(1, 8, 4, 6)], maps)
    assert maps["nodes"].shape == (1, K, 4, 6)


def test_base_row_is_two_3x3_convolutions():
    head = srnet_head([8], 3, channels=4, squeeze="none", reasoning="none").eval()
    x = torch.randn(2, 8, 5, 3)
    expected = head.classify(head.context.refine(head.reduce(x)))
    assert torch.equal(head([x], Maps())["logits"], expected)
    assert sum(p.numel() for p in head.parameters()) == 9 * 8 * 4 + 9 * 4 * 4 + 2 * 2 * 4 + 3 * 4 + 3


def test_one_image_in_training():
    x = [torch.randn(1, 8, 4, 4)]
    assert srnet_head([8], 3, channels=8, nodes=2).train()(x)["logits"].isfinite().all()
    for nodes in (1, 4):  # one node; one state per node
        with pytest.raises(ValueError, match=r"graph reasoning with 1 node or 1 state got .* Raise the batch"):
            srnet_head([8], 3, channels=8, nodes=nodes).train()(x)


@pytest.mark.parametrize(
    ("keywords", "count", "giga"),
    [
        ({"squeeze": "gap"}, 263744, 1.0738),
        ({}, 394816, 1.6106),
        ({"layout": "official", "nodes": 32}, 395920, 1.6127),
    ],
)
def test_golden_unit(golden, keywords, count, giga):
    golden(lambda: SqueezeReasoning(512, **keywords), count, giga, (1, 512, 64, 64))


@pytest.mark.parametrize(("squeeze", "count", "giga"), [("ghp", 12204117, 49.973), ("gap", 12073045, 49.436)])
def test_golden_head(golden, squeeze, count, giga):
    golden(lambda: srnet_head([2048], 21, squeeze=squeeze), count, giga, (1, 2048, 64, 64), as_list=True)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"squeeze": "none", "reasoning": "none", "layout": "offical"}, r"unknown layout .* 'official'\?"),
        ({"squeeze": "gph"}, r"unknown squeeze 'gph'; allowed: none, gap, ghp. Did you mean 'ghp'\?"),
        (
            {"squeeze": "none"},
            r"reasoning is 'gcn' with squeeze 'none'; allowed: 'none'.*Set squeeze to 'gap' or 'ghp'",
        ),
        ({"squeeze": "none", "reasoning": "x"}, "unknown reasoning 'x'; allowed: none, fc, gcn, eq5, sa"),
        ({"reasoning": "gnc"}, r"unknown reasoning 'gnc'.*'gcn'\?"),
        ({"layout": "code"}, "unknown layout 'code'; allowed: paper, official"),
        ({"squeeze": "gap", "layout": "official"}, "squeeze is 'gap' with layout 'official'; allowed: 'ghp'"),
        ({"squeeze": "gap", "ghp_sum": True}, "squeeze is 'gap' with ghp_sum; allowed: 'ghp'"),
        ({"nodes": 5}, "nodes is 5; allowed: a divisor of channels / ratio, which is 6"),
        ({"nodes": 0}, "nodes is 0; allowed: an integer of at least 1"),
        ({"ratio": 5}, "ratio is 5; allowed: a divisor of channels, which is 12"),
        ({"fc_hidden": 0}, "fc_hidden is 0"),
        ({"channels": 0}, "channels is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_bad_values(keywords, message):
    with pytest.raises(ValueError, match=message):
        build_head("srnet", [8], 3, **{"channels": C, "nodes": K} | keywords)
