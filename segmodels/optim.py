"""Parameter groups, the poly schedule, and SGD."""

from typing import Any

import torch
from torch import nn

from segmodels.segmentor import Segmentor


def parameter_groups(
    model: Segmentor,
    *,
    lr: float,
    weight_decay: float,
    head_lr_scale: float = 10.0,
    decay_norm_and_bias: bool = True,
) -> list[dict[str, Any]]:
    """The model's parameters, each in exactly one group: the backbone at `lr`, all else at `lr` × `head_lr_scale`.

    Ten times the trunk's rate for the heads is PyTorch-Encoding's rule.

    Args:
        lr: learning rate of the backbone.
        weight_decay: L2 penalty.
        head_lr_scale: rate of the head and the auxiliary head, in units of `lr`.
        decay_norm_and_bias: whether vectors (norms, biases, RecoNet's λ) decay too, as in the papers' code.
    """
    trunk = {id(p) for p in model.backbone.trunk.parameters()}  # a ViT's pyramid is as new as the heads
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        key = (id(parameter) in trunk, decay_norm_and_bias or parameter.ndim > 1)
        groups.setdefault(key, []).append(parameter)
    return [
        {
            "name": ("backbone" if in_trunk else "head") + ("" if decays else "_no_decay"),
            "params": parameters,
            "lr": lr if in_trunk else lr * head_lr_scale,
            "initial_lr": lr if in_trunk else lr * head_lr_scale,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (in_trunk, decays), parameters in groups.items()
    ]


def poly(step: int, steps: int, *, power: float = 0.9, warmup: int = 0, warmup_start: float = 0.1) -> float:
    """The factor on the initial rate: (1 − step/steps)^power, reached by a linear warmup.

    Args:
        step: the optimiser's step, from 0.
        steps: number of steps in the stage; at the end of the last one the factor is 0.
        power: exponent of the decay.
        warmup: steps over which the factor climbs from `warmup_start` to the curve's value at step `warmup`.
        warmup_start: the factor at step 0, if there is a warmup.

    Raises:
        ValueError: `step` not in 0..steps, or `warmup` not in 0..steps − 1.
    """
    if not 0 <= step <= steps:
        raise ValueError(f"step is {step}; allowed: 0 to {steps}, the steps of the stage")
    if not 0 <= warmup < steps:
        raise ValueError(f"warmup is {warmup} steps; allowed: 0 to {steps - 1}, below the {steps} of the stage")
    if step >= warmup:
        return (1 - step / steps) ** power
    return warmup_start + ((1 - warmup / steps) ** power - warmup_start) * step / warmup


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group its initial rate × `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def build_sgd(groups: list[dict[str, Any]], momentum: float, nesterov: bool = False) -> torch.optim.SGD:
    """SGD on `parameter_groups`, fused into one kernel where PyTorch has it: all parameters on CUDA, or all on CPU."""
    devices = {p.device.type for group in groups for p in group["params"]}
    lr = max(group["lr"] for group in groups)  # a default that no group uses
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=devices in ({"cuda"}, {"cpu"}))
