"""FlatBuffers, read by position: tables, vectors and text, each checked against the file.

Promise: nothing outside the file is touched, and nothing is read that is not asked for; what does not fit is a
:class:`FormatError` with its offset. Limit: no schema: the caller knows its field numbers; no size-prefixed or 64-bit
buffers.

Source: https://flatbuffers.dev/internals/
"""

from __future__ import annotations

from weightport.errors import FormatError
from weightport.formats._io import ByteFile

_WINDOW = 16 * 1024


class FlatBuffer:
    """A file that is one FlatBuffer."""

    def __init__(self, file: ByteFile) -> None:
        self.file, self.path = file, file.path
        self._window, self._start = b"", 0

    def bytes(self, at: int, count: int) -> bytes:
        """A few bytes; neighbours are read along."""
        begin = at - self._start
        if begin < 0 or begin + count > len(self._window):
            self.file.check(at, count)
            self._start = at
            self._window = self.file.read(at, max(count, min(_WINDOW, self.file.size - at)))
            begin = 0
        return self._window[begin : begin + count]

    def number(self, at: int, size: int, *, signed: bool = False) -> int:
        """An integer of that many bytes."""
        return int.from_bytes(self.bytes(at, size), "little", signed=signed)

    def root(self) -> Table:
        """The table that the file is of."""
        return Table(self, self.number(0, 4))

    def follow(self, at: int) -> int:
        """Where the offset that stands there leads."""
        return at + self.number(at, 4)


class Table:
    """A table: its fields, by their numbers in the schema."""

    def __init__(self, buffer: FlatBuffer, at: int) -> None:
        self.buffer, self.at = buffer, at
        vtable = at - buffer.number(at, 4, signed=True)
        head = buffer.bytes(vtable, 4)
        size, self._size = (int.from_bytes(head[i : i + 2], "little") for i in (0, 2))
        if size < 4 or size % 2 or self._size < 4:
            raise FormatError(buffer.path, "malformed table", offset=at)
        self._offsets = buffer.bytes(vtable, size)

    def field(self, number: int) -> int | None:
        """Where a field stands; None if it is not set."""
        place = 4 + 2 * number
        offset = int.from_bytes(self._offsets[place : place + 2], "little")
        if not offset:
            return None
        if offset >= self._size:
            raise FormatError(self.buffer.path, f"field {number} lies outside its table", offset=self.at)
        return self.at + offset

    def number(self, number: int, size: int, default: int = 0, *, signed: bool = False) -> int:
        """A field that is an integer."""
        at = self.field(number)
        return default if at is None else self.buffer.number(at, size, signed=signed)

    def table(self, number: int) -> Table | None:
        """A field that is a table."""
        at = self.field(number)
        return None if at is None else Table(self.buffer, self.buffer.follow(at))

    def vector(self, number: int, size: int) -> tuple[int, int]:
        """A field that is a vector of elements of that size: where they begin, and how many there are."""
        at = self.field(number)
        if at is None:
            return 0, 0
        begin = self.buffer.follow(at)
        count = self.buffer.number(begin, 4)
        self.buffer.file.check(begin + 4, count * size)
        return begin + 4, count

    def tables(self, number: int) -> tuple[int, int]:
        """A vector of tables; :meth:`element` gives each of them."""
        return self.vector(number, 4)

    def element(self, begin: int, index: int) -> Table:
        """A table of a vector that begins there."""
        return Table(self.buffer, self.buffer.follow(begin + 4 * index))

    def text(self, number: int, longest: int = 1 << 16) -> str:
        """A field that is text."""
        begin, count = self.vector(number, 1)
        if count > longest:
            raise FormatError(self.buffer.path, f"a name of {count:,} bytes", offset=begin)
        return self.buffer.bytes(begin, count).decode("utf-8", "backslashreplace") if count else ""
