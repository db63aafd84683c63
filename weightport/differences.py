"""What differs between two models: by name, or through a mapping.

Promise: both files are read tile by tile; every tensor of either side is in the answer. Limit: optimizer state is
compared like everything else, and constants of a graph that are no weights are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from weightport.execute import Reader
from weightport.mapping.rules import Mapping as Rules
from weightport.plan import plan as make
from weightport.plan.model import REFUSED, UNCLAIMED, UNCOVERED, Item
from weightport.proof import difference
from weightport.settle import settled
from weightport.tensors import Source, TensorSpec
from weightport.values import Leaf

EQUAL, DIFFERS, ONLY_A, ONLY_B = "equal", "differs", "only in A", "only in B"


@dataclass(frozen=True, slots=True)
class Difference:
    """One tensor.

    Attributes:
        name: of A where both sides have it by name; of B where a mapping stands between them.
        status: ``equal``, ``differs``, ``only in A`` or ``only in B``.
        max_abs_diff: the largest difference of an element; None where the values cannot be subtracted, or one side has
            none.
        what: how dtype or shape differ; empty where they do not.
    """

    name: str
    status: str
    max_abs_diff: float | None = None
    what: str = ""

    def as_json(self) -> dict[str, Any]:
        """As ``diff --json`` prints it."""
        return {"name": self.name, "status": self.status, "max_abs_diff": self.max_abs_diff, "what": self.what}


def differences(a: Source, b: Source, rules: Rules | None = None) -> Iterator[Difference]:
    """Every tensor of two open models, compared.

    Args:
        a: a model.
        b: another one.
        rules: what of A becomes what of B; None: tensors of one name are compared.

    Raises:
        PlanError: a rule does not fit the two.
        ConditionError: values of ``a`` do not meet the conditions of a rule.
        FormatError: a file is truncated or corrupt.
    """
    yield from _by_name(a, b) if rules is None else _through(a, b, rules)


def _by_name(a: Source, b: Source) -> Iterator[Difference]:
    mine, its = _weights(a), _weights(b)
    reader = Reader(a)
    for name, spec in mine.items():
        if name not in its:
            yield Difference(name, ONLY_A)
        elif what := _unlike(spec, its[name]):
            yield Difference(name, DIFFERS, None, what)
        else:
            yield _compared(reader, Item(name, spec, Leaf(name, spec), False, ""), b)
    for name in its:
        if name not in mine:
            yield Difference(name, ONLY_B)


def _through(a: Source, b: Source, rules: Rules) -> Iterator[Difference]:
    planned = settled(make(a, b, rules, target_name=b.path), a)
    if any(outcome.disposition == REFUSED for outcome in planned.outcomes):
        planned.check()
    reader = Reader(a)
    for item in planned.items.values():
        yield _compared(reader, item, b)
    for name, said in planned.source.items():
        if said == UNCLAIMED:
            yield Difference(name, ONLY_A)
    for name, said in planned.target.items():
        if said == UNCOVERED:
            yield Difference(name, ONLY_B)


def _compared(reader: Reader, item: Item, b: Source) -> Difference:
    apart = difference(reader, item, b)
    if apart is None:
        return Difference(item.name, DIFFERS, None, "values that cannot be subtracted")
    return Difference(item.name, DIFFERS if apart else EQUAL, apart)


def _weights(source: Source) -> Mapping[str, TensorSpec]:
    return {name: spec for name, spec in source.specs().items() if spec.role != "constant"}


def _unlike(a: TensorSpec, b: TensorSpec) -> str:
    if a.shape != b.shape:
        return f"shape {list(a.shape)} in A, {list(b.shape)} in B"
    return f"dtype {a.dtype_name} in A, {b.dtype_name} in B" if a.dtype != b.dtype else ""
