"""A plan for a model that is still being built: variable by variable, as TensorFlow's custom getter asks for them.

Promise: the source is accounted for before the first variable; a variable that no rule covers and ``keep:`` does not
list is an error that names it. Limit: what the model never asks for shows in :meth:`Lookup.check` only, and a cell is
known by the name of its scope, as in a finished model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from weightport import values
from weightport.errors import LayoutError, PlanError, Problem, closest
from weightport.initializers import ARGUMENTS
from weightport.layouts import Form, Layout, Row, builtin
from weightport.layouts.behaviour import behaviour
from weightport.layouts.conditions import Condition
from weightport.layouts.convert import Inexact
from weightport.layouts.stacks import Cell, is_place, place_of
from weightport.layouts.units import FORWARD, SCOPE, Stored, Unit, packed_shape, spelled, stored_rows
from weightport.mapping.rules import CellRef, CellRule, InitRule, Rule, TensorRule
from weightport.mapping.rules import Mapping as Rules
from weightport.plan import accounts, cells
from weightport.plan.build import Builder
from weightport.plan.fit import unfit
from weightport.plan.imagined import made_unit, scoped
from weightport.plan.initial import Gates, initialized, last_axis_gates, named_gates
from weightport.plan.model import Item
from weightport.plan.words import Words
from weightport.scopes import is_cell
from weightport.tensors import Source, TensorSpec


@dataclass(slots=True)
class _CellRule:
    """A cell rule, with the source's cell and the places in the model that it was used for so far.

    Attributes:
        places: the scopes, by the model's layer and direction.
        made: each unit of the source with the one that the model has of it, by the source's layer and direction.
    """

    rule: CellRule
    cell: Cell
    layout: Layout
    scope: str
    words: Words | None = None
    places: dict[tuple[int, str], str] = field(default_factory=dict)
    made: dict[tuple[int, str], cells.Pair] = field(default_factory=dict)
    hints: cells.Hints = field(default_factory=dict)


class Lookup:
    """Values by variable name.

    Args:
        source: an open source; only its headers are read.
        mapping: the rules.

    Raises:
        PlanError: the mapping does not fit the source, or leaves one of its tensors unaccounted for.
    """

    def __init__(self, source: Source, mapping: Rules) -> None:
        self._mapping = mapping
        self._builder = Builder(source, None, mapping, "the graph")
        self._builder.prepare()
        self._cells: dict[str, _CellRule] = {}
        self._asked: dict[str, Item] = {}
        self._seen: dict[str, TensorSpec] = {}
        #: What was done beside copying, and what was assumed of cells that are still being built; in order.
        self.notes: dict[str, None] = {}
        #: What must hold of the source's values for the cells that were asked for, in order.
        self.conditions: dict[Condition, None] = {}
        self._places = {rule.name: number for number, rule in enumerate(mapping.rules)}
        side = cells.Side(self._builder.specs, source.facts, mapping.source.scope, self._builder.above)
        for rule in mapping.rules:
            if isinstance(rule, CellRule):
                self._add_cell(rule, side)
            elif isinstance(rule, TensorRule):
                self._builder.rule(rule)
        self._builder.account()
        if self._builder.problems:
            raise PlanError(self._builder.problems)
        self._side = side

    def _add_cell(self, rule: CellRule, side: cells.Side) -> None:
        try:
            cell = cells.found_cell(rule.source, side, self._mapping.layouts, self._builder.ignored)
        except LayoutError as error:
            if not rule.optional:
                self._builder.problems.extend(Problem(rule.source.where, p.what, p.hint) for p in error.problems)
            return
        layout = cells.layout_of(rule.target, self._mapping.layouts)
        if not layout.related(cell.layout):
            what = f"{cell.layout.name} is a cell of another kind than {layout.name}"
            self._builder.problems.append(Problem(rule.where, what))
        if layout.packed:
            what = f"{layout.name} holds all layers and directions in one variable, which is not made piece by piece"
            hint = "transfer into the finished graph"
            self._builder.problems.append(Problem(rule.target.where, what, hint))
        self._builder.moved.update(cell.names)
        scope = scoped(self._mapping.target.scope, rule.target.scope)
        words = self._words(rule, cell)
        self._cells[rule.name] = _CellRule(rule, cell, layout, scope, words)

    def _words(self, rule: CellRule, cell: Cell) -> Words | None:
        found = cells.Moved()
        words = cells.words_of(rule, cell, found)
        self._builder.problems.extend(found.problems)
        for note in found.notes:
            self.notes.setdefault(f"{rule.where}: {note}")
        return words

    def __call__(self, name: str, spec: TensorSpec) -> Item | None:
        """What the variable of that full name, shape and dtype is to become; None: it keeps its own initial value.

        Raises:
            PlanError: no rule covers it, or the value does not fit.
        """
        self._seen[name] = spec
        known = self._asked.get(name) or self._find(name, spec)
        if known is None:
            return None
        rule = self._mapping.rules[self._places[known.rule]]
        problem = unfit(rule.where, name, known.expr, spec, cell=isinstance(rule, CellRule))
        if problem is not None:
            raise PlanError(problem)
        self._asked[name] = known
        return known

    def _find(self, name: str, spec: TensorSpec) -> Item | None:
        """The first rule's value; a later rule with another one is an error, as in a finished model."""
        first: Item | None = None
        for rule in self._mapping.rules:
            item = self._from(rule, name, spec, covered=first is not None)
            if item is None:
                continue
            if first is None:
                first = item
            elif first.expr != item.expr or first.constant != item.constant:
                raise PlanError(accounts.second_claim(rule, first, item.expr))
        if first is not None or self._builder.keeps(name) or spec.role != "weight":
            return first
        what = f"variable {name!r} ({spec.dtype_name} {list(spec.shape)}) gets no value"
        hint = closest(name, self._builder.items) or "move or initialize: it by a rule, or list it under keep:"
        raise PlanError(Problem(self._mapping.path or "mapping", what, hint))

    def _from(self, rule: Rule, name: str, spec: TensorSpec, covered: bool) -> Item | None:
        if isinstance(rule, CellRule):
            return self._from_cell(self._cells[rule.name], name, spec) if rule.name in self._cells else None
        if isinstance(rule, TensorRule):
            made = self._builder.items.get(name)
            return made if made is not None and made.rule == rule.name else None
        if not self._initializes(rule, name, spec, covered):
            return None
        expr = initialized(rule.initializer, name, spec, self._gates(rule, name))
        return Item(name, spec, expr, rule.constant, rule.name, True)

    def _initializes(self, rule: InitRule, name: str, spec: TensorSpec, covered: bool) -> bool:
        if rule.backwards:
            return False
        scope = self._mapping.target.scope
        if rule.target_cell is not None:
            layout = cells.layout_of(rule.target_cell, self._mapping.layouts)
            below = scoped(scope, rule.target_cell.scope)
            return spec.role == "weight" and bool(_forms_at(layout, below, name))
        patterns = [p.joined(scope) for p in rule.targets]
        if any(p.is_literal and p.format({}) == name for p in patterns):
            return True
        free = not covered and spec.role == "weight" and not self._builder.keeps(name)
        return free and any(p.match(name) is not None for p in patterns)

    def _gates(self, rule: InitRule, name: str) -> tuple[str, ...]:
        """The gates that lie side by side in a tensor whose cell may not be complete yet."""
        if "gates" not in ARGUMENTS[rule.initializer.name]:
            return ()
        own = self._mapping.layouts
        if rule.target_cell is not None:
            layout = cells.layout_of(rule.target_cell, own)
            below = scoped(self._mapping.target.scope, rule.target_cell.scope)
            orders = {last_axis_gates(layout, p.row, p.gate) for p in _forms_at(layout, below, name)}
            return orders.pop() if len(orders) == 1 else ()
        above = name.rsplit("/", 2)[0] + "/"
        near = {n: s for n, s in self._seen.items() if n.startswith(above)}
        ordered = rule.initializer.name == "unit_forget_bias"
        return Gates(near, own).of(name) or named_gates(name, [*own.values(), *builtin().values()], ordered=ordered)

    def _from_cell(self, known: _CellRule, name: str, spec: TensorSpec) -> Item | None:
        """The value of one tensor of a cell whose other tensors may not exist yet."""
        failure: list[Problem] = []
        rule = known.rule
        for place in _forms_at(known.layout, known.scope, name, known.cell.units):
            at = _picked(rule.target, place.layer, place.direction)
            unit = next((u for u in known.cell.units if (u.layer, u.direction) == at), None)
            if unit is None:
                continue
            words = known.words if unit.layer == 0 else None
            sizes = unit.sizes if words is None else words.renamed(unit).sizes
            there = replace(unit, layer=place.layer, direction=place.direction, sizes=sizes)
            other = made_unit(there, known.layout, place.form, place.scope, known.cell)
            stored = next((s for s in other.tensors if s.name == name), None)
            if stored is None:  # what the source's cell lacks, and the model's does not
                stored = Stored(place.row, place.gate, name)
                other = replace(other, tensors=(*other.tensors, stored))
            mine = behaviour(unit.layout, unit.form, self._side.facts(unit.names), cells.stated(rule.source))
            its = behaviour(other.layout, place.form, {}, cells.stated(rule.target))
            pair = cells.Pair(unit, other, mine, its, words)
            conversion, problems, assumed = cells.conversion_of(pair, self._builder.specs)
            shape = packed_shape(other.layout, stored, other.sizes)
            if problems or shape != spec.shape:
                hint = cells.refusal_hint(pair, conversion, known.hints) if problems and not failure else ""
                failure = failure or [Problem(f"{rule.where}: {name!r}", what, hint) for what in problems]
                continue
            try:
                parts = conversion.parts(stored)
            except Inexact as reason:
                failure = failure or [Problem(f"{rule.where}: {name!r}", str(reason))]
                continue
            mixed = cells.mixture(parts, self._builder.specs)
            if mixed:
                raise PlanError(Problem(rule.where, f"{name!r} would be made of {mixed}"))
            first = known.places.setdefault((place.layer, place.direction), place.scope)
            if first != place.scope:
                what = f"two cells of the model, {first!r} and {place.scope!r}, stand below scope {known.scope!r}"
                raise PlanError(Problem(rule.target.where, what, "name one of them"))
            said = [*conversion.notes, *assumed, *cells.assumed_biases(pair)]
            for note in (f"{rule.where}: {place.scope or '.'}: {text}" for text in said):
                self.notes.setdefault(note)
            known.made.setdefault((unit.layer, unit.direction), pair)
            self.conditions.update(dict.fromkeys(cells.demanded(pair, conversion, rule, known.hints)))
            expr = values.assemble(shape, parts[0][1].dtype, parts)
            return Item(name, spec, expr, rule.constant, rule.name)
        if failure:
            raise PlanError(failure)
        return None

    def check(self) -> None:
        """After the model is built: everything that was to be moved was asked for.

        What a cell can do without for some values (its peepholes, where they are zero) is added to the conditions.

        Raises:
            PlanError: source tensors that no variable of the model took.
        """
        taken = {name for item in self._asked.values() for name in item.expr.leaves()}
        for known in self._cells.values():
            found = [c for unit in known.cell.units for c in self._unasked(known, unit)]
            self.conditions.update(dict.fromkeys(found))
        taken.update(condition.tensor for condition in self.conditions)
        path = self._builder.source.path
        left = [n for n in self._builder.specs if n in self._builder.moved and n not in taken]
        problems = [Problem(path, f"the model asked for no variable that takes {n!r}") for n in left]
        if problems:
            raise PlanError(accounts.listed(problems, path))

    def _unasked(self, known: _CellRule, unit: Unit) -> list[Condition]:
        """What must hold so that a cell is the same without the tensors that the model did not ask for."""
        made = known.made.get((unit.layer, unit.direction))
        if made is None:
            return []
        pair = replace(
            made, target=replace(made.target, tensors=tuple(s for s in made.target.tensors if s.name in self._asked))
        )
        conversion, problems, _ = cells.conversion_of(pair, self._builder.specs)
        return [] if problems else cells.demanded(pair, conversion, known.rule, known.hints)


