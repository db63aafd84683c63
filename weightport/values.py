"""What a target tensor is computed from: small expressions over source tensors, read whole or in part.

An expression knows its shape and dtype and can deliver any part of itself; it holds no tensor bytes. Layouts and
mapping operations compile to these, so that one mechanism moves a file tile by tile and hands a framework the slice it
asks for.

Promise: reading a part reads only the parts of the source that it needs (a reshape that regroups axes excepted, which
reads whole rows), and the parts put together are the bytes of the whole. Limit: arithmetic (sums, added constants,
scaling) rounds once in the tensor's own dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from weightport.ranges import Ranges, copy, extent, intersect, picked, position, slices_of, whole
from weightport.tensors import Array, TensorSpec

#: Delivers a part of a source tensor.
Fetch: TypeAlias = Callable[[str, Ranges], Array]


class Expr(Protocol):
    """A lazily computed array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of every element."""
        ...

    def read(self, fetch: Fetch, ranges: Ranges) -> Array:
        """The part that ``ranges`` cuts out (axes are kept). May be a view; the caller does not write to it."""
        ...

    def leaves(self) -> frozenset[str]:
        """The source tensors that it is computed from."""
        ...


class _Of:
    """What expressions of one operand share: its dtype and its tensors."""

    __slots__ = ()
    of: Expr

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.of.dtype

    def leaves(self) -> frozenset[str]:
        return self.of.leaves()


class _Like(_Of):
    """And its shape."""

    __slots__ = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape


@dataclass(frozen=True, slots=True)
class Leaf:
    """A source tensor as it is stored."""

    name: str
    spec: TensorSpec

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.spec.dtype

    def read(self, fetch: Fetch, ranges: Ranges) -> Array:
        return fetch(self.name, ranges)

    def leaves(self) -> frozenset[str]:
        return frozenset((self.name,))


@dataclass(frozen=True, slots=True)
class Cut(_Of):
    """A part of another expression; axes are kept."""

    of: Expr
    ranges: Ranges

    @property
    def shape(self) -> tuple[int, ...]:
        return extent(self.ranges)

    def read(self, fetch: Fetch, ranges: Ranges) -> Array:
        return self.of.read(fetch, tuple(picked(o, i) for o, i in zip(self.ranges, ranges, strict=True)))


@dataclass(frozen=True, slots=True)
class Permute(_Of):
    """Axes in another order: axis ``k`` of the result is axis ``axes[k]`` of the operand."""

    of: Expr
    axes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.of.shape[a] for a in self.axes)

    def read(self, fetch: Fetch, ranges: Ranges) -> Array:
        inner: list[range] = [range(0)] * len(self.axes)
        for axis, r in zip(self.axes, ranges, strict=True):
            inner[axis] = r
        return self.of.read(fetch, tuple(inner)).transpose(self.axes)


@dataclass(frozen=True, slots=True)
class Reshape(_Of):
    """The same elements in C order under another shape."""

    of: Expr
    shape: tuple[int, ...]

    def read(self, fetch: Fetch, ranges: Ranges) -> Array:
        inner = self._squeezed(ranges)
        if inner is not None:
            return self.of.read(fetch, inner).reshape(extent(ranges))
        if 0 in self.shape or 0 in extent(ranges) or not self.of.shape:
            return self.of.read(fetch, whole(self.of.shape)).reshape(self.shape)[slices_of(ranges)]
        # Whole rows of the operand that hold the rows asked for.
        first, last = (ranges[0][0], ranges[0][-1] + 1) if ranges else (0, 1)
        row = math.prod(self.shape[1:])
        inner_row = math.prod(self.of.shape[1:])
        low, high = first * row // inner_row, -(-last * row // inner_row)
        part = self.of.read(fetch, (range(low, high), *whole(self.of.shape[1:]))).reshape(-1)
        part = part[first * row - low * inner_row :][: (last - first) * row]
        if not ranges:
            return part.reshape(())
        rows = range(ranges[0].start - first, ranges[0].stop - first, ranges[0].step)
        return part.reshape((last - first, *self.shape[1:]))[slices_of((rows, *ranges[1:]))]

    def _squeezed(self, ranges: Ranges) -> Ranges | None:
        """The operand's ranges where the shapes differ by axes of size 1 only."""
        kept = [r for r, n in zip(ranges, self.shape, strict=True) if n != 1]
        if [n for n in self.shape if n != 1] != [n for n in self.of.shape if n != 1]:
            return None
        if any(len(r) != 1 for r, n in zip(ranges, self.shape, strict=True) if n == 1):
            return None
        rest = iter(kept)
        return tuple(range(1) if n == 1 else next(rest) for n in self.of.shape)


@dataclass(frozen=True, slots=True)
class Assemble:
    """Parts that together tile the whole: each stands at its ranges."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    parts: tuple[tuple[Ranges, Expr], ...]

    def read(self, fetch: Fetch, ranges: Ranges) -> Array:
        out: Array = np.empty(extent(ranges), self.dtype)
        for place, part in self.parts:
            common = [intersect(p, r) for p, r in zip(place, ranges, strict=True)]
            if any(len(c) == 0 for c in common):
                continue
            inner = tuple(position(c, p) for c, p in zip(common, place, strict=True))
            where = tuple(position(c, r) for c, r in zip(common, ranges, strict=True))
            copy(out[slices_of(where)], part.read(fetch, inner))
        return out

    def leaves(self) -> frozenset[str]:
        return frozenset().union(*(part.leaves() for _, part in self.parts))


@dataclass(frozen=True, slots=True)
class Fill:
    """One value everywhere."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    value: float = 0.0

    def read(self, fetch: Fetch, ranges: Ranges) -> Array:  # noqa: ARG002
        return np.full(extent(ranges), self.value, self.dtype)

    def leaves(self) -> frozenset[str]:
        return frozenset()


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
        for term in self.of[1:]:
            total = total + term.read(fetch, ranges)
        if self.plus:
            total = total + np.asarray(self.plus, self.dtype)
        return total

    def leaves(self) -> frozenset[str]:
        return frozenset().union(*(term.leaves() for term in self.of))


