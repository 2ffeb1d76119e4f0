"""The attention that heads share: its two forms give the same, and each is taken where it is the faster."""

import pytest
import torch
import torch.nn.functional as F

from segmodels.heads import attention as module
from segmodels.heads.attention import attention, explicit


@pytest.mark.parametrize("mask", [None, torch.tensor([[True, False, True, True]])])
def test_explicit_attention_on_a_gpu_in_float32_is_the_fused_one(mask, monkeypatch):
    q, k, v = (torch.randn(2, 1, n, e, dtype=torch.float64) for n, e in ((5, 3), (4, 3), (4, 6)))
    fused = attention(q, k, v, mask), attention(q, k, v, mask, scale=0.3)
    monkeypatch.setattr(module, "explicit", lambda *_: True)
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)
    assert torch.allclose(attention(q, k, v, mask), fused[0])
    assert torch.allclose(attention(q, k, v, mask, scale=0.3), fused[1])
    assert not attention(q, k, v, dropout=0.999).any()


def test_the_form_of_attention_is_chosen_by_device_type_and_size():
    assert explicit("cuda", torch.float32, 2**28)
    assert not explicit("cuda", torch.float32, 2**28 + 1)
    assert not explicit("cuda", torch.bfloat16, 1)
    assert not explicit("cpu", torch.float32, 1)
