"""Operations of the heads whose translation to ONNX PyTorch lacks, or binds to the size of the example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


def table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """PyTorch's operations and what makes ONNX nodes of them."""
    aten = torch.ops.aten
    return {aten._adaptive_avg_pool2d.default: regions, aten.remainder.Scalar: remainder}


def regions(self: Any, output_size: Sequence[int]) -> Any:
    """Means of adaptive regions: region i of n spans floor(iH/n) to ceil((i+1)H/n), as a product of two matrices.

    PyTorch's own translation gathers by indices that it computes from the example's size.
    """
    from onnxscript import opset18 as op

    rows, columns = (means(op.Shape(self, start=2 + i, end=3 + i), int(n)) for i, n in enumerate(output_size))
    rows, columns = op.CastLike(rows, self), op.CastLike(columns, self)
    return op.MatMul(op.MatMul(rows, self), op.Transpose(columns, perm=[1, 0]))


def means(length: Any, count: int) -> Any:
    """(count, length): what each place of a side adds to each region's mean."""
    from onnx import TensorProto
    from onnxscript import opset18

    op: Any = opset18  # its hints know tensors, and not the values that stand for them as a model is traced
    i = op.Constant(value_ints=list(range(count)))
    one, n = op.Constant(value_ints=[1]), op.Constant(value_ints=[count])
    first = op.Div(op.Mul(i, length), n)
    end = op.Div(op.Sub(op.Add(op.Mul(op.Add(i, one), length), n), one), n)
    first, end = op.Unsqueeze(first, one), op.Unsqueeze(end, one)  # (count, 1)
    place = op.Range(op.Constant(value_int=0), op.Squeeze(length), op.Constant(value_int=1))
    within = op.And(op.GreaterOrEqual(place, first), op.Less(place, end))
    size = op.Cast(op.Sub(end, first), to=TensorProto.FLOAT)
    return op.Div(op.Cast(within, to=TensorProto.FLOAT), size)


def remainder(self: Any, other: Any) -> Any:
    """Of integers, whose divisor may be a free size."""
    from onnxscript import opset18 as op

    return op.Mod(self, op.CastLike(other, self))
