"""Padding of timm's layers while a program is traced."""

import itertools
import time

import pytest
import timm
import torch
from timm.layers import Conv2dSame

from pipelines.serving.padding import Same, traceable_padding


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (5, 3, 1), (2, 2, 1), (3, 2, 2), ((3, 5), 2, 1), (1, 2, 1)]
)
def test_remainders_pad_as_timm_does(kernel, stride, dilation):
    torch.manual_seed(0)
    layer = Conv2dSame(2, 3, kernel, stride, dilation=dilation)
    for height, width in itertools.product(range(9, 15), (9, 12)):
        x = torch.randn(1, 2, height, width)
        assert torch.equal(traced(layer)(x), layer(x))


def traced(layer):
    """What stands for a layer in the trace; itself where its kernel is smaller than its stride."""
    net = torch.nn.Sequential(layer)
    with traceable_padding(net):
        assert isinstance(net[0], Same) == (min(layer.kernel_size) >= 2)
        return net[0]


@pytest.mark.slow
def test_a_trunk_with_tensorflows_padding_is_traced_in_seconds_at_any_size():
    torch.manual_seed(0)
    net = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(0, 1, 2)).eval()
    free = torch.export.Dim.DYNAMIC
    began = time.monotonic()
    with torch.no_grad(), traceable_padding(net):
        shapes = ({2: free(min=33), 3: free(min=33)},)
        program = torch.export.export(net, (torch.zeros(1, 3, 64, 96),), dynamic_shapes=shapes).module()
    assert time.monotonic() - began < 60  # 4 s; as timm has it, 88 s with three of its four such layers
    assert sum(isinstance(m, Conv2dSame) for m in net.modules()) > 1  # as before
    for size in ((65, 98), (50, 37)):
        x = torch.randn(1, 3, *size)
        for ours, theirs in zip(program(x), net(x), strict=True):
            torch.testing.assert_close(ours, theirs)
