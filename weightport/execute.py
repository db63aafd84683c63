"""Carries out a plan: the only step that touches tensor bytes.

Promise: values are produced when they are asked for, tile by tile along the first axis, and released at once; a tensor
that fits is read whole in one pass, so that its checksum is verified on the way. A source that changes while it is read
is an error. Limit: a tile holds whole rows of the target.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np

from weightport import values
from weightport.errors import Error, FormatError
from weightport.plan.model import Item, Plan
from weightport.ranges import Ranges, ranges_of, slices_of
from weightport.tensors import Array, FileWriter, Index, Source, TensorSpec, Value

#: What a target tensor and the source tensors behind it may hold to be made in one piece.
WHOLE_BYTES = 32 << 20
TILE_BYTES = 4 << 20

#: Told the bytes that were produced.
Progress = Callable[[int], None]


@dataclass(slots=True)
class Reader:
    """Reads the values of a plan's items from its source."""

    source: Source
    _cache: dict[str, Array] = field(default_factory=dict)

    def value(self, item: Item, index: Index = None) -> Array:
        """The item's value, or the part that ``index`` cuts out: C order, its own dtype, in memory of its own.

        Raises:
            FormatError: the source is truncated or corrupt.
        """
        ranges = ranges_of(index, item.spec.shape)
        leaves = item.expr.leaves()
        specs = self.source.specs()
        small = sum(specs[n].nbytes for n in leaves) <= WHOLE_BYTES
        cache: dict[str, Array] = {}

        def fetch(name: str, part: Ranges) -> Array:
            if not small:
                return self.source.read(name, slices_of(part))
            if name not in cache:
                cache[name] = self.source.read(name)
            return cache[name][slices_of(part)]

        made = item.expr.read(fetch, ranges)
        if made.dtype != item.spec.dtype or made.shape != tuple(len(r) for r in ranges):
            raise Error(f"{item.name!r}: {made.dtype.name} {list(made.shape)} was made for {item.spec}")
        if any(made is whole or made.base is whole for whole in cache.values()) and len(cache) == 1 and made.size:
            # A view of what was just read and nobody else has.
            return np.ascontiguousarray(made)
        return made if made.flags.c_contiguous and made.flags.writeable else made.copy(order="C")

    def tiles(self, item: Item) -> Iterator[Array]:
        """The value in consecutive tiles along the first axis."""
        shape = item.spec.shape
        leaves = item.expr.leaves()
        specs = self.source.specs()
        total = item.spec.nbytes + sum(specs[n].nbytes for n in leaves)
        if not shape or not prod(shape) or total <= WHOLE_BYTES:
            yield self.value(item)
            return
        rows = max(1, TILE_BYTES * shape[0] // max(1, item.spec.nbytes))
        for start in range(0, shape[0], rows):
            yield self.value(item, (slice(start, min(start + rows, shape[0])),))


def live_values(plan: Plan, source: Source) -> list[Value]:
    """What a live target's :meth:`~weightport.tensors.Target.assign` takes, in the target's order."""
    reader = Reader(source)
    return [value_of(item, reader) for item in plan.items.values()]


def value_of(item: Item, reader: Reader) -> Value:
    """One item as a value that is produced when it is asked for."""

    def produce(index: Index) -> Array:
        return reader.value(item, index)

    return Value(item.name, item.spec, item.constant, produce)


def write_file(
    plan: Plan,
    source: Source,
    kept: Source | None,
    path: str,
    write: FileWriter,
    *,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the plan's result: its items, and of the target's own tensors those that keep their values.

    Args:
        plan: without problems.
        source: the plan's source.
        kept: the target file, whose kept tensors are copied; None if there is no target.
        path: where to; the old file stays until the new one is complete.
        write: the format's writer.
        metadata: provenance, for formats that have room for it.
        progress: told of the bytes as they are written.

    Raises:
        FormatError: a source is truncated, corrupt, or changed while it was read.
        Error: the destination cannot be written.
    """
    plan.check()
    reader = Reader(source)
    specs: dict[str, TensorSpec] = {}
    for name, spec in plan.specs.items():
        if name in plan.items:
            specs[name] = plan.items[name].spec
        elif kept is not None and plan.target.get(name) == "kept":
            specs[name] = spec
    watch = [Unchanged(s) for s in (source, kept) if s is not None]

    def tiles(name: str) -> Iterator[Array]:
        if name in plan.items:
            parts = reader.tiles(plan.items[name])
        else:
            assert kept is not None
            leaf = Item(name, specs[name], values.Leaf(name, specs[name]), False, "keep")
            parts = Reader(kept).tiles(leaf)
        for part in parts:
            yield part
            if progress is not None:
                progress(part.nbytes)
        for w in watch:
            w.check()

    write(path, specs, tiles, metadata=metadata)


class Unchanged:
    """Remembers a source's files, to notice that one was written to while it was read."""

    def __init__(self, source: Source) -> None:
        self._stats = {path: _stat(path) for path in files_of(source)}

    def check(self) -> None:
        """Refuse a file that is not what it was.

        Raises:
            FormatError: its size, time or identity changed.
        """
        for path, stat in self._stats.items():
            if _stat(path) != stat:
                raise FormatError(
                    path, "the file changed while it was read", hint="run it again when nothing writes to it"
                )


def _stat(path: str) -> tuple[int, ...] | None:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


def files_of(source: Source) -> list[str]:
    """The files that a source is made of, as far as it says."""
    listed = getattr(source, "files", None)
    if callable(listed):
        return list(listed())
    return [source.path] if os.path.isfile(source.path) else []
