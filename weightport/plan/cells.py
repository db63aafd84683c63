"""Whole RNN cells: a rule's two references to the units behind them, unit by unit into the target's tensors.

Promise: sizes, parameters and behaviours that do not agree are refused with the reason, all of them at once; what
agrees only for some values of the source comes with conditions. Limit: no value is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from weightport import values
from weightport.errors import LayoutError, MappingError, Problem
from weightport.layouts import Layout, find_layout
from weightport.layouts.behaviour import ASSUMED, Behaviour, behaviour, conflicts
from weightport.layouts.conditions import Condition
from weightport.layouts.convert import BIJECTIVE, CONDITIONAL, EXACT, Conversion, Inexact
from weightport.layouts.stacks import Cell
from weightport.layouts.units import BACKWARD, FORWARD, Unit, packed_shape
from weightport.mapping.rules import CellRef, CellRule
from weightport.plan import told
from weightport.plan.imagined import alternatives, imagined, scoped
from weightport.plan.ops import Unfit, unasked
from weightport.plan.words import Reworded, Words
from weightport.ranges import Ranges, extent
from weightport.scopes import resolve_cell
from weightport.tensors import TensorSpec
from weightport.values import Expr

Facts = Callable[[Sequence[str]], Mapping[str, Any]]
Hints = dict[tuple[Any, ...], str]


#: Layouts that a refusal names.
_NAMED = 4


@dataclass(frozen=True, slots=True)
class Pair:
    """A unit of the source, the unit of the target that it moves to, and what the two do beside their weights.

    Attributes:
        words: of a unit whose inputs get new ones.
    """

    source: Unit
    target: Unit
    mine: Behaviour
    its: Behaviour
    words: Words | None = None

    @property
    def where(self) -> str:
        """The two scopes, for people."""
        return f"{self.source.scope or '.'} -> {self.target.scope or '.'}"


@dataclass(slots=True)
class Moved:
    """What a cell rule comes to.

    Attributes:
        pairs: every unit that moves.
        parts: target tensor -> what its parts are computed from, and where they stand.
        shapes: target tensor -> its shape.
        sources, targets: every tensor of the units on either side, also where the rule is refused.
        assumed: those of the notes that no file and no mapping says.
        conditions: what must hold of the source's values.
        hints: what can be done instead, of kinds of pairs that were looked at.
    """

    pairs: list[Pair] = field(default_factory=list)
    parts: dict[str, list[tuple[Ranges, Expr]]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    classed: str = BIJECTIVE
    exact: bool = True
    notes: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    conditions: list[Condition] = field(default_factory=list)
    hints: Hints = field(default_factory=dict)

    def exprs(self) -> dict[str, Expr]:
        """Target tensor -> what it is computed from."""
        return {n: values.assemble(self.shapes[n], parts[0][1].dtype, parts) for n, parts in self.parts.items()}

    def say(self, notes: Sequence[str]) -> None:
        """Add what has not been said yet."""
        self.notes.extend(n for n in notes if n not in self.notes)


@dataclass(frozen=True, slots=True)
class Side:
    """One side of the transfer: its tensors and what is recorded about its cells.

    Attributes:
        scope: stands before the scopes of the mapping.
        root: a scope of the model's own, before all names, that the mapping may leave out.
    """

    specs: Mapping[str, TensorSpec]
    facts: Facts
    scope: str = ""
    root: str = ""

    def full(self, scope: str) -> str:
        """A scope of the mapping in full."""
        named, root = scoped(self.scope, scope), self.root.removesuffix(".")
        below = named == root or named.startswith((f"{root}/", f"{root}."))
        return named if not root or below else scoped(root, named)


def layout_of(ref: CellRef, own: Mapping[str, Layout]) -> Layout:
    """The layout that a reference names, with the gates that it states."""
    layout = find_layout(ref.layout, own)
    return layout.with_gates(ref.gates) if ref.gates is not None else layout


def found_cell(
    ref: CellRef,
    side: Side,
    own: Mapping[str, Layout],
    skip: frozenset[str] = frozenset(),
    like: Cell | None = None,
) -> Cell:
    """The cell that a reference means, with the layers and directions that it picks.

    Args:
        like: the cell on the rule's other side, whose sizes a cell has whose tensors and rule do not tell them.

    Raises:
        LayoutError: there is none, there are several, or it lacks a layer or direction that is named.
    """
    cell = _resolved(side.specs, layout_of(ref, own), side.full(ref.scope), skip, told.sizes_of(ref.sizes, like))
    told.check_sizes(cell, ref.sizes)
    units = list(cell.units)
    if ref.layers is not None:
        lacking = set(ref.layers) - {u.layer for u in units}
        if lacking:
            raise LayoutError(f"no layer {min(lacking)} in {cell.scope!r}, which has {cell.layers}")
        rank = {layer: number for number, layer in enumerate(ref.layers)}
        units = [replace(u, layer=rank[u.layer]) for u in units if u.layer in rank]
    if ref.directions is not None:
        lacking_direction = set(ref.directions) - {u.direction for u in units}
        if lacking_direction:
            raise LayoutError(f"no {min(lacking_direction)} direction in {cell.scope!r}")
        units = [u for u in units if u.direction in ref.directions]
    directions = {u.direction for u in units}
    if directions == {BACKWARD}:  # picked alone, it pairs with whatever stands alone on the other side
        units = [replace(u, direction=FORWARD) for u in units]
    return Cell(cell.scope, cell.layout, tuple(units))


def _resolved(
    specs: Mapping[str, TensorSpec], layout: Layout, scope: str, skip: frozenset[str], sized: told.Sizes | None
) -> Cell:
    """The cell without what is left behind: layers and directions as a whole, which leave the others their numbers; or
    tensors that it can lack.
    """
    try:
        cell = resolve_cell(specs, layout, scope, sizes=sized)
    except LayoutError:
        return resolve_cell(specs, layout, scope, skip=skip, sizes=sized)  # of several, perhaps one
    if skip.isdisjoint(cell.names):
        return cell
    units = tuple(u for u in cell.units if not skip.issuperset(u.names))
    if not units:
        raise LayoutError(f"the {layout.name} cell at or below scope {scope!r} is listed under ignore:")
    if skip.isdisjoint(name for u in units for name in u.names):
        return Cell(cell.scope, cell.layout, units)
    return resolve_cell(specs, layout, scope, skip=skip, sizes=sized)


def title(rule: CellRule) -> str:
    """The two cells of a rule, for people."""
    sides = (f"{ref.layout} {ref.scope or '(root)'}" for ref in (rule.source, rule.target))
    return " -> ".join(sides)


def move(
    rule: CellRule,
    source: Side,
    target: Side | None,
    own: Mapping[str, Layout],
    skip: frozenset[str],
    prefix: str = "",
) -> Moved:
    """Everything that a cell rule moves. Problems are in the result; nothing is raised.

    Args:
        skip: source tensors that are left behind.
        prefix: the target's scope, for a target that does not exist yet.
    """
    moved = Moved()
    cells: dict[int, Cell] = {}
    sides = ((rule.source, source, skip, moved.sources), (rule.target, target, frozenset[str](), moved.targets))
    for number in told.order(*(layout_of(ref, own).packed and ref.sizes is None for ref, *_ in sides)):
        ref, side, skipped, names = sides[number]
        try:
            if side is not None:
                cells[number] = found_cell(ref, side, own, skipped, cells.get(1 - number))
                names.extend(cells[number].names)
                moved.say(told.alike(cells[number]) if ref.sizes else [])
            elif 0 in cells:
                told.check_sizes(cells[0], ref.sizes)
        except LayoutError as error:
            moved.problems.extend(Problem(ref.where, p.what, p.hint) for p in error.problems)
    if moved.problems:
        return moved
    moved.sources, moved.targets = [], []
    cell = cells[0]
    layout = layout_of(rule.target, own)
    if not layout.related(cell.layout):
        what = f"{cell.layout.name} is a cell of another kind than {layout.name}"
        moved.problems.append(Problem(rule.where, what))
        return moved
    words = words_of(rule, cell, moved)
    if moved.problems:
        moved.sources, moved.targets = list(cell.names), list(cells[1].names) if 1 in cells else []
        return moved
    for unit, other in _paired(rule, cell, cells.get(1), moved):
        new = words if unit.layer == 0 else None
        facts = source.facts(unit.names)
        mine = behaviour(unit.layout, unit.form, facts, stated(rule.source))
        if other is None:
            other = imagined(rule, cell, new.renamed(unit) if new is not None else unit, layout, prefix, mine)
        its_facts = target.facts(other.names) if target is not None else {}
        its = behaviour(other.layout, other.form, its_facts, stated(rule.target))
        for one, said, ref in ((unit, facts, rule.source), (other, its_facts, rule.target)):
            moved.problems.extend(told.check_gates(one, said, ref))
            moved.problems.extend(p for p in told.check_buffer(one, said, ref) if p not in moved.problems)
        moved.problems.extend(told.check_windows((unit, other), (facts, its_facts), rule.where))
        moved.pairs.append(Pair(unit, other, mine, its, new))
        convert(moved.pairs[-1], source.specs, rule, moved)
    if target is None and moved.pairs:
        moved.problems.extend(
            told.check_uniform([(pair.source, pair.target) for pair in moved.pairs], rule.target, rule.where)
        )
    for name in [] if moved.problems else moved.parts:
        shape = moved.shapes[name]
        if sum(prod(extent(place)) for place, _ in moved.parts[name]) != prod(shape):
            what = f"only a part of target tensor {name!r} would get values: the source lacks some of its layers"
            moved.problems.append(Problem(rule.where, f"{what} or directions", "nothing is left to chance"))
    return moved


def words_of(rule: CellRule, cell: Cell, moved: Moved) -> Words | None:
    """The words of a rule's cell, with notes and problems in ``moved``."""
    if rule.vocab is None:
        return None
    try:
        return Words.of(rule.vocab, cell, moved.notes)
    except Unfit as reason:
        what, *hint = reason.args
        moved.problems.append(Problem(rule.where, what, hint[0] if hint else ""))
    except MappingError as error:
        moved.problems.extend(error.problems)
    return None


