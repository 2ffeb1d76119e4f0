"""A training step without a GPU: by hand on small models, and against what CUDA's allocator counted on large ones."""

import csv
from pathlib import Path

import pytest
import torch
from torch import nn

from segmodels.gpus import COPIES, GPUS, PRODUCTS, gpu_named, known_gpu
from segmodels.heads.catalog import HEADS
from segmodels.heads.interlaced import InterlacedAttention
from segmodels.heads.lean import set_recompute
from segmodels.heads.object_attention import SelfAttention
from segmodels.heads.ocnet import PyramidOC
from segmodels.losses import Objective
from segmodels.segmentor import build_segmentor
from segmodels.step_cost import step_cost

GIB = 2**30
ENTROPY = Objective({"logits": {"cross_entropy": 1.0}})


def rows(path):
    """The rows of a table of facts, without its comments."""
    with path.open() as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


TABLE = {(row["head"], row["trunk"]): row for row in rows(Path(__file__).parent / "gpu_heads.csv")}


class Pixels(nn.Module):
    """An image through a module to logits."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, image):
        return {"logits": self.layers(image.float()).float()}


def test_flops_state_and_bytes_of_a_convolution_by_hand():
    model = Pixels(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 4, 1, groups=2, bias=False))
    cost = step_cost(model, ENTROPY, (16, 32), 2, precision="fp32")
    pixels, parameters = 2 * 16 * 32, 3 * 8 * 9 + 4 * 4
    first, second = 2 * pixels * 8 * 27, 2 * pixels * 4 * 4
    assert cost.flops == 2 * first + 3 * second  # the image wants no gradient
    assert cost.state == 8 * parameters
    assert cost.updated == 20 * parameters  # reads weight, gradient, momentum; writes weight, momentum
    weights = 4 * 3 * 8 * 9
    assert (first, 4 * pixels * 3 + weights + 4 * pixels * 8) in cost.operators
    assert model.layers[0].weight.grad is None


def test_what_stays_is_counted_for_averages_buckets_and_parts():
    model = Pixels(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    size = {name: step_cost(model, ENTROPY, (8, 8), 2, **options) for name, options in {
        "plain": {}, "average": {"average": True}, "buckets": {"world": 4}, "parts": {"passes": 4},
        "adamw": {"states": 2},
    }.items()}  # fmt: skip
    parameters, buffers = 3 * 4 + 4 + 8, 4 * 8 + 8
    assert size["plain"].state == 8 * parameters + buffers
    assert size["adamw"].state == 12 * parameters + buffers
    assert size["adamw"].updated == 28 * parameters
    assert size["average"].state == 12 * parameters + 2 * buffers
    assert size["buckets"].state == size["parts"].state == 12 * parameters + buffers
    assert size["parts"].flops == 4 * size["plain"].flops
    assert size["parts"].activations == size["plain"].activations


def test_half_precision_holds_half_of_the_maps():
    layers = [layer for _ in range(6) for layer in (nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))]
    model = Pixels(nn.Conv2d(3, 16, 1), *layers, nn.Conv2d(16, 2, 1))
    whole, half = (step_cost(model, ENTROPY, (64, 64), 2, precision=p).activations for p in ("fp32", "bf16"))
    assert 0.5 < half / whole < 0.6


def test_fused_attention_holds_no_weights_and_its_products_count():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.q = nn.Conv2d(3, 8, 1)
            self.v = nn.Conv2d(3, 16, 1)

        def forward(self, image):
            q, v = (conv(image.float()).flatten(2).mT for conv in (self.q, self.v))
            out = nn.functional.scaled_dot_product_attention(q, q, v)
            return {"logits": out.mT.unflatten(2, image.shape[2:]).float()}

    cost = step_cost(Attends(), ENTROPY, (32, 32), 2)
    cells = 32 * 32
    assert cost.activations < 2 * cells * cells
    assert max(flops for flops, _ in cost.operators) >= 2 * 2 * cells * cells * (8 + 16)


def test_what_is_computed_again_is_done_twice_and_not_held():
    model = Pixels(nn.Conv2d(3, 16, 1), SelfAttention(16, 8, 8, 2), nn.Conv2d(16, 2, 1))
    kept = step_cost(model, ENTROPY, (32, 32), 2)
    set_recompute(model, True)
    again = step_cost(model, ENTROPY, (32, 32), 2)
    assert again.activations < kept.activations
    norms = 2 * 2 * 32 * 32 * (2 * 16 * 8 + 2 * 8 * 8 + 8 * 16)  # the five convolutions before norms
    assert again.flops - kept.flops == norms


def test_attention_that_is_computed_again_is_counted_as_the_same_kernel():
    units = [InterlacedAttention(16, 8, 8, 1, (2, 2)) for _ in range(2)]
    model = Pixels(nn.Conv2d(3, 16, 1), PyramidOC(units, (1, 2), 16), nn.Conv2d(16, 2, 1))
    kept = step_cost(model, ENTROPY, (32, 32), 2)
    set_recompute(model, True)
    assert step_cost(model, ENTROPY, (32, 32), 2).activations < kept.activations


def test_a_single_image_is_counted_where_norms_see_those_of_other_workers():
    model = Pixels(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Upsample((8, 8)))
    assert step_cost(model, ENTROPY, (8, 8), 1, world=2).activations > 0
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        step_cost(model, ENTROPY, (8, 8), 1)


def test_a_roofline_is_the_larger_of_products_and_bytes():
    gpu = GPUS["H200"]
    assert gpu.seconds(989e12, 0, "bf16") == pytest.approx(1 / PRODUCTS)
    assert gpu.seconds(0, 4.8e12, "bf16") == pytest.approx(1 / COPIES)
    assert gpu.seconds(494e12, 1, "fp32") == pytest.approx(1 / PRODUCTS)
    # the rates by which the tables of facts were made
    assert PRODUCTS * gpu.tflops == pytest.approx(790, rel=0.01)
    assert COPIES * gpu.bandwidth_tb == pytest.approx(4.3, rel=0.01)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NVIDIA H200", "H200"), ("NVIDIA A100-SXM4-80GB", "A100-80GB"), ("NVIDIA A100-PCIE-40GB", "A100-40GB"),
        ("A100-80G", "A100-80GB"), ("Tesla T4", "T4"), ("NVIDIA L40S", "L40S"), ("NVIDIA L4", "L4"), ("h100", "H100"),
        ("NVIDIA A10", "A10"), ("NVIDIA A10G", None), ("NVIDIA GeForce RTX 4090", None), ("", None),
    ],
)  # fmt: skip
def test_gpus_by_the_names_of_their_drivers(name, found):
    gpu = known_gpu(name)
    assert (gpu.name if gpu else None) == found


def test_an_unknown_gpu_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match=r"'H20' is not in the table; allowed: T4.*Did you mean 'H200'"):
        gpu_named("H20")


# ---- against what CUDA's allocator counted


def segmentor(head, trunk):
    """As the table's: an auxiliary FCN, a term for each output; what can be computed again was, when it was made."""
    aux = None if head == "ocr" else {"name": "fcn", "stage": 3}
    with torch.device("meta"):
        model = build_segmentor(
            num_classes=21, crop=(512, 512), head={"name": head}, aux=aux,
            backbone={"name": trunk, "output_stride": 8, "weights": None},
        )  # fmt: skip
        outputs = model.train()(torch.zeros(2, 3, 512, 512, dtype=torch.uint8))
    set_recompute(model, True)
    return model, {name: {"cross_entropy" if x.ndim == 4 else "se": 1.0} for name, x in outputs.items()}


def compare(head, trunk):
    """A head's step against the table's, within 10 %."""
    model, loss = segmentor(head, trunk)
    cost, fact = step_cost(model, Objective(loss), (512, 512), 16), TABLE[head, trunk]
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(float(fact["parameters_M"]), rel=0.01)
    # the table's version copied the logits once more, to another layout; now they are laid out while they are small
    copied = 16 * 21 * 512 * 512 * 4 / GIB
    assert cost.peak / GIB + copied == pytest.approx(float(fact["peak_gib"]), rel=0.1)
    if head != "dmnet":  # of whose convolution the table's counter overstates the gradient
        assert cost.flops / 1e12 == pytest.approx(float(fact["tflop"]), rel=0.1)
        assert 1e3 * cost.roofline(GPUS["H200"]) == pytest.approx(float(fact["roofline_ms"]), rel=0.1)


def test_a_heads_step_is_as_cudas_allocator_counted_it():
    compare("danet", "resnet50s")


@pytest.mark.long
@pytest.mark.parametrize("trunk", ["resnet50s", "resnet101s"])
@pytest.mark.parametrize("head", HEADS)
def test_steps_of_all_heads_are_as_cudas_allocator_counted_them(head, trunk):
    compare(head, trunk)
