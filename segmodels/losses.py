"""The table of loss terms, and their weighted sum over a model's outputs.

A global batch is cut into parts: over workers, and over the forward passes of one step. `Term.per` says what a term
is a mean over, so that the parts' losses, each scaled by its share, add up to the loss of the whole batch: exactly
for plain means (`Term.exact`). OHEM, Dice and Lovász select pixels or form ratios within the part at hand: their
sums over parts are means of the parts' own values, and change a little with the number of parts.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from segmodels.checks import check_keywords, choose, keywords_of, nearest
from segmodels.terms import boundary, cp, cross_entropy, dice, lovasz_softmax, ohem, se


@dataclass(frozen=True)
class Term:
    """A loss term.

    Attributes:
        function: from an output and the mask to a scalar; its keyword-only parameters are the recipe's options.
        per: what the mean is over: a part's value is scaled by its share of the batch's labelled pixels, or images.
        takes: the output's kind: a map (B, K, H, W) at the mask's size, or a vector (B, K).
        exact: whether the scaled values of parts add up to the value of the whole.
    """

    function: Callable[..., Tensor]
    per: Literal["pixels", "images"] = "pixels"
    takes: Literal["map", "vector"] = "map"
    exact: bool = True


TERMS: dict[str, Term] = {
    "cross_entropy": Term(cross_entropy),
    "ohem": Term(ohem, exact=False),
    "dice": Term(dice, exact=False),
    "lovasz_softmax": Term(lovasz_softmax, exact=False),
    "boundary": Term(boundary),
    "se": Term(se, per="images", takes="vector"),
    "cp": Term(cp, per="images", takes="vector"),
}
NDIM = {"map": 4, "vector": 2}
KINDS = {"map": "a map (B, K, H, W), such as logits", "vector": "a vector (B, K), such as presence or class_prior"}


def is_number(value: Any) -> bool:
    """An int or float that is finite; YAML reads `1e-5` as text, and true is no number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# Option or weight -> which values it takes, and in words.
LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "weight": (lambda v: is_number(v) and v >= 0, "a finite number, 0 or more"),
    "label_smoothing": (lambda v: 0 <= v < 1, "from 0 to below 1"),
    "class_weights": (
        lambda v: v is None or (isinstance(v, Sequence) and all(is_number(w) and w >= 0 for w in v) and any(v)),
        "null, or a list of K finite numbers, 0 or more, one per class, not all 0",
    ),
    "threshold": (lambda v: 0 <= v <= 1, "from 0 to 1"),
    "min_kept": (lambda v: v >= 1, "1 or more pixels"),
    "smooth": (lambda v: 0 < v < math.inf, "above 0"),
    "width": (lambda v: v >= 1, "1 or more pixels"),
    "factor": (lambda v: 0 < v < math.inf, "above 0"),
    "subtract_least": (lambda v: isinstance(v, bool), "true or false"),
}


class Objective(nn.Module):
    """The training loss: a weighted sum of terms, each on one output of the model.

    Args:
        terms: output -> term -> weight, or a mapping of the term's options and its `weight` (1 unless given), such as
            {"logits": {"ohem": {"threshold": 0.7}}, "aux": {"cross_entropy": 0.2}}.

    Raises:
        ValueError: no terms, an unknown term or option, a bad weight or value; in `forward`, an output that the model
            does not give or that is not of the term's kind.
    """

    def __init__(self, terms: Mapping[str, Mapping[str, float | Mapping[str, Any]]]) -> None:
        super().__init__()
        self.terms = {
            output: {term: read_term(term, given) for term, given in named.items()} for output, named in terms.items()
        }
        if not any(self.terms.values()):
            raise ValueError(f"loss is {dict(terms)}; allowed: output -> term -> weight, with at least one term")

    def check(self, outputs: Mapping[str, Tensor]) -> None:
        """Compare the terms with a model's outputs; tensors on the meta device will do.

        Raises:
            ValueError: an output is missing, or of the wrong kind.
        """
        for output, named in self.terms.items():
            if output not in outputs:
                raise ValueError(
                    f"the loss names output {output!r}; the model gave: {', '.join(outputs)}."
                    f"{nearest(output, outputs)} ('aux' needs an `aux:` head, and the model in training mode)"
                )
            for term in named:
                takes, shape = TERMS[term].takes, tuple(outputs[output].shape)
                if len(shape) != NDIM[takes]:
                    fits = ", ".join(name for name, other in TERMS.items() if NDIM[other.takes] == len(shape))
                    raise ValueError(
                        f"loss term {term!r} takes {KINDS[takes]}; output {output!r} has shape {shape}. "
                        f"Terms for it: {fits or 'none'}"
                    )

    def forward(
        self, outputs: Mapping[str, Tensor], mask: Tensor, pixels: Tensor | float = 1.0, images: float = 1.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum over a part of the batch.

        Args:
            outputs: of the model, by name.
            mask: class indices, uint8, (B, H, W).
            pixels: the part's share of the global batch's labelled pixels; 1 if the part is the whole batch.
            images: its share of the images. Under DDP, which averages, multiply both by the number of workers.

        Returns:
            The weighted sum, and the unweighted terms, detached, keyed `output/term`; all scaled by the shares.
        """
        self.check(outputs)
        shares = {"pixels": pixels, "images": images}
        weighted, parts = [], {}
        with torch.autocast(mask.device.type, enabled=False):
            for output, named in self.terms.items():
                for term, (weight, options) in named.items():
                    value = TERMS[term].function(outputs[output], mask, **options) * shares[TERMS[term].per]
                    weighted.append(weight * value)
                    parts[f"{output}/{term}"] = value.detach()
        return torch.stack(weighted).sum(), parts


def read_term(term: str, given: float | Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """Weight and options of a term of the recipe.

    Raises:
        ValueError: an unknown term or option, a bad weight or value.
    """
    allowed = {"weight": 1.0} | keywords_of(choose(TERMS, term, "loss term").function)
    options = dict(given) if isinstance(given, Mapping) else {"weight": given}
    holds, words = LIMITS["weight"]
    weight = options.pop("weight", 1.0)
    if not holds(weight):
        raise ValueError(f"the weight of loss term {term!r} is {weight!r}; allowed: {words}")
    check_keywords(options, allowed, f"loss term {term!r}")
    for name, value in options.items():
        holds, words = LIMITS[name]
        if not holds(value):
            raise ValueError(f"loss term {term!r}: {name} is {value!r}; allowed: {words}")
    return weight, options
