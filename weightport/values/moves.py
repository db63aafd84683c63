"""Expressions that move elements: parts, permutations, new shapes, parts put together.

Promise: every bit of an element stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from weightport.ranges import Ranges, cut_out, extent, intersect, picked, position, whole
from weightport.strips import contiguous, copy
from weightport.tensors import Array, TensorSpec

#: Delivers a part of a source tensor. A dict in its attribute ``memo``, if it has one, keeps between two parts of one
#: tensor what would take long to make again.
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

    def needs(self, ranges: Ranges) -> Iterator[tuple[str, Ranges]]:
        """The parts of source tensors that :meth:`read` would fetch for ``ranges``, or parts that hold these.

        Tensors of which single rows are picked, or that are gone through piece by piece, are not told.
        """
        ...

    def leaves(self) -> frozenset[str]:
        """The source tensors that it is computed from."""
        ...


class Of:
    """What expressions of one operand share: its dtype and its tensors."""

    __slots__ = ()
    of: Expr

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.of.dtype

    def leaves(self) -> frozenset[str]:
        return self.of.leaves()


class Like(Of):
    """And its shape."""

    __slots__ = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape

    def needs(self, ranges: Ranges) -> Iterator[tuple[str, Ranges]]:
        return self.of.needs(ranges)


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

    def needs(self, ranges: Ranges) -> Iterator[tuple[str, Ranges]]:
        yield self.name, ranges

    def leaves(self) -> frozenset[str]:
        return frozenset((self.name,))


@dataclass(frozen=True, slots=True)
class Cut(Of):
    """A part of another expression; axes are kept."""

    of: Expr
    ranges: Ranges

    @property
    def shape(self) -> tuple[int, ...]:
        return extent(self.ranges)

    def read(self, fetch: Fetch, ranges: Ranges) -> Array:
        return self.of.read(fetch, self.inner(ranges))

    def needs(self, ranges: Ranges) -> Iterator[tuple[str, Ranges]]:
        return self.of.needs(self.inner(ranges))

    def inner(self, ranges: Ranges) -> Ranges:
        """What of the operand a part is."""
        return tuple(picked(o, i) for o, i in zip(self.ranges, ranges, strict=True))


@dataclass(frozen=True, slots=True)
class Permute(Of):
    """Axes in another order: axis ``k`` of the result is axis ``axes[k]`` of the operand."""

    of: Expr
    axes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.of.shape[a] for a in self.axes)

    def read(self, fetch: Fetch, ranges: Ranges) -> Array:
        return self.of.read(fetch, self.inner(ranges)).transpose(self.axes)

    def needs(self, ranges: Ranges) -> Iterator[tuple[str, Ranges]]:
        return self.of.needs(self.inner(ranges))

    def inner(self, ranges: Ranges) -> Ranges:
        """What of the operand a part is made of."""
        inner: list[range] = [range(0)] * len(self.axes)
        for axis, r in zip(self.axes, ranges, strict=True):
            inner[axis] = r
        return tuple(inner)


@dataclass(frozen=True, slots=True)
class Reshape(Of):
    """The same elements in C order under another shape.

    Axes that the two shapes have in common are cut as they are; where they regroup, whole rows of the group are read.
    """

    of: Expr
    shape: tuple[int, ...]

    def read(self, fetch: Fetch, ranges: Ranges) -> Array:
        size = extent(ranges)
        if 0 in size:
            return np.empty(size, self.dtype)
        regrouped = self._regrouped(ranges)
        part = self.of.read(fetch, regrouped.inner)
        if part.shape != tuple(regrouped.flat):
            part = contiguous(part).reshape(regrouped.flat)
        part = part[tuple(regrouped.picks)] if regrouped.flat else part
        return cut_out(part.reshape(regrouped.shape), tuple(regrouped.cuts)).reshape(size)

    def needs(self, ranges: Ranges) -> Iterator[tuple[str, Ranges]]:
        return iter(()) if 0 in extent(ranges) else self.of.needs(self._regrouped(ranges).inner)

    def _regrouped(self, ranges: Ranges) -> _Regrouped:
        inner: list[range] = []
        found = _Regrouped((), [], [], [], [])
        queue = [r for r, n in zip(ranges, self.shape, strict=True) if n != 1]
        for mine, its in groups(self.of.shape, self.shape):
            asked, queue = queue[: len(its)], queue[len(its) :]
            if mine == its:
                inner += asked
                found.flat += extent(asked)
                found.picks.append(slice(None))
                found.shape += extent(asked)
                found.cuts.append(range(len(asked[0])))
                continue
            first, last = asked[0][0], asked[0][-1] + 1
            row, own = math.prod(its[1:]), math.prod(mine[1:])
            low, high = first * row // own, -(-last * row // own)
            inner += [range(low, high), *whole(mine[1:])]
            found.flat.append((high - low) * own)
            found.picks.append(slice(first * row - low * own, last * row - low * own))
            found.shape += [last - first, *its[1:]]
            found.cuts += [range(0, last - first, asked[0].step), *asked[1:]]
        rest = iter(inner)
        found.inner = tuple(range(1) if n == 1 else next(rest) for n in self.of.shape)
        return found


@dataclass(slots=True)
class _Regrouped:
    """What of the operand a part of a reshaped tensor needs, and how it is cut out of that."""

    inner: Ranges
    flat: list[int]  # each group of axes as one axis: whole rows of the operand
    picks: list[slice]  # of each: the rows of the result
    shape: list[int]  # each group as the result has it
    cuts: list[range]


def groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The axes of two shapes of as many elements, in groups that have as many elements too; without axes of size 1."""
    mine, its = ([n for n in shape if n != 1] for shape in (old, new))
    found = []
    while mine:
        left, right = [mine.pop(0)], [its.pop(0)]
        while (have := math.prod(left)) != (want := math.prod(right)):
            if have < want:
                left.append(mine.pop(0))
            else:
                right.append(its.pop(0))
        found.append((left, right))
    return found


