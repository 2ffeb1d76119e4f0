"""Peak bytes of what a computation holds at once: the allocator's own count on a GPU, live storages on a CPU."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from segmodels.heads.attention import fused_only


class LiveStorages(TorchDispatchMode):
    """Within it, `now` and `peak` are the bytes of all storages that operations made and something still holds.

    Every operation passes here, those of the backward pass too; a storage counts from the operation that returns it
    until it is freed, whoever holds it: a variable, the graph, a gradient. What was there before counts nothing, nor
    do views of it. Two things keep it from the truth: a kernel's own workspace, freed before it returns, is not seen;
    and under any such mode autograd adds into fresh zeros out of place where it else does so in place (the gradient of
    `gather`: one more copy of its input). No RSS, but the same on every CPU, and on tensors that hold nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.note((args, kwargs), count=False)
        result = func(*args, **(kwargs or {}))
        self.note(result, count=True)
        return result

    def note(self, tensors: Any, *, count: bool) -> None:
        """Follow every storage not met before; `count` its bytes until it is freed."""
        for tensor in tree_leaves(tensors):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            address, size = storage._cdata, storage.nbytes() if count else 0
            if address not in self.known:
                self.known[address] = weakref.ref(storage, self.forget(address, size))
                self.now += size
        self.peak = max(self.peak, self.now)

    def forget(self, address: int, size: int) -> Callable[[Any], None]:
        """What to do when the storage is freed."""

        def freed(_: Any) -> None:
            self.known.pop(address, None)
            self.now -= size

        return freed


def peak_bytes(work: Callable[[], object], device: str) -> int:
    """The most that `work` holds at once, its result included, beyond what is held before it."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with LiveStorages() as live:
        work()
    return live.peak


def evaluation_peak(model: nn.Module, shapes: Sequence[Sequence[int]]) -> int:
    """The most bytes that evaluation holds at once besides weights and inputs, in float32; nothing is computed.

    Attention is a CPU's fused kernel, which holds no weights, see `fused_only`; the meta device would write them out.

    Args:
        model: stays as it is; takes one tensor, or a list of them where there are several shapes.
        shapes: of the inputs.

    Raises:
        ValueError: the model does not take them.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), fused_only():
        model = drawn(model).eval()
        inputs = [torch.empty(tuple(shape)) for shape in shapes]
        return peak_bytes(lambda: model(inputs if len(inputs) > 1 else inputs[0]), "cpu")


def drawn(model: nn.Module, trained: bool = False) -> nn.Module:
    """A copy whose parameters and buffers hold nothing; within a FakeTensorMode.

    Args:
        model: stays as it is.
        trained: whether its parameters want gradients, and lie as on a GPU, channels last.
    """
    empty: dict[int, Any] = {id(b): torch.empty(b.shape, dtype=b.dtype) for b in model.buffers()}
    for p in model.parameters():
        layout = torch.channels_last if trained and p.ndim == 4 else torch.contiguous_format
        empty[id(p)] = nn.Parameter(torch.empty(p.shape, memory_format=layout), requires_grad=trained)
    return copy.deepcopy(model, empty)
