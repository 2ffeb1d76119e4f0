"""The losses of proposals, boxes and masks, written out region by region in Python's floats."""

import math

import numpy as np
import torch


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def correction(box, truth, weights):
    """What leads from a box to the truth: shifts in its sides, logarithms of the sides' ratios."""
    (width, height), (wide, high) = [(b[2] - b[0], b[3] - b[1]) for b in (box, truth)]
    x, y = ((truth[i] + truth[i + 2]) / 2 - (box[i] + box[i + 2]) / 2 for i in (0, 1))
    raw = (x / width, y / height, math.log(wide / width), math.log(high / height))
    return [weight * value for weight, value in zip(weights, raw, strict=True)]


def corrected(box, deltas, weights, size):
    """A box after its correction, cut at the image."""
    dx, dy, dw, dh = (delta / weight for delta, weight in zip(deltas, weights, strict=True))
    width, height = box[2] - box[0], box[3] - box[1]
    x, y = (box[0] + box[2]) / 2 + dx * width, (box[1] + box[3]) / 2 + dy * height
    half_w, half_h = width * math.exp(dw) / 2, height * math.exp(dh) / 2
    cut = (size[1], size[0], size[1], size[0])
    return [min(max(v, 0), most) for v, most in zip((x - half_w, y - half_h, x + half_w, y + half_h), cut, strict=True)]


def smooth_l1(given, wanted, beta=1 / 9):
    differences = [abs(g - w) for g, w in zip(given, wanted, strict=True)]
    return sum(d * d / (2 * beta) if d < beta else d - beta / 2 for d in differences)


def assign(boxes, truth, overlap):
    """Of each box the object that it overlaps most, and whether enough."""
    best = [max(range(len(truth)), key=lambda j, box=box: iou(box, truth[j])) for box in boxes]
    return best, [iou(box, truth[j]) >= overlap for box, j in zip(boxes, best, strict=True)]


def proposal_losses(logits, deltas, anchors, truth):
    """All anchors: on an object from 0.7 or where none overlaps it more; off below 0.3; else left out."""
    overlaps = [[iou(anchor, box) for box in truth] for anchor in anchors]
    most = [max(column) for column in zip(*overlaps, strict=True)]
    classes, boxes, counted = 0, 0, 0
    for logit, delta, anchor, row in zip(logits, deltas, anchors, overlaps, strict=True):
        nearest = max(range(len(truth)), key=row.__getitem__)
        on = row[nearest] >= 0.7 or any(value == best for value, best in zip(row, most, strict=True))
        if not on and row[nearest] >= 0.3:
            continue
        counted += 1
        chance = torch.sigmoid(logit)
        classes = classes - torch.log(chance if on else 1 - chance)
        if on:
            boxes = boxes + smooth_l1(delta, correction(anchor, truth[nearest], (1, 1, 1, 1)))
    return classes / counted, boxes / counted


def box_losses(scores, deltas, boxes, truth, labels, overlap, weights):
    """Cross entropy over the classes and no object, and the corrections of regions on objects; over all regions."""
    best, on = assign(boxes, truth, overlap)
    classes, moves = 0, 0
    for r, box in enumerate(boxes):
        label = labels[best[r]] if on[r] else 0
        classes = classes - torch.log(torch.softmax(scores[r], 0)[label])
        if on[r]:
            given = deltas[r][4 * label : 4 * label + 4] if len(deltas[r]) > 4 else deltas[r]
            moves = moves + smooth_l1(given, correction(box, truth[best[r]], weights))
    return classes / len(boxes), moves / len(boxes)


def mask_loss(logits, boxes, masks):
    """Binary cross entropy of the label's mask, the mean over regions on objects and their cells."""
    total = 0
    for logit, box, mask in zip(logits, boxes, masks, strict=True):
        aim = torch.from_numpy(cells_of(mask, box, logit.shape[-1]))
        chance = torch.sigmoid(logit)
        total = total - (aim * torch.log(chance) + (1 - aim) * torch.log(1 - chance)).mean()
    return total / len(boxes)


def cells_of(mask, box, cells):
    """A mask in a box: the mean of points between pixels, as many along a cell as it has pixels, rounded up."""
    axes = []
    for start, stop in ((box[1], box[3]), (box[0], box[2])):
        side = max(stop - start, 1.0)
        points = math.ceil(side / cells)
        axes.append((start + (np.arange(cells * points) + 0.5) * side / (cells * points), points))
    (rows, down), (columns, across) = axes
    values = bilinear(mask.astype(np.float64), rows, columns)
    return values.reshape(cells, down, cells, across).mean((1, 3))


def bilinear(mask, rows, columns):
    """Values at places, a pixel's own at whole numbers."""
    rows, columns = rows.clip(0, mask.shape[0] - 1), columns.clip(0, mask.shape[1] - 1)
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    below, right = np.minimum(top + 1, mask.shape[0] - 1), np.minimum(left + 1, mask.shape[1] - 1)
    y, x = (rows - top)[:, None], (columns - left)[None]
    upper = mask[top][:, left] * (1 - x) + mask[top][:, right] * x
    return upper * (1 - y) + (mask[below][:, left] * (1 - x) + mask[below][:, right] * x) * y
