"""JPU against loops over cells, dilations and taps, and in its place between trunk and heads."""

import pytest
import torch

from segmodels.backbone import build_backbone
from segmodels.jpu import JPU, build_neck
from segmodels.optim import parameter_groups
from segmodels.segmentor import build_segmentor

CHANNELS, STRIDES, WIDTH = (3, 4, 5, 6), (4, 8, 16, 32), 2
SIZES = ((17, 13), (9, 7), (5, 4), (3, 2))


def randomise(module):
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            for vector in (norm.running_mean, norm.weight, norm.bias):
                torch.nn.init.normal_(vector)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    return module


def batch_norm(x, norm):
    def vector(v):
        return v[:, None, None]

    scale = vector(norm.weight) / (vector(norm.running_var) + norm.eps).sqrt()
    return (x - vector(norm.running_mean)) * scale + vector(norm.bias)


def conv3x3(x, weight, dilation=1):
    """(C, H, W) by taps; weight (O, C, 3, 3), or (C, 1, 3, 3) for each channel by itself."""
    _, rows, columns = x.shape
    out = torch.zeros(len(weight), rows, columns, dtype=x.dtype)
    for i in range(rows):
        for j in range(columns):
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    a, b = i + di * dilation, j + dj * dilation
                    if 0 <= a < rows and 0 <= b < columns:
                        tap = weight[:, :, di + 1, dj + 1]
                        cell = x[:, a, b] * tap[:, 0] if tap.shape[1] == 1 else tap @ x[:, a, b]
                        out = out + cell[:, None, None] * at(i, j, rows, columns)
    return out


def at(i, j, rows, columns):
    mask = torch.zeros(rows, columns, dtype=torch.float64)
    mask[i, j] = 1
    return mask


def enlarged(x, size):
    """Bilinear with the corners aligned."""

    def matrix(n, m):
        weights = torch.zeros(m, n, dtype=x.dtype)
        for i in range(m):
            place = i * (n - 1) / (m - 1)
            low = min(int(place), n - 2)
            weights[i, low], weights[i, low + 1] = 1 - (place - low), place - low
        return weights

    return torch.einsum("ih,jw,chw->cij", matrix(x.shape[1], size[0]), matrix(x.shape[2], size[1]), x)


def naive(jpu, features):
    """One image: the last three maps at the second's size, side by side, then four separable convolutions."""
    maps = []
    for layer, x in zip(jpu.reduce, features[1:], strict=True):
        y = batch_norm(conv3x3(x, layer[0].weight), layer[1]).clamp(min=0)
        maps.append(y if x is features[1] else enlarged(y, SIZES[1]))
    joined = torch.cat(maps)
    outputs = []
    for (depthwise, norm, pointwise, last, _), dilation in zip(jpu.pyramid, (1, 2, 4, 8), strict=True):
        y = batch_norm(conv3x3(joined, depthwise.weight, dilation), norm)
        y = torch.einsum("oc,chw->ohw", pointwise.weight[:, :, 0, 0], y)
        outputs.append(batch_norm(y, last).clamp(min=0))
    return torch.cat(outputs)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def test_equals_the_loops_in_outputs_and_gradients():
    jpu = randomise(JPU(CHANNELS, STRIDES, WIDTH)).double().eval()
    features = [
        torch.randn(1, c, *size, dtype=torch.float64, requires_grad=True)
        for c, size in zip(CHANNELS, SIZES, strict=True)
    ]
    given = jpu(features)
    assert all(a is b for a, b in zip(given[:3], features[:3], strict=True))  # the aux head reads the trunk's
    slow = naive(jpu, [f[0] for f in features])
    assert relative(given[3][0], slow) < 1e-10
    probe, leaves = torch.randn_like(slow), [*features[1:], *jpu.parameters()]
    fast = torch.autograd.grad(given[3][0], leaves, probe)
    assert max(relative(a, b) for a, b in zip(fast, torch.autograd.grad(slow, leaves, probe), strict=True)) < 1e-10


