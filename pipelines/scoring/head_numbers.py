"""Numbers that the papers argue with: presence of classes, relation on the own class, rank of an attention tensor.

Each class adds images up and gives a table at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.sample import IGNORE
from pipelines.scoring.explaining import FIELDS, of_labelled
from segmodels.heads.maps import Maps

AT_LEAST = {"sigmoid": 0.5, "share": 0.01}
"""Kind of presence -> from which value on a class is predicted present: a probability; a share of the pixels."""
RANK_AT = 0.01  # a singular value counts from this share of the largest on
AXES = ("c", "h", "w")


class Presence:
    """Which classes an image holds, as predicted and as labelled.

    A class is present if any labelled pixel has it, and predicted present from `AT_LEAST` on. Precision and recall are
    NaN where a class is never predicted, or never there; average precision does not depend on the threshold. `error`
    of predicted shares is the mean of |predicted − true share|, over images and classes.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.predicted: list[np.ndarray] = []
        self.shares: list[np.ndarray] = []

    def add(self, presence: Tensor, mask: Tensor) -> None:
        """Add images: presence (B, K), mask (B, h, w); one without a label is left out."""
        for values, labels in zip(presence.cpu().numpy(), mask.cpu().numpy(), strict=True):
            counts = np.bincount(labels[labels != IGNORE].ravel(), minlength=len(values))
            if counts.sum():
                self.predicted.append(values)
                self.shares.append(counts / counts.sum())

    def table(self) -> dict[str, Any]:
        """The scores per class, as lists, and their means over the classes that have them."""
        predicted, shares = np.array(self.predicted), np.array(self.shares)
        there, told_there = shares > 0, predicted >= AT_LEAST[self.kind]
        hits = (there & told_there).sum(0)
        with np.errstate(invalid="ignore"):
            precision, recall = hits / told_there.sum(0), hits / there.sum(0)
        average = [average_precision(predicted[:, k], there[:, k]) for k in range(there.shape[1])]
        classes = {"precision": precision.tolist(), "recall": recall.tolist(), "average_precision": average}
        means = {name: mean(values) for name, values in classes.items()}
        if self.kind == "share":
            means["error"] = float(np.abs(predicted - shares).mean())
        return {
            "kind": self.kind, "at_least": AT_LEAST[self.kind], "images": len(predicted), "mean": means,
            "classes": classes | {"images": there.sum(0).tolist(), "predicted": told_there.sum(0).tolist()},
        }  # fmt: skip


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """The mean of the precision at each true entry, entries sorted by falling score; NaN without a true one.

    Entries of one score come in together, so that their order does not matter.
    """
    order = np.argsort(-scores, kind="stable")
    hits, rank = np.cumsum(truth[order]), np.arange(1, len(scores) + 1)
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of each group of one score
    gained = np.diff(hits[last], prepend=0)
    return float((gained * hits[last] / rank[last]).sum() / truth.sum()) if truth.any() else math.nan


