"""Top-1 and top-5 by hand, in parts and as a whole, and every row exactly once."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipelines.scoring.classification import ClassTally, counted, scores_of, together


def naive(logits, labels):
    """(top-1, top-5) of sorted classes."""
    one = five = 0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda k: (-row[k], k))
        one, five = one + (order[0] == label), five + (label in order[:5])
    return one / len(labels), five / len(labels)


def drawn(images, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, classes, generator=generator), torch.randint(0, classes, (images,), generator=generator)


def test_scores_equal_those_of_sorted_classes():
    logits, labels = drawn(200, 12)
    scores = scores_of(counted(logits, labels, range(200)), 200, "x")
    one, five = naive(logits, labels)
    assert scores.named == {"top-1": one, "top-5": five}
    assert scores.value == one
    for k, share in enumerate(scores.classes):
        assert share == (logits[labels == k].argmax(1) == k).double().mean().item()


def test_parts_in_any_order_are_the_whole():
    logits, labels = drawn(50, 7)
    whole = scores_of(counted(logits, labels, range(50)), 50, "x")
    rows = np.random.default_rng(0).permutation(50)
    parts = [counted(logits[part], labels[part], part) for part in np.array_split(rows, 4)]
    assert scores_of(together(parts), 50, "x") == whole
    tally = ClassTally(Split(50, 7))
    for part in np.array_split(rows, 3):
        tally.add(logits[part], SimpleNamespace(target=labels[part]), part)
    assert tally.scored([tally.sent()]) == whole
    assert (whole.rows, len(whole.classes)) == (50, 7)


class Split:
    """A split of so many rows and classes."""

    uri = "x"

    def __init__(self, rows, classes):
        self.rows, self.manifest = rows, SimpleNamespace(classes=("x",) * classes)

    def __len__(self):
        return self.rows


@pytest.mark.parametrize("classes", [2, 5])
def test_top_five_of_five_classes_or_fewer_says_nothing(classes):
    logits, labels = drawn(9, classes)
    assert set(scores_of(counted(logits, labels, range(9)), 9, "x").named) == {"top-1"}


def test_a_class_without_an_image_has_no_score():
    logits, labels = torch.eye(6)[[0, 2]], torch.tensor([0, 1])
    scores = scores_of(counted(logits, labels, [0, 1]), 2, "x")
    assert scores.classes == [1.0, 0.0, None, None, None, None]
    assert scores.named == {"top-1": 0.5, "top-5": 1.0}


def test_ties_are_the_first_classes_and_what_is_no_number_is_wrong():
    tied = counted(torch.zeros(3, 8), torch.tensor([0, 4, 5]), [0, 1, 2])
    assert tied.confusion.diagonal().tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert tied.top5 == 2
    broken = torch.zeros(2, 8)
    broken[0, 3], broken[1, 0] = float("nan"), float("nan")
    lost = counted(broken, torch.tensor([3, 7]), [0, 1])
    assert (lost.confusion.diagonal().sum(), lost.confusion.sum(), lost.top5) == (0, 2, 0)


@pytest.mark.parametrize("rows", [[0, 1], [0, 1, 1], [0, 1, 3]])
def test_a_row_that_is_missing_or_twice_is_an_error(rows):
    logits, labels = drawn(len(rows), 6)
    with pytest.raises(RuntimeError, match=r"rows of x, which has 3: 1 are missing|1 are there twice"):
        scores_of(counted(logits, labels, rows), 3, "x")
