"""The operations of a tensor rule, applied to expressions, in the fixed order of the mapping language.

Promise: an operation that does not fit the shapes is an :class:`Unfit` that says which, before anything is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np

from weightport import values
from weightport.initializers import initialize
from weightport.mapping.rules import Initializer, Ops, Pad, Rearrange, Slices, Split, Vocab
from weightport.mapping.vocab import read_vocab
from weightport.ranges import Ranges, whole
from weightport.tensors import TensorSpec, dtype_named
from weightport.values import Expr


class Unfit(Exception):
    """Why an operation cannot be applied; the second argument is a hint."""


#: Operations that lose nothing: the source can be computed from the target.
BIJECTIONS = {"concat", "rearrange", "reshape", "split"}


def classed(ops: Ops) -> str:
    """``bijective`` where every operation is one, else ``exact``."""
    return "bijective" if set(ops.given()) <= BIJECTIONS else "exact"


def leaves(ops: Ops, names: Sequence[str], specs: Mapping[str, TensorSpec]) -> list[Expr]:
    """The source tensors of a rule; quantized ones as the rule says.

    Raises:
        Unfit: one is quantized, and the rule says nothing.
        Error: it cannot be dequantized here.
    """
    found: list[Expr] = []
    for name in names:
        leaf = values.Leaf(name, specs[name])
        how = leaf.spec.quantized
        if how is not None and ops.dequantize is None:
            hint = "say dequantize: true, or false to move the numbers as they are stored"
            raise Unfit(f"{name!r} is {how.title}", hint)
        if how is not None and ops.dequantize:
            how.check()
            found.append(values.Dequantized(leaf, how))
        else:
            found.append(leaf)
    return found


def unasked(names: Sequence[str], specs: Mapping[str, TensorSpec]) -> list[str]:
    """What is to be said of the quantized tensors of a cell: whole cells are moved as they are stored."""
    titles = ((name, specs[name].quantized) for name in names if name in specs)
    return [f"{n!r} is {q.title}: move it by its name, with dequantize: true" for n, q in titles if q is not None]


def rounds(expr: Expr) -> bool:
    """Whether values may come out as others, because the mapping asks for a cast or a scale."""
    if isinstance(expr, values.Cast):
        return not np.can_cast(expr.of.dtype, expr.dtype, "safe") or rounds(expr.of)
    if isinstance(expr, values.Scale):
        return math.frexp(abs(expr.factor))[0] != 0.5
    return isinstance(expr, values.Cut) and rounds(expr.of)


def apply(ops: Ops, sources: Sequence[Expr], targets: Sequence[str]) -> tuple[list[Expr], list[str]]:
    """The target expressions, and what is to be said about them.

    Args:
        sources: one, or those to concatenate.
        targets: their names, as many as the parts to split into; the first seeds an initializer.

    Raises:
        Unfit: an operation does not fit.
        Error: a vocabulary file cannot be read.
    """
    notes: list[str] = []
    expr = sources[0]
    if ops.concat is not None:
        expr = _concat(sources, ops.concat)
    if ops.slice is not None:
        expr = _slice(expr, ops.slice)
    if ops.reshape is not None:
        expr = _reshape(expr, ops.reshape)
    if ops.rearrange is not None:
        expr = rearrange(expr, ops.rearrange)
    if ops.vocab is not None:
        expr = _vocab(expr, ops.vocab, targets[0], notes)
    if ops.pad is not None:
        expr = _pad(expr, ops.pad)
    if ops.scale is not None:
        if not _is_number(expr.dtype):
            raise Unfit(f"scale: {expr.dtype.name} cannot be scaled")
        expr = values.Scale(expr, ops.scale)
    if ops.cast is not None:
        expr = cast(expr, ops.cast)
    if ops.split is not None:
        return _split(expr, ops.split, len(targets)), notes
    return [expr], notes


def _is_number(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "fc" or "float" in dtype.name


def _axis(axis: int, rank: int, what: str) -> int:
    if not -rank <= axis < rank:
        raise Unfit(f"{what}: axis {axis} of a tensor with {rank} axes")
    return axis % rank


def _concat(sources: Sequence[Expr], axis: int) -> Expr:
    first = sources[0]
    axis = _axis(axis, len(first.shape), "concat")
    for other in sources[1:]:
        if other.dtype != first.dtype:
            raise Unfit(f"concat: {first.dtype.name} and {other.dtype.name}", "cast them by rules of their own")
        if len(other.shape) != len(first.shape) or any(
            a != b for d, (a, b) in enumerate(zip(first.shape, other.shape, strict=True)) if d != axis
        ):
            raise Unfit(f"concat along axis {axis}: {list(first.shape)} and {list(other.shape)} differ elsewhere too")
    return values.concat(sources, axis)


def _slice(expr: Expr, slices: Slices) -> Expr:
    if len(slices) > len(expr.shape):
        raise Unfit(f"slice: {len(slices)} slices for a tensor with {len(expr.shape)} axes")
    ranges = list(whole(expr.shape))
    for axis, (part, size) in enumerate(zip(slices, expr.shape, strict=False)):
        for bound in (part.start, part.stop):
            if bound is not None and not -size <= bound <= size:
                raise Unfit(f"slice: {bound} is outside axis {axis} of {list(expr.shape)}")
        ranges[axis] = range(size)[part]
    return values.cut(expr, tuple(ranges))


def _reshape(expr: Expr, shape: Sequence[int]) -> Expr:
    total, known = prod(expr.shape), prod(n for n in shape if n != -1)
    full = tuple(shape)
    if -1 in full:
        if not known or total % known:
            raise Unfit(f"reshape: {list(expr.shape)} cannot become {list(shape)}")
        full = tuple(total // known if n == -1 else n for n in full)
    if prod(full) != total:
        raise Unfit(f"reshape: {list(expr.shape)} has {total:,} elements, {list(shape)} has {prod(full):,}")
    return values.reshape(expr, full)


def rearrange(expr: Expr, recipe: Rearrange) -> Expr:
    """einops' notation: split axes, permute them, join them."""
    if len(recipe.left) != len(expr.shape):
        raise Unfit(f"rearrange: {recipe.text!r} is for {len(recipe.left)} axes, the tensor has {list(expr.shape)}")
    sizes = dict(recipe.sizes)
    for group, size in zip(recipe.left, expr.shape, strict=True):
        known = prod(sizes[a] for a in group if a in sizes)
        unknown = [a for a in group if a not in sizes]
        if unknown:
            if not known or size % known:
                raise Unfit(f"rearrange: {recipe.text!r}: {size} is no multiple of {known} in {list(expr.shape)}")
            sizes[unknown[0]] = size // known
        elif known != size:
            raise Unfit(f"rearrange: {recipe.text!r}: {' '.join(group) or '1'} is {known}, the axis has {size}")
    flat = [a for group in recipe.left for a in group]
    order = [a for group in recipe.right for a in group]
    expr = values.reshape(expr, [sizes[a] for a in flat])
    expr = values.permute(expr, [flat.index(a) for a in order])
    return values.reshape(expr, [prod(sizes[a] for a in group) for group in recipe.right])