@dataclass(frozen=True, slots=True)
class Scale(_Like):
    """Multiplied by a number in the tensor's dtype; by -1 exactly, sign bits of NaNs included."""

    of: Expr
    factor: float

    def read(self, fetch: Fetch, ranges: Ranges) -> Array:
        part = self.of.read(fetch, ranges)
        result: Array = -part if self.factor == -1 else part * np.asarray(self.factor, self.dtype)
        return result


@dataclass(frozen=True, slots=True)
class Cast:
    """Another dtype, by numpy's and ml_dtypes' rules (round to nearest even)."""

    of: Expr
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape

    def read(self, fetch: Fetch, ranges: Ranges) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            return self.of.read(fetch, ranges).astype(self.dtype)

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
        found = np.flatnonzero(wanted >= 0)
        out: Array = np.empty(extent(ranges), self.dtype)
        moved = np.moveaxis(out, self.axis, 0)
        if len(found) < len(wanted):
            assert self.missing is not None
            out[...] = self.missing.read(fetch, ranges)
        if len(found):
            rows = wanted[found]
            low, high = int(rows.min()), int(rows.max()) + 1
            inner = (*ranges[: self.axis], range(low, high), *ranges[self.axis + 1 :])
            part = np.moveaxis(self.of.read(fetch, inner), self.axis, 0)
            moved[found] = part[rows - low]
        return out

    def leaves(self) -> frozenset[str]:
        more: frozenset[str] = self.missing.leaves() if self.missing is not None else frozenset()
        return self.of.leaves() | more


@dataclass(frozen=True, slots=True)
class Mean(_Of):
    """The mean over one axis, computed in float64, rounded once, and repeated ``count`` times along that axis."""

    of: Expr
    axis: int
    count: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.of.shape[: self.axis], self.count, *self.of.shape[self.axis + 1 :])

    def read(self, fetch: Fetch, ranges: Ranges) -> Array:
        inner = (*ranges[: self.axis], range(self.of.shape[self.axis]), *ranges[self.axis + 1 :])
        part = self.of.read(fetch, inner)
        mean = part.mean(axis=self.axis, keepdims=True, dtype=np.float64).astype(self.dtype)
        return np.broadcast_to(mean, extent(ranges))


@dataclass(frozen=True, slots=True)
class Made:
    """Values that come from no source, such as an initializer's; ``make()`` gives the same each time."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    make: Callable[[], Array]
    key: tuple[Any, ...] = ()

    def read(self, fetch: Fetch, ranges: Ranges) -> Array:  # noqa: ARG002
        return self.make()[slices_of(ranges)]

    def leaves(self) -> frozenset[str]:
        return frozenset()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Made) and (self.shape, self.dtype, self.key) == (other.shape, other.dtype, other.key)

    def __hash__(self) -> int:
        return hash((self.shape, self.key))


# Building expressions, without the steps that change nothing ---------------------------------------------------------


def cut(of: Expr, ranges: Ranges) -> Expr:
    """A part of an expression."""
    if ranges == whole(of.shape):
        return of
    if isinstance(of, Cut):
        return Cut(of.of, tuple(picked(o, i) for o, i in zip(of.ranges, ranges, strict=True)))
    return Cut(of, ranges)


def permute(of: Expr, axes: Sequence[int]) -> Expr:
    """Axes in another order."""
    if list(axes) == list(range(len(axes))):
        return of
    if isinstance(of, Permute):
        return permute(of.of, [of.axes[a] for a in axes])
    return Permute(of, tuple(axes))


def reshape(of: Expr, shape: Sequence[int]) -> Expr:
    """Another shape of as many elements."""
    if tuple(shape) == of.shape:
        return of
    if isinstance(of, Reshape):
        return reshape(of.of, shape)
    return Reshape(of, tuple(shape))


def negate(of: Expr) -> Expr:
    """The negative."""
    return of.of if isinstance(of, Scale) and of.factor == -1 else Scale(of, -1)


def add(terms: Sequence[Expr], plus: float = 0.0) -> Expr:
    """A sum; one term and nothing added is that term."""
    if len(terms) == 1 and not plus:
        return terms[0]
    return Sum(tuple(terms), float(plus))


def assemble(shape: Sequence[int], dtype: np.dtype[Any], parts: Sequence[tuple[Ranges, Expr]]) -> Expr:
    """Parts that tile the whole; parts of one tensor that stand where they stood before are that tensor."""
    parts = [(place, part) for place, part in parts if all(place)]
    if len(parts) == 1 and parts[0][1].shape == tuple(shape):
        return parts[0][1]
    bases = []
    for place, part in parts:
        base, ranges = (part.of, part.ranges) if isinstance(part, Cut) else (part, whole(part.shape))
        if ranges != place or base.shape != tuple(shape):
            break
        bases.append(base)
    else:
        if bases and all(base == bases[0] for base in bases):
            return bases[0]
    return Assemble(tuple(shape), dtype, tuple(parts))


def concat(parts: Sequence[Expr], axis: int) -> Expr:
    """Side by side on an axis."""
    placed, start = [], 0
    for part in parts:
        place = list(whole(part.shape))
        place[axis] = range(start, start + part.shape[axis])
        start += part.shape[axis]
        placed.append((tuple(place), part))
    shape = list(parts[0].shape)
    shape[axis] = start
    return assemble(shape, parts[0].dtype, placed)
