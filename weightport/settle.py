"""The conditions of a plan, looked at in the source's values: which hold, and what is refused because one does not.

Promise: only tensors that a condition is on are read, each once, in tiles; nothing is written. All conditions that do
not hold are found, each with its first offending element. Limit: a plan without conditions is given back as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from weightport.errors import Problem
from weightport.layouts.conditions import Condition, by_tensor
from weightport.plan.model import MOVED, REFUSED, UNCLAIMED, UNCOVERED, Outcome, Plan
from weightport.ranges import Ranges, cut_out, extent, slices_of
from weightport.tensors import Array, Source

#: Tensors up to this size are read whole, which verifies their checksums; of larger ones, rows at a time.
WHOLE_BYTES, TILE_BYTES = 32 << 20, 4 << 20


def settled(plan: Plan, source: Source) -> Plan:
    """The plan with what its conditions come to; a rule with one that does not hold is refused.

    Args:
        plan: with its problems, if it has any.
        source: the plan's source.

    Raises:
        FormatError: the source is truncated or corrupt.
    """
    if not plan.conditions:
        return plan
    found = looked_at(plan.conditions, source)
    outcomes: list[Outcome] = []
    refused: list[Outcome] = []
    problems: list[Problem] = []
    for outcome in plan.outcomes:
        known = tuple(replace(c, holds=found[c] is None) for c in outcome.conditions)
        wrong = dict.fromkeys(p for c in outcome.conditions if (p := found[c]) is not None)
        if wrong:
            refused.append(outcome)
            problems.extend(wrong)
            outcome = replace(outcome, disposition=REFUSED, exact=False)
        outcomes.append(replace(outcome, conditions=known))
    changed = replace(
        plan, outcomes=tuple(outcomes), problems=(*plan.problems, *problems), unmet=(*plan.unmet, *problems)
    )
    return _without(changed, refused) if refused else changed


def unmet(conditions: Sequence[Condition], source: Source) -> list[Problem]:
    """The conditions that do not hold, as problems."""
    return list(dict.fromkeys(p for p in looked_at(conditions, source).values() if p is not None))


def looked_at(conditions: Iterable[Condition], source: Source) -> dict[Condition, Problem | None]:
    """What each condition comes to: None where it holds.

    Conditions of one kind on parts of one tensor (the gates of a bias) are one problem, with its first element.
    """
    found: dict[Condition, Problem | None] = {}
    for tensor, asked in by_tensor(conditions).items():
        spec = source.specs()[tensor]
        held = source.read(tensor) if spec.nbytes <= WHOLE_BYTES else None
        offences = {condition: _offence(condition, source, held) for condition in asked}
        alike: dict[tuple[str, str], list[Condition]] = {}
        for condition in asked:
            alike.setdefault((condition.says, condition.where), []).append(condition)
        for group in alike.values():
            first = min((at for c in group if (at := offences[c]) is not None), default=None, key=lambda at: at[0])
            for condition in group:
                found[condition] = None if first is None or offences[condition] is None else _problem(condition, *first)
    return found


def _offence(condition: Condition, source: Source, held: Array | None) -> tuple[tuple[int, ...], Any] | None:
    for start, part in _tiles(condition, source, held):
        offence = condition.offence(part, start)
        if offence is not None:
            return offence
    return None


def _tiles(condition: Condition, source: Source, held: Array | None) -> Iterator[tuple[int, Array]]:
    """Rows of the condition's part of its tensor, and the number of the first."""
    ranges: Ranges = condition.ranges
    if held is not None:
        yield 0, cut_out(held, ranges)
        return
    row = source.specs()[condition.tensor].dtype.itemsize * prod(extent(ranges[1:]))
    rows = max(1, TILE_BYTES // max(1, row))
    for start in range(0, len(ranges[0]), rows):
        some = (ranges[0][start : start + rows], *ranges[1:])
        yield start, source.read(condition.tensor, slices_of(some))


def _problem(condition: Condition, index: tuple[int, ...], value: Any) -> Problem:
    what = (
        f"the target has no {condition.lacking}, and {condition.tensor!r} is {value!s} at {list(index)}: "
        f"exact only where {condition.says}"
    )
    return Problem(condition.where, what, condition.hint)


def _without(plan: Plan, refused: Sequence[Outcome]) -> Plan:
    """The plan's accounts without what refused rules would have moved."""
    moving = [o for o in plan.outcomes if o.disposition == MOVED]
    sources = {n for o in refused for n in o.sources} - {n for o in moving for n in o.sources}
    rules = {o.rule for o in refused}
    lost = {name for name, item in plan.items.items() if item.rule in rules}
    gone = lost if not plan.target_name else frozenset()  # what no TARGET has is not there at all
    return replace(
        plan,
        items={name: item for name, item in plan.items.items() if name not in lost},
        source={name: UNCLAIMED if name in sources else said for name, said in plan.source.items()},
        target={n: UNCOVERED if n in lost else said for n, said in plan.target.items() if n not in gone},
        specs={name: spec for name, spec in plan.specs.items() if name not in gone},
    )
