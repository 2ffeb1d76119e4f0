"""Detectors: losses against loops and torchvision's own, each image's own loss and chance, anchors, keys."""

import pytest
import torch
from drawn import SIZE, SMALL, THINGS, build, picture, pictures
from naive_regions import assign, box_losses, mask_loss, proposal_losses
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from segmodels.tasks.detection import build_detector, with_p6
from segmodels.tasks.regions import ASPECTS, Anchors

NAMES = ["mask_rcnn", "cascade_mask_rcnn", "panoptic_fpn"]
ALL = {"anchor_samples": 100000, "box_samples": 100000}  # so many that nothing is left to chance
BOXES = [(4, 8, 30, 40), (36, 30, 60, 58)]


class Trunk(nn.Module):
    """Our trunk and pyramid as torchvision's model takes them, which has drawn a number for the image's size before."""

    def __init__(self, model, seed):
        super().__init__()
        self.model, self.seed, self.out_channels = [model], seed, SMALL["channels"]

    def forward(self, x):
        (model,) = self.model
        torch.manual_seed(self.seed)
        return with_p6(model.fpn(dict(zip("0123", model.backbone(x), strict=True))))


def torchvisions(model, seed):
    """Torchvision's Mask R-CNN of the same weights."""
    (most, least), regions = SMALL["proposals"], model.regions
    return detection.MaskRCNN(
        Trunk(model, seed), min_size=SIZE[0], max_size=SIZE[1],
        image_mean=model.backbone.mean, image_std=model.backbone.std,
        rpn_anchor_generator=AnchorGenerator(tuple((s,) for s in SMALL["anchors"]), (ASPECTS,) * 5),
        rpn_head=model.rpn.head, rpn_pre_nms_top_n_train=most, rpn_post_nms_top_n_train=most,
        rpn_pre_nms_top_n_test=least, rpn_post_nms_top_n_test=least,
        rpn_batch_size_per_image=SMALL["anchor_samples"], box_batch_size_per_image=SMALL["box_samples"],
        box_head=regions.box_head, box_predictor=regions.box_predictor, mask_head=regions.mask_head,
        mask_predictor=regions.mask_predictor, box_score_thresh=0.2,
    )  # fmt: skip


def test_equals_torchvisions_mask_rcnn_on_one_image():
    model = build("mask_rcnn", canonical=224, min_score=0.2).double()
    image, target = picture(BOXES, [0, 2], seed=11)
    theirs, given = torchvisions(model, 11).double(), [image.double() / 255]
    wanted = theirs(
        given, [{"boxes": target["boxes"].double(), "labels": target["labels"] + 1, "masks": target["masks"]}]
    )
    losses = model(image[None], [target])
    assert [losses[name].item() for name in ("rpn_class", "rpn_box", "class", "box", "mask")] == pytest.approx(
        [wanted[name].item() for name in ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg",
                                          "loss_mask")], rel=1e-9)  # fmt: skip
    (found,), (wanted,) = model.eval()(image[None]), theirs.eval()(given)
    assert len(found["boxes"]) > 3
    for name in ("boxes", "scores"):
        assert torch.allclose(found[name], wanted[name])
    assert torch.equal(found["labels"] + 1, wanted["labels"])
    assert found["masks"].shape == (len(found["boxes"]), 28, 28)
    assert int(found["labels"].max()) < THINGS


