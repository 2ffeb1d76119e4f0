"""ResNet trunks of timm: four feature maps, the last at output stride 8, 16 or 32.

`resnet50s`, `resnet101s` and `resnet152s` are the papers' trunks: a stem of three 3x3 convolutions (64, 64, 128) in
place of the 7x7. timm's `c` (stem 32, 32, 64) and `d` (average-pool shortcuts) cost other than the papers print.
"""

from pathlib import Path
from typing import Any

import timm
from timm.models import load_state_dict
from torch import Tensor, nn

from segmodels.checks import choose

# Name in a recipe -> timm's model and the tag of its ImageNet weights.
BACKBONES: dict[str, str] = {
    "resnet18": "resnet18.a1_in1k",
    "resnet50s": "resnet50s.gluon_in1k",
    "resnet101s": "resnet101s.gluon_in1k",
    "resnet152s": "resnet152s.gluon_in1k",
}
OUTPUT_STRIDES = (8, 16, 32)
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")


class Backbone(nn.Module):
    """The trunk of a residual network, without its classifier.

    From the output stride on, stages dilate instead of striding; timm gives the first block of such a stage the
    dilation of the stage before (at 8: 1, 2, 2, … in stage 3 and 2, 4, 4 in stage 4), as PyTorch-Encoding does.

    Attributes:
        channels: widths of the four stages.
        strides: pixels per cell of the four stages.
        mean, std: what an image in 0..1 is normalised with, per channel of RGB.

    Shape: normalised image (B, 3, H, W) -> list of four maps (B, channels[i], ⌈H/strides[i]⌉, ⌈W/strides[i]⌉).
    """

    def __init__(self, name: str, output_stride: int = 8, *, pretrained: bool = False) -> None:
        super().__init__()
        self.name = name
        trunk: Any = timm.create_model(
            BACKBONES[name],
            pretrained=pretrained,
            features_only=True,
            out_indices=(1, 2, 3, 4),  # 0 is the stem
            output_stride=output_stride,
        )
        self.trunk: nn.Module = trunk
        self.channels: tuple[int, ...] = tuple(trunk.feature_info.channels())
        self.strides: tuple[int, ...] = tuple(trunk.feature_info.reduction())
        config: Any = timm.get_pretrained_cfg(BACKBONES[name])
        self.mean: tuple[float, ...] = tuple(config.mean)
        self.std: tuple[float, ...] = tuple(config.std)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.trunk(x)


def build_backbone(name: str, output_stride: int = 8, weights: str | None = None) -> Backbone:
    """Build a trunk of `BACKBONES`.

    Args:
        name: a key of `BACKBONES`.
        output_stride: pixels per cell of the last map: 8, 16 or 32.
        weights: None for random weights; a file (.pth, .pt, .bin, .safetensors); or "hub", timm's download.

    Raises:
        ValueError: an unknown name or output stride, or a file whose weights are not this trunk's.
        FileNotFoundError: no such file.
    """
    choose(BACKBONES, name, "backbone")
    if output_stride not in OUTPUT_STRIDES:
        close = min(OUTPUT_STRIDES, key=lambda s: abs(s - output_stride))
        raise ValueError(f"output_stride is {output_stride}; allowed: 8, 16, 32. Did you mean {close}?")
    backbone = Backbone(name, output_stride, pretrained=weights == "hub")
    if weights is not None and weights != "hub":
        load_weights(backbone, weights)
    return backbone


def load_weights(backbone: Backbone, path: str) -> None:
    """Load a file of trunk weights, plain or under "state_dict", with or without the prefix "module.".

    The classifier (`fc.*`) is left out: the trunk has none. All else must match.

    Raises:
        ValueError: another kind of file, or keys or shapes that are not the trunk's.
        FileNotFoundError: no such file.
    """
    file = Path(path)
    if file.suffix not in SUFFIXES:
        raise ValueError(f"weights is {path!r}; allowed: null, 'hub', or a file ending in {', '.join(SUFFIXES)}")
    if not file.is_file():
        raise FileNotFoundError(f"no weights at {path!r}; give an existing file, 'hub' to download, or null for none")
    state = load_state_dict(path, use_ema=False, device="cpu", weights_only=True)
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    try:
        missing, unexpected = backbone.trunk.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes differ; PyTorch lists all of them
        first = " ".join(str(error).split("\n")[:3])
        raise ValueError(f"{path} holds another model's weights: {first}; name the backbone they are of") from error
    if missing or unexpected:
        raise ValueError(
            f"{path} holds another model's weights: {len(missing)} keys missing, such as {missing[:3]}, "
            f"{len(unexpected)} unexpected, such as {unexpected[:3]}; give the file of "
            f"timm's {BACKBONES[backbone.name]}, or name the backbone that these are of"
        )
