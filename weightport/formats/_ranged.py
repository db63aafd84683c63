"""Writers of formats in which every tensor has a place of a known size: values come in any order, or as streams.

Promise: the file is the same whichever way it was written; what does not fit the specs is an error, and nothing
changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from weightport.checksums import function
from weightport.formats import _strided, _tiles
from weightport.formats._io import CHUNK
from weightport.tensors import Destination, Kept, TensorSpec, Tiles


class Place:
    """A :class:`~weightport.tensors.Destination`.

    Attributes:
        checksums: per tensor, as they were told.
    """

    def __init__(self, places: Mapping[str, tuple[str, int]], checksum: str | None = None) -> None:
        self.places, self.checksum = places, checksum
        self.checksums: dict[str, int] = {}

    def done(self, name: str, checksum: int) -> None:
        """Take the plain checksum of a tensor's bytes."""
        self.checksums[name] = checksum


#: ``begin(path, specs, tiles, metadata=..., kept=..., ...)``: the file in the making.
Begin = Callable[..., AbstractContextManager[Destination]]


class Ranged:
    """A :class:`~weightport.tensors.RangedWriter`; called, it writes all tensors one after the other.

    Args:
        begin: what :meth:`destination` does; its docstring says what can go wrong.
    """

    def __init__(self, begin: Begin) -> None:
        self._begin = begin
        self.__doc__ = begin.__doc__

    def destination(
        self,
        path: str,
        specs: Mapping[str, TensorSpec],
        tiles: Tiles,
        *,
        metadata: Mapping[str, str] | None = None,
        kept: Kept | None = None,
        **options: Any,
    ) -> AbstractContextManager[Destination]:
        """A file to write to; see :class:`~weightport.tensors.RangedWriter`."""
        return self._begin(path, specs, tiles, metadata=metadata, kept=kept, **options)

    def __call__(
        self,
        path: str,
        specs: Mapping[str, TensorSpec],
        tiles: Tiles,
        *,
        metadata: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        """Write the file; see :class:`~weightport.tensors.FileWriter`."""
        with self.destination(path, specs, tiles, metadata=metadata, **options) as out, ExitStack() as stack:
            current, handle = "", -1
            for name, (file, offset) in out.places.items():
                if file != current:
                    stack.close()
                    current, handle = file, stack.enter_context(open(file, "r+b", buffering=0)).fileno()
                checksum = None if out.checksum is None else function(out.checksum)
                crc, at = 0, offset
                for tile in _tiles.checked(path, name, specs[name], tiles):
                    view = _strided.byte_view(tile) if tile.size else memoryview(b"")
                    for start in range(0, len(view), CHUNK):
                        piece = view[start : start + CHUNK]
                        crc = checksum(piece, crc) if checksum is not None else 0
                        _put(handle, at, piece)
                        at += len(piece)
                if checksum is not None:
                    out.done(name, crc)


def _put(handle: int, offset: int, view: memoryview) -> None:
    while len(view):
        count = os.pwrite(handle, view, offset)
        view, offset = view[count:], offset + count
