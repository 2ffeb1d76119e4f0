"""DeepLabV3 and DeepLabV3+ against their convolutions written out tap by tap."""

import pytest
import torch
from naive_layers import assert_parity, cbr, conv, draw, enlarge, pool, randomise

from segmodels.heads.aspp import ASPP, SeparableConv, aspp_head
from segmodels.heads.catalog import build_head
from segmodels.heads.deeplabv3plus import deeplabv3plus_head

SIZE = (5, 7)
QUIET = {"project_dropout": 0.0, "dropout": 0.0}


def step(layers, x):
    """A convolution, or both halves of a separable one."""
    return cbr(layers[1], cbr(layers[0], x)) if isinstance(layers, SeparableConv) else cbr(layers, x)


def naive_aspp(aspp, x):
    first, *dilated, image = aspp.branches
    branches = [cbr(first, x), *(step(b, x) for b in dilated)]
    average = cbr(image.project, pool(x, 1))
    return cbr(aspp.fuse, torch.cat([*branches, average * torch.ones_like(branches[0])], 1))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("final_conv", [False, True])
def test_aspp_equals_its_equations(final_conv, training):
    head = aspp_head([6], 3, channels=4, rates=(1, 2, 6), final_conv=final_conv, **QUIET)
    head = randomise(head).train(training)
    x = draw(3, 6, *SIZE)
    y = naive_aspp(head.context, x)
    if final_conv:
        y = cbr(head.final[1], y)
    assert_parity(head([x])["logits"], conv(head.classify[1], y), head, x)


@pytest.mark.parametrize("separable", [False, True])
def test_deeplabv3plus_equals_its_equations(separable):
    head = deeplabv3plus_head([5, 8, 6], 3, channels=4, low_channels=2, rates=(1, 3), separable=separable, **QUIET)
    head = randomise(head).eval()
    low, x = draw(2, 5, 9, 14), draw(2, 6, *SIZE)
    y = torch.cat([enlarge(naive_aspp(head.context[0], x), (9, 14)), cbr(head.low, low)], 1)
    for layers in head.decode:
        y = step(layers, y)
    assert_parity(head([low, None, x])["logits"], conv(head.classify[1], y), head, low, x)
    kinds = [isinstance(m, SeparableConv) for m in (*head.context[0].branches[1:3], *head.decode)]
    assert kinds == 4 * [separable]


@pytest.mark.parametrize("separable", [False, True])
def test_rates_and_splits_are_the_recipes(separable):
    """The naive forms read these from the layers."""
    head = build_head("deeplabv3plus", [5, 6], 3, channels=4, low_channels=2, rates=[2, 5], separable=separable)
    spatial = [m for m in head.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    assert [m.dilation for m in spatial] == [(2, 2), (5, 5), (1, 1), (1, 1)]
    assert [m.groups for m in spatial] == ([6, 6, 6, 4] if separable else [1, 1, 1, 1])
    first = build_head("aspp", [6], 3, channels=4, rates=[2, 5]).context.branches[1:3]
    assert [branch[0].dilation for branch in first] == [(2, 2), (5, 5)]


def test_cost(golden):
    last = (1, 2048, 64, 64)
    golden(lambda: aspp_head([2048], 21), 16130837, 63.910, last, as_list=True)
    # The comparisons without the 3x3: SRNet's Table IV, 15.535 M, and OCNet's Table 4, 491.77 = 2 MACs, both
    # without the classifier.
    golden(lambda: ASPP(2048, 256, (12, 24, 36)), 15535104, 491.77 / 2, (1, 2048, 128, 128))
    # CTNet's Table 3: 16.84 M; RecoNet's Table 9: 82.9 G.
    stages = [(1, 256, 128, 128), (1, 512, 64, 64), (1, 1024, 64, 64), last]
    golden(lambda: deeplabv3plus_head([s[1] for s in stages], 21), 16844149, 82.854, *stages, as_list=True)


def test_dropout_is_where_the_docstrings_say():
    def chances(head):
        return [m.p for m in head.modules() if isinstance(m, torch.nn.Dropout2d)]

    assert chances(aspp_head([6], 3, channels=4)) == [0.5, 0.1]
    assert chances(aspp_head([6], 3, channels=4, final_conv=False)) == [0.1]
    assert chances(deeplabv3plus_head([5, 6], 3, channels=4)) == [0.1, 0.1]


@pytest.mark.parametrize("name", ["aspp", "deeplabv3plus"])
def test_one_image_in_training_is_an_error_with_the_cure(name):
    head = build_head(name, [5, 6], 3, channels=4).train()
    features = [torch.randn(1, 5, 9, 14), torch.randn(1, 6, *SIZE)]
    with pytest.raises(ValueError, match="Raise the batch"):
        head(features)
    assert head.eval()(features)["logits"].isfinite().all()


@pytest.mark.parametrize(
    ("name", "keywords", "message"),
    [
        ("aspp", {"rates": []}, r"rates is \[\]; allowed: a list"),
        ("aspp", {"rates": (6, -1)}, "rates is -1; allowed: an integer of at least 1"),
        ("aspp", {"channels": 0}, "channels is 0"),
        ("aspp", {"project_dropout": 1.5}, "project_dropout is 1.5; allowed: from 0 to below 1"),
        ("aspp", {"final_conv": 1}, "final_conv is 1; allowed: bool"),
        ("deeplabv3plus", {"low_channels": 0}, "low_channels is 0"),
        ("deeplabv3plus", {"channels": -2}, "channels is -2"),
        ("deeplabv3plus", {"rates": (0,)}, "rates is 0"),
        ("deeplabv3plus", {"project_dropout": -0.1}, "project_dropout is -0.1"),
        ("deeplabv3plus", {"dropout": 1.0}, "dropout is 1.0"),
        ("deeplabv3plus", {"seperable": True}, r"unknown keyword 'seperable'.*Did you mean 'separable'\?"),
    ],
)
def test_bad_values(name, keywords, message):
    with pytest.raises(ValueError, match=message):
        build_head(name, [5, 6], 3, **{"channels": 4} | keywords)


def test_deeplabv3plus_needs_an_early_stage():
    with pytest.raises(ValueError, match=r"widths \[6\]; allowed: two or more.*from stage 2 on"):
        build_head("deeplabv3plus", [6], 3, channels=4)
