"""What a cast that the mapping asks for loses: how many values are rounded, by how much, and how many become zero.

Promise: every value is looked at, tile by tile. (A value outside the new dtype's range is no loss but an error, when
the tensor is moved.) Limit: casts of a mapping's ``cast:``; complex values are judged by both parts together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from weightport import values
from weightport.execute import Reader
from weightport.plan.model import Item
from weightport.tensors import Array, TensorSpec
from weightport.values import Expr


@dataclass(frozen=True, slots=True)
class Loss:
    """What one tensor lost.

    Attributes:
        name: the target tensor's.
        dtype: what it was cast to.
        values: how many it has.
        rounded: how many of them became another value.
        zeroed: how many of these became zero.
        largest: the largest relative error of a value that did not become zero.
    """

    name: str
    dtype: str
    values: int
    rounded: int
    zeroed: int
    largest: float

    def as_json(self) -> dict[str, Any]:
        """As ``verify --json`` prints it."""
        return {key: getattr(self, key) for key in ("name", "dtype", "values", "rounded", "zeroed", "largest")}

    def __str__(self) -> str:
        text = f"{self.name}: cast to {self.dtype}: {self.rounded:,} of {self.values:,} values rounded"
        if self.largest:
            text += f", by {self.largest:.2g} of the value at most"
        return text + (f"; {self.zeroed:,} became zero" if self.zeroed else "")


def loss_of(reader: Reader, item: Item) -> Loss | None:
    """What an item loses by a cast; None where nothing is cast, or nothing can be lost.

    Raises:
        FormatError: the source is truncated or corrupt.
        Error: a value is outside the range of the dtype.
    """
    wide = _before(item.expr)
    if wide is None:
        return None
    spec = TensorSpec.of(wide.dtype, wide.shape)
    rounded = zeroed = count = 0
    largest = 0.0
    for tile in reader.tiles(replace(item, expr=wide, spec=spec)):
        before, after = _numbers(tile), _numbers(tile.astype(item.spec.dtype))
        changed = (before != after) & ~np.isnan(before)
        zero = changed & (after == 0)
        count, rounded, zeroed = count + tile.size, rounded + int(changed.sum()), zeroed + int(zero.sum())
        rest = changed & ~zero & np.isfinite(before) & (before != 0)
        if rest.any():
            largest = max(largest, float((np.abs(after[rest] - before[rest]) / np.abs(before[rest])).max()))
    return Loss(item.name, item.spec.dtype.name, count, rounded, zeroed, largest)


def _before(expr: Expr) -> Expr | None:
    """The expression without the cast that is applied to it last (before it is split)."""
    if isinstance(expr, values.Cast):
        return None if np.can_cast(expr.of.dtype, expr.dtype, "safe") else expr.of
    if isinstance(expr, values.Cut):
        inner = _before(expr.of)
        return None if inner is None else values.cut(inner, expr.ranges)
    return None


def _numbers(array: Array) -> Array:
    """Wide enough for every value that a checkpoint holds but the largest integers."""
    with np.errstate(all="ignore"):
        return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
