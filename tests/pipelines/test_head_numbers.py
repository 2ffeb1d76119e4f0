"""A head's numbers over a split, each against a computation that is as long as its definition."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_average_precision

from pipelines.scoring.explaining import class_shares
from pipelines.scoring.head_numbers import Fragments, OwnClass, Presence, average_precision, effective, figures
from pipelines.scoring.measuring import crops, lines, metrics, starts
from segmodels.heads.maps import Maps
from segmodels.heads.nonlocal_ import NonLocal

K = 3


def test_presence_by_hand():
    """Three images that hold {0, 1}, {1} and {0}; a fourth without a label counts for nothing."""
    mask = torch.tensor([[[0, 1]], [[1, 255]], [[0, 0]], [[255, 255]]], dtype=torch.uint8)
    told = torch.tensor([[0.9, 0.4, 0.1], [0.6, 0.7, 0.5], [0.2, 0.1, 0.2], [0.9, 0.9, 0.9]])
    presence = Presence("sigmoid")
    presence.add(told[:2], mask[:2])
    presence.add(told[2:], mask[2:])
    table = presence.table()
    assert table["images"] == 3
    assert table["classes"]["images"] == [2, 2, 0]
    assert table["classes"]["predicted"] == [2, 1, 1]
    assert table["classes"]["precision"] == [0.5, 1.0, 0.0]
    assert table["classes"]["recall"][:2] == [0.5, 0.5]
    assert math.isnan(table["classes"]["recall"][2])
    assert table["classes"]["average_precision"][:2] == pytest.approx([(1 / 1 + 2 / 3) / 2, 1.0])
    assert table["mean"]["precision"] == 0.5
    assert "error" not in table["mean"]
    shares = Presence("share")
    shares.add(torch.tensor([[0.5, 0.25, 0.25]]), mask[:1])
    assert shares.table()["mean"]["error"] == pytest.approx((0 + 0.25 + 0.25) / 3)
    assert shares.table()["classes"]["predicted"] == [1, 1, 1]  # each at least a hundredth


def test_average_precision_is_that_of_torchmetrics_whatever_the_order_of_ties():
    draw = np.random.default_rng(0)
    for _ in range(20):
        scores, truth = draw.integers(0, 6, 30) / 6, draw.random(30) < 0.3
        truth[0] = True
        expected = binary_average_precision(torch.tensor(scores), torch.tensor(truth.astype(int))).item()
        assert average_precision(scores, truth) == pytest.approx(expected, abs=1e-6)
        turned = draw.permutation(30)
        assert average_precision(scores[turned], truth[turned]) == pytest.approx(expected, abs=1e-6)
    assert math.isnan(average_precision(scores, np.zeros(30, bool)))


def own_class(weights, labels):
    """P(a pixel of a cell and one of a cell drawn by the relation have one class), cell by cell and pixel by pixel.

    weights (N, N); labels (N, pixels of a cell). Returns sum and number for each class.
    """
    sums, numbers = np.zeros(K), np.zeros(K)
    for i, mine in enumerate(labels):
        meets = np.zeros(K)
        for j, theirs in enumerate(labels):
            for label in theirs[theirs != 255]:
                meets[label] += weights[i, j]
        for label in mine[mine != 255]:
            sums[label] += meets[label] / meets.sum()
            numbers[label] += 1
    return sums, numbers


def test_the_share_on_the_own_class_is_that_of_loops_over_all_pairs():
    torch.manual_seed(0)
    mask = torch.randint(0, K, (2, 8, 12), dtype=torch.uint8)
    mask[0, :4, :4] = 255  # whole cells without a label
    mask[1, 3, 2] = 255
    block = NonLocal(4, 2).double().eval()
    x = torch.randn(2, 4, 4, 6, dtype=torch.float64)
    maps = Maps(shares=class_shares(mask, K, (4, 6)).double())
    counted = OwnClass(K)
    with torch.no_grad():
        block(x, maps)
        theta, phi, _ = block.theta_phi_g(x).flatten(2).mT.chunk(3, -1)
        weights = (theta @ phi.mT).softmax(-1).numpy()
    counted.add(maps)
    table = counted.table()["relation"]
    labels = mask.numpy().reshape(2, 4, 2, 6, 2).transpose(0, 1, 3, 2, 4).reshape(2, 24, 4)
    agree = [np.array([[(a[:, None] == b)[a != 255][:, b != 255].sum() for b in image] for a in image], float)
             for image in labels]  # fmt: skip
    for field, by in {
        "relation": weights,
        "even": np.ones((2, 24, 24)),
        "true": agree,
    }.items():
        sums, numbers = np.sum([own_class(by[b], labels[b]) for b in range(2)], 0)
        assert table[field] == pytest.approx(sums.sum() / numbers.sum()), field
        assert table["classes"][field] == pytest.approx((sums / numbers).tolist()), field
    assert table["relation"] != pytest.approx(table["even"], abs=1e-4)


@pytest.mark.parametrize("r", [1, 4])
def test_rank_and_likeness_are_those_of_the_tensors_written_out(r):
    torch.manual_seed(1)
    vectors = [torch.rand(r, n, dtype=torch.float64) for n in (7, 3, 5)]
    lambda_ = torch.rand(r, dtype=torch.float64).softmax(0)
    found = figures(vectors, lambda_)
    parts = torch.einsum("rc,rh,rw->rchw", *vectors)
    a = torch.einsum("r,rchw->chw", lambda_, parts)
    for axis, name in enumerate("chw"):
        values = torch.linalg.svdvals(a.movedim(axis, 0).flatten(1))
        assert found[f"rank_{name}"] == (values >= 0.01 * values[0]).sum()
        p = values[values > 1e-9] / values.sum()
        assert found[f"effective_rank_{name}"] == pytest.approx(float((-p * p.log()).sum().exp()), rel=1e-5)
    if r == 1:
        assert math.isnan(found["cosine"])
        return
    flat = parts.flatten(1).numpy()
    pairs = np.triu_indices(r, 1)
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    assert found["cosine"] == pytest.approx((unit @ unit.T)[pairs].mean())
    assert found["correlation"] == pytest.approx(np.corrcoef(flat)[pairs].mean())
    assert effective(torch.ones(3)) == pytest.approx(3)


def test_the_rank_over_fragments_takes_those_of_greatest_weight_first():
    v = {"v_c": torch.eye(6)[None], "v_h": torch.eye(6)[None], "v_w": torch.eye(6)[None]}
    fragments = Fragments()
    lambda_ = torch.tensor([0.25, 0.0, 0.25, 0.25, 0.25, 0.0])
    fragments.add(Maps() | v | {"lambda_": lambda_})
    table = fragments.table()
    assert table["by_fragments"] == pytest.approx({"1": 1, "2": 2, "4": 4, "6": 4})
    assert table["rank_c"] == 4
    assert (table["cosine"], table["tensors"], table["fragments"]) == (0, 1, 6)


def test_crops_cover_an_image_side_by_side():
    assert starts(10, 4) == [0, 4, 6]
    assert starts(8, 4) == [0, 4]
    assert starts(3, 4) == [0]

    class Bound:
        window, mean = (4, 4), torch.full((1, 3, 1, 1), 7.6)

    image = torch.arange(2 * 3 * 3 * 6, dtype=torch.uint8).view(2, 3, 3, 6)
    mask = torch.arange(2 * 3 * 6, dtype=torch.uint8).view(2, 3, 6)
    (one, labels), (two, _) = crops(image, mask, Bound)
    assert torch.equal(one[..., :3, :], image[..., :4])
    assert torch.equal(two[..., :3, :], image[..., 2:])
    assert torch.equal(labels[:, :3], mask[..., :4])
    assert (one[..., 3, :] == 8).all()
    assert (labels[:, 3] == 255).all()


def test_metrics_hold_no_number_that_is_none():
    presence = {"mean": {"precision": math.nan, "recall": 0.5}}
    relation = {"dense": {"relation": 0.5, "even": 0.25, "true": 0.75, "classes": {}}}
    attention = {"rank_c": 2.0, "cosine": math.nan, "by_fragments": {}, "fragments": 8, "tensors": 4}
    assert metrics({"presence": presence, "relation": relation, "attention": attention}) == {
        "head/presence/recall": 50, "head/dense/own_class": 50, "head/dense/own_class_at_random": 25,
        "head/dense/own_class_of_true_relation": 75, "head/attention/rank_c": 2.0,
    }  # fmt: skip
    per = {field: [0.5, math.nan] for field in ("relation", "even", "true")}
    table = lines({"relation": {"dense": relation["dense"] | {"classes": per}}}, ["cat", "dog"])
    assert table[-3].split() == ["cat", "50.00", "50.00", "50.00"]
    assert table[-2].split() == ["dog", "-", "-", "-"]
    assert table[-1].split() == ["all", "pixels", "50.00", "25.00", "75.00"]
