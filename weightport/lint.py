"""What is wrong with a mapping, and what is worth a look, as far as the models at hand can tell.

Promise: pure, from headers; with a source and a target the problems are those of the plan. Limit: with one of them
alone, what takes both is not checked: ``initialize`` and ``keep`` need the target, shapes and the accounts need both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from weightport.errors import LayoutError, Problem, closest
from weightport.layouts.conditions import by_tensor, sentence
from weightport.mapping import CellRule, Glob, InitRule, TensorRule
from weightport.mapping import Mapping as Rules
from weightport.mapping.patterns import misread
from weightport.plan import Plan, TargetView, plan
from weightport.plan.build import Builder
from weightport.plan.cells import Side, found_cell, layout_of
from weightport.plan.names import ended, matching
from weightport.tensors import Array, Index, Source, TensorSpec


@dataclass(frozen=True, slots=True)
class Findings:
    """What ``lint`` found in one mapping.

    Attributes:
        problems: what a transfer would refuse.
        warnings: what it would carry out, but was perhaps not meant.
    """

    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """As ``lint --json`` prints it."""
        return {
            "problems": [p.as_json() for p in self.problems],
            "warnings": [w.as_json() for w in self.warnings],
        }


def lint(
    mapping: Rules,
    source: Source | None = None,
    target: TargetView | None = None,
    *,
    target_name: str = "",
    source_sha256: str | None = None,
) -> Findings:
    """Check a loaded mapping against a source, a target, or both.

    Args:
        mapping: the rules; that they were loaded says that they are valid in themselves.
        source: an open source; only headers are read.
        target: the new model's tensors.
        target_name: what messages call the target.
        source_sha256: the source's digest, to compare with the one that the mapping is for.
    """
    problems: list[Problem] = []
    warnings: list[Problem] = []
    wanted = mapping.source.sha256
    if source is not None and source_sha256 is not None and wanted is not None and source_sha256 != wanted:
        what = f"its SHA-256 is {source_sha256}; {mapping.path or 'the mapping'} is for {wanted}"
        problems.append(Problem(source.path, what, "this is another file, or a damaged one"))
    if source is not None:
        rules = mapping
        if target is None:
            rules = replace(mapping, rules=tuple(r for r in mapping.rules if not isinstance(r, InitRule)))
        planned = plan(source, target, rules, target_name=target_name)
        problems.extend(planned.problems)
        warnings.extend(_assumed(planned))
        warnings.extend(
            _idle(
                "ignore",
                mapping.ignore,
                source.specs(),
                mapping.source.scope or getattr(source, "root", ""),
                source.path,
            )
        )
    elif target is not None:
        problems.extend(_target_alone(mapping, target, target_name or "the target"))
    if target is not None:
        name = target_name or "the target"
        warnings.extend(
            _idle("keep", mapping.keep, target.specs(), mapping.target.scope or getattr(target, "root", ""), name)
        )
    return Findings(tuple(problems), tuple(warnings))


def _assumed(planned: Plan) -> Iterable[Problem]:
    """What the files do not record, and was taken for granted; what depends on values, which are not looked at."""
    for outcome in planned.outcomes:
        if outcome.conditions:
            names = ", ".join(map(repr, by_tensor(outcome.conditions)))
            what = f"exact only where {sentence(outcome.conditions)}: {names}"
            yield Problem(outcome.where, what, "a transfer looks at the values, also with --dry-run")
        for note in outcome.assumed:
            yield Problem(outcome.where, f"assumed: {note}")


def _idle(key: str, globs: Sequence[Glob], specs: Mapping[str, TensorSpec], scope: str, name: str) -> Iterable[Problem]:
    """Patterns that match nothing: perhaps misspelt."""
    for glob in globs:
        if not matching([glob], specs, ended(scope, specs)):
            yield Problem(glob.where, f"{key}: {glob.text!r} matches no tensor of {name}", closest(glob.text, specs))


# A target without a source -------------------------------------------------------------------------------------------


class _Nothing:
    """A source with no tensors."""

    format, path = "", ""

    def specs(self) -> Mapping[str, TensorSpec]:
        return {}

    def read(self, name: str, index: Index = None) -> Array:
        raise KeyError((name, index))

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        del names
        return {}

    def close(self) -> None:
        return


def _target_alone(mapping: Rules, target: TargetView, name: str) -> list[Problem]:
    """The names of the target's tensors and cells that the mapping spells out."""
    builder = Builder(_Nothing(), target, mapping, name)
    builder.prepare()
    side = Side(builder.target_specs, target.facts, builder.scope, builder.root)
    problems: list[Problem] = []
    for rule in mapping.rules:
        if isinstance(rule, InitRule):
            builder.rule(rule)
        elif rule.optional:
            continue
        elif isinstance(rule, CellRule):
            if layout_of(rule.target, mapping.layouts).packed and rule.target.sizes is None:
                continue  # the source tells its sizes
            try:
                found_cell(rule.target, side, mapping.layouts)
            except LayoutError as error:
                problems.extend(Problem(rule.target.where, p.what, p.hint) for p in error.problems)
        elif isinstance(rule, TensorRule):
            for pattern in (p.joined(builder.scope) for p in rule.targets):
                if pattern.is_literal and (missing := builder.full(pattern.format({}))) not in builder.target_specs:
                    hint = misread(pattern, builder.target_specs) or closest(missing, builder.target_specs)
                    problems.append(Problem(f"{rule.where}.to", f"no tensor {missing!r} in {name}", hint))
    return [*problems, *builder.problems]
