"""The mistakes that people make by hand, planted in each of the rarer cells: each is caught and named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import weightport as wp
from tests.layouts._steps import convert, specs
from tests.support import Fixture, fixtures
from weightport.causes import likely_cause
from weightport.errors import LayoutError
from weightport.layouts.behaviour import ASSUMED, Behaviour, Said
from weightport.layouts.convert import Block, Conversion, blocks
from weightport.layouts.layout import KIND_GATES, Layout
from weightport.layouts.reference import KINDS, ReferenceCell
from weightport.layouts.units import Unit, match
from weightport.ranges import slices_of

Arrays = dict[str, np.ndarray]
Fault = Callable[[Unit, Arrays], str]


def rare() -> list[Fixture]:
    found = []
    for model in fixtures("checkpoint_v2"):
        with wp.open(model.path("checkpoint_v2")) as source:
            kinds = {cell.layout.kind for cell in source.cells()} - set(KIND_GATES)
        if kinds and not model.doc.get("num_layers"):
            found.append(model)
    return found


MODELS = rare()


def unit_of(model: Fixture) -> Unit:
    with wp.open(model.path("checkpoint_v2")) as source:
        return next(cell for cell in source.cells() if cell.layout.kind not in KIND_GATES).units[-1]


def places(unit: Unit) -> Iterator[tuple[str, str | None, Block]]:
    for stored in unit.tensors:
        yield from blocks(unit, stored)


def exchange(layout: Layout) -> Iterator[tuple[Layout, str, str]]:
    """The layout with two neighbours among its gates exchanged, where it allows that."""
    for k in range(len(layout.gates) - 1):
        order = [*layout.gates]
        order[k], order[k + 1] = order[k + 1], order[k]
        try:
            yield layout.with_gates(order), layout.gates[k], layout.gates[k + 1]
        except LayoutError:
            continue


def other_order(unit: Unit, arrays: Arrays) -> str:
    """The gates of every tensor in another order. Two that no matrix holds side by side leave everything as it is."""
    for wrong, a, b in exchange(unit.layout):
        number = unit.layout.forms.index(unit.form)
        shapes = {n: array.shape for n, array in arrays.items()}
        there = next(u for u in match(wrong, wrong.forms[number], unit.scope, shapes) if u.layer == unit.layer)
        moved = convert(Conversion(unit, there, specs(arrays)), arrays)
        sets = [{g for p, g, block in places(unit) if p == name and len(block.shape) > 1} for name in unit.params]
        if any({a, b} <= gates for gates in sets):
            arrays.update(moved)
            return f"the gates are in another order: {a} stands where {b} belongs, {b} stands where {a} belongs"
    return ""


def lost_forget_bias(unit: Unit, arrays: Arrays) -> str:
    kind = KINDS[unit.layout.kind]
    for param, gate, block in places(unit):
        if (param, gate) in kind.forget and unit.layout.forget_gates:
            arrays[block.stored.name][slices_of(block.ranges)] -= 1
            whose = "the forget gate's bias" if gate == "f" else f"the bias of gate {gate}"
            return f"a forget bias of 1 is lost: {whose} is off by a constant"
    return ""


def transposed(unit: Unit, arrays: Arrays) -> str:
    for param, gate, block in sorted(places(unit), key=lambda place: place[0] != "wt"):
        if len(block.shape) > 1 and block.shape[-1] == block.shape[-2]:
            part = arrays[block.stored.name][slices_of(block.ranges)]
            part[...] = part.reshape(block.shape).swapaxes(-1, -2).copy().reshape(part.shape)
            name = {"wt": "recurrent weights", "wx": "input weights"}.get(param, f"weights {param}")
            of = f" of gate {gate}" if gate else ""
            return f"the {name}{of} are transposed (they are square, so the shapes fit)"
    return ""


FAULTS = {"gate order": other_order, "forget bias": lost_forget_bias, "transposed": transposed}
#: What a kind does not have: gates side by side in a matrix, a forget bias, a square matrix.
WITHOUT = {
    "gate order": {"ind_rnn", "minimal", "attention"},
    "forget bias": {"nas", "phased_lstm", "ind_rnn", "indy_gru", "sru", "minimal", "cfn", "attention"},
    # of the projected and grouped cells, the fixtures' sizes are not square
    "transposed": {
        "ind_rnn",
        "indy_gru",
        "indy_lstm",
        "sru",
        "attention",
        "nas",
        "layer_norm_lstm",
        "weight_norm_lstm",
    },
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_a_planted_fault_is_caught_and_named(model: Fixture, fault: str, tmp_path: Path) -> None:
    unit, arrays = unit_of(model), model.variables
    cause = FAULTS[fault](unit, arrays)
    without = unit.layout.kind in WITHOUT[fault] or (fault == "forget bias" and "coupled" in unit.layout.name)
    if not cause:
        assert without or (fault == "transposed" and "glstm" in model.name)
        return
    out = tmp_path / "out.npz"
    np.savez(out, **arrays)
    with wp.open(model.path("checkpoint_v2")) as source:
        sides = [{"layout": found.layout.name, "scope": found.scope} for found in source.cells()]
    mapping = {"weightport": 1, "rules": [{"from": side, "to": side} for side in sides]}
    proof = wp.verify(model.path("checkpoint_v2"), out, mapping)
    wrong = [cell for cell in proof.cells if not cell.equal]
    assert [cell.cause for cell in wrong] == [cause]
    assert proof.problems()[0].hint == cause


def test_every_fault_is_planted_in_most_kinds() -> None:
    kinds = {unit_of(model).layout.kind for model in MODELS}
    assert kinds == set(KINDS) - set(KIND_GATES)
    assert all(WITHOUT[fault] <= kinds and len(WITHOUT[fault]) < len(kinds) / 2 for fault in FAULTS)


NOTHING = Behaviour(*(Said(0.0 if key == "forget_bias" else None, ASSUMED) for key in Behaviour.__slots__))


def cell(kind: str, parameters: dict[tuple[str, str | None], np.ndarray]) -> ReferenceCell:
    return ReferenceCell(kind, parameters, NOTHING, {"input": 2, "unit": 2, "hidden": 2})


RNG = np.random.default_rng(4)
M = {name: RNG.normal(size=(2, 2)) for name in "abcd"}
V = {name: RNG.normal(size=2) for name in "ab"}


@pytest.mark.parametrize(
    ("kind", "mine", "its", "others", "cause"),
    [
        ("attention", {("keys", None): M["a"]}, {("keys", None): M["a"].T}, (),
         "the weights keys are transposed (they are square, so the shapes fit)"),
        ("attention", {("scores", None): V["a"]}, {("scores", None): 0 * V["a"]}, (), "scores is zero in the target"),
        ("attention", {("keys", None): M["a"]}, {("keys", None): M["b"]}, (), ""),
        ("sru", {("wx", "n"): M["a"]}, {("wx", "n"): M["b"]}, ({("wx", "n"): M["a"]},),
         "another layer or direction of the target holds these weights: two of them are exchanged"),
        # without a matrix there is nothing to tell two layers by
        ("ind_rnn", {("bi", "h"): V["a"]}, {("bi", "h"): V["b"]}, ({("bi", "h"): V["b"]},),
         "the bias of gate h is another one"),
        ("nas", {("wt", "a0"): M["a"], ("wt", "a1"): M["b"]}, {("wt", "a0"): -M["a"], ("wt", "a1"): M["b"]}, (),
         "the weights of gate a0 are negated (a gate that keeps instead of replaces?)"),
        ("cfn", {("wz", "t"): M["a"], ("wz", "e"): M["b"]}, {("wz", "t"): -M["a"], ("wz", "e"): M["b"]}, (),
         "the weights wz of gate t are negated (a gate that keeps instead of replaces?)"),
        # f follows from i: what is stored decides
        ("grid_lstm", {("fx", "i"): M["a"], ("fx", "g"): M["b"], ("fx", "f"): -M["a"]},
         {("fx", "i"): M["b"], ("fx", "g"): M["a"], ("fx", "f"): -M["b"]}, (),
         "the gates are in another order: i stands where g belongs, g stands where i belongs"),
        ("grid_lstm", {("tb", "f"): V["a"] + 1}, {("tb", "f"): V["a"]}, (),
         "a forget bias of 1 is lost: the forget gate's bias is off by a constant"),
        ("ugrnn", {("bi", "g"): V["a"]}, {("bi", "g"): V["a"] + 1}, (),
         "a forget bias of 1 was added twice: the bias of gate g is off by a constant"),
    ],
)  # fmt: skip
def test_a_cause(kind: str, mine: Arrays, its: Arrays, others: tuple[Arrays, ...], cause: str) -> None:
    assert likely_cause(cell(kind, mine), cell(kind, its), others) == cause  # type: ignore[arg-type]
