"""Values that share bytes in a file: those that share all of them are tied, those that share some are a mistake.

Promise: one sort of three numbers a value finds it. Limit: values without bytes share none, and so do those whose place
is in no file; reading these is an error of its own.

No writer lets values overlap in part: where they do, an offset or a size is wrong, and one of them is not what was
saved.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import numpy as np

from weightport.errors import FormatError

_END = 1 << 63


class Places:
    """Where values lie.

    Args:
        path: the file, or the path of each of several by its number.
        ties: whether values may share all of their bytes.
        named: what errors call a value.
    """

    def __init__(
        self, path: str | Callable[[int], str], *, ties: bool = True, named: Callable[[Any], str] = str
    ) -> None:
        self._path, self._ties, self._named = path, ties, named
        self._files, self._starts, self._sizes = array("q"), array("q"), array("q")
        self._values: list[Any] = []

    def add(self, start: int, size: int, value: Any, file: int = 0) -> None:
        """A value, which ``named`` has a name for, where its bytes lie, and in which of several files."""
        if start >= 0 and size > 0 and start + size < _END and 0 <= file < _END:
            self._files.append(file)
            self._starts.append(start)
            self._sizes.append(size)
            self._values.append(value)

    def check(self) -> None:
        """See whether the values share bytes.

        Raises:
            FormatError: two do, and not all of them, or may not share all.
        """
        files, starts, sizes = np.array(self._files), np.array(self._starts), np.array(self._sizes)
        order = np.lexsort((sizes, starts, files))
        files, starts, sizes = files[order], starts[order], sizes[order]
        beside = files[1:] == files[:-1]
        if self._ties:
            tied = np.zeros(len(order), bool)
            tied[1:] = beside & (starts[1:] == starts[:-1]) & (sizes[1:] == sizes[:-1])
            order, files, starts, sizes = order[~tied], files[~tied], starts[~tied], sizes[~tied]
            beside = files[1:] == files[:-1]
        # If any two share bytes, then two do that follow each other.
        found = np.flatnonzero(beside & (starts[1:] < starts[:-1] + sizes[:-1]))
        if not len(found):
            return
        before, after = (int(order[found[0] + n]) for n in (0, 1))
        what = (
            f"corrupt: its {self._sizes[after]} bytes overlap the {self._sizes[before]} of "
            f"{self._named(self._values[before])!r} at byte {self._starts[before]}: "
            f"tensors share {'all of their bytes or ' if self._ties else ''}none"
        )
        path = self._path if isinstance(self._path, str) else self._path(self._files[after])
        raise FormatError(path, what, tensor=self._named(self._values[after]), offset=self._starts[after])
