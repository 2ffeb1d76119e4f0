"""Batch norms folded into the convolutions before them: in evaluation both are one affine map, computed once for all.

Which norm follows which convolution is seen, not guessed from names: a pass on tensors that hold nothing shows whose
output a norm is given, and whether anybody else reads it.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from segmodels.cost import on_meta

CONVOLUTIONS = (nn.Conv1d.forward, nn.Conv2d.forward)  # by what a module computes: subclasses may compute more
NORM = nn.modules.batchnorm._BatchNorm.forward


class Reads(TorchDispatchMode):
    """Within it, counts the operations that read each tensor of `made`: id -> number."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if id(leaf) in self.made:
                self.made[id(leaf)] += 1
        return func(*args, **(kwargs or {}))


def fold_norms(model: nn.Module, inputs: Any) -> nn.Module:
    """A copy in evaluation mode whose convolutions do the work of the batch norms after them.

    Norms stay that follow anything else, or a convolution whose output somebody else reads too.

    Args:
        model: stays as it is.
        inputs: what it is called with, on the meta device, in float32.

    Returns:
        A copy; its outputs are the model's within rounding.
    """
    pairs = foldable(model, inputs)
    folded = copy.deepcopy(model).eval()
    for conv, norm in pairs:
        before, after = folded.get_submodule(conv), folded.get_submodule(norm)
        one = fuse_conv_bn_eval(before, after)  # type: ignore[arg-type, type-var]
        for name, module in list(folded.named_modules(remove_duplicate=False)):
            if module is before or module is after:
                folded.set_submodule(name, one if module is before else nn.Identity())
    return folded


@torch.no_grad()
def foldable(model: nn.Module, inputs: Any) -> list[tuple[str, str]]:
    """Names of convolutions, each with that of the batch norm that is the only reader of all that it gives.

    Args:
        inputs: what the model is called with, on the meta device.
    """
    tried, reads = on_meta(model).float(), Reads()
    names = {module: name for name, module in tried.named_modules()}
    outputs: list[tuple[nn.Module, Tensor]] = []  # held, as inputs are, so that no id is given twice
    given: dict[nn.Module, list[Tensor]] = {}

    def note_output(module: nn.Module, _: Any, output: Tensor) -> None:
        outputs.append((module, output))
        reads.made[id(output)] = 0

    def note_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        given.setdefault(module, []).append(inputs[0])

    for module in tried.modules():
        if type(module).forward in CONVOLUTIONS:
            module.register_forward_hook(note_output)
        elif type(module).forward is NORM and getattr(module, "running_mean", None) is not None:
            module.register_forward_pre_hook(note_input)
    with reads:
        tried(inputs)
    return [(names[conv], names[norm]) for conv, norm in pairs_of(outputs, given, reads.made)]


def pairs_of(
    outputs: list[tuple[nn.Module, Tensor]], given: dict[nn.Module, list[Tensor]], reads: dict[int, int]
) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Convolutions and norms that belong to each other in every one of their calls."""
    for norm, tensors in given.items():
        inputs = [id(tensor) for tensor in tensors]
        makers = {module for module, output in outputs if id(output) in inputs}
        if len(makers) != 1:
            continue
        conv = makers.pop()
        made = [id(output) for module, output in outputs if module is conv]
        if sorted(made) == sorted(inputs) and all(reads[number] == 1 for number in made):
            yield conv, norm
