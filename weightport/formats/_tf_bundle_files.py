"""The files of a checkpoint that is being written: data shards and index, which appear together or not at all.

Promise: all of them are written under temporary names beside the checkpoint; the data is renamed first, to names that
the checkpoint of that prefix does not use, the index last; then what the old index used is removed. Limits: those of
:mod:`~weightport.formats._temporaries`.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import BinaryIO

from weightport.errors import Error
from weightport.formats import _temporaries
from weightport.formats._temporaries import Parts
from weightport.tensors import Kept

# linux/fs.h: FICLONE, _IOW(0x94, 9, int).
_FICLONE = 0x40049409
#: What a number of five digits can count.
MOST_SHARDS = 99_999


class Shards(Parts):
    """The data shards under temporary names beside the index, one of them open; what was not renamed is removed.

    Args:
        made: the temporary index, whose lock says that somebody is still writing.
        most: bytes of a shard, unless one tensor has more.
        kept: see :class:`~weightport.formats._temporaries.Parts`.
    """

    def __init__(self, made: str, most: int | None, kept: Kept | None = None) -> None:
        super().__init__(made, kept)
        self._most = most
        self._open: BinaryIO | None = None

    def room_for(self, size: int) -> BinaryIO:
        """The shard to write the next tensor of that many bytes to."""
        if self._open is None or (
            self._most is not None and self._open.tell() and self._open.tell() + size > self._most
        ):
            self.close()
            if len(self.paths) == MOST_SHARDS:
                raise Error(f"more than {MOST_SHARDS:,} data shards: a checkpoint cannot have more; choose larger ones")
            self._open = open(self.create(), "r+b")  # noqa: SIM115
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
        if link:
            os.link(source, self.new())
            return
        with open(source, "rb") as whole, open(self.new(), "xb") as clone:
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
        super().sync()

    def __enter__(self) -> Shards:
        self.room_for(0)  # a checkpoint without tensors has a shard, too
        return self

    def __exit__(self, *_: object) -> None:
        if self._open is not None:
            self._open.close()
        super().__exit__()


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
    prefix: str, index: BinaryIO, made: str, shards: Shards, write_index: Callable[[BinaryIO, int, int], None]
) -> None:
    """Give the data names that the old checkpoint does not use, swap the index, remove what the old one used.

    Args:
        prefix: the checkpoint's.
        index, made: its temporary index, not written yet.
        shards: the data, which is durable.
        write_index: writes the index, given how many shards there are and which number the first has.
    """
    folder, base = os.path.split(prefix)
    pattern = re.compile(re.escape(base) + r"\.data-\d{5}-of-\d{5}")
    parts = shards.paths

    def old() -> list[str]:
        return list(filter(pattern.fullmatch, os.listdir(folder or ".")))

    def names() -> list[str]:
        count, replaces = len(parts), os.path.lexists(prefix + ".index")
        while True:
            found = [f"{base}.data-{n:05d}-of-{count:05d}" for n in range(count - len(parts), count)]
            if not replaces or not any(os.path.lexists(os.path.join(folder, name)) for name in found):
                return found
            count += 1

    def write(out: BinaryIO, chosen: Sequence[str]) -> None:
        count = int(chosen[0].rpartition("-")[2])
        write_index(out, count, count - len(parts))

    _temporaries.commit(prefix + ".index", index, made, parts, old=old, names=names, write=write)
