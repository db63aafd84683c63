#!/usr/bin/env python
"""Write ``docs/conversions.md``: every pair of layouts of LSTM, GRU and plain RNN, how exact it is, and how far apart
the two cells' outputs are when they run.

    python scripts/make_conversions.py [--check]

For each pair a cell with random weights (which meet the pair's condition, if it has one) is moved and both cells run
side by side: by the reference steps, and where the frameworks of both sides are installed, by the frameworks
themselves. The figures differ a little from machine to machine; ``--check`` compares only what does not, and runs
nothing.

Exit codes: 0 the page is as the tables say; 1 it was not (with ``--check`` it is left as it is).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import weightport as wp
from weightport.execute import Reader
from weightport.layouts.conditions import DIAGONAL, Condition
from weightport.layouts.units import packed_shape
from weightport.plan import plan
from weightport.plan.model import REFUSED
from weightport.plan.pairs import EXTRAS, Class, Row, classed, rows, stated
from weightport.proof import verify
from weightport.ranges import slices_of
from weightport.targets.live_cells import runner
from weightport.tensors import Array, Index, TensorSpec

PAGE = Path(__file__).resolve().parents[1] / "docs" / "conversions.md"
KINDS = {"lstm": "LSTM", "gru": "GRU", "rnn": "Plain RNN"}
_MEASURED = re.compile(r"^\| `.*` .*\| `.*` \| [\d.e+-]+ \| .* \|$")

HEAD = """# Conversions

Every pair of layouts of the common cells, made by `python scripts/make_conversions.py`. A cell with biases is moved
from the layout of the row to that of the column: without peepholes and projection in each kind's first table, with one
of them in the tables after it. What a file does not record and the other side always has (an activation) is taken to
be stated in the mapping.

- `=` *bijective*: bit for bit, and back again.
- `~` *exact*: the same function, but the way back does not give the same bits (two biases summed, a constant folded in,
  a parameter that does nothing added).
- a capital letter: *conditional*: exact where the source's values meet the condition below the table. A transfer looks
  at these values before it writes anything, and refuses the others.
- a small letter: *refused* whatever the values are, and why is said below the table.

Conditions add up: a cell with peepholes and a projection has those of both. A projection of fewer outputs than units is
never the identity. And where the layout can lack them, a TARGET without biases is the same function on the condition
that the source's biases are all zero.
"""


class Memory:
    """A model in memory."""

    format, path = "memory", "memory"

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = dict(arrays)

    def specs(self) -> Mapping[str, TensorSpec]:
        """The tensors' headers."""
        return {n: TensorSpec.of(a.dtype, a.shape) for n, a in self._arrays.items()}

    def read(self, name: str, index: Index = None) -> Array:
        """A tensor or a part of it."""
        return self._arrays[name].copy() if index is None else self._arrays[name][index].copy()

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:  # noqa: ARG002
        """Nothing is recorded."""
        return {}

    def close(self) -> None:
        """Nothing to release."""


def cell(row: Row, extra: str, conditions: Sequence[Condition] = ()) -> Memory:
    """A cell with random weights that meet the conditions, at the scope ``s``."""
    rng = np.random.default_rng(0)
    arrays = empty(row, extra, "s")
    for name, array in arrays.items():
        arrays[name] = np.asarray(rng.normal(0, 0.5, array.shape), np.float32)
    for condition in conditions:
        part = arrays[condition.tensor][slices_of(condition.ranges)]
        on = np.eye(*condition.shape) if len(condition.shape) == 2 else np.zeros(condition.shape)
        kept = part.reshape(condition.shape) if condition.must == DIAGONAL else np.ones(condition.shape)
        part[...] = (kept * on).reshape(part.shape)
    return Memory(arrays)


def empty(row: Row, extra: str, scope: str) -> dict[str, Array]:
    """A cell whose weights are zero."""
    unit = row.unit(extra, scope)
    return {s.name: np.zeros(packed_shape(unit.layout, s, unit.sizes), np.float32) for s in unit.tensors}


