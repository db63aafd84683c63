"""Building expressions, without the steps that change nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from weightport.ranges import Ranges, picked, whole
from weightport.values.moves import Assemble, Cut, Expr, Leaf, Permute, Reshape
from weightport.values.numbers import Scale, Sum


def cut(of: Expr, ranges: Ranges) -> Expr:
    """A part of an expression."""
    if ranges == whole(of.shape):
        return of
    if isinstance(of, Cut):
        return Cut(of.of, tuple(picked(o, i) for o, i in zip(of.ranges, ranges, strict=True)))
    return Cut(of, ranges)


def permute(of: Expr, axes: Sequence[int]) -> Expr:
    """Axes in another order."""
    if list(axes) == list(range(len(axes))):
        return of
    if isinstance(of, Permute):
        return permute(of.of, [of.axes[a] for a in axes])
    return Permute(of, tuple(axes))


def reshape(of: Expr, shape: Sequence[int]) -> Expr:
    """Another shape of as many elements."""
    if tuple(shape) == of.shape:
        return of
    if isinstance(of, Reshape):
        return reshape(of.of, shape)
    return Reshape(of, tuple(shape))


def replaced(of: Expr, leaf: Callable[[Leaf], Expr]) -> Expr:
    """The same expression over other tensors: of each source tensor, what ``leaf`` makes of it."""
    if isinstance(of, Leaf):
        return leaf(of)
    if isinstance(of, Assemble):
        return replace(of, parts=tuple((place, replaced(part, leaf)) for place, part in of.parts))
    inner: Any = getattr(of, "of", None)
    if inner is None:
        return of
    made: Any = of
    changed = {"of": tuple(replaced(o, leaf) for o in inner) if isinstance(inner, tuple) else replaced(inner, leaf)}
    if getattr(of, "missing", None) is not None:
        changed["missing"] = replaced(made.missing, leaf)
    found: Expr = replace(made, **changed)
    return found


def negate(of: Expr) -> Expr:
    """The negative."""
    return of.of if isinstance(of, Scale) and of.factor == -1 else Scale(of, -1)


def add(terms: Sequence[Expr], plus: float = 0.0) -> Expr:
    """A sum; one term and nothing added is that term."""
    if len(terms) == 1 and not plus:
        return terms[0]
    return Sum(tuple(terms), float(plus))


def assemble(shape: Sequence[int], dtype: np.dtype[Any], parts: Sequence[tuple[Ranges, Expr]]) -> Expr:
    """Parts that tile the whole; parts of one tensor that stand where they stood before are that tensor."""
    parts = [(place, part) for place, part in parts if all(place)]
    if len(parts) == 1 and parts[0][1].shape == tuple(shape):
        return parts[0][1]
    bases = []
    for place, part in parts:
        base, ranges = (part.of, part.ranges) if isinstance(part, Cut) else (part, whole(part.shape))
        if ranges != place or base.shape != tuple(shape):
            break
        bases.append(base)
    else:
        if bases and all(base == bases[0] for base in bases):
            return bases[0]
    return Assemble(tuple(shape), dtype, tuple(parts))


def concat(parts: Sequence[Expr], axis: int) -> Expr:
    """Side by side on an axis."""
    placed, start = [], 0
    for part in parts:
        place = list(whole(part.shape))
        place[axis] = range(start, start + part.shape[axis])
        start += part.shape[axis]
        placed.append((tuple(place), part))
    shape = list(parts[0].shape)
    shape[axis] = start
    return assemble(shape, parts[0].dtype, placed)
