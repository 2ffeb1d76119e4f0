import pytest
import torch
from safetensors.torch import save_file

from segmodels.backbone import build_backbone


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize(("name", "widths"), [("resnet18", (64, 128, 256, 512)), ("resnet50s", (256, 512, 1024, 2048))])
def test_strides_and_widths(name, widths, stride):
    with torch.device("meta"):
        backbone = build_backbone(name, stride)
        features = backbone(torch.zeros(2, 3, 65, 97))
    assert backbone.channels == widths
    assert backbone.strides == tuple(min(s, stride) for s in (4, 8, 16, 32))
    expected = [(2, c, -(-65 // s), -(-97 // s)) for c, s in zip(widths, backbone.strides, strict=True)]
    assert [tuple(f.shape) for f in features] == expected


def test_papers_trunk_at_stride_8():
    with torch.device("meta"):
        trunk = build_backbone("resnet101s").trunk
    assert [m.out_channels for m in trunk.conv1 if isinstance(m, torch.nn.Conv2d)] == [64, 64, 128]
    assert [block.conv2.dilation[0] for block in trunk.layer3] == [1] + 22 * [2]
    assert [block.conv2.dilation[0] for block in trunk.layer4] == [2, 4, 4]


def test_mean_and_std_are_imagenets():
    with torch.device("meta"):
        backbone = build_backbone("resnet152s")
    assert (backbone.mean, backbone.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


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


def test_wrong_files(tmp_path):
    state = build_backbone("resnet18").trunk.state_dict()
    path = str(tmp_path / "weights.pth")
    torch.save({k: v for k, v in state.items() if k != "conv1.weight"} | {"head.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"1 keys missing, such as \['conv1.weight'\], 1 unexpected, such as \['head"):
        build_backbone("resnet18", weights=path)
    torch.save(state | {"conv1.weight": torch.zeros(8, 3, 7, 7)}, path)
    with pytest.raises(ValueError, match=r"another model's weights: .*conv1.weight.*name the backbone"):
        build_backbone("resnet18", weights=path)
    with pytest.raises(FileNotFoundError, match="give an existing file"):
        build_backbone("resnet18", weights=str(tmp_path / "none.pth"))
    with pytest.raises(ValueError, match=r"allowed: null, 'hub', or a file ending in \.pth"):
        build_backbone("resnet18", weights="imagenet")


def test_bad_names_and_strides():
    with pytest.raises(
        ValueError, match=r"unknown backbone 'resnet101'; allowed: resnet18, .*Did you mean 'resnet101s'"
    ):
        build_backbone("resnet101")
    with pytest.raises(ValueError, match=r"output_stride is 7; allowed: 8, 16, 32. Did you mean 8\?"):
        build_backbone("resnet18", 7)
