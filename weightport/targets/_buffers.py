"""Memory for values that a framework is to take over. No framework is imported here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from weightport.tensors import Array


def aligned(dtype: np.dtype[Any], shape: Sequence[int]) -> Array:
    """An empty array whose bytes begin where frameworks take them over without a copy (at a multiple of 64)."""
    if dtype.hasobject:
        return np.empty(tuple(shape), dtype)
    size = dtype.itemsize
    for n in shape:
        size *= n
    room = np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    made: Array = room[start : start + size].view(dtype).reshape(tuple(shape))
    return made
