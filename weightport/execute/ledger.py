"""Checksums of a transfer: what was read or written of each tensor, in which pieces, and what these come to.

Promise: a tensor that was moved in whatever pieces, by whomever, gets the checksum of the whole; pieces that meet are
made one, so that what is kept does not grow with the number of tasks. Limit: pieces that overlap others are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from weightport import checksums
from weightport.tensors import Array

#: Pieces of one file: where each begins, how long each is (int64), and its checksum (uint32).
Pieces: TypeAlias = tuple[Array, Array, Array]

# So many pieces are kept before those that meet are made one.
_MANY = 4096


def pieces(found: list[tuple[int, int, int]]) -> Pieces:
    """Pieces given one by one: ``(start, size, checksum)``."""
    starts, sizes, crcs = zip(*found, strict=True) if found else ((), (), ())
    return np.array(starts, np.int64), np.array(sizes, np.int64), np.array(crcs, np.uint32)


class Sheet:
    """The pieces of one byte range that are known so far.

    Args:
        kind: of the checksum.
        offset: of the range.
        size: of the range.
    """

    __slots__ = ("_kept", "_kind", "_limit", "_new", "_offset", "_pieces", "_size", "_total")

    def __init__(self, kind: str, offset: int, size: int) -> None:
        self._kind, self._offset, self._size = kind, offset, size
        self._kept = pieces([])  # in order, apart from one another
        self._new: list[Pieces] = []
        self._total = self._pieces = 0
        self._limit = _MANY

    def add(self, found: Pieces) -> int | None:
        """More pieces, in any order. Returns the checksum once they are all there is."""
        if not self._size:
            return 0
        if len(found[0]) == 1 and int(found[0][0]) == self._offset and int(found[1][0]) == self._size:
            return int(found[2][0])  # in one piece, as most tensors are
        self._new.append(found)
        self._total += int(found[1].sum())
        self._pieces += len(found[0])
        if self._total >= self._size or self._pieces > self._limit:
            self._settle()
        starts, sizes, crcs = self._kept
        done = len(starts) == 1 and not self._new and (starts[0], sizes[0]) == (self._offset, self._size)
        return int(crcs[0]) if done else None

    def finish(self, read: Callable[[int, int], int]) -> int:
        """The checksum of the range; ``read(offset, size)`` gives that of what is in no piece."""
        self._settle()
        sizes, crcs, at = [], [], self._offset
        for start, size, crc in (
            *zip(*(c.tolist() for c in self._kept), strict=True),
            (self._offset + self._size, 0, 0),
        ):
            if start > at:
                sizes.append(start - at)
                crcs.append(read(at, start - at))
            sizes.append(size)
            crcs.append(crc)
            at = start + size
        return checksums.combined(self._kind, crcs, sizes)

    def _settle(self) -> None:
        self._kept = settled(self._kind, [self._kept, *self._new], self._offset, self._offset + self._size)
        self._new = []
        self._total, self._pieces = int(self._kept[1].sum()), 0
        self._limit = max(_MANY, 2 * len(self._kept[0]))


def settled(kind: str, found: Sequence[Pieces], start: int, stop: int) -> Pieces:
    """Pieces in order, those that meet as one; without those that overlap others or do not lie in a range."""
    starts, sizes, crcs = (np.concatenate(c) for c in zip(*found, strict=True))
    order = np.lexsort((-sizes, starts))
    starts, sizes, crcs = starts[order], sizes[order], crcs[order]
    ends = starts + sizes
    inside = (starts >= start) & (ends <= stop) & (sizes > 0)
    # Pieces that begin before an earlier one ends are left out; these are few, if any.
    if len(starts) > 1 and (starts[1:] < np.maximum.accumulate(ends)[:-1]).any():
        inside[list(_overlapping(starts, ends, inside))] = False
    starts, sizes, crcs, ends = starts[inside], sizes[inside], crcs[inside], ends[inside]
    first = np.flatnonzero(np.concatenate([[True], starts[1:] != ends[:-1]])) if len(starts) else order[:0]
    crcs = checksums.joined(kind, crcs, sizes, first)
    sizes = np.add.reduceat(sizes, first) if len(first) else sizes
    return starts[first], sizes, crcs


def _overlapping(starts: Array, ends: Array, inside: Array) -> Iterator[int]:
    at = -1
    for number, (start, end, good) in enumerate(zip(starts.tolist(), ends.tolist(), inside.tolist(), strict=True)):
        if start < at:
            yield number
        elif good:
            at = end
