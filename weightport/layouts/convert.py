"""Any layout to any layout of the same kind of cell, through the canonical parameters, one tensor at a time.

:func:`blocks` says where each canonical parameter of a unit stands in its tensors; :class:`Conversion` reads them from
the source's places and lays them into the target's. The result is an expression over source tensors
(:mod:`weightport.values`): slices, permuted axes, and at most an added constant, a sum of two biases or a sign.

Promise: what the two layouts cannot express alike is an :class:`Inexact` with its reason, never an approximation.
Limit: values are not looked at, so a target without peepholes refuses a source with peepholes that happen to be zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np

from weightport import values
from weightport.layouts.notation import INDEXED, PARAMETERS, Term
from weightport.layouts.table import Layout
from weightport.layouts.units import Stored, Unit, dims_of, extent, gates_of
from weightport.ranges import Ranges
from weightport.tensors import TensorSpec
from weightport.values import Expr

# : How lossless a conversion is: ``bijective`` both ways bit for bit; ``exact`` the same function, not reversible bit
# for
#: bit (biases were summed, or a constant folded in).
BIJECTIVE, EXACT = "bijective", "exact"


class Inexact(Exception):
    """The target's layout cannot express what the source's does."""


@dataclass(frozen=True, slots=True)
class Block:
    """Where a canonical parameter of one gate stands in a stored tensor.

    Attributes:
        stored: the tensor.
        ranges: its part, one range per dimension.
        axes: the canonical axes in the order in which the part's bytes run.
        shape: their sizes.
    """

    stored: Stored
    ranges: Ranges
    axes: tuple[str, ...]
    shape: tuple[int, ...]


def blocks(unit: Unit, stored: Stored) -> Iterator[tuple[str, str | None, Block]]:
    """Parameter, gate (None where it has none) and place of everything in one stored tensor."""
    packing = stored.row.packing
    offset = 0
    for term in packing.terms:
        gates: tuple[str | None, ...] = (None,)
        if "gate" in PARAMETERS[term.param]:
            gates = gates_of(unit.layout, term, stored.gate)
        axes = tuple(a for group in term.axes for a in group if a not in INDEXED)
        shape = tuple(unit.sizes[a] for a in axes)
        for number, gate in enumerate(gates):
            ranges = tuple(
                _range(unit, term, dim, offset if dim == packing.axis else 0, number) for dim in range(packing.rank)
            )
            yield term.param, gate, Block(stored, ranges, axes, shape)
        if packing.rank:
            offset += extent(unit.layout, term, packing.axis, unit.sizes)


def _range(unit: Unit, term: Term, dim: int, start: int, gate: int) -> range:
    """The part of one stored dimension that belongs to a gate, and to the unit's layer and direction."""
    group = dims_of(term)[dim]
    total = extent(unit.layout, term, dim, unit.sizes)
    rest = prod(unit.sizes[a] for a in group if a not in INDEXED)
    number = 0
    for axis in (a for a in group if a in INDEXED):
        size = len(unit.layout.gate_order(term.param, term.gates)) if axis == "gate" else unit.sizes[axis]
        number = number * size + (gate if axis == "gate" else unit.index[axis])
    if not group or group[0] in INDEXED or not any(a in INDEXED for a in group):
        return range(start + number * rest, start + number * rest + rest)
    step = total // rest if rest else 1
    return range(start + number, start + total, step)


def _canonical(param: str) -> tuple[str, ...]:
    return tuple(a for a in PARAMETERS[param] if a != "gate")


def unpack(leaf: Expr, block: Block, param: str) -> Expr:
    """The canonical parameter, axes in canonical order, out of the stored tensor."""
    part = values.reshape(values.cut(leaf, block.ranges), block.shape)
    return values.permute(part, [block.axes.index(a) for a in _canonical(param)])


def pack(canonical: Expr, block: Block, param: str) -> Expr:
    """The canonical parameter as the block holds it."""
    order = _canonical(param)
    part = values.permute(canonical, [order.index(a) for a in block.axes])
    return values.reshape(part, tuple(len(r) for r in block.ranges))


