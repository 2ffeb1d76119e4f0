"""Wider ResNet-38 against its structure, written out module by module."""

import pytest
import torch
import torch.nn.functional as F

from segmodels.backbone import build_backbone
from segmodels.segmentor import build_segmentor
from segmodels.wideresnet import WiderResNet

# Module -> blocks, stride of the first, dilation of the 3x3; where a pooling comes before it.
MODULES = {
    "mod2": (3, 1, 1),
    "mod3": (3, 1, 1),
    "mod4": (6, 2, 1),
    "mod5": (3, 1, 2),
    "mod6": (1, 1, 4),
    "mod7": (1, 1, 4),
}
POOLED = ("mod2", "mod3")


def trunk():
    net = WiderResNet(2).double().eval()
    for norm in net.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            for vector in (norm.running_mean, norm.bias):
                torch.nn.init.normal_(vector, std=0.1)
            for vector in (norm.running_var, norm.weight):
                torch.nn.init.uniform_(vector, 0.5, 1)
    return net


def naive(state, x):
    def activated(x, key):
        vectors = (state[f"{key}.0.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *vectors).relu()

    def block(x, key, stride, dilation):
        y = start = activated(x, f"{key}.bn1")
        for i in (1, 2, 3):
            weight = state.get(f"{key}.convs.conv{i}.weight")
            if weight is None:
                continue
            y = activated(y, f"{key}.convs.bn{i}") if i > 1 else y
            dilated = dilation if weight.shape[2] == 3 else 1
            padding = dilated * (weight.shape[2] // 2)
            y = F.conv2d(y, weight, stride=stride if i == 1 else 1, padding=padding, dilation=dilated)
        shortcut = state.get(f"{key}.proj_conv.weight")
        return y + (x if shortcut is None else F.conv2d(start, shortcut, stride=stride))

    x, maps = F.conv2d(x, state["mod1.conv1.weight"], padding=1), {}
    for name, (count, stride, dilation) in MODULES.items():
        x = F.max_pool2d(x, 3, 2, 1) if name in POOLED else x
        for i in range(1, count + 1):
            x = block(x, f"{name}.block{i}", stride if i == 1 else 1, dilation)
        maps[name] = x
    return [maps["mod3"], maps["mod4"], maps["mod6"], activated(maps["mod7"], "bn_out")]


def test_equals_its_modules_in_outputs_and_gradients():
    net, x = trunk(), torch.randn(1, 3, 45, 67, dtype=torch.float64)
    fast, slow = net(x), naive(net.state_dict(keep_vars=True), x)
    assert [tuple(m.shape[1:]) for m in fast] == [(8, 12, 17), (16, 6, 9), (64, 6, 9), (128, 6, 9)]
    assert all((a - b).norm() < 1e-10 * b.norm() for a, b in zip(fast, slow, strict=True))
    parameters = list(net.parameters())
    grads = (torch.autograd.grad(sum(m.square().sum() for m in maps), parameters) for maps in (fast, slow))
    assert all((a - b).norm() < 1e-10 * b.norm() for a, b in zip(*grads, strict=True))


def test_poolings_round_down_which_openseg_does_not():
    """Sides of the last map: the same as with rounding up at odd crops, one cell less at even ones."""
    with torch.device("meta"):
        ours, up = WiderResNet(1).eval(), WiderResNet(1).eval()
        up.pool2.ceil_mode = up.pool3.ceil_mode = True
        for crop, sides in {513: (65, 65), 769: (97, 97), 512: (64, 65), 768: (96, 97), 640: (80, 81)}.items():
            x = torch.zeros(1, 3, crop, 9)
            assert tuple(net(x)[-1].shape[2] for net in (ours, up)) == sides


def test_golden_costs(golden):
    with torch.no_grad():
        golden(lambda: build_backbone("wideresnet38", 8), 105070912, 521.2, (1, 3, 512, 512))


def test_blocks_and_widths():
    with torch.device("meta"):
        net = WiderResNet()
    assert [len(net.get_submodule(name)) for name in MODULES] == [count for count, _, _ in MODULES.values()]
    widths = {
        name: [m.out_channels for n, m in net.get_submodule(f"{name}.block1.convs").named_children() if "conv" in n]
        for name in MODULES
    }
    assert widths == {
        "mod2": [128, 128],
        "mod3": [256, 256],
        "mod4": [512, 512],
        "mod5": [512, 1024],
        "mod6": [512, 1024, 2048],
        "mod7": [1024, 2048, 4096],
    }


def test_auxiliary_head_reads_mod6():
    with torch.device("meta"):
        model = build_segmentor(
            num_classes=3,
            crop=(64, 96),
            backbone={"name": "wideresnet38", "output_stride": 8},
            head={"name": "reconet", "channels": 8, "rank": 2},
            aux={"name": "fcn", "channels": 8},
        )
    assert (model.head.reduce[0].in_channels, model.aux.reduce[0].in_channels) == (4096, 2048)
    assert model.feature_size == (8, 12)


def test_start_is_kaiming_fan_in():
    net = WiderResNet(16)
    assert net.mod5.block2.convs.conv2.weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
