"""Resizing against PyTorch's own: the same values, and gradients that are equal within rounding."""

import ast
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import segmodels
from segmodels.segmentor import upsample
from segmodels.upsampling import Bilinear, bilinear

SIZES = [((5, 7), (33, 49)), ((5, 7), (40, 56)), ((9, 8), (4, 3)), ((1, 4), (6, 1)), ((6, 5), (6, 5))]


def both(cells, pixels, align_corners, dtype):
    """Values and gradients of PyTorch's operation and of ours, for one random gradient of the result."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, *cells, dtype=dtype, requires_grad=True)
    y = torch.randn(2, 3, *pixels, dtype=dtype)
    theirs = F.interpolate(x, size=pixels, mode="bilinear", align_corners=align_corners)
    ours = Bilinear.apply(x, pixels, align_corners)
    return theirs, ours, *(torch.autograd.grad(out, x, y)[0] for out in (theirs, ours))


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("cells", "pixels"), SIZES)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_products_give_pytorchs_gradient(cells, pixels, align_corners, dtype, error):
    theirs, ours, expected, gradient = both(cells, pixels, align_corners, dtype)
    assert torch.equal(ours, theirs)
    assert gradient.dtype == dtype
    assert (gradient - expected).abs().max() <= error * max(1, expected.abs().max())


def test_gradcheck():
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: Bilinear.apply(x, (7, 5), True), (x,))


def test_on_a_cpu_it_is_pytorchs_own():
    """Whose products were measured, see RESULTS.md; and the numbers of runs that were made do not move."""
    x = torch.randn(1, 2, 3, 4, requires_grad=True)
    assert type(bilinear(x, (6, 8)).grad_fn).__name__ == "UpsampleBilinear2DBackward0"
    assert type(upsample(x, torch.empty(1, 3, 24, 32)).grad_fn).__name__ == "UpsampleBilinear2DBackward0"


def test_nobody_else_resizes_bilinearly():
    files = Path(segmodels.__file__).parent.rglob("*.py")
    named = {
        path.name
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.keyword) and node.arg == "mode" and getattr(node.value, "value", "") == "bilinear"
    }
    assert named == {"upsampling.py"}
