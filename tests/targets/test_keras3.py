from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.support import need
from tests.targets.live import batch, constants, drawn, failing, value
from weightport.errors import Error, RefusedError, TensorNotFound
from weightport.targets import keras3, tf_keras_model, tf_module
from weightport.targets.keras3 import Keras3Target
from weightport.tensors import Target, TensorSpec

keras = need("keras")
layers = keras.layers
CELL = ["lstm/lstm_cell/kernel", "lstm/lstm_cell/recurrent_kernel", "lstm/lstm_cell/bias"]


def model_of(*stack: Any, shape: tuple[Any, ...] = (6, 3)) -> Any:
    x = first = keras.Input(shape)
    for layer in stack:
        x = layer(x)
    return keras.Model(first, x, name="m")


def encoder_and_head() -> Any:
    return model_of(layers.LSTM(5, name="lstm"), layers.Dense(1, name="head"))


def current(model: Any) -> dict[str, Any]:
    return {n: np.asarray(o.variable) for n, o in Keras3Target(model)._owned.items()}


def same(a: Any, b: Any) -> bool:
    return {k: v.tobytes() for k, v in a.items()} == {k: v.tobytes() for k, v in b.items()}


# --- what it is and what it is called ---------------------------------------------------------------------------------


def test_accepts_keras_3_and_nothing_else() -> None:
    tf, tf_keras = need("tensorflow"), need("tf_keras")
    for obj in (encoder_and_head(), layers.Dense(2), keras.Sequential()):
        assert (keras3.accepts(obj), tf_keras_model.accepts(obj), tf_module.accepts(obj)) == (True, False, False)
    for obj in (tf_keras.Sequential(), tf.Module(), object(), None, "model", 3, type(layers.Dense(2))):
        assert not keras3.accepts(obj)
    target: Target = Keras3Target(encoder_and_head())
    assert target.kind == "keras"


