"""Parts of a dense, row-major tensor that lies in a file: the byte ranges that an index needs, and no others.

Promise: memory is bounded by the part asked for plus one chunk; what lies outside the covering rows is not read, except
where the gaps are smaller than a page. Limit: uncompressed, little- or big-endian, one contiguous byte range.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from weightport.errors import Error, FormatError
from weightport.formats._io import CHUNK
from weightport.formats._proto import Readable
from weightport.tensors import Array, Budget, Index, checked_nbytes

#: ``(start, stop, step)`` of every axis, normalised: 0 <= start <= stop <= dim, step >= 1.
Bounds = tuple[tuple[int, int, int], ...]

# Gaps below this are read over: a system call costs more than a page.
_PAGE = 4096
_MAX_RANK = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32


def checked(
    dtype: np.dtype[Any], shape: tuple[int, ...], budget: Budget, path: object, tensor: str | None = None
) -> int:
    """:func:`~weightport.tensors.checked_nbytes`, and that numpy can hold such an array at all: an empty one may claim
    any other dimensions, and the number of axes is limited."""
    nbytes = checked_nbytes(dtype, shape, budget, path, tensor)
    if len(shape) > _MAX_RANK or prod(d for d in shape if d) * dtype.itemsize >= 1 << 62:
        raise FormatError(path, f"no array can have the shape {list(shape)}", tensor=tensor)
    return nbytes


def bounds(index: Index, shape: tuple[int, ...], where: str) -> Bounds:
    """The index, normalised for a shape: one entry per axis, also for the axes it does not name.

    Raises:
        Error: no slices, more of them than axes, or a step that is not positive.
    """
    given = () if index is None else index
    if not isinstance(given, tuple | list) or not all(isinstance(cut, slice) for cut in given):
        raise Error(f"{where}: an index is a tuple of slices, such as (slice(0, 10),), not {given!r}")
    if len(given) > len(shape):
        raise Error(f"{where}: an index of {len(given)} axes for a tensor of {len(shape)}")
    result = []
    for axis, dim in enumerate(shape):
        cut = given[axis] if axis < len(given) else slice(None)
        start, stop, step = cut.indices(dim)
        if step < 1:
            raise Error(f"{where}: an index may not have the step {step}")
        result.append((start, max(start, stop), step))
    return tuple(result)


def counts(cuts: Bounds) -> tuple[int, ...]:
    """The shape of the part that those bounds cut out."""
    return tuple(-(-(stop - start) // step) for start, stop, step in cuts)


def is_whole(cuts: Bounds, shape: tuple[int, ...]) -> bool:
    """Whether the bounds select everything, in order."""
    return all(cut == (0, dim, 1) for cut, dim in zip(cuts, shape, strict=True))


def as_slices(cuts: Bounds) -> tuple[slice, ...]:
    """The bounds as numpy takes them."""
    return tuple(slice(*cut) for cut in cuts)


def byte_view(array: Array) -> memoryview:
    """The bytes of a C-contiguous array of any dtype, ml_dtypes' included, writable if the array is."""
    return array.reshape(-1).view(np.uint8).data


def swapped(array: Array) -> Array:
    """The array with the bytes of every element reversed, in place (real and imaginary part each for themselves)."""
    size = array.dtype.itemsize // (2 if array.dtype.kind == "c" else 1)
    if size > 1:
        array.reshape(-1).view(f"u{size}").byteswap(inplace=True)
    return array


def read_part(
    file: Readable,
    offset: int,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    cuts: Bounds,
    *,
    tensor: str | None = None,
    big_endian: bool = False,
) -> Array:
    """The part of a tensor that starts at ``offset`` in a file, as a new array in native byte order."""
    file.check(offset, prod(shape) * dtype.itemsize, tensor=tensor)  # before anything is allocated
    out = np.empty(counts(cuts), dtype)
    if out.size:
        strides = [dtype.itemsize]
        for dim in reversed(shape[1:]):
            strides.append(strides[-1] * dim)
        _fill(file, offset, out, shape, cuts, strides[::-1], tensor)
        if big_endian:
            swapped(out)
    return out


def _fill(
    file: Readable,
    offset: int,
    out: Array,
    shape: tuple[int, ...],
    cuts: Bounds,
    strides: list[int],
    tensor: str | None,
) -> None:
    if not shape or (cuts[0][2] == 1 and is_whole(cuts[1:], shape[1:])):
        # One run of bytes, straight into place.
        if shape:
            offset += cuts[0][0] * strides[0]
        file.read_into(offset, byte_view(out), tensor=tensor)
        return
    start, stop, step = cuts[0]
    row = strides[0]
    inner = cuts[1:]
    # The bytes of one row from the first to the last element that is wanted.
    first = sum(cut[0] * stride for cut, stride in zip(inner, strides[1:], strict=True))
    last = sum(
        (cut[0] + (count - 1) * cut[2]) * stride
        for cut, count, stride in zip(inner, counts(inner), strides[1:], strict=True)
    )
    gap = row * step - (last - first + out.itemsize)
    if gap >= _PAGE or row > CHUNK:
        for position, source in enumerate(range(start, stop, step)):
            _fill(
                file, offset + source * row, out[position : position + 1][0, ...], shape[1:], inner, strides[1:], tensor
            )
        return
    rows = max(step, CHUNK // row // step * step)
    pick = (slice(None, None, step), *as_slices(inner))
    done = 0
    for at in range(start, stop, rows):
        size = min(rows, stop - at)
        block = np.frombuffer(file.read(offset + at * row, size * row, tensor=tensor), out.dtype)
        part = block.reshape((size, *shape[1:]))[pick]
        out[done : done + len(part)] = part
        done += len(part)
