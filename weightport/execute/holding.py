"""Parts of source tensors in memory, while a box is made of them.

Promise: what has a place is read by position, each run of bytes once, and its checksum is computed on the way; memory
is used again from box to box. Rows are held a little apart where columns will be taken out of them: rows whose distance
is a power of two would push one another out of the cache.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np

from weightport.checksums import function
from weightport.execute.boxes import runs
from weightport.execute.ledger import pieces
from weightport.execute.tasks import Done, Task
from weightport.formats._io import ByteFile
from weightport.ranges import Ranges, extent, position, slices_of
from weightport.tensors import Array

# Rows that are held apart are by so many bytes; it is done for rows of at least so many.
_APART, _LONG = 64, 1024


class Scratch(threading.local):
    """Memory that a thread uses again for each box: new memory costs as much as copying into it does."""

    most = 40 << 20

    def __init__(self) -> None:
        self._buffer: Array = np.empty(0, np.uint8)
        self._used = 0

    def reset(self, size: int) -> None:
        """What was given out is not used any more; so many bytes will be asked for."""
        self._used = 0
        if self._buffer.nbytes < size <= self.most:
            self._buffer = np.empty(size, np.uint8)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array of any content, until :meth:`reset`; larger ones than are kept are new."""
        size = prod(shape) * dtype.itemsize
        start = -(-self._used // 64) * 64
        if start + size > self._buffer.nbytes:
            return np.empty(shape, dtype)
        self._used = start + size
        found: Array = self._buffer[start : start + size].view(dtype).reshape(shape)
        return found

    def release(self) -> None:
        """Give the memory back."""
        self._buffer = np.empty(0, np.uint8)


SCRATCH = Scratch()


class Loader:
    """Reads parts of source tensors for a task.

    Attributes:
        buffer: for whoever needs one at the moment.
    """

    def __init__(self, task: Task, done: Done) -> None:
        self._task, self._done = task, done
        self._files: dict[str, ByteFile] = {}
        self.buffer = memoryview(bytearray(task.sizes.chunk))

    def load(
        self, side: int, name: str, ranges: Ranges, *, empty: Callable[..., Array] = np.empty, apart: bool = False
    ) -> Array:
        """A part of a tensor, in memory that ``empty`` gives; its rows may be held ``apart``."""
        spec, place = self._task.specs[side, name], self._task.extents.get((side, name))
        size = extent(ranges)
        if place is None or 0 in size:
            return self._task.sides[side].read(name, ranges)
        if ranges and ranges[-1].step != 1 and size[-1] > 1:
            covering = (*ranges[:-1], range(ranges[-1].start, ranges[-1][-1] + 1))
            return self.load(side, name, covering, empty=empty)[..., :: ranges[-1].step]
        item = spec.dtype.itemsize
        starts, length = runs(ranges, spec.shape)
        row = size[-1] * item if size else item
        if apart and row >= _LONG and length * item % row == 0:
            out: Array = empty((prod(size[:-1]), row + _APART), np.dtype(np.uint8))[:, :row]
        else:
            out = empty((len(starts), length * item), np.dtype(np.uint8))
        file, read = self.file(place.path), []
        checksum = None if place.checksum is None else function(place.checksum.kind)
        per_run, at = length * item // out.shape[1], 0
        begins = (starts * item + place.offset).tolist()
        if per_run == 1 and len(begins) > 1 and out.shape[1] <= len(self.buffer):
            crcs = file.read_rows(begins, out, checksum, tensor=name)
            read = [(start, length * item, crc) for start, crc in zip(begins, crcs, strict=True)]
            begins = []
        for start in begins:
            crc = self._rows(file, start, out[at : at + per_run], checksum, name)
            read.append((start, length * item, crc))
            at += per_run
        if checksum is not None:
            self._done.read.append((side, name, pieces(read)))
        found: Array = out.view(spec.dtype).reshape(size)
        return found

    def room(self, side: int, name: str, ranges: Ranges) -> int:
        """Bytes that a part takes in memory at most."""
        size = extent(ranges)
        row = (size[-1] if size else 1) * self._task.specs[side, name].dtype.itemsize
        return prod(size[:-1]) * (row + _APART) + _APART

    def _rows(self, file: ByteFile, start: int, rows: Array, checksum: Any, name: str) -> int:
        """Consecutive bytes of the file, row by row; returns their checksum."""
        crc, (count, size) = 0, rows.shape
        some = len(self.buffer) // size if count > 1 else 0
        for at in range(0, count, max(1, some)):
            if some > 1:  # together, through the cache
                view = self.buffer[: min(some, count - at) * size]
                file.read_into(start + at * size, view, tensor=name)
                crc = checksum(view, crc) if checksum is not None else 0
                rows[at : at + some] = np.frombuffer(view, np.uint8).reshape(-1, size)
                continue
            row = rows[at].data
            for part in range(0, size, len(self.buffer)):
                view = row[part : part + len(self.buffer)]
                file.read_into(start + at * size + part, view, tensor=name)
                crc = checksum(view, crc) if checksum is not None else 0
        return crc

    def file(self, path: str) -> ByteFile:
        """The open file of that path."""
        file = self._files.get(path)
        if file is None:
            file = self._files[path] = ByteFile(path)
        return file

    def close(self) -> None:
        """Release the files."""
        for file in self._files.values():
            file.close()


class Held:
    """Gives parts of source tensors out of larger ones that are held, and reads others.

    Attributes:
        memo: see :data:`weightport.values.Fetch`.
    """

    def __init__(self, loader: Loader, side: int, memo: dict[int, Array]) -> None:
        self._loader, self._side, self.memo = loader, side, memo
        self._parts: dict[str, list[tuple[Ranges, Array]]] = {}

    def hold(self, parts: Mapping[str, Sequence[Ranges]], *, apart: bool) -> None:
        """Read these parts, and nothing else from now on as long as they suffice."""
        size = sum(self._loader.room(self._side, name, hull) for name, hulls in parts.items() for hull in hulls)
        SCRATCH.reset(size)
        for name, hulls in parts.items():
            load = partial(self._loader.load, self._side, name, empty=SCRATCH.empty, apart=apart)
            self._parts[name] = [(hull, load(hull)) for hull in hulls]

    def __call__(self, name: str, ranges: Ranges) -> Array:
        """A part of a tensor."""
        for hull, array in self._parts.get(name, ()):
            if all(map(_within, ranges, hull)):
                places = tuple(position(r, h) for r, h in zip(ranges, hull, strict=True))
                return array[slices_of(places)] if places else array
        return self._loader.load(self._side, name, ranges)


def _within(part: range, of: range) -> bool:
    return not len(part) or (part[0] in of and part[-1] in of and (len(part) == 1 or part.step % of.step == 0))