@dataclass(frozen=True, slots=True)
class _Place:
    """A row of a form whose name a variable has, and where its cell would stand."""

    form: Form
    row: Row
    gate: str | None
    scope: str
    layer: int
    direction: str


def _forms_at(layout: Layout, scope: str, name: str, units: Sequence[Unit] = ()) -> list[_Place]:
    """The rows that spell that name in a cell at or below ``scope``.

    Args:
        units: of the other side: the layers and directions to look for where they stand in the tensors' names.
    """
    found = []
    for form in layout.forms:
        for row, gate in stored_rows(layout, form):
            numbered = "{layer}" in row.template or "{direction}" in row.template
            for layer, direction in [(u.layer, u.direction) for u in units] if numbered and units else [(0, FORWARD)]:
                above = _above(name, spelled(layout, row.template, gate, layer, direction))
                if above is None or not _belongs(layout, form, above, scope):
                    continue
                if not numbered:
                    layer, direction = place_of(above, scope, layout)
                found.append(_Place(form, row, gate, above, layer, direction))
    # Forms whose cells have scopes of that name first.
    return sorted(found, key=lambda p: bool(p.form.cells) and not is_cell(p.scope, p.form.cells))


def _above(name: str, text: str) -> str | None:
    """The scope of the cell that has a tensor of that full name, if the tensor's own name is ``text``."""
    if text.startswith(SCOPE):
        return name.removesuffix(text[len(SCOPE) :]) if name.endswith(text[len(SCOPE) :]) else None
    if name == text:
        return ""
    return name.removesuffix("/" + text) if name.endswith("/" + text) else None


def _belongs(layout: Layout, form: Form, place: str, scope: str) -> bool:
    """Whether a cell stands at the rule's scope, or below it and is told by the names of its scopes."""
    if place == scope:
        return True
    if scope and not place.startswith(f"{scope}/"):
        return False
    named = form.cells or ((layout.inner,) if layout.inner else ())
    if not named or is_cell(place, named):
        return True
    places = list(map(is_place, place[len(scope) :].strip("/").split("/")))
    return any(places) if form.cells else all(places)


def _picked(ref: CellRef, layer: int, direction: str) -> tuple[int, str] | None:
    """The source's layer and direction for one of the target's, by what the target's reference picks."""
    if ref.layers is not None:
        if layer not in ref.layers:
            return None
        layer = ref.layers.index(layer)
    if ref.directions is not None:
        if direction not in ref.directions:
            return None
        if len(ref.directions) == 1:
            direction = FORWARD
    return layer, direction
