"""What pairs of layouts come to, as a plan of such cells says."""

from __future__ import annotations

from typing import Any

import pytest

from tests.plan.stub import planned
from weightport.layouts import builtin, find_layout
from weightport.layouts.units import packed_shape
from weightport.plan.pairs import EXTRAS, Row, classed, conversions, rows, stated

FAMILIES = sorted({layout.family for layout in builtin().values()})


def test_every_layout_has_a_row() -> None:
    names = {row.layout.name for family in FAMILIES for row in rows(family)}
    assert names == set(builtin())
    assert [str(row) for row in rows("gru") if row.layout.name in ("gru.keras", "gru.flax", "gru.onnx")] == [
        "gru.keras, after", "gru.keras, before", "gru.flax", "gru.flax, one bias", "gru.onnx, before", "gru.onnx, after"
    ]  # fmt: skip


def shapes(row: Row, extra: str, scope: str) -> dict[str, Any]:
    unit = row.unit(extra, scope)
    return {s.name: packed_shape(unit.layout, s, unit.sizes) for s in unit.tensors}


PAIRS = [(a, b, extra) for f in FAMILIES for a in rows(f) for b in rows(f) for extra in ("", *EXTRAS)]
PAIRS = [(a, b, extra) for a, b, extra in PAIRS if not extra or a.has(extra)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_says_the_same(family: str) -> None:
    for a, b, extra in PAIRS:
        if a.layout.family != family or a.layout.kind in ("attention", "grid_lstm"):  # found by names of their own
            continue
        here, there = stated(a, b)
        rule = {"from": {"layout": a.layout.name, "scope": "s", **here}, "to": {"layout": b.layout.name, "scope": "t"}}
        rule["to"] |= there
        target = shapes(b, extra if b.has(extra) else "", "t")
        (outcome,) = (made := planned(shapes(a, extra, "s"), target, [rule])).outcomes
        found = classed(a, b, extra)
        if made.problems:
            assert (found.classed, found.reason) == ("refused", made.problems[0].what), (str(a), str(b), extra)
        else:
            assert found.classed == outcome.classed or outcome.classed == "assumed", (str(a), str(b), extra)
            assert bool(found.condition) == bool(outcome.conditions)


def test_what_a_layout_moves_to_and_from() -> None:
    found = [(str(s), str(t), extra, c.classed) for s, t, extra, c in conversions(find_layout("lstm.tf1-coupled"))]
    assert ("lstm.keras", "lstm.tf1-coupled", "", "refused") in found
    assert ("lstm.tf1-coupled", "lstm.keras", "", "exact") in found
    assert ("lstm.tf1-coupled", "lstm.keras", "wp", "conditional") in found
    assert ("lstm.tf1-coupled", "lstm.onnx", "wr", "conditional") in found
    assert not [f for f in found if f[:3] == ("lstm.tf1-coupled", "lstm.onnx", "wp")]  # as the plain cell
    assert not [f for f in found if f[0] == f[1]]
