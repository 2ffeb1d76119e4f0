"""Panoptic-FPN: the merge against its steps written out, the semantic branch and its loss, pasting of masks."""

import numpy as np
import pytest
import torch
from drawn import SIZE, build, picture

from segmodels.tasks.masks import paste
from segmodels.tasks.panoptic import (
    MergeRule,
    SemanticBranch,
    build_panoptic,
    merge,
    merged,
    panoptic_keys,
    semantic_loss,
)


def naive_merge(masks, labels, scores, stuff, things, rule):
    """Pixel by pixel: the segment's kind, class and score of each; and the segments."""
    height, width = stuff.shape
    drawn, segments = np.full((height, width), -1), []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        pixels = [(y, x) for y in range(height) for x in range(width) if masks[i, y, x]]
        hidden = sum(drawn[p] >= 0 for p in pixels)
        if not pixels or hidden / len(pixels) > rule.thing_overlap or hidden == len(pixels):
            continue
        for p in pixels:
            drawn[p] = len(segments) if drawn[p] < 0 else drawn[p]
        segments.append((True, labels[i], scores[i]))
    occupied = drawn.copy()
    for number in range(things):
        pixels = [(y, x) for y in range(height) for x in range(width) if stuff[y, x] == number and occupied[y, x] < 0]
        if pixels and len(pixels) >= rule.stuff_area:
            for p in pixels:
                drawn[p] = len(segments)
            segments.append((False, number, 1.0))
    return drawn, segments


@pytest.mark.parametrize("seed", range(4))
def test_merge_equals_its_steps_written_out(seed):
    torch.manual_seed(seed)
    masks = torch.zeros(8, 12, 15, dtype=torch.bool)
    for mask in masks[:7]:  # the last is empty
        y, x, height, width = (int(torch.randint(low, high, ())) for low, high in ((0, 9), (0, 11), (2, 6), (2, 7)))
        mask[y : y + height, x : x + width] = True
    labels, scores = torch.randint(4, (8,)), torch.rand(8)
    scores[1] = scores[0]
    stuff, rule = torch.randint(4, (12, 15)), MergeRule(0.0, 0.4, 22)
    found = merged(masks, labels, scores, stuff, 3, rule)
    pixels, segments = naive_merge(masks.numpy(), labels.tolist(), scores.tolist(), stuff.numpy(), 3, rule)
    assert (found.pixels.numpy() == pixels).all()
    assert [*zip(found.things.tolist(), found.classes.tolist(), found.scores.tolist(), strict=True)] == segments
    assert 2 < sum(thing for thing, _, _ in segments) < 8
    assert (pixels < 0).any()


def test_merge_by_hand():
    """Two blocks that overlap by a half of the lower, one hidden by more, a low score; stuff that is large enough."""
    rule = MergeRule(0.5, 0.5, 6)
    logits = torch.zeros(3, 6, 8)
    logits[0, :, :4], logits[1, :, 4:], logits[2, 5] = 5.0, 5.0, 9.0
    found = {
        "boxes": torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2], [0, 0, 2, 3], [6, 4, 8, 6]]),
        "scores": torch.tensor([0.9, 0.8, 0.7, 0.4]), "labels": torch.tensor([2, 0, 1, 1]),
        "masks": torch.ones(4, 28, 28), "semantic": logits,
    }  # fmt: skip
    got = merge(found, (6, 8), (6, 8), (6, 8), rule)
    assert got.things.tolist() == [True, True, False, False]
    assert got.classes.tolist() == [2, 0, 0, 1]
    expected = torch.tensor([[0, 0, 1, 2, 3, 3, 3, 3]] * 2 + [[2, 2, 2, 2, 3, 3, 3, 3]] * 3 + [[-1] * 8])
    assert torch.equal(got.pixels, expected)
    assert got.scores.tolist() == pytest.approx([0.9, 0.8, 1, 1])


def test_merge_cuts_the_padding_off_and_goes_to_the_pictures_own_size():
    logits = torch.full((2, 4, 4), -9.0)
    logits[0] = 9.0
    found = {
        "boxes": torch.tensor([[2.0, 2, 6, 8]]), "scores": torch.tensor([0.9]), "labels": torch.tensor([1]),
        "masks": torch.ones(1, 28, 28), "semantic": logits,
    }  # fmt: skip
    got = merge(found, (16, 16), (12, 8), (24, 16), MergeRule(stuff_area=4))
    wanted = torch.ones(24, 16, dtype=torch.int64)
    wanted[4:16, 4:12] = 0
    assert torch.equal(got.pixels, wanted)


