"""The sorted string table that both kinds of TensorFlow checkpoint are stored in: LevelDB's table format.

Promise: every block's checksum is verified before anything of it is believed (of a block that is read in place: by
:meth:`Table.verify`, once); blocks are passed in order and never twice, so that work is bounded by the file; snappy
blocks are refused before they are decompressed if they claim more than snappy can give or the budget allows. Limit: no
filters, no comparator but bytewise order.

Source: tensorflow/core/lib/io/{format,block,block_builder,table_builder}.cc, identical to LevelDB's
doc/table_format.md; the checksum's mask is tensorflow/core/lib/hash/crc32c.h.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from weightport.checksums import crc32c
from weightport.errors import FormatError
from weightport.formats._io import ByteFile
from weightport.formats._proto import Memory, Readable, varint
from weightport.tensors import Budget

MAGIC = 0xDB4775248B80FB57
FOOTER = 48
RAW, SNAPPY = 0, 1
_TRAILER = 5  # compression byte and checksum
# The longest output of one snappy element is 64 bytes for 2 or 3 bytes of input.
_SNAPPY_RATIO = 32
# Bytes of keys after which the budget is told.
_NAMED = 1 << 20

#: ``(key, value's offset, value's size)`` in the block's ``data``.
Place = tuple[bytes, int, int]


def mask(crc: int) -> int:
    """A checksum as it is stored: rotated and shifted, so that checksums of checksums stay good."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def unmask(stored: int) -> int:
    """The checksum that :func:`mask` made a stored one of."""
    rotated = (stored - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Handle:
    """Where a block lies: its contents are followed by the compression byte and the checksum."""

    offset: int
    size: int


@dataclass(slots=True)
class Block:
    """A block's entries: in place in the file if they are stored raw, in memory if they were compressed.

    ``verified`` tells whether the checksum was looked at: see :meth:`Table.verify`.
    """

    data: Readable
    start: int
    end: int
    handle: Handle
    verified: bool

    def places(self) -> Iterator[Place]:
        """Every entry in order; values are not read."""
        key = b""
        position, end, path = self.start, self.end, self.data.path
        window, base = b"", position
        while position < end:
            at = position - base
            if at + 30 > len(window) and base + len(window) < end:
                base, at = position, 0
                window = self.data.read(position, min(4096, end - position))
            shared, at = varint(window, at, len(window), path, base)
            fresh, at = varint(window, at, len(window), path, base)
            size, at = varint(window, at, len(window), path, base)
            value = base + at + fresh
            if shared > len(key) or fresh > end - position or value + size > end:
                raise FormatError(path, "corrupt table: an entry does not fit its block", offset=self.handle.offset)
            if at + fresh <= len(window):
                key = key[:shared] + window[at : at + fresh]
            else:
                key = key[:shared] + self.data.read(base + at, fresh)
            yield key, value, size
            position = value + size


class Table:
    """An open table: the index of blocks is read, the blocks are not."""

    def __init__(self, file: ByteFile, budget: Budget) -> None:
        self.file, self._budget = file, budget
        if file.size < FOOTER:
            raise FormatError(
                file.path, f"truncated or no checkpoint: {file.size} bytes, a table has at least {FOOTER}"
            )
        footer = file.read(file.size - FOOTER, FOOTER)
        if int.from_bytes(footer[-8:], "little") != MAGIC:
            raise FormatError(
                file.path, "truncated or no checkpoint: the table's magic number is missing", offset=file.size - 8
            )
        _, at = self._handle(footer, 0, file.size - FOOTER)  # the meta-index is always empty
        index, _ = self._handle(footer, at, file.size - FOOTER)
        self._counted: set[int] = set()
        block = self._load(index, spend=True)
        self._last: list[bytes] = []
        self._handles: list[Handle] = []
        reached, previous = 0, None
        for key, offset, size in self.places(block):
            handle, _ = self._handle(block.data.read(offset, size), 0, index.offset)
            if handle.offset < reached or (previous is not None and key <= previous):
                raise FormatError(file.path, "corrupt table: its blocks are not in order", offset=index.offset)
            reached, previous = handle.offset + handle.size + _TRAILER, key
            if reached > index.offset:
                raise FormatError(file.path, "corrupt table: a block lies beyond the index", offset=index.offset)
            self._last.append(key)
            self._handles.append(handle)

    def _handle(self, data: bytes, position: int, base: int) -> tuple[Handle, int]:
        offset, position = varint(data, position, len(data), self.file.path, base)
        size, position = varint(data, position, len(data), self.file.path, base)
        if offset + size + _TRAILER > self.file.size:
            raise FormatError(
                self.file.path, f"truncated or corrupt: a block of {size} bytes at {offset} in {self.file.size}"
            )
        return Handle(offset, size), position

    def _load(self, handle: Handle, *, spend: bool) -> Block:
        """A block in memory: checked, decompressed and without its restart points."""
        if spend:
            self._budget.spend("header_bytes", handle.size, self.file.path)
        stored = self.file.read(handle.offset, handle.size + _TRAILER)
        if mask(crc32c(memoryview(stored)[:-4])) != int.from_bytes(stored[-4:], "little"):
            raise self._bad_checksum(handle)
        kind, contents = stored[-5], stored[:-_TRAILER]
        if kind == SNAPPY:
            contents = self._unsnap(contents, handle, spend)
        elif kind != RAW:
            raise FormatError(self.file.path, f"unknown compression {kind} of a block", offset=handle.offset)
        return self._block(Memory(contents, self.file.path), 0, len(contents), handle, True)

    def _bad_checksum(self, handle: Handle) -> FormatError:
        return FormatError(self.file.path, "corrupt: the checksum of a block does not match", offset=handle.offset)

    def _unsnap(self, contents: bytes, handle: Handle, spend: bool) -> bytes:
        import cramjam

        path = self.file.path
        claimed, _ = varint(contents, 0, len(contents), path, handle.offset)
        if claimed > len(contents) * min(_SNAPPY_RATIO, self._budget.ratio):
            raise FormatError(
                path, f"corrupt: {len(contents)} bytes of snappy claim to be {claimed}", offset=handle.offset
            )
        self._budget.check("header_bytes", claimed, path)
        if spend:
            self._budget.spend("header_bytes", claimed, path)
        try:  # what comes to another size than it claims is an error, too
            return bytes(cramjam.snappy.decompress_raw(contents))
        except cramjam.DecompressionError as error:
            raise FormatError(path, f"corrupt: {error}", offset=handle.offset) from None

    def _block(self, data: Readable, start: int, end: int, handle: Handle, verified: bool) -> Block:
        count = int.from_bytes(data.read(end - 4, 4), "little") if end - start >= 4 else -1
        if count < 0 or 4 * (count + 1) > end - start:
            raise FormatError(data.path, "corrupt table: a block's restart points do not fit", offset=handle.offset)
        return Block(data, start, end - 4 * (count + 1), handle, verified)

    def __len__(self) -> int:
        """The number of blocks."""
        return len(self._handles)

    def block(self, number: int) -> Block:
        """One block. If it is stored raw, nothing is read and nothing :meth:`verify`-ed yet."""
        handle = self._handles[number]
        if self.file.read(handle.offset + handle.size, 1)[0] != RAW:
            return self._load(handle, spend=False)
        return self._block(self.file, handle.offset, handle.offset + handle.size, handle, False)

    def verify(self, block: Block) -> None:
        """Check a block that lies in the file against its checksum, in one streamed pass, the first time only."""
        if block.verified:
            return
        crc = streamed_crc(self.file, block.handle.offset, block.handle.size + 1)
        if mask(crc) != int.from_bytes(self.file.read(block.handle.offset + block.handle.size + 1, 4), "little"):
            raise self._bad_checksum(block.handle)
        block.verified = True

    def places(self, block: Block) -> Iterator[Place]:
        """:meth:`Block.places`, whose keys the budget counts the first time."""
        new = block.handle.offset not in self._counted
        self._counted.add(block.handle.offset)
        named = 0
        for place in block.places():
            named += len(place[0])
            if new and named > _NAMED:
                self._budget.name(named, self.file.size, self.file.path)
                named = 0
            yield place
        if new:
            self._budget.name(named, self.file.size, self.file.path)

    def block_of(self, key: bytes) -> int | None:
        """The number of the only block that can hold a key."""
        number = bisect.bisect_left(self._last, key)
        return number if number < len(self._last) else None

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every key and value, in strictly ascending order of the keys. All of it passes through memory."""
        last: bytes | None = None
        path = self.file.path
        for handle in self._handles:
            block = self._load(handle, spend=True)
            data = block.data.read(0, block.end)
            position, end, key, named = 0, block.end, b"", 0
            while position < end:
                # Lengths below 128 are one byte each; the usual case, and the one worth being quick about.
                head = data[position : position + 3]
                if len(head) == 3 and head[0] < 128 and head[1] < 128 and head[2] < 128:
                    shared, fresh, size = head
                    position += 3
                else:
                    shared, position = varint(data, position, end, path, handle.offset)
                    fresh, position = varint(data, position, end, path, handle.offset)
                    size, position = varint(data, position, end, path, handle.offset)
                value = position + fresh
                if shared > len(key) or value + size > end:
                    raise FormatError(path, "corrupt table: an entry does not fit its block", offset=handle.offset)
                key = key[:shared] + data[position:value]
                if last is not None and key <= last:
                    raise FormatError(path, "corrupt table: its keys are not in order", offset=handle.offset)
                last = key
                position = value + size
                named += len(key)
                if named > _NAMED:
                    self._budget.name(named, self.file.size, path)
                    named = 0
                yield key, data[value:position]
            self._budget.name(named, self.file.size, path)


class TableWriter:
    """Writes a table to an open file; keys come in strictly ascending order.

    Args:
        handle: binary, written from its current position, which is taken as the table's start.
        block_size: a block is closed once it holds this much.
        compress: snappy, where it saves anything.
    """

    def __init__(
        self, handle: BinaryIO, *, block_size: int = 262_144, restart_interval: int = 16, compress: bool = False
    ) -> None:
        self._handle, self._block_size, self._interval, self._compress = handle, block_size, restart_interval, compress
        self._written = 0
        self._block = _BlockBuilder(restart_interval)
        self._index = _BlockBuilder(1)
        self._last: bytes | None = None

    def add(self, key: bytes, value: bytes) -> None:
        if self._last is not None and key <= self._last:
            raise ValueError(f"key {key!r} after {self._last!r}")
        self._block.add(key, value)
        self._last = key
        if self._block.size >= self._block_size:
            self._flush()

    def finish(self) -> None:
        """Write what is left, the index and the footer."""
        if self._block.count or not self._index.count:
            self._flush()
        meta = self._write(_BlockBuilder(1).contents(), False)
        footer = meta + self._write(self._index.contents(), False)
        self._handle.write(footer.ljust(FOOTER - 8, b"\0") + MAGIC.to_bytes(8, "little"))

    def _flush(self) -> None:
        self._index.add(self._last or b"", self._write(self._block.contents(), self._compress))
        self._block = _BlockBuilder(self._interval)

    def _write(self, contents: bytes, compress: bool) -> bytes:
        kind = RAW
        if compress:
            import cramjam

            packed = bytes(cramjam.snappy.compress_raw(contents))
            if len(packed) < len(contents):
                contents, kind = packed, SNAPPY
        body = contents + bytes([kind])
        self._handle.write(body + mask(crc32c(body)).to_bytes(4, "little"))
        handle = put_varint(self._written) + put_varint(len(contents))
        self._written += len(body) + 4
        return handle


class _BlockBuilder:
    """Entries with their keys' common prefixes left out, except at every ``interval``-th one."""

    def __init__(self, interval: int) -> None:
        self._interval, self._parts, self._restarts = interval, list[bytes](), [0]
        self.size = self.count = 0
        self._last = b""

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self.count % self._interval:
            limit = min(len(key), len(self._last))
            while shared < limit and key[shared] == self._last[shared]:
                shared += 1
        elif self.count:
            self._restarts.append(self.size)
        entry = put_varint(shared) + put_varint(len(key) - shared) + put_varint(len(value)) + key[shared:] + value
        self._parts.append(entry)
        self.size += len(entry)
        self.count += 1
        self._last = key

    def contents(self) -> bytes:
        tail = [*self._restarts, len(self._restarts)]
        return b"".join(self._parts) + b"".join(n.to_bytes(4, "little") for n in tail)


def put_varint(value: int) -> bytes:
    """An unsigned varint."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def has_magic(path: str) -> bool:
    """Whether a regular file ends like a table. Never raises."""
    try:
        with ByteFile(path) as file:
            return file.size >= FOOTER and file.read(file.size - 8, 8) == MAGIC.to_bytes(8, "little")
    except FormatError:
        return False


def streamed_crc(file: ByteFile, offset: int, size: int, tensor: str | None = None) -> int:
    """The plain crc32c of a byte range."""
    crc = 0
    for piece in file.chunks(offset, size, tensor=tensor):
        crc = crc32c(piece, crc)
    return crc
