"""One task of a transfer: some boxes of some tensors, read from the source and written to their places in a new file.

Promise: a task is all that it needs - it can be pickled, run by any thread, process or machine that sees the same
files, and run twice; it writes its own byte ranges and nothing else; it holds one box's parts of the source, and one
tile. Checksums are computed while a tile is in the cache. Limit: what a source cannot say the place of is read through
the source itself, by one task at a time in a process.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from weightport.checksums import CRC32C, function
from weightport.errors import Error
from weightport.execute.boxes import Sizes, hulls, runs
from weightport.execute.ledger import Pieces, pieces
from weightport.formats._io import ByteFile
from weightport.ranges import Ranges, copy, extent, position, slices_of, whole
from weightport.tensors import Array, Extent, Source, TensorSpec
from weightport.values import Expr, Leaf


class Side:
    """A source that tasks read from. In another process it is opened again, once for all tasks of a transfer.

    Args:
        source: an open source.
        key: tells the transfer from all others.
    """

    def __init__(self, source: Source, key: str) -> None:
        self._source, self._key = source, key
        self._lock = threading.Lock()

    def read(self, name: str, ranges: Ranges) -> Array:
        """A part of a tensor, by the source's own reader."""
        with self._lock:
            return self._source.read(name, slices_of(ranges))

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            source = pickle.dumps(self._source)
        except (TypeError, AttributeError, pickle.PicklingError):
            raise Error(f"{self._source.path}: cannot be opened in another process; give its path instead") from None
        return _reopened, (source, self._key)


