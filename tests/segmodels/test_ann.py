"""ANN against loops over pixels and pooling bins, written from its equations."""

import pytest
import torch
from naive_layers import agree, cbr, conv, norm, relative, scramble

from segmodels.heads.ann import AsymmetricBlock, ann_head
from segmodels.heads.catalog import build_head
from segmodels.plain.ann import ann_plain

B, LOW, C, E, V, H, W = 2, 3, 6, 4, 5, 5, 3
SIZES = (1, 2, 3)


def unit(shared, rectify=True, out=C):
    low = C if shared else LOW
    made = AsymmetricBlock(low, C, out, E, V, SIZES, shared=shared, rectify=rectify, dropout=0.0)
    return scramble(made)


def images(*size):
    return torch.randn(size or (B, C, H, W), dtype=torch.float64, requires_grad=True)


def sample(x):
    """Averages over adaptive bins, from floor(i·H/s) to ceil((i + 1)·H/s): (B, C, H, W) -> list of (B, C)."""
    h, w = x.shape[2:]
    return [
        x[:, :, i * h // s : -(-(i + 1) * h // s), j * w // s : -(-(j + 1) * w // s)].mean((2, 3))
        for s in SIZES
        for i in range(s)
        for j in range(s)
    ]


def naive_context(unit, high, low):
    q = cbr(unit.query, high)
    k = sample(q if unit.key is None else cbr(unit.key, low))
    v = sample(conv(unit.value, low))
    pixels = []
    for i in range(high.shape[2]):
        for j in range(high.shape[3]):
            energies = torch.stack([(q[:, :, i, j] * key).sum(1) / E**0.5 for key in k])
            weights = energies.exp() / energies.exp().sum(0)
            pixels.append(sum(weight[:, None] * value for weight, value in zip(weights, v, strict=True)))
    return conv(unit.project, torch.stack(pixels, 2).unflatten(2, high.shape[2:]))


def naive(unit, high, low):
    y = norm(unit.fuse[1], conv(unit.fuse[0], torch.cat([naive_context(unit, high, low), high], 1)))
    return y.clamp(min=0) if len(unit.fuse) == 4 else y


@pytest.mark.parametrize("size", [(B, C, H, W), (1, C, 2, 7)])
def test_apnb_equals_the_loop_in_outputs_and_gradients(size):
    apnb, x = unit(shared=True), images(*size)
    assert agree(apnb(x), naive(apnb, x, x), [x, *apnb.parameters()])


def test_without_its_fusion_the_context_is_added():
    made = AsymmetricBlock(C, C, C, E, V, SIZES, shared=True, rectify=True, fuse=False, dropout=0.5)
    apnb, x = scramble(made), images()
    assert agree(apnb(x), naive_context(apnb, x, x) + x, [x, *apnb.parameters()])
    assert agree(apnb(x), ann_plain(apnb, x), [x, *apnb.parameters()])


@pytest.mark.parametrize("low_size", [(H, W), (2 * H, 2 * W)])
@pytest.mark.parametrize("training", [False, True])
def test_afnb_equals_the_loop_in_outputs_and_gradients(low_size, training):
    afnb, high, low = unit(shared=False, rectify=False).train(training), images(), images(B, LOW, *low_size)
    assert agree(afnb(high, low), naive(afnb, high, low), [high, low, *afnb.parameters()])


def test_equals_the_public_form():
    apnb, x = unit(shared=True), images()
    assert agree(apnb(x), ann_plain(apnb, x), [x, *apnb.parameters()])
    last = x.detach().contiguous(memory_format=torch.channels_last)
    assert relative(apnb(last), ann_plain(apnb, x)) < 1e-10


@pytest.mark.parametrize("switches", [{}, {"afnb": False}, {"apnb": False}])
def test_head_equals_its_equations(switches):
    keywords = {"channels": C, "key_channels": E, "value_channels": V, "sizes": SIZES, "dropout": 0.0}
    head = scramble(ann_head([LOW, 7], 5, **keywords, **switches)).train()
    low, high = images(B, LOW, H, W), images(B, 7, H, W)
    x = high if head.afnb is None else naive(head.afnb, high, low)
    x = cbr(head.reduce, x)
    x = x if head.apnb is None else naive(head.apnb, x, x)
    leaves = [high, *([] if head.afnb is None else [low]), *head.parameters()]
    assert agree(head([low, high])["logits"], conv(head.classify, x), leaves)
    assert (head.afnb is None, head.apnb is None) == ("afnb" in switches, "apnb" in switches)


def test_context_starts_at_zero():
    head = ann_head([8, 16], 5, channels=C, key_channels=E)
    for made, width in ((head.afnb, 16), (head.apnb, C)):
        x = torch.randn(2, width, H, W)
        assert not made.context(x, x if made.key is None else torch.randn(2, 8, H, W)).any()


def test_layers_share_and_rectify_as_published():
    head = ann_head([8, 16], 5, channels=C, key_channels=E)
    assert (head.afnb.key is None, head.apnb.key is None) == (False, True)
    x = torch.randn(2, 16, H, W)
    assert (head.afnb.eval()(x, torch.randn(2, 8, H, W)) < 0).any()
    assert (head.apnb.eval()(torch.randn(2, C, H, W)) >= 0).all()


def test_published_cost(golden):
    apnb = lambda: AsymmetricBlock(512, 512, 512, 256, 256, (1, 3, 6, 8), shared=True, rectify=True, dropout=0)  # noqa: E731

    def without_fusion():
        made = apnb()
        made.fuse = torch.nn.Identity()
        return made

    golden(without_fusion, 394752, 1.8413, (1, 512, 64, 64))
    golden(lambda: ann_head([1024, 2048], 21), 20341525, 83.720, (1, 1024, 64, 64), (1, 2048, 64, 64), as_list=True)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"sizes": ()}, r"sizes is \(\); allowed: one or more"),
        ({"sizes": (1, 0)}, "sizes is 0; allowed: an integer of at least 1"),
        ({"key_channels": 0}, "key_channels is 0; allowed"),
        ({"value_channels": 0}, "value_channels is 0; allowed"),
        ({"channels": 0}, "channels is 0; allowed"),
        ({"afnb": 1}, "afnb is 1; allowed: bool"),
        ({"dropout": 1.0}, "dropout is 1.0; allowed"),
    ],
)
def test_bad_values(keywords, message):
    with pytest.raises(ValueError, match=message):
        build_head("ann", [4, 8], 3, **{"channels": 4} | keywords)


def test_one_stage_is_too_few_for_afnb():
    with pytest.raises(ValueError, match=r"two stages.*set afnb: false"):
        build_head("ann", [8], 3, channels=4)
    assert build_head("ann", [8], 3, channels=4, afnb=False, sizes=[1, 2]).apnb.sizes == (1, 2)