class OwnClass:
    """The share of a relation's weight on labelled pixels that lies on a pixel's own class, over all labelled pixels.

    It is the probability that two labelled pixels have one class: one drawn from all, or from those of a class; and one
    drawn from a cell that is drawn by the relation of the first's cell.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.sums: dict[str, dict[str, np.ndarray]] = {}
        self.weights: dict[str, np.ndarray] = {}

    def add(self, maps: Maps) -> None:
        """Add what the relations of some images gathered."""
        for name, gathered in maps.gathered.items():
            h, w = gathered.relation.shape[2:]
            shares = maps.shares_at((h, w))
            by_class = {field: of_labelled(getattr(gathered, field)) for field in FIELDS}
            known = torch.stack([found.isfinite().all(1, keepdim=True) for found in by_class.values()]).all(0)
            weight = shares * known  # labelled pixels of each class in each cell
            self.weights[name] = self.weights.get(name, np.zeros(self.classes)) + array(weight.sum((0, 2, 3)))
            sums = self.sums.setdefault(name, {field: np.zeros(self.classes) for field in FIELDS})
            for field, found in by_class.items():
                sums[field] += array((weight * found.nan_to_num()).sum((0, 2, 3)))

    def table(self) -> dict[str, Any]:
        """Relation -> the shares over all pixels, and per class as lists."""
        with np.errstate(invalid="ignore"):
            return {
                name: {field: float(sums[field].sum() / self.weights[name].sum()) for field in FIELDS}
                | {"classes": {field: (sums[field] / self.weights[name]).tolist() for field in FIELDS}}
                for name, sums in self.sums.items()
            }


class Fragments:
    """RecoNet's A = Σ λ_i v_c[i] ⊗ v_h[i] ⊗ v_w[i]: the rank of its unfoldings, and how alike its fragments are.

    The rank along an axis is that of A with this axis as rows and the others as columns: the singular values of at
    least `RANK_AT` of the largest. The effective rank is exp(−Σ p log p), p the singular values over their sum (Roy
    and Vetterli, EUSIPCO 2007). Likeness of two fragments is the cosine of their entries; as all are positive, also
    their correlation. `by_fragments` is the effective rank along the channels with the n fragments of greatest λ.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.steps: list[list[float]] = []
        self.counts: list[int] = []

    def add(self, maps: Maps) -> None:
        """Add the attention tensors of some images."""
        lambda_ = maps["lambda_"].double()
        r = len(lambda_)
        self.counts = sorted({*(2**k for k in range(r.bit_length()) if 2**k <= r), r})
        order = lambda_.argsort(descending=True)
        for image in range(len(maps["v_c"])):
            vectors = [maps[f"v_{axis}"][image].double()[order] for axis in AXES]
            self.rows.append(figures(vectors, lambda_[order]))
            parts = ([v[:n] for v in vectors] for n in self.counts)
            self.steps.append([effective(spectrum(p, lambda_[order][: len(p[0])], 0)) for p in parts])

    def table(self) -> dict[str, Any]:
        """The means over the images."""
        means = {name: float(np.mean([row[name] for row in self.rows])) for name in self.rows[0]}
        curve = np.mean(self.steps, 0).tolist()
        return means | {
            "fragments": self.counts[-1], "tensors": len(self.rows),
            "by_fragments": dict(zip(map(str, self.counts), curve, strict=True)),
        }  # fmt: skip


def figures(vectors: Sequence[Tensor], lambda_: Tensor) -> dict[str, float]:
    """Ranks and likeness of one tensor, from v_c, v_h, v_w (r, n) each."""
    found: dict[str, float] = {}
    for axis, name in enumerate(AXES):
        values = spectrum(vectors, lambda_, axis)
        found[f"rank_{name}"] = float((values >= RANK_AT * values.max()).sum())
        found[f"effective_rank_{name}"] = effective(values)
    r = len(lambda_)
    inner, sizes, means = torch.ones(r, r).to(lambda_), 1, torch.ones(r).to(lambda_)
    for v in vectors:
        inner, sizes, means = inner * (v @ v.T), sizes * v.shape[1], means * v.mean(1)
    central = inner - sizes * means[:, None] * means
    pairs = torch.triu_indices(r, r, 1)
    for name, gram in (("cosine", inner), ("correlation", central)):
        norm = gram.diagonal().clamp(min=1e-300).sqrt()
        found[name] = float((gram / (norm[:, None] * norm))[pairs[0], pairs[1]].mean()) if r > 1 else math.nan
    return found


def spectrum(vectors: Sequence[Tensor], lambda_: Tensor, axis: int) -> Tensor:
    """Singular values, at most r, of A with `axis` as rows, from products of the vectors alone: A is never formed.

    A's unfolding is Pᵀ Q, P (r, n) the weighted vectors of the axis and Q the flattened products of the others, so that
    its singular values are the roots of the eigenvalues of L (P Pᵀ) L, with L L = Q Qᵀ.
    """
    mine = lambda_[:, None] * vectors[axis]
    first, second = (v for i, v in enumerate(vectors) if i != axis)
    values, basis = torch.linalg.eigh((first @ first.T) * (second @ second.T))
    root = (basis * values.clamp(min=0).sqrt()) @ basis.T
    return torch.linalg.eigvalsh(root @ (mine @ mine.T) @ root).clamp(min=0).sqrt()


def effective(values: Tensor) -> float:
    """The effective rank of a spectrum."""
    p = values / values.sum()
    return float(torch.exp(-(p * p.clamp(min=1e-300).log()).sum()))


def array(value: Tensor) -> np.ndarray:
    return value.double().cpu().numpy()


def mean(values: Sequence[float]) -> float:
    """The mean of what is no NaN; NaN of nothing."""
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else math.nan