def test_golden_costs(golden):
    shapes = [(1, c, 512 // s, 512 // s) for c, s in zip((256, 512, 1024, 2048), STRIDES, strict=True)]
    golden(lambda: JPU((256, 512, 1024, 2048), STRIDES), 19735552, 30.02, *shapes, as_list=True)


def build(neck="jpu", stride=32, name="resnet18", **parts):
    return build_segmentor(
        **{
            "num_classes": 4,
            "crop": (65, 97),
            "backbone": {"name": name, "output_stride": stride, "neck": neck},
            "head": {"name": "reconet", "channels": 8, "rank": 2},
            "aux": {"name": "fcn", "channels": 8},
        }
        | parts
    )


def test_heads_read_its_map_at_stride_8_and_the_aux_head_the_trunks():
    with torch.device("meta"):
        model = build()
        assert model.feature_size == (9, 13)  # a bound head is told the size at stride 8
        assert model.head.reduce[0].in_channels == 2048
        assert model.aux.reduce[0].in_channels == 256
        seen = []
        for head in (model.head, model.aux):
            head.register_forward_pre_hook(lambda module, given: seen.append(tuple(given[0][-1].shape)))
        assert model.train()(torch.zeros(2, 3, 65, 97))["aux"].shape == (2, 4, 65, 97)
        assert seen == [(2, 2048, 9, 13), (2, 256, 5, 7)]
        bound = build(aux={"name": "reconet", "channels": 8, "rank": 2, "stage": 4})
    assert bound.aux.feature_size == (9, 13)


def test_without_a_neck_all_is_as_before():
    with torch.device("meta"):
        model = build(neck=None)
    assert model.neck is None
    assert model.feature_size == (3, 4)


def test_learns_at_the_heads_rate_and_needs_no_weights(tmp_path):
    path = str(tmp_path / "trunk.pth")
    torch.save(build_backbone("resnet18", 32).trunk.state_dict(), path)
    model = build(backbone={"name": "resnet18", "output_stride": 32, "weights": path, "neck": "jpu"})
    rates = {id(p): group["lr"] for group in parameter_groups(model, lr=0.1, weight_decay=0) for p in group["params"]}
    assert {rates[id(p)] for p in model.neck.parameters()} == {1.0}
    assert {rates[id(p)] for p in model.backbone.parameters()} == {0.1}


def test_exports_with_free_sizes():
    neck, free = JPU(CHANNELS, STRIDES, WIDTH).eval(), torch.export.Dim.AUTO
    features = [torch.randn(2, c, *size) for c, size in zip(CHANNELS, SIZES, strict=True)]
    shapes = ([dict.fromkeys((0, 2, 3), free)] * 4,)
    program = torch.export.export(neck, (features,), dynamic_shapes=shapes).module()
    other = [torch.randn(1, c, -(-69 // s), -(-45 // s)) for c, s in zip(CHANNELS, STRIDES, strict=True)]
    assert torch.allclose(program(other)[3], neck(other)[3], atol=1e-5)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"neck": "jpo"}, r"unknown neck 'jpo'; allowed: jpu. Did you mean 'jpu'\?"),
        (
            {"stride": 8},
            r"neck 'jpu' got maps at strides \(4, 8, 8, 8\); allowed: .*Set the backbone's output_stride: 32",
        ),
        ({"name": "hrnet_w48", "stride": 4}, r"\(4, 8, 4, 4\).*or neck: null for a trunk that has no such stride"),
    ],
)
def test_bad_necks(parts, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build(**parts)


def test_bad_width():
    with pytest.raises(ValueError, match="width is 0; allowed: an integer of at least 1"):
        JPU(CHANNELS, STRIDES, 0)
    assert build_neck("jpu", CHANNELS, STRIDES).channels == (3, 4, 5, 2048)
