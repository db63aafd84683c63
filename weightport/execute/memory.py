"""Values of a plan's items straight into memory that somebody else owns, such as a variable's.

Promise: the bytes go from the file to their place with no array between that is as large as the tensor; checksums are
verified on the way. Limit: of a source that cannot say where its tensors lie, values are made first and copied then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from weightport import values
from weightport.execute.files import Job
from weightport.execute.reader import Reader
from weightport.execute.watch import Unchanged
from weightport.plan.model import Item, Plan
from weightport.ranges import extent, ranges_of
from weightport.tensors import Array, Index, Source, TensorSpec, Value

#: Values up to this are made whole: they fit the cache.
SMALL = 1 << 20


@dataclass(slots=True)
class _Room:
    """An array as a destination."""

    memory: memoryview
    places: Mapping[str, tuple[str, int]]
    checksum: str | None = None

    def done(self, name: str, checksum: int) -> None:
        """Never called: memory has no checksums."""


def fill(reader: Reader, item: Item, out: Array, index: Index = None) -> None:
    """Put an item's value, or the part that ``index`` cuts out, into an array.

    Args:
        reader: of the item's source.
        item: the item.
        out: C order, of the item's dtype and the shape of the part.
        index: slices of the leading axes.

    Raises:
        FormatError: the source is truncated, corrupt, or changed meanwhile. What is in ``out`` then is nobody's.
        Error: a value that the item's dtype cannot hold.
    """
    if out.nbytes <= SMALL or out.dtype.hasobject or not out.flags.c_contiguous:
        np.copyto(out, reader.value(item, index))
        return
    ranges = ranges_of(index, item.spec.shape)
    expr = values.cut(item.expr, ranges)
    part = replace(item, expr=expr, spec=TensorSpec.of(item.spec.dtype, extent(ranges)))
    room = _Room(out.reshape(-1).view(np.uint8).data, {item.name: ("", 0)})
    Job([reader.source], {item.name: (0, part)}, None, reader.watch).run(room, 1, None)


def live_values(plan: Plan, source: Source, watch: Unchanged | None = None) -> list[Value]:
    """What a live target's :meth:`~weightport.tensors.Target.assign` takes, in the target's order."""
    reader = Reader(source, watch)
    return [value_of(item, reader) for item in plan.items.values()]


def value_of(item: Item, reader: Reader) -> Value:
    """One item as a value that is produced when it is asked for."""

    def produce(index: Index) -> Array:
        return reader.value(item, index)

    def put(out: Array, index: Index) -> None:
        fill(reader, item, out, index)

    return Value(item.name, item.spec, item.constant, produce, put)
