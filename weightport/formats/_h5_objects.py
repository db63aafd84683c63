"""Superblock, object headers and local heaps of HDF5 files, looked over in their bytes before HDF5 follows them.

Promise: free space in a local heap that is no list (HDF5 would follow a circle, and take memory, without end),
headers that continue in a circle, headers that share their bytes, chunks without axes, and trees that are none
(:mod:`_h5_trees`) are a :class:`FormatError`, before the object that has them is opened. Limit: addresses and sizes
of eight bytes, as today's machines write them; others are refused. What is merely broken is left to HDF5, which
refuses it itself; but for groups and attributes in heaps, and chunks in trees of version 2, where a flipped bit makes
HDF5 1.14 crash: unless the process may be lost, such a file raises :class:`Crashes`.

Source: HDF5 File Format Specification 3.0, II (superblock), III.C (symbol table entry), III.D (local heap), IV.A.1
(object headers), IV.A.2.c (link info), IV.A.2.h (external files), IV.A.2.i (layout), IV.A.2.q (continuation), IV.A.2.r
(symbol table), IV.A.2.v (attribute info); H5HLcache.c (H5HL__fl_deserialize).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from weightport.errors import FormatError
from weightport.formats._h5_trees import UNDEFINED, Trees
from weightport.formats._io import Bytes
from weightport.tensors import Budget

_LINKS, _EXTERNAL, _LAYOUT, _CONTINUATION, _SYMBOLS, _ATTRIBUTES = 0x02, 0x07, 0x08, 0x10, 0x11, 0x15
_CHUNKED = 2  # class of a layout
_TREE = 5  # a kind of index of chunks, in newer files
_NONE = 1  # the end of a list of free space: no place in a heap is odd


class Crashes(Exception):
    """The file has structures whose damage HDF5 does not survive. Never leaves the formats."""


class Objects:
    """What HDF5 reads of an object, and of the group that it may be, when it opens it.

    Args:
        base: where the superblock is.
        alone: whether this process may be lost.
    """

    def __init__(self, file: Bytes, base: int, budget: Budget, *, alone: bool = False) -> None:
        self._file, self._base, self._budget, self._alone = file, base, budget, alone
        self._heaps: set[int] = set()
        self._headers: set[int] = set()
        self._messages = 0
        self._trees = Trees(file, base, budget)

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
            _, header, cached, _, tree, heap = struct.unpack_from("<QQIIQQ", raw, at + 32)
            if cached == 1:  # those of the root group, once more
                self._trees.check(tree, 8)
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
            if kind in (_LINKS, _EXTERNAL, _LAYOUT, _SYMBOLS, _ATTRIBUTES):
                self._check_message(kind, self._file.read(at, min(size, 1024)), header)

    def _check_message(self, kind: int, raw: bytes, header: int) -> None:
        def address(at: int) -> int:
            return int.from_bytes(raw[at : at + 8], "little") if at + 8 <= len(raw) else UNDEFINED

        if kind in (_EXTERNAL, _SYMBOLS):
            self._check_heap(address(8))
        if kind == _SYMBOLS:
            self._trees.check(address(0), 8)
        elif kind == _LAYOUT and len(raw) > 4:
            self._check_layout(raw, address, header)
        elif kind in (_LINKS, _ATTRIBUTES) and not self._alone and len(raw) > 2:
            # The heap that names are in where there are many; a number of the newest one may stand before it.
            number = 8 if kind == _LINKS else 2
            at = self._base + address(2 + (number if raw[1] & 1 else 0))
            if at + 4 <= self._file.size and self._file.read(at, 4) == b"FRHP":  # HDF5 refuses what is no heap
                raise Crashes

    def _check_layout(self, raw: bytes, address: Callable[[int], int], header: int) -> None:
        version = raw[0]
        kind, axes = (raw[2], raw[1]) if version < 3 else (raw[1], raw[2 if version == 3 else 3])
        if kind != _CHUNKED:
            return
        if axes < 2:  # those of the dataset, of which there is one at least, and that of a value's bytes
            what = "corrupt: the chunks of a dataset have no axes"  # by their number, HDF5 would divide
            raise FormatError(self._file.path, what, offset=self._base + header)
        if version <= 3:
            self._trees.check(address(8 if version < 3 else 3), 8 + 8 * axes)
        elif not self._alone:
            index = 5 + axes * raw[4]
            if index < len(raw) and raw[index] == _TREE:
                raise Crashes

    def _check_heap(self, address: int) -> None:
        at = self._base + address
        if address == UNDEFINED or address in self._heaps or at + 32 > self._file.size:
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
