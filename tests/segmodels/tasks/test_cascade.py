"""The cascade's loss, stage by stage, written out; and its detections."""

import pytest
import torch
from drawn import SIZE, build, picture
from naive_regions import assign, box_losses, corrected, mask_loss
from torch import nn

WEIGHTS = [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]
BOXES, LABELS = [(4, 8, 30, 40), (36, 30, 60, 58)], [1, 3]


def some():
    """A cascade that moves boxes, a pyramid, proposals, and the truth; in float64."""
    model = build("cascade_mask_rcnn", anchor_samples=100000, box_samples=100000, min_score=0.0, detections=7).double()
    for stage in model.regions.stages:
        nn.init.normal_(stage.box_predictor.bbox_pred.weight, std=0.5)
        nn.init.normal_(stage.box_predictor.cls_score.weight, std=0.5)
    image, target = picture(BOXES, [0, 2])
    truth = {"boxes": target["boxes"].double(), "labels": target["labels"] + 1, "masks": target["masks"]}
    near = truth["boxes"].repeat(6, 1) + 3 * torch.randn(12, 4, dtype=torch.float64)
    return model, model.pyramid(image[None]), near.clamp(0, 64), truth


def outputs(stage, pyramid, boxes):
    boxes = torch.tensor(boxes, dtype=torch.float64)
    return stage.box_predictor(stage.box_head(stage.box_roi_pool(pyramid, [boxes], [SIZE])))


def masks_of(stage, pyramid, boxes):
    boxes = torch.tensor(boxes, dtype=torch.float64)
    return stage.mask_predictor(stage.mask_head(stage.mask_roi_pool(pyramid, [boxes], [SIZE])))


def test_equals_the_loss_written_out():
    model, pyramid, proposals, truth = some()
    _, losses = model.regions(pyramid, [proposals], [SIZE], [truth])
    wanted, boxes = {"loss_classifier": 0, "loss_box_reg": 0, "loss_mask": 0}, proposals.tolist()
    positives = []
    for stage, overlap, share, weights in zip(
        model.regions.stages, (0.5, 0.6, 0.7), (1, 0.5, 0.25), WEIGHTS, strict=True
    ):
        regions = boxes + [list(map(float, box)) for box in BOXES]
        scores, deltas = outputs(stage, pyramid, regions)
        deltas = deltas[:, :4]  # one correction for all classes
        classes, moves = box_losses(scores, deltas, regions, BOXES, LABELS, overlap, weights)
        best, on = assign(regions, BOXES, overlap)
        kept = [r for r in range(len(regions)) if on[r]]
        positives.append(len(kept))
        logits = masks_of(stage, pyramid, [regions[r] for r in kept])
        chosen = [logit[LABELS[best[r]]] for logit, r in zip(logits, kept, strict=True)]
        masks = mask_loss(chosen, [regions[r] for r in kept], [truth["masks"][best[r]].numpy() for r in kept])
        for name, loss in zip(wanted, (classes, moves, masks), strict=True):
            wanted[name] = wanted[name] + share * loss
        boxes = [corrected(r, d, weights, SIZE) for r, d in zip(boxes, deltas[: len(boxes)].tolist(), strict=True)]
    assert max(positives) > 4
    for name, value in wanted.items():
        assert losses[name].item() == pytest.approx(value.item()), name


def test_detections_are_of_the_mean_logits_on_the_last_boxes():
    model, pyramid, proposals, _ = some()
    model.eval()
    (found,), _ = model.regions(pyramid, [proposals], [SIZE])
    boxes, logits = proposals.tolist(), []
    for index, (stage, weights) in enumerate(zip(model.regions.stages, WEIGHTS, strict=True)):
        scores, deltas = outputs(stage, pyramid, boxes)
        logits.append(scores)
        moved = [corrected(b, d, weights, SIZE) for b, d in zip(boxes, deltas[:, :4].tolist(), strict=True)]
        boxes = moved if index < 2 else boxes
    scores = torch.softmax(sum(logits) / 3, 1)
    for box, score, label in zip(found["boxes"].tolist(), found["scores"], found["labels"], strict=True):
        r = min(range(len(moved)), key=lambda r, box=box: sum(abs(a - b) for a, b in zip(moved[r], box, strict=True)))
        assert moved[r] == pytest.approx(box)
        assert scores[r, label].item() == pytest.approx(score.item())
    masks = sum(masks_of(stage, pyramid, found["boxes"].tolist()).sigmoid() for stage in model.regions.stages) / 3
    wanted = torch.stack([mask[label] for mask, label in zip(masks, found["labels"], strict=True)])
    assert len(wanted) == 7
    assert torch.allclose(found["masks"][:, 0], wanted)


def test_the_truths_own_boxes_are_not_handed_on():
    model, pyramid, _, truth = some()
    seen = []
    for stage in model.regions.stages:
        stage.box_roi_pool.register_forward_hook(lambda module, given, out: seen.append(len(given[1][0])))
    with torch.no_grad():
        model.regions(pyramid, [torch.tensor([[1.0, 1, 9, 9]], dtype=torch.float64)], [SIZE], [truth])
    assert seen == [3, 3, 3]
