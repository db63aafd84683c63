"""Expressions with values of their own: fills, sums, scales, casts, rows by number, means, initial values.

Promise: a part is the part of the whole, bit for bit, whatever the part. Limit: sums, added constants and scales round
once in the tensor's own dtype; a cast that would turn a value into another (an infinity, another integer) is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from weightport.errors import Error, Problem
from weightport.ranges import Ranges, cut_out, extent, slices_of, whole
from weightport.tensors import Array, Quantized
from weightport.values.moves import Expr, Fetch, Like, Of

# Rows that are read together though some between them are not wanted; and at most so many bytes at once.
_GAP_BYTES, _RUN_BYTES = 64 << 10, 4 << 20


@dataclass(frozen=True, slots=True)
class Fill:
    """One value everywhere."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    value: float = 0.0

    def read(self, fetch: Fetch, ranges: Ranges) -> Array:  # noqa: ARG002
        return np.full(extent(ranges), self.value, self.dtype)

    def needs(self, ranges: Ranges) -> Iterator[tuple[str, Ranges]]:  # noqa: ARG002
        return iter(())

    def leaves(self) -> frozenset[str]:
        return frozenset()


@dataclass(frozen=True, slots=True)
class Dequantized:
    """The values that a quantized tensor's stored numbers stand for."""

    of: Expr
    how: Quantized

    @property
    def shape(self) -> tuple[int, ...]:
        return self.how.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.how.dtype

    def read(self, fetch: Fetch, ranges: Ranges) -> Array:
        return self.how.decode(self.of.read(fetch, self.how.stored(ranges)), ranges)

    def needs(self, ranges: Ranges) -> Iterator[tuple[str, Ranges]]:
        return self.of.needs(self.how.stored(ranges))

    def leaves(self) -> frozenset[str]:
        return self.of.leaves()


@dataclass(frozen=True, slots=True)
class Sum:
    """Expressions of one shape and dtype, and a number, added up in the tensor's dtype, from left to right."""

    of: tuple[Expr, ...]
    plus: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of[0].shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.of[0].dtype

    def read(self, fetch: Fetch, ranges: Ranges) -> Array:
        total = self.of[0].read(fetch, ranges)
        with np.errstate(over="ignore", invalid="ignore"):
            for term in self.of[1:]:
                total = total + term.read(fetch, ranges)
            if self.plus:
                total = total + np.asarray(self.plus, self.dtype)
        return np.asarray(total, self.dtype)

    def needs(self, ranges: Ranges) -> Iterator[tuple[str, Ranges]]:
        for term in self.of:
            yield from term.needs(ranges)

    def leaves(self) -> frozenset[str]:
        return frozenset().union(*(term.leaves() for term in self.of))


@dataclass(frozen=True, slots=True)
class Scale(Like):
    """Multiplied by a number in the tensor's dtype; by -1 exactly, sign bits of NaNs included."""

    of: Expr
    factor: float

    def read(self, fetch: Fetch, ranges: Ranges) -> Array:
        part = self.of.read(fetch, ranges)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return np.asarray(-part if self.factor == -1 else part * np.asarray(self.factor, self.dtype), self.dtype)


@dataclass(frozen=True, slots=True)
class Cast:
    """Another dtype, by numpy's and ml_dtypes' rules (round to nearest even; to integers towards zero).

    Raises:
        Error: when it is read: a finite value that would become infinite or NaN, or that no integer of that dtype is.
    """

    of: Expr
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape

    def read(self, fetch: Fetch, ranges: Ranges) -> Array:
        part = self.of.read(fetch, ranges)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            made = part.astype(self.dtype)
        if not np.can_cast(part.dtype, self.dtype, "safe"):
            lost = self._lost(part, made)
            if lost.any():
                names = ", ".join(map(repr, sorted(self.of.leaves())))
                what = f"{part[lost][0]} is outside the range of {self.dtype.name}"
                raise Error(Problem(f"cast of {names}", what, "cast to a wider dtype, or keep this one"))
        return np.asarray(made)

    def needs(self, ranges: Ranges) -> Iterator[tuple[str, Ranges]]:
        return self.of.needs(ranges)

    def _lost(self, part: Array, made: Array) -> Array:
        """Where a value has become another one altogether."""
        if self.dtype.kind == "b":
            return np.zeros(part.shape, bool)
        if self.dtype.kind not in "iu" and "int" not in self.dtype.name:
            return np.asarray(np.isfinite(part) & ~np.isfinite(made))
        if part.dtype.kind in "biu":
            return np.asarray((made.astype(part.dtype) != part) | ((made < 0) != (part < 0)))
        with np.errstate(invalid="ignore"):
            return np.asarray(~(np.abs(made.astype(np.float64) - np.trunc(part.astype(np.float64))) < 1))

    def leaves(self) -> frozenset[str]:
        return self.of.leaves()


