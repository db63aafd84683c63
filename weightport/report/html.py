"""A plan as one HTML page.

Promise: self-contained (no script, nothing from the network), the same for the same plan, and safe to open whatever the
names in a model are: every text is escaped, and what a page would act on is spelled out. Limit: of long lists the first
:data:`SHOWN` entries are listed, the rest is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from weightport.errors import printable
from weightport.integrity import UNVERIFIED, Integrity
from weightport.plan.model import Outcome, Plan
from weightport.plan.text import conditions
from weightport.sizes import size
from weightport.tensors import TensorSpec

#: Rows of one list.
SHOWN = 2000


@dataclass(frozen=True, slots=True)
class _Row:
    """A tensor in a list."""

    name: str
    dtype: str
    shape: str
    bytes: str
    said: str
    checked: str = ""


def html(plan: Plan, *, files: Mapping[str, str], version: str, integrity: Integrity | None = None) -> str:
    """The page.

    Args:
        plan: with or without problems.
        files: what a file is here ("source", "target", "mapping", ...) -> its SHA-256.
        version: weightport's.
        integrity: what the source's tensors are verified against.
    """
    import jinja2  # only this command needs it

    template = resources.files("weightport.report").joinpath("page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=_spelled, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template).render(
        title=plan.description or f"{plan.source_name} by a mapping",
        plan=plan,
        files=files,
        version=version,
        bytes=size(plan.bytes),
        rules=[_rule(outcome) for outcome in plan.outcomes],
        integrity="" if integrity is None else str(integrity),
        source=list(_rows(plan.source, plan.source_specs, {} if integrity is None else integrity.by)),
        target=list(_rows(plan.target, plan.specs)),
        counts={"source": _counted(plan.source), "target": _counted(plan.target)},
        more={"source": max(0, len(plan.source) - SHOWN), "target": max(0, len(plan.target) - SHOWN)},
    )


def _spelled(value: Any) -> Any:
    """Text without characters that change how the text around them reads."""
    return printable(value, keep="\n") if isinstance(value, str) else value


def _rule(outcome: Outcome) -> dict[str, Any]:
    return {
        "outcome": outcome,
        "notes": [*conditions(outcome), *outcome.notes],
        "sources": _names(outcome.sources),
        "targets": _names(outcome.targets),
        "as": "constant" if outcome.constant else "initial",
    }


def _names(names: Sequence[str]) -> list[str]:
    shown = list(names[:SHOWN])
    return [*shown, f"and {len(names) - SHOWN:,} more"] if len(names) > SHOWN else shown


def _rows(
    said: Mapping[str, str], specs: Mapping[str, TensorSpec], by: Mapping[str, tuple[str, ...]] | None = None
) -> Iterator[_Row]:
    for number, (name, disposition) in enumerate(said.items()):
        if number == SHOWN:
            return
        spec = specs.get(name)
        if spec is None:
            yield _Row(name, "", "", "", disposition)
        else:
            shape = " × ".join(map(str, spec.shape)) or "scalar"
            checked = (" and ".join(by[name]) or UNVERIFIED) if by and name in by else ""
            yield _Row(name, spec.dtype_name, shape, size(spec.nbytes), disposition, checked)


def _counted(said: Mapping[str, str]) -> str:
    count = Counter(said.values())
    return f"{len(said):,} tensors: " + ", ".join(f"{n:,} {kind}" for kind, n in count.items())