def test_recognising_imports_no_framework() -> None:
    code = """
        import sys
        from weightport.targets import keras3, tf_keras_model, tf_module
        for obj in (object(), [], [1], {}, "x"):
            assert not (keras3.accepts(obj) or tf_keras_model.accepts(obj) or tf_module.accepts(obj))
        assert not {"tensorflow", "keras", "tf_keras", "jax", "torch"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_names_are_the_variables_paths() -> None:
    keras.utils.clear_session()  # Keras counts layers without a name, in all models of the process
    model = model_of(
        layers.Bidirectional(layers.LSTM(4, return_sequences=True, name="l"), name="bi"),
        layers.TimeDistributed(layers.Dense(3, name="d"), name="td"),
        layers.RNN(layers.StackedRNNCells([layers.GRUCell(3, name="g"), layers.LSTMCell(2, name="h")]), name="st"),
        layers.Dropout(0.5),
        layers.BatchNormalization(name="bn"),
    )
    model.compile("adam", "mse", metrics=["mae"], run_eagerly=True)
    model.fit(np.zeros((4, 6, 3)), np.zeros((4, 2)), verbose=0)
    target = Keras3Target(model)
    rnn = ["kernel", "recurrent_kernel", "bias"]
    assert list(target.specs()) == [
        *(f"bi/forward_l/lstm_cell/{n}" for n in rnn),
        *(f"bi/backward_l/lstm_cell/{n}" for n in rnn),
        "td/d/kernel",
        "td/d/bias",
        *(f"st/stacked_rnn_cells/g/{n}" for n in rnn),
        *(f"st/stacked_rnn_cells/h/{n}" for n in rnn),
        *(f"bn/{n}" for n in ("gamma", "beta", "moving_mean", "moving_variance")),
    ]
    assert target.specs()["bi/forward_l/lstm_cell/kernel"] == TensorSpec.of("float32", (3, 16))


def test_equal_paths_are_told_apart_by_their_layers() -> None:
    x = keras.Input((4,))

    def part(name: str) -> Any:
        i = keras.Input((4,))
        return keras.Model(i, layers.Dense(2, name="dense")(i), name=name)

    model = keras.Model(x, [part("a")(x), part("b")(x)])
    assert [w.path for w in model.weights] == ["dense/kernel", "dense/bias"] * 2
    target = Keras3Target(model)
    assert list(target.specs()) == ["a/dense/kernel", "a/dense/bias", "b/dense/kernel", "b/dense/bias"]
    target.assign([value("b/dense/bias", np.float32([1, 2]))])
    assert np.asarray(model.get_layer("b").weights[1]).tolist() == [1, 2]


class Twins(layers.Layer):
    def __init__(self, *, keep: bool) -> None:
        super().__init__(name="twins")
        self.keep = keep

    def build(self, _shape: Any = None) -> None:
        one, two = (self.add_weight(shape=(2,), name="w") for _ in range(2))
        if self.keep:
            self.left, self.right = one, two


def test_equal_names_in_one_layer_are_told_apart_by_attribute_or_refused() -> None:
    assert list(Keras3Target(Twins(keep=True)).specs()) == ["left", "right"]
    with pytest.raises(RefusedError) as caught:
        Keras3Target(Twins(keep=False))
    assert str(caught.value) == (
        "model 'twins': two variables are named 'w'; give the layers, or the variables of the layer, names of their own"
    )


def test_a_shared_layer_is_one_variable() -> None:
    shared = layers.Dense(3, name="shared")
    assert list(Keras3Target(model_of(shared, shared)).specs()) == ["shared/kernel", "shared/bias"]


def test_the_states_of_a_stateful_rnn_are_no_weights() -> None:
    x = keras.Input(batch_shape=(2, 5, 3))
    model = keras.Model(x, layers.LSTM(3, stateful=True, name="lstm")(x))
    assert list(Keras3Target(model).specs()) == CELL


def test_mixed_precision_keeps_float32_variables() -> None:
    model = model_of(layers.Dense(2, name="d", dtype="mixed_bfloat16"), layers.Dense(2, name="e", dtype="bfloat16"))
    target = Keras3Target(model)
    assert [s.dtype_name for s in target.specs().values()] == ["float32"] * 2 + ["bfloat16"] * 2
    fine = np.full(2, 1.0001, np.float32)
    target.assign([value("d/bias", fine), value("e/bias", fine.astype(ml_dtypes.bfloat16), constant=True)])
    assert np.asarray(model.get_layer("d").bias).tobytes() == fine.tobytes()


# --- built or not -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        lambda: keras.Sequential([layers.Dense(2)], name="m"),
        lambda: layers.Dense(2, name="m"),
        lambda: layers.Bidirectional(layers.LSTM(2), name="m"),
    ],
)
def test_an_unbuilt_model_is_refused(model: Any) -> None:
    with pytest.raises(RefusedError) as caught:
        Keras3Target(model())
    assert str(caught.value).startswith("model 'm': ")
    assert str(caught.value).endswith("; build the model first: call it once on an input or model.build(input_shape)")


class Net(keras.Model):
    def __init__(self) -> None:
        super().__init__(name="net")
        self.rnn, self.head = layers.LSTM(2, name="rnn"), layers.Dense(1, name="head")

    def call(self, x: Any) -> Any:
        return self.head(self.rnn(x))


def test_a_subclassed_model_needs_all_its_layers_built() -> None:
    model = Net()
    model.rnn.build((None, 5, 3))
    with pytest.raises(RefusedError, match=r"^model 'net': has layers without variables: head; build the model first"):
        Keras3Target(model)
    model(np.zeros((1, 5, 3), np.float32))
    assert "net/head/kernel" in Keras3Target(model).specs() or "head/kernel" in Keras3Target(model).specs()


def test_what_can_be_built_is_built() -> None:
    assert [n.split("/")[-1] for n in Keras3Target(layers.Embedding(4, 2)).specs()] == ["embeddings"]
    assert list(Keras3Target(Twins(keep=True)).specs()) == ["left", "right"]
    with pytest.warns(UserWarning, match="Do not pass an `input_shape`"):
        model = keras.Sequential([layers.Dense(2, input_shape=(3,), name="d")], name="s")
    assert list(Keras3Target(model).specs()) == ["s/d/kernel", "s/d/bias"]


# --- facts ------------------------------------------------------------------------------------------------------------


def test_facts_of_cells() -> None:
    model = model_of(
        layers.Bidirectional(
            layers.LSTM(4, return_sequences=True, recurrent_activation="hard_sigmoid", name="l"), name="bi"
        ),
        layers.GRU(3, reset_after=False, activation="relu", use_bias=False, return_sequences=True, name="gru"),
        layers.SimpleRNN(2, activation=lambda x: x, go_backwards=True, name="rnn"),
        layers.Dense(2, name="d"),
    )
    target = Keras3Target(model)
    lstm = {
        "class": "LSTMCell",
        "units": 4,
        "use_bias": True,
        "activation": "tanh",
        "recurrent_activation": "hard_sigmoid_6",
        "forget_bias": 0.0,
    }
    forward, backward = ([f"bi/{d}_l/lstm_cell/{n}" for n in ("kernel", "bias")] for d in ("forward", "backward"))
    assert target.facts(forward) == {**lstm, "go_backwards": False}
    assert target.facts(backward) == {**lstm, "go_backwards": True}
    assert target.facts(["gru/gru_cell/kernel"]) == {
        "class": "GRUCell",
        "units": 3,
        "use_bias": False,
        "reset_after": False,
        "activation": "relu",
        "recurrent_activation": "sigmoid",
        "go_backwards": False,
    }
    assert target.facts(["rnn/simple_rnn_cell/kernel"]) == {
        "class": "SimpleRNNCell",
        "units": 2,
        "use_bias": True,
        "go_backwards": True,
    }
    assert target.facts(["d/kernel"]) == {}
    assert target.facts(forward + backward) == {}
    assert target.facts([]) == {}
    with pytest.raises(TensorNotFound, match=r"^keras model 'm': no tensor 'd/kernl'; closest: 'd/kernel'"):
        target.facts(["d/kernl"])


def test_keras_3_s_hard_sigmoid_is_not_that_of_keras_2() -> None:
    x = np.float32([-2.9, -1, 0, 1, 2.9])
    three = np.asarray(keras.activations.hard_sigmoid(x))
    np.testing.assert_allclose(three, np.clip(x + 3, 0, 6) / 6, rtol=1e-6)
    two = np.asarray(need("tf_keras").activations.hard_sigmoid(need("tensorflow").constant(x)))
    np.testing.assert_allclose(two, np.clip(0.2 * x + 0.5, 0, 1), rtol=1e-6)


# --- assigning --------------------------------------------------------------------------------------------------------


def test_values_arrive_bit_for_bit_and_the_model_is_returned() -> None:
    model = encoder_and_head()
    target = Keras3Target(model)
    arrays = drawn(target.specs(), target.specs())
    arrays["head/bias"] = np.array([0x7FA00001], np.uint32).view(np.float32)  # a signalling NaN
    assert target.assign([value(n, a) for n, a in arrays.items()]) is model
    assert same(current(model), arrays)
    assert len(model.trainable_weights) == 5


def test_every_misfit_is_named_before_anything_is_assigned() -> None:
    model = encoder_and_head()
    before = current(model)
    values = [
        value("lstm/lstm_cell/bias", np.ones(20, np.float32)),
        value("head/kernal", np.ones((5, 1), np.float32)),
        value("head/kernel", np.ones((1, 5), np.float64)),
        value("head/bias", np.ones(1, np.float32)),
        value("head/bias", np.ones(1, np.float32)),
    ]
    with pytest.raises(Error) as caught:
        Keras3Target(model).assign(values)
    assert str(caught.value).splitlines() == [
        "keras model 'm': 2 values for the variable 'head/bias'",
        "keras model 'm': no variable 'head/kernal'; closest: 'head/kernel', 'head/bias'",
        "keras model 'm': variable 'head/kernel': shape [1, 5] for a variable of [5, 1]",
        "keras model 'm': variable 'head/kernel': dtype float64 for a variable of float32",
    ]
    assert same(current(model), before)


@pytest.mark.parametrize("failure", [OSError("gone"), KeyboardInterrupt(), Error("no such file")])
def test_a_failure_half_way_takes_everything_back(failure: BaseException) -> None:
    model = encoder_and_head()
    target = Keras3Target(model)
    before = current(model)
    arrays = drawn(target.specs(), CELL)
    values = [*constants(arrays), failing("head/bias", target.specs()["head/bias"], failure)]
    with pytest.raises(type(failure)):
        target.assign(values)
    assert same(current(model), before)
    assert len(model.trainable_weights) == 5


def test_a_failure_while_freezing_thaws(monkeypatch: pytest.MonkeyPatch) -> None:
    model = encoder_and_head()
    target = Keras3Target(model)
    before = current(model)
    real, calls = keras3._freeze, []

    def second_fails(variable: Any) -> None:
        calls.append(variable)
        if len(calls) == 2:
            raise RuntimeError("no")
        real(variable)

    monkeypatch.setattr(keras3, "_freeze", second_fails)
    with pytest.raises(RuntimeError):
        target.assign(constants(drawn(target.specs(), CELL)))
    assert same(current(model), before)
    assert len(model.trainable_weights) == 5
    assert len({type(w) for w in model.weights}) == 1


def test_a_value_that_is_not_what_it_said_is_refused() -> None:
    model = encoder_and_head()
    spec = TensorSpec.of("float32", (1,))
    with pytest.raises(Error) as caught:
        Keras3Target(model).assign([value("head/bias", np.ones(2), spec=spec)])
    assert str(caught.value) == "variable 'head/bias': float32 [1] was planned, float64 [2] was produced"


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX may keep the array itself instead of a copy")
def test_one_value_is_in_memory_at_a_time() -> None:
    import weakref

    model = encoder_and_head()
    target = Keras3Target(model)
    alive: list[Any] = []

    def one(name: str) -> Any:
        made = value(name, np.zeros(target.specs()[name].shape, np.float32))

        def produce(index: Any) -> Any:
            assert all(ref() is None for ref in alive)
            array = made.produce(index)
            alive.append(weakref.ref(array))
            return array

        return type(made)(made.name, made.spec, False, produce)

    target.assign([one(n) for n in target.specs()])
    assert len(alive) == 5


# --- constants --------------------------------------------------------------------------------------------------------


def optimizers() -> dict[str, Any]:
    o = keras.optimizers
    return {
        "adam": lambda: o.Adam(0.02),
        "adamw": lambda: o.AdamW(0.02, weight_decay=0.3),
        "sgd with averages": lambda: o.SGD(
            0.02, momentum=0.5, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3
        ),
        "accumulating": lambda: o.Adam(0.05, gradient_accumulation_steps=2),
        "loss scaling": lambda: o.LossScaleOptimizer(o.Adam(0.02)),
    }


@pytest.mark.parametrize("optimizer", list(optimizers()))
@pytest.mark.parametrize("compile_first", [True, False])
def test_a_constant_encoder_stays_while_the_head_learns(optimizer: str, compile_first: bool) -> None:
    keras.utils.set_random_seed(1)
    model = model_of(
        layers.LSTM(8, name="lstm", kernel_regularizer="l2"), layers.Dropout(0.1), layers.Dense(1, name="head")
    )
    target = Keras3Target(model)
    arrays = drawn(target.specs(), CELL)
    if compile_first:
        model.compile(optimizers()[optimizer](), "mse")
    target.assign(constants(arrays))
    if not compile_first:
        model.compile(optimizers()[optimizer](), "mse")
    assert [w.path for w in model.trainable_weights] == ["head/kernel", "head/bias"]
    before = current(model)
    x, y = batch()
    losses = model.fit(x, y, epochs=12, batch_size=16, verbose=0).history["loss"]
    after = current(model)
    assert same({n: after[n] for n in CELL}, arrays)
    assert after["head/kernel"].tobytes() != before["head/kernel"].tobytes()
    assert losses[-1] < 0.9 * losses[0]


def test_one_variable_of_a_layer_stays_and_the_others_learn() -> None:
    model = encoder_and_head()
    target = Keras3Target(model)
    arrays = drawn(target.specs(), CELL)
    target.assign(constants(arrays, lambda n: n.endswith("/kernel")))
    model.compile(keras.optimizers.AdamW(0.02), "mse")
    model.fit(*batch(), epochs=2, verbose=0)
    after = current(model)
    assert {n: after[n].tobytes() == arrays[n].tobytes() for n in CELL} == {
        CELL[0]: True,
        CELL[1]: False,
        CELL[2]: False,
    }


def test_a_constant_is_not_thawed_by_its_layer() -> None:
    model = encoder_and_head()
    target = Keras3Target(model)
    arrays = drawn(target.specs(), CELL)
    target.assign(constants(arrays, lambda n: n.endswith("/kernel")))
    for owner in (model, model.get_layer("lstm"), model.get_layer("lstm").cell):
        owner.trainable = False
        owner.trainable = True
        assert [w.path for w in model.trainable_weights] == [*CELL[1:], "head/kernel", "head/bias"]
        assert [w.path for w in model.non_trainable_weights] == CELL[:1]
    assert isinstance(model.weights[0], type(model.weights[1]))
    target.assign(constants(arrays, lambda n: n.endswith("/kernel")))  # a second time changes nothing
    assert [w.path for w in model.trainable_weights] == [*CELL[1:], "head/kernel", "head/bias"]


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_a_frozen_model_saves_and_loads_as_any_other(tmp_path: Any) -> None:
    def square() -> Any:  # kernel and recurrent kernel of one shape: a change of order would pass unseen
        return model_of(layers.LSTM(3, name="lstm"), layers.Dense(1, name="head"))

    model = square()
    target = Keras3Target(model)
    arrays = drawn(target.specs(), target.specs())
    target.assign(constants(arrays, lambda n: n in CELL[:1]))
    assert [w.path for w in model.weights] == [w.path for w in square().weights]
    for name in ("m.weights.h5", "m.keras"):
        path = str(tmp_path / name)
        (model.save_weights if name == "m.weights.h5" else model.save)(path)
        other = square()
        other.load_weights(path)
        assert same(current(other), arrays)
    assert same(current(keras.models.load_model(path)), arrays)
    assert len(keras.models.clone_model(model).trainable_weights) == 5


def test_a_model_that_was_trained_is_refused_until_it_is_compiled_again() -> None:
    model = encoder_and_head()
    model.compile("adam", "mse")
    model.fit(*batch(), verbose=0)
    target = Keras3Target(model)
    arrays = drawn(target.specs(), CELL)
    before = current(model)
    with pytest.raises(RefusedError) as caught:
        target.assign(constants(arrays))
    assert str(caught.value) == (
        "keras model 'm': the model has been trained, and its optimizer holds state for variables that are to become "
        "constants; call model.compile(...) with a new optimizer before the transfer"
    )
    assert same(current(model), before)
    target.assign([value(n, a) for n, a in arrays.items()])  # initial values are fine
    model.compile("adam", "mse")
    target.assign(constants(arrays))
    model.fit(*batch(), verbose=0)
    target.assign(constants(arrays))  # they are constants already: nothing to refuse
    assert same({n: current(model)[n] for n in CELL}, arrays)


def test_batch_normalization_is_constant_as_a_whole_or_not_at_all() -> None:
    model = model_of(layers.BatchNormalization(name="bn"), layers.Dense(1, name="head"), shape=(3,))
    target = Keras3Target(model)
    names = [n for n in target.specs() if n.startswith("bn/")]
    arrays = {n: np.full(3, i + 1, np.float32) for i, n in enumerate(names)}
    with pytest.raises(RefusedError) as caught:
        target.assign(constants({"bn/moving_mean": arrays["bn/moving_mean"]}))
    assert str(caught.value) == (
        "keras model 'm': layer 'bn' keeps moving its statistics while it trains, so they cannot be constant alone; "
        "make all of the layer's variables constant, or none"
    )
    target.assign(constants(arrays))
    model.compile("adam", "mse")
    model.fit(np.ones((8, 3)), np.ones((8, 1)), epochs=2, verbose=0)
    assert same({n: current(model)[n] for n in names}, arrays)


def test_gamma_alone_may_be_constant() -> None:
    model = model_of(layers.BatchNormalization(name="bn"), layers.Dense(1, name="head"), shape=(3,))
    Keras3Target(model).assign([value("bn/gamma", np.float32([1, 2, 3]), constant=True)])
    model.compile("adam", "mse")
    model.fit(np.ones((8, 3)), np.ones((8, 1)), epochs=2, verbose=0)
    after = current(model)
    assert after["bn/gamma"].tolist() == [1, 2, 3]
    assert (after["bn/moving_mean"] != 0).all()


def test_the_moved_cell_computes_what_keras_computes() -> None:
    model = encoder_and_head()
    target = Keras3Target(model)
    arrays = drawn(target.specs(), CELL)
    target.assign(constants(arrays))
    x, _ = batch()
    kernel, recurrent, bias = (arrays[n].astype(np.float64) for n in CELL)
    h = c = np.zeros((len(x), 5))
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ kernel + h @ recurrent + bias, 4, axis=1)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
    encoder = keras.Model(model.inputs, model.get_layer("lstm").output)
    np.testing.assert_allclose(encoder.predict(x, verbose=0), h, atol=1e-5)
