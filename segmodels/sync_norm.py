"""Batch norm over the images of all workers, without a wait for the device.

PyTorch's own leaves empty shares out, for which it looks at a mask on the host, three times a layer. Here all shares
are equal, so one gathering forward and one sum backward are enough, and both can be compiled.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class SyncBatchNorm(_BatchNorm):
    """Normalises by mean and variance over the images of all workers (Ioffe and Szegedy, 2015, Alg. 1).

    Every worker holds as many values. In evaluation mode, and on one worker, it is plain batch norm.

    Shape: (B, C, *) -> (B, C, *).
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"the norm got an input of shape {tuple(input.shape)}; allowed: (B, C) or (B, C, …)")

    def forward(self, input: Tensor) -> Tensor:
        world = dist.get_world_size() if dist.is_initialized() else 1
        if not self.training or world == 1:
            return super().forward(input)
        self._check_input_dim(input)
        values = input.numel() // input.shape[1]
        if input.is_cuda and self.momentum is not None and not torch.compiler.is_compiling():
            output = NormaliseOnGpu.apply(
                input, self.weight, self.bias, self.running_mean, self.running_var, self.momentum, self.eps,
                shares(world, values, input.device),
            )  # fmt: skip
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
            return output
        output, mean, var = Normalise.apply(input, self.weight, self.bias, self.eps, world)
        self._track(mean, var, values * world)
        return output

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Move the running statistics towards those of a batch, the variance without bias.

        Args:
            mean, var: of the batch (C,).
            count: values per channel, on all workers.
        """
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1.0 / self.num_batches_tracked.float() if self.momentum is None else self.momentum
        for running, now in ((self.running_mean, mean), (self.running_var, var * (count / max(count - 1, 1)))):
            running.add_((now.to(running) - running) * share)


class SyncBatchNormAct(SyncBatchNorm):
    """The same with the dropout and the activation that timm's `BatchNormAct2d` holds."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


class Normalise(torch.autograd.Function):
    """Batch norm by the statistics of all workers; gives the output and these statistics.

    In operations that every device has, and that a compiler fuses.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, world: int
    ) -> tuple[Tensor, ...]:
        own = torch.cat(statistics(x))
        gathered = own.new_empty(world * len(own))
        dist.all_gather_into_tensor(gathered, own)
        means, variances = gathered.view(world, 2, -1).unbind(1)
        mean = means.mean(0)
        var = (variances + (means - mean) ** 2).mean(0)  # equal shares: no sums of squares, which would cancel
        ctx.save_for_backward(x, weight, mean, var)
        ctx.world, ctx.eps = world, eps
        output = F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
        ctx.mark_non_differentiable(mean, var)
        return output, mean, var

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        inverse = torch.rsqrt(var + ctx.eps)
        # by given statistics: dx as far as these do not depend on x, and the sums of dy, alone and times the output
        # before the weight; these are this worker's gradients, DDP adds up those of all
        dx, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, var, mean, inverse, False, ctx.eps, [True, True, True]
        )
        total = torch.cat([of_weight, of_bias])
        dist.all_reduce(total)
        scale = (inverse if weight is None else weight * inverse) / (-x.numel() // x.shape[1] * ctx.world)
        by_weight, by_bias = total.view(2, -1) * scale
        dx += F.batch_norm(x, mean, var, by_weight, by_bias, False, 0.0, ctx.eps)
        return dx, *((None, None) if weight is None else (of_weight, of_bias)), None, None


class NormaliseOnGpu(torch.autograd.Function):
    """The same by the CUDA kernels of PyTorch's `SyncBatchNorm`: they read a map as it is, and move the statistics.

    A compiler does not know them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
        counts: tuple[Tensor, Tensor],
    ) -> Tensor:
        x = dense(x)
        own = torch.cat(torch.batch_norm_stats(x, eps))
        world = len(counts[0])
        gathered = own.new_empty(world * len(own))
        dist.all_gather_into_tensor(gathered, own)
        means, inverses = gathered.view(world, 2, -1).unbind(1)
        mean, inverse = torch.batch_norm_gather_stats_with_counts(
            x, means, inverses, running_mean, running_var, momentum, eps, counts[0]
        )
        ctx.save_for_backward(x, weight, mean, inverse, counts[1])
        return torch.batch_norm_elemt(x, weight, bias, mean, inverse, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, counts = ctx.saved_tensors
        grad, learns = dense(grad), weight is not None
        *sums, of_weight, of_bias = torch.batch_norm_backward_reduce(
            grad, x, mean, inverse, weight, True, learns, learns
        )
        total = torch.cat(sums)
        dist.all_reduce(total)
        of_mean, of_spread = total.chunk(2)
        dx = torch.batch_norm_backward_elemt(grad, x, mean, inverse, weight, of_mean, of_spread, counts)
        return dx, of_weight if learns else None, of_bias if learns else None, None, None, None, None, None


@functools.lru_cache(maxsize=256)
def shares(world: int, values: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Values per channel of each worker (W,), as float32 and as int32: what the kernels take."""
    counts = torch.full((world,), values, dtype=torch.int32, device=device)
    return counts.float(), counts


def dense(x: Tensor) -> Tensor:
    """The map in a layout that the kernels take."""
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel (C,), in float32 at least."""
    wide = x if x.dtype == torch.float64 else x.float()
    if x.device.type == "cpu" and not torch.compiler.is_compiling():  # there four times as fast
        mean, var = torch.batch_norm_update_stats(wide, None, None, 0.0)
        return mean, var
    var, mean = torch.var_mean(wide, [axis for axis in range(x.dim()) if axis != 1], correction=0)
    return mean, var


def synchronised(model: nn.Module) -> nn.Module:
    """The model with its batch norms replaced by those over all workers; parameters, buffers and names stay.

    Args:
        model: is changed; it is what comes back, unless it is a norm itself.
    """
    for name, child in model.named_children():
        setattr(model, name, synchronised(child))
    if not isinstance(model, nn.BatchNorm1d | nn.BatchNorm2d):
        return model
    kind = SyncBatchNormAct if isinstance(model, BatchNormAct2d) else SyncBatchNorm
    norm = kind(model.num_features, model.eps, model.momentum, model.affine, model.track_running_stats, device="meta")
    norm._parameters, norm._buffers, norm._modules = model._parameters, model._buffers, model._modules
    return norm.train(model.training)
