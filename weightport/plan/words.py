"""Cells whose inputs are words: the rows of their input weights moved by word, from one vocabulary to another.

A cell that takes one-hot words (or letters) has one row of ``wx`` for each. Moving it to another vocabulary is moving
it as if it had been trained with that one: :class:`Reworded` converts a unit with the new number of inputs, whose
tensors are put together from the real ones.

Promise: only ``wx`` of the first layer changes, and there only by rows; all else is what moving the cell is without a
vocabulary. Limit: layouts that hold the input weights of several layers in one tensor.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from weightport import values
from weightport.layouts.blocks import blocks, canonical_axes, pack, unpack
from weightport.layouts.conditions import Condition
from weightport.layouts.convert import BIJECTIVE, EXACT, Conversion
from weightport.layouts.notation import base
from weightport.layouts.rare import Parameters
from weightport.layouts.stacks import Cell
from weightport.layouts.units import Stored, Unit, packed_shape
from weightport.mapping.rules import Vocab
from weightport.plan import ops
from weightport.plan.ops import Unfit
from weightport.ranges import Ranges, extent
from weightport.tensors import TensorSpec
from weightport.values import Expr

INPUT = "input"


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a cell's inputs.

    Attributes:
        rows: new input -> old input, or -1.
        vocab: what the rule says.
        units: the units of the cell that take words: those of its first layer.
    """

    rows: tuple[int, ...]
    vocab: Vocab
    units: tuple[Unit, ...]

    @classmethod
    def of(cls, vocab: Vocab, cell: Cell, notes: list[str]) -> Words:
        """The words of a cell.

        Raises:
            Unfit: the vocabulary does not fit the cell's inputs.
            MappingError: a vocabulary file cannot be read.
        """
        first = tuple(u for u in cell.units if u.layer == 0)
        if not first:
            raise Unfit("vocab: the first layer, which takes the words, is not among those that are picked")
        rows = ops.vocab_rows(vocab, first[0].sizes[INPUT], f"{cell.scope or 'the cell'} has", notes)
        return cls(rows, vocab, first)

    def renamed(self, unit: Unit) -> Unit:
        """The unit as it would be with the new words."""
        return replace(unit, sizes={**unit.sizes, INPUT: len(self.rows)})

    def common(self) -> tuple[list[int], list[int]]:
        """The words that both vocabularies have: their old rows, and their new ones."""
        new = [row for row, old in enumerate(self.rows) if old >= 0]
        return [self.rows[row] for row in new], new


class Reworded:
    """The conversion of a unit whose inputs get new words; what :class:`~weightport.layouts.convert.Conversion` is
    without them.
    """

    def __init__(
        self,
        words: Words,
        source: Unit,
        target: Unit,
        specs: Mapping[str, TensorSpec],
        forget_bias: tuple[float, float],
        reset: str | None,
    ) -> None:
        self._words, self._specs = words, specs
        new = words.renamed(source)
        changed = {s.name: _spec(new, s, specs[s.name]) for s in source.tensors if _has_input(s)}
        self._real = Conversion(source, target, specs, forget_bias, reset)
        self._new = Conversion(new, target, ChainMap(changed, dict(specs)), forget_bias, reset)
        self._leaves = {name: self._put_together(name, spec) for name, spec in changed.items()}

    @property
    def notes(self) -> list[str]:
        """What was done beside copying."""
        return self._new.notes

    @property
    def classed(self) -> str:
        """Words that only one side has are lost on the way back."""
        return EXACT if self._new.classed == BIJECTIVE else self._new.classed

    def misfits(self) -> list[str]:
        """Sizes that do not agree."""
        return self._new.misfits()

    def problems(self) -> list[str]:
        """Why the target cannot be the same function."""
        return self._new.problems()

    def conditions(self) -> list[Condition]:
        """What must hold of the source's values, which are where they really are."""
        return self._real.conditions()

    def parts(self, stored: Stored) -> list[tuple[Ranges, Expr]]:
        """What the unit's part of one tensor of the target is computed from, and where it stands in it."""
        return [(place, values.replaced(expr, self._leaf)) for place, expr in self._new.parts(stored)]

    def _leaf(self, leaf: values.Leaf) -> Expr:
        return self._leaves.get(leaf.name, leaf)

    def _put_together(self, name: str, spec: TensorSpec) -> Expr:
        """A tensor of the source as it would be with the new words."""
        leaf = values.Leaf(name, self._specs[name])
        parts: list[tuple[Ranges, Expr]] = []
        for unit in self._words.units:
            new = self._words.renamed(unit)
            for stored in (s for s in unit.tensors if s.name == name):
                for (param, gate, old), (_, _, place) in zip(blocks(unit, stored), blocks(new, stored), strict=True):
                    order = canonical_axes(unit.layout, param)
                    part = unpack(leaf, old, order)
                    if INPUT in map(base, order):
                        axis = [base(a) for a in order].index(INPUT)
                        part = ops.taken(part, axis, self._words.rows, self._words.vocab, f"{name}/{gate or param}")
                    parts.append((place.ranges, pack(part, place, order)))
        if sum(prod(extent(place)) for place, _ in parts) != prod(spec.shape):
            raise Unfit(f"vocab: {name!r} holds input weights of several layers")
        return values.assemble(spec.shape, spec.dtype, parts)


def _has_input(stored: Stored) -> bool:
    return any(base(axis) == INPUT for term in stored.row.packing.terms for axis in term.names())


def _spec(unit: Unit, stored: Stored, spec: TensorSpec) -> TensorSpec:
    return TensorSpec.of(spec.dtype, packed_shape(unit.layout, stored, unit.sizes))


def only(parameters: Parameters, unit: Unit, rows: Sequence[int]) -> Parameters:
    """The canonical parameters of a unit, of these inputs only."""
    found = dict(parameters)
    for param, gate in parameters:
        order = [base(a) for a in canonical_axes(unit.layout, param)] if param in unit.layout.parameters else []
        if INPUT in order:
            found[param, gate] = np.take(parameters[param, gate], rows, order.index(INPUT))
    return found
