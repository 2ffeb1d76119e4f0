"""Norms folded into convolutions: the same outputs, every pair that is one, and none that only looks like one."""

import pytest
import torch
from torch import nn
from variants import VARIANTS

from segmodels.checks import keywords_of
from segmodels.folding import fold_norms, foldable
from segmodels.heads.catalog import HEADS, build_head
from segmodels.layers import ConvNormReLU
from segmodels.segmentor import build_segmentor

WIDTHS, SIZES = (8, 12, 16, 32), ((16, 24), (8, 12), (4, 6), (4, 6))
ONE_OF_EACH = {k["name"]: name for name, k in VARIANTS.items() if k.get("conv", True)}  # each head's last with norms


def trained(model):
    """Statistics and affine parameters as training leaves them: fresh ones are the identity, which hides all faults."""
    torch.manual_seed(0)
    for norm in (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
    return model.double().eval()


def norms(model):
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def meta(*shapes):
    zeros = [torch.zeros(shape, device="meta") for shape in shapes]
    return zeros if len(zeros) > 1 else zeros[0]


class Branches(nn.Module):
    """What may be folded: `plain`, and `twice`, called twice. What may not: all others."""

    def __init__(self):
        super().__init__()
        self.plain, self.twice = ConvNormReLU(4, 4, 3), ConvNormReLU(4, 4, 1)
        self.read, self.read_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)  # somebody else reads it too
        self.shared, self.one, self.other = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.alone = nn.BatchNorm2d(4)  # after an addition

    def forward(self, x):
        x = self.twice(self.twice(self.plain(x)))
        y = self.read(x)
        x = self.read_norm(y) + y.abs()
        return self.alone(self.one(self.shared(x)) + self.other(self.shared(x)))


def test_only_pairs_that_belong_to_each_other_are_folded():
    model = trained(Branches())
    assert foldable(model, meta((1, 4, 5, 7))) == [("plain.0", "plain.1"), ("twice.0", "twice.1")]
    folded = fold_norms(model, meta((1, 4, 5, 7)))
    x = torch.randn(2, 4, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(folded(x), model(x), rtol=1e-12, atol=1e-12)
    assert (norms(model), norms(folded)) == (6, 4)


def test_a_subclass_that_computes_more_is_left_alone():
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return 3 * super().forward(x)

    assert foldable(nn.Sequential(Scaled(2, 2, 1), nn.BatchNorm2d(2)), meta((1, 2, 3, 3))) == []


class Apart(nn.Module):
    """Norms of sums that nobody holds, then convolutions: their outputs lie where the sums lay."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(16))
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(16))

    def forward(self, x):
        total = sum(norm(x * 2) for norm in self.norms)
        return sum((conv(x) for conv in self.convs), total)


def test_a_tensor_is_not_taken_for_one_that_is_gone():
    for _ in range(20):
        assert foldable(Apart(), meta((1, 4, 3, 3))) == []


@pytest.mark.parametrize("head", ONE_OF_EACH)
def test_every_head_gives_the_same_folded(head):
    keywords = {k: v for k, v in VARIANTS[ONE_OF_EACH[head]].items() if k != "name"}
    if "feature_size" in keywords_of(HEADS[head]):
        keywords["feature_size"] = SIZES[-1]
    model = trained(build_head(head, WIDTHS, 5, **keywords))
    shapes = [(2, width, *size) for width, size in zip(WIDTHS, SIZES, strict=True)]
    folded = fold_norms(model, meta(*shapes))
    maps = [torch.rand(shape, dtype=torch.float64) for shape in shapes]
    with torch.no_grad():
        for name, output in model(maps).items():
            assert torch.allclose(folded(maps)[name], output, rtol=1e-9, atol=1e-9), name
    assert norms(folded) < norms(model)


def test_a_whole_segmentor_keeps_no_norm_and_the_original_stays():
    model = trained(
        build_segmentor(
            num_classes=3, crop=(64, 64), backbone={"name": "resnet10t"}, head={"name": "fcn", "channels": 8}
        )
    )
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = fold_norms(model, meta((1, 3, 64, 64)))
    image = torch.randint(0, 256, (1, 3, 48, 80), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.allclose(folded(image)["logits"], model(image)["logits"], rtol=1e-9, atol=1e-9)
    assert norms(folded) == 0 < norms(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
