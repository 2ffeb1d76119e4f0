"""OCR against loops over pixels and classes, written from its equations."""

import pytest
import torch
import torch.nn.functional as F
from naive_layers import agree, cbr, conv, relative, scramble

from segmodels.cost import conv_matmul_macs
from segmodels.heads.catalog import build_head
from segmodels.heads.maps import Maps
from segmodels.heads.ocr import ObjectContext, ocr_head
from segmodels.plain.ocr import ocr_plain
from segmodels.segmentor import classifier_keys

B, LOW, D, C, E, K, H, W = 2, 3, 6, 5, 4, 3, 5, 3


def unit():
    return scramble(ObjectContext(C, E))


def images(width, *size):
    return torch.randn(B, width, *(size or (H, W)), dtype=torch.float64, requires_grad=True)


def naive_regions(coarse):
    flat = coarse.flatten(2)
    return torch.stack([flat[:, c].exp() / flat[:, c].exp().sum(1, keepdim=True) for c in range(coarse.shape[1])], 1)


def naive(unit, x, coarse):
    regions, flat = naive_regions(coarse), x.flatten(2)
    n, classes = range(flat.shape[2]), range(coarse.shape[1])
    objects = torch.stack([sum(regions[:, c, i, None] * flat[:, :, i] for i in n) for c in classes], 2)[..., None]
    q, k, v = x, objects, cbr(unit.value, objects)
    for query, key in zip(unit.query, unit.key, strict=True):
        q, k = cbr(query, q), cbr(key, k)
    q, pixels = q.flatten(2), []
    for i in n:
        energies = torch.stack([(q[:, :, i] * k[:, :, c, 0]).sum(1) / E**0.5 for c in classes])
        weights = energies.exp() / energies.exp().sum(0)
        pixels.append(sum(weights[c][:, None] * v[:, :, c, 0] for c in classes))
    return cbr(unit.project, torch.stack(pixels, 2).unflatten(2, x.shape[2:]))


@pytest.mark.parametrize("training", [False, True])
def test_equals_the_loop_in_outputs_and_gradients(training):
    ocr, x, coarse = unit().train(training), images(C), images(K)
    assert agree(ocr(x, coarse), naive(ocr, x, coarse), [x, coarse, *ocr.parameters()])


def test_equals_the_public_form():
    ocr, x, coarse = unit().eval(), images(C), images(K)
    assert agree(ocr(x, coarse), ocr_plain(ocr, x, coarse), [x, coarse, *ocr.parameters()])
    last = x.detach().contiguous(memory_format=torch.channels_last)
    assert relative(ocr(last, coarse), ocr_plain(ocr, x, coarse)) < 1e-10


@pytest.mark.parametrize("low_size", [(H, W), (2 * H, 2 * W)])
def test_head_equals_its_equations(low_size):
    head = scramble(ocr_head([LOW, D], K, channels=C, key_channels=E, dropout=0.0)).train()
    low, high = images(LOW, *low_size), images(D)
    coarse = conv(head.coarse[1], cbr(head.coarse[0], low))
    x = cbr(head.reduce, high)
    at_x = F.interpolate(coarse, size=(H, W), mode="bilinear", align_corners=True)
    logits = conv(head.classify[1], cbr(head.fuse, torch.cat([naive(head.context, x, at_x), x], 1)))
    outputs = head([None, low, high])
    assert set(outputs) == {"logits", "coarse"}
    leaves = [low, high, *head.parameters()]  # the coarse head's too: the regions are not detached
    assert agree(outputs["logits"], logits, leaves)
    assert agree(outputs["coarse"], coarse, leaves)


def test_channels_drop_before_both_classifiers_as_in_the_public_code():
    head = ocr_head([LOW, D], K, channels=C, key_channels=E).double()
    drops = [layer.p for layer in head.modules() if isinstance(layer, torch.nn.Dropout2d)]
    assert drops == [0.05, 0.05]
    head = ocr_head([LOW, D], K, channels=C, key_channels=E, dropout=0.5).double()
    low, high = images(LOW), images(D)
    for name in ("coarse", "logits"):
        assert not torch.equal(*(head([None, low, high])[name] for _ in range(2)))
        assert torch.equal(*(head.eval()([None, low, high])[name] for _ in range(2)))
        head.train()


def test_two_classifiers_are_found():
    assert len(classifier_keys(ocr_head([LOW, D], K, channels=C, key_channels=E))) == 4


def test_map_is_the_soft_regions():
    ocr, x, coarse, maps = unit().eval(), images(C), images(K), Maps()
    assert torch.equal(ocr(x, coarse, maps), ocr(x, coarse))
    assert relative(maps["regions"].flatten(2), naive_regions(coarse)) < 1e-10
    head, maps = ocr_head([LOW, D], K, channels=C, key_channels=E).eval(), Maps()
    head([torch.randn(1, LOW, H, W), torch.randn(1, D, H, W)], maps)
    assert maps["regions"].shape == (1, K, H, W)
    assert torch.allclose(maps["regions"].sum((2, 3)), torch.ones(1, K))


def test_published_cost():
    """The published count takes the regions' logits as given."""
    with torch.device("meta"):
        head = ocr_head([1024, 2048], 21).eval()
        features = [torch.zeros(1, width, 64, 64) for width in (1024, 2048)]
        macs = conv_matmul_macs(head, features) - conv_matmul_macs(head.coarse, features[0])
    count = sum(p.numel() for name, p in head.named_parameters() if not name.startswith("coarse."))
    assert count == 10636053
    assert macs == pytest.approx(42.283e9, rel=1e-4)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"key_channels": 0}, "key_channels is 0; allowed: an integer of at least 1"),
        ({"channels": 0}, "channels is 0; allowed"),
        ({"dropout": 1.0}, "dropout is 1.0; allowed"),
        ({"key_chanels": 2}, r"unknown keyword 'key_chanels' of head 'ocr'.*'key_channels'\?"),
    ],
)
def test_bad_values(keywords, message):
    with pytest.raises(ValueError, match=message):
        build_head("ocr", [4, 8], 3, **{"channels": 4, "key_channels": 2} | keywords)


def test_one_stage_is_too_few():
    with pytest.raises(ValueError, match=r"reads two stages.*given 1.*later stage"):
        build_head("ocr", [8], 3, channels=4)
