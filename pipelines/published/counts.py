"""Count what a published figure describes: parts are built on the meta device, so nothing is computed or stored.

The papers count by several rules:
    conv+matmul      MACs of convolutions and matrix products
    2 x conv+matmul  the same times 2
    leaf-modules     torchstat's rule, see `segmodels.cost.leaf_macs`
    hand             selected products of sizes, as the figure lists them
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pipelines.published.tables import CLOSE, MET, UNITS, Count, Figure
from segmodels.backbone import build_backbone
from segmodels.checks import choose, keywords_of
from segmodels.cost import conv_matmul_macs, leaf_macs, run_hooked
from segmodels.heads.catalog import HEADS, build_head
from segmodels.layers import Classifier
from segmodels.tasks.classification import build_classifier

WIDTHS = (256, 512, 1024, 2048)
STRIDES = (4, 8, 8, 8)
Built = tuple[nn.Module, Any]


def computed(figure: Figure, count: Count) -> float:
    """The value of a count in the figure's unit."""
    total = amount(count.build, figure.quantity, count.rule)
    if count.over:
        return total / amount(count.over, figure.quantity, count.rule)
    return total / UNITS[figure.unit]


def verdict(figure: Figure, value: float | None) -> str:
    """What the comparison shows now: met, and how nearly; OFF; or what the figure says in advance."""
    if value is None or figure.verdict not in MET:
        return figure.verdict
    error = abs(value - float(figure.published))
    if error > figure.margin:
        return "OFF"
    if error <= CLOSE * float(figure.published):
        return "reproduced"
    return "rounds to it" if error <= figure.half_digit else f"within {figure.tolerance:.1%}"


def amount(terms: Sequence[Mapping[str, Any]], quantity: str, rule: str) -> float:
    """The sum of terms: MACs, parameters, or bytes."""
    return sum(term.get("times", 1) * term_amount(json.dumps(term), quantity, rule) for term in terms)


@functools.cache
def term_amount(text: str, quantity: str, rule: str) -> float:
    """One term, once; `text` is its JSON, since mappings cannot be keys of a cache."""
    term = json.loads(text)
    term.pop("times", None)
    kind = next(iter(term))
    name = term.pop(kind)
    if kind == "product":
        return math.prod(name) * (4 if quantity == "memory" else 1)
    with torch.device("meta"):
        model, inputs = choose(KINDS, kind, "kind of term")(name, **term)
    if quantity == "parameters":
        return sum(p.numel() for p in model.parameters())
    if quantity == "memory":
        return leaf_bytes(model, inputs)
    factor = 2 if rule == "2 x conv+matmul" else 1
    return factor * (leaf_macs if rule == "leaf-modules" else conv_matmul_macs)(model, inputs)


def trunk(name: str, *, pixels: Sequence[int], output_stride: int = 8, shared_relu: bool = False) -> Built:
    """A backbone without classifier, on an image of `pixels` (h, w).

    `shared_relu`: one ReLU object per residual block, as in the papers' trunks, where timm's has three.
    """
    model = build_backbone(name, output_stride).eval()
    if shared_relu:
        for block in (b for i in range(1, 5) for b in getattr(model.trunk, f"layer{i}")):
            block.act1 = block.act2 = block.act3
    return model, torch.zeros(1, 3, *pixels)


def head(
    name: str,
    *,
    pixels: Sequence[int],
    classes: int = 21,
    classifier: bool = True,
    part: str = "",
    widths: Sequence[int] = WIDTHS,
    strides: Sequence[int] = STRIDES,
    **keywords: Any,
) -> Built:
    """A head of `HEADS` on the features of an image of `pixels` (h, w), or a part of it on the map of its width.

    Args:
        name: a key of `HEADS`.
        pixels: (h, w) of the image.
        classes: K.
        classifier: whether the final classifiers count.
        part: dotted name of the only module that counts, such as "context"; it is given one map, see `channels`.
        widths, strides: of the features.
        keywords: of the head.
    """
    cells = [tuple(-(-side // stride) for side in pixels) for stride in strides]
    if "feature_size" in keywords_of(choose(HEADS, name, "head")):
        keywords["feature_size"] = cells[-1]
    model = build_head(name, tuple(widths), classes, **keywords).eval()
    if not classifier:
        for path in [path for path, module in model.named_modules() if isinstance(module, Classifier)]:
            model.set_submodule(path, nn.Identity())
    if part:
        return model.get_submodule(part), torch.zeros(1, keywords.get("channels", 512), *cells[-1])
    features: list[Tensor] = [torch.zeros(1, c, *hw) for c, hw in zip(widths, cells, strict=True)]
    return model, features


def conv(
    shape: Sequence[int], *, size: Sequence[int], norm: bool = False, relu: bool = False, bias: bool = False
) -> Built:
    """A convolution (in, out, kernel) on a map of `size` (h, w) cells, with batch norm and ReLU if they are named."""
    width, out, kernel = shape
    layers: list[nn.Module] = [nn.Conv2d(width, out, kernel, padding=kernel // 2, bias=bias)]
    layers += [nn.BatchNorm2d(out)] * norm + [nn.ReLU()] * relu
    return nn.Sequential(*layers).eval(), torch.zeros(1, width, *size)


def linear(shape: Sequence[int], *, bias: bool = True) -> Built:
    """A linear layer (in, out) on one vector."""
    width, out = shape
    return nn.Linear(width, out, bias=bias), torch.zeros(1, width)


def classifier(name: str, *, pixels: Sequence[int], classes: int = 1000, context: str = "") -> Built:
    """A trunk at output stride 32 that classifies images of `pixels` (h, w), with a gate in every block if named.

    Args:
        name: of the trunk.
        pixels: (h, w) of the image.
        classes: K.
        context: a name of `segmodels.blocks.GATES`.
    """
    gate = {"name": context, "place": "blocks"} if context else None
    backbone = {"name": name, "output_stride": 32, "context": gate}
    model = build_classifier(num_classes=classes, backbone=backbone, head={"name": "classifier"})
    return model.eval(), torch.zeros(1, 3, *pixels)


KINDS: dict[str, Callable[..., Built]] = {
    "trunk": trunk, "classifier": classifier, "head": head, "conv": conv, "linear": linear,
}  # fmt: skip


def leaf_bytes(model: nn.Module, inputs: Any) -> int:
    """torchstat's memory: outputs of leaf modules in float32, of a module called several times once."""
    sizes: dict[nn.Module, int] = {}

    def hook(module: nn.Module, given: Any, output: Any) -> None:
        sizes[module] = sum(4 * x.numel() for x in tree_leaves(output))

    run_hooked(model, inputs, hook)
    return sum(sizes.values())
