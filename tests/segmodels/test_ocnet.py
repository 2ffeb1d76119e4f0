"""OCNet's attentions against loops over pixels, written from its equations, and its heads against their layouts."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from naive_layers import conv, enlarge, norm, relu
from torch import nn

from segmodels.cost import conv_matmul_macs
from segmodels.heads import attention, interlaced
from segmodels.heads.catalog import build_head
from segmodels.heads.interlaced import InterlacedAttention, Regrouping
from segmodels.heads.maps import Maps
from segmodels.heads.object_attention import SelfAttention, borders
from segmodels.heads.ocnet import ocnet_head, sa2x_head
from segmodels.plain.ocnet import ocnet_plain, self_attention_plain

B, C, E, V, H, W = 2, 6, 4, 5, 5, 7
WIDTHS = (256, 512, 1024, 2048)


def shaken(module):
    """The module in float64, its norms with statistics and affines far from their start."""
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            nn.init.normal_(child.weight, 1.0, 0.3)
            nn.init.normal_(child.bias)
            nn.init.normal_(child.running_mean)
            nn.init.uniform_(child.running_var, 0.5, 2.0)
    return module.double()


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def layer(parts, x):
    """Convolution of 1x1, batch norm and ReLU on rows of cells: (B, N, in) -> (B, N, out)."""
    return relu(norm(parts[1], (x @ parts[0].weight[:, :, 0, 0].T).mT)).mT


def naive_attention(unit, x, related):
    """Pixel by pixel, over the pixels j with related(i, j): (B, C, H, W) -> the same, and the relations (B, N, N)."""
    height, width = x.shape[2:]
    cells = [(r, c) for r in range(height) for c in range(width)]
    rows = torch.stack([x[:, :, r, c] for r, c in cells], 1)
    q, k, v = rows, rows, rows @ unit.value.weight[:, :, 0, 0].T
    for parts in unit.query:
        q = layer(parts, q)
    for parts in unit.key:
        k = layer(parts, k)
    out, relations = [], torch.zeros(x.shape[0], len(cells), len(cells), dtype=x.dtype)
    for i, cell in enumerate(cells):
        js = [j for j, other in enumerate(cells) if related(cell, other)]
        scores = ((q[:, i, None] * k[:, js]).sum(-1) / q.shape[-1] ** 0.5).exp()
        weights = scores / scores.sum(1, keepdim=True)
        out.append((weights[:, :, None] * v[:, js]).sum(1))
        relations[:, i, js] = weights.detach()
    context = torch.stack(out, 1)
    context = context @ unit.out[0].weight[:, :, 0, 0].T if unit.bare else layer(unit.out, context)
    return context.mT.reshape(x.shape), relations


def naive_dense(unit, x):
    return naive_attention(unit, x, lambda i, j: True)[0]


def naive_interlaced(module, x):
    """Both stages; the padding only shifts the tiles, or takes part as zeros."""
    (p_h, p_w), (height, width) = module.partition, x.shape[2:]
    down, across = (p_h - height % p_h) % p_h, (p_w - width % p_w) % p_w
    top, left = down // 2, across // 2
    if not module.mask_padding:
        full = torch.zeros(*x.shape[:2], height + down, width + across, dtype=x.dtype)
        full[:, :, top : top + height, left : left + width] = x
        x, top, left = full, 0, 0
    same = {
        "global": lambda i, j: (i[0] - j[0]) % p_h == 0 and (i[1] - j[1]) % p_w == 0,
        "local": lambda i, j: (
            (i[0] + top) // p_h == (j[0] + top) // p_h and (i[1] + left) // p_w == (j[1] + left) // p_w
        ),
    }
    relations = {}
    for stage, unit in module.stages:
        x, relations[stage] = naive_attention(unit, x, same[stage])
    if not module.mask_padding:
        x = x[:, :, down // 2 : down // 2 + height, across // 2 : across // 2 + width]
    return x, relations


def naive_unit(unit, x):
    return naive_dense(unit, x) if isinstance(unit, SelfAttention) else naive_interlaced(unit, x)[0]


def naive_pooled(pooled, x, pool, late=True):
    """The unit on the maxima of pool x pool cells, region by region, and its result enlarged.

    With `late` ρ's norm and ReLU come after that, as in the authors' code.
    """
    rows, columns = (range(0, n - pool + 1, pool) for n in x.shape[2:])
    regions = [torch.stack([x[:, :, r : r + pool, c : c + pool].amax((2, 3)) for c in columns], 2) for r in rows]
    last = pooled.unit if isinstance(pooled.unit, SelfAttention) else pooled.unit.units[-1]
    assert last.bare == (late and pool > 1)
    y = enlarge(naive_unit(pooled.unit, torch.stack(regions, 2)), x.shape[2:])
    return relu(norm(last.out[1], y)) if last.bare else y


def naive_tiles(function, x, tiles, even=True):
    """Tile by tile; the last has the rest where they are not even."""
    ends = [[int(n * i / tiles) if even else i * (n // tiles) for i in range(tiles)] + [n] for n in x.shape[2:]]
    rows, columns = (list(pairwise(side)) for side in ends)
    return torch.cat([torch.cat([function(x[:, :, a:b, c:d]) for c, d in columns], 3) for a, b in rows], 2)


def close(module, fast, slow, x):
    """Outputs and gradients agree."""
    assert relative(fast, slow) < 1e-10
    probe = torch.randn_like(fast)
    leaves = [x, *module.parameters()]
    pairs = zip(torch.autograd.grad(fast, leaves, probe), torch.autograd.grad(slow, leaves, probe), strict=True)
    # A bias of the keys whose ReLUs are all open cancels: its gradient is 0 up to rounding.
    assert max(((a - b).norm() / b.norm().clamp(min=1e-3)).item() for a, b in pairs) < 1e-10


def image(*size, batch=B):
    return torch.randn(batch, C, *(size or (H, W)), dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("qk_layers", [1, 2])
def test_dense_attention_equals_the_loop(qk_layers, training):
    unit, x = shaken(SelfAttention(C, E, V, qk_layers)).train(training), image()
    close(unit, unit(x), naive_dense(unit, x), x)
    assert relative(self_attention_plain(unit, x), naive_dense(unit, x)) < 1e-10


@pytest.mark.parametrize("order", ["global_local", "local_global", "global", "local"])
@pytest.mark.parametrize(
    ("partition", "size", "mask"),
    [
        *(((2, 3), (4, 6), True), ((2, 3), (H, W), True), ((3, 4), (H, W), True), ((3, 4), (H, W), False)),
        *(((8, 8), (H, W), True), ((8, 8), (H, W), False), ((4, 3), (3, 8), True), ((3, 8), (3, 2), False)),
    ],
)
def test_interlaced_attention_equals_the_loop(order, partition, size, mask):
    module = shaken(InterlacedAttention(C, E, V, 1, partition, order, mask)).eval()
    x = image(*size)
    close(module, module(x), naive_interlaced(module, x)[0], x)


@pytest.mark.parametrize("mask", [True, False])
def test_interlaced_attention_in_training(mask):
    module = shaken(InterlacedAttention(C, E, E, 2, (3, 4), mask_padding=mask)).train()
    x = image()
    close(module, module(x), naive_interlaced(module, x)[0], x)


@pytest.mark.parametrize("size", [(4, 6), (H, W)])
def test_interlaced_attention_equals_the_public_form(size):
    module = shaken(InterlacedAttention(C, E, V, 2, (2, 3), mask_padding=False)).train()
    x = image(*size)
    close(module, module(x), ocnet_plain(module, x), x)


def test_the_mask_matters_only_where_there_is_padding():
    masked, free = (InterlacedAttention(C, E, V, 1, (2, 3), mask_padding=mask).eval() for mask in (True, False))
    free.load_state_dict(masked.state_dict())
    x, y = torch.randn(1, C, 4, 6), torch.randn(1, C, H, W)
    assert torch.allclose(masked(x), free(x), atol=1e-6)
    assert not torch.allclose(masked(y), free(y), atol=1e-3)


@pytest.mark.parametrize(("size", "tiles"), [((6, 8), 2), ((7, 8), 3), ((4, 8), 2)])
@pytest.mark.parametrize("mask", [True, False, None])
def test_tiles_are_images_by_themselves(size, tiles, mask):
    x = image(*size)
    if mask is None:
        unit = shaken(SelfAttention(C, E, V, 1)).eval()
        slow = naive_tiles(lambda part: naive_dense(unit, part), x, tiles)
    else:
        unit = shaken(InterlacedAttention(C, E, V, 1, (2, 2), mask_padding=mask)).eval()
        slow = naive_tiles(lambda part: naive_interlaced(unit, part)[0], x, tiles)
    close(unit, unit(x, tiles=tiles), slow, x)


@pytest.mark.parametrize("size", [(4, 6), (H, W), (2, 3)])
@pytest.mark.parametrize("mask", [True, False])
def test_form_for_free_sizes_equals_the_loop(monkeypatch, size, mask):
    """An export cuts the map by indices; there a map smaller than the partition has groups of only padding."""
    monkeypatch.setattr(interlaced, "known", lambda size: False)
    monkeypatch.setattr(interlaced, "divides", lambda size, parts: False)
    module = shaken(InterlacedAttention(C, E, V, 1, (3, 4), mask_padding=mask)).eval()
    x = image(*size)
    close(module, module(x), naive_interlaced(module, x)[0], x)


def test_no_query_is_without_a_key(monkeypatch):
    """Not even one of only padding: some kernels would answer with NaN, which no crop keeps out of the gradients."""
    masks, attend = [], F.scaled_dot_product_attention

    def watched(q, k, v, attn_mask=None, **options):
        masks.append(attn_mask)
        return attend(q, k, v, attn_mask=attn_mask, **options)

    monkeypatch.setattr(interlaced, "known", lambda size: False)
    monkeypatch.setattr(interlaced, "divides", lambda size, parts: False)
    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    monkeypatch.setattr(attention, "explicit", lambda *_: False)
    y = InterlacedAttention(C, E, V, 1, (3, 4)).eval()(torch.randn(B, C, 2, 3))
    assert y.isfinite().all()
    assert len(masks) == 2
    assert not masks[1].all()
    assert all(mask.any(-1).all() for mask in masks)


def test_rows_and_columns_of_the_regrouped_image():
    cut = Regrouping((4, 6), (2, 3))
    x = torch.arange(24.0).view(1, 1, 4, 6)
    image = cut.split(x)[0, :, :, 0]
    assert image[0].tolist() == [0, 3, 12, 15]  # 2 rows and 3 columns apart
    assert image[:, 0].tolist() == [0, 1, 2, 6, 7, 8]  # the first tile
    assert torch.equal(cut.join(cut.split(x)), x)


@pytest.mark.parametrize("order", ["global_local", "local_global"])
@pytest.mark.parametrize("size", [(4, 6), (H, W)])
def test_maps_of_interlaced_attention(order, size):
    module = shaken(InterlacedAttention(C, E, V, 1, (2, 3), order)).eval()
    x, maps = image(*size), Maps((0.7, 0.3))
    assert torch.equal(module(x, maps), module(x))
    relations = naive_interlaced(module, x)[1]
    row, column = maps.cell(size)
    at = row * size[1] + column
    first, second = relations.values()
    expected = relations | {"dense": second @ first}
    assert set(maps) == {"global", "local", "dense"}
    for name, value in maps.items():
        assert torch.allclose(value, expected[name][:, at].view(B, *size)), name
        assert torch.allclose(value.sum((1, 2)), torch.ones(B).double())
        assert not value.requires_grad


def agreeing(weights, values):
    """Weights of the same cells, in proportion to how much their values agree."""
    true = (weights > 0) * (values @ values.mT)
    return true / true.sum(2, keepdim=True).clamp(min=1e-300)


@pytest.mark.parametrize("kind", ["relation", "global_local", "local_global"])
@pytest.mark.parametrize("size", [(4, 6), (H, W)])
def test_what_all_cells_gather_by_a_relation_by_equal_weights_and_by_the_truth(kind, size):
    """Each as the N x N weights say; `attention.GATHER_BYTES` never lets them all exist in one piece."""
    shares = torch.rand(B, 3, 2 * size[0], 2 * size[1], dtype=torch.float64)
    shares[:, :, : size[0]] *= 0  # no label
    x, maps = image(*size), Maps((0.7, 0.3), shares)
    if kind == "relation":
        module = shaken(SelfAttention(C, E, V, 2)).eval()
        relations = {kind: naive_attention(module, x, lambda i, j: True)[1]}
    else:
        module = shaken(InterlacedAttention(C, E, V, 1, (2, 3), kind)).eval()
        relations = naive_interlaced(module, x)[1]
        first, second = relations.values()
        relations = relations | {"dense": second @ first}
        evens = [(weights > 0) / (weights > 0).sum(2, keepdim=True) for weights in (first, second)]
    assert torch.equal(module(x, maps), module(x))
    values = shares.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean((3, 5)).flatten(2).mT  # (B, N, V)
    assert set(maps.gathered) == set(relations)
    for name, weights in relations.items():
        even = (weights > 0).double()
        even, cells = even / even.sum(2, keepdim=True), weights
        if name == "dense":  # where the map is padded, two stages do not reach all cells
            even, cells = evens[1].double() @ evens[0].double(), torch.ones_like(weights)
        three = weights, even, agreeing(cells, values)
        for field, by in zip(("relation", "even", "true"), three, strict=True):
            found = getattr(maps.gathered[name], field)
            assert torch.allclose(found, (by @ values).mT.unflatten(2, size)), (name, field)
            assert not found.requires_grad


def test_gathering_in_pieces_is_gathering(monkeypatch):
    q, k, v = (torch.randn(2, 3, 7, width, dtype=torch.float64) for width in (4, 4, 5))
    mask = torch.rand(1, 3, 1, 7) > 0.3
    whole = attention.gather(q, k, v, 0.5, mask)
    assert torch.allclose(whole, attention.relation(q, k, 0.5, mask) @ v)
    monkeypatch.setattr(attention, "GATHER_BYTES", 2 * 3 * 7 * 8 * 2)  # two queries at a time
    assert torch.allclose(attention.gather(q, k, v, 0.5, mask), whole)


def test_maps_of_one_stage_and_of_dense_attention():
    x, maps = image(), Maps()
    module = shaken(InterlacedAttention(C, E, V, 1, (2, 3), "local")).eval()
    module(x, maps)
    assert set(maps) == {"local"}
    unit, maps = shaken(SelfAttention(C, E, V, 2)).eval(), Maps((0.1, 0.9))
    unit(x, maps)
    expected = naive_attention(unit, x, lambda i, j: True)[1][:, 6].view(B, H, W)
    assert torch.allclose(maps["relation"], expected)


def cbr(parts, x, padding=0, dilation=1):
    """With the reach that the test expects, not the layer's own."""
    return relu(norm(parts[1], F.conv2d(x, parts[0].weight, padding=padding, dilation=dilation)))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("attention", ["sa", "isa"])
