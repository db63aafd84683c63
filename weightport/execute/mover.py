"""Carries out one task: reads, makes and writes its pieces.

Promise: bytes that stay as they are pass through one buffer, small tensors that stand side by side together; values
that are made pass through one tile. Checksums are computed while a tile is in the cache.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from weightport.checksums import CRC32C, function
from weightport.errors import Error
from weightport.execute.boxes import hulls, runs
from weightport.execute.holding import Held, Loader
from weightport.execute.ledger import pieces
from weightport.execute.tasks import Done, Piece, Task
from weightport.formats._io import ByteFile
from weightport.ranges import Ranges, copy, extent, whole
from weightport.tensors import Array, Extent
from weightport.values import Expr, Leaf, crossed


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
    spare: Array = field(default_factory=lambda: np.empty(0, np.uint8))

    def __post_init__(self) -> None:
        self.loader = Loader(self.task, self.done)
        self.buffer = self.loader.buffer

    def move(self, piece: Piece) -> None:
        """One piece; small ones may wait for their neighbours."""
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
            self._put(waiting[0][0].out, waiting[0][0].offset, self.buffer[:at])

    def _copy(self, piece: Piece, place: Extent) -> None:
        box, item = _box(piece), piece.spec.dtype.itemsize
        starts, length = runs(box, piece.spec.shape)
        size = length * item
        file = self.loader.file(place.path)
        mine = None if place.checksum is None else function(place.checksum.kind)
        its = None if self.task.checksum is None else function(self.task.checksum)
        same = place.checksum is not None and place.checksum.kind == self.task.checksum
        read, written = [], []
        memory = self.task.memory
        plain = mine is None and its is None and memory is None
        for start in (starts * item).tolist():
            if plain and self._inside(piece, file, place.offset + start, start, size):
                continue
            crc = out = 0
            for at in range(start, start + size, self.task.sizes.chunk):
                count = min(self.task.sizes.chunk, start + size - at)
                view = self.buffer[:count] if memory is None else memory[piece.offset + at :][:count]
                file.read_into(place.offset + at, view, tensor=piece.expr.name if isinstance(piece.expr, Leaf) else "")
                crc = mine(view, crc) if mine is not None else 0
                out = its(view, out) if its is not None and not same else 0
                if memory is None:
                    self._put(piece.out, piece.offset + at, view)
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

    def _make(self, piece: Piece) -> None:
        box, dtype = _box(piece), piece.spec.dtype
        if piece.expr is not self.last:
            self.last, self.memo = piece.expr, {}
        fetch = Held(self.loader, piece.side, self.memo)
        if piece.held and 0 not in extent(box):
            specs = {name: self.task.specs[piece.side, name] for name in piece.expr.leaves()}
            fetch.hold(hulls(piece.expr, box, specs, self.task.sizes.small), apart=crossed(piece.expr))
        written: list[tuple[int, int, int]] = []
        for ranges in _tiles(box, max(1, self.task.sizes.tile_of(piece.expr) // max(1, dtype.itemsize))):
            size = extent(ranges)
            made = np.asarray(piece.expr.read(fetch, ranges))
            if made.dtype != dtype or made.shape != size:
                wanted = f"{dtype.name}{list(size)}"
                raise Error(f"{piece.name!r}: {made.dtype.name}{list(made.shape)} was made for {wanted}")
            if not made.flags.c_contiguous:
                tile = self._tile(size, dtype)
                copy(tile, made)
                made = tile
            self._place(piece, ranges, made, written)
        if self.task.checksum is not None:
            self._wrote(piece, written)

    def _tile(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        size = prod(shape) * dtype.itemsize
        if self.spare.nbytes < size:
            self.spare = np.empty(size, np.uint8)
        found: Array = self.spare[:size].view(dtype).reshape(shape)
        return found

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

    def _put(self, path: str, offset: int, view: memoryview) -> None:
        if self.task.memory is not None:
            self.task.memory[offset : offset + len(view)] = view
            return
        handle = self._handle(path)
        self._count(path, offset, len(view))
        while len(view):
            count = os.pwrite(handle, view, offset)
            view, offset = view[count:], offset + count

    def _wrote(self, piece: Piece, found: list[tuple[int, int, int]]) -> None:
        self.done.written.append((piece.name, pieces(found)))


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
