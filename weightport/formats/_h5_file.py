"""HDF5 files that are opened where their bytes lie: a file by its path, a part of one (a zip's member) in place.

Promise: HDF5 sees the range and nothing beside it; a read that leaves it is a :class:`FormatError`. Limit: HDF5 calls
back into Python for each read of a part, so what lies in one run is better read by position.

Source: h5py/h5fd.pyx (the ``fileobj`` driver), docs/high/file.rst ("Python file-like objects").
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable
from math import prod
from typing import Any

from weightport.formats._io import ByteFile, Bytes, Stream

# HDF5 closes what is open when the process ends, which is after Python is gone: calling back would crash it.
_calling_back: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def opened(file: Bytes) -> Any:
    """The ``h5py.File`` of these bytes, read-only."""
    import h5py

    if isinstance(file, ByteFile) and file.local:
        return h5py.File(file.path, "r", locking="best-effort", rdcc_nbytes=8 << 20)
    found = h5py.File(_Strict(file), "r", rdcc_nbytes=8 << 20)
    _calling_back[id(found)] = found
    return found


def checksum(dataset: Any, elsewhere: bool) -> str:
    """``fletcher32`` where HDF5 compares that checksum for every value of a dataset, else nothing.

    Args:
        dataset: an ``h5py.h5d.DatasetID``.
        elsewhere: whether its values are references to what lies elsewhere in the file.
    """
    from h5py import h5z

    made = dataset.get_create_plist()
    filters = [made.get_filter(n)[0] for n in range(made.get_nfilters())]
    if elsewhere or h5z.FILTER_FLETCHER32 not in filters:
        return ""
    left_out = 1 << filters.index(h5z.FILTER_FLETCHER32)
    stored: list[int] = []
    each_chunk(dataset, lambda chunk: stored.append(chunk.filter_mask & left_out))
    # A chunk may leave a filter out; one that is not there has the value that the dataset's header says.
    whole = len(stored) == prod(-(-n // c) for n, c in zip(dataset.shape, made.get_chunk(), strict=True))
    return "fletcher32" if whole and not any(stored) else ""


def each_chunk(dataset: Any, told: Callable[[Any], object]) -> None:
    """Tell of each chunk that a dataset has where it lies, and which filters it left out (``h5py.h5d.StoreInfo``)."""
    if hasattr(dataset, "chunk_iter"):  # HDF5 1.12.3 and later: one walk through the index
        dataset.chunk_iter(told)
        return
    for number in range(dataset.get_num_chunks()):
        told(dataset.get_chunk_info(number))


@atexit.register
def _close_all() -> None:
    for file in list(_calling_back.values()):
        file.close()


class _Strict(Stream):
    """A range of bytes as the file object that h5py wants; a read beyond its end is an error, as h5py is not told."""

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        self._bytes.read_into(self._at, view)
        self._at += len(view)
        return len(view)
