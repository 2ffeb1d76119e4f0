"""What a training step holds and does on a GPU, found without one: on tensors that hold nothing.

The model's own forward pass, loss and backward pass run; every operation is seen. So a change of a head or of a loss
changes the estimate with it, and there is no formula to keep up to date.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from segmodels.gpus import Gpu
from segmodels.heads.attention import fused_only
from segmodels.losses import Objective
from segmodels.memory import LiveStorages, drawn

aten = torch.ops.aten
VALUE = 4  # bytes of weights, an optimizer's state, gradients, and of their running average, a parameter
NORMS = (aten.native_batch_norm, aten._native_batch_norm_legit, aten._batch_norm_with_update)
NORMS_BACK = (aten.native_batch_norm_backward, aten.batch_norm_backward)
SILENT = (aten.detach, aten.empty, aten.empty_like, aten.empty_strided, aten._unsafe_view, aten.lift_fresh)
UPDATE_MOVES = 3 * VALUE  # reads weight and gradient, writes weight; each state is read and written besides


@dataclass(frozen=True)
class StepCost:
    """A training step of one worker.

    Attributes:
        images: of a forward pass.
        passes: forward passes, whose gradients add up to the worker's share of the batch.
        precision: of the network, `bf16`, `fp16` or `fp32`.
        state: bytes that stay: weights, the optimizer's state, buffers, their average, gradients that wait for
            other parts.
        activations: the most bytes that a pass holds beside these.
        flops: of the whole step.
        operators: FLOPs and bytes moved of each operation of a pass.
        updated: bytes that the update of the weights moves.
    """

    images: int
    passes: int
    precision: str
    state: int
    activations: int
    flops: int
    operators: tuple[tuple[int, int], ...]
    updated: int

    @property
    def peak(self) -> int:
        """The most bytes that PyTorch's allocator is asked for at once."""
        return self.state + self.activations

    def roofline(self, gpu: Gpu) -> float:
        """The least seconds of the step on a GPU: each operation is bound by products or by memory."""
        one = sum(gpu.seconds(flops, moved, self.precision) for flops, moved in self.operators)
        return self.passes * one + gpu.seconds(0, self.updated, self.precision)


def step_cost(
    model: nn.Module,
    objective: Objective,
    crop: tuple[int, int],
    images: int,
    *,
    precision: str = "bf16",
    passes: int = 1,
    world: int = 1,
    average: bool = False,
    frozen: Collection[str] = (),
    states: int = 1,
) -> StepCost:
    """Count a training step: channels_last, a fused optimizer, autocast in 16 bits unless `precision` is fp32.

    What no such count sees comes on top: CUDA's context and cuDNN's workspaces, see `gpus.CONTEXT_BYTES`.

    Args:
        model: on the meta device will do; it stays as it is. What it computes again (`set_recompute`) is not held, but
            done twice.
        objective: the loss.
        crop: (h, w) in pixels.
        images: of a forward pass.
        precision: `bf16`, `fp16` or `fp32`.
        passes: forward passes of a step.
        world: workers; several synchronise their norms and keep gradients in buckets.
        average: whether a running average of the weights is kept.
        frozen: names of norms in evaluation mode.
        states: values that the optimizer keeps of each weight, see `optim.STATES`.

    Raises:
        ValueError: the model does not take such a batch.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        net = drawn(model, trained=True)
        set_modes(net, frozen, world)
        image = torch.empty(images, 3, *crop, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
        mask = torch.empty(images, *crop, dtype=torch.uint8)
        half = torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32")
        with LiveStorages() as live, Traffic() as traffic, Fused(), fused_only(fused_attention):
            live.now = live.peak = image.nbytes + mask.nbytes
            with half:
                outputs = net(image)
            objective(outputs, mask)[0].backward()
            del outputs
        parameters = sum(p.numel() for p in net.parameters())
        buffers = sum(b.nbytes for b in net.buffers())
    copies = 1 + states + average + (world > 1 or passes > 1)
    return StepCost(
        images=images,
        passes=passes,
        precision=precision,
        state=copies * VALUE * parameters + buffers * (1 + average),
        activations=live.peak,
        flops=passes * sum(flops for flops, _ in traffic.operators),
        operators=tuple(traffic.operators),
        updated=(UPDATE_MOVES + 2 * VALUE * states) * parameters,
    )


def set_modes(net: nn.Module, frozen: Collection[str], world: int) -> None:
    """Training mode but for frozen norms; with several workers a norm takes a single value, as it sees the others'."""
    net.train()
    for name in frozen:
        net.get_submodule(name).eval()
    for module in net.modules() if world > 1 else ():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
            module.__class__ = OverWorkers


class OverWorkers(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the images of several workers, of which this one's are counted."""

    def forward(self, input: Tensor) -> Tensor:
        # of a single value there is no variance by which running statistics could move
        running = (None, None) if self.training else (self.running_mean, self.running_var)
        return torch.batch_norm(
            input, self.weight, self.bias, *running, self.training, self.momentum or 0.0, self.eps, False
        )


class Fused(TorchFunctionMode):
    """Attention as a GPU's fused kernel, which holds no weights; a CPU's takes fewer shapes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return fused_attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """What the memory-efficient kernel of CUDA gives and keeps, in autocast's precision."""
    if torch.is_autocast_enabled("cpu"):
        q, k, v = (x.to(torch.get_autocast_dtype("cpu")) for x in (q, k, v))
    shape = q.shape
    q, k, v = (x.reshape(-1, *x.shape[-3:]) if x.ndim > 3 else x.unsqueeze(1) for x in (q, k, v))
    bias = None
    if attn_mask is not None:
        bias = torch.zeros(attn_mask.shape, dtype=q.dtype).expand(*q.shape[:3], k.shape[2])
    out = aten._scaled_dot_product_efficient_attention(
        q.contiguous(), k.contiguous(), v.contiguous(), bias, True, dropout_p, is_causal, scale=scale
    )[0]
    return out.reshape(*shape[:-1], v.shape[-1])


class Traffic(TorchDispatchMode):
    """FLOPs and bytes of each operation within it: inputs read once, outputs written, norms with their second pass."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        made = bytes_of(result)
        if made and not func.is_view and packet not in SILENT:
            moved = bytes_of((args, kwargs)) + made
            if packet in NORMS:
                moved += args[0].nbytes
            elif packet in NORMS_BACK:
                moved += args[0].nbytes + args[1].nbytes
            self.operators.append((flops_of(packet, args, kwargs or {}, result), moved))
        return result


def bytes_of(tensors: Any) -> int:
    """Bytes of tensors; of one that repeats values, those that it has."""
    found = (x for x in tree_leaves(tensors) if isinstance(x, Tensor))
    return sum(min(x.numel() * x.itemsize, x.untyped_storage().nbytes()) for x in found)


def flops_of(packet: Any, args: Any, kwargs: Mapping[str, Any], result: Any) -> int:
    """FLOPs of convolutions and matrix products; PyTorch's counter overstates gradients of grouped convolutions."""
    if packet == aten.convolution:
        return 2 * result.numel() * math.prod(args[1].shape[1:])
    if packet == aten.convolution_backward:
        return 2 * args[0].numel() * math.prod(args[2].shape[1:]) * sum(args[10][:2])
    count = flop_registry.get(packet)
    return count(*args, **kwargs, out_val=result) if count else 0
