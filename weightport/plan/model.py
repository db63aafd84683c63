"""A plan: what every source tensor, every target tensor and every rule comes to, and all that is wrong.

Promise: frozen, comparable, printable; no tensor bytes. Limit: a plan with problems can be looked at, not carried out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from weightport.errors import ConditionError, PlanError, Problem, printable
from weightport.layouts.conditions import Condition, by_tensor
from weightport.tensors import TensorSpec
from weightport.values import Expr

MOVED, IGNORED, UNCLAIMED = "moved", "ignored", "unclaimed"
CONSTANT, INITIALIZED, KEPT, UNCOVERED = "constant", "initialized", "kept", "uncovered"
UNUSED, REFUSED = "unused", "refused"
#: The class of a rule whose values are rounded because the mapping asks for it.
ROUNDED = "rounded"


class TargetView(Protocol):
    """What a plan looks at in a target, a file's or a live model's.

    It may have attributes: ``root``, a scope of the model's own that stands before all of its names; ``tied``, name ->
    the first name of the same tensor.
    """

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec of every tensor to account for."""
        ...

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """What is recorded about the RNN cell that owns these tensors, as :meth:`weightport.tensors.Source.facts`."""
        ...


@dataclass(frozen=True, slots=True)
class Item:
    """One target tensor that gets a value.

    Attributes:
        spec: dtype and shape, the target's own where there is a target.
        expr: what it is computed from; of exactly that dtype and shape.
        constant: ``as: constant``.
        rule: the rule's name.
        initialized: an initializer's value, from no source.
    """

    name: str
    spec: TensorSpec
    expr: Expr
    constant: bool
    rule: str
    initialized: bool = False

    @property
    def disposition(self) -> str:
        """``moved``, ``constant`` or ``initialized``."""
        if self.initialized:
            return INITIALIZED
        return CONSTANT if self.constant else MOVED


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one rule came to.

    Attributes:
        disposition: ``moved``, ``initialized``, ``unused`` (optional, nothing matched) or ``refused``.
        sources, targets: the tensors.
        exact: the target computes the same function, as far as both sides are known.
        classed: ``bijective`` (reversible bit for bit), ``exact``, ``conditional`` (exact where the source's values
            meet the conditions), ``rounded`` (by a cast or a scale that the mapping asks for), or ``assumed`` (what a
            file does not record may differ).
        notes: what was done beside copying, and what was assumed.
        title: of a cell: its layout and scope on both sides.
        assumed: those of the notes that no file and no mapping says.
        conditions: what must hold of the source's values; a transfer looks before it writes anything.
    """

    rule: str
    where: str
    disposition: str
    sources: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    constant: bool = False
    exact: bool = True
    classed: str = "bijective"
    notes: tuple[str, ...] = ()
    title: str = ""
    assumed: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The outcome as ``transfer --json`` prints it."""
        return {
            "rule": self.rule,
            "disposition": self.disposition,
            "from": list(self.sources),
            "to": list(self.targets),
            "as": "constant" if self.constant else "initial",
            "exact": self.exact,
            "class": self.classed,
            "notes": list(self.notes),
            "conditions": [
                {
                    "tensor": tensor,
                    "must": " and ".join(dict.fromkeys(c.must for c in found)),
                    "where": " and ".join(dict.fromkeys(c.says for c in found)),
                    "holds": None if any(c.holds is None for c in found) else all(c.holds for c in found),
                }
                for tensor, found in by_tensor(self.conditions).items()
            ],
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """A mapping applied to a source's and a target's headers.

    Attributes:
        items: target tensors that get a value, in the target's order (without a target: in the rules').
        outcomes: one for each rule.
        source: disposition of every source tensor: ``moved``, ``ignored``, ``unclaimed``.
        target: disposition of every target tensor: ``moved``, ``constant``, ``initialized``, ``kept``, ``uncovered``.
        specs: of every target tensor that the result has, kept ones included, in order.
        problems: all of them; a plan with any is not carried out.
        unmet: those of the problems that are conditions which the source's values do not meet.
    """

    source_name: str
    target_name: str
    items: Mapping[str, Item]
    outcomes: tuple[Outcome, ...]
    source: Mapping[str, str]
    target: Mapping[str, str]
    specs: Mapping[str, TensorSpec]
    problems: tuple[Problem, ...] = ()
    description: str = ""
    source_specs: Mapping[str, TensorSpec] = field(default_factory=dict, repr=False)
    unmet: tuple[Problem, ...] = ()

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What must hold of the source's values. A plan looks at none; a transfer does before it writes anything."""
        return tuple(c for outcome in self.outcomes for c in outcome.conditions)

    @property
    def moved(self) -> list[str]:
        """The source tensors that are read."""
        return [name for name, disposition in self.source.items() if disposition == MOVED]

    @property
    def bytes(self) -> int:
        """Bytes of the values that the target gets."""
        return sum(item.spec.nbytes for item in self.items.values())

    def check(self) -> Plan:
        """The plan itself.

        Raises:
            PlanError: it has problems; all of them.
            ConditionError: all that is wrong is values of the source, which do not meet the conditions.
        """
        if len(self.problems) > len(self.unmet):
            raise PlanError(self.problems)
        if self.problems:
            raise ConditionError(self.problems)
        return self

    def as_json(self) -> dict[str, Any]:
        """The plan as ``transfer --dry-run --json`` prints it."""
        return {
            "rules": [outcome.as_json() for outcome in self.outcomes],
            "source": dict(self.source),
            "target": dict(self.target),
            "bytes": self.bytes,
            "problems": [problem.as_json() for problem in self.problems],
        }

    def __str__(self) -> str:
        from weightport.plan.text import lines

        return "\n".join(map(printable, lines(self)))
