"""Any layout to any layout of the same kind of cell, through the canonical parameters, one tensor at a time.

:class:`Conversion` reads the canonical parameters from the source's places (:mod:`weightport.layouts.blocks`) and lays
them into the target's. The result is an expression over source tensors (:mod:`weightport.values`): slices, permuted
axes, and at most an added constant, a sum of two biases or a sign.

Promise: what the two layouts cannot express alike is a problem with its reason, never an approximation. What they can
express alike only for some values comes with the conditions on these. Limit: values are not looked at here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from weightport import values
from weightport.layouts.blocks import Block, blocks, canonical_axes, pack, unpack
from weightport.layouts.conditions import DIAGONAL as ON_DIAGONAL
from weightport.layouts.conditions import IDENTITY, ZERO, Condition
from weightport.layouts.layout import DIAGONAL, KIND_GATES, Layout
from weightport.layouts.notation import PARAMETERS, base
from weightport.layouts.units import Stored, Unit
from weightport.ranges import Ranges
from weightport.tensors import TensorSpec
from weightport.values import Expr

#: How lossless a conversion is: ``bijective`` both ways bit for bit; ``exact`` the same function, but not reversible
#: bit for bit: biases were summed, a constant folded in, or what the source lacks does nothing in the target;
#: ``conditional``: exact where the source's values meet the conditions.
BIJECTIVE, EXACT, CONDITIONAL = "bijective", "exact", "conditional"


#: Parameters that a cell may do without, or whose places have rules of their own.
_APART = ("bi", "bt", "wp", "wr")

Key = tuple[str, str | None]  #: a canonical parameter and its gate


class Inexact(Exception):
    """The target's layout cannot express what the source's does."""


def _named(param: str, gate: str | None) -> str:
    return f"{param} of gate {gate}" if gate else param


def _square(unit: Unit) -> bool:
    """Whether an output projection of it may be the identity."""
    square = unit.sizes.get("unit") == unit.sizes.get("hidden")
    return square and unit.layout.parameters.get("wr") == PARAMETERS["wr"]


@dataclass(slots=True)
class Conversion:
    """One unit into another.

    Attributes:
        source, target: the units; sizes must be equal.
        specs: the source's tensors.
        forget_bias: what the source and the target add to the forget gate at run time.
        reset: a GRU's reset mode where it is known (the same on both sides).
        classed: ``bijective``, ``exact`` or ``conditional``, of what was converted so far.
        notes: what was done beside copying, for people.
    """

    source: Unit
    target: Unit
    specs: Mapping[str, TensorSpec]
    forget_bias: tuple[float, float] = (0.0, 0.0)
    reset: str | None = None
    classed: str = BIJECTIVE
    notes: list[str] = field(default_factory=list)
    _found: dict[Key, Block] = field(default_factory=dict)
    _homes: frozenset[Key] = frozenset()
    _left: dict[Key, tuple[str, str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for stored in self.source.tensors:
            for param, gate, block in blocks(self.source, stored):
                self._found[param, gate] = block
        self._homes = frozenset((p, g) for stored in self.target.tensors for p, g, _ in blocks(self.target, stored))
        self._left = {key: (must, lacking, says) for key, must, lacking, says in self._leaves()}
        if self._left:
            self.classed = CONDITIONAL

    def misfits(self) -> list[str]:
        """Sizes that do not agree."""
        found = []
        mine, other = self.source.sizes, self.target.sizes
        for axis, name in (("input", "inputs"), ("unit", "units"), ("hidden", "outputs")):
            if mine.get(axis) != other.get(axis):
                found.append(f"the source has {mine.get(axis)} {name}, the target {other.get(axis)}")
        for axis in sorted((set(mine) & set(other)) - {"input", "unit", "hidden", "layer", "direction", "first"}):
            if mine[axis] != other[axis]:
                found.append(f"the axis {axis} is of size {mine[axis]} in the source, {other[axis]} in the target")
        return found

    def problems(self) -> list[str]:
        """Why the target cannot be the same function, whatever the source's values are."""
        found = self.misfits()
        for param in sorted(self.source.params & self.target.params):
            axes = [" ".join(side.layout.parameters[param]) for side in (self.source, self.target)]
            if set(axes[0].split()) != set(axes[1].split()):
                found.append(f"the source's {param} has the axes {axes[0]}, the target's {axes[1]}")
        for side, other_side, one, two in (
            ("source", "target", self.source, self.target),
            ("target", "source", self.target, self.source),
        ):
            if "wr" in one.params and "wr" not in two.params and not _square(one):
                found.append(f"the {side} has an output projection, the {other_side} has none")
        for param, gate in self._found:
            if param in _APART or {(param, gate), self._diagonal(param, gate)} & self._homes:
                continue
            if gate not in self.target.layout.derived:
                found.append(f"the target has no place for {_named(param, gate)}")
        found.extend(
            f"the source has no {_named(param, gate)}"
            for param, gate in sorted(self._homes, key=lambda home: (home[0], home[1] or ""))
            if param not in _APART and not self._has(param, gate) and not self._has(*self._diagonal(param, gate))
        )
        derived = self.target.layout.derived
        if derived and derived != self.source.layout.derived:
            gate, of = next(iter(derived.items()))
            found.append(f"the target's gate {gate} follows from its gate {of.removeprefix('~')}, the source's is free")
        if not found and any(self._extra(g) and not self._biases(g) for g in self._gates()):
            found.append(
                f"the source adds {self.forget_bias[0]:g} to the forget gate, the target {self.forget_bias[1]:g} "
                "and has no bias to make up for it"
            )
        return found

    def conditions(self) -> list[Condition]:
        """What must hold of the source's values for the conversion to be exact, if it has no problems."""
        found: dict[Condition, None] = {}
        for (param, gate), (must, lacking, says) in self._left.items():
            while (param, gate) not in self._found:  # a gate that follows from another one
                gate = self.source.layout.derived[gate or ""].removeprefix("~")
            block = self._found[param, gate]
            found[Condition(block.stored.name, block.ranges, block.axes, block.shape, must, lacking, says)] = None
        return list(found)

    def _leaves(self) -> Iterator[tuple[Key, str, str, str]]:
        """What the target has no place for, and does without where it does nothing: what it must be for that, what
        the target lacks, and the condition as a sentence.
        """
        whole = not any(param == "wp" for param, _ in self._homes)
        for key in self._lost("wp"):
            name = "peepholes" if whole else f"peephole of gate {key[1]}"
            yield key, ZERO, name, f"the {name} {'are' if whole else 'is'} all zero"
        if "wr" in self.source.params and "wr" not in self.target.params and _square(self.source):
            yield ("wr", None), IDENTITY, "output projection", "the output projection is the identity"
        for key in self._lost("wt"):
            if self._diagonal(*key) in self._homes:
                says = "the recurrent weights are zero off their diagonals"
                yield key, ON_DIAGONAL, "recurrent weights off their diagonals", says
        none = not any(param in ("bi", "bt") for param, _ in self._homes)
        for key in self._lost("bi", "bt"):
            param, gate = key
            if none:
                yield key, ZERO, "biases", "the biases are all zero"
            elif not self._biases(gate):
                yield key, ZERO, f"bias of gate {gate}", f"the bias of gate {gate} is all zero"
            elif not self._summed(gate):
                gru = self.source.layout.family == "gru" and param == "bt"
                name = "the candidate's recurrent bias" if gru else f"{param} of gate {gate} apart"
                yield key, ZERO, f"place for {name}", f"{name.removesuffix(' apart')} is all zero"

    def _lost(self, *params: str) -> list[Key]:
        """Of these parameters, what the source has for the gates that the target stores and the target does not."""
        keys = ((param, gate) for gate in self._gates() for param in params)
        return [key for key in keys if self._has(*key) and key not in self._homes]

    def _biases(self, gate: str | None) -> set[Key]:
        """The biases of a gate that the target has."""
        return {("bi", gate), ("bt", gate)} & self._homes

    def _summed(self, gate: str | None) -> bool:
        """Whether two biases of a gate may be summed into one."""
        if self.source.layout.family not in KIND_GATES:  # what it does with a second one is not known
            return False
        return self.source.layout.family != "gru" or gate != "n" or self.reset == "before"

    def _diagonal(self, param: str, gate: str | None) -> Key:
        """What recurrent weights of a gate are on the other side, where one of the two has their diagonals only."""
        if self.target.layout.diagonal != self.source.layout.diagonal:
            return {"wt": DIAGONAL, DIAGONAL: "wt"}.get(param, param), gate
        return param, gate

    def parts(self, stored: Stored) -> list[tuple[Ranges, Expr]]:
        """What the unit's part of one tensor of the target is computed from, and where it stands in it.

        Raises:
            Inexact: the target has a parameter that the source lacks.
        """
        found = []
        for param, gate, block in blocks(self.target, stored):
            canonical = self._signed(self._parameter(param, gate), self.target.layout, gate)
            # A layout may declare its own parameters in another order.
            known = param in self.source.layout.parameters
            order = canonical_axes(self.source.layout if known else self.target.layout, param)
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
        if param == "wr" and _square(self.target):
            self._class("the target's output projection is the identity")
            return values.Diagonal(values.Fill((self.target.sizes["unit"],), self._dtype(), 1.0))
        other = self._stored(*self._diagonal(param, gate))
        if other is not None and param == DIAGONAL:
            return values.OnDiagonal(other)
        if other is not None:
            self._class("the target's recurrent weights are zero off their diagonals")
            return values.Diagonal(other)
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
        return self._signed(unpack(leaf, block, canonical_axes(self.source.layout, param)), self.source.layout, gate)

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
        kept = (p for p in ((param,) if apart else ("bi", "bt")) if (p, gate) not in self._left)
        stored = [self._stored(p, gate) for p in kept]
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
        shape = tuple(self.target.sizes[base(a)] for a in canonical_axes(self.target.layout, param))
        return values.Fill(shape, self._dtype())

    def _dtype(self) -> np.dtype[np.generic]:
        return self.specs[self.source.tensors[0].name].dtype

    def _class(self, note: str = "") -> None:
        if self.classed == BIJECTIVE:
            self.classed = EXACT
        if note:
            self._say(note)

    def _say(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def canonical(unit: Unit, specs: Mapping[str, TensorSpec], forget_bias: float = 0.0) -> dict[Key, Expr]:
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