def mapping(source: Row, target: Row) -> Any:
    """The rule that moves one into the other, with what files do not record."""
    here, there = stated(source, target)
    one = {"layout": source.layout.name, "scope": "s", **here}
    return wp.load_mapping(
        {"weightport": 1, "rules": [{"from": one, "to": {"layout": target.layout.name, "scope": "t", **there}}]}
    )


def page(*, run: bool) -> str:
    """The page's text; without the measured figures if nothing is to run."""
    lines = [HEAD]
    for kind, title in KINDS.items():
        found, measured = rows(kind), list[str]()
        lines += [f"\n## {title}\n", *table(found, found, "", measured, run=run)]
        for extra, words in EXTRAS.items():
            having = [row for row in found if row.has(extra)]
            if having:
                lines += [f"\n### {title} with {words}\n", *table(having, found, extra, measured, run=run)]
        lines += ["\nThe largest difference of outputs and states, relative to values above 1:\n"]
        lines += ["| from | to | apart | run by |", "| --- | --- | --- | --- |", *measured]
    return "\n".join(lines) + "\n"


def table(
    sources: Sequence[Row], targets: Sequence[Row], extra: str, measured: list[str], *, run: bool
) -> Iterator[str]:
    """The table of one kind and what it refers to; the figures are added to ``measured``."""
    conditions: dict[str, str] = {}
    reasons: dict[str, str] = {}
    numbers = {str(row): str(k) for k, row in enumerate(targets, start=1)}
    yield "| from \\ to | " + " | ".join(numbers[str(r)] for r in targets) + " |"
    yield "| --- |" + " --- |" * len(targets)
    for source in sources:
        signs = []
        for target in targets:
            found = classed(source, target, extra)
            if found.classed == REFUSED:
                signs.append(reasons.setdefault(found.reason, chr(ord("a") + len(reasons))))
                continue
            sign = {"bijective": "=", "exact": "~"}.get(found.classed)
            signs.append(sign or conditions.setdefault(found.condition, chr(ord("A") + len(conditions))))
            if run:
                measured.append(figure(source, target, extra, found))
        yield f"| {numbers[str(source)]} `{source}` | " + " | ".join(signs) + " |"
    yield ""
    yield from (f"- {letter}: exact only where {says}" for says, letter in conditions.items())
    yield from (f"- {letter}: {why}" for why, letter in reasons.items())


def figure(source: Row, target: Row, extra: str, expected: Class) -> str:
    """The line of one pair: both cells run, by their frameworks where these are installed."""
    rules, held = mapping(source, target), cell(source, extra)
    there = Memory(empty(target, extra if target.has(extra) else "", "t"))
    planned = plan(held, there, rules, target_name="t").check()
    found = planned.outcomes[0].classed
    if found not in (expected.classed, "assumed"):
        raise SystemExit(f"{source} -> {target}: {found}, and not {expected.classed}")
    if planned.conditions:
        held = cell(source, extra, planned.conditions)
        planned = plan(held, there, rules, target_name="t")
    reader = Reader(held)
    moved = Memory({name: reader.value(item) for name, item in planned.items.items()})
    live = all(runner(row.layout.name) for row in (source, target))
    proof = verify(held, moved, rules, live=live).cells[-1]
    if not proof.equal:
        raise SystemExit(f"{source} -> {target}: outputs differ by {proof.max_abs_diff:.3g}")
    words = f" with {EXTRAS[extra]}" if extra else ""
    return f"| `{source}`{words} | `{target}` | {proof.max_abs_diff:.1e} | {proof.by} |"


def unmeasured(text: str) -> list[str]:
    """The lines that do not depend on the machine."""
    return [line for line in text.splitlines() if not _MEASURED.match(line)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the page, or look whether it is as it would be made."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing, run nothing; exit 1 if it is stale")
    options = parser.parse_args(arguments)
    old = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    new = page(run=not options.check)
    fresh = unmeasured(old) == unmeasured(new)
    if not options.check:
        PAGE.write_text(new, encoding="utf-8")
    elif not fresh:
        print(f"{PAGE.name} is stale: python scripts/make_conversions.py", file=sys.stderr)
    return 0 if fresh or not options.check else 1


if __name__ == "__main__":
    sys.exit(main())
