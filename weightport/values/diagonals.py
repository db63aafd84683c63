"""Expressions of diagonals: a vector as a square matrix, and the vector in one.

Promise: every bit of an element on the diagonal stays as it is; a part reads only what stands in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from weightport.ranges import Ranges, extent, intersect, position, slices_of
from weightport.tensors import Array
from weightport.values.moves import Expr, Fetch, Of

# Rows and columns of a matrix that are read at once for its diagonal.
_SQUARE = 512


@dataclass(frozen=True, slots=True)
class Diagonal(Of):
    """A square matrix with a vector on its diagonal, and zeros elsewhere."""

    of: Expr

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape * 2

    def read(self, fetch: Fetch, ranges: Ranges) -> Array:
        out: Array = np.zeros(extent(ranges), self.dtype)
        common = intersect(*ranges)
        if common:
            places = (np.arange(len(r))[slices_of((position(common, r),))] for r in ranges)
            out[tuple(places)] = self.of.read(fetch, (common,))
        return out

    def needs(self, ranges: Ranges) -> Iterator[tuple[str, Ranges]]:
        common = intersect(*ranges)
        return self.of.needs((common,)) if common else iter(())


@dataclass(frozen=True, slots=True)
class OnDiagonal(Of):
    """The vector on the diagonal of a square matrix."""

    of: Expr

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape[:1]

    def read(self, fetch: Fetch, ranges: Ranges) -> Array:
        parts = [self.of.read(fetch, (some, some)).diagonal() for some in self._squares(ranges)]
        return np.concatenate([np.empty(0, self.dtype), *parts])

    def needs(self, ranges: Ranges) -> Iterator[tuple[str, Ranges]]:
        for some in self._squares(ranges):
            yield from self.of.needs((some, some))

    def _squares(self, ranges: Ranges) -> Iterator[range]:
        """Along the diagonal, so that not the whole matrix is read."""
        for start in range(0, len(ranges[0]), _SQUARE):
            yield ranges[0][start : start + _SQUARE]
