"""Layers written out from their definitions, in float64; they read only the weights of the real ones."""

import math

import torch
from torch import nn


def randomise(module):
    """Every weight, statistic and affine far from its start; float64. Nothing stays at zero or one."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_().mul_(0.5)
    for name, buffer in module.named_buffers():
        if name.endswith("running_var"):
            buffer.abs_().add_(0.5)
    return module.double()


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


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def conv(layer, x):
    """A convolution, tap by tap, group by group."""
    (reach, _), (step, _), groups = layer.padding, layer.dilation, layer.groups
    height, width = x.shape[2:]
    canvas = x.new_zeros(*x.shape[:2], height + 2 * reach, width + 2 * reach)
    canvas[:, :, reach : reach + height, reach : reach + width] = x
    outputs = []
    for part, weight in zip(canvas.chunk(groups, 1), layer.weight.chunk(groups), strict=True):
        y = 0
        for i in range(weight.shape[2]):
            for j in range(weight.shape[3]):
                window = part[:, :, i * step : i * step + height, j * step : j * step + width]
                y = y + (weight[:, :, i, j][None, :, :, None, None] * window[:, None]).sum(2)
        outputs.append(y)
    y = torch.cat(outputs, 1)
    return y if layer.bias is None else y + layer.bias[:, None, None]


def norm(layer, x):
    """Batch norm over dimension 1: with the batch's statistics in training, else with the running ones."""
    shape = [1, -1] + [1] * (x.ndim - 2)
    mean, var = layer.running_mean.view(shape), layer.running_var.view(shape)
    if layer.training:
        others = [d for d in range(x.ndim) if d != 1]
        mean = x.mean(others, keepdim=True)
        var = ((x - mean) ** 2).mean(others, keepdim=True)
    return layer.weight.view(shape) * (x - mean) / (var + layer.eps).sqrt() + layer.bias.view(shape)


def relu(x):
    return x * (x > 0)


def cbr(layers, x):
    return relu(norm(layers[1], conv(layers[0], x)))


def linear(layer, x):
    y = torch.stack([(row * x).sum(-1) for row in layer.weight], -1)
    return y if layer.bias is None else y + layer.bias


def softmax(x, dim):
    return x.exp() / x.exp().sum(dim, keepdim=True)


def sigmoid(x):
    return 1 / (1 + (-x).exp())


def pool(x, bins):
    """Averages of bins x bins regions, region by region."""
    height, width = x.shape[2:]

    def span(i, side):
        return slice(i * side // bins, math.ceil((i + 1) * side / bins))

    rows = [[x[:, :, span(i, height), span(j, width)].mean((2, 3)) for j in range(bins)] for i in range(bins)]
    return torch.stack([torch.stack(row, 2) for row in rows], 2)


def enlarge(x, size):
    """Bilinear with aligned corners, pixel by pixel."""

    def place(i, n, m):
        at = i * (n - 1) / (m - 1) if m > 1 else 0.0
        low = min(int(at), n - 1)
        return low, min(low + 1, n - 1), at - low

    rows = []
    for i in range(size[0]):
        a, b, p = place(i, x.shape[2], size[0])
        row = []
        for j in range(size[1]):
            c, d, q = place(j, x.shape[3], size[1])
            top, bottom = (1 - q) * x[:, :, a, c] + q * x[:, :, a, d], (1 - q) * x[:, :, b, c] + q * x[:, :, b, d]
            row.append((1 - p) * top + p * bottom)
        rows.append(torch.stack(row, 2))
    return torch.stack(rows, 2)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def assert_parity(fast, slow, module, *inputs):
    """Outputs and the gradients of all inputs and parameters agree to 1e-10."""
    assert relative(fast, slow) < 1e-10
    names, leaves = zip(*module.named_parameters(), strict=True)
    leaves = [*inputs, *leaves]
    names = [*(f"input {i}" for i in range(len(inputs))), *names]
    probe = torch.randn_like(fast)
    given, wanted = (torch.autograd.grad(y, leaves, probe, retain_graph=True) for y in (fast, slow))
    largest = max(g.norm() for g in wanted)
    for name, a, b in zip(names, given, wanted, strict=True):
        # In training, the gradient of a bias before a norm is only rounding.
        assert (a - b).norm() < 1e-10 * (b.norm() + 1e-4 * largest), name


def compare(fast, slow, leaves):
    """Outputs and the gradients of all leaves agree to 1e-10, none of them zero."""
    assert relative(fast, slow) < 1e-10
    probe = torch.randn_like(fast)
    pairs = zip(torch.autograd.grad(fast, leaves, probe), torch.autograd.grad(slow, leaves, probe), strict=True)
    assert max(relative(a, b) for a, b in pairs) < 1e-10


def agree(fast, slow, leaves, bound=1e-10):
    """Whether two results and their gradients on all leaves are equal, the leaves that got none on both sides too."""
    probe = torch.randn_like(slow)
    pairs = zip(
        torch.autograd.grad(fast, leaves, probe, retain_graph=True, allow_unused=True),
        torch.autograd.grad(slow, leaves, probe, retain_graph=True, allow_unused=True),
        strict=True,
    )
    zero = torch.zeros(())
    # Absolute below a norm of 1, for gradients that are zero up to rounding.
    errors = [
        ((a - b).norm() / b.norm().clamp(min=1)).item()
        for a, b in ([zero if g is None else g for g in p] for p in pairs)
    ]
    return relative(fast, slow) < bound and max(errors) < bound
