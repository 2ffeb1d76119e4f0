"""Layers written out from their equations, and the comparison of a module with them in float64."""

import torch
import torch.nn.functional as F
from torch import nn


def scramble(module):
    """The module in float64 with random parameters and statistics: no gate at zero, no norm at its start."""
    module = module.double()
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            nn.init.normal_(child.running_mean)
            nn.init.uniform_(child.running_var, 0.5, 2)
            nn.init.uniform_(child.weight, 0.5, 2)
            nn.init.normal_(child.bias)
        elif isinstance(child, nn.Conv2d):
            nn.init.normal_(child.weight, std=child.weight[0].numel() ** -0.5)
            if child.bias is not None:
                nn.init.normal_(child.bias)
    for parameter in module.parameters():
        if parameter.numel() == 1:
            nn.init.constant_(parameter, 0.7)
    return module


def conv(layer, x):
    side = layer.weight.shape[-1] // 2
    y = sum(
        torch.einsum("oc,bchw->bohw", layer.weight[:, :, i, j], F.pad(x, (side,) * 4)[..., i : i + h, j : j + w])
        for h, w in [x.shape[2:]]
        for i in range(layer.weight.shape[2])
        for j in range(layer.weight.shape[3])
    )
    return y if layer.bias is None else y + layer.bias[:, None, None]


def norm(layer, x):
    mean, var = layer.running_mean, layer.running_var
    if layer.training:
        mean = x.mean((0, 2, 3))
        var = ((x - mean[:, None, None]) ** 2).mean((0, 2, 3))
    y = (x - mean[:, None, None]) / (var[:, None, None] + layer.eps) ** 0.5
    return layer.weight[:, None, None] * y + layer.bias[:, None, None]


def block(layers, x):
    """Convolution, norm, ReLU."""
    return norm(layers[1], conv(layers[0], x)).clamp(min=0)


def relative(a, b):
    """Relative error; absolute below a norm of 1, as of gradients that are zero but for rounding."""
    return ((a - b).norm() / b.norm().clamp(min=1)).item()


def agree(fast, slow, leaves, bound=1e-10):
    """Whether two results and their gradients on all leaves are equal, the leaves that got none on both sides too."""
    probe = torch.randn_like(slow)
    pairs = zip(
        torch.autograd.grad(fast, leaves, probe, retain_graph=True, allow_unused=True),
        torch.autograd.grad(slow, leaves, probe, retain_graph=True, allow_unused=True),
        strict=True,
    )
    zero = torch.zeros(())
    errors = [relative(zero if a is None else a, zero if b is None else b) for a, b in pairs]
    return relative(fast, slow) < bound and max(errors) < bound
