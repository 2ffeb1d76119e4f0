"""DMNet against loops over images, pixels and taps, and against one convolution per image."""

import pytest
import torch
from naive_layers import assert_parity, cbr, conv, draw, norm, pool, randomise, relu

from segmodels.heads.catalog import build_head
from segmodels.heads.dmnet import DynamicConv, dmnet_head, filter_channels
from segmodels.plain.dmnet import dmnet_plain

B, IN, C, H, W = 2, 6, 4, 5, 3


def naive_filter(x, filters):
    """y[i, j] = Σ f[p, q] x[i + p - k/2, j + q - k/2], zero outside of the map."""
    half = filters.shape[-1] // 2
    columns = []
    for i in range(H):
        for j in range(W):
            y = torch.zeros(B, C, dtype=x.dtype)
            for p in range(-half, half + 1):
                for q in range(-half, half + 1):
                    if 0 <= i + p < H and 0 <= j + q < W:
                        y = y + filters[:, :, p + half, q + half] * x[:, :, i + p, j + q]
            columns.append(y)
    return torch.stack(columns, 2).view(B, C, H, W)


def naive(net, x):
    y = naive_filter(cbr(net.reduce, x), conv(net.filters, pool(x, net.side)))
    y = relu(norm(net.norm, y))
    return cbr(net.fuse, y) if len(list(net.fuse.children())) else y


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("size", "fusion"), [(1, True), (3, False), (7, True)])
def test_module_equals_its_equations(size, fusion, training):
    net = randomise(DynamicConv(IN, C, size, fusion=fusion)).train(training)
    x = draw(B, IN, H, W)
    assert_parity(net(x), naive(net, x), net, x)


def test_head_joins_the_map_with_one_module_per_size():
    head = randomise(dmnet_head([IN], 3, channels=C, filter_sizes=(1, 5))).eval()
    x = draw(B, IN, H, W)
    y = torch.cat([x, *(naive(module, x) for module in head.branches)], 1)
    assert_parity(head([x])["logits"], conv(head.classify[1], cbr(head.fuse, y)), head, x)


def test_filters_of_one_image_touch_no_other():
    x, filters = torch.randn(B, C, H, W), torch.zeros(B, C, 3, 3)
    filters[1, 2, 1, 1] = 1
    y = filter_channels(x, filters)
    assert torch.equal(y[1, 2], x[1, 2])
    y[1, 2] = 0
    assert not y.any()


def test_filters_take_any_memory_format():
    x, filters = torch.randn(B, C, H, W), torch.randn(B, C, 3, 3)
    wanted = filter_channels(x, filters)
    last = torch.channels_last
    assert torch.allclose(filter_channels(x.to(memory_format=last), filters.to(memory_format=last)), wanted, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_equals_the_plain_form(training):
    net = randomise(DynamicConv(IN, C, 3, fusion=True)).train(training)
    x = draw(B, IN, H, W)
    assert_parity(net(x), dmnet_plain(net, x), net, x)


def test_parameters():
    """No published figure: the layers added up by hand."""
    module = 2 * (2048 * 512) + 512 + 2 * 512 + 2 * 512 + 512 * 512 + 2 * 512
    fuse = 9 * (2048 + 4 * 512) * 512 + 2 * 512
    assert sum(p.numel() for p in dmnet_head([2048], 21).parameters()) == 4 * module + fuse + 21 * 513


def test_sizes_are_the_recipes():
    head = build_head("dmnet", [IN], 3, channels=C, filter_sizes=[1, 9], fusion=False)
    assert [module.side for module in head.branches] == [1, 9]
    assert not [name for name in head.state_dict() if name.startswith("branches.0.fuse")]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"filter_sizes": ()}, r"filter_sizes is \(\); allowed: a list"),
        ({"filter_sizes": (1, 4)}, "filter_sizes has 4; allowed: odd sizes"),
        ({"filter_sizes": (0,)}, "filter_sizes is 0; allowed: an integer of at least 1"),
        ({"channels": 0}, "channels is 0"),
        ({"fusion": 1}, "fusion is 1; allowed: bool"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"filter_size": (1,)}, r"unknown keyword 'filter_size' of head 'dmnet'.*Did you mean 'filter_sizes'\?"),
    ],
)
def test_bad_values(keywords, message):
    with pytest.raises(ValueError, match=message):
        build_head("dmnet", [IN], 3, **{"channels": C} | keywords)
