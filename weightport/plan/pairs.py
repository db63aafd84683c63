"""What each pair of layouts comes to: bijective, exact, exact on a condition, or refused; from the tables alone.

A cell of the one layout, with biases, is taken and the other's imagined for it. What a file does not record and the
other side always has (an activation) is taken to be stated in the mapping.

Promise: what is said of a pair is what a plan says of such cells. Limit: of forms that differ in names and
packing only, one speaks for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from weightport.layouts import Form, Layout, builtin
from weightport.layouts.behaviour import behaviour
from weightport.layouts.conditions import sentence
from weightport.layouts.convert import BIJECTIVE, CONDITIONAL, EXACT
from weightport.layouts.notation import base
from weightport.layouts.stacks import Cell
from weightport.layouts.units import FORWARD, Stored, Unit, full_name, packed_shape, packed_sizes, spelled, stored_rows
from weightport.plan.cells import Pair, conversion_of
from weightport.plan.imagined import best, made_unit
from weightport.plan.model import REFUSED
from weightport.tensors import TensorSpec

#: From the most to the least.
CLASSES = (BIJECTIVE, EXACT, CONDITIONAL, REFUSED)
#: What a cell may have beside weights and biases: its parameter, and in words.
EXTRAS: Mapping[str, str] = {"wp": "peepholes", "wr": "an output projection"}
#: As many outputs as units, so that a projection may be the identity.
SIZES = {"input": 3, "unit": 4, "hidden": 4, "layer": 1, "direction": 1}
_OTHER_SIZE = 2  # of axes that a table declares


@dataclass(frozen=True, slots=True)
class Row:
    """A layout; of one whose forms keep other biases or, of a GRU, reset elsewhere, those forms that are alike.

    Attributes:
        said: what tells it from the layout's other forms, for people.
        reset: where a GRU's reset gate acts.
    """

    layout: Layout
    forms: tuple[Form, ...]
    reset: str | None
    said: str = ""

    def __str__(self) -> str:
        return f"{self.layout.name}, {self.said}" if self.said else self.layout.name

    def has(self, extra: str) -> bool:
        """Whether a cell of it may have that parameter."""
        return any(extra in form.params for form in self.forms)

    def unit(self, extra: str = "", scope: str = "s") -> Unit:
        """A cell with biases, and with the parameter ``extra`` of :data:`EXTRAS` if it is given."""
        form = next((form for form in self.forms if extra in form.params), self.forms[0])
        held = {"bi", "bt", *([extra] if extra else [])}
        tensors = []
        for row, gate in stored_rows(self.layout, form):
            if not row.optional or held & {t.param for t in row.packing.terms}:
                name = spelled(self.layout, row.template, gate, 0, FORWARD)
                tensors.append(Stored(row, gate, full_name(scope, name, self.layout.separator)))
        if form.packed:
            sizes = packed_sizes(SIZES["input"], SIZES["unit"])
            return Unit(self.layout, form, scope, 0, FORWARD, tuple(tensors), sizes, {"layer": 0, "direction": 0})
        axes = {base(axis) for stored in tensors for term in stored.row.packing.terms for axis in term.names()}
        index: dict[str, int] = {axis: 0 for axis in ("layer", "direction") if axis in axes}
        sizes = {axis: SIZES.get(axis, _OTHER_SIZE) for axis in (axes | {"input", "unit", "hidden"}) - {"gate"}}
        return Unit(self.layout, form, scope, 0, FORWARD, tuple(tensors), sizes, index)


@dataclass(frozen=True, slots=True)
class Class:
    """What a pair comes to.

    Attributes:
        classed: ``bijective``, ``exact``, ``conditional`` or ``refused``.
        condition: what must hold of the source's values, as a sentence; empty if nothing must.
        reason: why it is refused, or empty.
    """

    classed: str
    condition: str = ""
    reason: str = ""


def rows(family: str) -> list[Row]:
    """The layouts of a family of kinds."""
    found = []
    for layout in builtin().values():
        if layout.family != family:
            continue
        gru, alike = layout.kind == "gru", dict[tuple[str | None, frozenset[str]], list[Form]]()
        for form in layout.forms:
            if not form.params & {"bi", "bt"} and any(f.params & {"bi", "bt"} for f in layout.forms):
                continue  # nothing more can be said of a form without biases
            for reset in ("before", "after") if gru and form.reset is None else (form.reset,):
                alike.setdefault((reset, form.params & {"bi", "bt"}), []).append(form)
        resets = {reset for reset, _ in alike}
        for (reset, kept), forms in alike.items():
            said = [reset] if reset and len(resets) > 1 else []
            if len([r for r, _ in alike if r == reset]) > 1 and "bt" not in kept:
                said.append("one bias")
            found.append(Row(layout, tuple(forms), reset, ", ".join(said)))
    return found


def stated(source: Row, target: Row) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a mapping has to say of the two cells that their files do not record."""
    sides: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for key in ("activation", "recurrent_activation"):
        said = next((r for r in (source, target) if key in r.layout.fixed), source)
        value = getattr(said.layout, key)
        for row, side in zip((source, target), sides, strict=True):
            if value is not None and key not in row.layout.fixed and getattr(row.layout, key) is not None:
                side[key] = value
    for row, side in zip((source, target), sides, strict=True):
        if row.reset is not None:
            side["reset"] = row.reset
        if row.layout.packed:
            side["sizes"] = {"input": SIZES["input"], "units": SIZES["unit"]}
    return sides


def classed(source: Row, target: Row, extra: str = "") -> Class:
    """What becomes of a cell of ``source``, with the parameter ``extra`` of :data:`EXTRAS`, as one of ``target``."""
    unit = source.unit(extra)
    specs = {s.name: TensorSpec.of("float32", packed_shape(unit.layout, s, unit.sizes)) for s in unit.tensors}
    here, there = stated(source, target)
    mine = behaviour(unit.layout, unit.form, {}, here)
    cell = Cell(unit.scope, unit.layout, (unit,))
    other = best(unit, mine, (made_unit(unit, target.layout, form, "t", cell) for form in target.forms))
    pair = Pair(unit, other, mine, behaviour(other.layout, other.form, {}, there))
    conversion, problems, _ = conversion_of(pair, specs)
    if problems:
        return Class(REFUSED, reason=problems[0])
    for stored in other.tensors:
        conversion.parts(stored)
    return Class(conversion.classed, sentence(conversion.conditions()))


def conversions(layout: Layout) -> Iterator[tuple[Row, Row, str, Class]]:
    """Every pair that a layout is one side of: source, target, what the cell has (:data:`EXTRAS`), and the class.

    Cells with peepholes or a projection are among them where these make a difference; where the plain cell has a
    condition already, theirs are added to it, and are not told apart.
    """
    for source in rows(layout.family):
        for target in rows(layout.family):
            if layout not in (source.layout, target.layout) or str(source) == str(target):
                continue
            plain = classed(source, target)
            yield source, target, "", plain
            for extra in EXTRAS:
                if source.has(extra) and plain.classed in (BIJECTIVE, EXACT):
                    found = classed(source, target, extra)
                    if found != plain:
                        yield source, target, extra, found
