"""Carries out a plan: the only step that touches tensor bytes.

Promise: values are produced when they are asked for, tile by tile along the first axis, and released at once; a tensor
that fits is read whole in one pass, so that its checksum is verified on the way. A source that changes while it is read
is an error. Limit: a tile holds whole rows of the target.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np

from weightport import values
from weightport.errors import Error, FormatError
from weightport.plan.model import KEPT, Item, Plan
from weightport.ranges import Ranges, contiguous, cut_out, ranges_of, slices_of, whole
from weightport.tensors import Array, FileWriter, Index, Source, TensorSpec, Value

#: What a target tensor and the source tensors behind it may hold to be made in one piece.
WHOLE_BYTES = 32 << 20
TILE_BYTES = 4 << 20
#: Tiles of what lies scattered in the source: the larger they are, the longer are the runs of bytes to read.
SCATTERED_BYTES = 24 << 20

#: Told the bytes that were produced.
Progress = Callable[[int], None]


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
        return self._made(item, ranges_of(index, item.spec.shape), self._fetch(item))

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
            raise Error(f"{item.name!r}: {made.dtype.name} {list(made.shape)} was made for {item.spec}")
        made = contiguous(made)
        own = made.base is None or fetch.gives_up(made)
        return made if own and made.flags.writeable else made.copy(order="C")


def live_values(plan: Plan, source: Source, watch: Unchanged | None = None) -> list[Value]:
    """What a live target's :meth:`~weightport.tensors.Target.assign` takes, in the target's order."""
    reader = Reader(source, watch)
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
    watch: Unchanged | None = None,
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
        watch: the files of ``source`` and ``kept``.

    Raises:
        FormatError: a source is truncated, corrupt, or changed while it was read.
        Error: the destination cannot be written.
    """
    plan.check()
    reader = Reader(source, watch)
    specs: dict[str, TensorSpec] = {}
    for name, spec in plan.specs.items():
        if name in plan.items:
            specs[name] = plan.items[name].spec
        elif kept is not None and plan.target.get(name) == KEPT:
            specs[name] = spec

    def tiles(name: str) -> Iterator[Array]:
        if name in plan.items:
            parts = reader.tiles(plan.items[name])
        else:
            assert kept is not None
            leaf = Item(name, specs[name], values.Leaf(name, specs[name]), False, "keep")
            parts = Reader(kept, watch).tiles(leaf)
        for part in parts:
            yield part
            if progress is not None:
                progress(part.nbytes)

    constants = {name for name in specs if name in plan.items and plan.items[name].constant}
    write(path, specs, tiles, metadata=metadata, constants=constants, kept=specs.keys() - plan.items.keys())


class Unchanged:
    """Remembers files, to notice that one was written to while it was read.

    Args:
        paths: the files of a source; what is not there is not watched.
        replaced: whether another file may take the place of one that is open: what was opened stays what it was.
    """

    def __init__(self, paths: Iterable[str], *, replaced: bool = False) -> None:
        self._stats = {path: found for path in paths if (found := _stat(path)) is not None}
        self._replaced = replaced

    def check(self) -> None:
        """Refuse a file that is not what it was.

        Raises:
            FormatError: its size, time or identity changed.
        """
        for path, before in self._stats.items():
            now = _stat(path)
            if now == before or (self._replaced and (now is None or now[:2] != before[:2])):
                continue
            raise FormatError(path, "the file changed while it was read", hint="run it again when nothing writes to it")


def _stat(path: str) -> tuple[int, ...] | None:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns
