"""CGNL against naive loops over groups, channels and positions, written from its equations."""

import pytest
import torch
from naive_layers import compare

from segmodels.heads.catalog import build_head
from segmodels.heads.cgnl import CompactNonLocal, cgnl_head
from segmodels.plain.cgnl import cgnl_plain

B, C, H, W, E = 2, 12, 5, 3, 6

UNITS = [{"groups": groups, "scale": scale} for groups in (1, 2, 3) for scale in (False, True)]
every_unit = pytest.mark.parametrize("keywords", UNITS, ids=str)


def unit(groups, scale):
    """A block in float64 with an epsilon that lets the size of a through; else its gradient is lost in rounding."""
    module = CompactNonLocal(C, embed_channels=E, groups=groups, scale=scale).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    module.norm.eps = 50.0
    return module


def naive(module, x, *, groups, scale):
    t, p, g = (torch.einsum("oc,bchw->bohw", w, x) for w in module.project.weight.flatten(1).split(E))
    z, images = module.restore.weight.flatten(1), []
    for b in range(B):
        channels = []
        for group in range(groups):
            inside = range(group * E // groups, (group + 1) * E // groups)
            terms = [p[b, c, h, w] * g[b, c, h, w] for c in inside for h in range(H) for w in range(W)]
            a = sum(terms) / (len(terms) ** 0.5 if scale else 1)
            outs = range(group * C // groups, (group + 1) * C // groups)
            y = torch.stack([sum(z[o, i] * a * t[b, c] for i, c in enumerate(inside)) for o in outs])
            mean = y.sum() / y.numel()
            var = ((y - mean) ** 2).sum() / y.numel()
            channels.append((y - mean) / (var + module.norm.eps) ** 0.5)
        images.append(torch.cat(channels))
    y = torch.stack(images)
    return y * module.norm.weight.view(1, -1, 1, 1) + module.norm.bias.view(1, -1, 1, 1) + x


@every_unit
def test_equals_the_loops_and_the_plain_form_in_outputs_and_gradients(keywords):
    module = unit(**keywords)
    x = torch.randn(B, C, H, W, dtype=torch.float64, requires_grad=True)
    leaves = [x, *module.parameters()]
    compare(module(x), naive(module, x, **keywords), leaves)
    compare(module(x), cgnl_plain(module, x), leaves)


def test_norm_hides_the_size_of_a_but_not_its_sign():
    module = unit(1, False)
    module.norm.eps = 1e-12
    x = torch.randn(B, C, H, W, dtype=torch.float64)
    y = module(x)
    with torch.no_grad():
        module.project.weight[E : 2 * E] *= 3
    assert torch.allclose(module(x), y)
    with torch.no_grad():
        module.project.weight[E : 2 * E] *= -1
    bias = module.norm.bias.view(1, -1, 1, 1)
    assert torch.allclose(module(x) - x - bias, -(y - x - bias))


def test_a_sum_beyond_float16_survives_when_scaled():
    """24576 products of 16 make 393216, where float16 ends at 65504; over the root of their number 2508."""
    module = CompactNonLocal(4, embed_channels=2, scale=True).half()
    torch.nn.init.ones_(module.project.weight)
    torch.nn.init.constant_(module.restore.weight, 0.125)
    module.norm = torch.nn.Identity()
    y = module(torch.ones(1, 4, 96, 128, dtype=torch.float16))
    assert y[0, 0, 0, 0].item() == pytest.approx(16 * 24576**0.5 + 1, rel=0.01)


def test_head_with_and_without_a_second_convolution():
    x = torch.randn(2, 8, 5, 3)
    head = cgnl_head([8], 3, channels=C, embed_channels=E).eval()
    assert torch.equal(head([x])["logits"], head.classify(head.context(head.reduce(x))))
    assert isinstance(head.context, CompactNonLocal)
    head = cgnl_head([8], 3, channels=C, embed_channels=E, second_conv=True).eval()
    expected = head.classify(head.context.refine(head.context.context(head.reduce(x))))
    assert torch.equal(head([x])["logits"], expected)


@pytest.mark.parametrize(("groups", "count", "giga"), [(1, 525312, 2.1475), (8, 410624, 1.6777)])
def test_golden(golden, groups, count, giga):
    """The table's convolutions; its other 0.0021 G are the products of a, here entry by entry."""
    golden(lambda: CompactNonLocal(512, groups=groups), count, giga, (1, 512, 64, 64))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"groups": 4}, "groups is 4; allowed: a divisor of embed_channels, which is 6"),
        ({"groups": 5}, "groups is 5; allowed: a divisor of channels, which is 12"),
        ({"groups": 0}, "groups is 0; allowed: an integer of at least 1"),
        ({"embed_channels": 0}, "embed_channels is 0"),
        ({"channels": 0}, "channels is 0"),
        ({"scale": 1.0}, "scale is 1.0; allowed: bool"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_bad_values(keywords, message):
    with pytest.raises(ValueError, match=message):
        build_head("cgnl", [8], 3, **{"channels": C, "embed_channels": E} | keywords)
