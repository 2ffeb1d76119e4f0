import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

from segmodels.losses import Objective
from segmodels.optim import Schedule, build_adamw, build_sgd, parameter_groups, rate_factor, set_lr
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
    poly = Schedule()
    assert [rate_factor(s, 10, poly) for s in range(11)] == [(1 - s / 10) ** 0.9 for s in range(11)]
    assert rate_factor(5, 10, Schedule(power=2)) == 0.25
    warm = [rate_factor(s, 100, poly, warmup=10, warmup_start=0.2) for s in range(101)]
    peak = 0.9**0.9
    assert warm[:11] == pytest.approx([0.2 + (peak - 0.2) * s / 10 for s in range(11)])
    assert warm[10:] == pytest.approx([(1 - s / 100) ** 0.9 for s in range(10, 101)])
    for bad in ({"step": 11, "steps": 10}, {"step": -1, "steps": 10}, {"step": 0, "steps": 10, "warmup": 10}):
        with pytest.raises(ValueError, match="allowed: 0 to"):
            rate_factor(**bad, schedule=poly)


@pytest.mark.parametrize(
    ("schedule", "torchs"),
    [
        (Schedule("cosine"), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20)),
        (
            Schedule("step", milestones=(0.3, 0.7), gamma=0.2),
            lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [6, 14], 0.2),
        ),
        (Schedule("poly", power=1.5), lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 20, 1.5)),
    ],
)
def test_schedules_are_pytorchs_at_every_step(schedule, torchs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torchs(optimizer)
    for step in range(20):
        assert rate_factor(step, 20, schedule) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        theirs.step()
    warm = [rate_factor(step, 20, schedule, warmup=4) for step in range(5)]
    assert warm == pytest.approx([0.1 + (schedule.at(0.2) - 0.1) * step / 4 for step in range(5)])


def test_rates_fall_from_layer_to_layer_as_timm_has_it(model):
    """A ViT in the trunk's place; position embeddings do not decay where norms do not."""
    with torch.device("meta"):
        vit = timm.create_model("vit_tiny_patch16_224", num_classes=0)
        segmentor = build_segmentor(num_classes=4, crop=(64, 64), backbone={"name": "resnet18"}, head={"name": "fcn"})
    segmentor.backbone.trunk = vit
    theirs = {}
    for group in param_groups_layer_decay(vit, 0.05, vit.no_weight_decay(), layer_decay=0.75):
        theirs |= {id(p): (0.01 * group["lr_scale"], group["weight_decay"]) for p in group["params"]}
    groups = parameter_groups(
        segmentor, lr=0.01, weight_decay=0.05, head_lr_scale=2, decay_norm_and_bias=False, layer_decay=0.75
    )
    ours = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert ours.keys() == {id(p) for p in segmentor.parameters()}
    trunk = {id(p) for p in vit.parameters()}
    assert len({rate for rate, _ in theirs.values()}) == 13  # the stem, twelve blocks, the last with the norm after it
    for key, (rate, decay) in theirs.items():
        assert ours[key] == (pytest.approx(rate), decay)
    assert {rate for key, (rate, _) in ours.items() if key not in trunk} == {0.02}
    with pytest.raises(ValueError, match=r"layer_decay is 0\.75, but timm does not say .* resnet18 has; allowed .* 1"):
        parameter_groups(model, lr=0.01, weight_decay=0.05, layer_decay=0.75)


def test_adamw_is_fused_and_follows_the_formula(model):
    """Loshchilov and Hutter: the decay is none of the gradient's, and is in units of the rate."""
    optimizer = build_adamw(parameter_groups(model, lr=0.01, weight_decay=0.5), (0.8, 0.9), 1e-6)
    assert optimizer.defaults["fused"]
    weight = model.head.classify[1].weight
    kept = weight.detach().clone()
    expected, first, second = kept.double(), 0, 0
    for step, (factor, gradient) in enumerate([(1.0, 0.3), (0.5, -0.2), (0.25, 0.1)], 1):
        set_lr(optimizer, factor)
        weight.grad = torch.full_like(weight, gradient)
        first, second = 0.8 * first + 0.2 * gradient, 0.9 * second + 0.1 * gradient**2
        move = first / (1 - 0.8**step) / ((second / (1 - 0.9**step)) ** 0.5 + 1e-6)
        expected = expected - 0.1 * factor * (move + 0.5 * expected)  # the head's rate is 10 x 0.01
        optimizer.step()
    assert torch.allclose(weight.double(), expected, atol=1e-6)
    with torch.no_grad():
        weight.copy_(kept)
    weight.grad = None


def test_a_small_net_learns_under_adamw_and_cosine():
    torch.manual_seed(0)
    net = build_segmentor(
        num_classes=2, crop=(32, 32), backbone={"name": "test_resnet", "output_stride": 8},
        head={"name": "fcn", "channels": 8},
    ).train()  # fmt: skip
    optimizer = build_adamw(parameter_groups(net, lr=6e-3, weight_decay=0.01, head_lr_scale=1), (0.9, 0.999), 1e-8)
    image = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    mask = torch.zeros(4, 32, 32, dtype=torch.uint8)
    mask[:, :, 16:] = 1
    image[..., 16:] //= 4  # one class is darker
    objective, losses = Objective({"logits": {"cross_entropy": 1.0}}), []
    for step in range(25):
        set_lr(optimizer, rate_factor(step, 25, Schedule("cosine")))
        optimizer.zero_grad()
        loss = objective(net(image), mask)[0]
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


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
