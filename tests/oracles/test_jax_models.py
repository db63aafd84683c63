"""Cells of TensorFlow, Keras and PyTorch into live models of Flax, Haiku and Equinox: the same outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.oracles.torch_modules import module, run, save, state
from tests.support import fixture, need

CLOSE = {"rtol": 0, "atol": 1e-5}
INPUTS, UNITS, STEPS, BATCH = 3, 5, 6, 2


def cell(layout: str, scope: str, to: str, target: str, **stated: Any) -> dict[str, Any]:
    return {"from": {"layout": layout, "scope": scope, **stated}, "to": {"layout": target, "scope": to}}


def inputs(width: int = INPUTS) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(BATCH, STEPS, width)).astype(np.float32)


def variables(made: Any, width: int = INPUTS) -> Any:
    return made.init(need("jax").random.key(0), inputs(width))


def moved(source: str, target: Any, *rules: dict[str, Any], **more: Any) -> Any:
    mapping = {"weightport": 1, "rules": list(rules), **more}
    result = wp.transfer(source, target, mapping)
    assert set(result.plan.target.values()) <= {"moved", "constant"}
    assert wp.verify(source, result.target, mapping).equal
    return result.target


@pytest.mark.parametrize("cls", ["LSTMCell", "OptimizedLSTMCell"])
@pytest.mark.parametrize("file", ["frozen", "checkpoint_v2"])
def test_tensorflows_lstm_into_linen(cls: str, file: str) -> None:
    nn, model = need("flax.linen"), fixture("b_cells/basic_lstm_fb1")
    made = nn.RNN(getattr(nn, cls)(12))
    rule = cell("lstm.tf1", "rnn/basic_lstm_cell", "cell", "lstm.flax")
    arrays = model.reference
    found = moved(model.path(file), variables(made, 7), rule)
    np.testing.assert_allclose(np.asarray(made.apply(found, arrays["x"])), arrays["full_outputs"], **CLOSE)


def test_tensorflows_lstm_into_an_abstract_tree() -> None:
    jax, nn, model = need("jax"), need("flax.linen"), fixture("b_cells/basic_lstm_fb1")
    made = nn.RNN(nn.OptimizedLSTMCell(12))
    arrays = model.reference
    shapes = jax.eval_shape(made.init, jax.random.key(0), arrays["x"])
    found = moved(model.path("frozen"), shapes, cell("lstm.tf1", "rnn/basic_lstm_cell", "cell", "lstm.flax"))
    np.testing.assert_allclose(np.asarray(made.apply(found, arrays["x"])), arrays["full_outputs"], **CLOSE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_keras_into_linen(kind: str, tmp_path: Path) -> None:
    """GRUs reset after the product on both sides; Keras' SimpleRNN has one bias, so has Flax' SimpleCell."""
    nn, keras = need("flax.linen"), need("keras")
    layer = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU, "rnn": keras.layers.SimpleRNN}[kind]
    source = keras.Sequential([keras.Input((None, INPUTS)), layer(UNITS, return_sequences=True, name="enc")])
    random = np.random.default_rng(2)
    source.set_weights([random.normal(0, 0.5, w.shape).astype(np.float32) for w in source.get_weights()])
    source.save_weights(tmp_path / "a.weights.h5")
    flax = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell, "rnn": nn.SimpleCell}[kind]
    made = nn.RNN(flax(UNITS))
    stored = wp.open(str(tmp_path / "a.weights.h5"))
    (found,) = stored.cells()
    stored.close()
    tree = moved(
        str(tmp_path / "a.weights.h5"), variables(made), cell(f"{kind}.keras", found.scope, "cell", f"{kind}.flax")
    )
    np.testing.assert_allclose(
        np.asarray(made.apply(tree, inputs())), keras.ops.convert_to_numpy(source(inputs())), **CLOSE
    )


def test_pytorchs_bidirectional_stack_into_linen(tmp_path: Path) -> None:
    """Two layers, both directions: one cell of PyTorch is four of Flax, each by a rule of its own."""
    nn = need("flax.linen")
    torch_lstm = module("LSTM", INPUTS, UNITS, num_layers=2, bidirectional=True, batch_first=True)

    class Net(nn.Module):  # type: ignore[misc, name-defined]
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for _ in range(2):
                x = nn.Bidirectional(nn.RNN(nn.OptimizedLSTMCell(UNITS)), nn.RNN(nn.OptimizedLSTMCell(UNITS)))(x)
            return x

    source = save(tmp_path / "a.npz", state(torch_lstm, "lstm."))
    rules = [
        cell("lstm.torch", "lstm", f"OptimizedLSTMCell_{2 * layer + at}", "lstm.flax", layers=[layer], directions=[way])
        for layer in range(2)
        for at, way in enumerate(("forward", "backward"))
    ]
    found = moved(source, variables(Net()), *rules)
    np.testing.assert_allclose(np.asarray(Net().apply(found, inputs())), run(torch_lstm, inputs(), None)[0], **CLOSE)


def test_a_scanned_stack_has_its_layers_along_an_axis(tmp_path: Path) -> None:
    """``nn.scan`` over layers: the layer lives in the shape; a layout of the mapping's own says so."""
    nn = need("flax.linen")
    torch_gru = module("GRU", UNITS, UNITS, num_layers=3, batch_first=True)

    class Layer(nn.Module):  # type: ignore[misc, name-defined]
        @nn.compact
        def __call__(self, x: Any, _: Any) -> Any:
            return nn.RNN(nn.GRUCell(UNITS, parent=None), name="rnn")(x), None

    class Net(nn.Module):  # type: ignore[misc, name-defined]
        @nn.compact
        def __call__(self, x: Any) -> Any:
            stack = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
            return stack(name="layers")(x, None)[0]

    layout = {
        "gates": ["r", "z", "n"],
        "reset": "after",
        "activation": "tanh",
        "recurrent_activation": "sigmoid",
        "tensors": {
            "i{gate}/kernel": "wx[layer input unit]",
            "i{gate}/bias": "bi[layer unit]",
            "h{gate}/kernel": "wt[layer hidden unit]",
            "hn/bias": "bt{n}[layer unit]",
        },
    }
    tree = variables(Net(), UNITS)
    source = save(tmp_path / "a.npz", state(torch_gru, "gru."))
    found = moved(
        source, tree, cell("gru.torch", "gru", "layers/rnn/cell", "gru.scanned"), layouts={"gru.scanned": layout}
    )
    x = inputs(UNITS)
    np.testing.assert_allclose(np.asarray(Net().apply(found, x)), run(torch_gru, x, None)[0], **CLOSE)


