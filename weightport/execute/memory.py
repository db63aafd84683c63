"""Values of a plan's items straight into memory that somebody else owns, such as a variable's.

Promise: the bytes go from the file to their place with no array between that is as large as the tensor, by threads side
by side; checksums are verified on the way. Limit: of a source that cannot say where its tensors lie, values are made
first and copied then.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from weightport import values
from weightport.execute.files import SIZES, THREADS, Job, processors
from weightport.execute.reader import Reader
from weightport.execute.watch import Unchanged
from weightport.plan.model import Item, Plan
from weightport.ranges import extent, ranges_of
from weightport.tensors import Array, Index, Source, TensorSpec, Value

#: Values up to this are made whole: they fit the cache.
SMALL = 1 << 20
#: What a thread does at a time, at least and at most: enough that starting it costs nothing, and little to be held.
LEAST, MOST = 2 << 20, 4 << 20
#: What is read at a time: new pages are made meanwhile, without the interpreter's lock.
CHUNK = 1 << 20


@dataclass(slots=True)
class _Room:
    """An array as a destination."""

    memory: Array
    places: Mapping[str, tuple[str, int]]
    checksum: str | None = None

    def done(self, name: str, checksum: int) -> None:
        """Never called: memory has no checksums."""


class Workers:
    """The threads of a transfer, which its values share: as many as there are processors, begun when they are needed.

    They end when nobody holds them any more. TensorFlow runs several initializers at a time; each waits for its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self.count = min(THREADS, processors())

    def pool(self) -> Executor:
        """The threads."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.count, "weightport")
            return self._pool


def fill(reader: Reader, item: Item, out: Array, index: Index = None, workers: Workers | None = None) -> None:
    """Put an item's value, or the part that ``index`` cuts out, into an array.

    Args:
        reader: of the item's source.
        item: the item.
        out: C order, of the item's dtype and the shape of the part.
        index: slices of the leading axes.
        workers: who does it; None: this thread alone.

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
    count = 1 if workers is None else max(1, min(workers.count, out.nbytes // LEAST))
    task = min(MOST, max(LEAST, out.nbytes // (2 * count)))
    sizes = replace(SIZES, task=task, hold=task * count, chunk=CHUNK, scattered=True)
    job = Job([reader.source], {item.name: (0, part)}, None, reader.watch, sizes)
    room = _Room(out, {item.name: ("", 0)})
    job.run(room, count, workers.pool() if workers is not None and count > 1 else None)


def live_values(plan: Plan, source: Source, watch: Unchanged | None = None) -> list[Value]:
    """What a live target's :meth:`~weightport.tensors.Target.assign` takes, in the target's order."""
    reader, workers = Reader(source, watch), Workers()
    return [value_of(item, reader, workers) for item in plan.items.values()]


def value_of(item: Item, reader: Reader, workers: Workers | None = None) -> Value:
    """One item as a value that is produced when it is asked for, by these threads."""

    def produce(index: Index) -> Array:
        return reader.value(item, index)

    def put(out: Array, index: Index) -> None:
        fill(reader, item, out, index, workers)

    return Value(item.name, item.spec, item.constant, produce, put)
