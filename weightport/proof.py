"""Verification: that a written model holds what the mapping says, and that each moved cell is the same function.

Every moved tensor is computed once more from the source and compared, and every pair of cells runs side by side in
numpy (:mod:`weightport.layouts.reference`), each from its own file by its own layout, on random and on adversarial
inputs.

Promise: both files are read anew; nothing of an earlier plan is trusted. Limit: what a cell does beside its weights is
what the files record or the mapping says; where both are silent, the two sides are taken to do the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from weightport.causes import likely_cause
from weightport.errors import Problem, printable
from weightport.execute import Reader
from weightport.layouts.activations import ACTIVATIONS
from weightport.layouts.behaviour import Behaviour, Said
from weightport.layouts.rare import Parameters
from weightport.layouts.reference import KINDS, ReferenceCell, parameters, why_not_run
from weightport.layouts.units import Unit
from weightport.live import LiveCell
from weightport.losses import Loss, loss_of
from weightport.mapping.rules import CellRule
from weightport.mapping.rules import Mapping as Rules
from weightport.plan import Plan, cells
from weightport.plan import plan as make
from weightport.plan.model import Item
from weightport.plan.names import ended, matching
from weightport.plan.words import INPUT, Words, only
from weightport.ranges import Ranges, slices_of
from weightport.settle import settled
from weightport.tensors import Array, Source

#: Outputs that differ by more are another function: two orders of magnitude above float32's rounding of weights near 1.
TOLERANCE = 1e-5
#: Frameworks compute in float32, each in an order of its own.
LIVE_TOLERANCE = 1e-4
STEPS, LONG_STEPS, BATCH = 24, 400, 3


@dataclass(frozen=True, slots=True)
class TensorProof:
    """How far a moved tensor is from what the mapping makes of the source; None where values cannot be subtracted."""

    name: str
    max_abs_diff: float | None

    @property
    def equal(self) -> bool:
        """Bit for bit, but that -0.0 is 0.0."""
        return self.max_abs_diff == 0


@dataclass(frozen=True, slots=True)
class CellProof:
    """How far a moved cell's outputs are from the source's.

    Attributes:
        rule: the rule's name.
        where: the two cells' scopes.
        max_abs_diff: the largest difference of outputs and cell states.
        steps: how many steps were run in all.
        first: the first step (of the input where it is largest) whose difference is above the tolerance; None if none
            is.
        inputs: the kind of input where it is largest.
        cause: what is likely wrong, if something is.
        by: what ran the two cells: ``numpy``, or the frameworks.
    """

    rule: str
    where: str
    max_abs_diff: float
    steps: int
    first: int | None = None
    inputs: str = ""
    cause: str = ""
    by: str = "numpy"

    @property
    def equal(self) -> bool:
        """The same function, as far as float32 weights (and frameworks that compute in float32) can tell."""
        return self.max_abs_diff <= (TOLERANCE if self.by == "numpy" else LIVE_TOLERANCE)


@dataclass(frozen=True, slots=True)
class Verification:
    """What ``verify`` found.

    Attributes:
        tensors: one for each tensor that the mapping gives a value.
        cells: one for each pair of units of the cell rules.
        notes: cells that could not be run, and why.
        losses: what the mapping's casts lost.
    """

    plan: Plan
    tensors: tuple[TensorProof, ...]
    cells: tuple[CellProof, ...]
    notes: tuple[str, ...] = field(default=())
    losses: tuple[Loss, ...] = field(default=())

    @property
    def equal(self) -> bool:
        """Every tensor and every cell."""
        return all(t.equal for t in self.tensors) and all(c.equal for c in self.cells)

    def problems(self) -> list[Problem]:
        """What differs, the cells with their likely cause first."""
        found = []
        for cell in self.cells:
            if not cell.equal:
                apart = f"outputs differ by {cell.max_abs_diff:.3g}, from step {cell.first} of {cell.inputs} on"
                found.append(Problem(cell.rule, f"{cell.where}: {apart}", cell.cause))
        for tensor in self.tensors:
            if not tensor.equal:
                how = "cannot be compared" if tensor.max_abs_diff is None else f"differs by {tensor.max_abs_diff:.3g}"
                found.append(Problem(tensor.name, f"{how} from what the mapping makes of the source"))
        return found

    def as_json(self) -> dict[str, Any]:
        """The document that ``verify --json`` prints."""
        return {
            "equal": self.equal,
            "tensors": [{"name": t.name, "max_abs_diff": t.max_abs_diff} for t in self.tensors],
            "cells": [
                {
                    "rule": c.rule,
                    "max_abs_diff": c.max_abs_diff,
                    "steps": c.steps,
                    "where": c.where,
                    "by": c.by,
                    "cause": c.cause,
                }
                for c in self.cells
            ],
            "notes": list(self.notes),
            "losses": [loss.as_json() for loss in self.losses],
            "problems": [p.as_json() for p in self.problems()],
        }

    def __str__(self) -> str:
        moved = sum(t.equal for t in self.tensors)
        lines = [f"{moved} of {len(self.tensors)} tensors hold what the mapping makes of the source"]
        for cell in self.cells:
            same = "the same function" if cell.equal else "NOT the same function"
            apart = f"at most {cell.max_abs_diff:.3g} apart in {cell.steps} steps"
            apart += f" of {cell.by}" if cell.by != "numpy" else ""
            lines.append(f"  {cell.rule}: {cell.where}: {same}: {apart}")
        return "\n".join(map(printable, [*lines, *(f"  {note}" for note in (*self.notes, *self.losses))]))


def verify(source: Source, out: Source, rules: Rules, *, live: bool = False) -> Verification:
    """Compare a written model with the source, through the mapping.

    Args:
        source: what the weights came from.
        out: what was written: it is planned as the target, so that every tensor of it is accounted for.
        rules: the mapping.
        live: run the frameworks' own cells, too, where they are installed.

    Raises:
        PlanError: the mapping does not fit the two.
        ConditionError: the source's values do not meet the conditions of the plan.
        FormatError: a file is truncated or corrupt.
    """
    planned = settled(make(source, out, rules, target_name=out.path), source).check()
    reader = Reader(source)
    tensors = tuple(TensorProof(item.name, difference(reader, item, out)) for item in planned.items.values())
    proofs: list[CellProof] = []
    notes: list[str] = []
    for rule in rules.rules:
        if isinstance(rule, CellRule):
            proofs.extend(_cells(rule, rules, source, out, notes, live))
    losses = tuple(loss for item in planned.items.values() if (loss := loss_of(reader, item)) is not None)
    return Verification(planned, tensors, tuple(proofs), tuple(notes), losses)


# Values --------------------------------------------------------------------------------------------------------------


def difference(reader: Reader, item: Item, out: Source) -> float | None:
    """The largest difference between an item's value and what a file holds under its name; None if it has none."""
    largest = 0.0
    start = 0
    for tile in reader.tiles(item):
        rows = (slice(start, start + tile.shape[0]),) if tile.shape else None
        start += tile.shape[0] if tile.shape else 0
        found = _apart(tile, out.read(item.name, rows))
        if found is None:
            return None
        largest = max(largest, found)
    return largest


