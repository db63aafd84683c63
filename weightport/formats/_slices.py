"""Tensors that a checkpoint stores in slices: the keys of slices, and the whole (or a part) put together from them.

Promise: slices must tile the tensor exactly - no gap, no overlap, nothing outside - or it is a :class:`FormatError`
before anything is allocated; any arrangement of boxes will do. Limit: 20,000 slices of one tensor, 4,000 where it is
cut along more axes than one.

Sources: tensorflow/core/util/saved_tensor_slice_util.cc (``EncodeTensorNameSlice``), tensorflow/core/lib/strings/
ordered_code.cc, tensorflow/core/framework/tensor_slice.{proto,cc}.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from weightport.errors import BudgetExceeded, FormatError
from weightport.formats import _strided
from weightport.formats._proto import BYTES, VARINT, fields, signed
from weightport.tensors import Array

#: ``(start, length)`` per axis; the length -1 is the whole axis, as TensorFlow writes it.
Slice = tuple[tuple[int, int], ...]

_MAX_SLICES = 20_000
# Each is compared with each there.
_MAX_CROSSING = 4_000
_ESCAPED = re.compile(rb"\0\xff|\xff\0")
_OF_SLICE = re.compile(rb"\0((?:[^\0\xff]|\0\xff|\xff\0)*)\0\x01")
# The bits that an ordered code of n bytes starts with, which tell its length.
_HEADER = (0, 0x80, 0xC000, 0xE000, 0xF000, 0xF800, 0xFC00, 0xFE00, 0xFF00, 0xFF80, 0xFFC0)


def slice_of(data: bytes, path: object) -> Slice:
    """A TensorSliceProto: an extent without a length is the whole axis."""
    result = []
    for number, wire, extent in fields(data, path):
        if number == 1 and wire == BYTES:
            assert isinstance(extent, bytes)
            start, length = 0, -1
            for field, kind, value in fields(extent, path):
                if kind == VARINT and field in (1, 2):
                    assert isinstance(value, int)
                    if field == 1:
                        start = signed(value)
                    else:
                        length = signed(value)
            result.append((start, length))
    return tuple(result)


def slice_key(name: bytes, box: Slice) -> bytes:
    """The key that a slice's data stands under."""
    escaped = name
    if b"\0" in name or b"\xff" in name:
        escaped = b"".join({0: b"\0\xff", 0xFF: b"\xff\0"}.get(c, bytes([c])) for c in name)
    out = b"\0" + escaped + b"\0\1" + _increasing(len(box))
    return out + b"".join(_signed(start) + _signed(length) for start, length in box)


def sliced(key: bytes) -> bytes:
    """The name of the tensor that a slice's key belongs to; another key as it is."""
    found = _OF_SLICE.match(key)
    return _ESCAPED.sub(lambda pair: pair[0][:1], found[1]) if found else key


def _increasing(value: int) -> bytes:
    size = (value.bit_length() + 7) // 8
    return bytes([size]) + value.to_bytes(size, "big")


def _signed(value: int) -> bytes:
    bits = (~value if value < 0 else value).bit_length()
    size = bits // 7 + 1  # one bit more, for the sign; each byte carries seven
    if size == 1:
        return bytes([0x80 ^ (value & 0xFF)])
    raw = bytearray((value & ((1 << 8 * size) - 1)).to_bytes(size, "big"))
    raw[0] ^= _HEADER[size] >> 8
    raw[1] ^= _HEADER[size] & 0xFF
    return bytes(raw)


def boxes(
    slices: Sequence[Slice], shape: tuple[int, ...], path: object, tensor: str
) -> list[tuple[tuple[int, int], ...]]:
    """``(start, stop)`` per axis of every slice, after checking that together they are the whole tensor exactly."""
    found = []
    for cut in slices:
        if len(cut) != len(shape):
            raise FormatError(path, f"a slice of {len(cut)} axes of the shape {list(shape)}", tensor=tensor)
        box = tuple(
            (start, dim if length == -1 else start + length) for (start, length), dim in zip(cut, shape, strict=True)
        )
        for (start, length), (_, stop), dim in zip(cut, box, shape, strict=True):
            if start < 0 or length < -1 or stop > dim or (length == -1 and start):
                raise FormatError(path, f"a slice reaches outside the shape {list(shape)}", tensor=tensor)
        found.append(box)
    if len(found) > _MAX_SLICES:
        raise BudgetExceeded(path, f"{len(found):,} slices, at most {_MAX_SLICES:,} allowed", tensor=tensor)
    held = sum(prod(stop - start for start, stop in box) for box in found)
    if held != prod(shape):
        what = "overlap" if held > prod(shape) else "leave gaps"
        raise FormatError(
            path, f"its {len(found)} slices do not tile the shape {list(shape)}: they {what}", tensor=tensor
        )
    _refuse_overlap(found, shape, path, tensor)
    return found


def _refuse_overlap(
    found: list[tuple[tuple[int, int], ...]], shape: tuple[int, ...], path: object, tensor: str
) -> None:
    solid = [box for box in found if all(stop > start for start, stop in box)]
    if len(solid) < 2:
        return
    corners = np.array(solid, np.int64)  # slice, axis, (start, stop)
    corners = corners[:, (corners != corners[0]).any(axis=(0, 2))]  # along the others, all of them meet
    if corners.shape[1] == 1:  # as every partitioned variable of TensorFlow
        corners = corners[np.argsort(corners[:, 0, 0])]
        if (corners[:-1, 0, 1] > corners[1:, 0, 0]).any():
            raise FormatError(path, f"its slices overlap in the shape {list(shape)}", tensor=tensor)
        return
    if len(solid) > _MAX_CROSSING:
        what = f"{len(solid):,} slices along several axes, at most {_MAX_CROSSING:,} allowed"
        raise BudgetExceeded(path, what, tensor=tensor)
    starts, stops = corners[:, :, 0], corners[:, :, 1]
    for at in range(len(solid) - 1):
        if ((starts[at + 1 :] < stops[at]) & (starts[at] < stops[at + 1 :])).all(axis=1).any():
            raise FormatError(path, f"its slices overlap in the shape {list(shape)}", tensor=tensor)


def stitch(
    dtype: np.dtype[Any],
    cuts: _strided.Bounds,
    found: Sequence[tuple[tuple[int, int], ...]],
    read: Callable[[int, tuple[slice, ...]], Array],
) -> Array:
    """The part that ``cuts`` selects, from boxes that tile the tensor.

    ``read(number, index)`` reads a part of one box, in the box's own coordinates. Boxes outside the part are not read.
    """
    out = np.empty(_strided.counts(cuts), dtype)
    for number, box in enumerate(found):
        inner, outer = [], []
        for (start, stop, step), (low, high) in zip(cuts, box, strict=True):
            first = start if start >= low else start + -(-(low - start) // step) * step
            last = min(stop, high)
            if first >= last:
                break
            count = -(-(last - first) // step)
            inner.append(slice(first - low, last - low, step))
            outer.append(slice((first - start) // step, (first - start) // step + count))
        else:
            out[tuple(outer)] = read(number, tuple(inner))
    return out
