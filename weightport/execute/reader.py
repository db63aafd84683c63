"""Values of a plan's items, as live models and writers of streams take them.

Promise: values are produced when they are asked for, tile by tile along the first axis, and released at once; a tensor
that fits is read whole in one pass, so that its checksum is verified on the way; of one of which a part is asked for,
only what the part needs is read. A source that changes while it is read is an error. Limit: a tile holds whole rows of
the target.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

import numpy as np

from weightport import values
from weightport.errors import Error
from weightport.execute.watch import Unchanged
from weightport.plan.model import Item
from weightport.ranges import Ranges, cut_out, ranges_of, slices_of, whole
from weightport.strips import contiguous
from weightport.tensors import Array, Index, Source

#: What a target tensor and the source tensors behind it may hold to be made in one piece.
WHOLE_BYTES = 32 << 20
TILE_BYTES = 4 << 20
#: Tiles of what lies scattered in the source: the larger they are, the longer are the runs of bytes to read.
SCATTERED_BYTES = 24 << 20


@dataclass(slots=True)
class _Fetch:
    """Parts of source tensors for one value: of small ones that are read whole, once; of large ones as they lie."""

    source: Source
    small: bool
    memo: dict[int, Array] = field(default_factory=dict)
    held: dict[str, Array] = field(default_factory=dict)

    def __call__(self, name: str, ranges: Ranges) -> Array:
        if not self.small:
            self.held = {name: self.source.read(name, slices_of(ranges))}
            return self.held[name]
        if name not in self.held:
            self.held[name] = self.source.read(name)
        return cut_out(self.held[name], ranges)

    def gives_up(self, made: Array) -> bool:
        """Whether an array is all of what was just read, and so nobody else's: it is forgotten here."""
        if len(self.held) != 1:
            return False
        (read,) = self.held.values()
        if made.nbytes != read.nbytes or not np.may_share_memory(made, read):
            return False
        self.held = {}
        return True


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads the values of a plan's items from its source.

    Attributes:
        watch: the source's files, checked after each read.
    """

    source: Source
    watch: Unchanged | None = None

    def value(self, item: Item, index: Index = None) -> Array:
        """The item's value, or the part that ``index`` cuts out: C order, its own dtype, in memory of its own.

        Raises:
            FormatError: the source is truncated, corrupt, or changed meanwhile.
            Error: a value that the item's dtype cannot hold.
        """
        ranges = ranges_of(index, item.spec.shape)
        fetch = self._fetch(item) if ranges == whole(item.spec.shape) else _Fetch(self.source, small=False)
        return self._made(item, ranges, fetch)

    def tiles(self, item: Item) -> Iterator[Array]:
        """The value in consecutive tiles along the first axis."""
        shape = item.spec.shape
        fetch = self._fetch(item)
        total = item.spec.nbytes + self._bytes(item)
        if not shape or not prod(shape) or total <= WHOLE_BYTES:
            yield self._made(item, whole(shape), fetch)
            return
        size = SCATTERED_BYTES if values.turned(item.expr) else TILE_BYTES
        rows = max(1, size * shape[0] // max(1, item.spec.nbytes))
        for start in range(0, shape[0], rows):
            yield self._made(item, (range(start, min(start + rows, shape[0])), *whole(shape[1:])), fetch)

    def _bytes(self, item: Item) -> int:
        specs = self.source.specs()
        return sum(specs[n].nbytes for n in item.expr.leaves())

    def _fetch(self, item: Item) -> _Fetch:
        return _Fetch(self.source, self._bytes(item) <= WHOLE_BYTES)

    def _made(self, item: Item, ranges: Ranges, fetch: _Fetch) -> Array:
        made = np.asarray(item.expr.read(fetch, ranges))
        if self.watch is not None:
            self.watch.check()
        if made.dtype != item.spec.dtype or made.shape != tuple(len(r) for r in ranges):
            wanted = f"{item.spec.dtype_name}{list(item.spec.shape)}"
            raise Error(f"{item.name!r}: {made.dtype.name}{list(made.shape)} was made for {wanted}")
        made = contiguous(made)
        own = made.base is None or fetch.gives_up(made)
        return made if own and made.flags.writeable else made.copy(order="C")
