"""Parts of source tensors in memory, while a box is made of them.

Promise: what has a place is read by position, each run of bytes once and to where it stays, and its checksum is
computed on the way; memory is used again from box to box and from task to task.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from math import prod
from typing import Any

import numpy as np

from weightport.checksums import function
from weightport.execute.boxes import runs
from weightport.execute.tasks import Done, Task
from weightport.formats._io import ByteFile
from weightport.ranges import Ranges, extent, position, slices_of
from weightport.tensors import Array, Extent

#: A line of the cache: what is held together begins at one each.
LINE = 64


class Scratch(threading.local):
    """Memory that a thread uses again for each box: new memory costs as much as copying into it does.

    Attributes:
        memory: bytes.
        most: as many are kept.
    """

    most = 65 << 20

    def __init__(self) -> None:
        self.memory: Array = np.empty(0, np.uint8)
        self._used = 0

    def reset(self, size: int) -> None:
        """What was given out is not used any more; so many bytes will be asked for."""
        self._used = 0
        if self.memory.nbytes < size <= self.most:
            self.release()  # before there is more
            self.memory = np.empty(size, np.uint8)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array of any content, until :meth:`reset`; larger ones than are kept are new."""
        size = prod(shape) * dtype.itemsize
        start = -(-self._used // LINE) * LINE
        if start + size > self.memory.nbytes:
            return np.empty(shape, dtype)
        self._used = start + size
        found: Array = self.memory[start : start + size].view(dtype).reshape(shape)
        return found

    def release(self) -> None:
        """Give the memory back."""
        self.memory = np.empty(0, np.uint8)


#: Held while runs are read that lie apart: threads that do so at once take turns at the interpreter for each of them,
#: which takes longer than the reading.
ONE_READS = threading.Lock()
#: What is held of the source.
SCRATCH = Scratch()
#: What is made of it.
TILE = Scratch()


class Loader:
    """Reads parts of source tensors for a task.

    Attributes:
        buffer: for whoever needs one at the moment.
    """

    def __init__(self, task: Task, done: Done) -> None:
        self._task, self._done = task, done
        self._files: dict[str, ByteFile] = {}
        self.buffer = np.empty(task.sizes.chunk, np.uint8).data

    def load(self, side: int, name: str, ranges: Ranges, *, empty: Callable[..., Array] = np.empty) -> Array:
        """A part of a tensor, in memory that ``empty`` gives."""
        spec, place = self._task.specs[side, name], self._task.extents.get((side, name))
        size = extent(ranges)
        if place is None or 0 in size:
            return self._task.sides[side].read(name, ranges)
        if ranges and ranges[-1].step != 1 and size[-1] > 1:
            covering = (*ranges[:-1], range(ranges[-1].start, ranges[-1][-1] + 1))
            return self.load(side, name, covering, empty=empty)[..., :: ranges[-1].step]
        item = spec.dtype.itemsize
        starts, length = runs(ranges, spec.shape)
        starts, nbytes = starts * item + place.offset, length * item
        out: Array = empty((len(starts), nbytes), np.dtype(np.uint8))
        self._rows(side, name, place, starts, out)
        found: Array = out.view(spec.dtype).reshape(size)
        return found

    def fill(self, side: int, name: str, start: int, out: Array) -> None:
        """Consecutive bytes of a tensor that has a place, from one on, into an array of bytes."""
        place = self._task.extents[side, name]
        self._rows(side, name, place, np.array([place.offset + start], np.int64), out.reshape(1, -1))

    def _rows(self, side: int, name: str, place: Extent, starts: Array, out: Array) -> None:
        """Rows of bytes, each from its own offset in the file; their checksums are noted."""
        checksum = None if place.checksum is None else function(place.checksum.kind)
        with ONE_READS if len(starts) > 1 else nullcontext():
            crcs = self.file(place.path).read_rows(starts.tolist(), out, checksum, self._task.sizes.chunk, tensor=name)
        if checksum is not None:
            sizes = np.full(len(starts), out.shape[1], np.int64)
            self._done.read.append((side, name, (starts, sizes, np.array(crcs, np.uint32))))

    def room(self, side: int, name: str, ranges: Ranges) -> int:
        """Bytes that a part takes in memory at most."""
        return prod(extent(ranges)) * self._task.specs[side, name].dtype.itemsize + LINE

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

    def hold(self, parts: Mapping[str, Sequence[Ranges]]) -> None:
        """Read these parts, and nothing else from now on as long as they suffice."""
        size = sum(self._loader.room(self._side, name, hull) for name, hulls in parts.items() for hull in hulls)
        SCRATCH.reset(size)
        for name, hulls in parts.items():
            load = partial(self._loader.load, self._side, name, empty=SCRATCH.empty)
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
