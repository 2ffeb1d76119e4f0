import math

import pytest
import torch
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassJaccardIndex,
    MulticlassPrecision,
    MulticlassRecall,
)

from segmodels.metrics import Confusion, scores

K = 5


def batch(n=3, classes=K, size=(7, 9)):
    prediction, mask = torch.randint(0, classes, (n, *size)), torch.randint(0, classes, (n, *size), dtype=torch.uint8)
    mask[torch.rand(n, *size) < 0.2] = 255
    return prediction, mask


def counted(prediction, mask, classes=K):
    confusion = Confusion(classes)
    confusion.update(prediction, mask)
    return confusion.counts


def test_counts_by_hand():
    mask = torch.tensor([[[0, 0, 1], [1, 2, 255]]], dtype=torch.uint8)
    prediction = torch.tensor([[[0, 1, 1], [1, 0, 2]]])
    counts = counted(prediction, mask, 3)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    result = scores(counts)
    assert result.iou == pytest.approx([1 / 3, 2 / 3, 0])
    assert result.miou == pytest.approx(1 / 3)
    assert result.accuracy == pytest.approx(3 / 5)
    assert result.mean_accuracy == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert result.fwiou == pytest.approx((2 / 3 + 4 / 3 + 0) / 5)
    assert result.precision[:2] == pytest.approx([1 / 2, 2 / 3])
    assert math.isnan(result.precision[2])
    assert result.recall == pytest.approx([1 / 2, 1, 0])
    assert result.f1 == pytest.approx([1 / 2, 4 / 5, 0])
    assert result.mean_f1 == pytest.approx((1 / 2 + 4 / 5) / 3)


def test_many_classes_do_not_overflow_the_masks_uint8():
    prediction, mask = batch(classes=200)
    expected = torch.zeros(200, 200, dtype=torch.int64)
    for t, p in zip(mask.flatten().tolist(), prediction.flatten().tolist(), strict=True):
        if t != 255:
            expected[t, p] += 1
    assert torch.equal(counted(prediction.to(torch.uint8), mask, 200), expected)


@pytest.mark.parametrize("classes", [K, K - 1])  # the latter leaves the last class absent from both
def test_equals_torchmetrics_over_several_batches(classes):
    def reference(kind, **options):
        return kind(K, ignore_index=255, **options)

    counts = reference(MulticlassConfusionMatrix)
    means = {
        "miou": reference(MulticlassJaccardIndex, average="macro"),
        "accuracy": reference(MulticlassAccuracy, average="micro"),
        "mean_accuracy": reference(MulticlassRecall, average="macro"),
        "mean_f1": reference(MulticlassF1Score, average="macro"),
    }
    per_class = {
        "iou": reference(MulticlassJaccardIndex, average="none"),
        "precision": reference(MulticlassPrecision, average="none"),
        "recall": reference(MulticlassRecall, average="none"),
        "f1": reference(MulticlassF1Score, average="none"),
    }
    confusion = Confusion(K)
    for images in (3, 1, 4):
        prediction, mask = batch(images, classes)
        confusion.update(prediction, mask)
        for metric in (counts, *means.values(), *per_class.values()):
            metric.update(prediction, mask.long())
    assert torch.equal(confusion.counts, counts.compute())
    result = scores(confusion.counts)
    for name, metric in means.items():
        assert getattr(result, name) == pytest.approx(metric.compute().item(), abs=1e-6), name
    for name, metric in per_class.items():
        assert getattr(result, name)[:classes] == pytest.approx(metric.compute().tolist()[:classes], abs=1e-6), name
        assert math.isnan(getattr(result, name)[-1]) == (classes < K)  # torchmetrics has 0 there


def test_class_only_predicted_counts_as_zero():
    result = scores(counted(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 0]]], dtype=torch.uint8), 3))
    assert result.iou[:2] == pytest.approx([0.5, 0])
    assert result.miou == pytest.approx(0.25)
    assert result.f1[:2] == pytest.approx([2 / 3, 0])
    assert result.mean_f1 == pytest.approx(1 / 3)
    assert result.mean_accuracy == pytest.approx(0.5)


def test_parts_sum_to_the_whole_and_batches_accumulate():
    (p1, m1), (p2, m2) = batch(2), batch(3)
    whole = counted(torch.cat([p1, p2]), torch.cat([m1, m2]))
    assert torch.equal(counted(p1, m1) + counted(p2, m2), whole)
    confusion = Confusion(K)
    assert not confusion.counts.any()
    confusion.update(p1, m1)
    first = confusion.counts
    confusion.update(p2, m2)
    assert torch.equal(confusion.counts, whole)
    assert torch.equal(first, counted(p1, m1))  # a copy, not a view of the running counts


def test_split_not_mean_over_images():
    mask = torch.tensor([[[0, 0, 0, 0]], [[0, 1, 1, 1]]], dtype=torch.uint8)
    prediction = torch.tensor([[[0, 0, 0, 1]], [[0, 1, 1, 1]]])
    over_images = sum(scores(counted(prediction[i : i + 1], mask[i : i + 1], 2)).miou for i in range(2)) / 2
    assert scores(counted(prediction, mask, 2)).miou == pytest.approx((4 / 5 + 3 / 4) / 2)
    assert over_images == pytest.approx((3 / 8 + 1) / 2)


def test_no_labels_give_nan():
    result = scores(torch.zeros(3, 3))
    assert all(
        math.isnan(v) for v in (result.miou, result.accuracy, result.mean_accuracy, result.fwiou, result.mean_f1)
    )


@pytest.mark.parametrize(("predicted", "true"), [(0, 3), (3, 0), (-1, 1), (3, 255), (0, 254)])
def test_classes_outside_of_the_matrix_are_refused(predicted, true):
    """Also those that would fall on another cell: predicting class 3 of 3 for class 0 is class 0 for class 1."""
    confusion = Confusion(3)
    with pytest.raises(
        RuntimeError, match="class outside of 0 to 2, in 1 of 1 pixels; allowed: those classes, and 255"
    ):
        confusion.update(torch.full((1, 1, 1), predicted), torch.full((1, 1, 1), true, dtype=torch.uint8))
    assert not confusion.counts.any()


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"prediction has shape \(2, 4, 4\); allowed: the mask's \(1, 4, 4\)"):
        counted(torch.zeros(2, 4, 4, dtype=torch.long), torch.zeros(1, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="allowed: \\(K, K\\)"):
        scores(torch.zeros(2, 3))
