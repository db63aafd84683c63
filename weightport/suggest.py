"""A mapping to start from: cells of one kind and size, and tensors whose names and shapes agree.

Promise: what is proposed was planned against the two models and fits them; what no name or shape tells is said in a
comment beside the rule, and what has no counterpart is listed as a comment, so that the transfer stays refused until a
person has decided. A layout is told by names, never by a shape. Limit: names are compared word by word, so models whose
authors share no words get cells and little else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from itertools import permutations
from typing import Any

from weightport.errors import Error, Problem, printable
from weightport.layouts.conditions import sentence
from weightport.layouts.stacks import Cell
from weightport.mapping import dump_mapping, load_mapping
from weightport.mapping.patterns import Pattern
from weightport.plan import TargetView
from weightport.plan import plan as make
from weightport.plan.accounts import globs_of
from weightport.plan.model import REFUSED
from weightport.plan.names import Names
from weightport.scopes import find_cells
from weightport.tensors import Source, TensorSpec

#: Words that frameworks use for one thing; the first stands for all.
_SAME = (
    ("weight", "kernel", "weights", "w", "embeddings", "table"),
    ("bias", "biases", "b", "beta"),
    ("scale", "gamma"),
    ("mean", "running_mean", "moving_mean"),
    ("var", "variance", "running_var", "moving_variance"),
    ("norm", "layernorm", "ln", "layer_norm", "batchnorm", "bn", "batch_normalization"),
    ("conv", "conv2d", "conv1d", "convolution"),
    ("dense", "linear", "fc", "fully_connected"),
    ("embedding", "embeddings", "embed"),
)
_WORDS = {word: group[0] for group in reversed(_SAME) for word in group}
_WORD = re.compile(r"[0-9]+|[A-Za-z]+")
_NUMBER = re.compile(r"[0-9]+")
#: Below this likeness two names are not put together.
_LEAST = 0.4
#: Below this one, the rule is said to be unsure.
_SURE = 0.6
#: Pairs of names that are compared closely, for each target.
_CLOSE = 8
_AXES = "abcdefgh"
#: Cells of the target that are named where none has the sizes of one of the source.
_NAMED = 3


@dataclass(frozen=True, slots=True)
class _Pair:
    """A source tensor and the target tensor that it is proposed for."""

    source: str
    target: str
    rearrange: str
    likeness: float
    open: bool  # whether shapes leave open which axis is which


@dataclass(slots=True)
class Suggestion:
    """What is proposed.

    Attributes:
        document: the mapping, plain data.
        notes: rule number -> what is to be looked at.
        sources, targets: what has no counterpart.
        refused: the source's cells that no rule moves, and why.
    """

    document: dict[str, Any]
    notes: dict[int, str] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """The mapping as YAML, with what is left to a person as comments."""
        lines: list[str] = []
        number = -1
        for line in dump_mapping(self.document).split("\n"):
            if line.startswith("  - ") and "rules:" in lines and "ignore:" not in lines:
                number += 1
                if number in self.notes:
                    lines.append(f"  # {self.notes[number]}")
            lines.append(line)
        lines.pop()
        for title, names in (
            ("Cells that are not moved, and why:", self.refused),
            ("Source tensors without a counterpart; move them by a rule, or list them under ignore:", self.sources),
            (
                "Target tensors without a value; move or initialize them by a rule, or list them under keep:",
                self.targets,
            ),
        ):
            if names:
                lines += ["", f"# {title}", *(f"#   {printable(name)}" for name in names)]
        return "\n".join(lines) + "\n"


def suggest(source: Source, target: TargetView, *, target_name: str = "") -> Suggestion:
    """A mapping from one model to another, to be reviewed.

    Args:
        source: an open source; headers only are read.
        target: the new model's tensors.
        target_name: what comments call it.

    Raises:
        Error: nothing of the two models fits together; says of each cell of the source why.
    """
    specs = {n: s for n, s in source.specs().items() if s.role == "weight" and not s.unread}
    wanted = {n: s for n, s in target.specs().items() if s.role == "weight" and not s.unread}
    rules: list[dict[str, Any]] = []
    notes: dict[int, str] = {}
    refused: list[str] = []
    mine, its = (find_cells(model.specs(), facts=model.facts) for model in (source, target))
    for rule, moved, filled, note in _cell_rules(source, target, mine, its, refused):
        if note:
            notes[len(rules)] = note
        rules.append(rule)
        for name in moved:
            specs.pop(name, None)
        for name in filled:
            wanted.pop(name, None)
    packed = [{name: cell.layout.name for cell in cells for name in cell.names} for cells in (mine, its)]
    pairs = list(_pairs(specs, wanted, *packed))
    state: dict[str, list[str]] = {}
    for name, spec in source.specs().items():
        if spec.role not in ("weight", "constant"):
            state.setdefault(spec.role, []).append(name)
    ignore = list(dict.fromkeys(glob for names in state.values() for glob in globs_of(names)))
    free = Names.of(n for n in source.specs() if n in specs)
    for rule, members in _generalised(pairs, free):
        unsure = min(pair.likeness for pair in members) < _SURE
        said = [f"unsure: the names have little in common ({members[0].likeness:.0%})"] if unsure else []
        if any(pair.open for pair in members):
            said.append("the shapes do not tell which axis is which: " + _by_words(members[0]))
        if said:
            notes[len(rules)] = "; ".join(said)
        rules.append(rule)
    if not rules:
        what = f"no cell and no tensor that fits {target_name or 'the target'} was found"
        raise Error([Problem(source.path, what), *(Problem(source.path, why) for why in refused)])
    taken = {pair.source for pair in pairs}, {pair.target for pair in pairs}
    document: dict[str, Any] = {"weightport": 1, "rules": rules}
    if ignore:
        document["ignore"] = ignore
    left = [n for n in specs if n not in taken[0]], [n for n in wanted if n not in taken[1]]
    return Suggestion(document, notes, *left, refused)


# Cells ---------------------------------------------------------------------------------------------------------------


def _cell_rules(
    source: Source, target: TargetView, mine: Sequence[Cell], its: Sequence[Cell], refused: list[str]
) -> Iterator[tuple[dict[str, Any], tuple[str, ...], tuple[str, ...], str]]:
    """Rules for whole cells: the most alike scopes of one kind and size first, each cell once. What of the source gets
    none is told in ``refused``.
    """
    scored = sorted(
        ((_likeness(_words(a.scope), _words(b.scope)), a, b) for a in mine for b in its if _alike(a, b)),
        key=lambda found: -found[0],
    )
    done: set[int] = set()
    failed: dict[int, str] = {}
    for _, a, b in scored:
        if id(a) in done or id(b) in done:
            continue
        rule = {"from": _ref(a), "to": _ref(b)}
        planned = make(source, target, load_mapping({"weightport": 1, "rules": [rule]}))
        if planned.outcomes[0].disposition == REFUSED:
            said = replace(planned.problems[0], where=f"{a.layout.name} {a.scope!r} -> {b.layout.name} {b.scope!r}")
            failed.setdefault(id(a), str(said))
            continue
        done |= {id(a), id(b)}
        others = sum(other is not b and _alike(a, other) for other in its)
        notes = [f"{others + 1} cells of the target are of this kind and size: is this the one?"] if others else []
        if planned.conditions:
            notes.append(f"exact only where {sentence(planned.conditions)}: a transfer looks")
        yield rule, a.names, b.names, "; ".join(notes)
    refused += [failed.get(id(a)) or _why_not(a, its, done) for a in mine if id(a) not in done]


def _why_not(cell: Cell, others: Sequence[Cell], done: set[int]) -> str:
    """Why none of the target's cells was tried for a cell of the source."""
    kind = cell.layout.kind
    near = sorted(
        (o for o in others if o.layout.kind == kind), key=lambda o: -_likeness(_words(cell.scope), _words(o.scope))
    )
    if not near:
        why = f"no {kind} cell was found in the target"
    elif free := [other for other in near if id(other) not in done]:
        more = f" and {len(free) - _NAMED} more" if len(free) > _NAMED else ""
        why = f"the target's are of other sizes: {'; '.join(other.summary for other in free[:_NAMED])}{more}"
    else:
        why = f"each {kind} cell of the target is moved into already"
    return f"{cell.summary}: {why}"