def naive_paste(mask, box, size):
    """Between the centres of the mask's cells, linearly; outside of them towards 0."""
    cells = len(mask)
    out = np.zeros(size, bool)
    for y in range(size[0]):
        for x in range(size[1]):
            if not (box[0] <= x + 0.5 < box[2] and box[1] <= y + 0.5 < box[3]):
                continue
            v = (y + 0.5 - box[1]) / (box[3] - box[1]) * cells - 0.5
            u = (x + 0.5 - box[0]) / (box[2] - box[0]) * cells - 0.5
            value = 0.0
            for i in (int(np.floor(v)), int(np.floor(v)) + 1):
                for j in (int(np.floor(u)), int(np.floor(u)) + 1):
                    if 0 <= i < cells and 0 <= j < cells:
                        value += (1 - abs(v - i)) * (1 - abs(u - j)) * mask[i, j]
            out[y, x] = value >= 0.5
    return out


def test_pasting_equals_its_pixels_written_out():
    boxes = torch.tensor([[1.3, 2.1, 9.8, 7.6], [-4.0, -2.5, 6.2, 5.0], [8.5, 6.0, 18.0, 14.0], [3.2, 3.2, 3.4, 3.4],
                          [50.0, 50, 60, 60]])  # fmt: skip
    masks = torch.rand(5, 6, 6, dtype=torch.float64)
    pasted = paste(masks, boxes, (11, 13))
    for got, mask, box in zip(pasted, masks.numpy(), boxes.double().tolist(), strict=True):
        assert (got.numpy() == naive_paste(mask, box, (11, 13))).all()
    assert pasted[:3].flatten(1).any(1).all()
    assert not pasted[3:].any()
    assert paste(masks[:0], boxes[:0], (4, 5)).shape == (0, 4, 5)


def test_the_branch_is_its_steps_written_out():
    branch = SemanticBranch(8, 32, 4).double()
    pyramid = {str(i): torch.randn(2, 8, -(-19 // 2**i), -(-26 // 2**i), dtype=torch.float64) for i in range(4)}
    pyramid["pool"] = torch.full((2, 8, 1, 1), torch.nan, dtype=torch.float64)  # P6 is not read
    total = 0
    for level, enlargings in enumerate((0, 1, 2, 3)):
        x = pyramid[str(level)]
        for index, (conv, norm, relu) in enumerate(branch.levels[level]):
            x = relu(norm(conv(x)))
            if enlargings:
                size = pyramid[str(level - index - 1)].shape[2:]
                x = torch.nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=True)
        assert len(branch.levels[level]) == max(enlargings, 1)
        total = total + x
    assert torch.allclose(branch(pyramid), branch.classify(total))
    assert branch(pyramid).shape == (2, 4, 19, 26)


def test_semantic_loss_by_hand():
    logits = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    semantic = torch.tensor([[0, 1, 2, 255]] * 4, dtype=torch.uint8)
    wanted = -torch.stack([logits[0].log_softmax(0)[k, y, k] for y in range(4) for k in range(3)]).mean()
    assert torch.allclose(semantic_loss(logits, semantic), wanted)
    assert semantic_loss(logits, torch.full((4, 4), 255, dtype=torch.uint8)) == 0


def test_the_weight_is_the_recipes():
    image, target = picture([(4, 8, 30, 40)], [0])
    losses = []
    for weight in (0.5, 1.5):
        torch.manual_seed(0)
        losses.append(build("panoptic_fpn", semantic_weight=weight)(image[None], [target]))
    assert losses[1]["semantic"].item() == pytest.approx(3 * losses[0]["semantic"].item())
    assert losses[1]["mask"].item() == losses[0]["mask"].item()


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"stuff": 5}, "head.stuff is 5 of 5 classes; allowed: fewer"),
        ({"stuff_area": 0}, "stuff_area is 0; allowed: an integer of at least 1"),
        ({"semantic_weight": 0.0}, "semantic_weight is 0.0; allowed: above 0"),
        ({"name": "mask_rcnn"}, "unknown head 'mask_rcnn'; allowed: panoptic_fpn"),
    ],
)
def test_bad_keys(head, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_panoptic(num_classes=5, backbone={"name": "test_resnet"}, head={"name": "panoptic_fpn"} | head)


def test_keys_say_the_rule():
    assert panoptic_keys({"name": "panoptic_fpn"}).rule() == MergeRule(0.5, 0.5, 4096)
    assert panoptic_keys({"name": "panoptic_fpn", "stuff_area": 9, "thing_score": 0.3}).rule() == MergeRule(0.3, 0.5, 9)


def test_learns_a_picture_and_merges_it():
    model = build("panoptic_fpn", min_score=0.3)
    image, target = picture([(10, 20, 50, 44)], [1])
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    totals = []
    for seed in range(30):
        loss = sum(model(image[None], [target | {"seed": seed}]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert max(totals[-3:]) < totals[0] / 2
    with torch.no_grad():
        (found,) = model.eval()(image[None])
    got = merge(found, SIZE, SIZE, SIZE, MergeRule(stuff_area=64))
    assert got.things.tolist() == [True, False, False]
    assert got.classes.tolist() == [1, 0, 1]
    truth = torch.where(target["masks"][0] > 0, 0, 1 + target["semantic"].long())
    assert (got.pixels == truth).float().mean() > 0.8
