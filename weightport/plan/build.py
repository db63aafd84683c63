"""Rules, source specs and target specs to a :class:`~weightport.plan.model.Plan`.

Promise: every source tensor, target tensor and rule is accounted for, and every problem is found in one pass. Ignored
source tensors and kept target tensors are never matched by a pattern, only by their full name. Limit: constants of a
graph are no weights: they can be moved, they need not be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from weightport.collecting import no_gc
from weightport.errors import Error, LayoutError, Problem, closest
from weightport.initializers import ARGUMENTS
from weightport.mapping.patterns import Pattern, begins, literal, misread
from weightport.mapping.rules import CellRef, CellRule, InitRule, Rule, TensorRule
from weightport.mapping.rules import Mapping as Rules
from weightport.plan import accounts, cells, ops, slots
from weightport.plan.fit import Alike, spec_of, unfit
from weightport.plan.initial import Gates, initialized
from weightport.plan.model import INITIALIZED, MOVED, REFUSED, ROUNDED, UNUSED, Item, Outcome, Plan, TargetView
from weightport.plan.names import Names, aliases, ended, finds, listed
from weightport.plan.names import matching as matching
from weightport.plan.undo import made_up, undo
from weightport.tensors import Source, TensorSpec
from weightport.values import Expr, Leaf


def plan(source: Source, target: TargetView | None, mapping: Rules, *, target_name: str = "") -> Plan:
    """What the mapping does to this source and this target.

    Args:
        source: an open source; only its headers are read.
        target: the new model's tensors, or None: the result is exactly what the mapping produces.
        mapping: the rules.
        target_name: what messages call the target.
    """
    return Builder(source, target, mapping, target_name or "the target").build()


@dataclass(slots=True)
class Builder:
    """A plan under construction."""

    source: Source
    target: TargetView | None
    mapping: Rules
    target_name: str
    problems: list[Problem] = field(default_factory=list)
    items: dict[str, Item] = field(default_factory=dict)
    moved: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    outcomes: list[Outcome] = field(default_factory=list)
    ignored: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()
    specs: Mapping[str, TensorSpec] = field(default_factory=dict)
    target_specs: Mapping[str, TensorSpec] = field(default_factory=dict)
    candidates: Names = field(default_factory=lambda: Names([]))
    weights: Names = field(default_factory=lambda: Names([]))
    origin: str = ""
    above: str = ""
    scope: str = ""
    root: str = ""
    tied: Mapping[str, str] = field(default_factory=dict)
    tied_items: set[str] = field(default_factory=set)
    renames: bool = False
    alike: Alike = field(default_factory=dict)
    start: int = 0

    def prepare(self) -> None:
        """Read the headers, and find what is ignored and kept."""
        self.specs = self.source.specs()
        if self.target is not None:
            self.target_specs = self.target.specs()
        self.origin = ended(self.mapping.source.scope, self.specs)
        self.scope = ended(self.mapping.target.scope, self.target_specs)
        self.above = ended(getattr(self.source, "root", ""), self.specs)
        self.root = ended(getattr(self.target, "root", ""), self.target_specs)
        self.tied = getattr(self.target, "tied", {})
        self.renames = bool(self.root or aliases(self.target))
        origin, also = self.origin or self.above, aliases(self.source)
        self.ignored = matching(self.mapping.ignore, self.specs, origin, also)
        self.ignored |= made_up(self.mapping, cells.Side(self.specs, self.source.facts, self.origin, self.above))
        self.kept = matching(self.mapping.keep, self.target_specs, self.scope or self.root, aliases(self.target))
        self.candidates = Names.of(
            n for n, spec in self.specs.items() if n not in self.ignored and spec.role != "constant"
        )
        # What a target has beside its weights keeps its values unless a rule names it.
        self.weights = Names.of(n for n, s in self.target_specs.items() if s.role == "weight" and n not in self.kept)

    def build(self) -> Plan:
        """The plan."""
        with no_gc():
            self.prepare()
            for rule in self.mapping.rules:
                self.outcomes.append(self.rule(rule))
            source, target = self.account()
        source, self.outcomes = accounts.averaged(source, self.outcomes, self.source)
        return Plan(
            source_name=getattr(self.source, "title", self.source.path),
            target_name=self.target_name if self.target is not None else "",
            items={n: self.items[n] for n in self._order()},
            outcomes=tuple(self.outcomes),
            source=source,
            target=target,
            specs=self.target_specs if self.target is not None else {n: i.spec for n, i in self.items.items()},
            problems=tuple(self.problems),
            description=self.mapping.description,
            source_specs=self.specs,
        )

    def _order(self) -> Iterable[str]:
        return (n for n in self.target_specs if n in self.items) if self.target is not None else self.items

    # Rules -----------------------------------------------------------------------------------------------------------

    def rule(self, rule: Rule) -> Outcome:
        """Carry out one rule; problems are collected, those beyond :data:`~weightport.plan.accounts.LISTED` counted."""
        self.start = len(self.problems)
        if isinstance(rule, CellRule):
            outcome = self.cell(rule)
        elif isinstance(rule, InitRule):
            outcome = self._unused(rule) if rule.backwards else self.initialize(rule)
        else:
            outcome = self.tensors(rule)
        if not isinstance(rule, InitRule) and rule.slots:
            outcome = slots.carry(self, rule, outcome)
        if len(self.problems) > self.start:
            self.refused.update(outcome.sources, outcome.targets)
            outcome = replace(outcome, disposition=REFUSED, exact=False)
        self.problems[self.start :] = accounts.listed(self.problems[self.start :], rule.where)
        return outcome

    def cell(self, rule: CellRule) -> Outcome:
        """A whole cell."""
        mine = cells.Side(self.specs, self.source.facts, self.origin, self.above)
        other = None
        if self.target is not None:
            other = cells.Side(self.target_specs, self.target.facts, self.scope, self.root)
        if rule.optional and not (
            self._has_cell(rule.source, mine, self.ignored) and (other is None or self._has_cell(rule.target, other))
        ):
            return self._unused(rule)
        moved = cells.move(rule, mine, other, self.mapping.layouts, self.ignored, self.scope)
        self.problems.extend(moved.problems)
        for name, expr in moved.exprs().items():
            self.claim(rule, name, expr)
        self.moved.update(() if moved.problems else moved.sources)
        return Outcome(
            rule.name,
            rule.where,
            MOVED,
            tuple(moved.sources),
            tuple(moved.targets),
            rule.constant,
            moved.exact,
            moved.classed if moved.exact else "assumed",
            tuple(moved.notes),
            cells.title(rule),
            tuple(moved.assumed),
            () if moved.problems else tuple(moved.conditions),
        )

    def _has_cell(self, ref: CellRef, side: cells.Side, skip: frozenset[str] = frozenset()) -> bool:
        try:
            cells.found_cell(ref, side, self.mapping.layouts, skip)
        except LayoutError:
            return False
        return True

    def tensors(self, rule: TensorRule) -> Outcome:
        """Tensors by name."""
        sources: dict[str, None] = {}
        targets: dict[str, None] = {}
        notes: dict[str, None] = {}
        rounded = skipped = False
        tos = [p.joined(self.scope) for p in rule.tos]
        literal = any(p.is_literal for p in tos)
        plain = not rule.ops.given()
        selective = rule.optional or (bool(self.mapping.keep) and not literal)
        for names, bindings in self.matches(rule):
            for name in names:
                sources[name] = None
            try:
                outs = [self.full(p.format(bindings)) for p in tos]
                if selective and self._skipped(rule, outs, literal):
                    skipped = True
                    for name in names:
                        sources.pop(name, None)
                    continue
                for out in outs:
                    targets[out] = None
                if not all(map(self.specs.__contains__, names)):
                    self._missing(rule, names)
                    continue
                exprs = ops.leaves(rule.ops, names, self.specs)
                if not plain:
                    exprs, said = self._computed(rule, exprs, outs)
                    notes.update(dict.fromkeys(said))
                    rounded = rounded or any(map(ops.rounds, exprs))
            except ops.Unfit as reason:
                what, *hint = reason.args
                where = f"{rule.where}: {', '.join(map(repr, names))}"
                self.problems.append(Problem(where, what, hint[0] if hint else ""))
                continue
            except Error as error:
                self.problems.extend(error.problems)
                continue
            for out, expr in zip(outs, exprs, strict=True):
                self.claim(rule, out, expr)
            self.moved.update(names)
        if not targets and len(self.problems) == self.start:
            if rule.optional:
                return self._unused(rule)
            self.problems.append(self._all_kept(rule) if skipped else self._nothing(rule))
        classed = ROUNDED if rounded else ops.classed(rule.ops)
        told = (tuple(sources), tuple(targets), rule.constant, not rounded, classed, tuple(notes))
        return Outcome(rule.name, rule.where, MOVED, *told)

    def _missing(self, rule: TensorRule, names: Sequence[str]) -> None:
        for pattern, name in zip(rule.froms, names, strict=True):
            if name not in self.specs:
                self.problems.append(self._no_tensor(pattern, name, self.specs, self.source.path))

    def _computed(self, rule: TensorRule, leaves: Sequence[Expr], outs: Sequence[str]) -> tuple[list[Expr], list[str]]:
        if not rule.backwards:
            return ops.apply(rule.ops, leaves, outs)
        known = (self.target_specs.get(n) for n in outs)
        return undo(rule.ops, leaves, [None if spec is None else spec.shape for spec in known]), []

    def matches(self, rule: TensorRule) -> Iterator[tuple[list[str], dict[str, str]]]:
        """The source names of every match, with what its patterns bind."""
        patterns = [p.joined(self.origin) for p in rule.froms]
        if self.above and not finds(patterns[0], self.candidates, self.specs, self.source):
            patterns = [p.joined(self.above) for p in patterns]
        first = patterns[0]
        if first.is_literal:
            only = listed(self.source, first.format({}))
            found: Iterable[tuple[str, dict[str, str]]] = [(only, {})]
            if rule.optional and only not in self.specs:
                return
        else:
            found = self.candidates.matches(first)
        for name, bindings in found:
            try:
                yield [name, *(listed(self.source, p.format(bindings)) for p in patterns[1:])], bindings
            except Error as error:
                self.problems.extend(error.problems)

    def _skipped(self, rule: TensorRule, outs: Sequence[str], literal: bool) -> bool:
        """Whether a match is none of this rule's business: its targets are kept, or (optional) not there."""
        if not literal and any(map(self.keeps, outs)):
            return True
        return rule.optional and self.target is not None and any(n not in self.target_specs for n in outs)

    def keeps(self, name: str) -> bool:
        """Whether ``keep:`` lists a target tensor, also one that is not there yet."""
        if self.target is not None or not self.mapping.keep:
            return name in self.kept
        return bool(matching(self.mapping.keep, [name], self.scope))

    def initialize(self, rule: InitRule) -> Outcome:
        """Initial values for what no earlier rule covers."""
        found: dict[str, None] = {}
        gates = Gates(self.target_specs, self.mapping.layouts)
        if self.target is None:
            what = "initialize needs a TARGET: without one, the shapes are not known"
            self.problems.append(Problem(rule.where, what))
            return self._unused(rule)
        fused = "gates" in ARGUMENTS[rule.initializer.name]
        for name in self._initial_names(rule):
            if self._has_twin(name):
                continue
            spec = self.target_specs[name]
            found[name] = None
            try:
                expr = initialized(rule.initializer, name, spec, gates.of(name) if fused else ())
            except Error as error:
                self.problems.extend(Problem(f"{rule.where}: {p.where}", p.what, p.hint) for p in error.problems)
                continue
            self.claim(rule, name, expr, initialized=True)
        if not found and not rule.optional and len(self.problems) == self.start:
            self.problems.append(self._nothing(rule))
        return Outcome(rule.name, rule.where, INITIALIZED if found else UNUSED, (), tuple(found), rule.constant)

    def _has_twin(self, name: str) -> bool:
        """Whether the tensor has its value by another of its names."""
        return name not in self.items and self.tied.get(name) in self.tied_items

    def _initial_names(self, rule: InitRule) -> list[str]:
        if rule.target_cell is not None:
            assert self.target is not None
            side = cells.Side(self.target_specs, self.target.facts, self.scope, self.root)
            try:
                return list(cells.found_cell(rule.target_cell, side, self.mapping.layouts).names)
            except LayoutError as error:
                if not rule.optional:
                    self.problems.extend(Problem(rule.target_cell.where, p.what, p.hint) for p in error.problems)
                return []
        names: dict[str, None] = {}
        for pattern in (p.joined(self.scope) for p in rule.targets):
            if not pattern.is_literal:
                both = [pattern, pattern.joined(self.root)] if self.root else [pattern]
                hits = (n for p in both for n, _ in self.weights.matches(p) if n not in self.items)
                names.update(dict.fromkeys(hits))
                continue
            name = self.full(pattern.format({}))
            if name in self.target_specs:
                names[name] = None
            elif not rule.optional:
                self.problems.append(self._no_tensor(pattern, name, self.target_specs, self.target_name))
        return list(names)

    def full(self, name: str) -> str:
        """A target's name in full: a mapping may leave out the scope that the model puts before all of its names."""
        if not self.renames:
            return name
        name = listed(self.target, name)
        below = begins(self.root) + name
        return below if self.root and name not in self.target_specs and below in self.target_specs else name

    # Claims and accounts ---------------------------------------------------------------------------------------------

    def claim(self, rule: Rule, name: str, expr: Expr, *, initialized: bool = False) -> None:
        """Give a target tensor its value; what does not fit is a problem."""
        # Most tensors are moved as they are, and there may be a million of them.
        leaves = ((expr.name,) if expr.spec.unread else ()) if isinstance(expr, Leaf) else expr.leaves()
        unread = next((n for n in leaves if self.specs[n].unread), None)
        if unread is not None:
            what = f"tensor {unread!r} of {self.source.path} cannot be read: {self.specs[unread].unread}"
            self.problems.append(Problem(rule.where, what, "leave it behind: list it under ignore:"))
            return
        if self.target is None:
            spec = spec_of(expr, self.specs, self.alike)
        elif name in self.target_specs:
            spec = self.target_specs[name]
            problem = unfit(rule.where, name, expr, spec, cell=isinstance(rule, CellRule))
            if problem is not None:
                self.problems.append(problem)
                return
        else:
            pattern = self._pattern_of(rule, name)
            self.problems.append(self._no_tensor(pattern, name, self.target_specs, self.target_name))
            return
        known = self.items.get(name)
        if known is None:
            self.items[name] = Item(name, spec, expr, rule.constant, rule.name, initialized)
            if name in self.tied:
                self.tied_items.add(self.tied[name])
        elif known.expr != expr or known.constant != rule.constant:
            self.problems.append(accounts.second_claim(rule, known, expr))

    def account(self) -> tuple[dict[str, str], dict[str, str]]:
        """A disposition for every source and every target tensor; those without one are problems."""
        source, problems = accounts.source(self.specs, self.moved, self.ignored, self.source.path, self.refused)
        self.problems.extend(problems)
        if self.target is None:
            return source, {n: item.disposition for n, item in self.items.items()}
        target, problems = accounts.target(
            self.target_specs, self.items, self.kept, self.target_name, self.refused, self.tied
        )
        self.problems.extend(problems)
        self.problems.extend(accounts.hollow(self.target, target, self.target_name))
        return source, target

    # Messages --------------------------------------------------------------------------------------------------------

    def _unused(self, rule: Rule) -> Outcome:
        return Outcome(rule.name, rule.where, UNUSED, constant=rule.constant)

    def _nothing(self, rule: TensorRule | InitRule) -> Problem:
        if isinstance(rule, TensorRule):
            pattern, names, where, scope = rule.froms[0], self.specs, self.source.path, self.origin
        else:
            pattern = rule.targets[0] if rule.targets else Pattern("", rule.where)
            names, where, scope = self.target_specs, self.target_name, self.scope
        text = str(pattern.joined(scope))
        hidden = self.ignored if isinstance(rule, TensorRule) else self.kept
        if any(pattern.joined(scope).match(n) is not None for n in hidden):
            key = "ignore" if isinstance(rule, TensorRule) else "keep"
            return Problem(rule.where, f"{text!r} matches only tensors that {key}: lists", "")
        hint = misread(pattern.joined(scope), names) or closest(text, names)
        return Problem(rule.where, f"{text!r} matches no tensor of {where}", hint or "optional: true if it need not")

    def _all_kept(self, rule: TensorRule) -> Problem:
        text = str(rule.froms[0].joined(self.origin))
        what = f"everything that {text!r} matches would go to target tensors that keep: lists"
        return Problem(rule.where, what, "take them out of one of the two")

    def _pattern_of(self, rule: Rule, name: str) -> Pattern | None:
        """The pattern of ``to`` that gave a name."""
        tos = rule.tos if isinstance(rule, TensorRule) else ()
        return next((p for p in tos if p.joined(self.scope).match(name) is not None), tos[0] if tos else None)

    def _no_tensor(self, pattern: Pattern | None, name: str, names: Iterable[str], where: str) -> Problem:
        # The nearest names take time to find: only for problems that are spelled out.
        listed = len(self.problems) - self.start < accounts.LISTED
        hint = misread(literal(name), names) or closest(name, names) if listed else ""
        return Problem(pattern.where if pattern is not None else "", f"no tensor {name!r} in {where}", hint)
