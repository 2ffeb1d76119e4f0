"""DFSeg's decoder against loops over regions and cells, and the published sizes of whole networks."""

import pytest
import torch
import torch.nn.functional as F

from segmodels.backbone import build_backbone
from segmodels.heads.catalog import build_head
from segmodels.heads.dfseg import dfseg_head
from segmodels.heads.maps import Maps
from segmodels.layers import Classifier

WIDTHS, SIZES, K = (3, 4, 6, 8), ((9, 14), (5, 7), (3, 4)), 3
SR = {"context": "sr", "nodes": 2, "ratio": 2}


def build(**keywords):
    head = dfseg_head(WIDTHS, K, **({"channels": 4, "out_channels": 6, "bins": (1, 2, 3)} | keywords)).double()
    for norm in head.modules():
        if isinstance(norm, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            for vector in (norm.running_mean, norm.weight, norm.bias):
                torch.nn.init.normal_(vector)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    return head.eval()


def features(batch=2):
    first = torch.randn(batch, WIDTHS[0], 17, 28, dtype=torch.float64)
    rest = [torch.randn(batch, c, *s, dtype=torch.float64) for c, s in zip(WIDTHS[1:], SIZES, strict=True)]
    return [first, *(x.requires_grad_() for x in rest)]


def batch_norm(x, norm, train=False):
    mean = x.mean((0, 2, 3)) if train else norm.running_mean
    var = x.var((0, 2, 3), correction=0) if train else norm.running_var
    return (x - wide(mean)) / (wide(var) + norm.eps).sqrt() * wide(norm.weight) + wide(norm.bias)


def wide(v):
    return v[:, None, None]


def conv1x1(x, conv):
    y = torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], x)
    return y if conv.bias is None else y + wide(conv.bias)


def conv3x3(x, conv):
    """The sum over the nine taps of shifted maps."""
    rows, columns = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1))
    taps = [
        torch.einsum("oc,bchw->bohw", conv.weight[:, :, i, j], padded[:, :, i : i + rows, j : j + columns])
        for i in range(3)
        for j in range(3)
    ]
    return sum(taps) + (0 if conv.bias is None else wide(conv.bias))


def enlarged(x, size):
    """Bilinear with the corners aligned."""

    def matrix(n, m):
        weights = torch.zeros(m, n, dtype=x.dtype)
        for i in range(m):
            place = i * (n - 1) / (m - 1)
            low = min(int(place), max(n - 2, 0))
            weights[i, low] += 1 - (place - low)
            weights[i, min(low + 1, n - 1)] += place - low
        return weights

    return torch.einsum("ih,jw,bchw->bcij", matrix(x.shape[2], size[0]), matrix(x.shape[3], size[1]), x)


