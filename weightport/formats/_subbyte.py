"""Elements of less than a byte, as files pack them: several to a byte, the first one in the lowest bits.

Sources: onnx/numpy_helper.py (``_unpack_4bit``, ``_unpack_2bit``),
tensorflow/lite/kernels/internal/portable_tensor_utils.cc (``UnpackDenseInt4IntoInt8``).
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from weightport.formats import _strided
from weightport.formats._proto import Readable
from weightport.tensors import Array

#: Name of a dtype -> bits of an element. In memory, each takes a byte.
BITS = {"uint4": 4, "int4": 4, "float4_e2m1fn": 4, "uint2": 2, "int2": 2}


def nbytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    """Bytes that a tensor takes in a file."""
    return -(-prod(shape) * BITS.get(dtype.name, dtype.itemsize * 8) // 8)


def unpacked(packed: Array, bits: int) -> Array:
    """Elements, one to a byte, unsigned."""
    each = 8 // bits
    out = np.empty(packed.size * each, np.uint8)
    for place in range(each):
        out[place::each] = (packed >> (bits * place)) & ((1 << bits) - 1)
    return out


def packed(values: Array) -> Array:
    """The reverse, of a flat array of a dtype of :data:`BITS`."""
    bits = BITS[values.dtype.name]
    each = 8 // bits
    raw = np.zeros(-(-values.size // each) * each, np.uint8)
    raw[: values.size] = values.view(np.uint8) & ((1 << bits) - 1)
    out = np.zeros(raw.size // each, np.uint8)
    for place in range(each):
        out |= raw[place::each] << (bits * place)
    return out


def read_part(
    file: Readable,
    offset: int,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    cuts: _strided.Bounds,
    *,
    tensor: str | None = None,
) -> Array:
    """The part of a tensor of any dtype that lies in a file; of packed ones, the rows that are wanted are read."""
    if dtype.name not in BITS:
        return _strided.read_part(file, offset, dtype, shape, cuts, tensor=tensor)
    bits, total = BITS[dtype.name], prod(shape)
    row = total // shape[0] if total else 0
    first, last = (cuts[0][0] * row, cuts[0][1] * row) if shape else (0, 1)
    low, high = first * bits // 8, -(-last * bits // 8)
    raw = np.frombuffer(file.read(offset + low, high - low, tensor=tensor), np.uint8)
    values = unpacked(raw, bits)[first - low * 8 // bits :][: last - first]
    rows = values.view(dtype).reshape((cuts[0][1] - cuts[0][0], *shape[1:]) if shape else ())
    inner = (slice(None, None, cuts[0][2]), *_strided.as_slices(cuts[1:])) if cuts else ()
    return np.array(rows[inner], order="C")