def test_equals_the_losses_written_out():
    model = build("mask_rcnn", **ALL).double()
    nn.init.normal_(model.rpn.head.bbox_pred.weight, std=0.1)
    nn.init.normal_(model.regions.box_predictor.bbox_pred.weight, std=0.5)
    image, target = picture(BOXES, [0, 2])
    losses = model(image[None], [target])
    pyramid = model.pyramid(image[None])
    logits, deltas = model.rpn.head(list(pyramid.values()))
    logits = torch.cat([level[0].permute(1, 2, 0).flatten() for level in logits])
    deltas = torch.cat([level[0].unflatten(0, (3, 4)).permute(2, 3, 0, 1).flatten(0, 2) for level in deltas])
    anchors = []
    for level, side in enumerate(SMALL["anchors"]):
        stride = 4 * 2**level
        halves = [(round(side / ratio**0.5 / 2), round(side * ratio**0.5 / 2)) for ratio in ASPECTS]
        for y in range(0, SIZE[0], stride):
            anchors += [(x - w, y - h, x + w, y + h) for x in range(0, SIZE[1], stride) for w, h in halves]
    classes, boxes = proposal_losses(logits, deltas, anchors, BOXES)
    assert [losses["rpn_class"].item(), losses["rpn_box"].item()] == pytest.approx([classes.item(), boxes.item()])
    (proposals,), _ = model.rpn(ImageList(image[None], [SIZE]), pyramid, [{"boxes": target["boxes"].double()}])
    regions = torch.cat((proposals, target["boxes"].double()))
    heads = model.regions
    scores, moves = heads.box_predictor(heads.box_head(heads.box_roi_pool(pyramid, [regions], [SIZE])))
    rows = regions.tolist()
    labels = [1, 3]
    classes, boxes = box_losses(scores, moves, rows, BOXES, labels, 0.5, (10, 10, 5, 5))
    assert [losses["class"].item(), losses["box"].item()] == pytest.approx([classes.item(), boxes.item()])
    assert losses["mask"].item() == pytest.approx(masks_of(heads, pyramid, regions, target, labels, 0.5).item())


def masks_of(heads, pyramid, regions, target, labels, overlap):
    """The mask loss written out, of a head's own logits."""
    rows = regions.tolist()
    best, on = assign(rows, target["boxes"].tolist(), overlap)
    kept = [r for r in range(len(rows)) if on[r]]
    logits = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(pyramid, [regions[kept]], [SIZE])))
    logits = [logit[labels[best[r]]] for logit, r in zip(logits, kept, strict=True)]
    return mask_loss(logits, [rows[r] for r in kept], [target["masks"][best[r]].numpy() for r in kept])


def gradients(model, images, targets, share):
    model.zero_grad()
    losses = model(images, targets, share)
    sum(losses.values()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_the_mean_of_its_images_however_it_is_cut(name):
    model = build(name).double()
    images, targets = pictures()
    whole = gradients(model, images, targets, 1.0)
    assert all(torch.isfinite(g).all() for g in whole.values())
    assert all(g.abs().max() > 0 for key, g in whole.items() if "trunk" not in key)  # timm's blocks start as identities
    for size in (1, 2):
        parts = [gradients(model, images[i : i + size], targets[i : i + size], size / 4) for i in range(0, 4, size)]
        for key, gradient in whole.items():
            added = sum(part[key] for part in parts)
            assert torch.allclose(added, gradient, rtol=1e-6, atol=1e-9 * float(gradient.abs().max())), key


@pytest.mark.parametrize("name", NAMES)
def test_an_images_chance_is_its_own(name):
    model = build(name)
    image, target = picture(BOXES, [0, 2], seed=3)
    state = torch.get_rng_state()
    with torch.no_grad():
        first = model(image[None], [target])
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(5)
        again = model(image[None], [target])
        other = model(image[None], [target | {"seed": 4}])
    assert {k: v.item() for k, v in first.items()} == {k: v.item() for k, v in again.items()}
    assert first["rpn_class"] != other["rpn_class"]
    assert first["class"] != other["class"]


def test_proposals_are_cut_at_the_image_and_not_at_its_canvas():
    model = build("mask_rcnn", **ALL)
    image, target = picture([(4, 4, 20, 20)], [1])
    with torch.no_grad():
        whole = model(image[None], [target])
        cut = model(image[None], [target | {"size": torch.tensor([24, 24])}])
    assert whole["rpn_class"] == cut["rpn_class"]
    assert whole["class"] != cut["class"]


@pytest.mark.parametrize("name", NAMES)
def test_boxes_are_float32_where_the_network_is_narrower(name):
    model = build(name, min_score=0.0)
    images, targets = pictures()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.isfinite(loss) and loss.dtype == torch.float32 for loss in model(images, targets).values())
        found = model.eval()(images)[0]
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    assert (found["boxes"] % 1 != 0).any()


