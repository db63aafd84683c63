"""ONNX's LSTM, GRU and RNN, run by onnxruntime and by onnx's own reference evaluator: the same outputs as PyTorch's
modules and TensorFlow's fixtures, layer by layer, both directions, from initial states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.oracles.cells import Case, cases, mapping, reference
from tests.oracles.torch_modules import load, module, moved, run, save, state
from tests.support import need

CLOSE = {"rtol": 0, "atol": 1e-5}
OPERATORS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}


def onnx_model(kind: str, arrays: Mapping[str, np.ndarray], steps: int, batch: int, **attributes: Any) -> Any:
    """One node: inputs X, the initial states; outputs Y and the final states."""
    onnx = need("onnx")
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    directions, units = arrays["R"].shape[0], arrays["R"].shape[2]
    letters = "hc" if kind == "lstm" else "h"
    inputs = ["X", "W", "R", "B" if "B" in arrays else "", "", *(f"initial_{letter}" for letter in letters)]
    inputs += ["P"] if "P" in arrays else []
    outputs = ["Y", *(f"Y_{letter}" for letter in letters)]
    direction = "bidirectional" if directions == 2 else "forward"
    node = helper.make_node(
        OPERATORS[kind], inputs, outputs, hidden_size=units, **{"direction": direction, **attributes}
    )
    state_shape = [directions, batch, units]
    graph = helper.make_graph(
        [node],
        "cell",
        [
            helper.make_tensor_value_info("X", float32, [steps, batch, arrays["W"].shape[2]]),
            *(helper.make_tensor_value_info(f"initial_{letter}", float32, state_shape) for letter in letters),
        ],
        [
            helper.make_tensor_value_info("Y", float32, [steps, directions, batch, units]),
            *(helper.make_tensor_value_info(f"Y_{letter}", float32, state_shape) for letter in letters),
        ],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in arrays.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(made)
    return made


def runtime(model: Any, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    found: list[np.ndarray] = (
        need("onnxruntime")
        .InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        .run(None, dict(feeds))
    )
    return found


def evaluator(model: Any, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    need("onnx")
    found: list[np.ndarray] = need("onnx.reference").ReferenceEvaluator(model).run(None, dict(feeds))
    return found


Run = Callable[[Any, Mapping[str, np.ndarray]], list[np.ndarray]]
RUNS = [runtime, evaluator]


def run_cell(
    engine: Run, kind: str, arrays: Mapping[str, np.ndarray], x: np.ndarray, states: list[np.ndarray], **attributes: Any
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Outputs, batch first, directions side by side; final states ``[directions, batch, units]``."""
    model = onnx_model(kind, arrays, x.shape[1], x.shape[0], **attributes)
    feeds = {"X": np.ascontiguousarray(x.swapaxes(0, 1))}
    feeds |= {f"initial_{letter}": s for letter, s in zip("hc", states, strict=False)}
    y, *final = engine(model, feeds)
    return y.transpose(2, 0, 1, 3).reshape(x.shape[0], x.shape[1], -1), final


def extras(kind: str) -> dict[str, Any]:
    return {"linear_before_reset": 1} if kind == "gru" else {}


@pytest.mark.parametrize("engine", RUNS, ids=lambda e: e.__name__)
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", OPERATORS)
def test_modules_into_operators(kind: str, bias: bool, both: bool, engine: Run, tmp_path: Path) -> None:
    """Two layers of a PyTorch module into two nodes, and back into another module, every bit."""
    directions, layers, units = 1 + both, 2, 5
    made = module(OPERATORS[kind], 3, units, num_layers=layers, batch_first=True, bias=bias, bidirectional=both, seed=7)
    stated = {"reset": "after"} if kind == "gru" else {}
    sides = [{"layout": f"{kind}.torch", "scope": ""}, {"layout": f"{kind}.onnx", "scope": "net", **stated}]
    rules = [{"from": sides[0], "to": sides[1]}]
    result = wp.transfer(
        save(tmp_path / "a.npz", state(made)), None, {"weightport": 1, "rules": rules}, out=str(tmp_path / "b.npz")
    )
    assert [(o.classed, o.exact) for o in result.plan.outcomes] == [("bijective", True)]
    with np.load(tmp_path / "b.npz") as archive:
        nodes = [{n.rpartition("/")[2]: archive[n] for n in archive.files if f"cell_{k}/" in n} for k in range(layers)]
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 6, 3)).astype(np.float32)
    count = 2 if kind == "lstm" else 1
    states = [rng.normal(size=(layers * directions, 2, units)).astype(np.float32) for _ in range(count)]
    expected, final = run(made, x, states)
    for k, arrays in enumerate(nodes):
        here = slice(k * directions, (k + 1) * directions)
        x, last = run_cell(engine, kind, arrays, x, [s[here] for s in states], **extras(kind))
        for found, want in zip(last, final, strict=True):
            np.testing.assert_allclose(found, want[here], **CLOSE)
    np.testing.assert_allclose(x, expected, **CLOSE)

    other = module(
        OPERATORS[kind], 3, units, num_layers=layers, batch_first=True, bias=bias, bidirectional=both, seed=8
    )
    back = {"weightport": 1, "rules": [{"from": sides[1], "to": sides[0]}]}
    load(other, moved(tmp_path, str(tmp_path / "b.npz"), state(other), back))
    assert all(np.array_equal(state(other)[n], a) for n, a in state(made).items())