@dataclass(frozen=True, slots=True)
class Assemble:
    """Parts that together tile the whole: each stands at its ranges."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    parts: tuple[tuple[Ranges, Expr], ...]

    def read(self, fetch: Fetch, ranges: Ranges) -> Array:
        out: Array = np.empty(extent(ranges), self.dtype)
        read_into(self, fetch, ranges, out)
        return out

    def needs(self, ranges: Ranges) -> Iterator[tuple[str, Ranges]]:
        for part, inner, _ in self.placed(ranges):
            yield from part.needs(inner)

    def placed(self, ranges: Ranges) -> Iterator[tuple[Expr, Ranges, Ranges]]:
        """Each operand that has a share in a part: what of it, and where in the part that stands."""
        for place, part in self.parts:
            common = [intersect(p, r) for p, r in zip(place, ranges, strict=True)]
            if all(len(c) for c in common):
                inner = tuple(position(c, p) for c, p in zip(common, place, strict=True))
                yield part, inner, tuple(position(c, r) for c, r in zip(common, ranges, strict=True))

    def leaves(self) -> frozenset[str]:
        return frozenset().union(*(part.leaves() for _, part in self.parts))


def read_into(expr: Expr, fetch: Fetch, ranges: Ranges, out: Array) -> None:
    """Write what ``expr.read(fetch, ranges)`` is to where it belongs; what is only moved is copied once.

    Args:
        expr: an expression.
        fetch: delivers parts of source tensors.
        ranges: the part.
        out: of the part's shape, with any strides.
    """
    if isinstance(expr, Assemble):
        for part, inner, where in expr.placed(ranges):
            read_into(part, fetch, inner, cut_out(out, where))
    elif isinstance(expr, Permute):
        read_into(expr.of, fetch, expr.inner(ranges), out.transpose([expr.axes.index(k) for k in range(out.ndim)]))
    elif isinstance(expr, Cut):
        read_into(expr.of, fetch, expr.inner(ranges), out)
    else:
        copy(out, expr.read(fetch, ranges))


def operands(expr: Expr) -> Iterator[Expr]:
    """The expressions that an expression is made of."""
    of = getattr(expr, "of", ())
    yield from of if isinstance(of, tuple) else (of,)
    yield from (part for _, part in getattr(expr, "parts", ()))


def crossed(expr: Expr) -> bool:
    """Whether elements that stand side by side lie apart in the tensors, and no axes are regrouped."""
    every = list(_every(expr))
    return any(isinstance(e, Permute) and e.axes[-1] != len(e.axes) - 1 for e in every) and not any(
        isinstance(e, Reshape) for e in every
    )


def _every(expr: Expr) -> Iterator[Expr]:
    yield expr
    for operand in operands(expr):
        yield from _every(operand)


def turned(expr: Expr) -> bool:
    """Whether rows of the expression lie scattered in its tensors, because another axis comes first there."""
    if isinstance(expr, Permute) and expr.axes[:1] != (0,):
        return True
    return any(map(turned, operands(expr)))