def _alike(a: Cell, b: Cell) -> bool:
    return a.layout.kind == b.layout.kind and _size(a) == _size(b)


def _size(cell: Cell) -> tuple[Any, ...]:
    return cell.layers, cell.directions, [(u.sizes["input"], u.sizes["unit"]) for u in cell.units]


def _ref(cell: Cell) -> dict[str, Any]:
    return {"layout": cell.layout.name, "scope": cell.scope}


# Tensors -------------------------------------------------------------------------------------------------------------


def _words(name: str) -> list[str]:
    """The words of a name, in the spelling that stands for all of its frameworks'."""
    found = []
    for part in re.split(r"[/.]", name):
        whole = part.lower()
        if whole in _WORDS:
            found.append(_WORDS[whole])
            continue
        found += [_WORDS.get(word.lower(), word.lower()) for word in _WORD.findall(part)]
    return found


def _ranked(names: Iterable[str]) -> dict[str, list[str]]:
    """The words of every name, numbers by their rank among those in the same place of names that are else the same: one
    model counts its layers from 0, another from 1.
    """
    split = {name: _words(name) for name in names}
    families: dict[tuple[str, ...], list[set[int]]] = {}
    for words in split.values():
        key = tuple("#" if word.isdecimal() else word for word in words)
        known = families.setdefault(key, [set() for _ in key])
        for place, word in enumerate(words):
            if word.isdecimal():
                known[place].add(int(word))
    ranks = {key: [{n: rank for rank, n in enumerate(sorted(s))} for s in known] for key, known in families.items()}
    found = {}
    for name, words in split.items():
        rank = ranks[tuple("#" if word.isdecimal() else word for word in words)]
        found[name] = [f"#{rank[k][int(word)]}" if word.isdecimal() else word for k, word in enumerate(words)]
    return found


