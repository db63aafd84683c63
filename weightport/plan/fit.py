"""Whether a value fits the target tensor that it is for, and the operation that would make it fit.

Promise: shape and dtype are compared exactly; nothing is broadcast or cast unasked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from weightport.errors import Problem
from weightport.tensors import TensorSpec
from weightport.values import Expr

#: Specs by dtype and shape: the layers of a model are much alike.
Alike = dict[tuple[np.dtype[Any], tuple[int, ...]], TensorSpec]


def spec_of(expr: Expr, sources: Mapping[str, TensorSpec], alike: Alike) -> TensorSpec:
    """The header of a value for which no target says it.

    Args:
        expr: the value.
        sources: of the source's tensors.
        alike: those that were made before.
    """
    key = expr.dtype, expr.shape
    spec = alike.get(key)
    if spec is None:
        if expr.dtype.kind == "O":
            return TensorSpec(*key, sum(sources[n].nbytes for n in expr.leaves()))
        spec = alike[key] = TensorSpec.of(*key)
    return spec


def unfit(where: str, name: str, expr: Expr, want: TensorSpec, *, cell: bool = False) -> Problem | None:
    """The problem if a value does not have the target's shape and dtype, with the nearest fix.

    Args:
        cell: the value is a cell's, whose rule takes no operations.
    """
    shape, dtype = expr.shape, expr.dtype
    if shape == want.shape and dtype is want.dtype:
        return None
    faults, hint = [], ""
    if shape != want.shape:
        faults.append(f"shape {list(shape)} for the target's {list(want.shape)}")
        hint = _reshaping(shape, want.shape)
    if dtype != want.dtype:
        faults.append(f"dtype {dtype.name} for the target's {want.dtype_name}")
        hint = hint or f"cast: {want.dtype_name}"
        if cell:
            hint = f"a cell keeps its dtype: cast its tensors to {want.dtype_name} by a transfer of their own first"
    if not faults:
        return None
    return Problem(f"{where}: {name!r}", "; ".join(faults), hint)


def _reshaping(shape: tuple[int, ...], want: tuple[int, ...]) -> str:
    if len(shape) == len(want) and sorted(shape) == sorted(want):
        if len(shape) == 2:
            return "rearrange: a b -> b a"
        axes = "abcdefghijklmnopqrstuvwxyz"[: len(shape)]
        if len(axes) < len(shape):
            return ""
        order, left = [], list(enumerate(shape))
        for size in want:
            hit = next(item for item in left if item[1] == size)
            left.remove(hit)
            order.append(axes[hit[0]])
        return f"perhaps rearrange: {' '.join(axes)} -> {' '.join(order)}"
    if [n for n in shape if n != 1] == [n for n in want if n != 1]:
        return f"reshape: {list(want)}"
    return ""
