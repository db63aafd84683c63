"""Conditions: what a plan says of them, what a transfer looks at, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weightport as wp
from tests.layouts._steps import made, random_arrays, shapes
from tests.layouts.test_convert import CONDITIONAL_PAIRS, facts, meeting, outputs
from tests.plan.stub import Stub, planned, results
from tests.support import need
from weightport import settle
from weightport.plan import Plan
from weightport.settle import settled
from weightport.tensors import TensorSpec

Arrays = dict[str, np.ndarray]
UNITS = 4


def rule(source: str, target: str, **more: Any) -> dict[str, Any]:
    """``LAYOUT SCOPE`` on either side."""
    sides = [dict(zip(("layout", "scope"), text.split(), strict=True)) for text in (source, target)]
    return {"from": sides[0], "to": sides[1], **more}


def tf1(scope: str, *, peepholes: Any = None, projection: Any = None, units: int = UNITS) -> Arrays:
    rng = np.random.default_rng(0)
    outs = units if projection is None else projection.shape[1]
    found = {
        f"{scope}/kernel": rng.normal(size=(3 + outs, 4 * units)),
        f"{scope}/bias": rng.normal(size=4 * units),
    }
    if peepholes is not None:
        found |= {f"{scope}/w_{g}_diag": np.array(peepholes) for g in "ifo"}
    if projection is not None:
        found[f"{scope}/projection/kernel"] = projection
    return {n: a.astype(np.float32) for n, a in found.items()}


def looked(source: Stub, made_: Plan) -> list[str]:
    return [str(p) for p in settled(made_, source).problems]


# Every pair ----------------------------------------------------------------------------------------------------------

CLOSE = {"float16": 3e-2, "float32": 1e-5, "float64": 1e-11}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_conditional_pair(data: st.DataObject) -> None:
    """A cell that meets its conditions is the same function in the other layout; one element off, and it is refused."""
    a, b, outs = data.draw(st.sampled_from(CONDITIONAL_PAIRS))
    inputs, units = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    dtype = data.draw(st.sampled_from(sorted(CLOSE)))
    outs = units if outs == UNITS else data.draw(st.integers(1, 5))
    cells = [made(case, scope, inputs, units, outs) for case, scope in ((a, "a/x"), (b, "b/y"))]
    rules = [
        {
            "from": {"layout": cells[0].unit.layout.name, "scope": "a/x"},
            "to": {"layout": cells[1].unit.layout.name, "scope": "b/y"},
        }
    ]
    for cell, side in zip(cells, rules[0].values(), strict=True):
        if "recurrent_activation" not in cell.unit.layout.fixed and cell.unit.layout.family != "rnn":
            side["recurrent_activation"] = "sigmoid"
        if cell.unit.layout.forget_gates and "forget_bias" not in cell.unit.layout.fixed:
            side["forget_bias"] = cell.unit.form.forget_bias  # some forms are told by the name of their scope
        if cell.unit.layout.family == "rnn" and "haiku" in a + b:
            side["activation"] = "relu"
    target = {n: TensorSpec.of(dtype, shape) for n, shape in shapes(cells[1].unit).items()}
    arrays = random_arrays(cells[0].unit, data.draw(st.integers(0, 99)), dtype)
    conditions = planned(arrays, target, rules).conditions
    met = Stub(meeting(arrays, list(conditions)))
    plan = settled(planned(met, target, rules), met)
    assert plan.outcomes[0].classed in ("conditional", "assumed")
    assert all(c.holds for c in plan.conditions)
    moved = results(plan, met)
    reset = plan_reset(a, b)
    said = [facts(cell.unit, reset) for cell in cells]
    before = outputs(cells[0], {n: x.astype(np.float64) for n, x in met.arrays.items()}, said[0])
    after = outputs(cells[1], {n: x.astype(np.float64) for n, x in moved.items()}, said[1])
    assert np.abs(before - after).max() < CLOSE[dtype]

    wrong = data.draw(st.sampled_from(conditions))
    array = met.arrays[wrong.tensor]
    index = tuple(int(data.draw(st.sampled_from(r))) for r in wrong.ranges)
    kept, array[index] = array[index], array[index] + 0.5
    refused = settled(planned(met, target, rules), met)
    if wrong.must == "diagonal" and kept:
        assert not refused.problems
        return
    (problem,) = refused.problems
    assert f"and {wrong.tensor!r} is {array[index]!s} at {list(index)}: exact only where {wrong.says}" in problem.what
    assert set(refused.source.values()) == {"unclaimed"}
    with pytest.raises(wp.ConditionError):
        refused.check()


def plan_reset(a: str, b: str) -> str:
    """Where a GRU of either case resets: that of the one that says so; where neither does, it makes no difference."""
    names = {made(case, "s").unit.form.reset for case in (a, b)} - {None}
    return names.pop() if names else "after"


# What is said --------------------------------------------------------------------------------------------------------


def test_a_plan_reads_nothing_and_says_so() -> None:
    source = {n: a.shape for n, a in tf1("l", peepholes=np.zeros(4)).items()}
    made_ = planned(source, None, [rule("lstm.tf1 l", "lstm.keras m")])
    assert str(made_).splitlines()[1:3] == [
        "  rules[0]: moved: lstm.tf1 l -> lstm.keras m: 5 tensors -> 3 (conditional)",
        "      exact only where the peepholes are all zero: l/w_i_diag, l/w_f_diag, l/w_o_diag "
        "(looked at before anything is written)",
    ]
    (outcome,) = made_.as_json()["rules"]
    assert (outcome["exact"], outcome["class"]) == (True, "conditional")
    assert outcome["conditions"] == [
        {"tensor": f"l/w_{g}_diag", "must": "zero", "where": "the peepholes are all zero", "holds": None} for g in "ifo"
    ]
    assert made_.check() is made_


def test_only_what_a_condition_is_on_is_read() -> None:
    source = Stub(tf1("l", peepholes=np.zeros(4)))
    plan = settled(planned(source, None, [rule("lstm.tf1 l", "lstm.keras m")]), source)
    assert source.asked == [f"l/w_{g}_diag" for g in "ifo"]
    assert str(plan).splitlines()[2].endswith("(it holds)")
    assert [c["holds"] for c in plan.as_json()["rules"][0]["conditions"]] == [True] * 3
    assert set(plan.source.values()) == {"moved"}  # what is left out is accounted for
    plain = Stub(tf1("l"))
    unconditional = planned(plain, None, [rule("lstm.tf1 l", "lstm.keras m")])
    assert settled(unconditional, plain) is unconditional
    assert plain.asked == []


PEEPHOLES = "rules[0]: l -> m: the target has no peepholes, and"
TAKEN = "exact whatever its values: lstm.coreml, lstm.onnx, lstm.tf1"


def test_peepholes_that_do_something() -> None:
    source = Stub(tf1("l", peepholes=[0, -0.0, 0.25, 0.5]))
    source.arrays["l/w_o_diag"][:] = np.nan
    source.arrays["l/w_f_diag"][:] = 0
    plan = settled(planned(source, None, [rule("lstm.tf1 l", "lstm.keras m")]), source)
    says = "exact only where the peepholes are all zero"
    assert [str(p) for p in plan.problems] == [
        f"{PEEPHOLES} 'l/w_i_diag' is 0.25 at [2]: {says}; {TAKEN}",
        f"{PEEPHOLES} 'l/w_o_diag' is nan at [0]: {says}; {TAKEN}",
    ]
    assert plan.unmet == plan.problems
    (outcome,) = plan.as_json()["rules"]
    assert (outcome["disposition"], outcome["exact"], outcome["class"]) == ("refused", False, "conditional")
    assert [c["holds"] for c in outcome["conditions"]] == [False, True, False]
    assert (plan.items, plan.target, plan.specs, plan.bytes) == ({}, {}, {}, 0)
    assert str(plan).splitlines()[1:3] == [
        "  rules[0]: refused: lstm.tf1 l -> lstm.keras m",
        f"      {says}: l/w_i_diag, l/w_f_diag, l/w_o_diag (it does not hold)",
    ]


def test_a_projection_that_does_something() -> None:
    projection = np.eye(4)
    projection[2, 1] = 2
    source = Stub(tf1("l", projection=projection))
    assert looked(source, planned(source, None, [rule("lstm.tf1 l", "lstm.keras m")])) == [
        "rules[0]: l -> m: the target has no output projection, and 'l/projection/kernel' is 2.0 at [2, 1]: exact only "
        "where the output projection is the identity; exact whatever its values: lstm.mxnet, lstm.tf1-group, "
        "lstm.torch, lstm.paddle"
    ]
    source.arrays["l/projection/kernel"][:] = np.eye(4)
    source.arrays["l/projection/kernel"][3, 3] = 0
    (problem,) = looked(source, planned(source, None, [rule("lstm.tf1 l", "lstm.keras m")]))
    assert "'l/projection/kernel' is 0.0 at [3, 3]" in problem


def gru(scope: str, recurrent_bias: Any) -> Arrays:
    rng = np.random.default_rng(0)
    bias = np.stack([rng.normal(size=12), np.concatenate([rng.normal(size=8), recurrent_bias])])
    found = {"kernel": rng.normal(size=(3, 12)), "recurrent_kernel": rng.normal(size=(4, 12)), "bias": bias}
    return {f"{scope}/{n}": a.astype(np.float32) for n, a in found.items()}


def nnx(scope: str) -> dict[str, Any]:
    return {
        f"{scope}/dense_i/kernel": (3, 12), f"{scope}/dense_i/bias": (12,), f"{scope}/dense_h/kernel": (4, 12)
    }  # fmt: skip


def test_a_candidates_recurrent_bias_that_does_something() -> None:
    source = Stub(gru("l", [0, 0, 0, 3]))
    made_ = planned(source, nnx("m"), [rule("gru.keras l", "gru.flax m")])
    assert looked(source, made_) == [
        "rules[0]: l -> m: the target has no place for the candidate's recurrent bias, and 'l/bias' is 3.0 at [1, 11]: "
        "exact only where the candidate's recurrent bias is all zero; exact whatever its values: gru.flax, "
        "gru.tf1 (reset after), gru.keras-cudnn, gru.mxnet"
    ]
    source = Stub(gru("l", [0, 0, 0, 0]))
    assert looked(source, planned(source, nnx("m"), [rule("gru.keras l", "gru.flax m")])) == []


def test_biases_that_do_something() -> None:
    bare = {"m/kernel": (3, 16), "m/recurrent_kernel": (4, 16)}
    source = Stub(tf1("l"))
    no = {"layout": "lstm.tf1", "scope": "l", "forget_bias": 0}
    rules = [{"from": no, "to": {"layout": "lstm.keras", "scope": "m"}}]
    (problem,) = looked(source, planned(source, bare, rules))
    value = source.arrays["l/bias"][0]
    assert problem.startswith(
        f"rules[0]: l -> m: the target has no biases, and 'l/bias' is {value!s} at [0]: exact only where the biases "
        "are all zero; exact whatever its values: lstm.keras, "
    )
    source.arrays["l/bias"][:] = 0
    assert looked(source, planned(source, bare, rules)) == []
    assert [str(p) for p in planned(source, bare, [rule("lstm.tf1 l", "lstm.keras m")]).problems] == [
        "rules[0]: l -> m: the source adds 1 to the forget gate, the target 0 and has no bias to make up for it; "
        "exact whatever its values: lstm.keras, lstm.coreml, lstm.flax, lstm.haiku"
    ]


def test_recurrent_weights_off_the_diagonal() -> None:
    rng = np.random.default_rng(0)
    wide = np.concatenate([np.diag(rng.normal(size=4)) for _ in range(4)], axis=1)
    arrays = {"kernel": rng.normal(size=(3, 16)), "recurrent_kernel": wide, "bias": rng.normal(size=16)}
    source = Stub({f"l/{n}": a.astype(np.float32) for n, a in arrays.items()})
    to_indy = [rule("lstm.keras l", "indy_lstm.tf1 m")]
    plan = settled(planned(source, None, to_indy), source)
    moved = results(plan, source)
    # Keras' order is i f g o, the cell's i g f o.
    gates = [np.diag(part) for part in np.split(source.arrays["l/recurrent_kernel"], 4, axis=1)]
    assert np.array_equal(moved["m/kernel_u"], np.concatenate([gates[k] for k in (0, 2, 1, 3)])[None])
    back = results(planned(moved, None, [rule("indy_lstm.tf1 m", "lstm.keras l")]), Stub(moved))
    assert np.array_equal(back["l/recurrent_kernel"], source.arrays["l/recurrent_kernel"])
    source.arrays["l/recurrent_kernel"][3, 6] = -1
    assert looked(source, planned(source, None, to_indy)) == [
        "rules[0]: l -> m: the target has no recurrent weights off their diagonals, and 'l/recurrent_kernel' is -1.0 "
        "at [3, 6]: exact only where the recurrent weights are zero off their diagonals; exact whatever its values: "
        "lstm.coreml, lstm.flax, lstm.haiku, lstm.scoped-gates"
    ]


def test_the_place_is_that_in_the_stored_tensor() -> None:
    """Both directions' peepholes are one tensor of ONNX's operator."""
    rng = np.random.default_rng(0)
    shape = {"W": (2, 16, 3), "R": (2, 16, 4), "B": (2, 32), "P": (2, 12)}
    arrays = {f"l/{n}": rng.normal(size=s).astype(np.float32) for n, s in shape.items()}
    arrays["l/P"][...] = 0
    arrays["l/P"][1, 5] = 7
    arrays["l/P"][1, 11] = 9
    source = Stub(arrays)
    plan = settled(planned(source, None, [rule("lstm.onnx l", "lstm.torch m")]), source)
    assert [p.what for p in plan.problems] == [
        "the target has no peepholes, and 'l/P' is 7.0 at [1, 5]: exact only where the peepholes are all zero"
    ]
    assert source.asked == ["l/P"]
    assert [c["holds"] for c in plan.as_json()["rules"][0]["conditions"]] == [False]


@pytest.mark.parametrize("must", ["zero", "identity", "diagonal"])
def test_large_tensors_are_read_rows_at_a_time(must: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "WHOLE_BYTES", 64)
    monkeypatch.setattr(settle, "TILE_BYTES", 64)
    eye = np.eye(16)
    source = Stub(tf1("l", units=16, peepholes=np.zeros(16), projection=eye))
    rules = [rule("lstm.tf1 l", "indy_lstm.tf1 m")]
    conditions = [c for c in planned(source, None, rules).conditions if c.must == must]
    index = {"zero": (15,), "identity": (11, 3), "diagonal": (3 + 11, 5)}[must]
    arrays = meeting(source.arrays, list(planned(source, None, rules).conditions))
    source = Stub(arrays)
    assert looked(source, planned(source, None, rules)) == []
    source.arrays[conditions[0].tensor][index] = 0.5
    source.asked.clear()
    (problem,) = looked(source, planned(source, None, rules))
    assert f"is 0.5 at {list(index)}" in problem
    reads = source.asked.count(conditions[0].tensor)
    assert reads > 4 if must != "zero" else reads == 1


def test_a_condition_and_a_problem_of_the_plan_are_said_together(tmp_path: Path) -> None:
    path, out = tmp_path / "a.npz", tmp_path / "b.npz"
    np.savez(path, **tf1("l", peepholes=np.ones(4)), more=np.zeros(1))
    mapping = {"weightport": 1, "rules": [rule("lstm.tf1 l", "lstm.keras m")]}
    with pytest.raises(wp.PlanError) as caught:
        wp.transfer(path, None, mapping, out=out)
    assert not isinstance(caught.value, wp.ConditionError)
    found = [p.what.partition(":")[0] for p in caught.value.problems]
    assert found[0] == "source tensor 'more' (float64 [1]) is claimed by no rule"
    assert found[1:] == [f"the target has no peepholes, and 'l/w_{g}_diag' is 1.0 at [0]" for g in "ifo"]
    assert not out.exists()


def test_a_refused_rule_leaves_the_others_as_they_are() -> None:
    source = Stub({**tf1("l", peepholes=np.ones(4)), **tf1("k", peepholes=np.zeros(4)), "w": np.zeros(2, np.float32)})
    rules = [rule("lstm.tf1 l", "lstm.keras m"), rule("lstm.tf1 k", "lstm.keras n"), {"from": "w", "to": "v"}]
    target = {
        n: s for scope in "mn" for n, s in {
            f"{scope}/kernel": (3, 16), f"{scope}/recurrent_kernel": (4, 16), f"{scope}/bias": (16,)
        }.items()
    }  # fmt: skip
    plan = settled(planned(source, {**target, "v": (2,)}, rules), source)
    assert [o.disposition for o in plan.outcomes] == ["refused", "moved", "moved"]
    assert {n for n, said in plan.source.items() if said == "unclaimed"} == {n for n in source.arrays if n[0] == "l"}
    assert {n: said for n, said in plan.target.items() if said != "moved"} == dict.fromkeys(
        [n for n in target if n[0] == "m"], "uncovered"
    )
    assert len(plan.problems) == 3


# Carried out ---------------------------------------------------------------------------------------------------------


def mapped(source: str, target: str) -> dict[str, Any]:
    return {"weightport": 1, "rules": [rule(source, target)]}


@pytest.mark.parametrize("dry", [False, True])
def test_nothing_is_written(dry: bool, tmp_path: Path) -> None:
    path, out = tmp_path / "a.npz", tmp_path / "b.npz"
    np.savez(path, **tf1("l", peepholes=[0, 0, 0, 1]))
    plans: list[Plan] = []
    with pytest.raises(wp.ConditionError, match=r"'l/w_f_diag' is 1\.0 at \[3\]") as caught:
        wp.transfer(path, None, mapped("lstm.tf1 l", "lstm.keras m"), out=out, dry_run=dry, on_plan=plans.append)
    assert isinstance(caught.value, wp.PlanError)
    assert isinstance(caught.value, wp.RefusedError)
    assert plans[0].problems == caught.value.problems
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz"]


def test_there_verified_and_back(tmp_path: Path) -> None:
    """What was left out is there again on the way back: zeros, and the identity."""
    first, middle, last, alone = (tmp_path / f"{n}.npz" for n in "abcd")
    weights = tf1("l", peepholes=np.zeros(4), projection=np.eye(4))
    np.savez(first, **weights)
    rules = wp.load_mapping(mapped("lstm.tf1 l", "lstm.scoped-gates m"))
    rules = replace(rules, rules=(replace(rules.rules[0], source=replace(rules.rules[0].source, forget_bias=0.0)),))
    wp.transfer(first, None, rules, out=middle)
    proof = wp.verify(first, middle, rules)
    assert proof.equal
    assert [(c.max_abs_diff, c.steps > 400) for c in proof.cells] == [(0, True)]
    wp.transfer(middle, first, rules.reversed(), out=last)
    with np.load(last) as archive:
        assert {n: archive[n].tobytes() for n in archive.files} == {n: a.tobytes() for n, a in weights.items()}
    assert wp.verify(middle, last, rules.reversed()).equal
    made_ = wp.plan(middle, first, rules.reversed()).outcomes[0]
    assert (made_.classed, made_.notes) == (
        "exact", ("the target's peepholes are zero", "the target's output projection is the identity")
    )  # fmt: skip
    # Without the original, a cell without them: the same function.
    assert set(wp.transfer(middle, None, rules.reversed(), out=alone).plan.target) == {"l/kernel", "l/bias"}


def test_verify_refuses_what_a_transfer_does(tmp_path: Path) -> None:
    path, out = tmp_path / "a.npz", tmp_path / "b.npz"
    np.savez(path, **tf1("l", peepholes=np.zeros(4)))
    mapping = mapped("lstm.tf1 l", "lstm.keras m")
    wp.transfer(path, None, mapping, out=out)
    assert wp.verify(path, out, mapping).equal
    np.savez(path, **tf1("l", peepholes=np.ones(4)))
    with pytest.raises(wp.ConditionError, match="the target has no peepholes, and 'l/w_i_diag' is 1"):
        wp.verify(path, out, mapping)


def test_verify_sees_the_diagonal(tmp_path: Path) -> None:
    """Cells of two kinds run side by side, and a fault in one is found."""
    path, out = tmp_path / "a.npz", tmp_path / "b.npz"
    rng = np.random.default_rng(0)
    arrays = {"kernel_w": rng.normal(size=(3, 16)), "kernel_u": rng.normal(size=(1, 16)), "bias": rng.normal(size=16)}
    np.savez(path, **{f"l/{n}": a for n, a in arrays.items()})
    mapping = mapped("indy_lstm.tf1 l", "lstm.keras m")
    wp.transfer(path, None, mapping, out=out)
    proof = wp.verify(path, out, mapping)
    assert proof.equal
    assert len(proof.cells) == 1
    with np.load(out) as archive:
        moved = {n: archive[n].copy() for n in archive.files}
    moved["m/recurrent_kernel"][0, 1] = 0.1
    np.savez(out, **moved)
    assert not wp.verify(path, out, mapping).cells[0].equal


def test_a_live_model_keeps_its_values() -> None:
    keras = need("keras")
    layer = keras.layers.LSTM(4, name="new")
    layer.build((None, None, 3))
    before = [np.asarray(w).copy() for w in layer.weights]
    source = Stub(tf1("l", peepholes=[0, 2, 0, 0]))
    sides = {"from": {"layout": "lstm.tf1", "scope": "l"}, "to": {"layout": "lstm.keras", "scope": ""}}
    rules = {"weightport": 1, "rules": [sides]}
    with pytest.raises(wp.ConditionError, match=r"'l/w_i_diag' is 2\.0 at \[1\]"):
        wp.transfer(source, layer, rules)
    for old, new in zip(before, layer.weights, strict=True):
        np.testing.assert_array_equal(old, np.asarray(new))
    for gate in "ifo":
        source.arrays[f"l/w_{gate}_diag"][:] = 0
    wp.transfer(source, layer, rules)
    assert not np.array_equal(before[0], np.asarray(layer.weights[0]))
