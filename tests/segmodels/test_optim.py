import pytest
import torch

from segmodels.optim import build_sgd, parameter_groups, poly, set_lr
from segmodels.segmentor import build_segmentor


@pytest.fixture(scope="module")
def model():
    return build_segmentor(
        num_classes=4,
        crop=(64, 64),
        backbone={"name": "resnet18"},
        head={"name": "reconet", "channels": 8, "rank": 2},
        aux={"name": "fcn", "channels": 8},
    )


@pytest.mark.parametrize("everything_decays", [True, False])
def test_groups_part_the_parameters(model, everything_decays):
    groups = parameter_groups(model, lr=0.01, weight_decay=1e-4, decay_norm_and_bias=everything_decays)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters()}
    trunk = {id(p) for p in model.backbone.parameters()}
    for group in groups:
        in_trunk = {id(p) in trunk for p in group["params"]}
        assert in_trunk == {group["name"].startswith("backbone")}
        assert group["lr"] == group["initial_lr"] == pytest.approx(0.01 if in_trunk == {True} else 0.1)
        if not everything_decays:
            assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] > 0}
    assert len(groups) == (2 if everything_decays else 4)


def test_poly_with_and_without_warmup():
    assert [poly(s, 10) for s in range(11)] == pytest.approx([(1 - s / 10) ** 0.9 for s in range(11)])
    assert poly(5, 10, power=2) == 0.25
    warm = [poly(s, 100, warmup=10, warmup_start=0.2) for s in range(101)]
    peak = 0.9**0.9
    assert warm[:11] == pytest.approx([0.2 + (peak - 0.2) * s / 10 for s in range(11)])
    assert warm[10:] == pytest.approx([(1 - s / 100) ** 0.9 for s in range(10, 101)])
    for bad in ({"step": 11, "steps": 10}, {"step": -1, "steps": 10}, {"step": 0, "steps": 10, "warmup": 10}):
        with pytest.raises(ValueError, match="allowed: 0 to"):
            poly(**bad)


def test_sgd_is_fused_and_follows_the_formula(model):
    optimizer = build_sgd(parameter_groups(model, lr=0.1, weight_decay=0.5), momentum=0.9)
    assert optimizer.defaults["fused"]
    weight = model.head.classify[1].weight
    expected, velocity = weight.detach().clone(), 0
    for factor in (1.0, 0.5):
        set_lr(optimizer, factor)
        weight.grad = torch.ones_like(weight)
        velocity = 0.9 * velocity + 1 + 0.5 * expected
        expected = expected - 1.0 * factor * velocity  # the head's rate is 10 x 0.1
        optimizer.step()
    assert torch.allclose(weight, expected, atol=1e-6)
    assert {g["lr"] for g in optimizer.param_groups} == {0.05, 0.5}


def test_sgd_on_the_meta_device_is_not_fused():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2, device="meta"))], "lr": 0.1}]
    assert not build_sgd(groups, momentum=0.9, nesterov=True).defaults["fused"]
