"""Superblock, object headers and local heaps of HDF5 files, looked over in their bytes before HDF5 follows them.

Promise: free space in a local heap that is no list (HDF5 would follow a circle, and take memory, without end), headers
that continue in a circle and headers that share their bytes are a :class:`FormatError`, before the object that has
them is opened. Limit: addresses and sizes of eight bytes, as today's machines write them; others are refused. What is
merely broken is left to HDF5, which refuses it itself.

Source: HDF5 File Format Specification 3.0, II (superblock), III.C (symbol table entry), III.D (local heap), IV.A.1
(object headers), IV.A.2.h (external files), IV.A.2.q (continuation), IV.A.2.r (symbol table); H5HLcache.c
(H5HL__fl_deserialize).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from weightport.errors import FormatError
from weightport.formats._io import Bytes
from weightport.tensors import Budget

_EXTERNAL, _CONTINUATION, _SYMBOLS = 0x07, 0x10, 0x11
#: Where in a message the address of a local heap stands.
_HEAPS = {_EXTERNAL: 8, _SYMBOLS: 8}
_NONE = 1  # the end of a list of free space: no place in a heap is odd
_UNDEFINED = (1 << 64) - 1


class Objects:
    """What HDF5 reads of an object, and of the group that it may be, when it opens it."""

    def __init__(self, file: Bytes, base: int, budget: Budget) -> None:
        self._file, self._base, self._budget = file, base, budget
        self._heaps: set[int] = set()
        self._headers: set[int] = set()
        self._messages = 0

    def check_root(self) -> None:
        """What HDF5 reads when it opens the file."""
        raw = self._file.read(self._base, min(104, self._file.size - self._base))
        version = raw[8] if len(raw) > 16 else 0
        at = {0: 24, 1: 28}.get(version, 12)  # of the addresses
        if len(raw) < (at + 72 if version < 2 else at + 32):
            return
        sizes = raw[13:15] if version < 2 else raw[9:11]
        if sizes != b"\x08\x08":
            what = f"addresses of {sizes[0]} and sizes of {sizes[1]} bytes: only those of 8 are read"
            raise FormatError(self._file.path, what, offset=self._base + (13 if version < 2 else 9))
        if version < 2:
            _, header, cached, _, _, heap = struct.unpack_from("<QQIIQQ", raw, at + 32)
            if cached == 1:  # the root group's heap, once more
                self._check_heap(heap)
        else:
            extension, _, header = struct.unpack_from("<QQQ", raw, at + 8)
            self.check(extension)
        self.check(header)

    def check(self, header: int) -> None:
        """What HDF5 reads when it opens the object whose header has that address."""
        if header in self._headers:
            return
        self._headers.add(header)
        for kind, at, size in messages(self._file, self._base, header):
            self._budget.spend("header_bytes", 8, self._file.path)
            self._messages += 1
            if self._messages > self._file.size // 4:  # of newer files, the smallest message has four bytes
                what = "corrupt: the headers of several objects share their bytes"
                raise FormatError(self._file.path, what, offset=self._base + header)
            place = _HEAPS.get(kind)
            if place is not None and size >= place + 8:
                self._check_heap(int.from_bytes(self._file.read(at + place, 8), "little"))

    def _check_heap(self, address: int) -> None:
        at = self._base + address
        if address == _UNDEFINED or address in self._heaps or at + 32 > self._file.size:
            return
        self._heaps.add(address)
        head = self._file.read(at, 32)
        size, free, data = struct.unpack_from("<QQQ", head, 8)
        if head[:5] != b"HEAP\0" or self._base + data + size > self._file.size:
            return
        last = -1
        # Each piece of free space has its header of sixteen bytes, so there cannot be more of them.
        for _ in range(size // 16 + 1):
            if free == _NONE or free + 16 > size:
                return
            last = free
            (free,) = struct.unpack("<Q", self._file.read(self._base + data + free, 8))
            self._budget.spend("header_bytes", 16, self._file.path)
        what = "corrupt: the free space of a group's names is a list without end"
        raise FormatError(self._file.path, what, offset=self._base + data + last)


def messages(file: Bytes, base: int, header: int) -> Iterator[tuple[int, int, int]]:
    """Type, place and size of the messages of the object header with that address, as far as it is one."""
    at = base + header
    if at + 16 > file.size:
        return
    head = file.read(at, min(48, file.size - at))
    newer = head[:4] == b"OHDR"
    if newer:
        # Four times of four bytes, and how many attributes stand here, are optional; the size has 1 to 8 bytes.
        flags = head[5]
        start, wide = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0), 1 << (flags & 3)
        spans = [(at + start + wide, int.from_bytes(head[start : start + wide], "little"))]
        lead = 6 if flags & 4 else 4
    elif head[0] == 1:
        spans, lead = [(at + 16, int.from_bytes(head[8:12], "little"))], 8
    else:
        return
    seen = {spans[0][0]}
    for here, size in spans:
        end = here + size
        file.check(here, size)
        while here + lead <= end:
            raw = file.read(here, lead)
            kind, length = struct.unpack_from("<BH" if newer else "<HH", raw)
            here += lead
            if here + length > end:
                return  # HDF5 refuses it itself
            if kind == _CONTINUATION and length >= 16:
                offset, span = struct.unpack("<QQ", file.read(here, 16))
                if base + offset in seen:
                    raise FormatError(file.path, "corrupt: an object's header continues in a circle", offset=here)
                if base + offset + span > file.size:
                    return
                seen.add(base + offset)
                # In newer files a signature stands before the messages, and a checksum behind them.
                spans.append((base + offset + 4, span - 8) if newer else (base + offset, span))
            else:
                yield kind, here, length
            here += length
