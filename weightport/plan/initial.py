"""Initial values of target tensors, with the fan of one gate where a tensor holds several.

Promise: a fused kernel is drawn as its gates would be one by one. Limit: only gates that lie side by side on the last
axis are told apart, as TensorFlow and Keras store them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from weightport.initializers import ARGUMENTS
from weightport.layouts import Layout, Row, builtin
from weightport.layouts.units import FORWARD, dims_of, gates_of, spelled, stored_rows
from weightport.mapping.rules import Initializer
from weightport.plan.ops import made
from weightport.scopes import find_cells, is_cell
from weightport.tensors import TensorSpec
from weightport.values import Expr

# Larger tensors are not drawn only to see whether they can be.
_TRIED = 1 << 18


@dataclass(slots=True)
class Gates:
    """Which gates lie on the last axis of which tensor of a model; found when first asked for."""

    specs: Mapping[str, TensorSpec]
    own: Mapping[str, Layout]
    _found: dict[str, tuple[str, ...]] | None = field(default=None)

    def of(self, name: str) -> tuple[str, ...]:
        """The gates in their order; empty where the tensor holds none, or one."""
        if self._found is None:
            self._found = {}
            for cell in find_cells(self.specs, [*self.own.values(), *builtin().values()]):
                for unit in cell.units:
                    for stored in unit.tensors:
                        self._found[stored.name] = last_axis_gates(unit.layout, stored.row, stored.gate)
        return self._found.get(name, ())


def last_axis_gates(layout: Layout, row: Row, gate: str | None) -> tuple[str, ...]:
    """The gates that lie side by side, outermost, on the last axis of a stored tensor; empty if they don't."""
    orders = set()
    for term in row.packing.terms:
        dims = dims_of(term)
        if not dims or not dims[-1] or dims[-1][0] != "gate":
            return ()
        orders.add(gates_of(layout, term, gate))
    same_axis = len(row.packing.terms) > 1 and row.packing.axis == row.packing.rank - 1
    order = orders.pop() if len(orders) == 1 and not same_axis else ()
    return order if len(order) > 1 else ()


def named_gates(name: str, layouts: Iterable[Layout], *, ordered: bool) -> tuple[str, ...]:
    """The gates of a tensor whose cell is not complete yet, by its name and the name of the cell's scope.

    Empty where the tables do not agree on them: on their order too if it matters (``ordered``).
    """
    found = set()
    for layout in layouts:
        for form in layout.forms:
            cells = form.cells or ((layout.inner,) if layout.inner else ())
            for row, gate in stored_rows(layout, form) if cells else ():
                text = "/" + spelled(layout, row.template, gate, 0, FORWARD)
                if name.endswith(text) and is_cell(name.removesuffix(text), cells):
                    found.add(last_axis_gates(layout, row, gate))
    if not ordered and len({frozenset(order) for order in found}) == 1:
        return min(found)
    return found.pop() if len(found) == 1 else ()


def initialized(initializer: Initializer, name: str, spec: TensorSpec, order: Sequence[str]) -> Expr:
    """The values of an initializer for one tensor.

    Args:
        order: the gates that lie side by side on its last axis, if there are several.

    Raises:
        Error: the initializer cannot fill that shape or dtype.
    """
    extra = {}
    if order and "gates" in ARGUMENTS[initializer.name] and "gates" not in initializer.args:
        extra["gates"] = list(order)
    expr = made(initializer, spec.shape, spec.dtype, name, **extra)
    if prod(spec.shape) <= _TRIED:
        expr.make()  # what it refuses is said now, with the other problems
    return expr
