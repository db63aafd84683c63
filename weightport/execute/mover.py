"""Carries out one task: reads, makes and writes its pieces.

Promise: bytes that stay as they are pass through one buffer, small tensors that stand side by side together; values
that are made pass through one tile. Checksums are computed while a tile is in the cache.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from math import prod
from typing import Any

import numpy as np

from weightport.checksums import CRC32C, function
from weightport.errors import Error
from weightport.execute.boxes import hulls, runs
from weightport.execute.holding import TILE, Held, Loader
from weightport.execute.ledger import pieces
from weightport.execute.rowwise import Rowwise, rowwise
from weightport.execute.tasks import Done, Piece, Task
from weightport.formats._io import ByteFile
from weightport.ranges import Ranges, cut_out, extent, whole
from weightport.strips import copy
from weightport.tensors import Array, Extent
from weightport.values import Assemble, Expr, Leaf, Permute, read_into

# Written in one call: parts, as many as systems take; bytes, above which they look for larger pages than there are.
_PARTS, _CALL = 1024, 1 << 20


def run(task: Task) -> Done:
    """Carry out a task.

    Raises:
        FormatError: the source is truncated or corrupt.
        Error: a value that the target's dtype cannot hold.
        OSError: the file cannot be written.
    """
    mover = Mover(task)
    try:
        for piece in task.pieces:
            mover.move(piece)
        return mover.finish()
    finally:
        mover.loader.close()
        for handle in mover.handles.values():
            os.close(handle)


def _box(piece: Piece) -> Ranges:
    return whole(piece.spec.shape) if piece.box is None else piece.box


@dataclass(slots=True)
class Mover:
    """A task under way."""

    task: Task
    done: Done = field(default_factory=Done)
    handles: dict[str, int] = field(default_factory=dict)
    small: list[tuple[Piece, Extent]] = field(default_factory=list)
    memo: dict[int, Array] = field(default_factory=dict)
    last: Expr | None = None
    loader: Loader = field(init=False)
    buffer: memoryview = field(init=False)
    spans: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    flat: memoryview | None = None

    def __post_init__(self) -> None:
        if self.task.memory is not None:
            self.flat = self.task.memory.reshape(-1).view(np.uint8).data
        self.loader = Loader(self.task, self.done)
        self.buffer = self.loader.buffer

    def move(self, piece: Piece) -> None:
        """One piece; small ones may wait for their neighbours."""
        place = self.task.extents.get((piece.side, piece.expr.name)) if isinstance(piece.expr, Leaf) else None
        if place is None:
            self._flush()
            placed = {name for name in piece.expr.leaves() if (piece.side, name) in self.task.extents}
            how = rowwise(piece.expr, placed, self.task.sizes.tile)
            if how is None or not self._put_together(piece, how):
                self._make(piece)
        elif piece.box is None and place.nbytes <= self.task.sizes.chunk:
            if self.small and not self._follows(piece, place):
                self._flush()
            self.small.append((piece, place))
        else:
            self._flush()
            self._copy(piece, place)

    def finish(self) -> Done:
        """The pieces that wait, and what was done."""
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
            self.loader.file(begin.path).read_into(begin.offset, self.buffer[at : at + size], tensor=tensor.name)
            at, first = at + size, number + 1
        at = 0
        for piece, place in waiting:
            view = self.buffer[at : at + place.nbytes]
            found = self._noted(piece, place, [(place.offset, view)])
            if self.task.checksum is not None:
                self._wrote(piece, [(0, len(view), self._checksum(view, place, found))])
            at += place.nbytes
        if at:
            self._put(waiting[0][0].out, waiting[0][0].offset, [self.buffer[:at]], at)

    def _copy(self, piece: Piece, place: Extent) -> None:
        box, item = _box(piece), piece.spec.dtype.itemsize
        starts, length = runs(box, piece.spec.shape)
        size = length * item
        file = self.loader.file(place.path)
        mine = None if place.checksum is None else function(place.checksum.kind)
        its = None if self.task.checksum is None else function(self.task.checksum)
        same = place.checksum is not None and place.checksum.kind == self.task.checksum
        read, written = [], []
        memory = self.flat
        plain = mine is None and its is None and memory is None
        for start in (starts * item).tolist():
            if plain and self._inside(piece, file, place.offset + start, start, size):
                continue
            crc = out = 0
            file.expect(place.offset + start, size)
            for at in range(start, start + size, self.task.sizes.chunk):
                count = min(self.task.sizes.chunk, start + size - at)
                view = self.buffer[:count] if memory is None else memory[piece.offset + at :][:count]
                file.read_into(place.offset + at, view, tensor=piece.expr.name if isinstance(piece.expr, Leaf) else "")
                crc = mine(view, crc) if mine is not None else 0
                out = its(view, out) if its is not None and not same else 0
                if memory is None:
                    self._put(piece.out, piece.offset + at, [view], count)
            read.append((place.offset + start, size, crc))
            written.append((start, size, crc if same else out))
        if mine is not None:
            assert isinstance(piece.expr, Leaf)
            self.done.read.append((piece.side, piece.expr.name, pieces(read)))
        if its is not None:
            self._wrote(piece, written)

    def _inside(self, piece: Piece, file: ByteFile, offset: int, start: int, size: int) -> bool:
        """Whether bytes that nobody has to see could be copied without them passing through this process."""
        handle = self._handle(piece.out)
        tensor = piece.expr.name if isinstance(piece.expr, Leaf) else None
        with turn(piece.out):
            done = file.copy_to(handle, piece.offset + start, offset, size, tensor=tensor)
        if done:
            self._count(piece.out, piece.offset + start, size)
        return done

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

    def _put_together(self, piece: Piece, how: Rowwise) -> bool:
        """Rows out of parts of rows; whether the piece is rows."""
        starts, length = runs(_box(piece), piece.spec.shape)
        start, size = int(starts[0]) * piece.spec.dtype.itemsize, length * piece.spec.dtype.itemsize
        if len(starts) > 1 or start % how.row or size % how.row:
            return False
        checksum = None if self.task.checksum is None else function(self.task.checksum)
        crc, at = 0, start
        rows, most = range(start // how.row, (start + size) // how.row), self.task.sizes.tile // 2
        for parts, nbytes in how.bands(rows, most, partial(self.loader.fill, piece.side)):
            if checksum is not None:
                for part in parts:
                    crc = checksum(part, crc)
            self._put(piece.out, piece.offset + at, parts, nbytes)
            at += nbytes
        if checksum is not None:
            self._wrote(piece, [(start, size, crc)])
        return True

    def _make(self, piece: Piece) -> None:
        box, dtype = _box(piece), piece.spec.dtype
        if piece.expr is not self.last:
            self.last, self.memo = piece.expr, {}
        fetch = Held(self.loader, piece.side, self.memo)
        if piece.held and 0 not in extent(box):
            specs = {name: self.task.specs[piece.side, name] for name in piece.expr.leaves()}
            fetch.hold(hulls(piece.expr, box, specs, self.task.sizes.small))
        written: list[tuple[int, int, int]] = []
        for ranges in _tiles(box, max(1, self.task.sizes.tile_of(piece.expr) // max(1, dtype.itemsize))):
            tile = self._made(piece, fetch, ranges)
            if self.task.memory is None:
                self._place(piece, ranges, tile, written)
        if self.task.checksum is not None:
            self._wrote(piece, written)

    def _made(self, piece: Piece, fetch: Held, ranges: Ranges) -> Array:
        """A tile, in C order; in memory that is written to, where it belongs."""
        size, dtype = extent(ranges), piece.spec.dtype
        TILE.reset(0 if self.task.memory is not None else prod(size) * dtype.itemsize)
        # What is only moved is written to where it belongs; other values are computed first.
        moved = isinstance(piece.expr, Assemble | Permute)
        made = None if moved else np.asarray(piece.expr.read(fetch, ranges))
        found, shape = (piece.expr.dtype, size) if made is None else (made.dtype, made.shape)
        if (found, shape) != (dtype, size):
            raise Error(f"{piece.name!r}: {found.name}{list(shape)} was made for {dtype.name}{list(size)}")
        memory = self.task.memory
        if made is not None and made.flags.c_contiguous and memory is None:
            return made
        tile = TILE.empty(size, dtype) if memory is None else cut_out(memory, ranges)
        if made is None:
            read_into(piece.expr, fetch, ranges, tile)
        else:
            copy(tile, made)
        return tile

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
            self._put(piece.out, piece.offset + start, [part], size)
            at += size

    # Files -----------------------------------------------------------------------------------------------------------

    def _handle(self, path: str) -> int:
        handle = self.handles.get(path)
        if handle is None:
            handle = self.handles[path] = os.open(path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
        return handle

    def _count(self, path: str, offset: int, size: int) -> None:
        first, last, nbytes = self.spans.get(path, (offset, offset, 0))
        self.spans[path] = min(first, offset), max(last, offset + size), nbytes + size
        self.done.nbytes += size

    def _put(self, path: str, offset: int, parts: Sequence[Any], size: int) -> None:
        """Write byte arrays or views one behind the other."""
        if self.flat is not None:
            for part in parts:
                self.flat[offset : offset + len(part)] = part
                offset += len(part)
            return
        handle = self._handle(path)
        self._count(path, offset, size)
        with turn(path):
            for some in _calls(parts):
                offset += _written(handle, some, offset)

    def _wrote(self, piece: Piece, found: list[tuple[int, int, int]]) -> None:
        self.done.written.append((piece.name, pieces(found)))


@lru_cache(maxsize=256)
def turn(path: str) -> threading.Lock:  # noqa: ARG001
    """Held while a file is written to: the system lets one thread at a time, and others burn processor time for it."""
    return threading.Lock()


def _calls(parts: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Byte arrays or views, as many at a time as are written in one call."""
    some: list[Any] = []
    size = 0
    for part in parts:
        for at in range(0, len(part), _CALL):
            piece = part[at : at + _CALL] if len(part) > _CALL else part
            if some and (size + len(piece) > _CALL or len(some) == _PARTS):
                yield some
                some, size = [], 0
            some.append(piece)
            size += len(piece)
    if some:
        yield some


def _written(handle: int, parts: Sequence[Any], offset: int) -> int:
    """Write byte arrays or views one behind the other, in one call; how many bytes that was."""
    size = sum(map(len, parts))
    done = os.pwrite(handle, parts[0], offset) if len(parts) == 1 else os.pwritev(handle, parts, offset)
    if done < size:
        rest = memoryview(b"".join(parts) if len(parts) > 1 else parts[0])
        while done < size:
            done += os.pwrite(handle, rest[done:], offset + done)
    return size


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
