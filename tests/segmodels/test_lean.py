"""What is computed again for the backward pass: the same gradients, batches counted once, less that is kept."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.speed.rounds import training_passes
from segmodels.heads.attention import fused_only
from segmodels.heads.catalog import build_head
from segmodels.heads.lean import LeanConvNormReLU, recomputed, set_recompute
from segmodels.heads.object_attention import SelfAttention
from segmodels.heads.ocnet import PyramidOC
from segmodels.layers import ConvNormReLU
from segmodels.memory import peak_bytes
from segmodels.plain.pyramid import pyramid_plain


def gradients(y, leaves):
    return torch.autograd.grad(y, leaves, torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y))


def test_lean_layer_keeps_only_its_output():
    lean, full = LeanConvNormReLU(3, 4).double(), ConvNormReLU(3, 4, 1).double()
    full.load_state_dict(lean.state_dict())
    assert set_recompute(lean, True) == 1
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    kept = []
    lean[0].register_forward_hook(lambda module, given, output: kept.append(weakref.ref(output)))
    fast, slow = lean(x), full(x)
    assert kept[0]() is None
    probe = torch.randn_like(fast)
    pairs = (torch.autograd.grad(y, [x, *m.parameters()], probe) for y, m in ((fast, lean), (slow, full)))
    assert all(torch.allclose(a, b) for a, b in zip(*pairs, strict=True))
    assert lean[1].num_batches_tracked == 1
    assert torch.equal(lean[1].running_var, full[1].running_var)


def test_lean_layer_under_autocast():
    lean, full = LeanConvNormReLU(3, 4), ConvNormReLU(3, 4, 1)
    full.load_state_dict(lean.state_dict())
    set_recompute(lean, True)
    x = torch.randn(2, 3, 4, 5)
    for layer in (lean, full):
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    assert all(torch.allclose(a.grad, b.grad) for a, b in zip(lean.parameters(), full.parameters(), strict=True))


class Names(TorchDispatchMode):
    """The operations that run inside of it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name().partition(".")[0])
        return func(*args, **(kwargs or {}))

    def __init__(self):
        super().__init__()
        self.seen = []

    def count(self, name):
        return self.seen.count(name)


@pytest.mark.parametrize("training", [True, False])
def test_computed_again_is_the_same_and_counts_a_batch_once(training):
    module = ConvNormReLU(3, 4, 1).double().train(training)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    leaves = [x, *module.parameters()]
    expected = gradients(module(x), leaves)
    before = {k: v.clone() for k, v in module.named_buffers()}
    with Names() as names:
        y = recomputed(module, module, x)
        moved = {k: v.clone() for k, v in module.named_buffers()}
        found = gradients(y, leaves)
    assert all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))
    assert names.count("aten::convolution") == 2
    assert all(torch.equal(v, moved[k]) for k, v in module.named_buffers())
    assert moved["1.num_batches_tracked"] == before["1.num_batches_tracked"] + training


def test_nothing_is_computed_again_without_gradients():
    module = ConvNormReLU(3, 4, 1)
    with Names() as names, torch.no_grad():
        recomputed(module, module, torch.randn(2, 3, 4, 5))
    assert names.count("aten::convolution") == 1


@pytest.mark.parametrize("tiles", [1, 2])
def test_attention_itself_is_not_computed_again(tiles):
    unit, x = SelfAttention(6, 4, 4, 2).double(), torch.randn(2, 6, 4, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 6, 1, 1, dtype=torch.float64, requires_grad=True)
    leaves = [x, weight, *unit.parameters()]
    set_recompute(unit, True)
    with Names() as names, fused_only():
        y = unit.fused(x, weight, tiles)
        found = gradients(y, leaves)
    assert names.count("aten::_scaled_dot_product_flash_attention_for_cpu") == 1
    expected = F.conv2d(unit(x, tiles=tiles), weight)
    assert torch.allclose(y, expected)
    assert all(torch.allclose(a, b) for a, b in zip(found, gradients(expected, leaves), strict=True))


@pytest.mark.parametrize("attention", ["sa", "isa"])
@pytest.mark.parametrize("training", [True, False])
def test_pyramid_oc_in_training_is_its_form_with_all_maps_side_by_side(attention, training):
    keywords = {"channels": 4, "key_channels": 4, "scheme": "pyramid", "attention": attention, "pyramid": [1, 2]}
    context = build_head("ocnet", [6], 3, partition=[2, 2], **keywords).context.double().train(training)
    x = torch.randn(2, 4, 5, 7, dtype=torch.float64, requires_grad=True)
    leaves = [x, *context.parameters()]
    set_recompute(context, True)
    before = {k: v.clone() for k, v in context.state_dict().items()}
    y = context(x)
    moved = {k: v.clone() for k, v in context.state_dict().items()}
    found = gradients(y, leaves)
    assert all(torch.equal(v, moved[k]) for k, v in context.state_dict().items())
    context.load_state_dict(before)
    set_recompute(context, False)
    branches = [unit(x, tiles=k) for unit, k in zip(context.units, context.scales, strict=True)]
    slow = context.fuse(torch.cat([*branches, *(layers(x) for layers in context.widen)], 1))
    assert torch.allclose(y, slow)
    assert all(torch.allclose(a, b) for a, b in zip(found, gradients(slow, leaves), strict=True))
    assert all(torch.allclose(v, moved[k]) for k, v in context.state_dict().items())


def test_pyramid_oc_that_computes_again_holds_a_third_of_its_peer():
    units = [SelfAttention(16, 8, 8, 2) for _ in range(4)]
    module, x = PyramidOC(units, (1, 2, 3, 6), 16), torch.randn(2, 16, 12, 12, requires_grad=True)
    set_recompute(module, True)
    with fused_only():
        ours, plain = (
            peak_bytes(training_passes(module, form, [x]), "cpu") for form in (PyramidOC.__call__, pyramid_plain)
        )
        set_recompute(module, False)
        kept = peak_bytes(training_passes(module, PyramidOC.__call__, [x]), "cpu")
    assert 3 * ours < plain
    assert 2 * ours < kept < plain


def test_nothing_is_computed_again_unless_it_is_asked_for():
    unit, x = SelfAttention(6, 4, 4, 2), torch.randn(2, 6, 4, 4, requires_grad=True)
    counts = []
    for on in (False, True):
        assert set_recompute(unit, on) == 5  # those with norms
        with Names() as names:
            gradients(unit(x), [x, *unit.parameters()])
        counts.append(names.count("aten::convolution"))
    assert counts == [6, 11]
    assert set_recompute(ConvNormReLU(3, 4, 1), True) == 0