def pooled(x, n):
    """Means of n x n regions, from floor(i H / n) to ceil((i + 1) H / n)."""
    rows, columns = x.shape[2:]
    cells = [
        x[:, :, i * rows // n : -(-(i + 1) * rows // n), j * columns // n : -(-(j + 1) * columns // n)].mean((2, 3))
        for i in range(n)
        for j in range(n)
    ]
    return torch.stack(cells, 2).unflatten(2, (n, n))


def pyramid(unit, x, train=False):
    parts = [
        enlarged(batch_norm(conv1x1(pooled(x, n), project), norm, train), x.shape[2:])
        for n, project, norm in zip((1, 2, 3), unit.project, unit.norm, strict=True)
    ]
    return batch_norm(conv1x1(torch.cat([*parts, x], 1), unit.fuse[0]), unit.fuse[1], train).clamp(min=0)


def decode(head, context, maps, train=False):
    """Everything behind the context of the last map."""
    y = conv1x1(context, head.lateral[0])
    y = conv3x3(torch.cat([enlarged(y, SIZES[1]), conv1x1(maps[2], head.lateral[1])], 1), head.nodes[0].mix)
    y = conv3x3(torch.cat([enlarged(y, SIZES[0]), conv1x1(maps[1], head.lateral[2])], 1), head.nodes[1].mix)
    y = batch_norm(conv3x3(y, head.refine[0]), head.refine[1], train).clamp(min=0)
    return conv1x1(y, head.classify[1])


def compare(head, maps, slow):
    fast = head(maps)["logits"]
    assert fast.shape == (2, K, *SIZES[0])
    assert (fast - slow).norm() < 1e-10 * slow.norm()
    probe, leaves = torch.randn_like(slow), [*maps[1:], *head.parameters()]
    for a, b in zip(*(torch.autograd.grad(y, leaves, probe) for y in (fast, slow)), strict=True):
        assert (a - b).norm() < 1e-10 * b.norm() + 1e-12  # a bias before a norm in training has none


@pytest.mark.parametrize("train", [False, True])
def test_pyramid_decoder_equals_its_equations(train):
    head, maps = build(dropout=0.0).train(train), features()
    compare(head, maps, decode(head, pyramid(head.context, maps[3], train), maps, train))


def test_sr_decoder_gives_the_unit_the_last_map_as_it_is():
    head, maps = build(**SR), features()
    compare(head, maps, decode(head, head.context(maps[3]), maps))
    assert head.context.project.in_channels == WIDTHS[3]
    assert head.lateral[0].in_channels == WIDTHS[3]


def test_maps_are_those_of_the_unit():
    head, maps, given = build(**SR), features(), Maps()
    assert torch.equal(head(maps, maps=given)["logits"], head(maps)["logits"])
    assert given["nodes"].shape == (2, 2, *SIZES[2])
    assert not given["nodes"].requires_grad
    empty = Maps()
    build()(maps, empty)
    assert not empty


@pytest.mark.parametrize(
    ("trunk", "context", "count"),
    # SRNet's Table V: 9.37 (with DF1's maps at strides 16, 32 and 32), 18.83 and 18.87 M.
    [("df1", "ppm", 9346355), ("df2", "ppm", 18825011), ("df2", "sr", 18874483)],
)
def test_whole_networks_have_the_published_parameters(trunk, context, count):
    with torch.device("meta"):
        backbone = build_backbone(trunk, 32)
        head = dfseg_head(backbone.channels, 19, context=context)
    assert sum(p.numel() for module in (backbone, head) for p in module.parameters()) == count


def test_df1_of_the_table_is_its_last_three_layers():
    with torch.device("meta"):
        backbone = build_backbone("df1", 32)
        head = dfseg_head((128, 256, 512), 19)
    assert sum(p.numel() for m in (backbone, head) for p in m.parameters()) == pytest.approx(9.37e6, abs=5e3)


def test_one_image_in_training_is_an_error_with_the_cure():
    head = build().train()
    with pytest.raises(ValueError, match="Raise the batch"):
        head(features(1))
    assert build(bins=(2, 3)).train()(features(1))["logits"].isfinite().all()
    assert build().eval()(features(1))["logits"].isfinite().all()


def test_dropout_falls_behind_the_pyramid_and_before_the_classifier():
    head = build(dropout=0.4)
    assert (head.context.dropout.p, head.classify[0].p) == (0.4, 0.4)
    assert [m for m in head.modules() if isinstance(m, Classifier)] == [head.classify[1]]


@pytest.mark.slow
def test_exports_with_free_sizes():
    free = torch.export.Dim.AUTO
    for keywords in ({}, SR):
        head = build(**keywords)
        maps = [x.detach() for x in features()]
        program = torch.export.export(head, (maps,), dynamic_shapes=([dict.fromkeys((0, 2, 3), free)] * 4,)).module()
        other = [
            torch.randn(1, c, 3 * s, 5 * s, dtype=torch.float64) for c, s in zip(WIDTHS, (8, 4, 2, 1), strict=True)
        ]
        assert torch.allclose(program(other)["logits"], head(other)["logits"])


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"context": "psp"}, "unknown context 'psp'; allowed: ppm, sr"),
        ({"context": "sr", "nodes": 3}, "nodes is 3; allowed: a divisor of"),
        ({"context": "sr", "squeeze": "max"}, "unknown squeeze 'max'; allowed: gap, ghp"),
        ({"channels": 0}, "channels is 0; allowed: an integer of at least 1"),
        ({"out_channels": -2}, "out_channels is -2"),
        ({"bins": ()}, "bins is"),
        ({"bins": [1, 0]}, "bins is 0"),
        ({"dropout": 1.5}, "dropout is 1.5; allowed: from 0 to below 1"),
        ({"contxt": "sr"}, "unknown keyword 'contxt' of head 'dfseg'.*Did you mean 'context'"),
    ],
)
def test_bad_values(keywords, message):
    with pytest.raises(ValueError, match=message):
        build_head("dfseg", WIDTHS, K, **{"channels": 4, "out_channels": 6} | keywords)


def test_two_maps_are_too_few():
    with pytest.raises(ValueError, match=r"got 2 maps; allowed: 3 or 4.*needs stage: 3 or 4"):
        build_head("dfseg", WIDTHS[:2], K)
