"""Files that must not change while they are read.

Promise: a file that was written to, replaced or removed in the meantime is an error. A file that is read by URL is
asked about when something of it was fetched since, so that every byte that is used was seen to be of the same file.
Limit: told by size, time and identity, or what a file system says of the content; a change that hides all of it is not
seen.
"""

from __future__ import annotations

from collections.abc import Iterable

from weightport.errors import FormatError
from weightport.formats import _fs


class Unchanged:
    """Remembers files, to notice that one was written to while it was read.

    Args:
        paths: the files of a source; what is not there is not watched.
        replaced: whether another file may take the place of one that is open: what was opened stays what it was. Not
            so by URL, where nothing stays open.
    """

    def __init__(self, paths: Iterable[str], *, replaced: bool = False) -> None:
        self._marks: dict[str, tuple[object, ...]] = {}
        self._fetched: dict[str, int | None] = {}
        self._replaced = replaced
        self.add(paths)

    def add(self, paths: Iterable[str]) -> None:
        """Watch these, too; what is watched already stays as it was."""
        for path in paths:
            if path not in self._marks and (found := _fs.mark(path)) is not None:
                self._marks[path], self._fetched[path] = found, _fs.fetched(path)

    @property
    def paths(self) -> list[str]:
        """The files that are watched."""
        return list(self._marks)

    def check(self, *, sure: bool = False) -> None:
        """Refuse a file that is not what it was.

        Args:
            sure: ask about every file, whoever read it.

        Raises:
            FormatError: its size, time or identity changed.
        """
        for path, before in self._marks.items():
            fetched = _fs.fetched(path)
            if fetched is not None and fetched == self._fetched[path] and not sure:
                continue
            now = _fs.mark(path)
            self._fetched[path] = fetched
            if now == before or (fetched is None and self._replaced and (now is None or now[:2] != before[:2])):
                continue
            raise FormatError(path, "the file changed while it was read", hint="run it again when nothing writes to it")
