"""The accounts of a transfer: every tensor of either side has a disposition, or is a problem.

Promise: each weight that is left over is named; what a training left beside the weights (optimizer slots and the like)
is one problem for each kind. Limit: constants of a graph are no weights and need no disposition; a target's own
training state keeps its values without being told to.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from weightport.errors import Problem
from weightport.mapping.rules import Rule
from weightport.plan.model import IGNORED, KEPT, MOVED, UNCLAIMED, UNCOVERED, Item, Outcome, TargetView
from weightport.scopes import separator_of
from weightport.tensors import Source, TensorSpec
from weightport.values import Expr

#: Problems of one kind that are spelled out; the rest is counted.
LISTED = 50

_STATE = {"slot": "optimizer slot", "optimizer": "optimizer variable"}


def source(
    specs: Mapping[str, TensorSpec],
    moved: Collection[str],
    ignored: Collection[str],
    path: str,
    refused: Collection[str],
) -> tuple[dict[str, str], list[Problem]]:
    """A disposition for every source tensor, and the problems of those that no rule claims.

    Args:
        refused: what a refused rule would have moved: left over for that reason, which is a problem already.
    """
    found: dict[str, str] = {}
    left: list[str] = []
    for name in specs:
        if name in moved:
            found[name] = MOVED
        elif specs[name].role != "constant":
            found[name] = IGNORED if name in ignored else UNCLAIMED
            if name not in ignored and name not in refused:
                left.append(name)
    hint = "move it by a rule, or list it under ignore:"
    weights = [n for n in left if specs[n].role == "weight"]
    problems = [Problem(path, f"source {_named(n, specs[n])} is claimed by no rule", hint) for n in weights[:LISTED]]
    problems += _more(weights, "source tensors are claimed by no rule", path)
    problems += _state([n for n in left if specs[n].role != "weight"], specs, path)
    return found, problems


def target(
    specs: Mapping[str, TensorSpec],
    items: dict[str, Item],
    kept: Collection[str],
    name: str,
    refused: Collection[str],
    tied: Mapping[str, str],
) -> tuple[dict[str, str], list[Problem]]:
    """A disposition for every target tensor, and the problems of those that get no value.

    Args:
        name: what messages call the target.
        refused: what a refused rule would have given a value.
        tied: name -> the first name of the same tensor: what becomes of one becomes of all.
    """
    found: dict[str, str] = {}
    left: list[str] = []
    problems = []
    moved = {tied[n]: n for n in reversed(items) if n in tied}
    for tensor, spec in specs.items():
        twin = moved.get(tied.get(tensor, ""))
        if tensor in items:
            found[tensor] = items[tensor].disposition
        elif twin is not None:
            found[tensor] = items[twin].disposition
            if tensor in kept:
                what = f"target tensor {tensor!r} is tied to {twin!r}, which gets a value: it cannot keep its own"
                problems.append(Problem(name, what, "take it out of keep:"))
        elif spec.role == "constant":
            continue
        elif tensor in kept or spec.role != "weight":
            found[tensor] = KEPT
        else:
            found[tensor] = UNCOVERED
            if tensor not in refused:
                left.append(tensor)
    quantized = ((n, specs[n].quantized) for n, said in found.items() if said == KEPT)
    stuck = [Problem(name, f"{n!r} is {q.title}", "it cannot be kept in another file") for n, q in quantized if q]
    hint = "move or initialize: it by a rule, or list it under keep:"
    problems += [Problem(name, f"target {_named(n, specs[n])} gets no value", hint) for n in left[:LISTED]]
    return found, stuck + problems + _more(left, "target tensors get no value", name)


def hollow(model: TargetView, target: Mapping[str, str], where: str) -> list[Problem]:
    """The problems of tensors of a live model that would keep a value which they do not have (abstract ones).

    Args:
        target: what becomes of each.
    """
    left = [n for n in getattr(model, "hollow", ()) if target.get(n) == KEPT]
    specs, hint = model.specs(), "move or initialize: it by a rule"
    problems = [Problem(where, f"target {_named(n, specs[n])} has no value to keep", hint) for n in left[:LISTED]]
    return problems + _more(left, "target tensors have no value to keep", where)


def averaged(source: dict[str, str], outcomes: list[Outcome], read: Source) -> tuple[dict[str, str], list[Outcome]]:
    """The accounts with moving averages that were read in the place of variables.

    What became of the variable became of the average; the variable itself, where it is there too, was left behind.

    Args:
        read: has attributes ``averages`` (variable -> average) and ``raw`` (the variables that are there too), or no
            averages.
    """
    averages: Mapping[str, str] = getattr(read, "averages", {})
    if not averages:
        return source, outcomes
    raw: Collection[str] = getattr(read, "raw", ())
    found: dict[str, str] = {}
    for name, said in source.items():
        if name in averages:
            found[averages[name]] = said
        if name in raw or name not in averages:
            found[name] = IGNORED if name in averages else said
    return found, [_read_from(outcome, averages) for outcome in outcomes]


def _read_from(outcome: Outcome, averages: Mapping[str, str]) -> Outcome:
    """A rule's outcome that names the averages which were read, and says what had none."""
    if not outcome.sources or outcome.disposition != MOVED:
        return outcome
    plain = [name for name in outcome.sources if name not in averages]
    count = len(outcome.sources) - len(plain)
    some = ", ".join(map(repr, plain[:3])) + (", ..." if len(plain) > 3 else "")
    note = f"{count:,} of {len(outcome.sources):,} read from their moving averages"
    note += f"; there is none of {some}" if plain else ""
    sources = tuple(averages.get(name, name) for name in outcome.sources)
    return replace(outcome, sources=sources, notes=(*outcome.notes, note))


