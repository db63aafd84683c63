"""The protobuf wire format, walked lazily: fields are byte ranges, nothing is decoded that is not asked for.

Promise: bounded by the bytes it is given; every malformed field is a :class:`FormatError` with its offset. Limit: no
groups (wire types 3 and 4, which no format here uses) and no descriptors: the caller knows its field numbers.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from weightport.errors import FormatError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

#: ``(field number, wire type, value)``: an int for the numeric wire types, bytes for ``BYTES``.
Field = tuple[int, int, int | bytes]


class Readable(Protocol):
    """Bytes by position: a :class:`~weightport.formats._io.ByteFile`, or a :class:`Memory`."""

    path: str
    size: int

    def read(self, offset: int, count: int, *, tensor: str | None = None) -> bytes: ...

    def read_into(self, offset: int, buffer: memoryview, *, tensor: str | None = None) -> None: ...

    def check(self, offset: int, count: int, *, tensor: str | None = None) -> None: ...


class Memory:
    """A message held in memory, read like a file. ``path`` is the file that errors name."""

    def __init__(self, data: bytes, path: object) -> None:
        self._data, self.path, self.size = data, str(path), len(data)

    def read(self, offset: int, count: int, *, tensor: str | None = None) -> bytes:
        self.check(offset, count, tensor=tensor)
        return self._data[offset : offset + count]

    def read_into(self, offset: int, buffer: memoryview, *, tensor: str | None = None) -> None:
        buffer[:] = self.read(offset, len(buffer), tensor=tensor)

    def check(self, offset: int, count: int, *, tensor: str | None = None) -> None:
        if offset < 0 or count < 0 or offset + count > self.size:
            raise FormatError(self.path, f"{count} bytes asked for at {offset} of {self.size}", tensor=tensor)


class Window:
    """A part of a file held in memory, read by its positions in the file."""

    def __init__(self, file: Readable, start: int, end: int) -> None:
        self._data, self._start = file.read(start, end - start), start
        self.path, self.size = file.path, end

    def read(self, offset: int, count: int, *, tensor: str | None = None) -> bytes:
        self.check(offset, count, tensor=tensor)
        return self._data[offset - self._start : offset - self._start + count]

    def read_into(self, offset: int, buffer: memoryview, *, tensor: str | None = None) -> None:
        buffer[:] = self.read(offset, len(buffer), tensor=tensor)

    def check(self, offset: int, count: int, *, tensor: str | None = None) -> None:
        if offset < self._start or count < 0 or offset + count > self.size:
            raise FormatError(self.path, f"{count} bytes asked for at {offset} of {self.size}", tensor=tensor)


def varint(data: bytes | memoryview, position: int, end: int, path: object, base: int = 0) -> tuple[int, int]:
    """The unsigned varint at ``position`` and the position after it. ``base`` is added to reported offsets."""
    value = shift = 0
    start = position
    while True:
        if position >= end or shift > 63:
            raise FormatError(path, "malformed varint", offset=base + start)
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
        shift += 7


def signed(value: int) -> int:
    """An unsigned 64-bit varint read as protobuf's int64 / int32."""
    return value - (1 << 64) if value >= 1 << 63 else value


def fields(data: bytes | memoryview, path: object, base: int = 0) -> Iterator[Field]:
    """Every field of a message held in memory, in order."""
    position, end = 0, len(data)
    while position < end:
        start = position
        # Nearly all keys, numbers and sizes take one byte: calling for each of them would take most of the time.
        key = data[position]
        position += 1
        if key >= 0x80:
            key, position = varint(data, start, end, path, base)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise FormatError(path, "field number 0", offset=base + start)
        if wire in (VARINT, BYTES):
            if position < end and data[position] < 0x80:
                size = data[position]
                position += 1
            else:
                size, position = varint(data, position, end, path, base)
        if wire == VARINT:
            yield number, wire, size
        elif wire == BYTES:
            if size > end - position:
                raise FormatError(
                    path, f"a field of {size} bytes in {end - position} that are left", offset=base + start
                )
            yield number, wire, bytes(data[position : position + size])
            position += size
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
            if size > end - position:
                raise FormatError(path, "a fixed-size field is cut off", offset=base + start)
            yield number, wire, int.from_bytes(data[position : position + size], "little")
            position += size
        else:
            raise FormatError(path, f"unknown wire type {wire}", offset=base + start)


def spans(file: Readable, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Every field of a message that lies in a file: ``(field number, wire type, value or offset, size)``.

    For ``BYTES`` the third item is the payload's offset in the file and the fourth its size: the payload itself is not
    read, so that constants of gigabytes are passed over. Otherwise the third is the number and the fourth 0.
    """
    return (field[:4] for field in located(file, start, end))


def located(file: Readable, start: int, end: int) -> Iterator[tuple[int, int, int, int, int, int]]:
    """As :func:`spans`, with where the field begins and ends."""
    position = start
    window, window_start = b"", start
    while position < end:
        # Headers are short: a small window read once serves many neighbouring fields.
        at = position - window_start
        if at + 24 > len(window) and window_start + len(window) < end:
            window_start = position
            window = file.read(position, min(4096, end - position))
            at = 0
        key, after = varint(window, at, len(window), file.path, window_start)
        number, wire, began = key >> 3, key & 7, position
        if number == 0:
            raise FormatError(file.path, "field number 0", offset=position)
        if wire == VARINT:
            value, after = varint(window, after, len(window), file.path, window_start)
            position = window_start + after
            yield number, wire, value, 0, began, position
        elif wire == BYTES:
            size, after = varint(window, after, len(window), file.path, window_start)
            offset = window_start + after
            if size > end - offset:
                raise FormatError(
                    file.path, f"a field of {size} bytes in {end - offset} that are left", offset=position
                )
            position = offset + size
            yield number, wire, offset, size, began, position
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
            offset = window_start + after
            if size > end - offset:
                raise FormatError(file.path, "a fixed-size field is cut off", offset=position)
            position = offset + size
            yield number, wire, int.from_bytes(file.read(offset, size), "little"), 0, began, position
        else:
            raise FormatError(file.path, f"unknown wire type {wire}", offset=position)