def _vocab(expr: Expr, vocab: Vocab, name: str, notes: list[str]) -> Expr:
    axis = _axis(vocab.axis, len(expr.shape), "vocab")
    rows = vocab_rows(vocab, expr.shape[axis], f"axis {axis} of {list(expr.shape)} has", notes)
    return taken(expr, axis, rows, vocab, name)


def vocab_rows(vocab: Vocab, size: int, where: str, notes: list[str]) -> tuple[int, ...]:
    """The old row of each new row, or -1.

    Args:
        size: how many old rows there are.
        where: what has them, for people.
        notes: gets what was found.

    Raises:
        Unfit: the vocabulary is longer, or a word is missing and the mapping does not say what it gets.
        MappingError: a file cannot be read.
    """
    old = read_vocab(vocab.source, vocab.source_columns)
    new = read_vocab(vocab.target, vocab.target_columns)
    highest = max(old.values(), default=-1)
    if highest >= size:
        raise Unfit(f"vocab: {vocab.source_text or vocab.source} has {highest + 1:,} rows, {where} {size:,}")
    rows = [-1] * (max(new.values(), default=-1) + 1)
    for word, row in new.items():
        rows[row] = old.get(word, -1)
    found = sum(row >= 0 for row in rows)
    lacking = len(rows) - found
    if lacking and vocab.missing is None:
        words = [w for w in new if w not in old]
        empty = lacking - len(words)
        some = ", ".join(repr(w) for w in words[:5]) + (", ..." if len(words) > 5 else "")
        what = [f"{len(words):,} of {len(new):,} words are not in the old vocabulary: {some}"] if words else []
        what += [f"{empty:,} of {len(rows):,} rows have no word"] if empty else []
        hint = "say what they get: missing: {truncated_normal: {stddev: 0.02}} or missing: mean"
        raise Unfit(f"vocab: {'; '.join(what)}", hint)
    how = vocab.missing.name if isinstance(vocab.missing, Initializer) else vocab.missing
    notes.append(
        f"vocab: {found:,} of {len(rows):,} rows found by their words" + (f", {lacking:,} get {how}" if lacking else "")
    )
    behind = len(old) - found
    if behind or size > len(old):
        parts = [f"{behind:,} of {len(old):,} old words"] if behind else []
        parts += [f"{size - len(old):,} of {size:,} rows, which have no old word,"] if size > len(old) else []
        notes.append(f"vocab: {' and '.join(parts)} are left behind")
    return tuple(rows)


