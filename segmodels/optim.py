"""Parameter groups, schedules of the rate, and PyTorch's optimizers: SGD and AdamW."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.models import group_parameters
from torch import nn

from segmodels.segmentor import Segmentor

STATES = {"sgd": 1, "adamw": 2}  # values that an optimizer keeps of each weight: momentum; the averages of both


def parameter_groups(
    model: Segmentor,
    *,
    lr: float,
    weight_decay: float,
    head_lr_scale: float = 10.0,
    decay_norm_and_bias: bool = True,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """The model's parameters, each in exactly one group: the backbone at `lr`, all else at `lr` × `head_lr_scale`.

    Ten times the trunk's rate for the heads is PyTorch-Encoding's rule; a rate that falls from layer to layer towards
    the image is BEiT's (Bao et al., ICLR 2022, arXiv:2106.08254).

    Args:
        lr: learning rate of the backbone, with `layer_decay` of its last layer.
        weight_decay: L2 penalty of SGD; AdamW's decay, which is none of the gradient's.
        head_lr_scale: rate of the head and the auxiliary head, in units of `lr`.
        decay_norm_and_bias: whether vectors (norms, biases, RecoNet's λ) decay too, as in the papers' code; if not,
            what timm's network says need not decay does not either, such as a ViT's position embedding.
        layer_decay: rate of a layer of the backbone, in units of that of the layer after it; 1 for one rate.

    Raises:
        ValueError: timm does not know the backbone's layers, and `layer_decay` is not 1.
    """
    scales = layer_scales(model, layer_decay)
    trunk = {id(p) for p in model.backbone.trunk.parameters()}  # a ViT's pyramid is as new as the heads
    spared = set() if decay_norm_and_bias else spared_of(model.backbone.trunk)
    groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        decays = decay_norm_and_bias or (parameter.ndim > 1 and id(parameter) not in spared)
        key = (id(parameter) in trunk, decays, scales.get(id(parameter), 1.0))
        groups.setdefault(key, []).append(parameter)
    rates = [lr * scale if in_trunk else lr * head_lr_scale for in_trunk, _, scale in groups]
    return [
        {
            "name": ("backbone" if in_trunk else "head") + ("" if decays else "_no_decay"),
            "params": parameters,
            "lr": rate,
            "initial_lr": rate,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for ((in_trunk, decays, _), parameters), rate in zip(groups.items(), rates, strict=True)
    ]


def layer_scales(model: Segmentor, layer_decay: float) -> Mapping[int, float]:
    """The rate of each parameter of the trunk in units of the last layer's, by its id; nothing for one rate.

    timm says which layer a parameter is of.

    Raises:
        ValueError: it does not.
    """
    if layer_decay == 1:
        return {}
    trunk: Any = model.backbone.trunk
    if not hasattr(trunk, "group_matcher"):
        raise ValueError(
            f"optim.layer_decay is {layer_decay}, but timm does not say which layers {model.backbone.name} has; "
            "allowed for it: 1. One of timm's whole networks says it, such as a ViT"
        )
    layers: Mapping[str, int] = group_parameters(trunk, trunk.group_matcher(coarse=False), reverse=True)
    last = max(layers.values())
    return {id(p): layer_decay ** (last - layers.get(name, last)) for name, p in trunk.named_parameters()}


def spared_of(trunk: nn.Module) -> set[int]:
    """Parameters of a trunk that need not decay by the word of timm's network, by their ids."""
    names: set[str] = trunk.no_weight_decay() if hasattr(trunk, "no_weight_decay") else set()  # type: ignore[operator]
    return {id(p) for name, p in trunk.named_parameters() if name in names or name.rpartition(".")[2] in names}


@dataclass(frozen=True)
class Schedule:
    """The factor on the initial rate over a stage, as a function of the share of its steps that are done, 0 to 1.

    Attributes:
        name: `poly`: (1 − share)^power; `cosine`: half a wave, from 1 to 0 (Loshchilov and Hutter, ICLR 2017,
            arXiv:1608.03983, without restarts); `step`: gamma^n after n milestones.
        power: of `poly`.
        milestones: of `step`, shares in rising order.
        gamma: of `step`.
    """

    name: Literal["poly", "cosine", "step"] = "poly"
    power: float = 0.9
    milestones: Sequence[float] = ()
    gamma: float = 0.1

    def at(self, share: float) -> float:
        """The factor, warmup aside."""
        if self.name == "poly":
            return (1 - share) ** self.power
        if self.name == "cosine":
            return (1 + math.cos(math.pi * share)) / 2
        return self.gamma ** sum(share >= milestone for milestone in self.milestones)


def rate_factor(step: int, steps: int, schedule: Schedule, *, warmup: int = 0, warmup_start: float = 0.1) -> float:
    """The factor on the initial rate at a step: the schedule's curve, reached by a linear warmup.

    It depends on the step alone, so a run that goes on has the rates of one that was not interrupted.

    Args:
        step: the optimiser's step, from 0.
        steps: number of steps in the stage; `poly` and `cosine` are 0 at the end of the last one.
        schedule: the curve.
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
        return schedule.at(step / steps)
    return warmup_start + (schedule.at(warmup / steps) - warmup_start) * step / warmup


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group its initial rate × `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def build_sgd(groups: list[dict[str, Any]], momentum: float, nesterov: bool = False) -> torch.optim.SGD:
    """SGD on `parameter_groups`, fused into one kernel where PyTorch has it: all parameters on CUDA, or all on CPU."""
    lr = max(group["lr"] for group in groups)  # a default that no group uses
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=fuses(groups))


def build_adamw(groups: list[dict[str, Any]], betas: tuple[float, float], eps: float) -> torch.optim.AdamW:
    """AdamW on `parameter_groups` (Loshchilov and Hutter, ICLR 2019, arXiv:1711.05101), fused as `build_sgd`."""
    lr = max(group["lr"] for group in groups)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fuses(groups))


def fuses(groups: Sequence[Mapping[str, Any]]) -> bool:
    """Whether PyTorch updates all parameters in one kernel."""
    return {p.device.type for group in groups for p in group["params"]} in ({"cuda"}, {"cpu"})
