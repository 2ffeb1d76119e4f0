"""CFNet against loops over heads, mixtures and pixels, and against explicit softmaxes."""

import pytest
import torch
from naive_layers import assert_parity, cbr, conv, draw, norm, randomise, softmax

from segmodels.heads.catalog import build_head
from segmodels.heads.cfnet import CFNet, CoOccurrence, cfnet_head
from segmodels.plain.cfnet import cfnet_plain

B, C, H, W, HEADS = 2, 8, 5, 3, 2


def unit(mixtures=1, pooling=True, dropout=0.0, training=False):
    net = randomise(CoOccurrence(C, HEADS, mixtures, pooling=pooling, dropout=dropout))
    return net.train(training)


def shrink(x):
    """3x3 averages at every second pixel, over only the pixels inside of the map; odd sides rounded up."""
    rows = [
        [x[:, :, max(i - 1, 0) : min(i + 2, H), max(j - 1, 0) : min(j + 2, W)].mean((2, 3)) for j in range(0, W, 2)]
        for i in range(0, H, 2)
    ]
    return torch.stack([torch.stack(row, 2) for row in rows], 2)


def naive(net, x):
    small = shrink(x) if isinstance(net.pool, torch.nn.AvgPool2d) else x
    q, k, v = (conv(c, t).flatten(2) for c, t in ((net.query_key, x), (net.query_key, small), (net.value, small)))
    key = q.shape[1] // HEADS
    part, width = key // net.mixtures, C // HEADS
    heads = []
    for h in range(HEADS):
        queries, keys, values = (
            q[:, h * key : (h + 1) * key],
            k[:, h * key : (h + 1) * key],
            v[:, h * width :][:, :width],
        )
        pi = torch.ones(B, 1, dtype=x.dtype)
        if net.prior is not None:
            pi = softmax(torch.stack([(row * queries.mean(2)).sum(1) for row in net.prior.weight], 1), 1)
        pixels = []
        for n in range(H * W):
            y = 0
            for m in range(net.mixtures):
                span = slice(m * part, (m + 1) * part)
                scores = [(queries[:, span, n] * keys[:, span, j]).sum(1) / key**0.5 for j in range(keys.shape[2])]
                weights = softmax(torch.stack(scores, 1), 1)
                y = y + pi[:, m, None] * sum(weights[:, j, None] * values[:, :, j] for j in range(keys.shape[2]))
            pixels.append(y)
        heads.append(torch.stack(pixels, 2))
    return x + norm(net.norm, conv(net.out, torch.cat(heads, 1).view(B, C, H, W)))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("mixtures", "pooling"), [(1, True), (3, True), (2, False)])
def test_unit_equals_its_equations(mixtures, pooling, training):
    net = unit(mixtures, pooling, training=training)
    x = draw(B, C, H, W)
    assert_parity(net(x), naive(net, x), net, x)


def test_context_joins_the_average_and_then_encodes():
    net = randomise(CFNet(C, unit(), global_pooling=True, codes=3)).eval()
    x = draw(B, C, H, W)
    average = cbr(net.gpm.project, x.mean((2, 3), keepdim=True)) * torch.ones_like(x)
    y = torch.cat([average, naive(net.acf, x)], 1)
    assert_parity(net(x), net.encode(y), net, x)
    assert net.width == 2 * C
    bare = CFNet(C, unit(), global_pooling=False, codes=0).eval()
    assert bare.width == C
    assert torch.equal(bare(x), bare.acf(x))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mixtures", [1, 2])
def test_equals_the_plain_form(mixtures, training):
    net = unit(mixtures, training=training)
    x = draw(B, C, H, W)
    assert_parity(net(x), cfnet_plain(net, x), net, x)


def test_weights_are_dropped_only_in_training():
    net = unit(dropout=0.5)
    x = draw(B, C, H, W)
    assert torch.equal(net(x), net(x))
    net.train()
    assert not torch.equal(net(x), net(x))
    # Dropping keeps the mean: the mean of many draws agrees with none dropped.
    net.norm.eval()
    draws = net(x[:1].expand(3000, -1, -1, -1)).detach()
    net.dropout = 0.0
    assert ((draws.mean(0) - net(x)[0]).abs() < 6 * draws.std(0) / 3000**0.5).all()


def test_cost(golden):
    golden(lambda: CoOccurrence(512, 8, 1, pooling=True, dropout=0.1), 788480, 6.9793, (1, 512, 64, 64))
    # CTNet's Table 3 at 65 x 65, no EncModule: 10.51 M; 42.749 G of convolutions, and N · N' · 512 twice, N' = 33².
    products = 2 * 65**2 * 33**2 * 512 / 1e9
    golden(lambda: cfnet_head([2048], 21), 10511381, 42.749 + products, (1, 2048, 65, 65), as_list=True)


def test_keywords_change_the_structure():
    def count(**keywords):
        return sum(p.numel() for p in build_head("cfnet", [8], 3, channels=C, heads=HEADS, **keywords).parameters())

    base = count()
    assert count(mixtures=2) - base == C * C + C + 2 * C  # twice the keys, and P of 2 x (2 C/heads)
    assert count(pooling=False) == base
    assert base - count(global_pooling=False) == C * C + 2 * C + 3 * C
    assert count(codes=3) - base == (2 * C) ** 2 + 4 * C + 3 * 2 * C + 3 + 6 + (2 * C) * (2 * C + 1)


def test_one_image_in_training_is_an_error_with_the_cure():
    head = cfnet_head([8], 3, channels=C).train()
    with pytest.raises(ValueError, match="Raise the batch"):
        head([torch.randn(1, 8, H, W)])
    assert head.eval()([torch.randn(1, 8, H, W)])["logits"].isfinite().all()
    bare = cfnet_head([8], 3, channels=C, global_pooling=False).train()
    assert bare([torch.randn(1, 8, H, W)])["logits"].isfinite().all()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"heads": 3}, "heads is 3; allowed: a divisor of channels, which is 8"),
        ({"heads": 0}, "heads is 0; allowed: an integer of at least 1"),
        ({"mixtures": 0}, "mixtures is 0"),
        ({"codes": -1}, "codes is -1"),
        ({"channels": 0}, "channels is 0"),
        ({"attention_dropout": 1.0}, "attention_dropout is 1.0; allowed: from 0 to below 1"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"global_pooling": 1}, "global_pooling is 1; allowed: bool"),
        ({"mixture": 1}, r"unknown keyword 'mixture' of head 'cfnet'.*Did you mean 'mixtures'\?"),
    ],
)
def test_bad_values(keywords, message):
    with pytest.raises(ValueError, match=message):
        build_head("cfnet", [8], 3, **{"channels": C, "heads": HEADS} | keywords)
