"""Scaling of the loss in fp16, whose gradients would else vanish (Micikevicius et al., ICLR 2018, arXiv:1710.03740)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Scaling:
    """PyTorch's gradient scaler, and how many steps it has left out because gradients were not finite.

    Nothing waits for the device: the fused optimizer leaves out a step by a flag on the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.scaler = torch.amp.GradScaler(device.type)
        self.left_out = torch.zeros((), device=device)

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss whose gradients fp16 can hold."""
        return self.scaler.scale(loss)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """One update by the gradients as they are without the scale, or none; the scale follows."""

        def before(optimizer: Any, *_: Any) -> None:
            self.left_out += optimizer.found_inf.to(self.left_out.device)
            begin_momentum(optimizer)

        hook = optimizer.register_step_pre_hook(before)
        self.scaler.step(optimizer)
        hook.remove()
        self.scaler.update()

    def line(self) -> dict[str, float]:
        """What the record says: the scale, and the steps left out so far; waits for the device."""
        return {"loss_scale": self.scaler.get_scale(), "left_out": int(self.left_out)}

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return self.scaler.state_dict() | {"left_out": int(self.left_out)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on as a checkpoint has it."""
        given = dict(state)
        self.left_out.fill_(given.pop("left_out"))
        self.scaler.load_state_dict(given)


def begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Momentum from 0: PyTorch's fused SGD leaves it unwritten, not 0, where its first step is left out."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():  # AdamW has none, and begins at 0
            if parameter.grad is not None and "momentum_buffer" not in optimizer.state[parameter]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
