"""Zip archives of stored members that are laid out before their content is known.

Promise: what every reader of zip archives takes, beyond 4 GiB and 65,535 members too; each member's content begins at a
multiple of 64 bytes, padded as PyTorch pads it (an extra field ``FB``); no times, so that the same content gives the
same bytes. Limit: nothing is compressed.

Source: APPNOTE.TXT 6.3.9 (PKWARE), 4.3 and 4.5.3; caffe2/serialize/inline_container.cc (``getPadding``).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import BinaryIO

from weightport.checksums import crc32

ALIGNED = 64
_MAX = 0xFFFFFFFF
_DATE = 0x0021  # 1980-01-01, the first there is
_PLAIN, _LARGE = 20, 45  # versions of the format: 4.5 has sizes of 64 bits
_UNIX = 3
_MODE = 0o600 << 16


class Archive:
    """An archive in the making.

    Args:
        members: name -> size of the content, or the content itself.
        comment: of the archive.

    Attributes:
        offsets: where each member's content begins.
    """

    def __init__(self, members: Mapping[str, int | bytes], comment: bytes = b"") -> None:
        self._members, self._comment = members, comment
        self._heads: dict[str, int] = {}
        self.offsets: dict[str, int] = {}
        at = 0
        for name, content in members.items():
            self._heads[name] = at
            size = content if isinstance(content, int) else len(content)
            start = at + 30 + len(name.encode()) + (20 if size >= _MAX else 0) + 4
            self.offsets[name] = start + -start % ALIGNED
            at = self.offsets[name] + size
        self._end = at

    def begin(self, out: BinaryIO) -> None:
        """Make room for all of it, and put in what is known: the file can be written to at :attr:`offsets`."""
        out.truncate(self._end)
        for name, content in self._members.items():
            if isinstance(content, bytes):
                out.seek(self.offsets[name])
                out.write(content)

    def finish(self, out: BinaryIO, checksums: Mapping[str, int]) -> None:
        """Put in the members' heads and the directory.

        Args:
            checksums: the CRC-32 of each member whose content was not known.
        """
        records = []
        for name, content in self._members.items():
            if isinstance(content, bytes):
                size, crc = len(content), crc32(content)
            else:
                size, crc = content, checksums[name]
            head, record = self._head(name, size, crc)
            out.seek(self._heads[name])
            out.write(head)
            records.append(record)
        out.seek(self._end)
        out.writelines(records)
        out.write(self._last(records))

    def _head(self, name: str, size: int, crc: int) -> tuple[bytes, bytes]:
        """A member's own head, and its record in the directory."""
        raw, at = name.encode(), self._heads[name]
        flags = 0 if raw.isascii() else 0x800
        large = size >= _MAX
        version = _LARGE if large else _PLAIN
        sizes = (_MAX, _MAX) if large else (size, size)
        extra = struct.pack("<HHQQ", 1, 16, size, size) if large else b""
        padding = self.offsets[name] - at - 30 - len(raw) - len(extra) - 4
        fields = (flags, 0, 0, _DATE, crc, *sizes, len(raw))
        head = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", version, *fields, len(extra) + 4 + padding)
        head += raw + extra + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        far = [size, size] if large else []
        far += [at] if at >= _MAX else []
        extra = struct.pack(f"<HH{len(far)}Q", 1, 8 * len(far), *far) if far else b""
        version = _LARGE if far else _PLAIN
        record = struct.pack("<4sHHHHHHIII", b"PK\1\2", _UNIX << 8 | version, version, *fields[:-1])
        record += struct.pack("<HHHHHII", len(raw), len(extra), 0, 0, 0, _MODE, min(at, _MAX))
        return head, record + raw + extra

    def _last(self, records: Sequence[bytes]) -> bytes:
        """The records after the directory."""
        count, size, at = len(records), sum(map(len, records)), self._end
        out = b""
        if count >= 0xFFFF or size >= _MAX or at >= _MAX:
            made = _UNIX << 8 | _LARGE
            out += struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, made, _LARGE, 0, 0, count, count, size, at)
            out += struct.pack("<4sIQI", b"PK\6\7", 0, at + size, 1)
        few = min(count, 0xFFFF)
        places = min(size, _MAX), min(at, _MAX)
        out += struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, few, few, *places, len(self._comment))
        return out + self._comment
