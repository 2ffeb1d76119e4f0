"""Double attention against loops over pixels and features, written from its equations."""

import pytest
import torch
from naive_layers import compare, relative

from segmodels.heads.a2 import DoubleAttention, a2_head
from segmodels.heads.catalog import build_head
from segmodels.plain.a2 import a2_plain

B, C, M, N, H, W = 2, 6, 4, 3, 3, 5


def unit(training=False):
    """A block in float64 with its batch norm far from the start."""
    block = DoubleAttention(C, M, N)
    norm = block.widen[1]
    for parameter in (norm.weight, norm.bias, norm.running_mean):
        torch.nn.init.normal_(parameter)
    torch.nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return block.double().train(training)


def naive(block, x):
    """Gather one vector per feature k, Σ_i softmax_i(b_k) a_i; give pixel i their mixture by softmax_k(v_i)."""
    w_a, w_b, w_v = block.a_b_v.weight[:, :, 0, 0].split((M, N, N))
    conv, norm = block.widen
    images = []
    for b in range(B):
        pixels = [x[b, :, h, w] for h in range(H) for w in range(W)]
        gathered = []
        for k in range(N):
            scores = torch.stack([(w_b @ i)[k] for i in pixels]).exp()
            gathered.append(sum(s * (w_a @ i) for s, i in zip(scores / scores.sum(), pixels, strict=True)))
        rows = []
        for i in pixels:
            scores = (w_v @ i).exp()
            z = sum(s * g for s, g in zip(scores / scores.sum(), gathered, strict=True))
            rows.append(conv.weight[:, :, 0, 0] @ z)
        images.append(torch.stack(rows))
    y = torch.stack(images)
    mean, var = norm.running_mean, norm.running_var
    if norm.training:
        mean = y.mean((0, 1))
        var = ((y - mean) ** 2).mean((0, 1))
    y = (y - mean) / (var + norm.eps) ** 0.5 * norm.weight + norm.bias
    return x + y.mT.reshape(x.shape)


@pytest.mark.parametrize("training", [False, True])
def test_equals_the_loop_in_outputs_and_gradients(training):
    block = unit(training)
    x = torch.randn(B, C, H, W, dtype=torch.float64, requires_grad=True)
    leaves = [x, *block.parameters()]
    for form in (block(x), a2_plain(block, x)):
        compare(form, naive(block, x), leaves)


def test_softmax_is_kept_in_float32():
    """Weights of 1 / 4096 over equal cells sum to 1, and the block also works with weights in bfloat16."""
    block = DoubleAttention(C, M, N).eval()
    x = torch.randn(1, C, 1, 1).expand(1, C, 64, 64)
    half = block.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert relative(half.float(), block.float()(x)) < 0.02


def test_cost(golden):
    golden(lambda: DoubleAttention(512, 256, 256), 525312, 2.6844, (1, 512, 64, 64))


def test_head_classifies_the_context():
    head = a2_head([8], 3, channels=C, c_m=M, c_n=N).eval()
    x = torch.randn(B, 8, H, W)
    assert torch.equal(head([x])["logits"], head.classify(head.context(head.reduce(x))))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"channels": 0}, "channels is 0; allowed: an integer of at least 1"),
        ({"c_m": 0}, "c_m is 0"),
        ({"c_n": -1}, "c_n is -1"),
        ({"c_k": 3}, r"unknown keyword 'c_k' of head 'a2'; allowed: channels=512, c_m=256, c_n=256"),
    ],
)
def test_bad_values(keywords, message):
    with pytest.raises(ValueError, match=message):
        build_head("a2", [8], 3, **{"channels": 4, "c_m": 2, "c_n": 2} | keywords)
