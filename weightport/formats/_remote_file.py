"""Files that are read by URL, in byte ranges.

Promise: headers cost few requests and little more than their bytes; neighbours are fetched together; of long ranges
exactly these, in parts side by side; what is kept in memory is bounded, whatever the file's size. What cannot be read
from the middle (a server without ranges, a compressed member of an archive) is downloaded into a temporary file, which
is said, and refused where it would fill the disk. Limit: a file is what it was when it was opened; whether it still is,
:mod:`weightport.execute.watch` asks.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from weightport.errors import Error, FormatError
from weightport.formats import _fs
from weightport.formats._io import CHUNK, ByteFile
from weightport.formats._remote import Entry, Remote
from weightport.sizes import size as sized
from weightport.tensors import Array

#: The unit of what is kept, and how much is fetched at least; files up to WHOLE are fetched at once.
BLOCK, LEAST, WHOLE = 16 << 10, 64 << 10, 1 << 20
#: How far one who reads on is run ahead of; how much of a file is kept.
AHEAD, KEPT = 4 << 20, 16 << 20
#: Ranges from here on are not kept; they are fetched in parts side by side, so much at a time.
LONG, PART, WINDOW = 256 << 10, 4 << 20, 16 << 20
#: Ranges with at most so much between them are fetched as one.
GAP = 64 << 10
# What a header of a member of an archive takes.
_HEADER = 512

log = logging.getLogger("weightport")


@dataclass(slots=True)
class Shared:
    """What all who open a file have in common, as long as it has the same marks."""

    entry: Entry
    blocks: OrderedDict[int, memoryview] = field(default_factory=OrderedDict)
    lock: Any = field(default_factory=threading.RLock)
    #: Whether the server was seen to answer with a range from the middle.
    ranged: bool = False
    local: ByteFile | None = None

    def keep(self, first: int, data: bytes) -> None:
        """Blocks, from the one of that number on."""
        view = memoryview(data)
        for at in range(0, len(view), BLOCK):
            self.blocks[first + at // BLOCK] = view[at : at + BLOCK]
            self.blocks.move_to_end(first + at // BLOCK)
        while len(self.blocks) * BLOCK > KEPT:
            self.blocks.popitem(last=False)


class RemoteFile(ByteFile):
    """See the module; methods as those of :class:`~weightport.formats._io.ByteFile`."""

    local = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._fd = -1
        at = _fs.find(self.path)
        if at is None or not isinstance(at[0], Remote):
            raise FormatError(self.path, "leads out of the folder of its URL")
        place, inner = at[0], at[1]
        self._place, self._inner = place, inner
        entry = place.entry(inner)
        if entry is None:
            raise place.denied(inner) or FormatError(self.path, "cannot be opened: no such file")
        if entry.folder:
            raise FormatError(self.path, "is not a regular file")
        shared = place.shared.get(inner)
        if shared is None or shared.entry != entry or not entry.marks:
            shared = place.shared[inner] = Shared(entry, ranged=not place.http)
        self._shared = shared
        if (entry.stream or entry.size is None) and shared.local is None:
            self._download()
        self.size = shared.local.size if shared.local is not None else entry.size or 0
        self._fd = 0
        self._next = self._ahead = 0
        self._until, self._window = (0, 0), (0, b"")

    # Reading --------------------------------------------------------------------------------------------------------

    def read(self, offset: int, count: int, *, tensor: str | None = None) -> bytes:
        """Exactly ``count`` bytes from ``offset``."""
        self.check(offset, count, tensor=tensor)
        found = bytearray(count)
        self.read_into(offset, memoryview(found), tensor=tensor)
        return bytes(found)

    def read_into(self, offset: int, buffer: memoryview, *, tensor: str | None = None) -> None:
        """Fill a writable, contiguous byte view from ``offset``."""
        self.check(offset, len(buffer), tensor=tensor)
        if not len(buffer):
            return
        if self._shared.local is not None:
            self._shared.local.read_into(offset, buffer, tensor=tensor)
            return
        end = offset + len(buffer)
        start, held = self._window
        if start <= offset and end <= start + len(held):
            buffer[:] = memoryview(held)[offset - start : end - start]
        elif self._until[0] <= offset and end <= self._until[1] and len(buffer) < WINDOW:
            held = b"".join(self._fetch(_parts(offset, min(self._until[1], offset + WINDOW)), tensor))
            self._window = offset, held
            buffer[:] = memoryview(held)[: len(buffer)]
        elif len(buffer) >= LONG and self.size > WHOLE:
            for at in range(offset, end, WINDOW):
                parts = _parts(at, min(end, at + WINDOW))
                for (first, last), data in zip(parts, self._fetch(parts, tensor), strict=True):
                    buffer[first - offset : last - offset] = data
        else:
            self._from_blocks(offset, buffer, tensor)

    def chunks(self, offset: int, count: int, *, tensor: str | None = None) -> Iterator[bytes]:
        """The byte range in pieces of at most ``CHUNK``."""
        self.check(offset, count, tensor=tensor)
        self.expect(offset, count)
        end = offset + count
        while offset < end:
            piece = self.read(offset, min(CHUNK, end - offset), tensor=tensor)
            yield piece
            offset += len(piece)

    def fileno(self) -> int:
        """A descriptor of the file's content, for another process: it is downloaded whole."""
        if self._shared.local is None:
            self._download("is given to another process, for which it has to be downloaded whole")
        assert self._shared.local is not None
        return self._shared.local.fileno()

    def expect(self, offset: int, count: int) -> None:
        """The range will be read from its beginning to its end."""
        if count > BLOCK:
            self._until = offset, offset + count

    def expect_near(self, offsets: Iterable[int]) -> None:
        """A little will be read at each of these: they are fetched together, as far as they can be kept."""
        shared = self._shared
        if shared.local is not None or self.size <= WHOLE:
            return
        with shared.lock:
            near = {n for o in offsets for n in (o // BLOCK, (o + _HEADER) // BLOCK) if o + _HEADER <= self.size}
            missing = sorted(n for n in near if n not in shared.blocks)[: KEPT // 2 // BLOCK]
            spans: list[list[int]] = []
            for number in missing:
                if spans and spans[-1][1] == number:
                    spans[-1][1] += 1
                else:
                    spans.append([number, number + 1])
            ranges = [(first * BLOCK, min(last * BLOCK, self.size)) for first, last in spans]
            for (first, _), data in zip(spans, self._fetch(ranges, None) if ranges else (), strict=True):
                shared.keep(first, data)

    def read_rows(
        self,
        offsets: Sequence[int],
        rows: Array,
        checksum: Callable[[Any, int], int] | None,
        chunk: int = CHUNK,  # noqa: ARG002
        *,
        tensor: str | None = None,
    ) -> list[int]:
        """Fill each row of a byte array ``[n, size]`` from its own offset. Returns the rows' checksums, or zeros."""
        size = rows.shape[1]
        self.check(min(offsets), max(offsets) - min(offsets) + size, tensor=tensor)
        if size >= PART:
            for offset, row in zip(offsets, rows, strict=True):
                self.read_into(offset, row.data, tensor=tensor)
            offsets = ()
        order = sorted(range(len(offsets)), key=offsets.__getitem__)
        at = 0
        while at < len(order):  # runs of rows that lie near one another, as many as a window holds
            spans: list[list[int]] = []
            taken, room = at, WINDOW
            while taken < len(order) and (room > 0 or taken == at):
                begin = offsets[order[taken]]
                if spans and begin <= spans[-1][1] + GAP:
                    room -= max(0, begin + size - spans[-1][1])
                    spans[-1][1] = max(spans[-1][1], begin + size)
                else:
                    spans.append([begin, begin + size])
                    room -= size
                taken += 1
            self._fill(spans, [(offsets[i], rows[i].data) for i in order[at:taken]], tensor)
            at = taken
        return [checksum(row, 0) if checksum is not None else 0 for row in rows]

    def _fill(self, spans: list[list[int]], wanted: list[tuple[int, memoryview]], tensor: str | None) -> None:
        if self._shared.local is not None:
            for offset, view in wanted:
                self.read_into(offset, view, tensor=tensor)
            return
        parts = [part for first, last in spans for part in _parts(first, last)]
        data = iter(self._fetch(parts, tensor))
        found = [(first, b"".join(next(data) for _ in _parts(first, last))) for first, last in spans]
        number = 0
        for offset, view in wanted:
            while offset >= found[number][0] + len(found[number][1]):
                number += 1
            first, held = found[number]
            view[:] = memoryview(held)[offset - first : offset - first + len(view)]

    def copy_to(self, handle: int, at: int, offset: int, count: int, *, tensor: str | None = None) -> bool:
        """Never possible: the bytes come from elsewhere."""
        del handle, at, tensor
        self.check(offset, count)
        return False

    def close(self) -> None:
        """Release what is held. Reading afterwards is an error."""
        self._fd, self._window = -1, (0, b"")

    # Fetching -------------------------------------------------------------------------------------------------------

    def _from_blocks(self, offset: int, buffer: memoryview, tensor: str | None) -> None:
        shared = self._shared
        first, last = offset // BLOCK, -(-(offset + len(buffer)) // BLOCK)
        with shared.lock:
            missing = [n for n in range(first, last) if n not in shared.blocks]
            for number in set(range(first, last)).difference(missing):
                shared.blocks.move_to_end(number)  # so that what comes does not drive it out
            if missing:
                begin, end = missing[0], missing[-1] + 1
                # Who reads on where the last fetch ended gets more and more at once.
                more = 2 * self._ahead if begin == self._next else 0
                self._ahead = min(AHEAD // BLOCK, max(LEAST // BLOCK, more))
                ahead = (n for n in range(end, begin + self._ahead) if n in shared.blocks)
                end = next(ahead, max(end, begin + self._ahead))
                if self.size <= WHOLE:
                    begin, end = 0, -(-self.size // BLOCK)
                (data,) = self._fetch([(begin * BLOCK, min(end * BLOCK, self.size))], tensor)
                if self._shared.local is not None:
                    self._shared.local.read_into(offset, buffer, tensor=tensor)
                    return
                self._next, self._ahead = end, max(self._ahead, end - begin)
                shared.keep(begin, data)
            done = 0
            for number in range(first, last):
                block = shared.blocks[number]
                at = offset + done - number * BLOCK
                part = block[at : at + len(buffer) - done]
                buffer[done : done + len(part)] = part
                done += len(part)

    def _fetch(self, ranges: Sequence[tuple[int, int]], tensor: str | None) -> list[bytes]:
        """The ranges; each is as long as it was asked for.

        Raises:
            FormatError: it is not.
        """
        shared, place = self._shared, self._place
        options: dict[str, Any] = {}
        if place.http:
            # A body that is compressed on the way has no byte ranges of the file.
            options["headers"] = {**place.fs.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
        found: list[bytes] = []
        if not shared.ranged and shared.local is None:
            with shared.lock:  # the first to come asks, and the others wait
                if not shared.ranged and shared.local is None:
                    found = self._first(*ranges[0], options)
        if shared.local is not None:
            return [shared.local.read(start, end - start, tensor=tensor) for start, end in ranges]
        if len(found) < len(ranges):
            found += place.fetch(self._inner, ranges[len(found) :], **options)
        for (start, end), data in zip(ranges, found, strict=True):
            if len(data) != end - start:
                what = f"{len(data)} bytes came for {end - start}: the file changed, or its server errs"
                raise FormatError(self.path, what, tensor=tensor, offset=start)
        return found

    def _first(self, start: int, end: int, options: dict[str, Any]) -> list[bytes]:
        """A range of a server that may send the whole file whatever it is asked for; nothing if it does."""

        def get(fs: Any) -> list[bytes]:
            with fs.open(self._place.at(self._inner), cache_type="none", size=self.size, **options) as file:
                file.seek(start)
                try:
                    return [file.read(end - start)]  # of the beginning, no more is taken than that
                except ValueError:  # "doesn't appear to support range requests"
                    return []

        self._place.count(self._inner)
        found = self._place.ask(get, self._inner)
        if not found:
            self._download()
        self._shared.ranged = bool(found) and start > 0
        return found

    def _download(self, what: str = "cannot be read in parts there, and has to be downloaded whole") -> None:
        """The whole file into a temporary one that has no name and goes with the process."""
        size = self._shared.entry.size
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free // 2
        much = f"{sized(size)} or more" if size is not None else "its size is not told"
        if size is not None and size > free:
            raise Error(f"{self.path}: {what}: {much}, half of what is free in {folder} is {sized(free)}")
        log.warning("%s: %s (%s)", self.path, what, much)

        def get(fs: Any) -> ByteFile:
            with (
                fs.open(self._place.at(self._inner), block_size=0) as source,
                tempfile.NamedTemporaryFile(prefix="weightport-") as copy,
            ):
                done = 0
                while piece := source.read(1 << 20):
                    done += len(piece)
                    if done > free:
                        raise Error(f"{self.path}: {what}: larger than half of what is free in {folder}")
                    copy.write(piece)
                copy.flush()
                if size is not None and done != size:
                    raise FormatError(self.path, f"the download broke off: {done:,} bytes came of {size:,}")
                return ByteFile(copy.name)

        self._shared.local = self._place.ask(get, self._inner)


def _parts(start: int, end: int) -> list[tuple[int, int]]:
    return [(at, min(at + PART, end)) for at in range(start, end, PART)]


def copy_folder(folder: str, to: str) -> None:
    """Copy all that is beneath a folder, for libraries that read local files only; that is said.

    Raises:
        FormatError: there is no such folder, or something of it cannot be read.
        Error: it would fill more than half of what is free.
    """
    files = [os.path.join(above, name) for above, _, names in _fs.walk(folder) for name in names]
    free = shutil.disk_usage(tempfile.gettempdir()).free // 2
    log.warning("%s: is downloaded into a temporary folder: the library that reads it reads local files only", folder)
    os.makedirs(to, exist_ok=True)
    for path in files:
        inside = os.path.join(to, *path[len(folder) :].strip("/").split("/"))
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        with ByteFile(path) as file, open(inside, "wb") as copy:
            free -= file.size
            if free < 0:
                raise Error(f"{folder}: has to be downloaded, and is larger than half of what is free for that")
            for piece in file.chunks(0, file.size):
                copy.write(piece)