def _apart(expected: Array, found: Array) -> float | None:
    if expected.dtype != found.dtype or expected.shape != found.shape:
        return None
    if expected.dtype.kind in "OSU":
        return 0.0 if np.array_equal(expected, found) else None
    if expected.tobytes() == found.tobytes():
        return 0.0
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    a, b = expected.astype(wide), found.astype(wide)
    unlike = (expected != found) & ~(np.isnan(a) & np.isnan(b))
    if not unlike.any():
        return 0.0
    apart = float(np.abs(a[unlike] - b[unlike]).max())
    return apart if np.isfinite(apart) else None


# Functions -----------------------------------------------------------------------------------------------------------


def _cells(
    rule: CellRule, rules: Rules, source: Source, out: Source, notes: list[str], live: bool
) -> Iterator[CellProof]:
    mine = cells.Side(source.specs(), source.facts, rules.source.scope, getattr(source, "root", ""))
    its = cells.Side(out.specs(), out.facts, rules.target.scope, getattr(out, "root", ""))
    skip = matching(rules.ignore, source.specs(), ended(rules.source.scope, source.specs()) or mine.root)
    pairs = cells.move(rule, mine, its, rules.layouts, skip).pairs
    closed = {p.where: why for p in pairs if (why := why_not_run(p.source) or why_not_run(p.target))}
    if closed:
        notes.extend(f"{rule.name}: {where}: {why}" for where, why in closed.items())
        return
    loaded = [(_loaded(source, p.source, p.mine), _loaded(out, p.target, p.its)) for p in pairs]
    for number, pair in enumerate(pairs):
        where = pair.where
        unknown = [s.value for s in _activations(pair) if s.value not in ACTIVATIONS]
        if unknown:
            notes.append(f"{rule.name}: {where}: the activation {unknown[0]} is not known here: values compared only")
            continue
        if pair.mine.variant.value is not None:
            notes.append(f"{rule.name}: {where}: the cell {pair.mine.variant.value}: values compared only")
            continue
        does = _agreed(pair.mine, pair.its)
        first = ReferenceCell(pair.source.layout.kind, loaded[number][0], does[0], pair.source.sizes)
        second = ReferenceCell(pair.target.layout.kind, loaded[number][1], does[1], pair.target.sizes)
        if pair.words is not None:
            first, second = _common(pair.words, pair, first, second)
        proof = compare(rule.name, where, first, second)
        if not proof.equal and first.kind == second.kind:
            others = [b for k, (_, b) in enumerate(loaded) if k != number]
            proof = replace(proof, cause=likely_cause(first, second, others))
        yield proof
        if live and pair.words is not None:
            notes.append(f"{rule.name}: {where}: a cell with other words is not run by its framework")
        elif live:
            cells_ = LiveCell(pair.source, source, does[0], first), LiveCell(pair.target, out, does[1], second)
            yield replace(compare_live(rule.name, where, *cells_, notes), cause=proof.cause)


