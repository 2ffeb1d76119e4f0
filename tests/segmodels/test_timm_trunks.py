"""`timm/NAME`: a dozen families keep what a trunk promises, load timm's own files, and learn."""

import pytest
import timm
import torch
import torch.nn.functional as F

from segmodels.backbone import build_backbone, kind_of
from segmodels.losses import Objective
from segmodels.optim import build_sgd, parameter_groups
from segmodels.pyramid import Pyramid
from segmodels.segmentor import build_segmentor

IMAGENET, HALF = (0.485, 0.456, 0.406), (0.5, 0.5, 0.5)
ALL, LAST = (8, 16, 32), (32,)
# name: widths at the largest output stride, output strides, mean, what sides are filled up to
FAMILIES = {
    "resnet50d": ((256, 512, 1024, 2048), ALL, IMAGENET, 1),
    "resnext101_32x8d": ((256, 512, 1024, 2048), ALL, IMAGENET, 1),
    "regnety_002": ((24, 56, 152, 368), ALL, IMAGENET, 1),
    "tf_efficientnet_lite0": ((24, 40, 112, 320), ALL, HALF, 1),
    "mobilenetv3_small_050": ((8, 16, 24, 288), LAST, IMAGENET, 1),
    "densenet121": ((256, 512, 1024, 1024), LAST, IMAGENET, 32),
    "vgg11_bn": ((256, 512, 512, 512), LAST, IMAGENET, 32),
    "convnext_atto": ((40, 80, 160, 320), ALL, IMAGENET, 32),
    "swin_tiny_patch4_window7_224": ((96, 192, 384, 768), LAST, IMAGENET, 32),
    "maxvit_pico_rw_256": ((32, 64, 128, 256), LAST, HALF, 256),
    "pvt_v2_b0": ((32, 64, 160, 256), LAST, IMAGENET, 1),
    "vit_tiny_patch16_224": ((64, 96, 192, 192), ALL, HALF, 16),
    "vit_small_patch14_dinov2": ((96, 192, 384, 384), ALL, IMAGENET, 16),
    "vit_small_patch16_dinov3": ((96, 192, 384, 384), ALL, IMAGENET, 16),
}

# each kind of planning once; the others repeat it
QUICK = ("resnet50d", "tf_efficientnet_lite0", "mobilenetv3_small_050", "convnext_atto", "vit_small_patch14_dinov2")


def down(size, stride):
    return -(-size // stride)


def meta(name, stride=32, **options):
    with torch.device("meta"):
        return build_backbone(f"timm/{name}", stride, **options).eval()


@torch.no_grad()
def shapes(backbone, *size):
    return [tuple(f.shape) for f in backbone(torch.zeros(size, device="meta"))]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.long] * (n not in QUICK)) for n in FAMILIES])
def test_a_family_keeps_what_a_trunk_promises(name):
    """At sides that no stride divides, and that halve to odd ones: every map rounds up."""
    channels, strides, mean, multiple = FAMILIES[name]
    assert kind_of(f"timm/{name}").output_strides == strides
    backbone = meta(name)
    assert (backbone.channels, backbone.strides) == (channels, (4, 8, 16, 32))
    assert (backbone.mean, backbone.taps.multiple) == (mean, multiple)
    assert shapes(backbone, 2, 3, 65, 91) == [
        (2, c, down(65, s), down(91, s)) for c, s in zip(channels, (4, 8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "vit_small_patch14_dinov2"])
def test_output_strides_hold_the_last_maps(name):
    for stride in (8, 16):
        backbone = meta(name, stride)
        assert backbone.strides == (4, 8, min(16, stride), stride)
        found = shapes(backbone, 1, 3, 65, 91)
        assert [s[2:] for s in found] == [(down(65, s), down(91, s)) for s in backbone.strides]


def test_hrnet_is_ours():
    """What timm gives of it is widened by the classifier's blocks."""
    backbone = meta("hrnet_w18_small", 4)
    assert (backbone.channels, backbone.strides) == ((16, 32, 240, 240), (4, 8, 4, 4))
    assert shapes(backbone, 1, 3, 65, 91)[3] == (1, 240, 17, 23)


def test_maps_are_those_of_features_only():
    """Bit for bit, where timm's wrapper has the same names; at a size that needs no filling."""
    x = torch.randn(1, 3, 64, 96)
    for name in ("resnet18d", "tf_efficientnet_lite0", "mobilenetv3_small_050"):
        ours = build_backbone(f"timm/{name}", 32).eval()
        theirs = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4)).eval()
        theirs.load_state_dict(ours.trunk.state_dict())
        with torch.no_grad():
            assert all(torch.equal(a, b) for a, b in zip(ours(x), theirs(x), strict=True)), name


def test_sides_are_filled_up_with_the_mean_colour_and_cut_off():
    backbone = build_backbone("timm/test_convnext", 32).eval()
    x = torch.randn(1, 3, 40, 70)
    with torch.no_grad():
        found, filled = backbone(x), backbone(F.pad(x, (0, 26, 0, 24)))
    for a, b in zip(found, filled, strict=True):
        assert torch.equal(a, b[..., : a.shape[2], : a.shape[3]])


def test_patches_of_14_see_an_image_of_14_sixteenths():
    """So that a cell is 16 pixels of the image, which strides of 4, 8, 16 and 32 divide."""
    backbone = meta("vit_small_patch14_dinov2", 16)
    seen = []
    backbone.trunk.patch_embed.register_forward_pre_hook(lambda module, given: seen.append(tuple(given[0].shape)))
    shapes(backbone, 1, 3, 65, 91)
    assert seen == [(1, 3, 5 * 14, 6 * 14)]