@dataclass(frozen=True, slots=True)
class Take:
    """Rows of an axis by number; where the number is -1, the row of ``missing`` at the same place.

    Attributes:
        rows: int64 ``[n]``.
        missing: an expression of the result's shape, or None where every row is found.
    """

    of: Expr
    axis: int
    rows: tuple[int, ...]
    missing: Expr | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.of.shape[: self.axis], len(self.rows), *self.of.shape[self.axis + 1 :])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.of.dtype

    def read(self, fetch: Fetch, ranges: Ranges) -> Array:
        wanted = np.asarray(self.rows, np.int64)[slices_of((ranges[self.axis],))]
        out: Array = np.empty(extent(ranges), self.dtype)
        if not out.size:
            return out
        moved = np.moveaxis(out, self.axis, 0)
        places = np.argsort(wanted, kind="stable")
        places = places[np.searchsorted(wanted[places], 0) :]  # of the rows that are there, in the source's order
        if len(places) < len(wanted):
            assert self.missing is not None
            out[...] = self.missing.read(fetch, ranges)
        for run in self._runs(wanted[places], out.nbytes // len(wanted)):
            rows = wanted[places[run]]
            low, high = int(rows[0]), int(rows[-1]) + 1
            inner = (*ranges[: self.axis], range(low, high), *ranges[self.axis + 1 :])
            part = np.moveaxis(self.of.read(fetch, inner), self.axis, 0)
            moved[places[run]] = part[rows - low]
        return out

    def needs(self, ranges: Ranges) -> Iterator[tuple[str, Ranges]]:  # noqa: ARG002
        return iter(())

    def _runs(self, rows: Array, row_bytes: int) -> Iterator[slice]:
        """Rows in ascending order, in runs that are worth reading together."""
        if not len(rows):
            return
        near, most = max(1, _GAP_BYTES // max(1, row_bytes)), max(1, _RUN_BYTES // max(1, row_bytes))
        start = 0
        for stop in [*(np.flatnonzero(np.diff(rows) > near) + 1).tolist(), len(rows)]:
            while start < stop:
                end = int(np.searchsorted(rows[start:stop], rows[start] + most)) + start
                yield slice(start, end)
                start = end

    def leaves(self) -> frozenset[str]:
        more: frozenset[str] = self.missing.leaves() if self.missing is not None else frozenset()
        return self.of.leaves() | more


@dataclass(frozen=True, slots=True)
class Mean(Of):
    """The mean over one axis, computed in float64, rounded once, and repeated ``count`` times along that axis."""

    of: Expr
    axis: int
    count: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.of.shape[: self.axis], self.count, *self.of.shape[self.axis + 1 :])

    def read(self, fetch: Fetch, ranges: Ranges) -> Array:
        memo = getattr(fetch, "memo", None)
        if memo is None:
            return np.broadcast_to(self._mean(fetch, ranges), extent(ranges))
        if id(self) not in memo:
            memo[id(self)] = self._mean(fetch, whole(self.shape))
        every = (*ranges[: self.axis], range(1), *ranges[self.axis + 1 :])
        return np.broadcast_to(cut_out(memo[id(self)], every), extent(ranges))

    def needs(self, ranges: Ranges) -> Iterator[tuple[str, Ranges]]:  # noqa: ARG002
        return iter(())

    def _mean(self, fetch: Fetch, ranges: Ranges) -> Array:
        size = extent((*ranges[: self.axis], range(1), *ranges[self.axis + 1 :]))
        total = np.zeros(size, np.complex128 if self.dtype.kind == "c" else np.float64)
        length = self.of.shape[self.axis]
        step = max(1, _RUN_BYTES // max(1, total.nbytes))
        for start in range(0, length, step):
            block = range(start, min(start + step, length))
            part = self.of.read(fetch, (*ranges[: self.axis], block, *ranges[self.axis + 1 :]))
            # One after the other, so that every part of the result is added up in the same order.
            sums = np.add.accumulate(np.concatenate([total, part.astype(total.dtype)], self.axis), self.axis)
            total = np.take(sums, [-1], self.axis)
        return (total / max(1, length)).astype(self.dtype)


@dataclass(frozen=True, slots=True)
class Made:
    """Values that come from no source, such as an initializer's; they are the same each time.

    Attributes:
        make: all of them.
        key: what tells them from others.
        rows: those from one row to another, where they can be made without the rest.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    make: Callable[[], Array]
    key: tuple[Any, ...] = ()
    rows: Callable[[int, int], Array] | None = None

    def read(self, fetch: Fetch, ranges: Ranges) -> Array:
        if self.rows is not None and ranges and ranges[0] and ranges[0] != range(self.shape[0]):
            first, last = ranges[0][0], ranges[0][-1] + 1
            rows = range(0, last - first, ranges[0].step)
            return cut_out(self.rows(first, last), (rows, *ranges[1:]))
        memo = getattr(fetch, "memo", None)
        if memo is None:
            return cut_out(self.make(), ranges)
        if id(self) not in memo:
            memo[id(self)] = self.make()
        return cut_out(memo[id(self)], ranges)

    def needs(self, ranges: Ranges) -> Iterator[tuple[str, Ranges]]:  # noqa: ARG002
        return iter(())

    def leaves(self) -> frozenset[str]:
        return frozenset()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Made) and (self.shape, self.dtype, self.key) == (other.shape, other.dtype, other.key)

    def __hash__(self) -> int:
        return hash((self.shape, self.key))
