#!/usr/bin/env python
"""Change one entry of a layout table at a time, and see that a test notices.

    python scripts/mutate_tables.py [KIND | KIND.FLAVOUR ...]

Without names, all of them. The entries: the order and the signs of the gates, the axes and the order of the terms of
every packing, the gates that a term names, forget bias, reset mode, gates that follow from others. What no function can
tell is not changed: which of two biases that are only ever summed is the first, an order of gates that no packing goes
by, the sign of a gate whose two halves are multiplied, and a tensor that its cell stores and does not use.

Exit codes: 0 every changed table is caught; 1 one is not.
"""

from __future__ import annotations

import copy
import importlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from weightport.errors import LayoutError
from weightport.layouts import Layout, parse_layout

#: Kinds in which a gate has a second bias that is only ever summed with the first, or is the one that is used.
SUMMED = ("lstm", "rnn")
#: A gate whose halves, from the input and the output before, are multiplied: both with the other sign are the same.
MULTIPLIED = {("nas", "gate ~a3")}
#: A parameter that its cell does not use.
UNUSED = "unused"
_TERM = re.compile(r"(?P<head>\w+\s*(?:\{[^}]*\})?)\[(?P<axes>[^\]]*)\](?P<rest>.*)", re.DOTALL)
_GROUPS = re.compile(r"\([^)]*\)|[^\s()]+")


@dataclass(frozen=True)
class Mutant:
    """A table with one entry changed.

    Attributes:
        layout: what became of it; None if it is no table any more, which is caught by that.
    """

    name: str
    change: str
    layout: Layout | None

    def __str__(self) -> str:
        return f"{self.name}: {self.change}"


def shipped() -> Iterator[tuple[str, dict[str, Any]]]:
    """The tables, as data."""
    for entry in sorted((resources.files("weightport.layouts") / "tables").iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".yaml"):
            yield from yaml.safe_load(entry.read_text(encoding="utf-8")).items()


def mutants(names: Sequence[str] = ()) -> Iterator[Mutant]:
    """Every changed table, or those of some layouts or kinds."""
    for name, table in shipped():
        if names and not {name, name.split(".")[0]} & set(names):
            continue
        for change, changed in changes(name.split(".")[0], table):
            try:
                layout: Layout | None = parse_layout(name, changed, name)
            except LayoutError:
                layout = None
            yield Mutant(name, change, layout)


