"""Members of zip archives, read by position: stored ones as they lie in the file, deflated ones as a bounded stream.

Promise: a member's own header must agree with the directory's entry; what a member claims to decompress to is checked
against what deflate can reach before anything is allocated; no two members share bytes; CRCs are checked on demand,
once. Reading a deflated member front to back costs one pass, however many reads it takes. Limit: no encryption, no
other compression.

Source: APPNOTE.TXT 6.3.9 (PKWARE), 4.3.7 and 4.4.
"""

from __future__ import annotations

import json
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator

from weightport.checksums import CRC32, crc32
from weightport.errors import FormatError
from weightport.formats._io import CHUNK, ByteFile, Stream
from weightport.tensors import Checksum, Extent

LOCAL = b"PK\x03\x04"
RATIO = 1032  # what deflate can reach
# The end record of a zip archive, without its comment.
_END = 22
# A record of zip64, and the one that says where it is, stand before it.
_WIDE = 56 + 20


class Stored:
    """A member's bytes as they lie in the file.

    Attributes:
        checksum: the kind of checksum that it has, or had before it was verified; empty if it has none.
    """

    def __init__(self, file: ByteFile, offset: int, size: int, crc: int | None) -> None:
        self.file, self.offset, self.size, self._crc = file, offset, size, crc
        self.path, self.checksum = file.path, "" if crc is None else CRC32

    def check(self, offset: int, count: int, *, tensor: str | None = None) -> None:
        if offset < 0 or count < 0 or offset + count > self.size:
            raise FormatError(
                self.path, f"truncated or corrupt: the member has {self.size} bytes, {offset + count} are needed",
                tensor=tensor, offset=self.offset,
            )  # fmt: skip
        self.file.check(self.offset + offset, count, tensor=tensor)

    def read(self, offset: int, count: int, *, tensor: str | None = None) -> bytes:
        self.check(offset, count, tensor=tensor)
        return self.file.read(self.offset + offset, count, tensor=tensor)

    def read_into(self, offset: int, buffer: memoryview, *, tensor: str | None = None) -> None:
        self.check(offset, len(buffer), tensor=tensor)
        self.file.read_into(self.offset + offset, buffer, tensor=tensor)

    def extent(self) -> Extent:
        """Where it lies, with its CRC as long as that was not checked."""
        crc = None if self._crc is None else Checksum(CRC32, self._crc, self.offset, self.size)
        return Extent(self.path, self.offset, self.size, crc)

    def verify_read(self, content: memoryview, tensor: str) -> None:
        """Check the CRC of the member's whole content, which was just read."""
        if self._crc is not None:
            _compare(self.path, tensor, crc32(content), self._crc, self.offset)
            self._crc = None

    def chunks(self, offset: int, count: int, *, tensor: str | None = None) -> Iterator[bytes]:
        self.check(offset, count, tensor=tensor)
        yield from self.file.chunks(self.offset + offset, count, tensor=tensor)

    def close(self) -> None:
        """Nothing: the archive's file is closed by whoever opened it."""

    def verify(self, tensor: str) -> None:
        """Check the CRC, once."""
        if self._crc is not None:
            found = 0
            for piece in self.file.chunks(self.offset, self.size, tensor=tensor):
                found = crc32(piece, found)
            _compare(self.path, tensor, found, self._crc, self.offset)
            self._crc = None


