"""Cells that another framework can hold for some of their values only, run by the frameworks on both sides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.oracles.cells import Case, cases, mapping, reference
from tests.oracles.torch_modules import load, module, moved, run, state
from tests.support import need

CLOSE = {"rtol": 0, "atol": 1e-5}
UNITS, INPUTS = 5, 3

# Independently recurrent cells: TensorFlow 1.15's outputs, and layers with whole recurrent matrices ------------------

INDY = cases("b_cells/indy_lstm", "b_cells/indy_gru", "b_cells/ind_rnn")
KINDS = {"indy_lstm": "lstm", "indy_gru": "gru", "ind_rnn": "rnn"}


def test_every_file_of_them_is_a_case() -> None:
    assert {(c.kind, c.file) for c in INDY} >= {(kind, "checkpoint_v2") for kind in KINDS}


@pytest.mark.parametrize("reset_after", [False, True])
@pytest.mark.parametrize("case", INDY, ids=str)
def test_into_keras_layers(case: Case, reset_after: bool, tmp_path: Path) -> None:
    """A GRU's reset before a diagonal matrix is that after it: both modes give the same."""
    keras = need("keras")
    kind, arrays = KINDS[case.kind], reference(case)
    more: dict[str, Any] = {"reset_after": reset_after} if kind == "gru" else {}
    make = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU, "rnn": keras.layers.SimpleRNN}[kind]
    layer = make(case.doc["units"], return_sequences=True, name="new", **more)
    layer.build(arrays["x"].shape)
    rule = {"from": case.source(), "to": {"layout": f"{kind}.keras", "scope": ""}}
    result = wp.transfer(case.path, layer, mapping(case, [rule]))
    assert "the target's recurrent weights are zero off their diagonals" in result.plan.outcomes[0].notes
    np.testing.assert_allclose(np.asarray(layer(arrays["x"])), arrays["full_outputs"], **CLOSE)

    # And back, from a file of what the layer holds: every bit of the diagonal.
    out, back = tmp_path / "layer.npz", tmp_path / "back.npz"
    np.savez(out, **{f"new/{w.path.rpartition('/')[2]}": np.asarray(w) for w in layer.weights})
    sides = {"from": {"layout": f"{kind}.keras", "scope": "new", **more_of(more)}, "to": case.source()}
    wp.transfer(out, None, {"weightport": 1, "rules": [sides]}, out=back)
    with np.load(back) as found, wp.open(case.path) as source:
        for name in source.cells()[0].names:
            if "kernel" in name:
                assert found[name].tobytes() == source.read(name).tobytes()


def more_of(more: dict[str, Any]) -> dict[str, Any]:
    return {"reset": "after" if more["reset_after"] else "before"} if more else {}


@pytest.mark.parametrize("case", [c for c in INDY if c.file == "checkpoint_v2"], ids=str)
def test_into_torch_modules(case: Case, tmp_path: Path) -> None:
    kind, arrays = KINDS[case.kind], reference(case)
    made = module(
        {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}[kind], arrays["x"].shape[-1], case.doc["units"], batch_first=True
    )
    rule = {"from": case.source(), "to": {"layout": f"{kind}.torch", "scope": ""}}
    load(made, moved(tmp_path, case.path, state(made), mapping(case, [rule])))
    np.testing.assert_allclose(run(made, arrays["x"])[0], arrays["full_outputs"], **CLOSE)


# Peepholes and a projection that do nothing: TensorFlow's own cell beside Keras' and PyTorch's layers ----------------


