"""Any layout to any layout of the same kind of cell, through the canonical parameters, one tensor at a time.

:func:`blocks` says where each canonical parameter of a unit stands in its tensors; :class:`Conversion` reads them from
the source's places and lays them into the target's. The result is an expression over source tensors
(:mod:`weightport.values`): slices, permuted axes, and at most an added constant, a sum of two biases or a sign.

Promise: what the two layouts cannot express alike is an :class:`Inexact` with its reason, never an approximation.
Limit: values are not looked at, so a target without peepholes refuses a source with peepholes that happen to be zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from weightport import values
from weightport.layouts.layout import KIND_GATES, Layout
from weightport.layouts.notation import INDEXED, Term, base
from weightport.layouts.units import Stored, Unit, dims_of, extent, gates_of
from weightport.ranges import Ranges
from weightport.tensors import TensorSpec
from weightport.values import Expr

#: How lossless a conversion is: ``bijective`` both ways bit for bit; ``exact`` the same function, but not reversible
#: bit for bit: biases were summed, a constant folded in, or what the source lacks is zero in the target.
BIJECTIVE, EXACT = "bijective", "exact"


#: Parameters that a cell may do without, or whose places have rules of their own.
_APART = ("bi", "bt", "wp", "wr")


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
        if "gate" in unit.layout.parameters[term.param]:
            gates = gates_of(unit.layout, term, stored.gate)
        axes = tuple(a for group in term.axes for a in group if a not in INDEXED)
        shape = tuple(unit.sizes[base(a)] for a in axes)
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
    rest = prod(unit.sizes[base(a)] for a in group if a not in INDEXED)
    number = 0
    for axis in (a for a in group if a in INDEXED):
        size = len(unit.layout.gate_order(term.param, term.gates)) if axis == "gate" else unit.sizes[axis]
        number = number * size + (gate if axis == "gate" else unit.index[axis])
    if not group or group[0] in INDEXED or not any(a in INDEXED for a in group):
        return range(start + number * rest, start + number * rest + rest)
    step = total // rest if rest else 1
    return range(start + number, start + total, step)


def _canonical(layout: Layout, param: str) -> tuple[str, ...]:
    return tuple(a for a in layout.parameters[param] if a != "gate")


def unpack(leaf: Expr, block: Block, order: Sequence[str]) -> Expr:
    """The canonical parameter, its axes in that order, out of the stored tensor."""
    part = values.reshape(values.cut(leaf, block.ranges), block.shape)
    return values.permute(part, [block.axes.index(a) for a in order])


def pack(canonical: Expr, block: Block, order: Sequence[str]) -> Expr:
    """The canonical parameter, its axes in that order, as the block holds it."""
    part = values.permute(canonical, [order.index(a) for a in block.axes])
    return values.reshape(part, tuple(len(r) for r in block.ranges))


def _named(param: str, gate: str | None) -> str:
    return f"{param} of gate {gate}" if gate else param


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
    _homes: frozenset[tuple[str, str | None]] = frozenset()

    def __post_init__(self) -> None:
        for stored in self.source.tensors:
            for param, gate, block in blocks(self.source, stored):
                self._found[param, gate] = block
        self._homes = frozenset((p, g) for stored in self.target.tensors for p, g, _ in blocks(self.target, stored))

    def problems(self) -> list[str]:
        """Why the target cannot be the same function, before any tensor is looked at."""
        found = []
        mine, other = self.source.sizes, self.target.sizes
        for axis, name in (("input", "inputs"), ("unit", "units"), ("hidden", "outputs")):
            if mine.get(axis) != other.get(axis):
                found.append(f"the source has {mine.get(axis)} {name}, the target {other.get(axis)}")
        for axis in sorted((set(mine) & set(other)) - {"input", "unit", "hidden", "layer", "direction"}):
            if mine[axis] != other[axis]:
                found.append(f"the axis {axis} is of size {mine[axis]} in the source, {other[axis]} in the target")
        for param in sorted(self.source.params & self.target.params):
            axes = [" ".join(side.layout.parameters[param]) for side in (self.source, self.target)]
            if set(axes[0].split()) != set(axes[1].split()):
                found.append(f"the source's {param} has the axes {axes[0]}, the target's {axes[1]}")
        if "wp" in self.source.params and "wp" not in self.target.params:
            found.append("the source has peepholes, the target has none")
        elif lost := [g for g in self._gates() if self._has("wp", g) and ("wp", g) not in self._homes]:
            found.append(f"the source has a peephole of gate {lost[0]}, the target has none")
        sides = (("source", self.source.params), ("target", self.target.params))
        for (side, params), (other_side, others) in (sides, sides[::-1]):
            if "wr" in params and "wr" not in others:
                found.append(f"the {side} has an output projection, the {other_side} has none")
        for param, gate in self._found:
            if param in _APART or (param, gate) in self._homes or gate in self.target.layout.derived:
                continue
            found.append(f"the target has no place for {_named(param, gate)}")
        found.extend(
            f"the source has no {_named(param, gate)}"
            for param, gate in sorted(self._homes, key=lambda home: (home[0], home[1] or ""))
            if param not in _APART and not self._has(param, gate)
        )
        derived = self.target.layout.derived
        if derived and derived != self.source.layout.derived:
            gate, of = next(iter(derived.items()))
            found.append(f"the target's gate {gate} follows from its gate {of.removeprefix('~')}, the source's is free")
        return found or self._bias_problems()

    def _bias_problems(self) -> list[str]:
        has = {g: [p for p in ("bi", "bt") if self._has(p, g)] for g in self._gates()}
        homes = {g: [p for p in ("bi", "bt") if (p, g) in self._homes] for g in has}
        homeless = [g for g in has if has[g] and not homes[g]]
        if homeless and not any(homes.values()):
            return ["the source has biases, the target has none"]
        if homeless:
            return [f"the source has a bias of gate {homeless[0]}, the target has none"]
        if any(self._extra(g) and not homes[g] for g in has):
            return [
                f"the source adds {self.forget_bias[0]:g} to the forget gate, the target {self.forget_bias[1]:g} "
                "and has no bias to make up for it"
            ]
        for gate in has:
            if not set(has[gate]) <= set(homes[gate]) and (why := self._not_one(gate)):
                return [f"the source keeps {why}, the target has no place for it"]
        return []

    def _not_one(self, gate: str) -> str:
        """What may not be summed with the gate's other bias, and why; empty where they may."""
        kind = self.source.layout.kind
        if kind not in KIND_GATES:
            return f"a second bias of gate {gate} apart (what a {kind} does with it is not known)"
        if kind != "gru" or gate != "n" or self.reset == "before":
            return ""
        why = "reset after" if self.reset == "after" else "where the reset gate acts is not known"
        return f"the candidate's recurrent bias apart ({why})"

    def parts(self, stored: Stored) -> list[tuple[Ranges, Expr]]:
        """What the unit's part of one tensor of the target is computed from, and where it stands in it.

        Raises:
            Inexact: the target has a parameter that the source lacks.
        """
        found = []
        for param, gate, block in blocks(self.target, stored):
            canonical = self._signed(self._parameter(param, gate), self.target.layout, gate)
            order = _canonical(self.source.layout, param)  # a layout may declare its own parameters in another one
            found.append((block.ranges, pack(canonical, block, order)))
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
        raise Inexact(f"the source has no {_named(param, gate)}")

    def _stored(self, param: str, gate: str | None) -> Expr | None:
        """As it is stored, with the canonical sign; or derived from another gate."""
        block = self._found.get((param, gate))
        if block is None:
            of = self.source.layout.derived.get(gate or "")
            other = self._stored(param, of.removeprefix("~")) if of else None
            if other is None or of is None:
                return None
            self._class()
            return values.negate(other) if of.startswith("~") else other
        leaf = values.Leaf(block.stored.name, self.specs[block.stored.name])
        return self._signed(unpack(leaf, block, _canonical(self.source.layout, param)), self.source.layout, gate)

    def _has(self, param: str, gate: str | None) -> bool:
        """Whether :meth:`_stored` gives something."""
        of = self.source.layout.derived.get(gate or "")
        return (param, gate) in self._found or (of is not None and self._has(param, of.removeprefix("~")))

    def _gates(self) -> tuple[str, ...]:
        """The gates that the target stores."""
        return self.target.layout.gates

    def _signed(self, expr: Expr, layout: Layout, gate: str | None) -> Expr:
        return values.negate(expr) if gate in layout.complemented else expr

    def _bias(self, param: str, gate: str | None) -> Expr:
        """``bi`` or ``bt`` of a gate: kept apart where the target has both, else one sum."""
        apart = {("bi", gate), ("bt", gate)} <= self._homes
        stored = [self._stored(p, gate) for p in ((param,) if apart else ("bi", "bt"))]
        terms = [term for term in stored if term is not None]
        if len(terms) > 1:
            self._class("the two biases are summed into one")
        plus = 0.0 if apart and param == "bt" else self._extra(gate)
        if plus and gate in (*self.source.layout.forget_gates, *self.target.layout.forget_gates):
            verb = "folded into" if plus > 0 else "taken out of"
            self._class(f"the forget bias {abs(plus):g} is {verb} the forget gate's bias")
        return values.add(terms or [self._zeros(param)], plus)

    def _extra(self, gate: str | None) -> float:
        """What the source adds to a gate at run time and the target doesn't."""
        mine, its = self.source.layout, self.target.layout
        plus = -self.forget_bias[1] if gate in its.forget_gates else 0.0
        of = mine.derived.get(gate or "")
        if of is None:
            return plus + self.forget_bias[0] if gate in mine.forget_gates else plus
        if of.removeprefix("~") not in mine.forget_gates:
            return plus
        return plus - self.forget_bias[0] if of.startswith("~") else plus + self.forget_bias[0]

    def _zeros(self, param: str) -> Expr:
        self._class()  # the way back has no place for them
        shape = tuple(self.target.sizes[base(a)] for a in _canonical(self.target.layout, param))
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


def canonical(
    unit: Unit, specs: Mapping[str, TensorSpec], forget_bias: float = 0.0
) -> dict[tuple[str, str | None], Expr]:
    """Every canonical parameter of a unit as an expression over its tensors: (parameter, gate or None) -> value.

    Complemented gates come with the canonical sign, gates that follow from another one as parameters of their own.

    Args:
        forget_bias: what is added to the forget gate at run time. It is not in the forget gate's bias here, but in that
            of a gate that follows from it.
    """
    read = Conversion(unit, unit, specs, (forget_bias, forget_bias))
    keys = list(read._found)
    for gate, of in unit.layout.derived.items():
        keys += [(param, gate) for param, other in read._found if other == of.removeprefix("~")]
    found = {key: expr for key in keys if (expr := read._stored(*key)) is not None}
    for gate in unit.layout.derived:
        plus = read._extra(gate)
        if plus:
            found["bi", gate] = values.add([found.get(("bi", gate)) or read._zeros("bi")], plus)
    return found
