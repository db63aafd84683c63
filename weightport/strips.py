"""Copies between arrays whose axes run in another order: transposes, in blocks that stay in the cache.

Promise: ``out[...] = part``, bit for bit, whatever the strides. A block is read in the order of the source, in runs of
some hundred bytes, into memory that the second-level cache holds, and written from there in the order of the result:
numpy's own order touches a line of the cache once for each element, and waits each time. Limit: below 64 KB numpy
copies alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import ceil, prod

import numpy as np

from weightport.tensors import Array

# Measured on float32 of 24 MB, for a GB: 0.3 to 0.4 s so, more in whole strips; 0.1 s where all of it is in
# the second-level cache, a plain copy 0.1 s. Blocks of 128 to 512 KB differ by a tenth; runs of less than a kilobyte of
# the source are slower.
_FROM, _BLOCK, _READ, _WRITTEN = 64 << 10, 256 << 10, 1024, 256
# Elements that numpy copies in one go within a block: what it reads for them, a line of the cache each, stays in the
# first-level cache. With half as many, what is written are runs of half the length, and a GB of float32 takes 0.7 s
# instead of 0.4. Fewer, where their distance is such that they push one another out of the cache.
_STRIP, _NARROW_STRIP = 256, 64
# Rows of a block are a cache line apart: at a distance of a power of two they would push one another out of the cache.
_APART = 64
# An axis as short as this is walked by the interpreter, so that numpy's inner loop runs along a longer one.
_SHORT = 16


def copy(out: Array, part: Array) -> None:
    """``out[...] = part``, in blocks where the axes run in another order.

    Args:
        out: written to; in any order, of ``part``'s shape and dtype.
        part: any view of other memory.
    """
    few = part.nbytes < _FROM or part.ndim < 2 or part.size < 2
    if few or out.dtype != part.dtype or part.dtype.kind in "OT":  # Python's own texts are no bytes to move
        out[...] = part
        return
    out, part = _merged(out, part)
    strides = part.strides
    if min(strides, default=0) <= 0 or strides.index(min(strides)) == part.ndim - 1:
        out[...] = part
        return
    steps = _steps(part, _READ, _WRITTEN)
    order = sorted(range(part.ndim), key=strides.__getitem__, reverse=True)
    run = steps[order[-1]]
    rows = prod(steps) // run
    if min(rows, run) < _SHORT:  # what lies side by side is read together in any order
        for block in _blocks(part.shape, _steps(part, 16 * _READ, 2 * _WRITTEN)):
            _written(out[block], part[block])
        return
    back = sorted(range(part.ndim), key=order.__getitem__)
    room = np.empty((rows, run * part.itemsize + _APART), np.uint8)[:, : run * part.itemsize].view(part.dtype)
    for block in _blocks(part.shape, steps):
        its = part[block].transpose(order)
        near = room[: prod(its.shape[:-1]), : its.shape[-1]].reshape(its.shape)
        near[...] = its
        _written(out[block], near.transpose(back))


def contiguous(array: Array) -> Array:
    """The array in C order: itself, or a copy."""
    if array.flags.c_contiguous:
        return array
    out: Array = np.empty(array.shape, array.dtype)
    copy(out, array)
    return out


def _merged(out: Array, part: Array) -> tuple[Array, Array]:
    """Both with the axes in the order of ``out``'s memory; axes that follow each other in both are one."""
    axes = sorted((k for k, n in enumerate(out.shape) if n > 1), key=lambda k: out.strides[k], reverse=True)
    first = tuple(slice(None) if n > 1 else 0 for n in out.shape)
    places = [k for k, n in enumerate(out.shape) if n > 1]
    turn = [places.index(k) for k in axes]
    out, part = out[first].transpose(turn), part[first].transpose(turn)
    shape: list[int] = []
    for axis, n in enumerate(out.shape):
        if axis and all(a.strides[axis - 1] == a.strides[axis] * n for a in (out, part)):
            shape[-1] *= n
        else:
            shape.append(n)
    # Views, since the axes that are merged follow each other in memory.
    return (out, part) if len(shape) == out.ndim else (out.reshape(shape), part.reshape(shape))


def _steps(part: Array, read: int, written: int) -> list[int]:
    """How many elements of each axis a block has: long runs on both sides, then of the result as long as fit."""
    item, shape = part.itemsize, part.shape
    steps = [1] * part.ndim
    for axes, least in (
        (sorted(range(part.ndim), key=part.strides.__getitem__), read),
        (range(part.ndim - 1, -1, -1), written),
        (range(part.ndim - 1, -1, -1), 0),
    ):
        run = item
        for axis in axes:
            want = ceil(least / run) if least else steps[axis] * _BLOCK // (item * prod(steps))
            steps[axis] = min(shape[axis], max(steps[axis], want))
            run *= steps[axis]
            if steps[axis] < shape[axis]:
                break
    return steps


def _blocks(shape: Sequence[int], steps: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    return product(*(_slices(n, step) for n, step in zip(shape, steps, strict=True)))


def _slices(n: int, step: int) -> list[slice]:
    return [slice(at, at + step) for at in range(0, n, step)]


def _written(out: Array, part: Array) -> None:
    """Copy within the cache."""
    n = out.shape[-1]
    if n < _SHORT <= out.shape[-2]:
        for k in range(n):
            out[..., k] = part[..., k]
    else:
        for strip in _slices(n, _STRIP if part.strides[-1] % 2048 else _NARROW_STRIP):
            out[..., strip] = part[..., strip]