def listed(problems: Sequence[Problem], where: str) -> list[Problem]:
    """The problems of one thing: the first :data:`LISTED`, and how many there are beside them."""
    if len(problems) <= LISTED:
        return list(problems)
    left = problems[LISTED]
    what = f"{len(problems) - LISTED:,} more problems of this kind"
    return [*problems[:LISTED], Problem(where, what, f"the next is {left.where}: {left.what}")]


def second_claim(rule: Rule, known: Item, expr: Expr) -> Problem:
    """A target tensor that two rules, or one rule twice, give different values."""
    if known.rule == rule.name:
        sides = [" and ".join(map(repr, sorted(e.leaves()))) for e in (known.expr, expr)]
        what = f"target tensor {known.name!r} gets two values from this rule: of {sides[0]}, and of {sides[1]}"
        return Problem(rule.where, what, "its from has captures that its to lacks")
    if known.expr == expr:
        kinds = [("initial", "constant")[c] for c in (known.constant, rule.constant)]
        what = f"target tensor {known.name!r} is {kinds[1]} here and {kinds[0]} by {known.rule}"
    else:
        what = f"target tensor {known.name!r} was given another value by {known.rule}"
    return Problem(rule.where, what, "the first rule wins; take it out of one of them")


def _named(name: str, spec: TensorSpec) -> str:
    return f"tensor {name!r} ({spec.dtype_name} {list(spec.shape)})"


def _more(left: Sequence[str], what: str, where: str) -> list[Problem]:
    if len(left) <= LISTED:
        return []
    return [Problem(where, f"{len(left) - LISTED:,} more {what}", f"the next is {left[LISTED]!r}")]


def _state(left: Sequence[str], specs: Mapping[str, TensorSpec], path: str) -> list[Problem]:
    problems = []
    for role in dict.fromkeys(specs[n].role for n in left):
        names = [n for n in left if specs[n].role == role]
        count = f"{len(names):,} {_STATE.get(role, role)}{'s are' if len(names) > 1 else ' is'}"
        some = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
        hint = f"leave behind what is not wanted: ignore: [{', '.join(repr(p) for p in globs_of(names))}]"
        problems.append(Problem(path, f"{count} claimed by no rule: {some}", hint))
    return problems


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


# In a checkpoint of PyTorch's: where an optimizer keeps what it keeps, and Lightning what the trainer does.
_KEPT = re.compile(r"((?:.*?\.)?(?:state|param_groups|callbacks|loops|lr_schedulers))\.")


def _dotted(name: str) -> str:
    kept = _KEPT.match(name)
    if kept is not None:
        return f"{_literal(kept[1])}.**"
    return f"**.{_literal(name.rpartition('.')[2])}" if "." in name else _literal(name)


def globs_of(names: Sequence[str]) -> list[str]:
    """Globs that cover the names: by how they end, or by the scope that they share."""
    if len(names) == 1:
        return [_literal(names[0])]
    if separator_of(names) == ".":
        return list(dict.fromkeys(map(_dotted, names)))[:6]
    if all("/.OPTIMIZER_SLOT/" in n for n in names):
        return ["**/.OPTIMIZER_SLOT/**"]
    scopes = {n.partition("/")[0] for n in names if "/" in n}
    leaves = list(dict.fromkeys(n.rpartition("/")[2] for n in names))
    if len(scopes) == 1 and all("/" in n for n in names) and len(leaves) > 2:
        return [f"{scopes.pop()}/**"]
    return [f"**/{leaf}" for leaf in leaves[:6]]
