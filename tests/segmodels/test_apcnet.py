"""APCNet against loops over pixels and regions, and against the public layout's copies."""

import pytest
import torch
from naive_layers import assert_parity, cbr, conv, draw, pool, randomise, relu, sigmoid

from segmodels.heads.apcnet import AdaptiveContext, apcnet_head
from segmodels.heads.catalog import build_head
from segmodels.plain.apcnet import apcnet_plain

B, IN, C, H, W = 3, 6, 4, 5, 7


def naive(net, x):
    side = net.side
    y = cbr(net.reduce, x)
    p = cbr(net.pooled, pool(x, side))
    alpha = conv(net.affinity, y + cbr(net.guide, pool(y, 1)))
    columns = []
    for i in range(H):
        for j in range(W):
            z = 0
            for region in range(side**2):
                weight = sigmoid(alpha[:, region, i, j])
                z = z + weight[:, None] * p[:, :, region // side, region % side]
            columns.append(z)
    z = torch.stack(columns, 2).view(B, C, H, W)
    y = relu(y + cbr(net.residual, z))
    return cbr(net.fuse, y) if len(list(net.fuse.children())) else y


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("scale", "fusion"), [(1, True), (3, True), (6, False)])
def test_module_equals_its_equations(scale, fusion, training):
    net = randomise(AdaptiveContext(IN, C, scale, fusion=fusion)).train(training)
    x = draw(B, IN, H, W)
    assert_parity(net(x), naive(net, x), net, x)


def test_head_joins_the_map_with_one_module_per_scale():
    head = randomise(apcnet_head([IN], 3, channels=C, scales=(2, 3))).eval()
    x = draw(B, IN, H, W)
    y = torch.cat([x, *(naive(module, x) for module in head.branches)], 1)
    assert_parity(head([x])["logits"], conv(head.classify[1], cbr(head.fuse, y)), head, x)


@pytest.mark.parametrize("training", [False, True])
def test_equals_the_plain_form(training):
    net = randomise(AdaptiveContext(IN, C, 3, fusion=True)).train(training)
    x = draw(B, IN, H, W)
    assert_parity(net(x), apcnet_plain(net, x), net, x)


def test_cost(golden):
    golden(lambda: apcnet_head([2048], 21), 30466631, 103.386, (1, 2048, 64, 64), as_list=True)


def test_scales_are_the_recipes():
    head = build_head("apcnet", [IN], 3, channels=C, scales=[1, 4], fusion=False)
    assert [module.side for module in head.branches] == [1, 4]
    assert not [name for name in head.state_dict() if name.startswith("branches.0.fuse")]


def test_one_image_in_training_is_an_error_with_the_cure():
    head = apcnet_head([IN], 3, channels=C).train()
    with pytest.raises(ValueError, match=r"global guide.*Raise the batch"):
        head([torch.randn(1, IN, H, W)])
    assert head.eval()([torch.randn(1, IN, H, W)])["logits"].isfinite().all()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"scales": ()}, r"scales is \(\); allowed: a list"),
        ({"scales": (0,)}, "scales is 0; allowed: an integer of at least 1"),
        ({"channels": 0}, "channels is 0"),
        ({"fusion": 1}, "fusion is 1; allowed: bool"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"scale": (1,)}, r"unknown keyword 'scale' of head 'apcnet'.*Did you mean 'scales'\?"),
    ],
)
def test_bad_values(keywords, message):
    with pytest.raises(ValueError, match=message):
        build_head("apcnet", [IN], 3, **{"channels": C} | keywords)
