"""Where the values of an HDF5 file lie, in one run or in chunks: no two datasets, and no two chunks, share bytes.

Promise: two that do are a :class:`FormatError`; there are no ties, as a second name for the same values is a link to
the same dataset. Limit: in a file that does not begin with HDF5's signature, chunks are compared with each other only.
"""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from typing import Any

from weightport.formats._apart import Places
from weightport.formats._h5_file import each_chunk


class Values:
    """The values of a file.

    Args:
        base: where its signature stands.
    """

    def __init__(self, path: str, base: int) -> None:
        self._path, self._base = path, base
        self._runs: list[tuple[int, int, str]] = []
        self._chunked: list[tuple[str, Any]] = []
        self._compared, self._lock = False, threading.Lock()

    def add_run(self, offset: int, size: int, path: str) -> None:
        """A dataset in one run of bytes."""
        self._runs.append((offset, size, path))

    def add_chunked(self, handle: Any, path: str) -> None:
        """A dataset in chunks (``h5py.h5d.DatasetID``)."""
        self._chunked.append((path, handle))

    def compare(self) -> None:
        """See whether datasets in one run share bytes.

        Raises:
            FormatError: some do.
        """
        self._places().check()

    def compare_chunks(self) -> None:
        """See, once, whether chunks share bytes, with each other or with datasets in one run.

        Raises:
            FormatError: some do.
        """
        with self._lock:
            if self._compared:
                return
            # Whether HDF5 counts chunks from its signature, where that is not the file's first, depends on its version.
            places = Places(self._path, ties=False) if self._base else self._places()
            for path, handle in self._chunked:
                with contextlib.suppress(RuntimeError, OSError):  # errors of their own when they are read
                    each_chunk(handle, partial(_add, places, path))
            places.check()
            self._compared = True

    def _places(self) -> Places:
        places = Places(self._path, ties=False)
        for run in self._runs:
            places.add(*run)
        return places

    def close(self) -> None:
        """Let go of the datasets."""
        self._chunked.clear()


def _add(places: Places, path: str, chunk: Any) -> None:
    places.add(chunk.byte_offset, chunk.size, path)