def stated(ref: CellRef) -> dict[str, Any]:
    """What a mapping says of a cell's behaviour."""
    return {key: getattr(ref, key) for key in ("forget_bias", "activation", "recurrent_activation", "reset")}


def _paired(rule: CellRule, cell: Cell, other: Cell | None, moved: Moved) -> list[tuple[Unit, Unit | None]]:
    if other is None:
        return [(unit, None) for unit in cell.units]
    by_place = {(u.layer, u.direction): u for u in other.units}
    pairs: list[tuple[Unit, Unit | None]] = [
        (u, by_place[u.layer, u.direction]) for u in cell.units if (u.layer, u.direction) in by_place
    ]
    if not pairs:
        what = f"no layer and direction on both sides: {_places(cell)} in the source, {_places(other)} in the target"
        moved.problems.append(Problem(rule.where, what))
    taken = {name for u, _ in pairs for name in u.names}
    for unit in cell.units:
        lost = next((n for n in unit.names if n in taken), None)
        if lost is not None and (unit.layer, unit.direction) not in by_place:
            what = f"part of {lost!r}, layer {unit.layer} {unit.direction}, would be left behind: the target has none"
            moved.problems.append(Problem(rule.where, what, "pick what is to move: layers:, directions:"))
    return pairs


def _places(cell: Cell) -> str:
    return ", ".join(f"{u.layer} {u.direction}" for u in cell.units)


