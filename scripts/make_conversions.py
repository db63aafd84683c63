#!/usr/bin/env python
"""Write ``docs/conversions.md``: every pair of layouts of LSTM, GRU and plain RNN, how exact it is, and how far apart
the two cells' outputs are when they run.

    python scripts/make_conversions.py [--check]

For each pair a cell with random weights is moved and both cells run side by side: by the reference steps, and where the
frameworks of both sides are installed, by the frameworks themselves. The figures differ a little from machine to
machine; ``--check`` compares only what does not, and runs nothing.

Exit codes: 0 the page is as the tables say; 1 it was not (with ``--check`` it is left as it is).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import weightport as wp
from weightport.execute import Reader
from weightport.layouts import builtin
from weightport.layouts.layout import Form, Layout
from weightport.layouts.units import FORWARD, Stored, full_name, packed_shape, spelled, stored_rows
from weightport.plan import Plan, plan
from weightport.proof import verify
from weightport.targets.live_cells import runner
from weightport.tensors import Array, Index, Source, TensorSpec

PAGE = Path(__file__).resolve().parents[1] / "docs" / "conversions.md"
KINDS = {"lstm": "LSTM", "gru": "GRU", "rnn": "Plain RNN"}
SIZES = {"input": 3, "unit": 4, "hidden": 4, "layer": 1, "direction": 1, "group": 1}
_MEASURED = re.compile(r"^\| `.*` \| `.*` \| [\d.e+-]+ \| .* \|$")

HEAD = """# Conversions

Every pair of layouts of the common cells, made by `python scripts/make_conversions.py`. A cell without peepholes and
projection, with biases, is moved from the layout of the row to that of the column. What a file does not record and
the other side always has (an activation) is taken to be stated in the mapping.

`=` bijective: bit for bit, and back again. `~` exact: the same function, but the way back does not give the same bits
(two biases summed, a constant folded in). A letter: refused, and why is said below the table.
"""


@dataclass(frozen=True)
class Row:
    """A layout, and for a GRU where its reset gate acts."""

    layout: Layout
    form: Form
    reset: str | None

    def __str__(self) -> str:
        several = len({f.reset for f in self.layout.forms}) > 1 or (self.form.reset is None and self.reset)
        return self.layout.name + (f", {self.reset}" if several else "")


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


def rows(kind: str) -> list[Row]:
    """The layouts of a kind, a GRU's once for each place of its reset gate."""
    found = []
    for layout in builtin().values():
        if layout.kind != kind:
            continue
        seen: set[str | None] = set()
        for form in layout.forms:
            resets = ("before", "after") if kind == "gru" and form.reset is None else (form.reset,)
            # Without a bias a GRU's file tells less, and nothing more can be said of the conversion.
            if kind == "gru" and form.reset is None and any(f.reset for f in layout.forms):
                continue
            for reset in resets:
                if reset not in seen:
                    seen.add(reset)
                    found.append(Row(layout, form, reset))
    return found


def cell(row: Row) -> Memory:
    """A cell with random weights, at the scope ``s``."""
    rng = np.random.default_rng(0)
    arrays = {}
    for stored in tensors(row):
        shape = packed_shape(row.layout, stored, SIZES)
        arrays[stored.name] = rng.normal(0, 0.5, shape).astype(np.float32)
    return Memory(arrays)


def tensors(row: Row) -> Iterator[Stored]:
    """What a cell without peepholes and projection stores."""
    for entry, gate in stored_rows(row.layout, row.form):
        if entry.optional and not {t.param for t in entry.packing.terms} & {"bi", "bt"}:
            continue
        name = spelled(row.layout, entry.template, gate, 0, FORWARD)
        yield Stored(entry, gate, full_name("s", name, row.layout.separator))


def mapping(source: Row, target: Row) -> Any:
    """The rule that moves one into the other, with what files do not record."""
    sides: list[dict[str, Any]] = [
        {"layout": row.layout.name, "scope": scope} for row, scope in ((source, "s"), (target, "t"))
    ]
    for key in ("activation", "recurrent_activation"):
        said = next((r for r in (source, target) if key in r.layout.fixed), source)
        value = getattr(said.layout, key)
        for row, side in zip((source, target), sides, strict=True):
            if value is not None and key not in row.layout.fixed and getattr(row.layout, key) is not None:
                side[key] = value
    for row, side in zip((source, target), sides, strict=True):
        if row.reset is not None:
            side["reset"] = row.reset
    return wp.load_mapping({"weightport": 1, "rules": [{"from": sides[0], "to": sides[1]}]})


def reason(planned: Plan) -> str:
    """Why a pair is refused, without the names of this cell."""
    return planned.problems[0].what


def page(*, run: bool) -> str:
    """The page's text; without the measured figures if nothing is to run."""
    lines = [HEAD]
    for kind, title in KINDS.items():
        lines += [f"\n## {title}\n", *section(rows(kind), run=run)]
    return "\n".join(lines) + "\n"


def section(found: Sequence[Row], *, run: bool) -> Iterator[str]:
    """The table of one kind, its reasons, and the figures."""
    reasons: dict[str, str] = {}
    measured: list[str] = []
    numbers = {str(row): str(k) for k, row in enumerate(found, start=1)}
    yield "| from \\ to | " + " | ".join(numbers[str(r)] for r in found) + " |"
    yield "| --- |" + " --- |" * len(found)
    for source in found:
        signs = []
        for target in found:
            held, rules = cell(source), mapping(source, target)
            planned = plan(held, None, rules)
            if planned.problems:
                signs.append(reasons.setdefault(reason(planned), chr(ord("a") + len(reasons))))
                continue
            signs.append("=" if planned.outcomes[0].classed == "bijective" else "~")
            if run:
                measured.append(figure(source, target, held, planned, rules))
        yield f"| {numbers[str(source)]} `{source}` | " + " | ".join(signs) + " |"
    yield ""
    yield from (f"- {letter}: {why}" for why, letter in reasons.items())
    yield "\nThe largest difference of outputs and states, relative to values above 1:\n"
    yield "| from | to | apart | run by |"
    yield "| --- | --- | --- | --- |"
    yield from measured


def figure(source: Row, target: Row, held: Source, planned: Plan, rules: Any) -> str:
    """The line of one pair: both cells run, by their frameworks where these are installed."""
    reader = Reader(held)
    moved = Memory({name: reader.value(item) for name, item in planned.items.items()})
    live = all(runner(row.layout.name) for row in (source, target))
    proof = verify(held, moved, rules, live=live).cells[-1]
    if not proof.equal:
        raise SystemExit(f"{source} -> {target}: outputs differ by {proof.max_abs_diff:.3g}")
    return f"| `{source}` | `{target}` | {proof.max_abs_diff:.1e} | {proof.by} |"


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