@pytest.mark.parametrize("name", ["LSTMCell", "OptimizedLSTMCell"])
def test_tensorflows_lstm_into_nnx(name: str) -> None:
    nnx, model = need("flax.nnx"), fixture("b_cells/basic_lstm_fb1")
    made = nnx.RNN(getattr(nnx, name)(7, 12, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    arrays = model.reference
    found = moved(model.path("frozen"), made, cell("lstm.tf1", "rnn/basic_lstm_cell", "cell", "lstm.flax"))
    assert found is made
    np.testing.assert_allclose(np.asarray(made(arrays["x"])), arrays["full_outputs"], **CLOSE)


def test_an_activation_that_nnx_records_is_compared(tmp_path: Path) -> None:
    nnx, jax = need("flax.nnx"), need("jax")
    torch_rnn = module("RNN", INPUTS, UNITS, batch_first=True, nonlinearity="relu")
    source = save(tmp_path / "a.npz", state(torch_rnn, "rnn."))
    rule = cell("rnn.torch", "rnn", "cell", "rnn.flax", activation="relu")

    def made(**options: Any) -> Any:
        return nnx.RNN(nnx.SimpleCell(INPUTS, UNITS, rngs=nnx.Rngs(0), **options), rngs=nnx.Rngs(0))

    found = moved(source, made(activation_fn=jax.nn.relu), rule)
    np.testing.assert_allclose(np.asarray(found(inputs())), run(torch_rnn, inputs(), None)[0], **CLOSE)
    with pytest.raises(wp.PlanError, match="the source's activation is relu, the target's tanh"):
        moved(source, made(), rule)
    with pytest.raises(wp.PlanError, match=r"the target's relu of a sum with the state \(residual=True\)"):
        moved(source, made(activation_fn=jax.nn.relu, residual=True), rule)


def test_tensorflows_lstm_into_haiku() -> None:
    hk, jax, model = need("haiku"), need("jax"), fixture("b_cells/basic_lstm_fb1")

    class Net(hk.Module):  # type: ignore[misc, name-defined]
        def __call__(self, x: Any) -> Any:
            core = hk.LSTM(12)
            return hk.dynamic_unroll(core, x, core.initial_state(x.shape[0]), time_major=False)[0]

    made = hk.without_apply_rng(hk.transform(lambda x: Net(name="net")(x)))
    arrays = model.reference
    tree = made.init(jax.random.key(0), arrays["x"])
    assert set(tree) == {"net/lstm/linear"}
    found = moved(model.path("frozen"), tree, cell("lstm.tf1", "rnn/basic_lstm_cell", "net/lstm", "lstm.haiku"))
    np.testing.assert_allclose(np.asarray(made.apply(found, arrays["x"])), arrays["full_outputs"], **CLOSE)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_pytorch_into_equinox(kind: str, tmp_path: Path) -> None:
    eqx, jax = need("equinox"), need("jax")
    source = module(kind.upper(), INPUTS, UNITS, batch_first=True)

    class Net(eqx.Module):  # type: ignore[misc, name-defined]
        cell: Any
        head: Any

        def __call__(self, x: Any) -> Any:
            zeros = jax.numpy.zeros(UNITS)

            def step(carry: Any, now: Any) -> Any:
                after = self.cell(now, carry)
                return after, after[0] if kind == "lstm" else after

            return jax.lax.scan(step, (zeros, zeros) if kind == "lstm" else zeros, x)[1]

    made = {"lstm": eqx.nn.LSTMCell, "gru": eqx.nn.GRUCell}[kind](INPUTS, UNITS, key=jax.random.key(0))
    net = Net(made, eqx.nn.Linear(UNITS, 1, key=jax.random.key(1)))
    mapping = {
        "weightport": 1,
        "rules": [{**cell(f"{kind}.torch", "rnn", "cell", f"{kind}.equinox"), "as": "constant"}],
        "keep": ["head/*"],
    }
    path = save(tmp_path / "a.npz", state(source, "rnn."))
    result = wp.transfer(path, net, mapping)
    assert wp.verify(path, result.target, mapping).equal
    found = np.asarray(jax.vmap(result.target)(inputs()))
    np.testing.assert_allclose(found, run(source, inputs(), None)[0], **CLOSE)
    assert all(jax.tree.leaves(result.frozen.cell))
    assert not any(jax.tree.leaves(result.frozen.head))