def conversion_of(pair: Pair, specs: Mapping[str, TensorSpec]) -> tuple[Conversion | Reworded, list[str], list[str]]:
    """The conversion of a pair, what stands in its way, and what is taken for granted of activations and the like."""
    mine, its = pair.mine, pair.its
    biases = (float(mine.forget_bias.value), float(its.forget_bias.value))
    reset = mine.reset.value or its.reset.value
    conversion: Conversion | Reworded
    if pair.words is None:
        conversion = Conversion(pair.source, pair.target, specs, biases, reset)
    else:
        conversion = Reworded(pair.words, pair.source, pair.target, specs, biases, reset)
    problems, assumed = conflicts(mine, its)
    return conversion, [*problems, *conversion.problems(), *unasked(pair.source.names, specs)], assumed


def convert(pair: Pair, specs: Mapping[str, TensorSpec], rule: CellRule, moved: Moved) -> None:
    """One unit into another, added to ``moved``."""
    unit, other = pair.source, pair.target
    where = f"{rule.where}: {pair.where}"
    try:
        conversion, problems, assumed = conversion_of(pair, specs)
    except Unfit as reason:
        moved.problems.append(Problem(where, *reason.args))
        return
    moved.problems.extend(Problem(where, what, refusal_hint(pair, conversion, moved.hints)) for what in problems)
    moved.sources.extend(n for n in unit.names if n not in moved.sources)
    moved.targets.extend(n for n in other.names if n not in moved.targets)
    if problems:
        return
    for stored in other.tensors:
        try:
            parts = conversion.parts(stored)
        except Inexact as reason:
            moved.problems.append(Problem(where, str(reason)))
            continue
        mixed = mixture(parts, specs)
        if mixed:
            hint = "cast them to one dtype by a transfer of their own first"
            moved.problems.append(Problem(where, f"{stored.name!r} would be made of {mixed}", hint))
            continue
        shape = packed_shape(other.layout, stored, other.sizes)
        if moved.shapes.setdefault(stored.name, shape) != shape:
            what = (
                f"{stored.name!r} holds all layers, and they are of different sizes: {list(moved.shapes[stored.name])}"
            )
            moved.problems.append(Problem(where, f"{what} and {list(shape)}"))
            continue
        moved.parts.setdefault(stored.name, []).extend(parts)
    if assumed:
        moved.exact = False
    assumed.extend(assumed_biases(pair))
    moved.say([*conversion.notes, *assumed])
    moved.assumed.extend(a for a in assumed if a not in moved.assumed)
    moved.classed = max(moved.classed, conversion.classed, key=(BIJECTIVE, EXACT, CONDITIONAL).index)
    moved.conditions.extend(demanded(pair, conversion, rule, moved.hints))


