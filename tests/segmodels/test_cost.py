"""Golden costs. Parameters are exact; MACs within 0.1 %."""

import pytest
import torch
from torch import nn

from segmodels.backbone import build_backbone
from segmodels.cost import card, conv_matmul_macs, leaf_macs, measure
from segmodels.heads.catalog import build_head
from segmodels.heads.reconet import TensorGeneration, TensorReconstruction
from segmodels.layers import ConvNormReLU
from segmodels.segmentor import build_segmentor

WIDTHS = (256, 512, 1024, 2048)


def near(giga):
    return pytest.approx(giga * 1e9, rel=1e-3)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "keywords", "count", "giga"),
    [
        ("fcn", {}, 9448981, 38.699),
        ("reconet", {"feature_size": (64, 64)}, 27801173, 42.072),
        ("reconet", {"feature_size": (64, 64), "gpm": False}, 27275861, 40.998),
        ("reconet", {"feature_size": (64, 64), "tgm_trm": False, "gpm": False}, 9448981, 38.699),
    ],
)
def test_heads(name, keywords, count, giga):
    with torch.device("meta"):
        head = build_head(name, WIDTHS, 21, **keywords).eval()
        assert parameters(head) == count
        assert conv_matmul_macs(head, [torch.zeros(1, 2048, 64, 64)]) == near(giga)


def test_tgm_and_trm_with_the_sum_that_the_paper_left_out():
    class Unit(nn.Module):
        def __init__(self):
            super().__init__()
            self.tgm, self.trm = TensorGeneration(512, (64, 64), 64), TensorReconstruction(64)

        def forward(self, x):
            return self.trm(x, *self.tgm(x))

    with torch.device("meta"):
        unit = Unit()
        assert parameters(unit) == 17301568
        assert conv_matmul_macs(unit, torch.zeros(1, 512, 64, 64)) == near(0.1515)


@pytest.mark.parametrize(("name", "count", "giga"), [("resnet50s", 23.632, 106.749), ("resnet101s", 42.624, 184.327)])
def test_trunks(name, count, giga):
    with torch.device("meta"):
        cost = measure(build_backbone(name), (512, 512))
    assert cost.parameters == pytest.approx(count * 1e6, abs=500)
    assert cost.macs == near(giga)


def test_published_trunks_by_torchstats_rule():
    """RecoNet's Table 9, ResNet-101 at 513: 190.6. SRNet's Table I, ResNet-50 at 768: 241.05 (one ReLU per block)."""
    with torch.device("meta"):
        assert measure(build_backbone("resnet101s"), (513, 513), "leaf-modules").macs == near(190.6)
        backbone = build_backbone("resnet50s")
    for block in (b for i in range(1, 5) for b in backbone.trunk[f"layer{i}"]):
        block.act1 = block.act2 = block.act3
    assert measure(backbone, (768, 768), "leaf-modules").macs == pytest.approx(241.052e9, rel=3e-6)


def test_leaf_rule_and_memory_by_hand():
    model = nn.Sequential(ConvNormReLU(3, 8, 3), nn.MaxPool2d(2), nn.Dropout(), nn.Conv2d(8, 5, 1)).eval()
    cost = measure(model, (6, 4), "leaf-modules")
    cells, pooled = 24, 6
    assert cost.macs == cells * 8 * 27 + 2 * cells * 8 + cells * 8 + cells * 8 + pooled * 5 * (8 + 1)
    assert cost.activation_bytes == 4 * (3 * 8 * cells + 8 * pooled + 5 * pooled)
    assert measure(model, (6, 4)).macs == cells * 8 * 27 + pooled * 5 * 8
    relu = nn.ReLU()
    assert leaf_macs(nn.Sequential(relu, relu), torch.zeros(1, 3, 4, 4)) == 48  # called twice, counted once


def test_model_stays_as_it_is():
    model = build_segmentor(num_classes=4, crop=(64, 64), backbone={"name": "resnet18"}, head={"name": "fcn"}).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    cost = measure(model, (64, 64))
    assert model.training
    assert all(torch.equal(v, before[k]) and not v.is_meta for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
    assert cost.parameters == parameters(model)
    assert card(cost)["size"] == "64x64"


def test_errors():
    with pytest.raises(ValueError, match="unknown cost convention 'conv'; allowed: conv\\+matmul, leaf-modules"):
        measure(nn.Identity(), (4, 4), "conv")
    with pytest.raises(ValueError, match="size is 0"):
        measure(nn.Identity(), (0, 4))