def _common(
    words: Words, pair: cells.Pair, first: ReferenceCell, second: ReferenceCell
) -> tuple[ReferenceCell, ReferenceCell]:
    """Both cells with the words that both have for their inputs."""
    old, new = words.common()
    return (
        replace(first, parameters=only(first.parameters, pair.source, old), sizes={**first.sizes, INPUT: len(old)}),
        replace(second, parameters=only(second.parameters, pair.target, new), sizes={**second.sizes, INPUT: len(new)}),
    )


def _activations(pair: cells.Pair) -> list[Said]:
    found = [pair.mine.activation, pair.its.activation]
    if pair.source.layout.family != "rnn":
        found += [pair.mine.recurrent_activation, pair.its.recurrent_activation]
    return [s for s in found if s.value is not None]


def _agreed(mine: Behaviour, its: Behaviour) -> tuple[Behaviour, Behaviour]:
    """What only one side knows is taken to hold on the other, but for the forget bias, which every layout knows."""

    def settled(one: Behaviour, other: Behaviour) -> Behaviour:
        chosen = {}
        for key in Behaviour.__slots__:
            said, answer = getattr(one, key), getattr(other, key)
            chosen[key] = answer if key != "forget_bias" and not said.known and answer.known else said
        return Behaviour(**chosen)

    return settled(mine, its), settled(its, mine)


def _loaded(source: Source, unit: Unit, does: Behaviour) -> Parameters:
    def fetch(name: str, ranges: Ranges) -> Array:
        return source.read(name, slices_of(ranges))

    return parameters(unit, source.specs(), fetch, float(does.forget_bias.value))


def inputs(cell: ReferenceCell, seed: int = 0, steps: int | None = None) -> Iterator[tuple[str, Array, Array, Array]]:
    """What a cell is run on: kind, inputs ``[time, batch, input]``, initial output and cell state.

    Args:
        steps: of the long sequence; by default, as many as large cells can afford.
    """
    rng = np.random.default_rng(seed)
    x, h, c = cell.shapes

    def made(scale: float, steps: int, states: float) -> tuple[Array, Array, Array]:
        sequence = KINDS[cell.kind].prepared(scale * rng.normal(size=(steps, BATCH, *x)))
        return sequence, states * rng.normal(size=(BATCH, *h)), states * rng.normal(size=(BATCH, *c))

    yield "random inputs", *made(1.0, STEPS, 0.5)
    yield "zeros", *made(0.0, STEPS, 0.0)
    yield "saturating inputs", *made(30.0, STEPS, 3.0)
    yield "small inputs", *made(1e-3, STEPS, 1e-3)
    if steps is None:
        steps = max(STEPS, min(LONG_STEPS, 80_000_000 // max(1, cell.work)))
    yield "a long sequence", *made(1.0, steps, 1.0)


def compare(rule: str, where: str, first: ReferenceCell, second: ReferenceCell) -> CellProof:
    """Two cells side by side, step by step."""
    worst, at, kind, total = 0.0, None, "", 0
    for name, x, h, c in inputs(first):
        start: int | None = None
        largest = 0.0
        for step, (a, b) in enumerate(zip(first.run(x, h, c), second.run(x, h, c), strict=True)):
            apart = max(_distance(a[0], b[0]), _distance(a[1], b[1]))
            largest = max(largest, apart)
            if start is None and apart > TOLERANCE:
                start = step
            total += 1
        if largest > worst:
            worst, at, kind = largest, start, name
    return CellProof(rule, where, worst, total, at, kind)


def compare_live(rule: str, where: str, first: LiveCell, second: LiveCell, notes: list[str]) -> CellProof:
    """Two cells side by side, each in its own framework where that is installed."""
    worst, at, kind, total = 0.0, None, "", 0
    for name, x, h, c in inputs(first.reference, steps=STEPS):
        a, b = first.run(x, h, c), second.run(x, h, c)
        # Sums in float32 are off by a share of their largest terms: small outputs beside large ones too.
        largest = [float(np.abs(one[np.isfinite(one)]).max(initial=0.0)) for one in a]
        apart = [_distance(*step) for step in zip(a, b, largest, strict=True)]
        total += len(apart)
        if max(apart) > worst:
            worst, kind = max(apart), name
            at = next((step for step, gap in enumerate(apart) if gap > LIVE_TOLERANCE), None)
    for cell in (first, second):
        if cell.note:
            notes.append(f"{rule}: {where}: {cell.note}")
    return CellProof(rule, where, worst, total, at, kind, by=f"{first.by} and {second.by}")


def _distance(a: Array, b: Array, scale: float = 1.0) -> float:
    found = np.abs(a - b) / np.maximum(max(1.0, scale), np.abs(a))
    found = np.where(np.isnan(a) & np.isnan(b), 0.0, found)
    return float(np.nan_to_num(found, nan=np.inf).max(initial=0.0))
