"""Layers that can keep less for the backward pass and compute it again: where memory bounds the crop.

They do so where `set_recompute` says it; else, and under a compiler, which decides itself what to keep, they are plain.
All of it gives only first derivatives.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segmodels.layers import ConvNormReLU

T = TypeVar("T")

WITHIN: ContextVar[bool] = ContextVar("WITHIN", default=False)  # `plainly`


def set_recompute(model: nn.Module, on: bool) -> int:
    """Let all layers of a model that can do so keep less and compute it again, or not; numbers stay but for rounding.

    Returns:
        How many layers can: 0 for all heads but OCNet's and `sa2x`.
    """
    able: list[Any] = [module for module in model.modules() if hasattr(type(module), "recompute")]
    for module in able:
        module.recompute = on
    return len(able)


class LeanConvNormReLU(ConvNormReLU):
    """A 1x1 `ConvNormReLU` that, where `set_recompute` says it, keeps its output, but not the input of its batch norm.

    Shape: (B, in, H, W) -> (B, out, H, W).
    """

    recompute = False

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        conv, norm, relu = self
        y = conv(x)
        if not self.recompute or not recording(self, x) or WITHIN.get():
            return relu(norm(y))
        source, dtype, norm_input = x.detach(), y.dtype, weakref.ref(y)  # autograd holds on to the hooks

        def unpack(saved: Tensor | None) -> Tensor:
            if saved is not None:
                return saved
            with torch.no_grad(), torch.autocast(source.device.type, enabled=False):
                return F.conv2d(source.to(dtype), cast("Tensor", conv.weight).to(dtype))

        with torch.autograd.graph.saved_tensors_hooks(lambda saved: None if saved is norm_input() else saved, unpack):
            z = norm(y)
        return relu(z)


def recomputed(function: Callable[..., T], module: nn.Module, *inputs: Tensor) -> T:
    """`function(*inputs)`, computed again for the backward pass: autograd keeps only the inputs.

    Args:
        function: draws no random numbers.
        module: has the parameters and batch norms that the function uses; the norms count each batch once.
        inputs: what is kept.
    """
    if not recording(module, *inputs) or WITHIN.get():  # PyTorch 2.11's compiler does not trace a ContextVar
        return function(*inputs)

    def within(*tensors: Tensor) -> T:
        with plainly():
            return function(*tensors)

    return cast(
        "T",
        checkpoint(
            within,
            *inputs,
            use_reentrant=False,
            preserve_rng_state=False,
            determinism_check="none",
            context_fn=lambda: (contextlib.nullcontext(), second_pass(module)),
        ),
    )


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Within it nothing is computed again."""
    token = WITHIN.set(True)
    try:
        yield
    finally:
        WITHIN.reset(token)


def recording(module: nn.Module, *inputs: Tensor) -> bool:
    """Whether autograd keeps anything of this pass."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    return any(t.requires_grad for t in (*inputs, *module.parameters()))


@contextlib.contextmanager
def second_pass(module: nn.Module) -> Iterator[None]:
    """Throw away the running statistics of the second pass: the first has counted the batch."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    kept = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm._buffers.update({name: None if b is None else b.clone() for name, b in norm._buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