class Deflated:
    """A member's bytes behind deflate: a stream of which only the range asked for is kept. ``checksum`` as of
    :class:`Stored`.
    """

    def __init__(self, file: ByteFile, offset: int, packed: int, size: int, crc: int | None) -> None:
        self.file, self.offset, self.packed, self.size = file, offset, packed, size
        self._crc = crc
        self._lock = threading.Lock()
        # Where the stream stands: reads that follow one another go on from there.
        self._at, self._tail = 0, b""
        self._cursor: Iterator[bytes] | None = None
        self.path, self.checksum = file.path, "" if crc is None else CRC32

    def check(self, offset: int, count: int, *, tensor: str | None = None) -> None:
        if offset < 0 or count < 0 or offset + count > self.size:
            raise FormatError(
                self.path, f"truncated or corrupt: the member has {self.size} bytes, {offset + count} are needed",
                tensor=tensor, offset=self.offset,
            )  # fmt: skip

    def _stream(self, tensor: str | None) -> Iterator[bytes]:
        decoder = zlib.decompressobj(-15)
        done = 0
        try:
            for piece in self.file.chunks(self.offset, self.packed, tensor=tensor):
                # Asked again without new bytes, too: the last ones may stand for more than fitted.
                while not decoder.eof and (out := decoder.decompress(piece, CHUNK)):
                    piece = decoder.unconsumed_tail
                    done += len(out)
                    if done > self.size:
                        raise FormatError(self.path, "the member is longer than it says", tensor=tensor)
                    yield out
        except zlib.error:
            raise FormatError(
                self.path, "corrupt: the member does not decompress", tensor=tensor, offset=self.offset
            ) from None
        if done != self.size or not decoder.eof:
            raise FormatError(
                self.path, f"truncated: the member has {done} bytes of {self.size}", tensor=tensor, offset=self.offset
            )

    def read(self, offset: int, count: int, *, tensor: str | None = None) -> bytes:
        buffer = bytearray(count)
        self.read_into(offset, memoryview(buffer), tensor=tensor)
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview, *, tensor: str | None = None) -> None:
        self.check(offset, len(buffer), tensor=tensor)
        with self._lock:
            self._fill(offset, buffer, tensor)

    def _fill(self, offset: int, buffer: memoryview, tensor: str | None) -> None:
        if offset < self._at:  # behind the cursor: from the start again
            self._at, self._tail, self._cursor = 0, b"", None
        stop = offset + len(buffer)
        while self._at < stop:
            if not self._tail:
                self._cursor = self._cursor or self._stream(tensor)
                try:
                    self._tail = next(self._cursor, b"")
                except FormatError:
                    self._at, self._cursor = 0, None
                    raise
                continue
            low, high = max(self._at, offset), min(self._at + len(self._tail), stop)
            if low < high:
                buffer[low - offset : high - offset] = self._tail[low - self._at : high - self._at]
            used = min(len(self._tail), stop - self._at)
            self._at, self._tail = self._at + used, self._tail[used:]

    def verify(self, tensor: str) -> None:
        """Check the CRC, once."""
        if self._crc is not None:
            found = 0
            for out in self._stream(tensor):
                found = crc32(out, found)
            _compare(self.path, tensor, found, self._crc, self.offset)
            self._crc = None


def _compare(path: str, tensor: str, found: int, stored: int, offset: int) -> None:
    if found != stored:
        raise FormatError(
            path, f"corrupt: the member's CRC is {found:08x}, {stored:08x} is stored", tensor=tensor, offset=offset
        )


def directory(file: ByteFile) -> tuple[list[zipfile.ZipInfo], bytes]:
    """The members that the archive's directory lists, and its comment.

    Raises:
        FormatError: no archive, or a truncated or corrupt one.
    """
    try:
        with zipfile.ZipFile(file.path if file.local else Stream(file)) as archive:
            infos, comment, end = archive.infolist(), archive.comment, archive.start_dir
    except Exception as error:  # zipfile leaks struct.error, ValueError, NotImplementedError ... on bad input
        what = "truncated or corrupt" if file.size >= 4 and file.read(0, 4) == LOCAL else "is no archive"
        raise FormatError(file.path, f"{what}: {error}", offset=file.size) from None
    stated = _stated(file, len(comment))
    if stated not in (len(infos), 0xFFFF):
        # A damaged entry can swallow the next ones without a word: to zipfile they are its comment.
        what = f"the archive's directory has {len(infos)} members, its end says {stated}"
        raise FormatError(file.path, what, offset=file.size)
    _refuse_shared(file, infos, end)
    return infos, comment


def _refuse_shared(file: ByteFile, infos: list[zipfile.ZipInfo], end: int) -> None:
    """Refuse members that share bytes, with each other or with the directory: few bytes could stand for much.

    Args:
        end: where the directory begins.
    """
    following = end
    for info in sorted(infos, key=lambda info: info.header_offset, reverse=True):
        if info.header_offset < 0:
            what = "corrupt: the archive's directory is not where its end says"
            raise FormatError(file.path, what, offset=file.size)
        # Its header and its name at least; how long the extra field is, only the header itself says.
        if info.header_offset + 30 + len(info.orig_filename) + info.compress_size > following:
            what = "corrupt: the member shares bytes with what follows it"
            raise FormatError(file.path, what, tensor=info.filename, offset=info.header_offset)
        following = info.header_offset


