"""A plan for a model that is still being built: variable by variable, as TensorFlow's custom getter asks for them.

Promise: the source is accounted for before the first variable; a variable that no rule covers and ``keep:`` does not
list is an error that names it. Limit: what the model never asks for shows in :meth:`Lookup.check` only, and a cell is
known by the name of its scope, as in a finished model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from weightport import values
from weightport.errors import LayoutError, PlanError, Problem, closest
from weightport.layouts import Form, Layout
from weightport.layouts.behaviour import Behaviour, behaviour, conflicts
from weightport.layouts.convert import Conversion, Inexact
from weightport.layouts.stacks import Cell, is_place, place_of
from weightport.layouts.units import Unit, packed_shape, spelled, stored_rows
from weightport.mapping.rules import CellRule, InitRule
from weightport.mapping.rules import Mapping as Rules
from weightport.plan import cells
from weightport.plan.build import Builder, matching, unfit
from weightport.plan.initial import Gates, initialized
from weightport.plan.model import Item
from weightport.scopes import is_cell
from weightport.tensors import Source, TensorSpec


@dataclass(slots=True)
class _CellRule:
    """A cell rule, with the source's cell and the places in the model that it was used for so far."""

    rule: CellRule
    cell: Cell
    layout: Layout
    scope: str
    places: dict[tuple[int, str], str] = field(default_factory=dict)


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
        side = cells.Side(self._builder.specs, source.facts, mapping.source.scope)
        for rule in mapping.rules:
            if isinstance(rule, CellRule):
                self._add_cell(rule, side)
            elif not isinstance(rule, InitRule):
                self._builder.tensors(rule)
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
        if layout.kind != cell.layout.kind:
            what = f"{cell.layout.name} is a cell of another kind than {layout.name}"
            self._builder.problems.append(Problem(rule.where, what))
        self._builder.moved.update(cell.names)
        scope = cells.scoped(self._mapping.target.scope, rule.target.scope)
        self._cells[rule.name] = _CellRule(rule, cell, layout, scope)

    def __call__(self, name: str, spec: TensorSpec) -> Item | None:
        """What the variable of that full name, shape and dtype is to become; None: it keeps its own initial value.

        Raises:
            PlanError: no rule covers it, or the value does not fit.
        """
        known = self._asked.get(name)
        if known is None:
            known = self._find(name, spec)
            if known is None:
                return None
        problem = unfit(known.rule, name, known.expr, spec)
        if problem is not None:
            raise PlanError(problem)
        self._asked[name] = known
        return known

    def _find(self, name: str, spec: TensorSpec) -> Item | None:
        for rule in self._mapping.rules:
            if rule.name in self._cells:
                item = self._from_cell(self._cells[rule.name], name, spec)
                if item is not None:
                    return item
            elif isinstance(rule, InitRule):
                if self._initializes(rule, name, spec):
                    expr = initialized(rule.initializer, name, spec, Gates({name: spec}, self._mapping.layouts))
                    return Item(name, spec, expr, rule.constant, rule.name, True)
            else:
                made = self._builder.items.get(name)
                if made is not None and made.rule == rule.name:
                    return made
        if matching(self._mapping.keep, [name], self._mapping.target.scope) or spec.role != "weight":
            return None
        what = f"variable {name!r} ({spec.dtype_name} {list(spec.shape)}) gets no value"
        hint = closest(name, self._builder.items) or "move or initialize: it by a rule, or list it under keep:"
        raise PlanError(Problem(self._mapping.path or "mapping", what, hint))

    def _initializes(self, rule: InitRule, name: str, spec: TensorSpec) -> bool:
        scope = self._mapping.target.scope
        if rule.target_cell is not None:
            layout = cells.layout_of(rule.target_cell, self._mapping.layouts)
            below = cells.scoped(scope, rule.target_cell.scope)
            return any(True for _ in _forms_at(layout, below, name)) and spec.role == "weight"
        return any(p.joined(scope).match(name) is not None for p in rule.targets)

    def _from_cell(self, known: _CellRule, name: str, spec: TensorSpec) -> Item | None:
        """The value of one tensor of a cell whose other tensors may not exist yet."""
        failure: list[Problem] = []
        for form, place in _forms_at(known.layout, known.scope, name):
            layer, direction = place_of(place, known.scope, known.layout)
            unit = next((u for u in known.cell.units if (u.layer, u.direction) == (layer, direction)), None)
            if unit is None:
                continue
            other = cells.made_unit(unit, known.layout, form, place)
            stored = next((s for s in other.tensors if s.name == name), None)
            if stored is None:
                continue
            mine = behaviour(unit.layout, unit.form, self._side.facts(unit.names), cells.stated(known.rule.source))
            its = behaviour(other.layout, form, {}, cells.stated(known.rule.target))
            conversion, problems = self._conversion(unit, other, mine, its)
            shape = packed_shape(other.layout, stored, other.sizes)
            if problems or shape != spec.shape:
                failure = failure or [Problem(f"{known.rule.where}: {name!r}", what) for what in problems]
                continue
            try:
                expr = values.assemble(shape, spec.dtype, conversion.parts(stored))
            except Inexact as reason:
                failure = failure or [Problem(f"{known.rule.where}: {name!r}", str(reason))]
                continue
            if known.places.setdefault((layer, direction), place) != place:
                first = known.places[layer, direction]
                what = f"two cells of the model, {first!r} and {place!r}, stand below scope {known.scope!r}"
                raise PlanError(Problem(known.rule.target.where, what, "name one of them"))
            return Item(name, spec, expr, known.rule.constant, known.rule.name)
        if failure:
            raise PlanError(failure)
        return None

    def _conversion(self, unit: Unit, other: Unit, mine: Behaviour, its: Behaviour) -> tuple[Conversion, list[str]]:
        biases = (float(mine.forget_bias.value), float(its.forget_bias.value))
        conversion = Conversion(unit, other, self._builder.specs, biases, mine.reset.value or its.reset.value)
        problems, _ = conflicts(mine, its)
        return conversion, [*problems, *conversion.problems()]

    def check(self) -> None:
        """After the model is built: everything that was to be moved was asked for.

        Raises:
            PlanError: source tensors that no variable of the model took.
        """
        taken = {name for item in self._asked.values() for name in item.expr.leaves()}
        left = sorted(self._builder.moved - taken)
        if left:
            raise PlanError(
                [Problem(self._builder.source.path, f"the model asked for no variable that takes {n!r}") for n in left]
            )


def _forms_at(layout: Layout, scope: str, name: str) -> Iterator[tuple[Form, str]]:
    """The forms that have a tensor of that name in a cell at or below ``scope``, and the cell's own scope."""
    prefix = f"{scope}/" if scope else ""
    if not name.startswith(prefix):
        return
    for form in layout.forms:
        for row, gate in stored_rows(layout, form):
            text = spelled(layout, row.template, gate, 0, "forward")
            if name != text and not name.endswith("/" + text):
                continue
            place = name[: len(name) - len(text)].removesuffix("/")
            if place != scope and not place.startswith(prefix):
                continue
            if place == scope or _belongs(layout, form, place, scope):
                yield form, place


def _belongs(layout: Layout, form: Form, place: str, scope: str) -> bool:
    """Whether a cell below the rule's scope is told by the names of its scopes."""
    if form.cells:
        return is_cell(place, form.cells)
    if not layout.inner:
        return True
    between = place[len(scope) :].strip("/").split("/")
    return all(is_cell(part, (layout.inner,)) or is_place(part) for part in between)
