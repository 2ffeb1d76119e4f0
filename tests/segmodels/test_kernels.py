"""Which kernels a GPU computes with is stated, and follows a measurement."""

import pytest
import torch

from segmodels import kernels
from segmodels.kernels import keeps_cudnn, settle_kernels


@pytest.fixture(autouse=True)
def _as_before():
    before = torch.get_float32_matmul_precision(), torch.backends.cuda.cudnn_sdp_enabled()
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cuda.enable_cudnn_sdp(before[1])


@pytest.mark.parametrize(
    ("times", "kept"),
    [
        ({"cuDNN": 1.0, "flash": 1.0}, False),  # equal: a plan for each size of a map is not worth it
        ({"cuDNN": 0.8, "flash": 1.0, "memory-efficient": 0.7}, False),
        ({"cuDNN": 0.8, "flash": 1.0, "memory-efficient": 2.0}, True),
        ({"cuDNN": 5.0}, True),
        ({"flash": 1.0}, False),
        ({}, False),
    ],
)
def test_cudnns_attention_is_kept_only_where_it_is_faster(times, kept, monkeypatch):
    assert keeps_cudnn(times) is kept
    monkeypatch.setattr(kernels, "attention_times", lambda device, dtype: times)
    torch.backends.cuda.enable_cudnn_sdp(not kept)
    words = settle_kernels(torch.device("cuda"), "bf16")
    assert torch.backends.cuda.cudnn_sdp_enabled() is kept
    assert ("with cuDNN" in words) is kept
    assert all(name in words for name in times)


def test_float32_products_are_stated_and_nothing_is_timed_for_them(monkeypatch):
    monkeypatch.setattr(kernels, "attention_times", lambda device, dtype: 1 / 0)
    assert settle_kernels(torch.device("cuda"), "fp32") == "float32 products and convolutions in TF32"
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cudnn.allow_tf32


def test_a_cpu_stays_as_it_is():
    assert settle_kernels(torch.device("cpu"), "fp32") == ""
    assert torch.get_float32_matmul_precision() == "highest"