def test_anchors_stand_at_the_strides_of_their_levels():
    """Torchvision has 800 // 13 = 61 pixels from cell to cell of P6."""
    sides = [(200, 300), (100, 150), (50, 75), (25, 38), (13, 19)]
    maps = [torch.zeros(1, 1, *side, dtype=torch.bfloat16) for side in sides]
    (anchors,) = Anchors((32, 64, 128, 256, 512), (4, 8, 16, 32, 64))(ImageList(maps[0], [(800, 1200)]), maps)
    assert anchors.dtype == torch.float32
    assert len(anchors) == 3 * sum(h * w for h, w in sides)
    centres = (anchors[-3 * 13 * 19 :: 3, :2] + anchors[-3 * 13 * 19 :: 3, 2:]) / 2
    assert torch.equal(centres, torch.tensor([[64.0 * x, 64.0 * y] for y in range(13) for x in range(19)]))


def test_regions_are_looked_at_by_the_trunks_strides_whatever_the_first_image():
    model = build("mask_rcnn").eval()
    with torch.no_grad():
        model(
            torch.zeros(1, 3, 33, 33, dtype=torch.uint8)
        )  # whose maps torchvision would take for strides of 4, 8, 8, 16
    assert model.regions.box_roi_pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]


def test_parameters_are_torchvisions():
    with torch.device("meta"):
        ours = build_detector(num_classes=90, backbone={"name": "resnet50"}, head={"name": "mask_rcnn"})
        theirs = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_the_papers_trunks_build_without_memory():
    with torch.device("meta"):
        model = build_detector(num_classes=80, backbone={"name": "resnet101"}, head={"name": "cascade_mask_rcnn"})
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize(
    ("backbone", "head", "message"),
    [
        ({}, {"name": "mask_rcn"}, "unknown head 'mask_rcn'; allowed: mask_rcnn, cascade_mask_rcnn. Did you mean"),
        ({}, {"chanels": 8}, "unknown keyword 'chanels' of head 'mask_rcnn'"),
        ({}, {"anchors": [8, 16]}, r"anchors is \[8, 16\]; allowed: 5 integers"),
        ({}, {"overlap": 1.5}, "overlap is 1.5"),
        ({}, {"name": "cascade_mask_rcnn", "overlaps": [0.5]}, r"overlaps is \[0.5\]; allowed: three numbers"),
        ({"output_stride": 8}, {}, "output_stride is 8; allowed for a feature pyramid: 32"),
        ({"neck": "jpu"}, {}, "neck is 'jpu'; allowed here: null"),
        ({"name": "wideresnet38", "output_stride": 32}, {}, "output_stride is 32; allowed: 8"),
        ({"strid": 32}, {}, "unknown keyword 'strid' of backbone"),
    ],
)
def test_bad_keys(backbone, head, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_detector(
            num_classes=3, backbone={"name": "test_resnet"} | backbone, head={"name": "mask_rcnn"} | SMALL | head
        )


def test_bad_targets():
    model = build("mask_rcnn")
    image, target = picture(BOXES, [0, 2])
    flat = target | {"boxes": torch.tensor([[4.0, 8, 4, 40], [1, 1, 2, 2]])}
    for given, message in (
        (None, "target is None in training"),
        ([target, target], "target is of 2 images; allowed: one of each of the 1 images"),
        ([flat], r"a box is \[4.0, 8.0, 4.0, 40.0\]; allowed: x1 < x2 and y1 < y2"),
    ):
        with pytest.raises(ValueError, match=message):
            model(image[None], given)
    with pytest.raises(ValueError, match="target is given in evaluation"):
        model.eval()(image[None], [target])


def test_learns_a_picture_and_finds_its_object():
    model = build("cascade_mask_rcnn", min_score=0.3)
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
    assert found["labels"][0] == 1
    assert found["scores"][0] > 0.6
    assert box_iou(found["boxes"][:1], target["boxes"]) > 0.7