def changes(kind: str, table: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is changed, and the table with that change."""

    def changed() -> dict[str, Any]:
        return copy.deepcopy(dict(table))

    gates = table.get("gates")
    if gates is not None:
        for which, new in (change for change in gate_changes(gates) if (kind, change[0]) not in MULTIPLIED):
            if which.startswith("gate ") or isinstance(gates, dict) or by_order(table):
                yield which, changed() | {"gates": new}
    if "derived" in table:
        yield (
            "derived without its sign",
            changed() | {"derived": {k: v.lstrip("~") for k, v in table["derived"].items()}},
        )
    for place in [(), *(("variants", k) for k in range(len(table.get("variants") or ())))]:
        part = at(table, place)
        if (kind == "lstm" or "forget_gates" in table) and ("forget_bias" in part or not place):
            new = changed()
            at(new, place)["forget_bias"] = part.get("forget_bias", 0.0) + 1
            yield f"{place} forget_bias + 1", new
        if part.get("reset") in ("before", "after"):
            new = changed()
            at(new, place)["reset"] = "after" if part["reset"] == "before" else "before"
            yield f"{place} reset", new
        # A second bias that is never summed with the first: of a GRU that resets after the product.
        apart = kind not in SUMMED
        if kind == "gru":
            apart = "bt" in str(part) and part.get("reset", table.get("reset")) != "before"
        for template, packing in (part.get("tensors") or {}).items():
            for which, other in packing_changes(apart, packing):
                new = changed()
                at(new, place)["tensors"][template] = other
                yield f"{place} {template}: {which}", new


def by_order(table: Mapping[str, Any]) -> bool:
    """Whether some packing goes by the table's order of gates."""
    texts = [str(p) for part in (table, *(table.get("variants") or ())) for p in (part.get("tensors") or {}).values()]
    return any(re.search(r"\b\w+\[[^\]]*\bgate\b", text) for text in texts)


def at(table: Any, place: tuple[Any, ...]) -> Any:
    """The part of a table at a place."""
    for key in place:
        table = table[key]
    return table


def gate_changes(gates: Any) -> Iterator[tuple[str, Any]]:
    """Neighbours exchanged, and each gate's sign."""
    names = list(gates)
    for k in range(len(names) - 1):
        order = [*names[:k], names[k + 1], names[k], *names[k + 2 :]]
        if isinstance(gates, dict):  # the gate stands in the name: the names are exchanged
            yield f"gates {order}", dict(zip(names, (gates[g] for g in order), strict=True))
        else:
            yield f"gates {order}", order
    for k, gate in enumerate(names):
        other = gate[1:] if gate.startswith("~") else f"~{gate}"
        if isinstance(gates, dict):
            yield f"gate {other}", {other if g == gate else g: text for g, text in gates.items()}
        else:
            yield f"gate {other}", [*names[:k], other, *names[k + 1 :]]


def packing_changes(apart: bool, packing: Any) -> Iterator[tuple[str, Any]]:
    """Axes and gates of each term, and the order of the terms.

    Args:
        apart: two biases are not only ever summed.
    """
    if isinstance(packing, dict) and "runs" in packing:
        runs = packing["runs"]
        yield "runs in another order", {"runs": runs[::-1]}
        for k, run in enumerate(runs):
            for which, other in packing_changes(apart, run):
                yield which, {"runs": [*runs[:k], other, *runs[k + 1 :]]}
        return
    if isinstance(packing, dict):
        for which, terms in packing_changes(apart, packing["of"]):
            yield which, packing | {"of": terms}
        return
    if isinstance(packing, str):
        yield from term_changes(apart, packing)
        return
    summed = not apart and all(re.match(r"b[it]\b", term) for term in packing)
    for k, term in enumerate(packing):
        for which, other in term_changes(apart, term):
            yield which, [*packing[:k], other, *packing[k + 1 :]]
        if k and not summed:
            yield f"{term} before {packing[k - 1]}", [*packing[: k - 1], term, packing[k - 1], *packing[k + 1 :]]


def term_changes(apart: bool, term: str) -> Iterator[tuple[str, str]]:
    """One term with its axes or its gates in another order, or of another parameter."""
    found = _TERM.fullmatch(term)
    assert found is not None, term
    if term.startswith(UNUSED):
        return
    head, rest = found["head"], found["rest"]
    groups = [g.strip("()").split() if g.startswith("(") else [g] for g in _GROUPS.findall(found["axes"])]

    def text(changed: list[list[str]], start: str = head) -> str:
        axes = " ".join(f"({' '.join(g)})" if len(g) != 1 else g[0] for g in changed)
        return f"{start}[{axes}]{rest}"

    if len(groups) > 1 and "1" not in [axis for group in groups for axis in group]:
        yield f"{term} transposed", text(groups[::-1])
    for k, group in enumerate(groups):
        if len(group) > 1:
            yield f"{term} inside out", text([*groups[:k], group[::-1], *groups[k + 1 :]])
    named = re.search(r"\{([^}]*)\}", head)
    if named and len(named[1].split()) > 1:
        yield f"{term} gates", text(groups, head.replace(named[0], "{" + " ".join(named[1].split()[::-1]) + "}"))
    swapped = {"bi": "bt", "bt": "bi", "wx": "wt", "wt": "wx"}
    param = re.match(r"\w+", head)
    assert param is not None
    summed = not apart or (named is not None and "n" not in named[1].split())
    if param[0] in swapped and not (summed and param[0] in ("bi", "bt")):
        other = swapped[param[0]]
        axes = [[{"input": "hidden", "hidden": "input"}.get(a, a) for a in g] for g in groups]
        yield f"{term} as {other}", text(axes, other + head[len(param[0]) :])


def main(names: Sequence[str]) -> int:
    """Try every changed table."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    caught = importlib.import_module("tests.layouts.test_reference").caught
    tried = refused = 0
    survivors = []
    for mutant in mutants(names):
        tried += 1
        if mutant.layout is None:
            refused += 1
        elif not caught(mutant.layout):
            survivors.append(str(mutant))
    print(
        f"{tried} changed tables: {refused} are no tables any more, {tried - refused - len(survivors)} compute another"
    )
    print(f"function or do not fit the tensors, {len(survivors)} were not noticed")
    for survivor in survivors:
        print(f"  {survivor}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
