"""Tensors whose rows are put together from parts of rows: the gates of a kernel in another order, tensors side by side.

Promise: such a tensor is read in whole rows, as they lie in the file, and each row is written out of the memory that it
was read to, part after part: no byte is copied in between. Limit: the parts are cut out of source tensors along one
axis, and make up most of the rows that they are read from; whatever else there is to do, the general way does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from weightport.execute.holding import LINE, SCRATCH, TILE
from weightport.ranges import Ranges, extent, whole
from weightport.tensors import Array
from weightport.values import Assemble, Cut, Expr, Leaf

# Of the rows that are read, at least so much has to be used.
_MOST = 0.8
# Parts of fewer bytes are copied side by side before they are written: that takes less than a call for each of them.
_LONG = 4096


@dataclass(frozen=True, slots=True)
class Read:
    """A source tensor's rows: from which one on (that is the target's first), and how many bytes each has."""

    name: str
    first: int
    row: int


@dataclass(frozen=True, slots=True)
class Rowwise:
    """How rows are put together.

    Attributes:
        row: bytes of a row of the target.
        reads: the source tensors.
        parts: of a row, in order: which of ``reads``, and which bytes of its row.
    """

    row: int
    reads: tuple[Read, ...]
    parts: tuple[tuple[int, int, int], ...]

    def bands(
        self, rows: range, most: int, fill: Callable[[str, int, Array], None]
    ) -> Iterator[tuple[Sequence[Array], int]]:
        """The bytes of rows, some rows at a time: as arrays that follow one another, and how many bytes these are.

        Args:
            rows: of the target.
            most: bytes that are held at once, unless one row has more.
            fill: given a source tensor, a place in its bytes and an array of bytes, reads these.
        """
        some = min(len(rows), max(1, most // self.needed))
        SCRATCH.reset(sum(some * read.row + LINE for read in self.reads))
        TILE.reset(some * self.row)
        held = [SCRATCH.empty((some, read.row), np.dtype(np.uint8)) for read in self.reads]
        short = min(stop - start for _, start, stop in self.parts) < _LONG
        tile = TILE.empty((some, self.row if short else 0), np.dtype(np.uint8))
        parts = [] if short else [held[n][row, start:stop] for row in range(some) for n, start, stop in self.parts]
        for at in range(rows.start, rows.stop, some):
            count = min(some, rows.stop - at)
            for read, array in zip(self.reads, held, strict=True):
                fill(read.name, (read.first + at) * read.row, array[:count].reshape(-1))
            if short:
                column = 0
                for n, start, stop in self.parts:
                    tile[:count, column : column + stop - start] = held[n][:count, start:stop]
                    column += stop - start
                yield [tile[:count].reshape(-1)], count * self.row
            else:
                yield parts[: count * len(self.parts)], count * self.row

    @property
    def needed(self) -> int:
        """Bytes that a row takes while it is put together."""
        return max(self.row, sum(read.row for read in self.reads))


def rowwise(expr: Expr, placed: Collection[str], most: int) -> Rowwise | None:
    """How an expression's rows are put together, if that is all that it does.

    Args:
        expr: what a target tensor is computed from.
        placed: the source tensors that have a place in a file.
        most: bytes that a row may take.
    """
    if not isinstance(expr, Assemble):
        return None
    axes = {axis for place, _ in expr.parts for axis, r in enumerate(place) if r != range(expr.shape[axis])}
    if len(axes) != 1 or axes == {0}:
        return None
    (axis,) = axes
    item = expr.dtype.itemsize
    reads: dict[Read, int] = {}
    used: dict[int, int] = {}
    parts = []
    for place, part in sorted(expr.parts, key=lambda p: p[0][axis].start):
        leaf, ranges = (part.of, part.ranges) if isinstance(part, Cut) else (part, whole(part.shape))
        if not isinstance(leaf, Leaf) or leaf.name not in placed or leaf.dtype != expr.dtype:
            return None
        if place[axis].step != 1 or not _in_rows(ranges, leaf.shape, axis):
            return None
        inner, row = prod(leaf.shape[axis + 1 :]) * item, prod(leaf.shape[axis:]) * item
        number = reads.setdefault(Read(leaf.name, ranges[0].start * prod(leaf.shape[1:axis]), row), len(reads))
        start, stop = ranges[axis].start * inner, ranges[axis].stop * inner
        used[number] = used.get(number, 0) + stop - start
        parts.append((number, start, stop))
    if any(used[number] < _MOST * read.row for read, number in reads.items()):
        return None
    found = Rowwise(prod(expr.shape[axis:]) * item, tuple(reads), tuple(parts))
    return found if found.needed <= most else None


def _in_rows(ranges: Ranges, shape: tuple[int, ...], axis: int) -> bool:
    """Whether a part is consecutive on the first axis and on that one, and whole on all others."""
    steps = {ranges[0].step, ranges[axis].step}
    others = [k for k in range(len(shape)) if k not in (0, axis)]
    return steps == {1} and all(ranges[k] == range(shape[k]) for k in others) and 0 not in extent(ranges)
