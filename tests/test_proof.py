"""Verification: a right transfer proves equal, and each mistake that people make by hand is caught and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.oracles.cells import Case, cases, mapping, reference
from tests.support import fixture
from weightport.layouts.behaviour import ASSUMED, Behaviour, Said
from weightport.layouts.reference import ACTIVATIONS, ReferenceCell

Arrays = dict[str, np.ndarray]
UNITS = 32
MAPPING = {
    "weightport": 1,
    "rules": [
        {"from": {"layout": "lstm.scoped-gates", "scope": "LSTMcell"}, "to": {"layout": "lstm.keras", "scope": "lstm"}},
        {"from": "softmax_w", "to": "logits/kernel"},
        {"from": "softmax_b", "to": "logits/bias"},
    ],
}
SEED = fixture("a_seed_char_lstm").path("checkpoint_v2")


def gates(array: np.ndarray, *order: int) -> np.ndarray:
    """The fused gates on the last axis in another order."""
    blocks = np.split(array, 4, axis=-1)
    return np.concatenate([blocks[k] for k in order], axis=-1)


def exchanged(arrays: Arrays) -> None:
    for name in arrays:
        if name.startswith("lstm/"):
            arrays[name] = gates(arrays[name], 0, 2, 1, 3)


def transposed(arrays: Arrays) -> None:
    kernel = arrays["lstm/recurrent_kernel"]
    kernel[:, :UNITS] = kernel[:, :UNITS].T.copy()
    kernel[:, 2 * UNITS : 3 * UNITS] = kernel[:, 2 * UNITS : 3 * UNITS].T.copy()


def lost(arrays: Arrays) -> None:
    arrays["lstm/bias"][UNITS : 2 * UNITS] -= 1


def twice(arrays: Arrays) -> None:
    arrays["lstm/bias"][UNITS : 2 * UNITS] += 1


def negated(arrays: Arrays) -> None:
    arrays["lstm/kernel"][:, 3 * UNITS :] *= -1


def emptied(arrays: Arrays) -> None:
    arrays["lstm/bias"][2 * UNITS : 3 * UNITS] = 0


def nudged(arrays: Arrays) -> None:
    arrays["lstm/kernel"][3, 5] += 1e-3


PLANTED: dict[str, tuple[Callable[[Arrays], None], str]] = {
    "gate order": (exchanged, "the gates are in another order: f stands where g belongs, g stands where f belongs"),
    "transposed": (
        transposed,
        "the recurrent weights of gate i, g are transposed (they are square, so the shapes fit)",
    ),
    "forget bias lost": (lost, "a forget bias of 1 is lost: the forget gate's bias is off by a constant"),
    "forget bias twice": (twice, "a forget bias of 1 was added twice: the forget gate's bias is off by a constant"),
    "negated": (negated, "the weights of gate o are negated (a gate that keeps instead of replaces?)"),
    "emptied": (emptied, "bi of gate g is zero in the target"),
    "nudged": (nudged, ""),
}


@pytest.fixture
def moved(tmp_path: Path) -> tuple[Path, Arrays]:
    out = tmp_path / "out.npz"
    wp.transfer(SEED, None, MAPPING, out=out)
    with np.load(out) as archive:
        return out, {name: archive[name].copy() for name in archive.files}


def test_what_was_moved_is_proven(moved: tuple[Path, Arrays]) -> None:
    proof = wp.verify(SEED, moved[0], MAPPING)
    assert proof.equal
    assert proof.problems() == []
    document = json.loads(json.dumps(proof.as_json(), allow_nan=False))
    assert document["equal"] is True
    assert {t["name"]: t["max_abs_diff"] for t in document["tensors"]} == dict.fromkeys(moved[1], 0.0)
    (cell,) = document["cells"]
    assert (cell["rule"], cell["max_abs_diff"], cell["where"], cell["cause"]) == ("rules[0]", 0, "LSTMcell -> lstm", "")
    assert cell["steps"] > 400
    assert str(proof).splitlines()[0] == "5 of 5 tensors hold what the mapping makes of the source"


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_caught_and_named(name: str, moved: tuple[Path, Arrays]) -> None:
    path, arrays = moved
    fault, cause = PLANTED[name]
    fault(arrays)
    np.savez(path, **arrays)
    proof = wp.verify(SEED, path, MAPPING)
    assert not proof.equal
    (cell,) = proof.cells
    assert not cell.equal
    assert cell.cause == cause
    assert cell.first is not None
    assert cell.inputs
    problem = proof.problems()[0]
    assert problem.where == "rules[0]"
    assert problem.what == (
        f"LSTMcell -> lstm: outputs differ by {cell.max_abs_diff:.3g}, from step {cell.first} of {cell.inputs} on"
    )
    assert json.loads(json.dumps(proof.as_json()))["equal"] is False


def test_exchanged_directions_are_named(tmp_path: Path) -> None:
    (case,) = [c for c in cases("e_old_naming/tf_1_0_1/bidirectional_lstm") if c.file == "checkpoint_v2"]
    spec = mapping(case, [{"from": case.source(), "to": {"layout": "lstm.keras", "scope": "both"}}])
    out = tmp_path / "out.npz"
    wp.transfer(case.path, None, spec, out=out)
    assert wp.verify(case.path, out, spec).equal
    with np.load(out) as archive:
        arrays = {name: archive[name] for name in archive.files}
    swap = {"forward_lstm": "backward_lstm", "backward_lstm": "forward_lstm"}
    np.savez(out, **{"/".join(swap.get(part, part) for part in n.split("/")): a for n, a in arrays.items()})
    proof = wp.verify(case.path, out, spec)
    assert [c.equal for c in proof.cells] == [False, False]
    assert {c.cause for c in proof.cells} == {
        "another layer or direction of the target holds these weights: two of them are exchanged"
    }


def test_values_that_are_no_numbers(moved: tuple[Path, Arrays]) -> None:
    path, arrays = moved
    arrays["logits/bias"][3] = np.nan
    np.savez(path, **arrays)
    proof = wp.verify(SEED, path, MAPPING)
    assert {t.name: t.max_abs_diff for t in proof.tensors if not t.equal} == {"logits/bias": None}
    assert [str(p) for p in proof.problems()] == [
        "logits/bias: cannot be compared from what the mapping makes of the source"
    ]
    json.dumps(proof.as_json(), allow_nan=False)


def test_a_file_that_lacks_a_tensor_is_no_proof(moved: tuple[Path, Arrays]) -> None:
    path, arrays = moved
    del arrays["logits/bias"]
    np.savez(path, **arrays)
    with pytest.raises(wp.PlanError, match=r"rules\[2\]\.to: no tensor 'logits/bias'"):
        wp.verify(SEED, path, MAPPING)


ALL = [
    c for c in cases() if c.kind in ("lstm", "gru", "rnn") and c.file in ("checkpoint_v2", "frozen", "keras_weights_h5")
]


@pytest.mark.parametrize("case", ALL, ids=str)
def test_every_fixture_is_proven_and_so_is_the_way_back(case: Case, tmp_path: Path) -> None:
    """Into the scoped gates (or back into its own layout), verified, and back again."""
    to = {"lstm": "lstm.scoped-gates", "gru": "gru.scoped-gates", "rnn": "rnn.scoped-gates"}[case.kind]
    tried = wp.plan(case.path, None, mapping(case, [{"from": case.source(), "to": {"layout": to, "scope": "x"}}]))
    if tried.problems or tried.conditions:
        to = case.layout
    spec = wp.load_mapping(mapping(case, [{"from": case.source(), "to": {"layout": to, "scope": "x"}}]))
    out, back = tmp_path / "out.safetensors", tmp_path / "back.npz"
    planned = wp.transfer(case.path, None, spec, out=out).plan
    proof = wp.verify(case.path, out, spec)
    assert proof.equal, str(proof)
    assert len(proof.cells) == len(wp.open(case.path).cells()[0].units)
    if planned.outcomes[0].classed != "bijective":
        return
    wp.transfer(out, case.path, spec.reversed(), out=back)
    with wp.open(case.path) as source, wp.open(back) as found:
        for name in planned.outcomes[0].sources:
            assert found.read(name).tobytes() == source.read(name).tobytes()


# The reference cells themselves, against what TensorFlow and Keras computed
# ---------------------------------------------

REFERENCED = [c for c in ALL if isinstance(c.doc.get("units"), int) and not c.doc.get("num_layers")]


@pytest.mark.parametrize("case", [c for c in REFERENCED if "idirectional" not in c.doc["cell"]], ids=str)
def test_a_reference_cell_computes_what_the_framework_computed(case: Case) -> None:
    from weightport.layouts.behaviour import behaviour
    from weightport.layouts.reference import parameters
    from weightport.ranges import slices_of

    arrays = reference(case)
    with wp.open(case.path) as source:
        (unit,) = source.cells()[0].units
        stated: dict[str, Any] = dict(case.source())
        for key in ("activation", "recurrent_activation", "cell_clip", "proj_clip"):
            stated.setdefault(key, case.doc.get(key))
        does = behaviour(unit.layout, unit.form, source.facts(unit.names), stated)
        read = parameters(
            unit, source.specs(), lambda n, r: source.read(n, slices_of(r)), float(does.forget_bias.value)
        )
    cell = ReferenceCell(case.kind, read, does, unit.sizes)
    outputs = np.stack([h for h, _ in cell.run(arrays["x"].swapaxes(0, 1))], axis=1)
    np.testing.assert_allclose(outputs, arrays["full_outputs"], rtol=0, atol=1e-5)
    if "init0_h" in arrays and "init_outputs" in arrays:
        steps = cell.run(arrays["x"].swapaxes(0, 1), arrays["init0_h"], arrays.get("init0_c"))
        np.testing.assert_allclose(np.stack([h for h, _ in steps], axis=1), arrays["init_outputs"], rtol=0, atol=1e-5)


def test_the_activations_are_the_frameworks() -> None:
    from tests.support import need

    keras, legacy = need("keras"), need("tf_keras")
    x = np.linspace(-8, 8, 101)
    for name, function in ACTIVATIONS.items():
        if name == "hard_sigmoid":
            expected = np.asarray(legacy.activations.hard_sigmoid(legacy.backend.constant(x, dtype="float64")))
        else:
            expected = np.asarray(
                keras.activations.get(name.removesuffix("_6") if name == "hard_sigmoid_6" else name)(
                    keras.ops.convert_to_tensor(x, "float64")
                )
            )
        np.testing.assert_allclose(function(x), expected, rtol=1e-6, atol=1e-9, err_msg=name)


def test_an_unknown_activation_is_said_and_not_run(moved: tuple[Path, Arrays]) -> None:
    spec = {**MAPPING, "rules": [dict(rule) for rule in MAPPING["rules"]]}
    spec["rules"][0] = {k: {**v, "activation": "mish"} for k, v in MAPPING["rules"][0].items()}  # type: ignore[index]
    proof = wp.verify(SEED, moved[0], spec)
    assert proof.equal
    assert proof.cells == ()
    assert proof.notes == ("rules[0]: LSTMcell -> lstm: the activation mish is not known here: values compared only",)


def test_a_reference_cell_without_anything_known() -> None:
    nothing = Behaviour(*(Said(0.0 if key == "forget_bias" else None, ASSUMED) for key in Behaviour.__slots__))
    params = {(p, "h"): np.eye(2) for p in ("wx", "wt")}
    cell = ReferenceCell("rnn", params, nothing, {"input": 2, "unit": 2, "hidden": 2})
    ((h, c),) = cell.run(np.ones((1, 1, 2)))
    np.testing.assert_allclose(h, np.tanh([[1.0, 1.0]]))
    assert c is h
