"""Optimizer slots that go where their variables go, for rules that ask for it.

An optimizer's value for a variable (a momentum, a second moment) has an element for each of the variable's, so it moves
as the variable does. Promise: what is not a plain move of elements - a sum, a scale, rows that are new - has no slot of
its own and is refused, since whatever value one made up would train on as if it had been learned. A constant that is
added to a variable changes nothing about its slots.
Limit: slots that stand below their variable's name (TensorFlow's ``NAME/Adam``, Keras' and TF2's object-based
checkpoints); an optimizer's own values (``beta1_power``, ``iterations``) move by rules of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from weightport import values
from weightport.errors import Problem, closest
from weightport.mapping.rules import CellRule, TensorRule
from weightport.plan.model import MOVED, Outcome
from weightport.plan.ops import Unfit
from weightport.tensors import TensorSpec
from weightport.values import Expr

if TYPE_CHECKING:
    from weightport.plan.build import Builder


def carry(builder: Builder, rule: CellRule | TensorRule, outcome: Outcome) -> Outcome:
    """Claim the slots of everything that a rule has moved; the rule's outcome with them."""
    if outcome.disposition != MOVED or len(builder.problems) > builder.start:
        return outcome
    specs = {n: s for n, s in builder.specs.items() if n not in builder.ignored}
    known = endings(specs)
    found: dict[str, Expr] = {}
    for name in outcome.targets:
        item = builder.items.get(name)
        if item is None or item.rule != rule.name:
            continue
        try:
            found.update((name + ending, expr) for ending, expr in carried(item.expr, specs, known))
        except Unfit as reason:
            what, *hint = reason.args
            builder.problems.append(Problem(f"{rule.where}: {name!r}", what, hint[0] if hint else ""))
            builder.refused.update(leaf + ending for leaf in item.expr.leaves() for ending in known.get(leaf, ()))
    if not found and len(builder.problems) == builder.start and not rule.optional:
        what = "slots: none of its tensors has an optimizer slot"
        builder.problems.append(Problem(rule.where, what, "slots: false, or optional: true"))
    for name, expr in found.items():
        builder.claim(rule, name, expr)
    names = sorted({leaf for expr in found.values() for leaf in expr.leaves()})
    builder.moved.update(names)
    note = f"slots: {len(found):,} carried along"
    return replace(
        outcome,
        sources=tuple(dict.fromkeys((*outcome.sources, *names))),
        targets=tuple(dict.fromkeys((*outcome.targets, *found))),
        notes=(*outcome.notes, note) if found else outcome.notes,
    )


def endings(specs: Mapping[str, TensorSpec]) -> dict[str, list[str]]:
    """Variable -> how the names of its slots go on after its own, such as ``/Adam``."""
    found: dict[str, list[str]] = {}
    for name, spec in specs.items():
        if spec.role != "slot":
            continue
        at = len(name)
        while (at := name.rfind("/", 0, at)) > 0:
            if name[:at] in specs and specs[name[:at]].role == "weight":
                found.setdefault(name[:at], []).append(name[at:])
                break
    return found


def carried(expr: Expr, specs: Mapping[str, TensorSpec], known: Mapping[str, list[str]]) -> Iterator[tuple[str, Expr]]:
    """How the names of a target tensor's slots go on, and what each is computed from.

    Args:
        expr: the target tensor's own value.
        specs: the source's tensors.
        known: what :func:`endings` found in them.

    Raises:
        Unfit: a slot does not move as its variable does, or only a part of it is there.
    """
    leaves = sorted(expr.leaves())
    for ending in dict.fromkeys(e for leaf in leaves for e in known.get(leaf, ())):
        for leaf in leaves:
            if ending not in known.get(leaf, ()):
                hint = closest(leaf + ending, [leaf + e for e in known.get(leaf, ())])
                raise Unfit(f"slots: {leaf!r} has no slot {ending.removeprefix('/')!r}, the others have", hint)
        yield ending, _moved(expr, ending, specs)


def _moved(expr: Expr, ending: str, specs: Mapping[str, TensorSpec]) -> Expr:
    """The expression with slots in the place of their variables."""
    if isinstance(expr, values.Leaf):
        name = expr.name + ending
        spec = specs[name]
        if spec.shape != expr.shape:
            raise Unfit(f"slots: {name!r} has the shape {list(spec.shape)}, its variable {list(expr.shape)}")
        return values.Leaf(name, spec)
    if isinstance(expr, values.Cut):
        return values.cut(_moved(expr.of, ending, specs), expr.ranges)
    if isinstance(expr, values.Permute):
        return values.permute(_moved(expr.of, ending, specs), expr.axes)
    if isinstance(expr, values.Reshape):
        return values.reshape(_moved(expr.of, ending, specs), expr.shape)
    if isinstance(expr, values.Cast):
        return values.Cast(_moved(expr.of, ending, specs), expr.dtype)
    if isinstance(expr, values.Sum) and len(expr.of) == 1:
        return _moved(expr.of[0], ending, specs)
    if isinstance(expr, values.Take) and expr.missing is None:
        return values.Take(_moved(expr.of, ending, specs), expr.axis, expr.rows)
    if isinstance(expr, values.Assemble):
        parts = [(place, _moved(part, ending, specs)) for place, part in expr.parts]
        dtypes = {part.dtype for _, part in parts}
        if len(dtypes) > 1:
            raise Unfit(
                f"slots: {ending.removeprefix('/')!r} would be made of {' and '.join(sorted(map(str, dtypes)))}"
            )
        return values.assemble(expr.shape, dtypes.pop(), parts)
    why = _REASONS.get(type(expr).__name__, "it is not a plain move of elements")
    raise Unfit(f"slots: {ending.removeprefix('/')!r} cannot be carried along: {why}", "leave slots out of this rule")


_REASONS = {
    "Sum": "several variables are summed into one, whose slot is not the sum of theirs",
    "Scale": "the variable is scaled, and each optimizer scales its slots in its own way",
    "Fill": "a part of the variable is new, and has no slot yet",
    "Take": "a part of the variable is new, and has no slot yet",
}
