"""Memory for values that a framework is to take over. No framework is imported here."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np

from weightport.errors import PlanError, Problem
from weightport.tensors import Array, Index, Value

# From here on memory comes from the system by itself, page by page.
_LARGE = 1 << 20


def produced(value: Value, index: Index = None) -> Array:
    """The value, or the part that ``index`` cuts out, read now, in memory of its own that nobody else knows.

    A framework takes that memory over: it is the variable's own, and the only copy.

    Raises:
        PlanError: what is delivered has another shape or dtype than the value's spec says.
    """
    cut = () if index is None else index
    sizes = (len(range(*s.indices(n))) for s, n in zip(cut, value.spec.shape, strict=False))
    shape = (*sizes, *value.spec.shape[len(cut) :])
    if value.spec.dtype.hasobject:
        made = np.asarray(value.produce(index))
        if made.shape != shape or made.dtype != value.spec.dtype:
            want, have = f"{value.spec.dtype.name} {list(shape)}", f"{made.dtype.name} {list(made.shape)}"
            raise PlanError(Problem(f"variable {value.name!r}", f"{want} was planned, {have} was produced"))
        copy: Array = made.copy()
        return copy
    own = aligned(value.spec.dtype, shape)
    value.fill(own, index)
    return own


def aligned(dtype: np.dtype[Any], shape: Sequence[int]) -> Array:
    """An empty array whose bytes begin where frameworks take them over without a copy (at a multiple of 64).

    Raises:
        MemoryError: there is not that much.
    """
    size = dtype.itemsize
    for n in shape:
        size *= n
    room = _pages(size) if size >= _LARGE else np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    made: Array = room[start : start + size].view(dtype).reshape(tuple(shape))
    return made


def _pages(size: int) -> Array:
    """New pages, of the size that the system gives by itself.

    Not ``np.empty``, which asks for huge ones. A virtual machine that gives free memory back to its host does so by
    these, and has to fetch them again: 1.0 s for a GB, against 0.3 s for small ones. Elsewhere they would save 0.2 s.
    """
    try:
        flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        return np.frombuffer(mmap.mmap(-1, size, **flags), np.uint8)
    except OSError as error:
        raise MemoryError(f"{size:,} bytes: {error.strerror}") from None
