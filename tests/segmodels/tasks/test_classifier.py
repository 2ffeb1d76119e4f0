"""Classification: costs of Table X, the loss image by image, and trunks that go on to segment."""

import math

import pytest
import torch

from segmodels.cost import conv_matmul_macs, leaf_macs
from segmodels.optim import parameter_groups
from segmodels.segmentor import build_segmentor
from segmodels.starting import start_from
from segmodels.tasks.classification import build_classifier

SMALL = "test_resnet"


def built(name=SMALL, classes=5, context=None, stride=32, **head):
    backbone = {"name": name, "output_stride": stride, "context": context}
    return build_classifier(num_classes=classes, backbone=backbone, head={"name": "classifier"} | head)


def meta(*args, **keywords):
    with torch.device("meta"):
        return built(*args, **keywords).eval()


def gate(name):
    return None if name is None else {"name": name, "place": "blocks"}


@pytest.mark.parametrize(
    ("trunk", "context", "millions", "giga", "count"),
    [
        ("resnet50", None, "25.56", 4.122, 25_557_032),
        ("resnet50", "se", "28.09", 4.130, 28_088_024),
        ("resnet50", "cbam", "28.09", 4.139, 28_089_624),
        ("resnet50", "sr", "25.64", 4.127, 25_642_120),
        ("resnet101", None, "44.55", 7.849, 44_549_160),
        ("resnet101", "se", "49.33", 7.863, 49_326_872),
        ("resnet101", "sr", "44.71", 7.858, 44_710_952),  # printed are 44.70 M: see `blocks.ReasonedGate`
    ],
)
@torch.no_grad()
def test_costs_of_srnets_table_x(trunk, context, millions, giga, count):
    """Parameters to the digit that is printed, and torchstat's count, by which the trunks' agree, within 0.5 %."""
    model, image = meta(trunk, 1000, gate(context)), torch.zeros(1, 3, 224, 224, device="meta")
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == count
    assert f"{parameters / 1e6:.2f}" == millions
    assert leaf_macs(model, image) == pytest.approx(giga * 1e9, rel=5e-3)
    assert conv_matmul_macs(model, image) == pytest.approx(giga * 1e9, rel=0.011)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_mean_of_the_images_own_and_parts_of_a_batch_add_up(smoothing):
    model = built(label_smoothing=smoothing).eval().double()
    images, target = torch.randint(0, 256, (4, 3, 40, 33)), torch.tensor([1, 4, 0, 1])
    logits = model(images)
    slow = []
    for row, label in zip(logits, target.tolist(), strict=True):
        shares = [math.exp(v) / sum(math.exp(w) for w in row.tolist()) for v in row.tolist()]
        wanted = [smoothing / 5 + (1 - smoothing) * (k == label) for k in range(5)]
        slow.append(-sum(w * math.log(s) for w, s in zip(wanted, shares, strict=True)))
    (loss,) = model(images, target).values()
    assert abs(loss.item() - sum(slow) / 4) < 1e-12
    parts = [model(images[a:b], target[a:b], images=(b - a) / 4)["cross_entropy"] for a, b in ((0, 1), (1, 4))]
    assert abs(sum(parts).item() - loss.item()) < 1e-12


def test_logits_are_of_the_pooled_map_and_flips_of_nothing_change_them():
    model, images = built().eval(), torch.randint(0, 256, (2, 3, 65, 33), dtype=torch.uint8)
    with torch.no_grad():
        features = model.backbone((images.float() - model.mean) / model.std)[-1]
        weight, bias = (model.state_dict()[f"head.1.{key}"] for key in ("weight", "bias"))
        assert torch.allclose(model(images), features.mean((2, 3)) @ weight.flatten(1).T + bias, atol=1e-5)
    assert model(images).shape == (2, 5)


def test_dropout_drops_whole_values_in_training_only():
    model = built(dropout=0.5)
    images = torch.randint(0, 256, (2, 3, 33, 33))
    model.backbone.eval()
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize(
    ("name", "stride"),
    [("df1", 32), ("df2", 32), ("wideresnet38", 8), ("hrnet_w48", 4), ("xception65", 32), ("resnet101s", 32),
     ("timm/vit_tiny_patch16_224", 32), ("timm/tf_efficientnet_lite0", 32)],
)  # fmt: skip
@torch.no_grad()
def test_every_trunk_classifies(name, stride):
    model = meta(name, 7, stride=stride)
    assert model(torch.zeros(2, 3, 224, 224, dtype=torch.uint8, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", [SMALL, "timm/test_vit"])
def test_every_parameter_learns(name):
    """Of a ViT too: a pyramid that nobody reads would have no gradients, which workers wait for in vain."""
    model = built(name, context=gate("sr") if name == SMALL else None)
    model.train()(torch.randint(0, 256, (3, 3, 64, 64)), torch.tensor([0, 1, 4]))["cross_entropy"].backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_groups_of_the_optimizer_hold_the_trunk_and_the_head():
    groups = parameter_groups(built(), lr=0.1, weight_decay=1e-4, head_lr_scale=1.0)
    assert [group["name"] for group in groups] == ["backbone", "head"]
    assert [group["lr"] for group in groups] == [0.1, 0.1]
    assert sum(p.numel() for p in groups[1]["params"]) == 5 * 96 + 5


@pytest.mark.parametrize("context", [None, gate("sr")], ids=["plain", "sr"])
def test_the_trunk_of_a_trained_classifier_goes_on_in_a_segmentor(context, tmp_path):
    source = built(context=context)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_()
    recipe = {"backbone": {"name": SMALL}, "head": {"name": "classifier"}}
    path = tmp_path / "best.pt"
    torch.save({"format": 1, "recipe": recipe, "classes": list("abcde"), "model": source.state_dict()}, path)
    backbone = {"name": SMALL, "output_stride": 8, "weights": str(path), "context": context}
    model = build_segmentor(num_classes=2, crop=(32, 32), backbone=backbone, head={"name": "fcn", "channels": 8})
    own = model.backbone.state_dict()
    assert own.keys() == source.backbone.state_dict().keys()
    assert all(torch.equal(own[key], value) for key, value in source.backbone.state_dict().items())


def test_a_classifier_starts_from_one_of_other_classes():
    source, model = built(classes=5), built(classes=3)
    content = {"model": source.state_dict(), "classes": list("abcde"), "recipe": {}, "stage": "a", "step": 4}
    taken = start_from(model, content, list("abc"))
    assert taken.missing == "2 of classifiers, which are fresh"
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in source.state_dict().items() if "head" not in k)


@pytest.mark.parametrize(
    ("backbone", "head", "message"),
    [
        ({"neck": "jpu"}, {}, "backbone.neck is 'jpu'; allowed for a classifier, which reads the last map: null"),
        ({"strid": 3}, {}, "unknown keyword 'strid' of backbone"),
        ({}, {"name": "fcn"}, "unknown head of classification 'fcn'; allowed: classifier"),
        ({}, {"smoothing": 0.1}, "unknown keyword 'smoothing' of head 'classifier'; .*Did you mean 'label_smoothing'"),
        ({}, {"dropout": 1.0}, "dropout is 1.0; allowed: from 0 to below 1"),
        ({}, {"label_smoothing": -1.0}, "label_smoothing is -1.0; allowed: from 0 to below 1"),
    ],
)
def test_bad_values(backbone, head, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_classifier(num_classes=3, backbone={"name": SMALL, "output_stride": 32} | backbone,
                         head={"name": "classifier"} | head)  # fmt: skip
