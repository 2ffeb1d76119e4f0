"""CTNet against naive loops over channels, pixels and classes, written from its equations."""

import pytest
import torch
import torch.nn.functional as F

from segmodels.heads.catalog import build_head
from segmodels.heads.ctnet import ChannelConvolution, ctnet_head
from segmodels.heads.maps import Maps
from segmodels.plain.ctnet import ctnet_plain

B, IN, C, H, W, KEY, N = 2, 5, 8, 5, 3, 4, 3
SMALL = {"channels": C, "key_channels": KEY, "kernels": (3, 4, 5), "even_kernels": True}

HEADS = [
    {},
    {"gate": "eca", "kernels": (5,)},
    {"gate": "se", "se_reduction": 4},
    {"pooling": "max"},
    {"pooling": "mix", "gate_bias": "shared"},
    {"arrangement": "occm", "gate_bias": "none"},
    {"arrangement": "oscm"},
    {"arrangement": "panet"},
    {"scale": False, "reduce_kernel": 3, "kernels": (1, 4, 8)},
]
every_head = pytest.mark.parametrize("keywords", HEADS, ids=lambda k: "-".join(map(str, k.values())) or "default")


def build(**keywords):
    """A head in float64, every weight and statistic far from its start."""
    head = ctnet_head([7, IN], N, **SMALL | keywords)
    head = head.double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim > 1 else 1)
    for norm in head.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_(std=0.3)
            norm.running_var.uniform_(0.5, 2)
    torch.nn.init.normal_(head.ccm.prior.weight, std=2)
    for layer in () if head.scm is None else (head.scm.key, head.scm.value):
        # M is of the order of 1/n and its class vectors parallel: without norms to match, all classes look alike.
        layer[1].running_mean.normal_(std=0.02)
        layer[1].running_var.uniform_(0.002, 0.01)
        torch.nn.init.normal_(layer[1].bias, std=0.2)
    return head


def batch_norm(norm, y):
    """Over all dimensions but the second, with the batch's statistics in training; y is (B, C, positions)."""
    mean, var = norm.running_mean.view(-1, 1), norm.running_var.view(-1, 1)
    if norm.training:
        mean = y.mean((0, 2), keepdim=True)
        var = ((y - mean) ** 2).mean((0, 2), keepdim=True)
    return (y - mean) / (var + norm.eps) ** 0.5 * norm.weight.view(-1, 1) + norm.bias.view(-1, 1)


def cbr(layer, x):
    """1x1 or 3x3 convolution tap by tap, batch norm, ReLU; x is (B, C, H, W)."""
    weight = layer[0].weight
    reach = weight.shape[2] // 2
    padded = F.pad(x, (reach,) * 4)
    h, w = x.shape[2:]
    taps = [(i, j) for i in range(2 * reach + 1) for j in range(2 * reach + 1)]
    y = sum(torch.einsum("oc,bchw->bohw", weight[:, :, i, j], padded[:, :, i : i + h, j : j + w]) for i, j in taps)
    return torch.relu(batch_norm(layer[1], y.flatten(2))).view(y.shape)


def sigmoid(x):
    return 1 / (1 + (-x).exp())


