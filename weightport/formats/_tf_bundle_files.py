"""The files of a checkpoint that is being written: data shards and index, which appear together or not at all.

Promise: all of them are written under temporary names beside the checkpoint; the data is renamed first, to names that
the checkpoint of that prefix does not use, the index last; then what the old index used is removed. What a killed
writer left is removed by the next. Limit: locks that the file system does not support do not keep two writers apart;
the last one wins.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from weightport.errors import Error
from weightport.formats._io import fsync_folder, locked_folder, try_lock

_MARK, _SUFFIX = ".bundle-", ".weightport-tmp"
# linux/fs.h: FICLONE, _IOW(0x94, 9, int).
_FICLONE = 0x40049409
#: What a number of five digits can count.
MOST_SHARDS = 99_999


class Shards:
    """The data shards under temporary names beside the index, one of them open; what was not renamed is removed.

    Their names begin with the index', whose lock says that somebody is still writing.
    """

    def __init__(self, index_path: str, most: int | None) -> None:
        self._stem = index_path.removesuffix(_SUFFIX)
        self._most = most
        self._open: BinaryIO | None = None
        self.paths: list[str] = []

    def room_for(self, size: int) -> BinaryIO:
        """The shard to write the next tensor of that many bytes to."""
        if self._open is None or (
            self._most is not None and self._open.tell() and self._open.tell() + size > self._most
        ):
            self.close()
            if len(self.paths) == MOST_SHARDS:
                raise Error(f"more than {MOST_SHARDS:,} data shards: a checkpoint cannot have more; choose larger ones")
            self.paths.append(f"{self._stem}.{len(self.paths):05d}{_SUFFIX}")
            self._open = open(self.paths[-1], "xb")  # noqa: SIM115
        return self._open

    def reserve(self, size: int) -> tuple[str, int]:
        """A place for a tensor that is written later: the shard's temporary path, and where in it."""
        handle = self.room_for(size)
        at = handle.tell()
        handle.seek(at + size)
        return self.paths[-1], at

    def adopt(self, source: str, *, link: bool) -> None:
        """A whole file as the next shard, without copying: a clone of it, or with ``link`` the very file.

        Raises:
            OSError: the file system cannot do that.
        """
        if self._open is not None:  # the empty first one, which is not needed
            self._open.close()
            self._open = None
            os.unlink(self.paths.pop())
        path = f"{self._stem}.{len(self.paths):05d}{_SUFFIX}"
        if link:
            os.link(source, path)
            self.paths.append(path)
            return
        with open(source, "rb") as whole, open(path, "xb") as clone:
            self.paths.append(path)
            cloned(whole.fileno(), clone.fileno())

    def close(self) -> None:
        """The open shard has its size, with holes where something was reserved."""
        if self._open is not None:
            self._open.truncate()
            self._open.close()
            self._open = None

    def sync(self) -> None:
        """Make all shards durable."""
        self.close()
        for path in self.paths:
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())

    def __enter__(self) -> Shards:
        self.room_for(0)  # a checkpoint without tensors has a shard, too
        return self

    def __exit__(self, *_: object) -> None:
        if self._open is not None:
            self._open.close()
        for path in self.paths:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def cloned(source: int, target: int) -> None:
    """Make an empty open file a clone of another: both share their blocks until one is written to.

    Raises:
        OSError: the file system cannot do that, or they lie on two.
    """
    if not sys.platform.startswith("linux"):
        raise OSError(errno.ENOTSUP, "no clones on this system")
    import fcntl  # only where something is written

    fcntl.ioctl(target, _FICLONE, source)


def commit(
    prefix: str,
    index: BinaryIO,
    index_path: str,
    data: Sequence[str],
    write_index: Callable[[BinaryIO, int, int], None],
) -> None:
    """Give the data names that are free, swap the index, remove what the old index used.

    Args:
        prefix: the checkpoint's.
        index, index_path: its temporary index, not written yet.
        data: the temporary data shards.
        write_index: writes the index, given how many shards there are and which number the first has.
    """
    folder = os.path.dirname(prefix) or "."
    with locked_folder(folder):
        count = len(data)
        if os.path.lexists(prefix + ".index"):
            while any(os.path.lexists(_shard(prefix, count - len(data) + n, count)) for n in range(len(data))):
                count += 1
        first = count - len(data)
        write_index(index, count, first)
        sync(index)
        with contextlib.suppress(FileNotFoundError):
            os.chmod(index_path, stat.S_IMODE(os.stat(prefix + ".index").st_mode))
        shards = [_shard(prefix, first + n, count) for n in range(len(data))]
        try:
            for temporary, shard in zip(data, shards, strict=True):
                os.replace(temporary, shard)
            fsync_folder(folder)
            os.replace(index_path, prefix + ".index")
        except OSError:
            for shard in shards:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(shard)
            raise
        fsync_folder(folder)
        _remove_stale(prefix, folder)
        pattern = re.compile(re.escape(os.path.basename(prefix)) + r"\.data-\d{5}-of-\d{5}")
        used = set(map(os.path.basename, shards))
        for name in os.listdir(folder):
            if pattern.fullmatch(name) and name not in used:
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(folder, name))


def _shard(prefix: str, number: int, count: int) -> str:
    return f"{prefix}.data-{number:05d}-of-{count:05d}"


@contextlib.contextmanager
def temporary(prefix: str) -> Iterator[tuple[BinaryIO, str]]:
    """A file beside the checkpoint, removed unless it was renamed. It is locked as long as this process writes it."""
    folder, base = os.path.split(prefix)
    with locked_folder(folder or "."):
        descriptor, path = tempfile.mkstemp(prefix=f".{base}{_MARK}", suffix=_SUFFIX, dir=folder or ".")
        try_lock(descriptor)
    try:
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(path, 0o666 & ~umask)
        with os.fdopen(descriptor, "w+b") as handle:
            yield handle, path
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def sync(handle: BinaryIO) -> None:
    """Make what was written durable."""
    handle.flush()
    os.fsync(handle.fileno())


def _remove_stale(prefix: str, folder: str) -> None:
    """Remove what writers of this checkpoint left that were killed: their temporary index is locked by nobody.

    Called with the folder locked, so that no index is met between its creation and its lock.
    """
    mine = re.escape(os.path.basename(prefix)) + re.escape(_MARK)
    pattern = re.compile(rf"(\.{mine}\w+)(\.\d{{5}})?{re.escape(_SUFFIX)}")
    for match in filter(None, map(pattern.fullmatch, os.listdir(folder))):
        with contextlib.suppress(OSError):
            if not _is_locked(os.path.join(folder, match[1] + _SUFFIX)):
                os.unlink(os.path.join(folder, match[0]))


def _is_locked(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)