def test_base_oc(attention, training):
    keywords = {"attention": attention, "partition": (2, 3), "dropout": 0.0}
    head = shaken(ocnet_head([C], 3, channels=4, key_channels=E, **keywords)).train(training)
    features = image()
    x = cbr(head.reduce, features, 1)
    y = cbr(head.context.fuse, torch.cat([naive_unit(head.context.unit, x), x], 1))
    close(head, head([features])["logits"], conv(head.classify[-1], y), features)


def test_pyramid_oc():
    head = ocnet_head([C], 3, channels=4, key_channels=E, scheme="pyramid", attention="sa", pyramid=[1, 3])
    head, features, maps = shaken(head).eval(), image(), Maps()
    x = cbr(head.reduce, features, 1)
    one, three = head.context.units
    parts = [naive_dense(one, x), naive_tiles(lambda part: naive_dense(three, part), x, 3)]
    parts += [cbr(layers, x) for layers in head.context.widen]
    assert len(parts) == 4
    y = cbr(head.context.fuse, torch.cat(parts, 1))
    y = F.conv2d(y, head.classify[-1].weight, head.classify[-1].bias)
    assert relative(head([features], maps)["logits"], y) < 1e-10
    assert maps["relation"].shape == (B, H, W)


@pytest.mark.parametrize("attention", ["sa", "isa"])
def test_pyramid_oc_with_the_borders_of_the_public_code(attention):
    assert borders(65, 6, even=True) == list(pairwise([0, 10, 21, 32, 43, 54, 65]))
    assert borders(65, 6, even=False) == list(pairwise([0, 10, 20, 30, 40, 50, 65]))
    keywords = {"scheme": "pyramid", "attention": attention, "partition": (1, 2), "pyramid": [1, 3], "dropout": 0.0}
    head = ocnet_head([C], 3, channels=4, key_channels=E, even_tiles=False, **keywords)
    head, features = shaken(head).eval(), image(5, 8)
    x = cbr(head.reduce, features, 1)
    one, three = head.context.units
    parts = [naive_unit(one, x), naive_tiles(lambda part: naive_unit(three, part), x, 3, even=False)]
    parts += [cbr(layers, x) for layers in head.context.widen]
    y = conv(head.classify[-1], cbr(head.context.fuse, torch.cat(parts, 1)))
    close(head, head([features])["logits"], y, features)
    even = ocnet_head([C], 3, channels=4, key_channels=E, **keywords).double().eval()
    even.load_state_dict(head.state_dict())
    assert relative(even([features])["logits"], head([features])["logits"]) > 1e-4


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("pool", "late"), [(1, True), (2, True), (2, False)])
@pytest.mark.parametrize(("attention", "relation"), [("sa", "relation"), ("isa", "dense")])
def test_asp_oc(attention, relation, pool, late, training):
    keywords = {"scheme": "asp", "attention": attention, "partition": (2, 2), "pool": pool, "rates": [1, 2]}
    keywords["late_norm"] = late
    head = shaken(ocnet_head([C], 3, channels=8, key_channels=6, dropout=0.0, **keywords)).train(training)
    features, maps = image(), Maps()
    context = naive_pooled(head.unit, cbr(head.reduce, features, 1), pool, late)
    one, *threes = head.branches
    branches = [
        cbr(one, features),
        *(cbr(three, features, rate, rate) for three, rate in zip(threes, (1, 2), strict=True)),
    ]
    y = conv(head.classify[-1], cbr(head.fuse, torch.cat([context, *branches], 1)))
    close(head, head([features])["logits"], y, features)
    assert relative(head([features], maps)["logits"], y) < 1e-10
    assert maps[relation].shape == (B, H // pool, W // pool)
    unit = head.unit.unit if attention == "sa" else head.unit.unit.units[0]
    assert unit.value.weight.shape == (3, 4, 1, 1)  # half of the keywords' widths


@pytest.mark.parametrize("training", [False, True])
def test_sa2x(training):
    head = shaken(sa2x_head([C], 3, channels=4, key_channels=E, dropout=0.0)).train(training)
    features = image()
    x = cbr(head.reduce, features, 1)
    y = cbr(head.context.fuse, torch.cat([naive_pooled(head.context.unit, x, 2), x], 1))
    close(head, head([features])["logits"], conv(head.classify[-1], y), features)


@pytest.mark.parametrize(
    ("unit", "count", "giga"),
    [
        (lambda: SelfAttention(512, 256, 256, 2), 658432, 11.2743),
        (lambda: SelfAttention(512, 256, 256, 1), 526336, 10.7374),
        (lambda: InterlacedAttention(512, 256, 256, 2), 1316864, 5.6371),
        (lambda: InterlacedAttention(512, 256, 512, 2), 1841152, 7.9188),
        (lambda: InterlacedAttention(512, 256, 512, 1), 1576960, 6.8451),
    ],
)
def test_units_cost(golden, unit, count, giga):
    golden(unit, count, giga, (1, 512, 64, 64))


@pytest.mark.parametrize(
    ("keywords", "count", "giga"),
    [
        ({"attention": "sa"}, 10632725, 52.121),
        ({"qk_layers": 1, "value_channels": 512}, 11551253, 47.691),
        ({}, 11291157, 46.483),
        ({"scheme": "asp", "attention": "sa"}, 19900181, 81.257),
        ({"scheme": "asp", "value_channels": 512}, 20196629, 81.322),
    ],
)
def test_heads_cost(golden, keywords, count, giga):
    golden(lambda: ocnet_head(WIDTHS, 21, **keywords), count, giga, (1, 2048, 64, 64), as_list=True)


@pytest.mark.parametrize(
    ("keywords", "published"),
    [
        ({"attention": "sa", "qk_layers": 1}, 619),
        ({"qk_layers": 1, "value_channels": 512}, 386),
        ({"attention": "sa", "scheme": "pyramid"}, 880),
        ({"scheme": "pyramid"}, 595),
        ({"attention": "sa", "scheme": "asp"}, 656),
        ({"scheme": "asp", "value_channels": 512}, 651),
    ],
)
def test_published_cost(keywords, published):
    """Table 4, within 0.5 %: 2 · MACs at 128 x 128 without the classifier."""
    with torch.device("meta"):
        head = ocnet_head(WIDTHS, 21, **keywords).eval()
        macs = conv_matmul_macs(head, [torch.zeros(1, 2048, 128, 128)])
    macs -= 21 * head.classify[-1].in_channels * 128 * 128
    assert 2e-9 * macs == pytest.approx(published, rel=5e-3)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"channels": 0}, "channels is 0; allowed: an integer of at least 1"),
        ({"scheme": "bas"}, r"unknown scheme 'bas'; allowed: base, pyramid, asp. Did you mean 'base'\?"),
        ({"attention": "is"}, r"unknown attention 'is'; allowed: sa, isa. Did you mean 'isa'\?"),
        ({"order": "locl"}, r"unknown order 'locl'; allowed: global_local.* Did you mean 'local'\?"),
        ({"attention": "sa", "order": "x"}, "unknown order 'x'"),
        ({"partition": [8]}, r"partition is \[8\]; allowed: two integers"),
        ({"partition": [8, 0]}, "partition is 0; allowed: an integer of at least 1"),
        ({"qk_layers": 3}, "qk_layers is 3; allowed: 1, as in the published costs, or 2"),
        ({"key_channels": 0}, "key_channels is 0"),
        ({"value_channels": -1}, "value_channels is -1"),
        ({"scheme": "asp", "key_channels": 5}, "key_channels is 5; allowed with scheme 'asp', which halves it: even"),
        ({"pool": 0}, "pool is 0"),
        ({"pyramid": []}, r"pyramid is \[\]; allowed"),
        ({"rates": [0]}, "rates is 0"),
        ({"mask_padding": 1}, "mask_padding is 1; allowed: bool"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_bad_values(keywords, message):
    with pytest.raises(ValueError, match=message):
        build_head("ocnet", [8], 3, **{"channels": 4, "key_channels": 4} | keywords)


@pytest.mark.parametrize("keywords", [{"pool": 0}, {"key_channels": 0}, {"qk_layers": 0}, {"channels": 0}])
def test_bad_values_of_sa2x(keywords):
    name, value = next(iter(keywords.items()))
    with pytest.raises(ValueError, match=f"{name} is {value}; allowed"):
        build_head("sa2x", [8], 3, **{"channels": 4, "key_channels": 4} | keywords)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"scheme": "pyramid", "attention": "sa", "pyramid": [5]}, r"pyramid has 5 x 5 tiles.*\(4, 9\).*Lower pyramid"),
        ({"scheme": "asp", "attention": "sa", "pool": 5}, r"pool is 5.*\(4, 9\).*Lower pool"),
    ],
)
def test_maps_that_are_too_small(keywords, message):
    head = build_head("ocnet", [8], 3, **{"channels": 4, "key_channels": 4} | keywords).eval()
    with pytest.raises(ValueError, match=message):
        head([torch.zeros(1, 8, 4, 9)])
