"""Trunks: sizes, costs, dilations, weights. Our own also have test files of their own; here is what holds for all."""

from functools import cache

import pytest
import timm
import torch
from safetensors.torch import save_file

from segmodels.backbone import BACKBONES, build_backbone
from segmodels.hrnet import HRNet, exchange
from segmodels.segmentor import build_segmentor
from segmodels.xception import Xception

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NARROW, WIDE = (64, 128, 256, 512), (256, 512, 1024, 2048)
WIDTHS = {
    "test_resnet": (32, 48, 192, 96),
    "resnet10t": NARROW,
    "resnet18": NARROW,
    "resnet34": NARROW,
    **dict.fromkeys(("resnet50", "resnet101", "resnet152", "resnet50s", "resnet101s", "resnet152s"), WIDE),
    "hrnet_w48": (48, 96, 720, 720),
    "xception65": (256, 728, 1024, 2048),
    "wideresnet38": (256, 512, 2048, 4096),
    "df1": (64, 64, 128, 512),
    "df2": (64, 128, 256, 512),
}


def down(size, stride):
    return -(-size // stride)


@cache
def meta(name, stride, grid=None):
    with torch.device("meta"):
        return build_backbone(name, stride, multi_grid=grid).eval()


@torch.no_grad()
def shapes(backbone, *size):
    return [tuple(f.shape) for f in backbone(torch.zeros(size, device="meta"))]


def test_the_table_is_whole():
    assert set(WIDTHS) == set(BACKBONES)
    tags = {kind.tag for kind in BACKBONES.values() if kind.tag}
    assert tags <= set(timm.list_pretrained())


@pytest.mark.parametrize(
    ("name", "stride"),
    [(name, kind.output_strides[0]) for name, kind in BACKBONES.items()]
    + [("resnet18", 16), ("resnet50s", 16), ("resnet50s", 32), ("xception65", 16), ("xception65", 32)],
)
def test_widths_strides_and_normalisation(name, stride):
    """At sides that no stride divides, and that halve to odd ones: every map rounds up."""
    backbone = meta(name, stride)
    assert backbone.channels == WIDTHS[name]
    assert backbone.strides == ((4, 8, 4, 4) if name == "hrnet_w48" else tuple(min(s, stride) for s in (4, 8, 16, 32)))
    expected = [(2, c, down(65, s), down(91, s)) for c, s in zip(backbone.channels, backbone.strides, strict=True)]
    assert shapes(backbone, 2, 3, 65, 91) == expected
    assert (backbone.mean, backbone.std) == (HALF if name in ("test_resnet", "xception65") else IMAGENET)


@pytest.mark.parametrize(
    ("name", "stride", "size", "count", "giga"),
    [
        ("resnet50s", 8, 512, 23631808, 106.749),
        ("resnet101s", 8, 512, 42623936, 184.327),
        ("resnet50s", 32, 513, 23631808, 29.690),
        ("resnet101s", 32, 513, 42623936, 50.315),
        ("hrnet_w48", 4, 512, 65325120, 84.72),
        ("xception65", 8, 512, 37867312, 158.7),
        ("xception65", 16, 512, 37867312, 46.0),
    ],
)
@torch.no_grad()
def test_golden_costs(golden, name, stride, size, count, giga):
    golden(lambda: meta(name, stride), count, giga, (1, 3, size, size))


def test_papers_trunk_at_stride_8():
    trunk, plain = meta("resnet101s", 8).trunk, meta("resnet101", 8).trunk
    assert [m.out_channels for m in trunk.conv1 if isinstance(m, torch.nn.Conv2d)] == [64, 64, 128]
    assert plain.conv1.kernel_size == (7, 7)
    for resnet in (trunk, plain):
        assert [block.conv2.dilation[0] for block in resnet.layer3] == [1] + 22 * [2]
        assert [block.conv2.dilation[0] for block in resnet.layer4] == [2, 4, 4]


@pytest.mark.parametrize(
    ("name", "stride", "grid", "convs"),
    [
        ("resnet50s", 8, (2, 8, 16), ["conv2"]),
        ("resnet101", 16, (4, 8, 16), ["conv2"]),
        ("resnet34", 8, (4, 8, 16), ["conv1", "conv2"]),
        ("resnet18", 8, (2, 8), ["conv1", "conv2"]),
    ],
)
def test_multi_grid_dilates_only_the_3x3_convolutions_of_the_last_stage(name, stride, grid, convs):
    backbone, plain = meta(name, stride, grid), meta(name, stride)
    assert shapes(backbone, 1, 3, 65, 97) == shapes(plain, 1, 3, 65, 97)
    for block, dilation in zip(backbone.trunk.layer4, grid, strict=True):
        found = {n: m for n, m in block.named_modules() if isinstance(m, torch.nn.Conv2d)}
        for key, conv in found.items():
            expected = (dilation, dilation) if key in convs else (1, 1)
            assert conv.dilation == expected
            assert conv.padding == (expected if key in convs else (0, 0))
    before = [m.dilation for m in plain.trunk.layer3.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [m.dilation for m in backbone.trunk.layer3.modules() if isinstance(m, torch.nn.Conv2d)] == before


@pytest.mark.parametrize(
    ("name", "stride", "grid", "message"),
    [
        (
            "resnet50s",
            32,
            [2, 8, 16],
            "output_stride 32 the last stage strides.*set output_stride: 8 or 16, or multi",
        ),
        (
            "resnet50s",
            8,
            [2, 8],
            r"multi_grid is \[2, 8\]; allowed: one .* of the 3 blocks of resnet50s's last",
        ),
        (
            "resnet18",
            8,
            (2, 8, 16),
            r"\(2, 8, 16\); .*each of the 2 blocks of resnet18's last stage, such as \[2, 8\]",
        ),
        ("resnet50s", 8, 4, "multi_grid is 4; allowed: one dilation for each"),
        ("resnet50s", 8, [2, 0, 4], "multi_grid is 0; allowed: an integer of at least 1"),
        ("resnet50s", 8, [2, 4.0, 4], "multi_grid is 4.0"),
        ("xception65", 8, [2, 8, 16], r"multi_grid is \[2, 8, 16\]; allowed for xception65, which is no ResNet: null"),
    ],
)
def test_bad_multi_grids(name, stride, grid, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_backbone(name, stride, multi_grid=grid)


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors"])
@pytest.mark.parametrize("stride", [8, 32])
def test_weights_round_trip(tmp_path, suffix, stride):
    source = build_backbone("resnet18", stride)
    state = source.trunk.state_dict() | {"fc.weight": torch.zeros(9, 512), "fc.bias": torch.zeros(9)}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        nested = {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}
        torch.save(nested if suffix == ".pth" else state, path)
    loaded = build_backbone("resnet18", stride, weights=str(path)).trunk.state_dict()
    assert all(torch.equal(v, loaded[k]) for k, v in source.trunk.state_dict().items())


def test_weights_of_our_own_trunk_round_trip(tmp_path):
    source, path = build_backbone("df1", 32), str(tmp_path / "df1.pth")
    torch.save(source.trunk.state_dict() | {"fc.weight": torch.zeros(9, 512)}, path)
    loaded = build_backbone("df1", 32, weights=path).trunk.state_dict()
    assert all(torch.equal(v, loaded[k]) for k, v in source.trunk.state_dict().items())
    with pytest.raises(ValueError, match="give the file of df2, or name the backbone"):
        build_backbone("df2", 32, weights=path)


@pytest.mark.parametrize("name", [name for name, kind in BACKBONES.items() if kind.tag])
def test_file_of_timms_whole_model_is_the_trunk_and_its_classifier(name):
    kind = BACKBONES[name]
    with torch.device("meta"):
        whole = timm.create_model(kind.tag).state_dict()
    trunk = meta(name, kind.output_strides[0]).trunk.state_dict()
    kept = {k: tuple(v.shape) for k, v in whole.items() if not k.startswith(kind.classifier)}
    assert kept == {k: tuple(v.shape) for k, v in trunk.items()}
    assert len(kept) < len(whole)


def test_wrong_files(tmp_path):
    state = build_backbone("resnet18").trunk.state_dict()
    path = str(tmp_path / "weights.pth")
    torch.save({k: v for k, v in state.items() if k != "conv1.weight"} | {"layer5.w": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"1 keys missing, such as \['conv1.weight'\]"):
        build_backbone("resnet18", weights=path)
    torch.save(state | {"conv1.weight": torch.zeros(8, 3, 7, 7)}, path)
    with pytest.raises(ValueError, match=r"another model's weights: .*conv1.weight.*name the backbone"):
        build_backbone("resnet18", weights=path)
    with pytest.raises(FileNotFoundError, match="give an existing file"):
        build_backbone("resnet18", weights=str(tmp_path / "none.pth"))
    with pytest.raises(ValueError, match=r"allowed: null, 'hub', or a file ending in \.pth"):
        build_backbone("resnet18", weights="imagenet")
    with pytest.raises(ValueError, match="weights is 'hub', but timm has no df2 to download; give a file, or null"):
        build_backbone("df2", 32, weights="hub")


@pytest.mark.parametrize(
    ("name", "stride", "message"),
    [
        ("resnet101c", 8, r"unknown backbone 'resnet101c'; allowed: test_resnet, .*Did you mean 'resnet101s?'"),
        ("resnet18", 7, r"output_stride is 7; allowed: 8, 16, 32. Did you mean 8\?"),
        ("resnet18", 4, r"output_stride is 4; allowed: 8, 16, 32. Did you mean 8\?"),
        ("hrnet_w48", 8, r"output_stride is 8; allowed: 4. hrnet_w48 has no other: set output_stride: 4"),
        ("wideresnet38", 16, r"output_stride is 16; allowed: 8. wideresnet38 has no other: set output_stride: 8"),
        ("df1", 8, r"output_stride is 8; allowed: 32. df1 has no other: set output_stride: 32"),
    ],
)
def test_bad_names_and_strides(name, stride, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(name, stride)


# HRNet and Xception: timm's layers in our forward passes.


@pytest.fixture
def small_hrnet():
    net = HRNet("hrnet_w18_small").eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
    return net


def test_hrnet_is_timms_before_its_classifier(small_hrnet):
    """Equal where timm runs: sides that are multiples of 32. The trap: plain `features_only` has other widths."""
    theirs = timm.create_model("hrnet_w18_small", features_only=True, feature_location="", out_indices=(1, 2, 3, 4))
    theirs.eval().load_state_dict(small_hrnet.state_dict())
    image = torch.randn(1, 3, 64, 96)
    maps = theirs(image)
    ours = small_hrnet(image)
    enlarged = [torch.nn.functional.interpolate(m, (16, 24), mode="bilinear", align_corners=True) for m in maps[1:]]
    assert torch.equal(ours[0], maps[0])
    assert torch.equal(ours[1], maps[1])
    assert torch.allclose(ours[2], torch.cat([maps[0], *enlarged], 1), atol=1e-6)
    assert ours[3] is ours[2]
    with torch.device("meta"):
        assert timm.create_model("hrnet_w48", features_only=True).feature_info.channels() == [64, 128, 256, 512, 1024]
        assert (
            sum(timm.create_model("hrnet_w48", features_only=True, feature_location="").feature_info.channels()) == 784
        )


def test_hrnet_uses_every_layer_at_odd_sides(small_hrnet):
    small_hrnet.train()(torch.randn(2, 3, 45, 71))[3].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in small_hrnet.parameters())


def test_hrnet_exchange_exports_with_free_sizes(small_hrnet):
    class Exchange(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = small_hrnet.stage4[0].fuse_layers

        def forward(self, first, second, third, fourth):
            return exchange(self.layers, [first, second, third, fourth])

    def maps(height, width):
        widths = [branch[0].conv1.in_channels for branch in small_hrnet.stage4[0].branches]
        return tuple(
            torch.randn(1, c, down(height, s), down(width, s)) for c, s in zip(widths, (1, 2, 4, 8), strict=True)
        )

    module, free = Exchange().eval(), {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(module, maps(18, 25), dynamic_shapes=(free,) * 4).module()
    given = maps(23, 13)
    with torch.no_grad():
        pairs = zip(program(*given), module(*given), strict=True)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


def test_heads_on_hrnet_read_all_720_channels_at_stride_4():
    """The auxiliary head on its usual stage too; and a bound head learns its size."""
    with torch.device("meta"):
        model = build_segmentor(
            num_classes=3,
            crop=(65, 97),
            backbone={"name": "hrnet_w48", "output_stride": 4},
            head={"name": "reconet", "channels": 8, "rank": 2},
            aux={"name": "fcn", "channels": 8},
        )
    assert model.feature_size == (17, 25)
    assert model.aux.reduce[0].in_channels == model.head.reduce[0].in_channels == 720


def test_xceptions_maps_are_timms():
    theirs = timm.create_model("xception65", num_classes=0, global_pool="", output_stride=8).eval()
    seen = []
    for level in theirs.feature_info[1:]:
        theirs.get_submodule(level["module"]).register_forward_hook(lambda m, given, out: seen.append(out.clone()))
    ours = Xception("xception65", 8).eval()
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        image = torch.randn(1, 3, 33, 41)
        theirs(image)
        assert all(torch.equal(a, b) for a, b in zip(ours(image), seen, strict=True))
