"""Loss terms, and their weighted sum over a model's outputs."""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmodels.checks import choose, nearest

IGNORE = 255  # the mask's value for pixels without a label


def cross_entropy(logits: Tensor, mask: Tensor, *, ignore: int = IGNORE) -> Tensor:
    """Mean cross entropy over the labelled pixels, in float32; 0, with zero gradient, when there are none.

    Args:
        logits: (B, K, H, W).
        mask: class indices, uint8, (B, H, W).
        ignore: the mask's value for pixels without a label.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Summed outside: PyTorch's own mean is 0/0 without labels, and on CUDA not deterministic.
    loss = F.cross_entropy(logits, mask.long(), ignore_index=ignore, reduction="none")
    return loss.sum() / (mask != ignore).sum().clamp(min=1)


TERMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross_entropy": cross_entropy}


class Objective(nn.Module):
    """The training loss: a weighted sum of terms, each on one output of the model.

    Args:
        terms: output -> term -> weight, such as {"logits": {"cross_entropy": 1.0}, "aux": {"cross_entropy": 0.2}}.

    Raises:
        ValueError: no terms, an unknown term or a bad weight; in `forward`, an output that the model does not give.
    """

    def __init__(self, terms: Mapping[str, Mapping[str, float]]) -> None:
        super().__init__()
        self.terms = {output: dict(weights) for output, weights in terms.items()}
        pairs = [(term, weight) for weights in self.terms.values() for term, weight in weights.items()]
        if not pairs:
            raise ValueError(f"loss is {dict(terms)}; allowed: output -> term -> weight, with at least one term")
        for term, weight in pairs:
            choose(TERMS, term, "loss term")
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"the weight of loss term {term!r} is {weight}; allowed: finite, 0 or more")

    def forward(self, outputs: Mapping[str, Tensor], mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted sum, and the unweighted terms, detached, keyed `output/term`."""
        weighted, parts = [], {}
        for output, weights in self.terms.items():
            if output not in outputs:
                raise ValueError(
                    f"the loss names output {output!r}; the model gave: {', '.join(outputs)}."
                    f"{nearest(output, outputs)} ('aux' needs an `aux:` head, and the model in training mode)"
                )
            for term, weight in weights.items():
                value = TERMS[term](outputs[output], mask)
                weighted.append(weight * value)
                parts[f"{output}/{term}"] = value.detach()
        return torch.stack(weighted).sum(), parts