def weights(peepholes: float = 0.0, projection: Any = None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {"kernel": rng.normal(0, 0.5, (INPUTS + UNITS, 4 * UNITS)), "bias": rng.normal(0, 0.5, 4 * UNITS)}
    found |= {f"w_{g}_diag": np.full(UNITS, peepholes) for g in "ifo"}
    found["projection/kernel"] = np.eye(UNITS) if projection is None else projection
    return {f"rnn/lstm_cell/{n}": a.astype(np.float32) for n, a in found.items()}


def tf1() -> Any:
    return need("tensorflow").compat.v1


@pytest.fixture
def graph() -> Iterator[Any]:
    with need("tensorflow").Graph().as_default() as made:
        yield made


def cell(**options: Any) -> Any:
    """Outputs of TensorFlow's LSTMCell, in the variable scope ``rnn``."""
    rnn = need("tensorflow.python.keras.layers.legacy_rnn.rnn_cell_impl")
    x = np.random.default_rng(1).normal(size=(2, 7, INPUTS)).astype(np.float32)
    return x, tf1().nn.dynamic_rnn(rnn.LSTMCell(UNITS, **options), x, dtype=tf1().float32, scope="rnn")[0]


def outputs_of(graph: Any, outputs: Any, values: dict[str, np.ndarray]) -> np.ndarray:
    with tf1().Session(graph=graph) as session:
        session.run(tf1().global_variables_initializer())
        for variable in tf1().global_variables():
            name = variable.name.partition(":")[0]
            if name in values:
                variable.load(values[name], session)
        found: np.ndarray = session.run(outputs)
    return found


RULE = {"from": {"layout": "lstm.tf1", "scope": "rnn/lstm_cell"}}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("framework", ["keras", "tf_keras", "torch"])
def test_what_does_nothing_is_left_out(framework: str, tmp_path: Path) -> None:
    with need("tensorflow").Graph().as_default() as graph:
        x, outputs = cell(use_peepholes=True, num_proj=UNITS)
        expected = outputs_of(graph, outputs, weights())
    np.savez(tmp_path / "tf1.npz", **weights())
    if framework == "torch":
        made = module("LSTM", INPUTS, UNITS, batch_first=True)
        rule = {**RULE, "to": {"layout": "lstm.torch", "scope": ""}}
        load(made, moved(tmp_path, str(tmp_path / "tf1.npz"), state(made), {"weightport": 1, "rules": [rule]}))
        found = run(made, x)[0]
    else:
        layer = need(framework).layers.LSTM(UNITS, return_sequences=True, name="new")
        layer.build((None, None, INPUTS))
        rule = {**RULE, "to": {"layout": "lstm.keras", "scope": ""}}
        wp.transfer(tmp_path / "tf1.npz", layer, {"weightport": 1, "rules": [rule]})
        found = np.asarray(layer(x))
    np.testing.assert_allclose(found, expected, **CLOSE)
    assert np.ptp(expected) > 0.1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_live_proofs_run_both_cells(tmp_path: Path) -> None:
    need("tensorflow")
    need("keras")
    source, out = tmp_path / "tf1.npz", tmp_path / "keras.npz"
    np.savez(source, **weights())
    spec = {"weightport": 1, "rules": [{**RULE, "to": {"layout": "lstm.keras", "scope": "m"}}]}
    wp.transfer(source, None, spec, out=out)
    proof = wp.verify(source, out, spec, live=True)
    assert proof.equal, proof
    assert [c.by for c in proof.cells] == ["numpy", "tensorflow and keras"]


# The getter: what a model that is being built does not ask for -------------------------------------------------------


def built(arrays: dict[str, np.ndarray], folder: Path, graph: Any, **options: Any) -> np.ndarray:
    """Outputs of a cell whose variables were born with the values of another."""
    np.savez(folder / "source.npz", **arrays)
    spec = {"weightport": 1, "rules": [{**RULE, "to": {"layout": "lstm.tf1", "scope": "rnn/lstm_cell"}}]}
    with wp.open(folder / "source.npz") as source:
        getter = wp.tensorflow.getter(source, spec)
        with tf1().variable_scope("", custom_getter=getter):
            _, outputs = cell(**options)
        getter.check()
        return outputs_of(graph, outputs, {})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_model_without_the_peepholes_of_the_source(graph: Any, tmp_path: Path) -> None:
    plain = built(weights(), tmp_path, graph)
    with need("tensorflow").Graph().as_default() as other:
        np.testing.assert_allclose(
            plain, built(weights(), tmp_path, other, use_peepholes=True, num_proj=UNITS), **CLOSE
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_model_with_peepholes_and_a_projection_that_the_source_lacks(graph: Any, tmp_path: Path) -> None:
    """They get the values that do nothing."""
    arrays = {n: a for n, a in weights().items() if "diag" not in n and "projection" not in n}
    plain = built(arrays, tmp_path, graph)
    with need("tensorflow").Graph().as_default() as other:
        np.testing.assert_allclose(plain, built(arrays, tmp_path, other, use_peepholes=True, num_proj=UNITS), **CLOSE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_model_without_peepholes_that_do_something(graph: Any, tmp_path: Path) -> None:
    with pytest.raises(wp.ConditionError) as caught:
        built(weights(0.5), tmp_path, graph)
    assert [str(p) for p in caught.value.problems] == [
        f"rules[0]: rnn/lstm_cell -> rnn/lstm_cell: the target has no peepholes, and 'rnn/lstm_cell/w_{g}_diag' is 0.5 "
        "at [0]: exact only where the peepholes are all zero; exact whatever its values: lstm.tf1"
        for g in "ifo"
    ]
    projection = np.eye(UNITS)
    projection[0, 4] = 1
    with (
        need("tensorflow").Graph().as_default() as other,
        pytest.raises(wp.ConditionError, match=r"'rnn/lstm_cell/projection/kernel' is 1\.0 at \[0, 4\]"),
    ):
        built(weights(projection=projection), tmp_path, other)


def test_a_variable_whose_cell_has_no_place_for_peepholes(graph: Any, tmp_path: Path) -> None:
    """Refused when the first variable is asked for: nothing of the cell is made."""
    np.savez(tmp_path / "source.npz", **weights(0.5))
    spec = {"weightport": 1, "rules": [{**RULE, "to": {"layout": "lstm.scoped-gates", "scope": "mine"}}]}
    with wp.open(tmp_path / "source.npz") as source:
        getter = wp.tensorflow.getter(source, spec)
        with (
            tf1().variable_scope("mine", custom_getter=getter),
            pytest.raises(wp.ConditionError, match=r"'rnn/lstm_cell/w_i_diag' is 0\.5 at \[0\]"),
        ):
            tf1().get_variable("input_gate/wx", [INPUTS, UNITS])
        assert graph.get_collection("variables") == []
