"""Parts of tensors as one ``range`` per axis.

Promise: exact for any positive steps. Limit: no tensor is read here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from weightport.tensors import Array, Index
from weightport.tensors import Ranges as Ranges


def whole(shape: Sequence[int]) -> Ranges:
    """The ranges of everything."""
    return tuple(range(n) for n in shape)


def ranges_of(index: Index, shape: Sequence[int]) -> Ranges:
    """An index (leading axes only, or None) as one range per axis."""
    slices = index or ()
    return tuple(range(n)[s] for s, n in zip(slices, shape, strict=False)) + whole(shape[len(slices) :])


def slices_of(ranges: Ranges) -> tuple[slice, ...]:
    """Ranges as the slices that a :class:`~weightport.tensors.Source` takes."""
    return tuple(slice(r.start, r.stop, r.step) for r in ranges)


def cut_out(array: Array, ranges: Ranges) -> Array:
    """The part of an array; of a scalar itself, which numpy would turn into something that is no array."""
    return array[slices_of(ranges)] if ranges else array


def picked(outer: range, inner: range) -> range:
    """The members of ``outer`` at the places ``inner``."""
    return outer[inner.start : inner.stop : inner.step]


def extent(ranges: Sequence[range]) -> tuple[int, ...]:
    """The shape of what the ranges cut out."""
    return tuple(len(r) for r in ranges)


def intersect(a: range, b: range) -> range:
    """The numbers that both hold (positive steps), as a range."""
    if a.step == 1 == b.step:
        start = a.start if a.start > b.start else b.start
        return range(start, max(start, a.stop if a.stop < b.stop else b.stop))
    gap = math.gcd(a.step, b.step)
    if not a or not b or (b.start - a.start) % gap:
        return range(0)
    step = a.step // gap * b.step
    # a.start + k * a.step = b.start (mod b.step): k by the inverse of a.step / gap.
    modulus = b.step // gap
    k = (b.start - a.start) // gap * pow(a.step // gap, -1, modulus) % modulus if modulus > 1 else 0
    start = a.start + k * a.step
    low = max(a.start, b.start)
    if start < low:
        start += -(-(low - start) // step) * step
    stop = min(a[-1], b[-1]) + 1
    return range(start, max(start, stop), step)


def position(part: range, of: range) -> range:
    """Where the members of ``part`` stand in ``of``."""
    if part.step == 1 == of.step:
        return range(part.start - of.start, part.stop - of.start)
    step = part.step // of.step if len(part) > 1 else 1
    first = (part.start - of.start) // of.step
    return range(first, first + (len(part) - 1) * max(step, 1) + 1, max(step, 1))