def _stated(file: ByteFile, comment: int) -> int:
    """How many members the record at the archive's end says there are, or its wider form (0xFFFF: neither is there)."""
    at = file.size - comment - _END
    end = file.read(at, _END)
    if end[:4] != b"PK\x05\x06":
        return 0xFFFF
    stated = int.from_bytes(end[10:12], "little")
    if stated == 0xFFFF and at >= _WIDE and (wide := file.read(at - _WIDE, _WIDE))[:4] == b"PK\x06\x06":
        return int.from_bytes(wide[32:40], "little")
    return stated


def metadata_of(comment: bytes) -> dict[str, str]:
    """What weightport left in an archive's comment (JSON); another comment is nobody's business."""
    try:
        found = json.loads(comment.decode("utf-8")) if comment.startswith(b"{") else {}
    except (ValueError, RecursionError):
        return {}
    return {str(k): v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


def member_of(
    file: ByteFile, info: zipfile.ZipInfo, name: str, *, checksum: bool = True, ratio: int = RATIO
) -> Stored | Deflated:
    """The member of an entry of the directory.

    Args:
        name: what errors call it.
        checksum: whether its CRC is one.
        ratio: bytes that one byte of it may decompress to.
    """
    if info.flag_bits & 0x1:
        raise FormatError(file.path, "the member is encrypted", tensor=name, offset=info.header_offset)
    head = file.read(info.header_offset, 30, tensor=name)
    if head[:4] != LOCAL:
        raise FormatError(file.path, "corrupt: no member begins here", tensor=name, offset=info.header_offset)
    name_size, extra_size = int.from_bytes(head[26:28], "little"), int.from_bytes(head[28:30], "little")
    local = file.read(info.header_offset + 30, name_size, tensor=name)
    try:
        same = local.decode("utf-8" if int.from_bytes(head[6:8], "little") & 0x800 else "cp437")
    except UnicodeDecodeError:
        same = ""
    if same != info.orig_filename:
        raise FormatError(
            file.path, f"corrupt: the member is {same!r} in its own header", tensor=name, offset=info.header_offset
        )
    offset = info.header_offset + 30 + name_size + extra_size
    file.check(offset, info.compress_size, tensor=name)
    if info.compress_type == zipfile.ZIP_STORED:
        if info.file_size != info.compress_size:
            raise FormatError(file.path, "corrupt: a stored member of two sizes", tensor=name, offset=offset)
        _refuse_another(file.path, info, head, name)
        return Stored(file, offset, info.file_size, info.CRC if checksum else None)
    if info.compress_type != zipfile.ZIP_DEFLATED:
        what = f"the compression method {info.compress_type} is not supported, only stored and deflated members"
        raise FormatError(file.path, what, tensor=name, offset=info.header_offset)
    if info.file_size > (info.compress_size + 16) * min(ratio, RATIO):
        what = f"{info.compress_size} bytes cannot decompress to {info.file_size}"
        raise FormatError(file.path, what, tensor=name, offset=offset)
    _refuse_another(file.path, info, head, name)
    return Deflated(file, offset, info.compress_size, info.file_size, info.CRC if checksum else None)


def _refuse_another(path: str, info: zipfile.ZipInfo, head: bytes, name: str) -> None:
    """Refuse a member whose own header is not that of the directory: who reads the one would see another file."""
    flags, method, crc, packed, size = struct.unpack_from("<2xHH4xIII", head, 4)
    # What is not known when it is written (bit 3), or has no room there, stands elsewhere.
    told = () if flags & 0x8 or 0xFFFFFFFF in (packed, size) else (crc, packed, size)
    if method != info.compress_type or told not in ((), (info.CRC, info.compress_size, info.file_size)):
        what = "corrupt: the member's own header says another method, size or CRC than the directory"
        raise FormatError(path, what, tensor=name, offset=info.header_offset)