def refusal_hint(pair: Pair, conversion: Conversion | Reworded, hints: Hints) -> str:
    """What can be done where a pair is refused for what its layouts are."""
    unlike = pair.mine.reset.value != pair.its.reset.value or conversion.problems()
    return instead(pair, hints) if unlike and not conversion.misfits() else ""


def demanded(pair: Pair, conversion: Conversion | Reworded, rule: CellRule, hints: Hints) -> list[Condition]:
    """What must hold of the source's values, and what can be done where it does not."""
    found = conversion.conditions()
    hint = instead(pair, hints) if found else ""
    return [replace(condition, where=f"{rule.where}: {pair.where}", hint=hint) for condition in found]


def instead(pair: Pair, hints: Hints) -> str:
    """Layouts that hold the source's cell, as a hint; looked for once for all pairs of a kind."""
    key = (pair.source.form, pair.source.params, pair.mine, pair.target.layout.name)
    if key not in hints:
        names = alternatives(pair.source, pair.mine, pair.target.layout)
        hints[key] = f"exact whatever its values: {', '.join(names[:_NAMED])}" if names else ""
    return hints[key]


def mixture(parts: Sequence[tuple[Ranges, Expr]], specs: Mapping[str, TensorSpec]) -> str:
    """The dtypes of what a tensor is made of, where there are several; nothing is cast unasked."""
    names = sorted({n for _, part in parts for n in part.leaves()})
    dtypes = {specs[n].dtype_name: n for n in reversed(names)}
    return ", ".join(f"{dtype} ({name!r})" for dtype, name in dtypes.items()) if len(dtypes) > 1 else ""


def assumed_biases(pair: Pair) -> list[str]:
    """What is to be said of forget biases that neither a file nor the mapping speaks of."""
    sides = (
        ("source", pair.mine.forget_bias, pair.source.layout.name),
        ("target", pair.its.forget_bias, pair.target.layout.name),
    )
    return [
        f"the {side}'s forget bias is not recorded: {said.value:g}, the default of {name}"
        for side, said, name in sides
        if said.by == ASSUMED and said.value
    ]
