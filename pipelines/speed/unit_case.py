"""One unit and its peer at one size: modules, inputs, and what is measured of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pipelines.speed.rounds import Measured, agreement, contest, training_passes
from pipelines.speed.units import Unit, wake
from segmodels.cost import conv_matmul_macs, on_meta
from segmodels.heads.attention import fused_only
from segmodels.memory import peak_bytes


class Case:
    """A unit built at a size, with drawn weights and inputs.

    Args:
        name: of the unit.
        unit: its entry.
        shape: B, C and (H, W) in cells.
        device: "cpu" or "cuda".
        tested: in evaluation mode and without a backward pass, also of a unit that can be trained.
    """

    def __init__(
        self, name: str, unit: Unit, shape: tuple[int, int, tuple[int, int]], device: str, *, tested: bool = False
    ) -> None:
        self.name, self.unit, self.tested = name, unit, tested
        self.mode = "evaluation" if tested else "training" if unit.training else "evaluation, both passes"
        self.batch, self.channels, size = shape
        channels = self.channels
        torch.manual_seed(0)
        with torch.no_grad():
            self.module = wake(unit.build(channels, size)).train(unit.training and not tested).to(device)
        self.forms = {"ours": unit.ours, "plain": unit.plain}
        self.shapes = unit.inputs(channels, size)
        self.inputs = self.draw(self.batch, device)
        width, (height, columns) = self.shapes[0]
        self.label = f"{self.batch} x {width} x {height} x {columns}"

    def draw(self, batch: int, device: str) -> list[Tensor]:
        """Maps as they come from a ReLU."""
        return [torch.randn(batch, width, *size, device=device).relu() for width, size in self.shapes]

    def agree(self) -> float:
        """See `agreement`."""
        return agreement(self.name, self.module, self.forms, self.inputs)

    def contest(self, dtype: str, repeats: int) -> tuple[Measured, Measured]:
        """Ours and its peer, measured."""
        measured = contest(self.module, self.forms, self.inputs, dtype, repeats, backward=not self.tested)
        return measured["ours"], measured["plain"]

    def macs(self) -> list[float]:
        """GMACs of one image, of ours and of its peer; counted, not computed."""
        meta, inputs = on_meta(self.module), self.draw(1, "meta")

        def count(form: object) -> int:
            return conv_matmul_macs(lambda maps: form(meta, *maps), inputs)  # type: ignore[arg-type, operator]

        return [count(form) / 1e9 for form in self.forms.values()]


def drawn_peaks(unit: Unit) -> tuple[int, int]:
    """Peak bytes of ours and of its peer at the unit's size for a GPU, on tensors that hold nothing: float32, CPU."""
    batch, channels, *size = unit.gpu
    height, width = size
    with FakeTensorMode(), fused_only():
        module = unit.build(channels, (height, width)).train(unit.training)
        inputs = [torch.zeros(batch, *shape, requires_grad=True) for shape in flat(unit, channels, (height, width))]
        ours, plain = (peak_bytes(training_passes(module, form, inputs), "cpu") for form in (unit.ours, unit.plain))
    return ours, plain


def flat(unit: Unit, channels: int, size: tuple[int, int]) -> list[tuple[int, int, int]]:
    """(C, H, W) of every input."""
    return [(width, *side) for width, side in unit.inputs(channels, size)]
