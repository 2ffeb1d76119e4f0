"""EMANet: expectation-maximisation attention (Li et al., ICCV 2019, arXiv:1907.13426).

We follow the public code, except for one thing. It computes bases and responsibilities without gradient, so that the
convolution before them never learns; here the last of the iterations carries gradient (`gradient: false` is theirs).
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from segmodels.checks import positive
from segmodels.heads.context_head import ContextHead
from segmodels.heads.maps import Maps
from segmodels.layers import ConvNormReLU

EPSILON = 1e-6


class ExpectationMaximisation(nn.Module):
    """EMAU: T steps of expectation, Z = softmax_k(Xᵀμ), and maximisation, μ = XẐ; then relu(μZᵀ) replaces X.

    The bases start every forward pass from a moving average over the batches, kept by `after_step`, which the
    training loop calls after each step of the optimiser; the forward pass in training only adds up what it needs.

    Args:
        channels: C.
        bases: K of the paper, number of bases.
        iterations: T.
        momentum: weight of the moving average's past.
        gradient: let the gradient pass through the last iteration, whose first bases are taken as given. Without it, as
            in the public code, the first convolution is frozen: nothing would reach it.

    Maps: "responsibilities" (B, bases, H, W), Z of the last iteration; they sum to 1 over the bases.

    Shape: (B, C, H, W) -> (B, C, H, W).
    """

    gives_maps = True
    bases: Tensor
    total: Tensor
    batches: Tensor

    def __init__(self, channels: int, bases: int, iterations: int, *, momentum: float, gradient: bool) -> None:
        super().__init__()
        self.iterations, self.momentum, self.gradient = iterations, momentum, gradient
        self.before = nn.Conv2d(channels, channels, 1).requires_grad_(gradient)
        self.behind = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        # As in the public code: 0.0625 at 512 channels. PyTorch's own start, 0.0255, leaves the responsibilities soft,
        # and with `gradient: false` the first of them stays as it starts.
        for weight in (self.before.weight, cast("nn.Conv2d", self.behind[0]).weight):
            nn.init.normal_(weight, std=(2 / channels) ** 0.5)
        start = torch.randn(1, channels, bases) * (2 / bases) ** 0.5
        self.register_buffer("bases", normalise(start))
        # Sums since the last step. Not in checkpoints, which are written between steps, where they are 0. They are 0
        # too when DDP broadcasts rank 0's buffers, before the first forward pass of a step.
        self.register_buffer("total", torch.zeros_like(start), persistent=False)
        self.register_buffer("batches", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor, maps: Maps | None = None) -> Tensor:
        points = self.before(x).flatten(2)  # X: (B, C, N)
        mu = self.bases.expand(x.shape[0], -1, -1)
        for _ in range(self.iterations - 1):
            mu = maximise(points.detach(), expect(points.detach(), mu))
        last = points if self.gradient else points.detach()
        z = expect(last, mu)
        mu = maximise(last, z)
        if self.training:
            self.total += mu.detach().mean(0, keepdim=True)
            self.batches += 1
        if maps is not None:
            maps.add("responsibilities", z.unflatten(2, x.shape[2:]))
        y = F.relu(mu.to(points.dtype) @ z.to(points.dtype)).view_as(x)
        return F.relu(self.behind(y) + x)

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the bases towards the mean μ of all forward passes since the last step, on all ranks; then forget them.

        All ranks must call it; without a forward pass in training since, the bases stay.
        """
        sums = torch.cat([self.total.flatten(), self.batches.view(1).to(self.total.dtype)])
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
        total, batches = sums[:-1].view_as(self.total), sums[-1]
        # Without reading a value on the host: the weight is 0 when there were no batches.
        weight = (1 - self.momentum) * batches.clamp(max=1)
        self.bases.lerp_(total / batches.clamp(min=1), weight)
        self.total.zero_()
        self.batches.zero_()


class EMANet(nn.Module):
    """The context of EMANet: EMAU, and a 3x3 convolution to `out_channels`.

    Shape: (B, C, H, W) -> (B, out_channels, H, W).
    """

    gives_maps = True

    def __init__(self, emau: ExpectationMaximisation, channels: int, out_channels: int) -> None:
        super().__init__()
        self.emau = emau
        self.narrow = ConvNormReLU(channels, out_channels, 3)

    def forward(self, x: Tensor, maps: Maps | None = None) -> Tensor:
        return self.narrow(self.emau(x, maps))


def emanet_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 512,
    out_channels: int = 256,
    bases: int = 64,
    iterations: int = 3,
    momentum: float = 0.9,
    gradient: bool = True,
    norm_momentum: float = 3e-4,
    dropout: float = 0.1,
) -> ContextHead:
    """EMANet in the common frame; its training loop calls `after_step` of the head's EMAU.

    Args:
        in_channels: widths of the stages; the last is read.
        num_classes: K.
        channels: width of EMAU.
        out_channels: width before the classifier.
        bases, iterations, momentum, gradient: see `ExpectationMaximisation`.
        norm_momentum: weight of a batch in the running statistics of the head's batch norms (1 − 0.9997).
        dropout: probability that a channel is dropped before the classifier.

    Raises:
        ValueError: a width, `bases` or `iterations` below 1, or a momentum or dropout out of its range.
    """
    for name, value in (("channels", channels), ("bases", bases), ("iterations", iterations)):
        positive(name, value)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum is {momentum}; allowed: from 0 to below 1, at which the bases would never move")
    if not 0 < norm_momentum <= 1:
        raise ValueError(f"norm_momentum is {norm_momentum}; allowed: above 0 to 1, a batch's weight")
    emau = ExpectationMaximisation(channels, bases, iterations, momentum=momentum, gradient=gradient)
    context = EMANet(emau, channels, positive("out_channels", out_channels))
    head = ContextHead(in_channels, num_classes, context, channels, out_channels=out_channels, dropout=dropout)
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = norm_momentum
    return head


def expect(points: Tensor, mu: Tensor) -> Tensor:
    """Z = softmax_k(μᵀX), in float32 or better: (B, C, N), (B, C, K) -> (B, K, N).

    Bases are rows, not columns as in the paper: so all gradients of X lie in memory as X does.
    """
    logits = mu.to(points.dtype).mT @ points
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)


def maximise(points: Tensor, z: Tensor) -> Tensor:
    """μ = XẐᵀ, of length 1; Ẑ is Z over its sum of positions: (B, C, N), (B, K, N) -> (B, C, K).

    The sums divide the product, C times K values, not Z's K times N.
    """
    return normalise((points @ z.to(points.dtype).mT) / (EPSILON + z.sum(2).unsqueeze(1)))


def normalise(mu: Tensor) -> Tensor:
    """Bases of length 1 along the channels: (B, C, K) -> (B, C, K)."""
    return mu / (EPSILON + mu.norm(dim=1, keepdim=True))
