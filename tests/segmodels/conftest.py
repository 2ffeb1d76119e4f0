import pytest
import torch

from segmodels.cost import conv_matmul_macs


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def golden():
    """Compare a module's parameters (exact) and MACs (0.1 %, in G) on inputs of the given shapes, on the meta device.

    `build` is called without arguments; a unit takes one tensor, a head a list of all (`as_list`).
    """

    def compare(build, count, giga, *shapes, as_list=False):
        with torch.device("meta"), torch.no_grad():
            module = build().eval()
            inputs = [torch.zeros(shape) for shape in shapes]
            assert sum(p.numel() for p in module.parameters()) == count
            macs = conv_matmul_macs(module, inputs if as_list else inputs[0])
        assert macs == pytest.approx(giga * 1e9, rel=1e-3, abs=5e4)

    return compare