@lru_cache(maxsize=8)
def _reopened(source: bytes, key: str) -> Side:
    return Side(pickle.loads(source), key)


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a target tensor.

    Attributes:
        name: the target tensor's.
        expr: what it is computed from.
        spec: its dtype and shape.
        box: which part of it, or None for all of it.
        held: whether the parts of the source are held while the box is made.
        out: the file to write into; it exists.
        offset: where the whole tensor's bytes begin in it.
        side: which of the task's sources it is computed from.
    """

    name: str
    expr: Expr
    spec: TensorSpec
    box: Ranges | None
    held: bool
    out: str
    offset: int
    side: int


@dataclass(frozen=True, slots=True)
class Task:
    """See the module.

    Attributes:
        checksum: the kind that the new file has for each tensor, or None.
        sides: the sources.
        pieces: what to write.
        specs: of the source tensors, by side and name.
        extents: where they lie, of those that lie anywhere.
        sizes: how much is done at a time.
    """

    checksum: str | None
    sides: tuple[Side, ...]
    pieces: tuple[Piece, ...]
    specs: Mapping[tuple[int, str], TensorSpec]
    extents: Mapping[tuple[int, str], Extent]
    sizes: Sizes

    @property
    def nbytes(self) -> int:
        """Bytes that it writes."""
        return sum(prod(extent(_box(p))) * p.spec.dtype.itemsize for p in self.pieces)


@dataclass(slots=True)
class Done:
    """What a task did.

    Attributes:
        nbytes: that were written.
        read: per side and name of a source tensor with a checksum, the pieces of its file that were read.
        written: per target tensor, the pieces of its bytes, if the new file has checksums.
    """

    nbytes: int = 0
    read: list[tuple[int, str, Pieces]] = field(default_factory=list)
    written: list[tuple[str, Pieces]] = field(default_factory=list)


def run(task: Task) -> Done:
    """Carry out a task.

    Raises:
        FormatError: the source is truncated or corrupt.
        Error: a value that the target's dtype cannot hold.
        OSError: the file cannot be written.
    """
    mover = _Mover(task)
    try:
        for piece in task.pieces:
            mover.move(piece)
        return mover.finish()
    finally:
        for file in mover.files.values():
            file.close()
        for handle in mover.handles.values():
            os.close(handle)


def _box(piece: Piece) -> Ranges:
    return whole(piece.spec.shape) if piece.box is None else piece.box


@dataclass(slots=True)
class _Mover:
    task: Task
    done: Done = field(default_factory=Done)
    files: dict[str, ByteFile] = field(default_factory=dict)
    handles: dict[str, int] = field(default_factory=dict)
    small: list[tuple[Piece, Extent]] = field(default_factory=list)
    buffer: memoryview = field(default_factory=lambda: memoryview(b""))
    memo: dict[int, Array] = field(default_factory=dict)
    last: Expr | None = None
    spans: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.buffer = memoryview(bytearray(self.task.sizes.chunk))

    def move(self, piece: Piece) -> None:
        place = self.task.extents.get((piece.side, piece.expr.name)) if isinstance(piece.expr, Leaf) else None
        if place is None:
            self._flush()
            self._make(piece)
        elif piece.box is None and place.nbytes <= self.task.sizes.chunk:
            if self.small and not self._follows(piece, place):
                self._flush()
            self.small.append((piece, place))
        else:
            self._flush()
            self._copy(piece, place)

    def finish(self) -> Done:
        self._flush()
        for path, (first, last, nbytes) in self.spans.items():
            if self.task.sizes.tile <= last - first <= nbytes and hasattr(os, "posix_fadvise"):
                # Starts to write it to the disk, so that the fsync at the end has little left to do.
                os.posix_fadvise(self.handles[path], first, last - first, os.POSIX_FADV_DONTNEED)
        return self.done

    # Bytes that stay as they are ------------------------------------------------------------------------------------

    def _follows(self, piece: Piece, place: Extent) -> bool:
        """Whether a small tensor's bytes come right behind those that are waiting."""
        before, its = self.small[-1]
        first = self.small[0][0].offset
        follows = before.out == piece.out and before.offset + its.nbytes == piece.offset
        return follows and piece.offset + place.nbytes - first <= self.task.sizes.chunk

    def _flush(self) -> None:
        """Write small tensors that stand side by side in one go; those that lie side by side are read in one go."""
        waiting, self.small = self.small, []
        at = first = 0
        for number, (_, place) in enumerate(waiting):
            follows = waiting[number + 1][1] if number + 1 < len(waiting) else None
            if follows is not None and follows.path == place.path and follows.offset == place.offset + place.nbytes:
                continue
            begin = waiting[first][1]
            size = place.offset + place.nbytes - begin.offset
            tensor = waiting[first][0].expr
            assert isinstance(tensor, Leaf)
            self._file(begin.path).read_into(begin.offset, self.buffer[at : at + size], tensor=tensor.name)
            at, first = at + size, number + 1
        at = 0
        for piece, place in waiting:
            view = self.buffer[at : at + place.nbytes]
            found = self._noted(piece, place, [(place.offset, view)])
            if self.task.checksum is not None:
                self._wrote(piece, [(0, len(view), self._checksum(view, place, found))])
            at += place.nbytes
        if at:
            self._put(waiting[0][0].out, waiting[0][0].offset, self.buffer[:at])

    def _copy(self, piece: Piece, place: Extent) -> None:
        box, item = _box(piece), piece.spec.dtype.itemsize
        starts, length = runs(box, piece.spec.shape)
        size = length * item
        file = self._file(place.path)
        mine = None if place.checksum is None else function(place.checksum.kind)
        its = None if self.task.checksum is None else function(self.task.checksum)
        same = place.checksum is not None and place.checksum.kind == self.task.checksum
        read, written = [], []
        for start in (starts * item).tolist():
            crc = out = 0
            for at in range(start, start + size, self.task.sizes.chunk):
                view = self.buffer[: min(self.task.sizes.chunk, start + size - at)]
                file.read_into(place.offset + at, view, tensor=piece.expr.name if isinstance(piece.expr, Leaf) else "")
                crc = mine(view, crc) if mine is not None else 0
                out = its(view, out) if its is not None and not same else 0
                self._put(piece.out, piece.offset + at, view)
            read.append((place.offset + start, size, crc))
            written.append((start, size, crc if same else out))
        if mine is not None:
            assert isinstance(piece.expr, Leaf)
            self.done.read.append((piece.side, piece.expr.name, pieces(read)))
        if its is not None:
            self._wrote(piece, written)

    def _checksum(self, view: memoryview, place: Extent, found: int | None) -> int:
        kind = self.task.checksum
        if found is not None and place.checksum is not None and place.checksum.kind == kind:
            return found
        return function(kind or CRC32C)(view, 0)

    def _noted(self, piece: Piece, place: Extent, views: list[tuple[int, memoryview]]) -> int | None:
        """The checksum of what was read of a tensor that has one."""
        if place.checksum is None:
            return None
        checksum = function(place.checksum.kind)
        found = [(at, len(view), checksum(view, 0)) for at, view in views]
        assert isinstance(piece.expr, Leaf)
        self.done.read.append((piece.side, piece.expr.name, pieces(found)))
        return found[-1][2]

    # Values that are made --------------------------------------------------------------------------------------------

    def _make(self, piece: Piece) -> None:
        box, dtype = _box(piece), piece.spec.dtype
        if piece.expr is not self.last:
            self.last, self.memo = piece.expr, {}
        fetch = _Held(lambda name, ranges: self._load(piece.side, name, ranges), self.memo)
        if piece.held and 0 not in extent(box):
            specs = {name: self.task.specs[piece.side, name] for name in piece.expr.leaves()}
            for name, hull in hulls(piece.expr, box, specs, self.task.sizes.small).items():
                fetch.hold(name, hull)
        written: list[tuple[int, int, int]] = []
        spare: Array = np.empty(0, dtype)
        for ranges in _tiles(box, max(1, self.task.sizes.tile // max(1, dtype.itemsize))):
            size = extent(ranges)
            made = np.asarray(piece.expr.read(fetch, ranges))
            if made.dtype != dtype or made.shape != size:
                raise Error(f"{piece.name!r}: {made.dtype.name} {list(made.shape)} was made for {piece.spec}")
            if not made.flags.c_contiguous:
                if spare.size < made.size:
                    spare = np.empty(made.size, dtype)
                tile = spare[: made.size].reshape(size)
                copy(tile, made)
                made = tile
            self._place(piece, ranges, made, written)
        if self.task.checksum is not None:
            self._wrote(piece, written)

    def _place(self, piece: Piece, ranges: Ranges, tile: Array, written: list[tuple[int, int, int]]) -> None:
        view = tile.reshape(-1).view(np.uint8).data
        starts, length = runs(ranges, piece.spec.shape)
        size = length * tile.dtype.itemsize
        checksum = None if self.task.checksum is None else function(self.task.checksum)
        at = 0
        for start in (starts * tile.dtype.itemsize).tolist():
            part = view[at : at + size]
            if checksum is not None:
                written.append((start, size, checksum(part, 0)))
            self._put(piece.out, piece.offset + start, part)
            at += size

    def _load(self, side: int, name: str, ranges: Ranges) -> Array:
        """A part of a source tensor, in memory."""
        spec, place = self.task.specs[side, name], self.task.extents.get((side, name))
        if place is None or not prod(extent(ranges)):
            return self.task.sides[side].read(name, ranges)
        steps = [r.step for r in ranges]
        if any(step != 1 and len(r) > 1 for step, r in zip(steps[-1:], ranges[-1:], strict=True)):
            covering = (*ranges[:-1], range(ranges[-1].start, ranges[-1][-1] + 1))
            return self._load(side, name, covering)[..., :: ranges[-1].step]
        out: Array = np.empty(extent(ranges), spec.dtype)
        view = out.reshape(-1).view(np.uint8).data
        starts, length = runs(ranges, spec.shape)
        size = length * spec.dtype.itemsize
        file = self._file(place.path)
        checksum = None if place.checksum is None else function(place.checksum.kind)
        found, done = [], 0
        for start in (starts * spec.dtype.itemsize + place.offset).tolist():
            crc = 0
            for at in range(0, size, self.task.sizes.chunk):
                part = view[done + at : done + min(at + self.task.sizes.chunk, size)]
                file.read_into(start + at, part, tensor=name)
                if checksum is not None:
                    crc = checksum(part, crc)
            found.append((start, size, crc))
            done += size
        if checksum is not None:
            self.done.read.append((side, name, pieces(found)))
        return out

    # Files -----------------------------------------------------------------------------------------------------------

    def _file(self, path: str) -> ByteFile:
        file = self.files.get(path)
        if file is None:
            file = self.files[path] = ByteFile(path)
        return file

    def _put(self, path: str, offset: int, view: memoryview) -> None:
        handle = self.handles.get(path)
        if handle is None:
            handle = self.handles[path] = os.open(path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
        first, last, nbytes = self.spans.get(path, (offset, offset, 0))
        self.spans[path] = min(first, offset), max(last, offset + len(view)), nbytes + len(view)
        self.done.nbytes += len(view)
        while len(view):
            count = os.pwrite(handle, view, offset)
            view, offset = view[count:], offset + count

    def _wrote(self, piece: Piece, found: list[tuple[int, int, int]]) -> None:
        self.done.written.append((piece.name, pieces(found)))


class _Held:
    """Gives parts of source tensors out of larger ones that are held, and reads others."""

    def __init__(self, load: Callable[[str, Ranges], Array], memo: dict[int, Array]) -> None:
        self._load, self.memo = load, memo
        self._parts: dict[str, tuple[Ranges, Array]] = {}

    def hold(self, name: str, hull: Ranges) -> None:
        self._parts[name] = hull, self._load(name, hull)

    def __call__(self, name: str, ranges: Ranges) -> Array:
        held = self._parts.get(name)
        if held is None or not all(map(_within, ranges, held[0])):
            return self._load(name, ranges)
        places = tuple(position(r, h) for r, h in zip(ranges, held[0], strict=True))
        return held[1][slices_of(places)] if places else held[1]


def _within(part: range, of: range) -> bool:
    return not len(part) or (part[0] in of and part[-1] in of and (len(part) == 1 or part.step % of.step == 0))


def _tiles(box: Ranges, most: int) -> Iterator[Ranges]:
    """The box in order, in parts of at most so many elements."""
    axis = next((a for a, r in enumerate(box) if len(r) > 1), None)
    if axis is None or prod(extent(box)) <= most:
        yield box
        return
    row = prod(extent(box[axis + 1 :]))
    step = max(1, most // max(row, 1))
    for at in range(0, len(box[axis]), step):
        yield from _tiles((*box[:axis], box[axis][at : at + step], *box[axis + 1 :]), most)
