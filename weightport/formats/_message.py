"""Protobuf messages put together from pieces: bytes, ranges of another file, and values that stream through.

Promise: what is taken over from a file is copied in chunks, byte for byte; the size of a message is known before any of
it is written, so that nothing is held in memory whole. Limit: protobuf itself reads at most 2 GiB
(:data:`MOST_BYTES`), which the writers check.

Source: https://protobuf.dev/programming-guides/encoding/ and its limits in /programming-guides/proto-limits/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from weightport.formats._io import CHUNK
from weightport.formats._proto import BYTES, FIXED64, VARINT, Readable, spans
from weightport.formats._table import put_varint

#: What protobuf's parsers take.
MOST_BYTES = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Span:
    """A byte range of a file."""

    file: Readable
    start: int
    size: int

    def precedes(self, other: Span) -> bool:
        """Whether the other begins where this one ends."""
        return self.file is other.file and self.start + self.size == other.start


@dataclass(frozen=True, slots=True)
class Stream:
    """Bytes that are made when they are written; ``chunks`` gives exactly ``size`` of them."""

    size: int
    chunks: Callable[[], Iterator[bytes | memoryview]]


class Message:
    """A message as a list of pieces, in order."""

    __slots__ = ("_parts", "size")

    def __init__(self, *parts: bytes | Span | Stream | Message) -> None:
        self._parts: list[bytearray | Span | Stream] = []
        self.size = 0
        for part in parts:
            self.add(part)

    def add(self, part: bytes | Span | Stream | Message) -> Message:
        """Append bytes as they are."""
        if isinstance(part, Message):
            for inner in part._parts:
                self._append(inner)
        else:
            self._append(part)
        return self

    def _append(self, part: bytes | bytearray | Span | Stream) -> None:
        size = len(part) if isinstance(part, bytes | bytearray) else part.size
        if not size:
            return
        last = self._parts[-1] if self._parts else None
        if isinstance(part, bytes | bytearray):
            if isinstance(last, bytearray):
                last += part
            else:
                self._parts.append(bytearray(part))
        elif isinstance(part, Span) and isinstance(last, Span) and last.precedes(part):
            self._parts[-1] = Span(part.file, last.start, last.size + size)
        else:
            self._parts.append(part)
        self.size += size

    def bytes_field(self, number: int, content: bytes | Span | Stream | Message) -> Message:
        """Append a field of bytes, text or a message."""
        size = len(content) if isinstance(content, bytes) else content.size
        return self.add(put_varint(number << 3 | BYTES) + put_varint(size)).add(content)

    def number_field(self, number: int, value: int) -> Message:
        """Append a varint field; zero too, unlike what a serializer does with fields that have no presence."""
        return self.add(put_varint(number << 3) + put_varint(value & 0xFFFFFFFFFFFFFFFF))

    def copied(self, field: Field) -> Message:
        """Append a field of another file as it stands there."""
        if field.whole is not None:
            return self.add(field.whole)
        if field.wire == BYTES:
            return self.bytes_field(field.number, field.content)
        size = 8 if field.wire == FIXED64 else 4
        tail = put_varint(field.value) if field.wire == VARINT else field.value.to_bytes(size, "little")
        return self.add(put_varint(field.number << 3 | field.wire) + tail)

    def write(self, handle: BinaryIO) -> None:
        """Write all of it."""
        for part in self._parts:
            if isinstance(part, bytearray):
                handle.write(part)
            elif isinstance(part, Span):
                for at in range(0, part.size, CHUNK):
                    handle.write(part.file.read(part.start + at, min(CHUNK, part.size - at)))
            else:
                for chunk in part.chunks():
                    handle.write(chunk)

    def __bytes__(self) -> bytes:
        """All of it, in memory: for messages without big values."""
        found = []
        for part in self._parts:
            if isinstance(part, bytearray):
                found.append(bytes(part))
            elif isinstance(part, Span):
                found.append(part.file.read(part.start, part.size))
            else:
                found.extend(map(bytes, part.chunks()))
        return b"".join(found)


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a message that lies in a file: a number, or for ``BYTES`` the place of what it holds."""

    file: Readable
    number: int
    wire: int
    #: the number, or the offset of the content
    value: int
    size: int
    #: with its key and size, where these are written as short as they can be
    whole: Span | None

    @property
    def content(self) -> Span:
        """What a field of bytes holds."""
        return Span(self.file, self.value, self.size)

    @property
    def end(self) -> int:
        """The offset after the content."""
        return self.value + self.size

    def read(self) -> bytes:
        """The content of a field of bytes, in memory."""
        return self.file.read(self.value, self.size)


def fields_of(file: Readable, start: int, end: int) -> Iterator[Field]:
    """Every field of the message at ``start:end``."""
    at: int | None = start
    for number, wire, value, size in spans(file, start, end):
        if wire != BYTES:
            at = None  # where such a field ends depends on how it is written
            yield Field(file, number, wire, value, 0, None)
            continue
        head = len(put_varint(number << 3 | BYTES)) + len(put_varint(size))
        # Behind a number, the field begins right before its content if its key and size are what we would write.
        begins = value - head if at is None and _canonical(file, value - head, number, size) else at
        whole = Span(file, begins, head + size) if begins is not None and begins == value - head else None
        yield Field(file, number, wire, value, size, whole)
        at = value + size


def _canonical(file: Readable, start: int, number: int, size: int) -> bool:
    head = put_varint(number << 3 | BYTES) + put_varint(size)
    return start >= 0 and file.read(start, len(head)) == head
