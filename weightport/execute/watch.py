"""Files that must not change while they are read.

Promise: a file that was written to, replaced or removed in the meantime is an error. Limit: told by its size, time and
identity, so that a change that hides all three is not seen.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from weightport.errors import FormatError


class Unchanged:
    """Remembers files, to notice that one was written to while it was read.

    Args:
        paths: the files of a source; what is not there is not watched.
        replaced: whether another file may take the place of one that is open: what was opened stays what it was.
    """

    def __init__(self, paths: Iterable[str], *, replaced: bool = False) -> None:
        self._stats: dict[str, tuple[int, ...]] = {}
        self._replaced = replaced
        self.add(paths)

    def add(self, paths: Iterable[str]) -> None:
        """Watch these, too; what is watched already stays as it was."""
        for path in paths:
            if path not in self._stats and (found := _stat(path)) is not None:
                self._stats[path] = found

    def check(self) -> None:
        """Refuse a file that is not what it was.

        Raises:
            FormatError: its size, time or identity changed.
        """
        for path, before in self._stats.items():
            now = _stat(path)
            if now == before or (self._replaced and (now is None or now[:2] != before[:2])):
                continue
            raise FormatError(path, "the file changed while it was read", hint="run it again when nothing writes to it")


def _stat(path: str) -> tuple[int, ...] | None:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns
