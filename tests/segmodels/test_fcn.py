"""The FCN head against its two convolutions, as the head and as the auxiliary head."""

import pytest
import torch
from naive_layers import agree, assert_parity, cbr, conv, draw, enlarge, randomise
from torch import nn

from segmodels.heads.fcn import fcn_head
from segmodels.segmentor import Segmentor

SIZE = (5, 7)
STAGE_SIZES = (7, 9), (5, 6), (4, 5), (3, 4)


def naive(head, x):
    return conv(head.classify[-1], cbr(head.reduce, x))


@pytest.mark.parametrize("training", [False, True])
def test_equals_its_equations(training):
    head = randomise(fcn_head([4, 6], 3, channels=5, dropout=0.0)).train(training)
    x = draw(2, 6, *SIZE)
    assert_parity(head([None, x])["logits"], naive(head, x), head, x)


class Given(nn.Module):
    """A backbone that answers any image with the same maps."""

    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, features):
        super().__init__()
        self.features = features

    def forward(self, image):
        return self.features


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_as_the_auxiliary_head_reads_only_its_stage(stage):
    """Maps of one width, so that no shape tells the wrong stage."""
    features = [draw(2, 6, *size) for size in STAGE_SIZES]
    head, aux = (randomise(fcn_head([6] * n, 3, channels=5, dropout=0.0)) for n in (4, stage))
    model = Segmentor(Given(features), head, 3, aux=aux, aux_stage=stage).double().train()
    outputs = model(torch.zeros(2, 3, 11, 13))
    assert set(outputs) == {"logits", "aux"}
    leaves = [*features, *model.parameters()]
    for output, part, x in ((outputs["logits"], head, features[3]), (outputs["aux"], aux, features[stage - 1])):
        assert agree(output, enlarge(naive(part, x), (11, 13)), leaves)