def taken(expr: Expr, axis: int, rows: tuple[int, ...], vocab: Vocab, name: str) -> Expr:
    """Rows of an axis by number, those of new words as the mapping says.

    Args:
        name: seeds an initializer.

    Raises:
        Unfit: there is no mean of such values.
    """
    missing: Expr | None = None
    if -1 in rows:
        shape = (*expr.shape[:axis], len(rows), *expr.shape[axis + 1 :])
        if isinstance(vocab.missing, Initializer):
            missing = made(vocab.missing, shape, expr.dtype, name)
        elif not _is_number(expr.dtype) or not expr.shape[axis]:
            raise Unfit(f"vocab: there is no mean of {expr.dtype.name} {list(expr.shape)}", "missing: zeros")
        else:
            missing = values.Mean(expr, axis, len(rows))
    return values.Take(expr, axis, rows, missing)


def made(initializer: Initializer, shape: Sequence[int], dtype: np.dtype[Any], name: str, **extra: Any) -> values.Made:
    """An initializer's values as an expression."""
    args = {**extra, **initializer.args}
    full = tuple(shape)
    key = (initializer.name, repr(sorted(args.items())), name)
    # Plain functions of plain values: tasks that make them run in other processes too.
    make = partial(_initial, initializer.name, args, full, dtype, name)
    rows = None if initializer.name == "orthogonal" else make  # which is made whole in any case
    return values.Made(full, dtype, make, key, rows)


def _initial(
    initializer: str, args: Mapping[str, Any], shape: Sequence[int], dtype: np.dtype[Any], name: str, *rows: int
) -> np.ndarray[Any, np.dtype[Any]]:
    return initialize(initializer, args, shape, dtype, name, rows=(rows[0], rows[1]) if rows else None)


def _pad(expr: Expr, pad: Pad) -> Expr:
    if len(pad.widths) != len(expr.shape):
        raise Unfit(f"pad: {len(pad.widths)} pairs of widths for a tensor with {len(expr.shape)} axes")
    if not _holds(expr.dtype, pad.value):
        raise Unfit(f"pad: {expr.dtype.name} cannot hold the value {pad.value:g}")
    shape = tuple(before + n + after for n, (before, after) in zip(expr.shape, pad.widths, strict=True))
    inside = tuple(range(b, b + n) for n, (b, _) in zip(expr.shape, pad.widths, strict=True))
    # The rest of the whole, in slabs: before and after each axis, within what the axes before it left.
    parts: list[tuple[Ranges, Expr]] = [(inside, expr)]
    for axis, core in enumerate(inside):
        for outer in (range(core.start), range(core.stop, shape[axis])):
            place = (*inside[:axis], outer, *whole(shape)[axis + 1 :])
            if outer:
                parts.append((place, values.Fill(tuple(len(r) for r in place), expr.dtype, pad.value)))
    return values.assemble(shape, expr.dtype, parts)


def _holds(dtype: np.dtype[Any], value: float) -> bool:
    if dtype.kind in "OSU":
        return False
    if math.isnan(value):
        return _is_number(dtype)
    with np.errstate(all="ignore"):
        held = complex(np.asarray(value).astype(dtype).astype(np.complex128))
    close = _is_number(dtype) and math.isfinite(value)
    return bool(np.isfinite(held)) if close else held == value


def cast(expr: Expr, name: str) -> Expr:
    """Another dtype; strings are not cast, and complex numbers stay complex."""
    dtype = dtype_named(name)
    if expr.dtype == dtype:
        return expr
    if expr.dtype.kind in "OSU" or dtype.kind in "OSU":
        raise Unfit(f"cast: {expr.dtype.name} cannot become {dtype.name}")
    if expr.dtype.kind == "c" and dtype.kind != "c":
        raise Unfit(f"cast: {expr.dtype.name} cannot become {dtype.name}: its imaginary part would be lost")
    return values.Cast(expr, dtype)


def _split(expr: Expr, split: Split, count: int) -> list[Expr]:
    axis = _axis(split.axis, len(expr.shape), "split")
    size = expr.shape[axis]
    sizes = split.sizes
    if sizes is None:
        if size % count:
            raise Unfit(f"split: axis {axis} of {list(expr.shape)} cannot be cut into {count} equal parts")
        sizes = (size // count,) * count
    if sum(sizes) != size:
        raise Unfit(f"split: the sizes add up to {sum(sizes)}, axis {axis} of {list(expr.shape)} has {size}")
    parts, start = [], 0
    for extent in sizes:
        ranges = list(whole(expr.shape))
        ranges[axis] = range(start, start + extent)
        start += extent
        parts.append(values.cut(expr, tuple(ranges)))
    return parts
