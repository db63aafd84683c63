"""One task of a transfer: some boxes of some tensors, read from the source and written to their places in a new file.

Promise: a task is all that it needs - it can be pickled, run by any thread, process or machine that sees the same
files, and run twice; it writes its own byte ranges and nothing else; it holds one box's parts of the source, and one
tile. Checksums are computed while a tile is in the cache. Limit: what a source cannot say the place of is read through
the source itself, by one task at a time in a process.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from weightport.errors import Error
from weightport.execute.boxes import Sizes
from weightport.execute.ledger import Pieces
from weightport.ranges import Ranges, slices_of
from weightport.tensors import Array, Extent, Source, TensorSpec
from weightport.values import Expr


class Side:
    """A source that tasks read from. In another process it is opened again, once for all tasks of a transfer.

    Args:
        source: an open source.
        key: tells the transfer from all others.
    """

    def __init__(self, source: Source, key: str) -> None:
        self._source, self._key = source, key
        self._lock = threading.Lock()

    def read(self, name: str, ranges: Ranges) -> Array:
        """A part of a tensor, by the source's own reader."""
        with self._lock:
            return self._source.read(name, slices_of(ranges))

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            source = pickle.dumps(self._source)
        except (TypeError, AttributeError, pickle.PicklingError):
            raise Error(f"{self._source.path}: cannot be opened in another process; give its path instead") from None
        return _reopened, (source, self._key)


@lru_cache(maxsize=8)
def _reopened(source: bytes, key: str) -> Side:
    return Side(pickle.loads(source), key)


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a target tensor.

    Attributes:
        name: the target tensor's.
        expr: what it is computed from.
        spec: its dtype and shape.
        box: which part of it, or None for all of it.
        held: whether the parts of the source are held while the box is made.
        out: the file to write into; it exists.
        offset: where the whole tensor's bytes begin in it.
        side: which of the task's sources it is computed from.
    """

    name: str
    expr: Expr
    spec: TensorSpec
    box: Ranges | None
    held: bool
    out: str
    offset: int
    side: int


@dataclass(frozen=True, slots=True)
class Task:
    """See the module.

    Attributes:
        checksum: the kind that the new file has for each tensor, or that a journal wants of it; or None.
        sides: the sources.
        pieces: what to write.
        specs: of the source tensors, by side and name.
        extents: where they lie, of those that lie anywhere.
        sizes: how much is done at a time.
        memory: the array (C order) that is written to instead of a file. Such a task stays in its process.
    """

    checksum: str | None
    sides: tuple[Side, ...]
    pieces: tuple[Piece, ...]
    specs: Mapping[tuple[int, str], TensorSpec]
    extents: Mapping[tuple[int, str], Extent]
    sizes: Sizes
    memory: Array | None = None


@dataclass(slots=True)
class Done:
    """What a task did.

    Attributes:
        nbytes: that were written.
        read: per side and name of a source tensor with a checksum, the pieces of its file that were read.
        written: per target tensor, the pieces of its bytes, if the task has a checksum.
        kept: bytes that an earlier run had written, and that are still there.
        note: what a journal is to say of it; see :mod:`.journal`.
    """

    nbytes: int = 0
    read: list[tuple[int, str, Pieces]] = field(default_factory=list)
    written: list[tuple[str, Pieces]] = field(default_factory=list)
    kept: int = 0
    note: bytes = b""
