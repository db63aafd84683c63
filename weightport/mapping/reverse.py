"""A mapping backwards: fine-tuned weights into the format and the names that they came from.

Promise: a rule that cannot be undone bit for bit is an error, before anything is read; backwards twice is the same
    mapping.
Limit: whether a cell's layouts are a bijection shows in the plan, which knows the cell.
"""

from __future__ import annotations

import math
from dataclasses import replace

from weightport.errors import MappingError, Problem
from weightport.mapping.rules import CellRule, InitRule, Mapping, Rule, TensorRule

#: Operations that lose values, and why.
_LOSSY = {
    "slice": "what it cut off is not there any more",
    "vocab": "rows of words that only one side has are not there any more",
    "cast": "it rounds",
}

_LEAVE = "leave the rule out of the mapping that goes back"


def reverse(mapping: Mapping) -> Mapping:
    """See :meth:`weightport.mapping.rules.Mapping.reversed`."""
    problems: list[Problem] = []
    path = mapping.path or "mapping"
    if mapping.sources:
        what = "the weights of several sources cannot go back by one mapping"
        problems.append(Problem(f"{path} backwards", what, "write a mapping for each source"))
    if mapping.source.average or mapping.target.average:
        what = "prefer: whether a value goes back to the variable or to its moving average is not said"
        problems.append(Problem(f"{path} backwards", what, "leave prefer out of the mapping that goes back"))
    for rule in mapping.rules:
        if isinstance(rule, TensorRule):
            problems.extend(_stuck(rule))
        elif isinstance(rule, CellRule) and rule.vocab is not None:
            what = f"vocab cannot be undone: {_LOSSY['vocab']}"
            problems.append(Problem(f"{rule.where} backwards", what, _LEAVE))
    if problems:
        raise MappingError(problems)
    return replace(
        mapping,
        source=replace(mapping.target),
        target=replace(mapping.source),
        rules=tuple(_turned(rule) for rule in mapping.rules),
        ignore=mapping.keep,
        keep=mapping.ignore,
    )


def _turned(rule: Rule) -> Rule:
    if isinstance(rule, CellRule):
        return replace(rule, source=rule.target, target=rule.source)
    turned: TensorRule | InitRule = replace(rule, backwards=not rule.backwards)
    return turned


def _stuck(rule: TensorRule) -> list[Problem]:
    """Why a rule cannot be undone."""
    found = [f"{name} cannot be undone: {why}" for name, why in _LOSSY.items() if getattr(rule.ops, name) is not None]
    if rule.ops.dequantize:
        found.append("dequantize cannot be undone: floats have more values than what is stored")
    if rule.ops.scale is not None and (not rule.ops.scale or abs(math.frexp(rule.ops.scale)[0]) != 0.5):
        found.append(f"scale: {rule.ops.scale:g} cannot be undone exactly (a power of two can)")
    bound = rule.tos[0].names
    lost = sorted({name for pattern in rule.froms for name in pattern.names} - bound)
    if lost:
        names = ", ".join(f"{{{name}}}" for name in lost)
        found.append(f"{names} does not stand in {str(rule.tos[0])!r}: the way back has no name for it")
    where = f"{rule.where} backwards"
    return [Problem(where, what, _LEAVE) for what in found]
