"""The attention that heads share: its two forms give the same, and each is taken where it is the faster."""

import pytest
import torch
import torch.nn.functional as F

from segmodels.heads import attention as module
from segmodels.heads.attention import FEW_KEYS, attention, explicit, fused_only


@pytest.mark.parametrize("mask", [None, torch.tensor([[True, False, True, True]])])
@pytest.mark.parametrize("columns", [False, True])
def test_both_forms_of_attention_are_the_same(columns, mask, monkeypatch):
    """With queries and keys narrower than the values, and with parts whose cells are columns of memory."""
    q, k, v = (torch.randn(2, 1, n, e, dtype=torch.float64) for n, e in ((5, 3), (4, 3), (4, 6)))
    if columns:
        q, k, v = (part.mT.contiguous().mT for part in (q, k, v))
    with fused_only():
        fused = attention(q, k, v, mask), attention(q, k, v, mask, scale=0.3)
    with torch.no_grad():
        assert torch.allclose(attention(q, k, v, mask), fused[0], rtol=0, atol=1e-12)
    assert torch.allclose(attention(q, k, v, mask, scale=1.0), attention(q.clone(), 1.0 * k, v, mask, scale=1.0))
    monkeypatch.setattr(module, "explicit", lambda *_: True)
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)
    assert torch.allclose(attention(q, k, v, mask), fused[0])
    assert torch.allclose(attention(q, k, v, mask, scale=0.3), fused[1])
    assert not attention(q, k, v, dropout=0.999).any()


def test_the_form_of_attention_is_chosen_by_device_type_and_size():
    equal = (256, 256)
    assert explicit("cuda", torch.float32, 2**28, 4096, equal)
    assert not explicit("cuda", torch.float32, 2**28 + 1, 4096, equal)
    assert not explicit("cuda", torch.bfloat16, 1, 1, equal)
    assert not explicit("cpu", torch.float32, 1, FEW_KEYS + 1, equal)
    assert not explicit("cpu", torch.bfloat16, 1, FEW_KEYS, equal)
    assert not explicit("meta", torch.float32, 1, FEW_KEYS, equal)
    assert explicit("cpu", torch.float32, 1, FEW_KEYS, equal)
    assert explicit("cpu", torch.float64, 2**28, 2304, (64, 512))  # PAM; of 128 channels it is the fused kernel
    assert not explicit("cpu", torch.float64, 2**28 + 1, 2304, (64, 512))
    assert not explicit("cpu", torch.float32, 2**25 + 1, 2304, (16, 128))
    assert explicit("cpu", torch.float32, 2**25, 2304, (16, 128))
    assert not explicit("cpu", torch.float32, 2**25, 2304, equal)
    with fused_only():
        assert not explicit("cuda", torch.float32, 1, 1, equal)


def test_a_fused_kernel_gets_one_width(monkeypatch):
    widths, attend = [], F.scaled_dot_product_attention

    def watched(*parts, **options):
        widths.append([part.shape[-1] for part in parts])
        return attend(*parts, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    q, k, v = (torch.randn(1, 1, 5, e) for e in (3, 3, 6))
    with fused_only():
        attention(q, k, v)
    assert widths == [[6, 6, 6]]
