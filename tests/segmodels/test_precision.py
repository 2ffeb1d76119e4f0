"""What computes in which precision."""

import copy

import pytest
import torch
from torch import nn

from segmodels.precision import autocast, spare_grouped

CPU = torch.device("cpu")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 2, 1))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_grouped_convolutions_stay_in_float32_on_a_cpu(precision):
    model = net()
    names = list(model.state_dict())
    spare_grouped(model, CPU, precision)
    spare_grouped(model, CPU, precision)
    seen = []
    for layer in model:
        layer.register_forward_hook(lambda _layer, _inputs, result: seen.append(result.dtype))
    with autocast(CPU, precision):
        model(torch.randn(2, 4, 8, 8))
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert seen == [half, torch.float32, half]
    assert list(model.state_dict()) == names


def test_a_copy_of_a_spared_model_has_weights_of_its_own():
    model, x = net(), torch.randn(2, 4, 8, 8)
    spare_grouped(model, CPU, "bf16")
    twin, before = copy.deepcopy(model), model(x)
    with torch.no_grad():
        twin[1].weight.zero_()
    assert torch.equal(model(x), before)
    assert not torch.equal(twin(x), before)


@pytest.mark.parametrize(("device", "precision"), [("cpu", "fp32"), ("cuda", "bf16")])
def test_elsewhere_nothing_changes(device, precision):
    model = net()
    spare_grouped(model, torch.device(device), precision)
    assert [type(layer) for layer in model] == [nn.Conv2d] * 3