@dataclass(slots=True)
class Conversion:
    """One unit into another.

    Attributes:
        source, target: the units; sizes must be equal.
        specs: the source's tensors.
        forget_bias: what the source and the target add to the forget gate at run time.
        reset: a GRU's reset mode where it is known (the same on both sides).
        classed: ``bijective`` or ``exact``, of what was converted so far.
        notes: what was done beside copying, for people.
    """

    source: Unit
    target: Unit
    specs: Mapping[str, TensorSpec]
    forget_bias: tuple[float, float] = (0.0, 0.0)
    reset: str | None = None
    classed: str = BIJECTIVE
    notes: list[str] = field(default_factory=list)
    _found: dict[tuple[str, str | None], Block] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for stored in self.source.tensors:
            for param, gate, block in blocks(self.source, stored):
                self._found[param, gate] = block

    def problems(self) -> list[str]:
        """Why the target cannot be the same function, before any tensor is looked at."""
        found = []
        mine, other = self.source.sizes, self.target.sizes
        for axis, name in (("input", "inputs"), ("unit", "units"), ("hidden", "outputs")):
            if mine.get(axis) != other.get(axis):
                found.append(f"the source has {mine.get(axis)} {name}, the target {other.get(axis)}")
        for param, what in (("wp", "peepholes"), ("wr", "an output projection")):
            if param in self.source.params and param not in self.target.params:
                found.append(f"the source has {what}, the target has none")
        if "wr" in self.target.params and "wr" not in self.source.params:
            found.append("the target has an output projection, the source has none")
        if self.target.layout.derived and self.target.layout.derived != self.source.layout.derived:
            gate, of = next(iter(self.target.layout.derived.items()))
            found.append(f"the target's gate {gate} follows from its gate {of.lstrip('~')}, the source's is free")
        if not found and not {"bi", "bt"} & self.target.params:
            if {"bi", "bt"} & self.source.params:
                found.append("the source has biases, the target has none")
            elif self._delta():
                found.append(
                    f"the source adds {self.forget_bias[0]:g} to the forget gate, the target {self.forget_bias[1]:g} "
                    "and has no bias to make up for it"
                )
        if not found and self._separate() and "bt" in self.source.params and "bt" not in self.target.params:
            found.append(
                "the source keeps the candidate's recurrent bias apart (reset after), the target has no place for it"
            )
        return found

    def parts(self, stored: Stored) -> list[tuple[Ranges, Expr]]:
        """What the unit's part of one tensor of the target is computed from, and where it stands in it.

        Raises:
            Inexact: the target has a parameter that the source lacks.
        """
        found = []
        for param, gate, block in blocks(self.target, stored):
            canonical = self._signed(self._parameter(param, gate), self.target.layout, gate)
            found.append((block.ranges, pack(canonical, block, param)))
        return found

    # The canonical parameters of the source ----------------------------------------------------------------------

    def _parameter(self, param: str, gate: str | None) -> Expr:
        if param in ("bi", "bt"):
            return self._bias(param, gate)
        found = self._stored(param, gate)
        if found is not None:
            return found
        if param == "wp":
            self._say("the target's peepholes are zero")
            return self._zeros(param)
        raise Inexact(f"the source has no {param}" + (f" of gate {gate}" if gate else ""))

    def _stored(self, param: str, gate: str | None) -> Expr | None:
        """As it is stored, with the canonical sign; or derived from another gate."""
        block = self._found.get((param, gate))
        if block is None:
            of = self.source.layout.derived.get(gate or "")
            other = self._stored(param, of.lstrip("~")) if of else None
            if other is None or of is None:
                return None
            self._class()
            return values.negate(other) if of.startswith("~") else other
        leaf = values.Leaf(block.stored.name, self.specs[block.stored.name])
        return self._signed(unpack(leaf, block, param), self.source.layout, gate)

    def _signed(self, expr: Expr, layout: Layout, gate: str | None) -> Expr:
        return values.negate(expr) if gate in layout.complemented else expr

    def _bias(self, param: str, gate: str | None) -> Expr:
        """``bi`` and ``bt`` of a gate: kept apart where both sides keep both, else summed into ``bi``."""
        own, recurrent = self._stored("bi", gate), self._stored("bt", gate)
        apart = self._apart(gate)
        if param == "bt":
            if not apart:
                return self._zeros("bt")
            return recurrent if recurrent is not None else self._zeros("bt")
        terms = [own] if own is not None else []
        if recurrent is not None and not apart:
            terms.append(recurrent)
            self._class("the two biases are summed into one" if own is not None else "")
        plus = self._plus(gate)
        if not terms and not plus:
            return self._zeros("bi")
        return values.add(terms or [self._zeros("bi")], plus)

    def _apart(self, gate: str | None) -> bool:
        """Whether the target has a recurrent bias of its own for that gate."""
        for stored in self.target.tensors:
            for param, other, _ in blocks(self.target, stored):
                if param == "bt" and other == gate:
                    return True
        return False

    def _plus(self, gate: str | None) -> float:
        """What the source adds to a gate at run time and the target doesn't."""
        if self.source.layout.kind != "lstm":
            return 0.0
        if gate == "f" and self._delta():
            verb = "folded into" if self._delta() > 0 else "taken out of"
            self._class(f"the forget bias {abs(self._delta()):g} is {verb} the forget gate's bias")
            return self._delta()
        of = self.source.layout.derived.get(gate or "")
        if of and of.lstrip("~") == "f" and self.forget_bias[0]:
            return -self.forget_bias[0] if of.startswith("~") else self.forget_bias[0]
        return 0.0

    def _delta(self) -> float:
        return self.forget_bias[0] - self.forget_bias[1]

    def _separate(self) -> bool:
        return self.source.layout.kind == "gru" and self.reset == "after"

    def _zeros(self, param: str) -> Expr:
        shape = tuple(self.source.sizes[a] for a in _canonical(param))
        return values.Fill(shape, self._dtype())

    def _dtype(self) -> np.dtype[np.generic]:
        return self.specs[self.source.tensors[0].name].dtype

    def _class(self, note: str = "") -> None:
        self.classed = EXACT
        if note:
            self._say(note)

    def _say(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)
