"""Parameters, multiply-accumulates and activation memory, counted on the meta device: nothing is computed.

The papers count by several rules; a figure without its rule says nothing. MACs are half of FLOPs.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from segmodels.checks import choose, positive

SILENT = (nn.Identity, nn.Dropout, nn.Dropout2d)  # in evaluation they pass their input on
PAPER_SIZES = (  # (h, w) in pixels at which the papers print costs
    (512, 512),  # RecoNet, Table 9
    (513, 513),  # CTNet, Table 3
    (768, 768),  # SRNet, Tables I and IV
    (1024, 1024),  # OCNet, Table 4: a map of 128 x 128 at stride 8
    (1024, 2048),  # SRNet, Table V
)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@dataclass(frozen=True)
class Cost:
    """What a model costs at one image of one size.

    Attributes:
        parameters: their number.
        macs: multiply-accumulates of one forward pass in evaluation.
        convention: the counting rule, a key of `CONVENTIONS`.
        size: (h, w) in pixels.
        activation_bytes: all outputs of leaf modules, every call, in float32. This is no peak, and the results of
            functions such as products and resizing are not in it.
    """

    parameters: int
    macs: int
    convention: str
    size: tuple[int, int]
    activation_bytes: int


def measure(model: nn.Module, size: tuple[int, int], convention: str = "conv+matmul") -> Cost:
    """Count a model's cost at one RGB image; the model stays as it is.

    Args:
        model: takes an image (1, 3, h, w).
        size: (h, w) in pixels.
        convention: "conv+matmul", all convolutions and matrix products (FlopCounterMode / 2), or "leaf-modules",
            torchstat's rule, see `leaf_macs`.

    Raises:
        ValueError: an unknown convention or a bad size; or the head is bound to another size.
    """
    height, width = size
    size = positive("size", height), positive("size", width)
    count = choose(CONVENTIONS, convention, "cost convention")
    inputs = torch.zeros(1, 3, *size, device="meta")
    model = on_meta(model)
    return Cost(
        parameters=sum(p.numel() for p in model.parameters()),
        macs=count(model, inputs),
        convention=convention,
        size=size,
        activation_bytes=activation_bytes(model, inputs),
    )


def card(cost: Cost) -> dict[str, int | str]:
    """The cost as plain values, to log; the caller adds a prefix to the keys."""
    return {
        "parameters": cost.parameters,
        "macs": cost.macs,
        "convention": cost.convention,
        "size": "x".join(map(str, cost.size)),
        "activation_bytes": cost.activation_bytes,
    }


def on_meta(model: nn.Module) -> nn.Module:
    """A copy on the meta device in evaluation mode; the weights themselves are never copied."""
    empty: dict[int, Tensor] = {id(b): b.to("meta") for b in model.buffers()}
    empty |= {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, empty).eval()


def conv_matmul_macs(model: nn.Module, inputs: Any) -> int:
    """Multiply-accumulates of convolutions and matrix products, functional ones too; nothing else."""
    with FlopCounterMode(display=False) as counter:
        model(inputs)
    return counter.get_total_flops() // 2


def leaf_macs(model: nn.Module, inputs: Any) -> int:
    """torchstat's rule, by which several papers' trunks are counted.

    Convolutions and linear layers: MACs, and one per output if biased; batch norms: two per value; ReLUs: one;
    poolings: one per input value. A module called several times counts once; functions count nothing. The papers'
    trunks call one ReLU three times per block, where timm's have three ReLUs: 0.04 % more here.
    """
    counts: dict[nn.Module, int] = {}

    def hook(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        counts[module] = leaf_count(module, given[0], output)

    run_hooked(model, inputs, hook)
    return sum(counts.values())


def leaf_count(module: nn.Module, given: Tensor, output: Tensor) -> int:
    """One leaf module's share under torchstat's rule."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        return output.numel() * (math.prod(module.weight.shape[1:]) + (module.bias is not None))
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return 2 * output.numel()
    if isinstance(module, nn.ReLU):
        return output.numel()
    return given.numel() if isinstance(module, POOLS) else 0


def activation_bytes(model: nn.Module, inputs: Any) -> int:
    """All outputs of leaf modules, every call, at 4 bytes a value; a module may give several tensors."""
    sizes: list[int] = []
    run_hooked(model, inputs, lambda module, given, output: sizes.extend(4 * x.numel() for x in tree_leaves(output)))
    return sum(sizes)


def run_hooked(model: nn.Module, inputs: Any, hook: Callable[..., None]) -> None:
    """Run the model with a hook on every leaf module that does something."""
    leaves = [m for m in model.modules() if not list(m.children()) and not isinstance(m, SILENT)]
    handles = [leaf.register_forward_hook(hook) for leaf in leaves]
    try:
        model(inputs)
    finally:
        for handle in handles:
            handle.remove()


CONVENTIONS: dict[str, Callable[[nn.Module, Any], int]] = {
    "conv+matmul": conv_matmul_macs,
    "leaf-modules": leaf_macs,
}
