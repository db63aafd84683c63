"""A mapping that runs backwards: the operations of a tensor rule undone, and what there is nothing to undo of.

Promise: exact, or :class:`~weightport.plan.ops.Unfit` with the reason. Limit: an operation that forgets the shape that
it was given (a split, a reshape, axes joined) needs the TARGET, which is the file that the weights once came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from weightport import values
from weightport.errors import LayoutError
from weightport.mapping.rules import CellRule, InitRule, Ops, Rearrange, Rule, Split, TensorRule
from weightport.mapping.rules import Mapping as Rules
from weightport.plan import cells
from weightport.plan import ops as forward
from weightport.plan.ops import Unfit
from weightport.values import Expr

Shape = tuple[int, ...] | None

_NO_TARGET = "give the file that the weights came from as TARGET"


def made_up(mapping: Rules, side: cells.Side) -> frozenset[str]:
    """Source tensors that were initialized, and so came from nowhere."""
    found: set[str] = set()
    if any(isinstance(rule, InitRule) and rule.backwards for rule in mapping.rules):
        moved: set[str] = set()  # by an earlier rule, which wins
        for rule in mapping.rules:
            names = _named(rule, mapping, side) - moved - found
            (found if isinstance(rule, InitRule) else moved).update(names)
    return frozenset(found)


def _named(rule: Rule, mapping: Rules, side: cells.Side) -> set[str]:
    """The source tensors that a rule speaks of."""
    ref = rule.source if isinstance(rule, CellRule) else rule.target_cell if isinstance(rule, InitRule) else None
    if ref is not None:
        try:
            return set(cells.found_cell(ref, side, mapping.layouts).names)
        except LayoutError:
            return set()
    patterns = rule.targets if isinstance(rule, InitRule) else rule.froms if isinstance(rule, TensorRule) else ()
    joined = [p.joined(side.scope) for p in patterns]
    return {n for n in side.specs if any(p.match(n) is not None for p in joined)}


def undo(ops: Ops, sources: Sequence[Expr], wanted: Sequence[Shape]) -> list[Expr]:
    """The original tensors, out of what the rule made of them.

    Args:
        sources: what the rule's ``to`` names.
        wanted: the shapes of what its ``from`` names; None where there is no TARGET to know them from.

    Raises:
        Unfit: an operation cannot be undone, or not without a TARGET.
    """
    expr = sources[0]
    if ops.split is not None:
        expr = forward.apply(Ops(concat=ops.split.axis), sources, [""])[0][0]
    if ops.scale is not None:
        expr = values.Scale(expr, 1 / ops.scale)
    if ops.pad is not None:
        if len(ops.pad.widths) != len(expr.shape):
            raise Unfit(f"pad: {len(ops.pad.widths)} pairs of widths for a tensor with {len(expr.shape)} axes")
        inside = [range(before, n - after) for n, (before, after) in zip(expr.shape, ops.pad.widths, strict=True)]
        expr = values.cut(expr, tuple(inside))
    shape = _before(ops, wanted)
    if ops.rearrange is not None:
        expr = _rearranged(expr, ops.rearrange, shape if ops.reshape is None else ops.reshape)
    if ops.reshape is not None:
        if shape is None:
            raise Unfit("reshape: the shape to go back to is not known", _NO_TARGET)
        if prod(shape) != prod(expr.shape):
            raise Unfit(f"reshape: {list(expr.shape)} cannot go back to {list(shape)}")
        expr = values.reshape(expr, shape)
    if ops.concat is None:
        return [expr]
    axis = ops.concat % len(expr.shape) if expr.shape else 0
    sizes = tuple(s[axis] for s in wanted if s is not None and len(s) == len(expr.shape))
    split = Split(axis, sizes if len(sizes) == len(wanted) else None)
    return forward.apply(Ops(split=split), [expr], [""] * len(wanted))[0]


def _before(ops: Ops, wanted: Sequence[Shape]) -> Shape:
    """The shape before ``reshape`` and ``rearrange`` were applied: of the sources, joined."""
    known = [s for s in wanted if s is not None]
    if len(known) < len(wanted):
        return None
    shape = list(known[0])
    if ops.concat is not None and shape:
        axis = ops.concat % len(shape)
        if any(len(s) != len(shape) for s in known):
            raise Unfit("concat: the tensors to go back to have different numbers of axes")
        shape[axis] = sum(s[axis] for s in known)
    return tuple(shape)


def _rearranged(expr: Expr, recipe: Rearrange, shape: Shape) -> Expr:
    """The recipe from right to left; sizes that it does not state are those of the shape to go back to."""
    sizes = dict(recipe.sizes)
    if shape is not None and len(shape) == len(recipe.left) and -1 not in shape:
        for group, size in zip(recipe.left, shape, strict=True):
            unknown = [a for a in group if a not in sizes]
            known = prod(sizes[a] for a in group if a in sizes)
            if len(unknown) == 1 and known and size % known == 0:
                sizes[unknown[0]] = size // known
    for group in recipe.right:
        if sum(axis not in sizes for axis in group) > 1:
            raise Unfit(
                f"rearrange: {recipe.text!r} backwards: the sizes of {' '.join(group)} are not known", _NO_TARGET
            )
    back = replace(recipe, text=f"{recipe.text} (backwards)", left=recipe.right, right=recipe.left, sizes=sizes)
    return forward.rearrange(expr, back)
