"""Forms of one computation against each other: they agree first, then they are timed in turn and their peaks taken."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segmodels.memory import peak_bytes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
AGREE = 1e-3  # greatest difference of two forms in float32, relative to the greatest output
Form = Callable[..., Tensor]


@dataclass(frozen=True)
class Measured:
    """One form: seconds of the forward pass without a graph and of a training step's two passes, and their peak.

    Attributes:
        forward, both: seconds, a value per round, see `seconds`; both has none where there is no backward pass.
        peak: bytes that forward and backward pass, or the forward pass alone without a graph, hold at once besides
            weights and inputs; gradients are part of it.
    """

    forward: list[float]
    both: list[float]
    peak: int


class Disagreement(RuntimeError):
    """Two forms do not compute the same, so that their speeds say nothing."""


def difference(ours: Tensor, other: Tensor) -> float:
    """The greatest difference, relative to the greatest value of `other`."""
    return ((ours - other).abs().max() / other.abs().max()).item()


def agreement(name: str, module: nn.Module, forms: Mapping[str, Form], inputs: Sequence[Tensor]) -> float:
    """The difference of the two forms in float32.

    Raises:
        Disagreement: it is above `AGREE`, or no number.
    """
    with torch.no_grad(), exact():
        ours, other = (form(module, *inputs) for form in forms.values())
        apart = difference(ours, other) if ours.shape == other.shape else float("inf")
    if not apart < AGREE:
        raise Disagreement(f"{name}: {' and '.join(forms)} differ by {apart:.1e}; allowed: {AGREE:g}, relative")
    return apart


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Within it, no float32 product is rounded to TF32 on a GPU."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def contest(
    module: nn.Module,
    forms: Mapping[str, Form],
    inputs: Sequence[Tensor],
    dtype: str,
    repeats: int,
    *,
    backward: bool = True,
) -> dict[str, Measured]:
    """Peaks of all forms, then their times in turn; of both passes, or without `backward` of the forward pass alone.

    With bf16 the inputs are cast and the passes run under autocast, as in training; the weights stay in float32.
    """
    device = inputs[0].device.type
    leaves = [x.to(DTYPES[dtype]).requires_grad_() for x in inputs]
    wanted = [*leaves, *(p for p in module.parameters() if p.requires_grad)]
    with torch.no_grad(), lower(device, dtype):
        cotangent = torch.randn_like(next(iter(forms.values()))(module, *leaves))

    def forward(form: Form) -> None:
        with torch.no_grad(), lower(device, dtype):
            form(module, *leaves)

    def both(form: Form) -> object:
        with lower(device, dtype):
            y = form(module, *leaves)
        return torch.autograd.grad(y, wanted, cotangent.to(y.dtype), allow_unused=True)

    work: Callable[[Form], object] = both if backward else forward
    peaks = {name: peak_bytes(lambda form=form: work(form), device) for name, form in forms.items()}  # type: ignore[misc]
    timed: list[Callable[[Form], object]] = [forward, both] if backward else [forward]
    passes = {(name, work.__name__): (work, form) for work in timed for name, form in forms.items()}
    cases = {f"{n} {w}": lambda pair=pair: seconds(pair[0], pair[1], device) for (n, w), pair in passes.items()}  # type: ignore[misc]
    times = in_turns(cases, repeats)
    return {name: Measured(times[f"{name} forward"], times.get(f"{name} both", []), peaks[name]) for name in forms}


def in_turns(cases: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """As `report.interleave`, but every other round backwards.

    What ran before leaves its mark on caches and the allocator: a form against itself in fixed turns was measured 6 %
    slower in the first place.
    """
    measured: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(repeats + 1):  # the first is not counted
        for name, case in list(cases.items())[:: -1 if number % 2 else 1]:
            seconds_taken = case()
            if number:
                measured[name].append(seconds_taken)
    return measured


def training_passes(module: nn.Module, form: Form, inputs: Sequence[Tensor]) -> Callable[[], object]:
    """Forward and backward pass in the inputs' type, to be called."""
    wanted = [*inputs, *(p for p in module.parameters() if p.requires_grad)]

    def both() -> object:
        y = form(module, *inputs)
        return torch.autograd.grad(y, wanted, torch.ones_like(y), allow_unused=True)

    return both


def lower(device: str, dtype: str) -> torch.autocast:
    """Automatic bfloat16, if that is the type."""
    return torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16")


def seconds(work: Callable[[Form], object], form: Form, device: str) -> float:
    """How long one call takes until the device has done its work; freeing the result is not in it.

    On a CPU with one thread it is the processor's time, which other work on the machine hardly lengthens.
    """
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    synchronise(device)
    start = clock()
    result = work(form)
    synchronise(device)
    passed = clock() - start
    del result
    return passed


def synchronise(device: str) -> None:
    """Wait until a GPU has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
