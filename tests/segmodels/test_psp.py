"""PSPNet against its regions averaged and enlarged one by one."""

import pytest
import torch
from naive_layers import assert_parity, cbr, conv, draw, enlarge, pool, randomise

from segmodels.heads.catalog import build_head
from segmodels.heads.psp import psp_head

SIZE = (5, 7)


def naive(head, x):
    levels = [enlarge(cbr(b.project, pool(x, b.bins)), x.shape[2:]) for b in head.branches]
    return conv(head.classify[1], cbr(head.fuse, torch.cat([x, *levels], 1)))


@pytest.mark.parametrize("training", [False, True])
def test_equals_its_equations(training):
    head = randomise(psp_head([4, 6], 3, channels=4, bins=(1, 2, 3, 6), dropout=0.0)).train(training)
    x = draw(3, 6, *SIZE)
    assert_parity(head([None, x])["logits"], naive(head, x), head, x)


def test_cost(golden):
    golden(lambda: psp_head([2048], 21), 23084565, 77.406, (1, 2048, 64, 64), as_list=True)


def test_bins_are_the_recipes():
    head = build_head("psp", [6], 3, channels=4, bins=[2, 5])
    assert [branch.bins for branch in head.branches] == [2, 5]
    assert head.fuse[0].in_channels == 6 + 2 * 4


def test_one_image_in_training_is_an_error_with_the_cure():
    head = psp_head([6], 3, channels=4).train()
    with pytest.raises(ValueError, match=r"image pooling branch got a training batch of 1.*Raise the batch"):
        head([torch.randn(1, 6, *SIZE)])
    assert head.eval()([torch.randn(1, 6, *SIZE)])["logits"].isfinite().all()
    assert psp_head([6], 3, channels=4, bins=(2,)).train()([torch.randn(1, 6, *SIZE)])["logits"].isfinite().all()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"bins": ()}, r"bins is \(\); allowed: a list of one or more integers"),
        ({"bins": 6}, "bins is 6; allowed: a list"),
        ({"bins": "36"}, "bins is '36'; allowed: a list"),
        ({"bins": [1, 0]}, "bins is 0; allowed: an integer of at least 1"),
        ({"channels": 0}, "channels is 0"),
        ({"dropout": 1.0}, "dropout is 1.0; allowed: from 0 to below 1"),
        ({"bin": (1,)}, r"unknown keyword 'bin' of head 'psp'.*Did you mean 'bins'\?"),
    ],
)
def test_bad_values(keywords, message):
    with pytest.raises(ValueError, match=message):
        build_head("psp", [6], 3, **{"channels": 4} | keywords)
