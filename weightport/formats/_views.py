"""Strided views of bytes that lie in a file: transposed, cut out, repeated or overlapping, as PyTorch's tensors may be.

Promise: what lies between the elements is read over only where it is small; memory is that of the part asked for and
one block. Limit: strides are not negative, and the view lies inside its storage (checked by the caller).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from weightport.errors import BudgetExceeded
from weightport.formats import _strided
from weightport.formats._proto import Readable
from weightport.tensors import Array

#: Read at once at most, where a part lies scattered.
BLOCK = 4 << 20
#: A view that repeats its elements is made up to this size.
REPEATED = 1 << 30
# Gaps below this are read over: a system call costs more than a page.
_PAGE = 4096
_SPARSE = 8


def is_dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the elements lie in C order without gaps."""
    expected = 1
    for dim, step in zip(reversed(shape), reversed(stride), strict=True):
        if dim != 1 and step != expected:
            return 0 in shape
        expected *= dim
    return True


def read_view(
    file: Readable,
    start: int,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    cuts: _strided.Bounds,
    *,
    tensor: str | None = None,
) -> Array:
    """The part of a view that begins at byte ``start``, as a new array in C order, of the bytes as they are.

    Args:
        stride: in elements.

    Raises:
        BudgetExceeded: elements that are repeated to more than :data:`REPEATED`.
    """
    if is_dense(shape, stride):
        return _strided.read_part(file, start, dtype, shape, cuts, tensor=tensor)
    counts = _strided.counts(cuts)
    start += dtype.itemsize * sum(cut[0] * step for cut, step in zip(cuts, stride, strict=True))
    steps = [dtype.itemsize * cut[2] * step for cut, step in zip(cuts, stride, strict=True)]
    # What moves through the file, slowest first; an axis that repeats itself is read once.
    order = sorted((a for a, n in enumerate(counts) if n != 1 and steps[a]), key=lambda a: -steps[a])
    held = [counts[a] for a in order]
    _bounded(file, dtype, counts, [steps[a] for a in order], held, tensor)
    out = np.empty(counts, dtype)
    if not out.size:
        return out
    repeats = any(n != 1 and not steps[a] for a, n in enumerate(counts))
    if repeats:
        target = np.empty(held, dtype)
    else:
        target = out[(*(slice(None) if a in order else 0 for a in range(out.ndim)), ...)]
        target = target.transpose([sorted(order).index(a) for a in order])
    _fill(file, start, target, [steps[a] for a in order], tensor)
    if repeats:
        back = target.transpose([order.index(a) for a in sorted(order)])
        out[...] = back.reshape([n if a in order else 1 for a, n in enumerate(counts)])
    return out


def _bounded(
    file: Readable, dtype: np.dtype[Any], counts: tuple[int, ...], steps: list[int], held: list[int], name: str | None
) -> None:
    size = dtype.itemsize
    for count in counts:
        size *= count
    span = sum((n - 1) * step for n, step in zip(held, steps, strict=True)) + dtype.itemsize
    if size > REPEATED and size > span:
        what = f"elements that are repeated to {size:,} bytes, at most {REPEATED:,} allowed"
        raise BudgetExceeded(file.path, what, tensor=name)


def _fill(file: Readable, at: int, target: Array, steps: list[int], name: str | None) -> None:
    size = target.dtype.itemsize
    span = sum((n - 1) * step for n, step in zip(target.shape, steps, strict=True)) + size
    close = not steps or span <= _SPARSE * target.nbytes or steps[0] <= _PAGE
    if close and span <= BLOCK:
        block = np.frombuffer(file.read(at, span, tensor=name), target.dtype)
        target[...] = np.lib.stride_tricks.as_strided(block, target.shape, steps)
        return
    inner = span - (target.shape[0] - 1) * steps[0]
    rows = (BLOCK - inner) // steps[0] + 1 if close and inner <= BLOCK else 1
    for row in range(0, target.shape[0], rows):
        part, rest = (target[row : row + rows], steps) if rows > 1 else (target[row, ...], steps[1:])
        _fill(file, at + row * steps[0], part, rest, name)
