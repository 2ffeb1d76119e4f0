"""DF1 and DF2 against their structure, written out block by block."""

import pytest
import torch
import torch.nn.functional as F

from segmodels.backbone import build_backbone
from segmodels.dfnet import DF1, DF2, DFNet

# Per map after the stem: the blocks that lead to it, under the names of the public code.
BLOCKS = {
    "df1": [
        ["stage2.0", "stage2.1", "stage2.2"],
        ["stage3.0", "stage3.1", "stage3.2"],
        ["stage4.0", "stage4.1", "stage4.2", "stage5.0"],
    ],
    "df2": [
        ["stage2_1.0", "stage2_1.1", "stage2_2.0"],
        [*(f"stage3_1.{i}" for i in range(10)), "stage3_2.0"],
        [*(f"stage4_1.{i}" for i in range(4)), "stage4_2.0", "stage4_2.1"],
    ],
}
LAYERS = {"df1": DF1, "df2": DF2}


def trunk(name):
    net = DFNet(LAYERS[name]).double().eval()
    for norm in net.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            for vector in (norm.running_mean, norm.bias):
                torch.nn.init.normal_(vector, std=0.1)
            for vector in (norm.running_var, norm.weight):
                torch.nn.init.uniform_(vector, 0.5, 1)
    return net


def naive(name, state, x):
    def normed(x, key):
        return F.batch_norm(x, *(state[f"{key}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")))

    for conv, norm in ((0, 1), (3, 4)):
        x = normed(F.conv2d(x, state[f"stage1.{conv}.weight"], stride=2, padding=1), f"stage1.{norm}").relu()
    maps = [x]
    for blocks in BLOCKS[name]:
        for block in blocks:
            stride = 2 if block == blocks[0] else 1
            y = normed(F.conv2d(x, state[f"{block}.conv1.weight"], stride=stride, padding=1), f"{block}.bn1").relu()
            y = normed(F.conv2d(y, state[f"{block}.conv2.weight"], padding=1), f"{block}.bn2")
            if f"{block}.downsample.0.weight" in state:
                x = F.conv2d(x, state[f"{block}.downsample.0.weight"], stride=stride)
                x = normed(x, f"{block}.downsample.1")
            x = (x + y).relu()
        maps.append(x)
    return maps


@pytest.mark.parametrize("name", BLOCKS)
def test_equals_its_blocks_in_outputs_and_gradients(name):
    net, x = trunk(name), torch.randn(1, 3, 45, 67, dtype=torch.float64)
    fast, slow = net(x), naive(name, net.state_dict(keep_vars=True), x)
    assert [tuple(m.shape[2:]) for m in fast] == [(12, 17), (6, 9), (3, 5), (2, 3)]
    assert all((a - b).norm() < 1e-10 * b.norm() for a, b in zip(fast, slow, strict=True))
    parameters = list(net.parameters())
    grads = (torch.autograd.grad(sum(m.square().sum() for m in maps), parameters) for maps in (fast, slow))
    assert all((a - b).norm() < 1e-10 * b.norm() for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(("name", "count", "giga"), [("df1", 8020128, 31.19), ("df2", 17474208, 74.14)])
def test_golden_costs(golden, name, count, giga):
    with torch.no_grad():
        golden(lambda: build_backbone(name, 32), count, giga, (1, 3, 1024, 2048))


def test_start_is_kaiming_fan_out():
    weight = trunk("df1").stage4[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