def test_a_pyramid_is_made_of_the_last_map_alone():
    pyramid = Pyramid(192, 16, 32)
    assert (pyramid.channels, pyramid.strides) == ((64, 96, 192, 192), (4, 8, 16, 32))
    x = torch.randn(2, 192, 5, 6)  # of an image of 65 x 91
    four, eight, same, half = pyramid(x, 65, 91)
    first, norm, act, second = pyramid.levels[0]
    assert torch.equal(four, second(act(norm(first(x))))[..., :17, :23])
    assert torch.equal(eight, pyramid.levels[1][0](x)[..., :9, :12])
    assert torch.equal(same, x)
    assert torch.equal(
        half,
        torch.stack([x[..., i : i + 2, j : j + 2].amax((2, 3)) for i in (0, 2, 4) for j in (0, 2, 4)], -1).view(
            2, 192, 3, 3
        ),
    )


@pytest.mark.parametrize(
    "name", ["resnet18d", "regnety_002", "tf_efficientnet_lite0", "mobilenetv3_small_050", "test_convnext", "test_vit",
             "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"],
)  # fmt: skip
@pytest.mark.slow
def test_a_step_moves_every_weight_and_whole_images_of_any_size_are_taken(name):
    torch.manual_seed(0)
    model = build_segmentor(
        num_classes=3, crop=(64, 64), backbone={"name": f"timm/{name}", "output_stride": 32},
        head={"name": "psp", "channels": 8}, aux={"name": "fcn", "stage": 3, "channels": 8},
    ).train()  # fmt: skip
    groups = parameter_groups(model, lr=0.1, weight_decay=0.0)
    image, mask = torch.randint(256, (4, 3, 64, 64)), torch.randint(3, (4, 64, 64), dtype=torch.uint8)
    loss, _ = Objective({"logits": {"cross_entropy": 1.0}, "aux": {"cross_entropy": 0.4}})(model(image), mask)
    loss.backward()
    assert loss.isfinite()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    # a pyramid's finest maps are read by no head here: only those that the trunk itself gives must learn
    assert [key for key in without if not key.startswith("backbone.pyramid.levels")] == []
    build_sgd(groups, 0.9).step()
    fresh = {id(p) for g in groups if g["name"] == "head" for p in g["params"]}
    if model.backbone.pyramid is not None:
        assert {id(p) for p in model.backbone.pyramid.parameters()} <= fresh
    with torch.no_grad():
        assert model.eval()(torch.zeros(1, 3, 75, 90, dtype=torch.uint8))["logits"].shape == (1, 3, 75, 90)


@pytest.mark.parametrize(
    "name", ["resnet18d", "tf_efficientnet_lite0", "mobilenetv3_small_050", "test_vit", "test_convnext"]
)
def test_a_file_of_timms_whole_network_loads(name, tmp_path):
    whole, path = timm.create_model(name).state_dict(), str(tmp_path / "whole.pth")
    torch.save(whole, path)
    trunk = build_backbone(f"timm/{name}", 32, weights=path).trunk.state_dict()
    assert 0 < len(trunk) < len(whole)
    assert all(torch.equal(value, whole[key]) for key, value in trunk.items())
    torch.save({key: value for key, value in whole.items() if key != next(iter(trunk))}, path)
    with pytest.raises(ValueError, match="1 keys missing"):
        build_backbone(f"timm/{name}", 32, weights=path)


def test_nothing_is_downloaded_without_being_asked(monkeypatch):
    asked = []
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda model, **options: asked.append(model))
    meta("test_vit")
    assert not asked
    meta("test_vit", weights="hub")
    assert len(asked) == 1


def test_multi_grid_of_timms_resnets():
    backbone = meta("resnet50d", 8, multi_grid=[2, 8, 16])
    assert [block.conv2.dilation for block in backbone.trunk.layer4] == [(2, 2), (8, 8), (16, 16)]
    with pytest.raises(ValueError, match="allowed for timm/convnext_atto, which is no ResNet: null"):
        meta("convnext_atto", 8, multi_grid=[2, 8, 16])


@pytest.mark.parametrize(
    ("name", "stride", "options", "message"),
    [
        ("resnet5d", 8, {}, "none of the .* networks of timm .* is 'resnet5d'. Did you mean 'resnet50d'"),
        ("resnet50.a1_in2k", 8, {}, "timm's weights of resnet50: resnet50.a1_in1k, "),
        ("mobilenetv3_small_050", 8, {}, "output_stride is 8; allowed: 32. timm/mobile.* has no other: set output_str"),
        ("hrnet_w18_small", 8, {}, "output_stride is 8; allowed: 4. timm/hrnet_w18_small has no other"),
        ("resnet50d", 4, {}, "output_stride is 4; allowed: 8, 16, 32. Did you mean 8"),
        ("levit_128", 32, {}, "maps at strides 16, 32, 64; allowed: .* at strides 4, 8, 16 and 32, or all"),
        ("mixer_s16_224", 16, {}, "maps do not follow an image's size"),
        ("inception_v3", 32, {}, "maps do not follow an image's size"),
        ("ghostnet_050", 32, {"weights": "hub"}, "weights is 'hub', but timm has none of ghostnet_050"),
    ],
)  # fmt: skip
def test_what_a_trunk_cannot_do_is_said_with_what_it_can(name, stride, options, message):
    with pytest.raises(ValueError, match=message):
        meta(name, stride, **options)


def test_one_of_timms_names_alone_is_told_of_its_prefix():
    with pytest.raises(
        ValueError, match=r"unknown backbone 'resnet50d'; allowed: .*, and timm/resnet50d\. Did you mean"
    ):
        build_backbone("resnet50d")
