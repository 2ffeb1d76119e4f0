"""What evaluation holds at once, by hand."""

import torch
from torch import nn

from segmodels.heads.catalog import build_head
from segmodels.memory import evaluation_peak

CELLS = 5 * 7


def test_the_peak_of_a_chain_is_its_two_largest_neighbours():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1), nn.BatchNorm2d(2))
    assert evaluation_peak(model, [(2, 3, 5, 7)]) == 4 * 2 * CELLS * (8 + 8)
    model[1].inplace = True
    assert evaluation_peak(model, [(2, 3, 5, 7)]) == 4 * 2 * CELLS * (8 + 2)
    assert model.training  # as it was


def test_nothing_is_computed_or_moved_and_lists_are_taken():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 1, 1)

        def forward(self, maps):
            assert not any(parameter.requires_grad for parameter in self.parameters())
            return self.conv(torch.cat(maps, 1))

    model = Two()
    assert evaluation_peak(model, [(1, 2, 5, 7), (1, 2, 5, 7)]) == 4 * CELLS * (4 + 1)
    assert not model.conv.weight.is_meta
    assert model.conv.weight.requires_grad


def test_attention_holds_no_weights_as_on_a_cpu():
    with torch.device("meta"):
        head = build_head("nonlocal", (8, 8, 8, 8), 3, channels=8)
    cells = 64 * 64
    peak = evaluation_peak(head, [(1, 8, 64, 64)] * 4)
    assert peak < 4 * cells * cells / 10