def _likeness(a: Sequence[str], b: Sequence[str]) -> float:
    return SequenceMatcher(None, a, b, autojunk=False).ratio() if a or b else 1.0


def _pairs(
    specs: Mapping[str, TensorSpec], wanted: Mapping[str, TensorSpec], here: Mapping[str, str], there: Mapping[str, str]
) -> Iterator[_Pair]:
    """Each source and each target once, the most alike first; in the target's order. ``here`` and ``there`` have the
    layouts of what belongs to a cell: those of two layouts are no pair, since their gates lie otherwise.
    """
    by_size: dict[tuple[Any, ...], list[str]] = {}
    for name, spec in specs.items():
        by_size.setdefault((spec.dtype, *sorted(spec.shape)), []).append(name)
    mine, its = _ranked(specs), _ranked(wanted)
    bags = {name: Counter(words) for name, words in mine.items()}
    places = {name: number / max(1, len(specs)) for number, name in enumerate(specs)}
    scored: list[tuple[float, float, str, str]] = []
    for number, (name, spec) in enumerate(wanted.items()):
        near = by_size.get((spec.dtype, *sorted(spec.shape)), ())
        bag = Counter(its[name])
        for other in sorted(near, key=lambda other: -sum((bag & bags[other]).values()))[:_CLOSE]:
            score = _likeness(mine[other], its[name])
            packed = here.get(other), there.get(name)
            if None not in packed and packed[0] != packed[1]:
                continue
            if score >= (_LEAST if mine[other][-1:] == its[name][-1:] else _SURE):
                scored.append((-score, abs(places[other] - number / len(wanted)), other, name))
    found: dict[str, _Pair] = {}
    taken: set[str] = set()
    for score, _, source, target in sorted(scored):
        if source not in taken and target not in found:
            taken.add(source)
            recipe, is_open = _recipe(specs[source].shape, wanted[target].shape, source, target)
            found[target] = _Pair(source, target, recipe, -score, is_open)
    yield from (found[name] for name in wanted if name in found)


