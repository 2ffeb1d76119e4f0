import pytest
import torch
import torch.nn.functional as F

from segmodels.losses import Objective, cross_entropy


def test_mean_over_labelled_pixels():
    logits, mask = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5), dtype=torch.uint8)
    mask[0] = 255
    expected = F.cross_entropy(logits[1:], mask[1:].long())
    assert torch.allclose(cross_entropy(logits, mask), expected)
    assert cross_entropy(logits.bfloat16(), mask).dtype == torch.float32


def test_no_labels_give_zero_with_zero_gradient():
    logits = torch.randn(1, 3, 4, 5, requires_grad=True)
    loss = cross_entropy(logits, torch.full((1, 4, 5), 255, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_objective_weighs_and_names_its_terms():
    outputs = {name: torch.randn(1, 3, 4, 4, requires_grad=True) for name in ("logits", "aux")}
    mask = torch.randint(0, 3, (1, 4, 4), dtype=torch.uint8)
    total, parts = Objective({"logits": {"cross_entropy": 1.0}, "aux": {"cross_entropy": 0.2}})(outputs, mask)
    losses = [cross_entropy(outputs[name], mask) for name in ("logits", "aux")]
    assert torch.allclose(total, losses[0] + 0.2 * losses[1])
    assert total.requires_grad
    assert set(parts) == {"logits/cross_entropy", "aux/cross_entropy"}
    assert torch.allclose(parts["aux/cross_entropy"], losses[1])
    assert not parts["aux/cross_entropy"].requires_grad


def test_errors():
    with pytest.raises(ValueError, match=r"unknown loss term 'crossentropy'; allowed: cross_entropy. Did you mean"):
        Objective({"logits": {"crossentropy": 1.0}})
    with pytest.raises(ValueError, match="at least one term"):
        Objective({"logits": {}})
    with pytest.raises(ValueError, match="is -1"):
        Objective({"logits": {"cross_entropy": -1}})
    outputs, mask = {"logits": torch.zeros(1, 2, 1, 1)}, torch.zeros(1, 1, 1, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"output 'logit'; the model gave: logits. Did you mean 'logits'\?"):
        Objective({"logit": {"cross_entropy": 1.0}})(outputs, mask)
