"""Efficient attention against loops over pixels and heads, written from its equations."""

import pytest
import torch

from segmodels.cost import conv_matmul_macs
from segmodels.heads.catalog import build_head
from segmodels.heads.efficient import EfficientAttention, efficient_head
from segmodels.plain.efficient import efficient_plain

B, C, K, V, H, W = 2, 6, 4, 8, 3, 5


def naive(block, x):
    """Per head, contexts Σ_j softmax_j(k_j) v_jᵀ first; then pixel i mixes them by the softmax of its query."""
    weights, biases = block.qkv.weight[:, :, 0, 0].split((K, K, V)), block.qkv.bias.split((K, K, V))
    out = torch.zeros_like(x)
    for b in range(B):
        pixels = [x[b, :, h, w] for h in range(H) for w in range(W)]
        q, k, v = ([w @ i + bias for i in pixels] for w, bias in zip(weights, biases, strict=True))
        parts = []
        for head in range(block.heads):
            keys = slice(head * K // block.heads, (head + 1) * K // block.heads)
            values = slice(head * V // block.heads, (head + 1) * V // block.heads)
            total = sum(j[keys].exp() for j in k)
            contexts = sum(torch.outer(j[keys].exp() / total, u[values]) for j, u in zip(k, v, strict=True))
            parts.append([contexts.T @ (i[keys].exp() / i[keys].exp().sum()) for i in q])
        rows = [torch.cat([part[n] for part in parts]) for n in range(H * W)]
        rows = torch.stack([block.project.weight[:, :, 0, 0] @ y + block.project.bias for y in rows])
        one = torch.nn.functional.one_hot(torch.tensor(b), B).view(-1, 1, 1, 1)
        out = out + one * (x[b] + rows.T.reshape(C, H, W))
    return out


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("heads", [1, 2])
def test_equals_the_loop_in_outputs_and_gradients(heads):
    block = EfficientAttention(C, K, V, heads).double()
    x = torch.randn(B, C, H, W, dtype=torch.float64, requires_grad=True)
    leaves = [x, *block.parameters()]
    fast, slow = block(x), naive(block, x)
    probe = torch.randn_like(fast)
    expected = torch.autograd.grad(slow, leaves, probe)
    for form in (fast, efficient_plain(block, x)):
        assert relative(form, slow) < 1e-10
        gradients = torch.autograd.grad(form, leaves, probe)
        assert max(relative(a, b) for a, b in zip(gradients, expected, strict=True)) < 1e-10


def test_cost(golden):
    golden(lambda: EfficientAttention(512, 256, 256, 1), 525568, 2.6844, (1, 512, 64, 64))


def test_published_cost():
    """OCNet's Table 4, within 0.5 %: 331 = 2 · MACs at 128 x 128 without the classifier."""
    with torch.device("meta"):
        head = efficient_head([2048], 21).eval()
        macs = conv_matmul_macs(head, [torch.zeros(1, 2048, 128, 128)]) - 21 * 512 * 128 * 128
    assert 2e-9 * macs == pytest.approx(331, rel=5e-3)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"channels": 0}, "channels is 0; allowed: an integer of at least 1"),
        ({"key_channels": 0}, "key_channels is 0"),
        ({"value_channels": 0}, "value_channels is 0"),
        ({"heads": 0}, "heads is 0"),
        ({"heads": 3}, "heads is 3, but key_channels is 4; allowed: a divisor of it"),
        ({"heads": 4}, "heads is 4, but value_channels is 6"),
    ],
)
def test_bad_values(keywords, message):
    with pytest.raises(ValueError, match=message):
        build_head("efficient", [8], 3, **{"channels": 4, "key_channels": 4, "value_channels": 6} | keywords)