def _recipe(mine: tuple[int, ...], its: tuple[int, ...], source: str, target: str) -> tuple[str, bool]:
    """How axes have to be permuted; whether the shapes leave it open, and the names decided."""
    rank = len(mine)
    if rank < 2 or rank > len(_AXES):
        return "", False
    fitting = [axes for axes in permutations(range(rank)) if tuple(mine[a] for a in axes) == its] if rank <= 5 else []
    same = tuple(range(rank))
    usual = _conventional(rank, source, target)
    if usual in fitting:
        chosen = usual
    elif same in fitting:
        chosen = same
    else:
        chosen = fitting[0] if fitting else same
    recipe = "" if chosen == same else f"{' '.join(_AXES[:rank])} -> {' '.join(_AXES[a] for a in chosen)}"
    return recipe, len(fitting) > 1


def _conventional(rank: int, source: str, target: str) -> tuple[int, ...]:
    """The permutation between the frameworks that the leaves' names belong to: a ``kernel`` has its inputs before its
    outputs (and last of all axes), a ``weight`` its outputs first.
    """
    leaves = [re.split(r"[/.]", name)[-1] for name in (source, target)]
    same = tuple(range(rank))
    if leaves == ["kernel", "weight"] or leaves == ["weights", "weight"]:
        return (rank - 1, rank - 2, *range(rank - 2))
    if leaves == ["weight", "kernel"]:
        return (*range(2, rank), 1, 0)
    return same


def _by_words(pair: _Pair) -> str:
    leaves = [re.split(r"[/.]", name)[-1] for name in (pair.source, pair.target)]
    return printable(f"{leaves[0]} -> {leaves[1]} {'transposes' if pair.rearrange else 'keeps them'}")


# From pairs to patterns ----------------------------------------------------------------------------------------------


def _generalised(pairs: Sequence[_Pair], free: Names) -> Iterator[tuple[dict[str, Any], list[_Pair]]]:
    """One rule for pairs that differ in numbers only, where a pattern means exactly these; else one for each."""
    groups: dict[tuple[str, str, str], list[_Pair]] = {}
    for pair in pairs:
        source, target = _templates(pair.source, pair.target)
        groups.setdefault((source, target, pair.rearrange), []).append(pair)
    taken: set[str] = set()
    for (source, target, recipe), members in groups.items():
        if len(members) > 1 and _means(source, target, members, free):
            yield _rule(source, target, recipe), members
        else:
            for pair in members:
                yield _rule(_literal(pair.source), _literal(pair.target), recipe), [pair]
        taken.update(pair.source for pair in members)


def _templates(source: str, target: str) -> tuple[str, str]:
    """Both names with captures in the place of numbers."""
    names = iter("nmklpq")
    bound: list[tuple[int, str]] = []

    def capture(match: re.Match[str]) -> str:
        name = next(names, "")
        if not name or str(int(match[0])) != match[0]:  # 007 is no number to count with
            return match[0]
        bound.append((int(match[0]), name))
        return f"\0{name}\1"

    mine = _NUMBER.sub(capture, source)
    used: set[str] = set()

    def use(match: re.Match[str]) -> str:
        value = int(match[0])
        for offset, text in ((0, ""), (-1, "+1"), (1, "-1")):
            for number, name in bound:
                if number == value + offset and name not in used and str(value) == match[0]:
                    used.add(name)
                    return f"\0{name}{text}\1"
        return match[0]

    its = _NUMBER.sub(use, target)
    for number, name in bound:  # a number that only the source has stays what it is
        if name not in used:
            mine = mine.replace(f"\0{name}\1", str(number))
    return _braced(mine), _braced(its)


def _literal(name: str) -> str:
    return name.replace("{", "{{").replace("}", "}}")


def _braced(text: str) -> str:
    return _literal(text).replace("\0", "{").replace("\1", "}")


def _means(source: str, target: str, members: Sequence[_Pair], free: Names) -> bool:
    """Whether the patterns give exactly these pairs."""
    pattern, other = Pattern(source), Pattern(target)
    try:
        found = {name: other.format(bindings) for name, bindings in free.matches(pattern)}
    except Error:
        return False
    return found == {pair.source: pair.target for pair in members}


def _rule(source: str, target: str, recipe: str) -> dict[str, Any]:
    return {"from": source, "to": target, **({"rearrange": recipe} if recipe else {})}
