"""Cells that do not exist yet: where a mapping puts them, in which form, and which layouts could hold a cell.

Promise: of a layout's forms, the first that holds the cell without conditions on its values, else the first that holds
it at all; tensors that a cell may lack are there if the other cell has their like. Limit: names are as frameworks scope
layers and directions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from weightport.layouts import Form, Layout, builtin
from weightport.layouts.behaviour import Behaviour, behaviour, conflicts
from weightport.layouts.convert import Conversion
from weightport.layouts.stacks import Cell
from weightport.layouts.units import BACKWARD, Stored, Unit, full_name, of_layer, packed_sizes, spelled, stored_rows
from weightport.mapping.rules import CellRef, CellRule
from weightport.scopes import is_cell


def scoped(prefix: str, scope: str) -> str:
    """A scope under the side's own."""
    return "/".join(s for s in (prefix.removesuffix("."), scope) if s)


def target_scope(rule: CellRule, cell: Cell, unit: Unit, layout: Layout, form: Form) -> str:
    """Where a unit goes in a target that is made by the mapping: as frameworks scope layers and directions."""
    parts = [rule.target.scope]
    if (cell.layers > 1 or rule.target.layers is not None) and not _tells(form, "layer"):
        parts.append(f"cell_{unit.layer}")
    if _both(rule, cell) and not _tells(form, "direction"):
        backward = unit.direction == BACKWARD
        if layout.inner:
            parts.append(f"{'backward' if backward else 'forward'}_{layout.kind}")
        else:
            parts.append("bw" if backward else "fw")
    named = form.cells
    if named and len(parts) > 1:  # a cell of a stack is known by the name of its own scope
        own = unit.scope.rpartition("/")[2]
        parts.append(own if is_cell(own, named) else named[0])
    return "/".join(p for p in parts if p)


def _both(rule: CellRule, cell: Cell) -> bool:
    """Whether the target has to tell directions apart."""
    return len(cell.directions) > 1 or rule.target.directions is not None


def _tells(form: Form, index: str) -> bool:
    """Whether the layer or the direction stands in the form's names or shapes."""
    return f"{{{index}}}" in form.rows[0].template or index in _axes(form)


def _axes(form: Form) -> set[str]:
    """Of layer and direction, what is an axis of the form's tensors."""
    if form.packed:
        return {"layer", "direction"}
    return {a for row in form.rows for t in row.packing.terms for a in t.names()} & {"layer", "direction"}


def _placed(unit: Unit, ref: CellRef) -> Unit:
    """The unit under the layer and direction that the target's reference picks for it."""
    layer = ref.layers[unit.layer] if ref.layers is not None and unit.layer < len(ref.layers) else unit.layer
    alone = ref.directions is not None and len(ref.directions) == 1
    return replace(unit, layer=layer, direction=ref.directions[0] if alone and ref.directions else unit.direction)


def imagined(rule: CellRule, cell: Cell, unit: Unit, layout: Layout, prefix: str, mine: Behaviour) -> Unit:
    """The unit of a layout that would hold another unit, in the form that can do it best.

    Args:
        prefix: the target's scope.
    """
    placed = _placed(unit, rule.target)
    wanted = rule.target.reset or mine.reset.value
    forms = [f for f in layout.forms if f.reset is None or wanted is None or f.reset == wanted] or list(layout.forms)
    if _both(rule, cell):
        forms.sort(key=lambda form: not _tells(form, "direction"))
    made = []
    for form in forms:
        scope = scoped(prefix, target_scope(rule, cell, placed, layout, form))
        made.append(made_unit(placed, layout, form, scope.replace("/", layout.separator), cell))
    return best(unit, mine, made)


def best(unit: Unit, does: Behaviour, others: Iterable[Unit]) -> Unit:
    """Of several, the first that holds a unit whatever its values are, else the first that holds it for some, else the
    first.
    """
    return min(others, key=lambda other: _wanting(Conversion(unit, other, {}, reset=does.reset.value)))


def _wanting(conversion: Conversion) -> int:
    """How far a unit is from holding another one."""
    return 2 if conversion.problems() else 1 if conversion.conditions() else 0


def alternatives(unit: Unit, does: Behaviour, target: Layout) -> tuple[str, ...]:
    """The layouts that hold a unit whatever its values are: the target's own (in another form) first, the unit's last.

    Args:
        does: what the unit does beside its weights.
        target: the layout that does not, in the form at hand.
    """
    cell, found = Cell(unit.scope, unit.layout, (unit,)), dict[str, int]()
    for layout in builtin().values():
        if layout.packed or not layout.related(unit.layout):
            continue  # nobody keeps a new model in cuDNN's buffer
        rank = 0 if layout.name == target.name else 2 if layout.name == unit.layout.name else 1
        for form in layout.forms:
            other = made_unit(unit, layout, form, "", cell)
            its = behaviour(layout, form, {}, {})
            biases = (float(does.forget_bias.value), float(its.forget_bias.value))
            conversion = Conversion(unit, other, {}, biases, does.reset.value or form.reset)
            if conflicts(does, its)[0] or _wanting(conversion):
                continue
            several = len({f.reset for f in layout.forms if f.reset}) > 1
            found.setdefault(f"{layout.name} (reset {form.reset})" if several and form.reset else layout.name, rank)
    return tuple(sorted(found, key=lambda name: found[name]))


def made_unit(unit: Unit, layout: Layout, form: Form, scope: str, cell: Cell) -> Unit:
    """A unit of that form with another's sizes; tensors that a cell may lack are there if the other has their like.

    Args:
        cell: what the other is a unit of.
    """
    biases = {"bi", "bt"}  # where a layout has two, they come together
    has = unit.params | (biases if unit.params & biases else set())
    tensors = []
    for row, gate in stored_rows(layout, form):
        if row.optional and not has & {t.param for t in row.packing.terms}:
            continue
        name = spelled(layout, row.template, gate, unit.layer, unit.direction)
        tensors.append(Stored(row, gate, full_name(scope, name, layout.separator)))
    sizes = {axis: size for axis, size in unit.sizes.items() if axis not in ("layer", "direction", "first")}
    index = {}
    for axis, count, at in (
        ("layer", max(u.layer for u in (*cell.units, unit)) + 1, unit.layer),
        ("direction", len(cell.directions), cell.directions.index(unit.direction) if len(cell.directions) > 1 else 0),
    ):
        if axis in _axes(form):
            sizes[axis], index[axis] = count, at
    if form.packed:
        first = cell.units[0].sizes
        packed = packed_sizes(first["input"], first["unit"], sizes["layer"], sizes["direction"])
        sizes = of_layer(packed, unit.layer)
    return Unit(layout, form, scope, unit.layer, unit.direction, tuple(tensors), sizes, index)
