"""The contract of every head in the table, inside a segmentor with an auxiliary head."""

import copy

import pytest
import torch

from segmodels.heads.catalog import HEADS
from segmodels.losses import Objective
from segmodels.segmentor import build_segmentor, classifier_keys

K, CROP = 5, (64, 96)


def build(name, classes=K):
    """A small segmentor. timm starts the last norm of every block at 0, which would hide the block from the tests."""
    torch.manual_seed(0)
    model = build_segmentor(
        num_classes=classes,
        crop=CROP,
        backbone={"name": "resnet18", "output_stride": 16},
        head={"name": name, "channels": 16} | ({"rank": 4} if name == "reconet" else {}),
        aux={"name": "fcn", "channels": 8},
    )
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and not module.weight.any():
            torch.nn.init.ones_(module.weight)
    return model


def images(batch):
    return torch.randint(0, 256, (batch, 3, *CROP), dtype=torch.uint8)


every_head = pytest.mark.parametrize("name", HEADS)


@every_head
def test_every_parameter_gets_a_finite_gradient(name):
    model = build(name).train()
    outputs = model(images(4))
    assert {key: tuple(v.shape) for key, v in outputs.items()} == dict.fromkeys(("logits", "aux"), (4, K, *CROP))
    objective = Objective({"logits": {"cross_entropy": 1.0}, "aux": {"cross_entropy": 0.2}})
    objective(outputs, torch.randint(0, K, (4, *CROP), dtype=torch.uint8))[0].backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@every_head
def test_state_dict_round_trip(name):
    first, second, image = build(name).eval(), build(name).eval(), images(1)
    for parameter in second.parameters():
        torch.nn.init.zeros_(parameter)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(image)["logits"], second(image)["logits"])
    assert set(first(image)) == {"logits"}  # the auxiliary head rests in evaluation


@every_head
def test_memory_format_and_precision_hardly_matter(name):
    model, image = build(name).eval(), images(2)
    logits = model(image)["logits"]
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert torch.allclose(last(image.to(memory_format=torch.channels_last))["logits"], logits, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(image)["logits"]
    assert half.dtype == torch.float32
    assert (half - logits).norm() < 0.05 * logits.norm()


@every_head
def test_one_image_equals_its_place_in_a_batch(name):
    model, image = build(name).eval(), images(3)
    assert torch.allclose(model(image[1:2])["logits"], model(image)["logits"][1:2], atol=1e-5)
    assert torch.allclose(model(image.float())["logits"], model(image)["logits"])


@every_head
def test_export_with_a_free_batch(name):
    model = build(name).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images(2),), dynamic_shapes=({0: batch},))
    image = images(3)
    assert torch.allclose(program.module()(image)["logits"], model(image)["logits"], atol=1e-5)


@every_head
def test_crop_without_labels_gives_zero_loss_and_no_nan(name):
    model = build(name).train()
    objective = Objective({"logits": {"cross_entropy": 1.0}, "aux": {"cross_entropy": 0.2}})
    total, _ = objective(model(images(2)), torch.full((2, *CROP), 255, dtype=torch.uint8))
    total.backward()
    assert total.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@every_head
def test_classifiers_are_found(name):
    model = build(name)
    keys = classifier_keys(model)
    assert len(keys) == 4  # weight and bias of the head and of the auxiliary head
    assert all(model.state_dict()[key].shape[0] == K for key in keys)
    other = build(name, K + 1)
    changed = {k for k, v in model.state_dict().items() if v.shape != other.state_dict()[k].shape}
    assert changed == set(keys)