def naive_gate(gate, p, kind):
    """C_m of one pooled vector, channel by channel."""
    if kind == "se":
        hidden = torch.relu(gate[0].weight @ p + gate[0].bias)
        return sigmoid(gate[2].weight @ hidden + gate[2].bias)
    logits = []
    for c in range(C):
        s = []
        for reach in gate.reaches:
            k = reach.weight.shape[2]
            taps = [(i, c + i - (k - 1) // 2) for i in range(k)]
            s.append(sum(reach.weight[0, 0, i] * p[j] for i, j in taps if 0 <= j < C))
        logit = sum(w * v for w, v in zip(gate.mix.weight[0, :, 0], s, strict=True)) if kind == "mce" else s[0]
        if kind == "mce" and gate.mix.bias is not None:
            logit = logit + gate.mix.bias[0]
        logits.append(logit if gate.bias is None else logit + gate.bias[c])
    return sigmoid(torch.stack(logits))


def naive_pool(x, pooling):
    """(C, H, W) -> (C,)."""
    mean = torch.stack([v.sum() / (H * W) for v in x])
    top = torch.stack([max(v.flatten().unbind(), key=lambda value: value.item()) for v in x])
    return {"avg": mean, "max": top, "mix": mean + top}[pooling]


def naive_scm(scm, x, m, scale):
    """E and the context, pixel by pixel and class by class; m is (B, C, n)."""
    q, key, value = cbr(scm.query, x), cbr(scm.key, m.unsqueeze(3)), cbr(scm.value, m.unsqueeze(3))
    relation = torch.zeros(B, N, H, W, dtype=x.dtype)
    images = []
    for b in range(B):
        pixels = []
        for h in range(H):
            for w in range(W):
                e = torch.stack([(q[b, :, h, w] * key[b, :, j, 0]).sum() for j in range(N)])
                e = (e * KEY**-0.5 if scale else e).exp()
                e = e / e.sum()
                relation[b, :, h, w] = e.detach()
                pixels.append(sum(e[j] * value[b, :, j, 0] for j in range(N)))
        images.append(torch.stack(pixels, 1).view(KEY, H, W))
    return relation, cbr(scm.fuse, cbr(scm.up, torch.stack(images)) + x)


def naive(head, x, *, gate="mce", pooling="avg", arrangement="ctnet", scale=True, **_):
    """Logits, P_p and E."""
    x, ccm, relation = cbr(head.reduce, x), head.ccm, None
    c_m = torch.stack([naive_gate(ccm.gate, naive_pool(image, pooling), gate) for image in x])
    prior = (c_m @ ccm.prior.weight.flatten(1).T + ccm.prior.bias).exp()
    prior = prior / prior.sum(1, keepdim=True)
    gated = x * c_m[:, :, None, None]
    if arrangement == "occm":
        joint = cbr(head.local, gated)
    else:
        m = torch.stack([torch.stack([c_m[b] * prior[b, j] for j in range(N)], 1) for b in range(B)])
        spatial, local = {"ctnet": (gated, gated), "oscm": (x, x), "panet": (x, gated)}[arrangement]
        relation, context = naive_scm(head.scm, spatial, m, scale)
        joint = torch.cat([context, cbr(head.local, local)], 1)
    classify = head.classify[1]
    logits = torch.einsum("oc,bchw->bohw", classify.weight.flatten(1), cbr(head.fuse, joint))
    return logits + classify.bias.view(1, -1, 1, 1), prior, relation


def relative(a, b):
    # A bias of all keys alike cancels in the softmax: its gradient is 0 where no ReLU cuts, hence the floor.
    return ((a - b).norm() / b.norm().clamp(min=1e-5)).item()


def compare(fast, slow, leaves):
    assert max(relative(a, b) for a, b in zip(fast, slow, strict=True)) < 1e-10
    probes = [torch.randn_like(y) for y in fast]
    pairs = zip(torch.autograd.grad(fast, leaves, probes), torch.autograd.grad(slow, leaves, probes), strict=True)
    assert max(relative(a, b) for a, b in pairs) < 1e-10


@every_head
@pytest.mark.parametrize("training", [False, True])
def test_equals_the_loops_in_outputs_and_gradients(keywords, training):
    head = build(**keywords).train(training)
    x = torch.randn(B, IN, H, W, dtype=torch.float64, requires_grad=True)
    maps = Maps()
    outputs = head([torch.empty(0), x], maps)
    logits, prior, relation = naive(head, x, **keywords)
    compare([outputs["logits"], outputs["class_prior"]], [logits, prior], [x, *head.parameters()])
    assert set(maps) == (set() if relation is None else {"class_relation"})
    if relation is not None:
        assert relative(maps["class_relation"], relation) < 1e-10


@pytest.mark.parametrize("training", [False, True])
def test_equals_the_plain_form(training):
    head = build().train(training)
    x = torch.randn(B, IN, H, W, dtype=torch.float64, requires_grad=True)
    compare([head([x])["logits"]], [ctnet_plain(head, x)], [x, *head.parameters()])


def test_prior_is_a_distribution_in_float32():
    head = build().float().eval()
    with torch.autocast("cpu", torch.bfloat16):
        prior = head([torch.randn(B, IN, H, W)])["class_prior"]
    assert prior.dtype == torch.float32
    assert torch.allclose(prior.sum(1), torch.ones(B))


def test_class_vectors_are_parallel_so_the_relation_starts_near_uniform():
    head = ctnet_head([IN], N, channels=C, key_channels=KEY, kernels=(3,)).eval()
    maps = Maps()
    head([torch.randn(1, IN, 9, 7)], maps)
    assert torch.allclose(maps["class_relation"], torch.full((1, N, 9, 7), 1 / N), atol=0.05)


def test_even_kernels_reach_one_further_right():
    gate = ChannelConvolution(C, (4,), even=True, mix=False)
    torch.nn.init.ones_(gate.reaches[0].weight)
    p = torch.zeros(1, C)
    p[0, 4] = 1
    assert gate(p).nonzero()[:, 1].tolist() == [2, 3, 4, 5]  # channel 2 sees up to 2 on its right, 5 one on its left


def test_golden(golden):
    """The table's layout has one bias for all channels in the gate."""

    def build():
        return ctnet_head([2048], 21, key_channels=256, gate_bias="shared")

    golden(build, 7892651, 31.232, (1, 2048, 64, 64), as_list=True)


def test_published_increment(golden):
    """7.11 M and 29.6 G at 65x65; the paper counts norms and ReLUs too, by which it is 0.7 % above ours."""
    golden(lambda: ctnet_head([2048], 21), 7105962, 29.43, (1, 2048, 65, 65), as_list=True)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"gate": "mse"}, "unknown gate 'mse'; allowed: mce, eca, se"),
        ({"gate": "eca"}, r"kernels is \(3, 4, 5\); allowed: one or more for gate 'mce', one for 'eca' \(\[9\]\)"),
        ({"kernels": []}, r"kernels is \(\); allowed"),
        ({"kernels": [3, 9]}, "kernels has 9, longer than the channel axis; allowed: 1 to channels=8.*widen channels"),
        (
            {"kernels": [3, 4], "even_kernels": False},
            "kernels has 4, .*allowed: odd .* with even_kernels: true",
        ),
        ({"kernels": [0]}, "kernels is 0; allowed: an integer of at least 1"),
        ({"kernels": 9}, r"head 'ctnet': kernels is 9; allowed: a list, such as \[9, 17, 33, 65\]"),
        ({"gate_bias": "all"}, "unknown gate_bias 'all'; allowed: channel, shared, none"),
        ({"gate": "se", "gate_bias": "all"}, "unknown gate_bias 'all'"),
        ({"gate": "se", "se_reduction": 9}, "se_reduction is 9; allowed: 1 to channels=8"),
        ({"pooling": "min"}, "unknown pooling 'min'; allowed: avg, max, mix"),
        ({"arrangement": "ctnt"}, r"unknown arrangement 'ctnt'; allowed: ctnet, occm, oscm, panet.*'ctnet'\?"),
        ({"reduce_kernel": 2}, r"reduce_kernel is 2; allowed: 1 \(after JPU\), 3"),
        ({"key_channels": 0}, "key_channels is 0"),
        ({"channels": 0}, "channels is 0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
    ],
)
def test_bad_values(keywords, message):
    with pytest.raises(ValueError, match=message):
        build_head(
            "ctnet",
            [IN],
            N,
            **SMALL | keywords,
        )
