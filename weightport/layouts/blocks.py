"""Where each canonical parameter of a unit stands in its tensors, and reading it from there or laying it into it.

Promise: a part of a tensor and its place, nothing else: no value is changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from weightport import values
from weightport.layouts.layout import Layout
from weightport.layouts.notation import INDEXED, Term, base
from weightport.layouts.units import Stored, Unit, dims_of, extent, gates_of, starts
from weightport.ranges import Ranges
from weightport.values import Expr


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
    begins = starts(unit, packing) if packing.runs else []
    for place, term in enumerate(packing.terms):
        offset = begins[place] if begins else offset
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


def canonical_axes(layout: Layout, param: str) -> tuple[str, ...]:
    """The axes of a parameter of one gate."""
    return tuple(a for a in layout.parameters[param] if a != "gate")


def unpack(leaf: Expr, block: Block, order: Sequence[str]) -> Expr:
    """The canonical parameter, its axes in that order, out of the stored tensor."""
    part = values.reshape(values.cut(leaf, block.ranges), block.shape)
    return values.permute(part, [block.axes.index(a) for a in order])


def pack(canonical: Expr, block: Block, order: Sequence[str]) -> Expr:
    """The canonical parameter, its axes in that order, as the block holds it."""
    part = values.permute(canonical, [order.index(a) for a in block.axes])
    return values.reshape(part, tuple(len(r) for r in block.ranges))
