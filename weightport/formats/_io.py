"""Bytes of files: bounded positional reads.

Promise: a read past the end is a :class:`FormatError` with the offset, never a short result; only regular files are
opened. Limit: a file that is changed while it is read is noticed by who watches it, not here.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from weightport.errors import Error, FormatError
from weightport.formats import _fs
from weightport.tensors import Array

# What copy_file_range says where it cannot: two file systems, or one that does not have it.
_NO_COPY = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)
#: How much is read at a time where a byte range is streamed: fits the second-level cache.
CHUNK = 256 * 1024


class Bytes(Protocol):
    """Bytes that are read by position: a file, or a part of one. Methods as those of :class:`ByteFile`."""

    path: str
    size: int

    def read(self, offset: int, count: int, *, tensor: str | None = None) -> bytes: ...

    def read_into(self, offset: int, buffer: memoryview, *, tensor: str | None = None) -> None: ...

    def chunks(self, offset: int, count: int, *, tensor: str | None = None) -> Iterator[bytes]: ...

    def check(self, offset: int, count: int, *, tensor: str | None = None) -> None: ...

    def close(self) -> None: ...


class ByteFile:
    """A regular file opened for positional reads. Not mapped: a truncated file is an error, never a SIGBUS.

    Beneath a URL it is a :class:`~weightport.formats._remote_file.RemoteFile`.

    Attributes:
        local: whether ``path`` is one of this system's.
    """

    local = True

    def __new__(cls, path: str | os.PathLike[str]) -> ByteFile:
        """The file, by what reads it there."""
        if cls is ByteFile and _fs.is_remote(os.fspath(path)):
            from weightport.formats._remote_file import RemoteFile

            return super().__new__(RemoteFile)
        return super().__new__(cls)

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        try:
            # O_NONBLOCK: opening a FIFO must not hang; it is refused below.
            self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise FormatError(self.path, f"cannot be opened: {error.strerror}") from None
        except ValueError:  # a lone surrogate, or a NUL: what a file says of another's name may have either
            raise FormatError(self.path, "cannot be opened: no file can have this name") from None
        info = os.fstat(self._fd)
        if not stat.S_ISREG(info.st_mode):
            os.close(self._fd)
            raise FormatError(self.path, "is not a regular file")
        self.size = info.st_size

    def read(self, offset: int, count: int, *, tensor: str | None = None) -> bytes:
        """Exactly ``count`` bytes from ``offset``.

        Raises:
            FormatError: the range does not lie inside the file.
        """
        self.check(offset, count, tensor=tensor)
        parts = []
        while count:
            part = os.pread(self._fd, count, offset)
            if not part:
                raise FormatError(self.path, "the file shrank while it was read", tensor=tensor, offset=offset)
            parts.append(part)
            offset, count = offset + len(part), count - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_into(self, offset: int, buffer: memoryview, *, tensor: str | None = None) -> None:
        """Fill a writable, contiguous byte view from ``offset``."""
        self.check(offset, len(buffer), tensor=tensor)
        done = 0
        while done < len(buffer):
            got = os.preadv(self._fd, [buffer[done:]], offset + done)
            if not got:
                raise FormatError(self.path, "the file shrank while it was read", tensor=tensor, offset=offset + done)
            done += got

    def read_rows(
        self,
        offsets: Sequence[int],
        rows: Array,
        checksum: Callable[[Any, int], int] | None,
        chunk: int = CHUNK,
        *,
        tensor: str | None = None,
    ) -> list[int]:
        """Fill each row of a byte array ``[n, size]`` from its own offset, so many bytes at a time.

        Returns:
            the rows' checksums, or zeros.
        """
        size = rows.shape[1]
        self.check(min(offsets), max(offsets) - min(offsets) + size, tensor=tensor)
        found, fd, read = [], self._fd, os.preadv
        for offset, row in zip(offsets, rows, strict=True):
            crc = 0
            for at in range(0, size, chunk):
                part = row[at : at + chunk] if size > chunk else row
                if read(fd, (part,), offset + at) != len(part):
                    self.read_into(offset + at, part.data, tensor=tensor)
                if checksum is not None:
                    crc = checksum(part, crc)
            found.append(crc)
        return found

    def copy_to(self, handle: int, at: int, offset: int, count: int, *, tensor: str | None = None) -> bool:
        """Copy a byte range into another open file inside the system; whether it can, for these two."""
        self.check(offset, count, tensor=tensor)
        if not hasattr(os, "copy_file_range"):
            return False
        while count:
            try:
                done = os.copy_file_range(self._fd, handle, count, offset, at)
            except OSError as error:
                if error.errno in _NO_COPY:
                    return False
                raise
            if not done:
                raise FormatError(self.path, "the file shrank while it was read", tensor=tensor, offset=offset)
            offset, at, count = offset + done, at + done, count - done
        return True

    def chunks(self, offset: int, count: int, *, tensor: str | None = None) -> Iterator[bytes]:
        """The byte range in pieces of at most :data:`CHUNK`."""
        self.check(offset, count, tensor=tensor)
        while count:
            piece = self.read(offset, min(CHUNK, count), tensor=tensor)
            yield piece
            offset, count = offset + len(piece), count - len(piece)

    def check(self, offset: int, count: int, *, tensor: str | None = None) -> None:
        """Refuse a byte range that does not lie inside the file."""
        if self._fd < 0:
            raise Error(f"{self.path}: is closed")
        if offset < 0 or count < 0 or offset + count > self.size:
            raise FormatError(
                self.path,
                f"truncated or corrupt: bytes {offset}..{offset + count} asked for, the file has {self.size}",
                tensor=tensor,
                offset=max(0, min(offset, self.size)),
            )

    def fileno(self) -> int:
        """The open file's descriptor."""
        return self._fd

    def expect(self, offset: int, count: int) -> None:
        """The range will be read from its beginning to its end: known early, it can be fetched in few requests."""

    def expect_near(self, offsets: Iterable[int]) -> None:
        """A little will be read at each of these."""

    def close(self) -> None:
        """Release the file handle. Reading afterwards is an error."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> ByteFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stream(io.RawIOBase):
    """Bytes as a file object that is read, for libraries that want one; at their end there is nothing more."""

    def __init__(self, file: Bytes) -> None:
        super().__init__()
        self._bytes, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._bytes.size}[whence]
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        view = view[: max(0, self._bytes.size - self._at)]
        if view:
            self._bytes.read_into(self._at, view)
        self._at += len(view)
        return len(view)
