"""A plan as text, for people: what ``transfer --dry-run`` prints.

Promise: every rule has a line, every note and problem is said; long lists of names are counted, not spelled out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from weightport.layouts.conditions import Condition, by_tensor
from weightport.plan.model import MOVED, UNUSED, Outcome, Plan
from weightport.sizes import size

_SHOWN = 3


def lines(plan: Plan) -> Iterator[str]:
    """The text, line by line."""
    to = f" -> {plan.target_name}" if plan.target_name else ""
    yield f"{plan.source_name}{to}" + (f": {plan.description}" if plan.description else "")
    for outcome in plan.outcomes:
        yield from _outcome(outcome)
    yield f"source: {_counted(plan.source)}"
    yield f"target: {_counted(plan.target)}, {size(plan.bytes)}"
    if plan.problems:
        count = len(plan.problems)
        yield f"{count} problem{'s' if count > 1 else ''}; nothing can be written:"
        for problem in plan.problems:
            yield f"  {problem}"


def _outcome(outcome: Outcome) -> Iterator[str]:
    head = f"  {outcome.rule}: {outcome.disposition}"
    if outcome.disposition == UNUSED:
        yield f"{head} (optional, nothing matched)"
        return
    if outcome.constant:
        head += " as constant"
    if outcome.title:
        count = f": {len(outcome.sources)} tensors -> {len(outcome.targets)}" if outcome.disposition == MOVED else ""
        yield f"{head}: {outcome.title}{count}{_class(outcome)}"
        yield from (f"      {note}" for note in (*conditions(outcome), *outcome.notes))
        return
    names = _names(outcome.targets)
    yield f"{head}: " + (f"{_names(outcome.sources)} -> {names}" if outcome.sources else names) + _class(outcome)
    for note in outcome.notes:
        yield f"      {note}"


def conditions(outcome: Outcome) -> Iterator[str]:
    """What must hold of the source's values, on which tensors, and whether it does; a line for each."""
    said: dict[str, list[Condition]] = {}
    for condition in outcome.conditions:
        said.setdefault(condition.says, []).append(condition)
    for says, alike in said.items():
        looked = {True: "it holds", False: "it does not hold", None: "looked at before anything is written"}
        holds = None if any(c.holds is None for c in alike) else all(c.holds for c in alike)
        yield f"exact only where {says}: {_names(list(by_tensor(alike)))} ({looked[holds]})"


def _class(outcome: Outcome) -> str:
    if outcome.disposition != MOVED:
        return ""
    return f" ({outcome.classed})"


def _names(names: Sequence[str]) -> str:
    if len(names) <= _SHOWN:
        return ", ".join(names) or "nothing"
    return f"{', '.join(names[:_SHOWN])} and {len(names) - _SHOWN:,} more"


def _counted(dispositions: Mapping[str, str]) -> str:
    count = Counter(dispositions.values())
    tensors = f"{len(dispositions):,} tensor{'' if len(dispositions) == 1 else 's'}"
    return f"{tensors}: " + ", ".join(f"{n:,} {kind}" for kind, n in count.items()) if count else tensors