FIXTURES = [
    c
    for c in cases()
    if c.file == "checkpoint_v2"
    and c.layout in ("lstm.tf1", "gru.tf1", "rnn.tf1", "lstm.tf1-coupled", "lstm.scoped-gates")
    and isinstance(c.doc.get("units"), int)
    and not c.doc.get("num_layers")
    and not (c.doc.get("cell_clip") and not c.doc.get("num_proj"))  # of which a checkpoint says nothing
    and "idirectional" not in c.doc["cell"]
]


@pytest.mark.parametrize("engine", RUNS, ids=lambda e: e.__name__)
@pytest.mark.parametrize("case", FIXTURES, ids=str)
def test_fixtures_into_operators(case: Case, engine: Run, tmp_path: Path) -> None:
    """Peepholes too, and GRUs of both kinds; projections are refused."""
    arrays = reference(case)
    rule = {"from": case.source(), "to": {"layout": f"{case.kind}.onnx", "scope": ""}}
    spec, out = mapping(case, [rule]), str(tmp_path / "onnx.npz")
    if case.doc.get("num_proj"):
        with pytest.raises(wp.PlanError, match="projection"):
            wp.transfer(case.path, None, spec, out=out)
        return
    wp.transfer(case.path, None, spec, out=out)
    with np.load(out) as archive:
        weights = {n: archive[n] for n in archive.files}
    units, batch = case.doc["units"], arrays["x"].shape[0]
    after = "udnn" in case.doc["cell"]
    attributes: dict[str, Any] = {"linear_before_reset": int(after)} if case.kind == "gru" else {}
    if case.doc.get("activation") == "relu":
        if engine is evaluator:
            pytest.skip("onnx's evaluator knows the default activations only")
        attributes["activations"] = ["Sigmoid", "Relu", "Relu"]
    count = 2 if case.kind == "lstm" else 1
    zeros = [np.zeros((1, batch, units), np.float32)] * count
    outputs, _ = run_cell(engine, case.kind, weights, arrays["x"], zeros, **attributes)
    np.testing.assert_allclose(outputs, arrays["full_outputs"], **CLOSE)
    keys = ["init0_h", "init0_c"] if count == 2 else ["init0_state"]
    if all(k in arrays for k in keys):
        outputs, _ = run_cell(engine, case.kind, weights, arrays["x"], [arrays[k][None] for k in keys], **attributes)
        np.testing.assert_allclose(outputs, arrays["init_outputs"], **CLOSE)


def test_where_a_gru_resets_has_to_be_said_or_is_taken_from_the_other_side(tmp_path: Path) -> None:
    made = module("GRU", 3, 4, batch_first=True)
    sides = [{"layout": "gru.torch", "scope": ""}, {"layout": "gru.onnx", "scope": ""}]
    source = save(tmp_path / "a.npz", state(made))
    plan = wp.plan(source, None, {"weightport": 1, "rules": [{"from": sides[0], "to": sides[1]}]})
    (outcome,) = plan.outcomes
    assert not outcome.exact
    assert outcome.notes == ("the target's reset gate is not recorded; taken to be after, as on the other side",)
    plan = wp.plan(
        source, None, {"weightport": 1, "rules": [{"from": sides[0], "to": {**sides[1], "reset": "before"}}]}
    )
    assert "different functions" in str(plan.problems[0])
