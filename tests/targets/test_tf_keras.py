from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from tests.support import need
from tests.targets.live import batch, constants, drawn, failing, value
from weightport.errors import Error, RefusedError
from weightport.targets import keras3, tf_keras_model, tf_module
from weightport.targets.tf_keras_model import TfKerasTarget
from weightport.tensors import Target, TensorSpec, Value

tf = need("tensorflow")
keras = need("tf_keras")
layers = keras.layers
CELL = ["lstm/lstm_cell/kernel", "lstm/lstm_cell/recurrent_kernel", "lstm/lstm_cell/bias"]
PARTLY = pytest.mark.filterwarnings("ignore:tf_keras model .* only a part of layer:UserWarning")

pytestmark = pytest.mark.filterwarnings(
    "ignore:You are saving your model as an HDF5 file:UserWarning",
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
)


def model_of(*stack: Any, shape: tuple[Any, ...] = (6, 3)) -> Any:
    x = first = keras.Input(shape)
    for layer in stack:
        x = layer(x)
    return keras.Model(first, x, name="m")


def encoder_and_head() -> Any:
    return model_of(layers.LSTM(5, name="lstm"), layers.Dense(1, name="head"))


def current(model: Any) -> dict[str, Any]:
    return {n: o.variable.numpy().copy() for n, o in TfKerasTarget(model)._owned.items()}


def names(variables: Any) -> list[str]:
    return [v.name.split(":")[0] for v in variables]


def same(a: Any, b: Any) -> bool:
    return {k: v.tobytes() for k, v in a.items()} == {k: v.tobytes() for k, v in b.items()}


def test_accepts_legacy_keras_and_nothing_else() -> None:
    for obj in (encoder_and_head(), layers.Dense(2), keras.Sequential()):
        assert (keras3.accepts(obj), tf_keras_model.accepts(obj), tf_module.accepts(obj)) == (False, True, False)
    for obj in (need("keras").layers.Dense(2), tf.Module(), object(), None, layers.Dense):
        assert not tf_keras_model.accepts(obj)
    target: Target = TfKerasTarget(encoder_and_head())
    assert target.kind == "tf_keras"


def test_names_are_the_variables_names() -> None:
    keras.backend.clear_session()  # Keras counts layers without a name, in all models of the process
    model = model_of(
        layers.Bidirectional(layers.LSTM(4, return_sequences=True, name="l"), name="bi"),
        layers.TimeDistributed(layers.Dense(3, name="d"), name="td"),
        layers.RNN(layers.StackedRNNCells([layers.GRUCell(3, name="g"), layers.LSTMCell(2, name="h")]), name="st"),
        layers.Dropout(0.5, rng_type="stateful"),
        layers.BatchNormalization(name="bn"),
    )
    model.compile("adam", "mse", metrics=["mae"], run_eagerly=True)
    model.fit(np.zeros((4, 6, 3)), np.zeros((4, 2)), verbose=0)
    target = TfKerasTarget(model)
    rnn = ["kernel", "recurrent_kernel", "bias"]
    assert list(target.specs()) == [
        *(f"bi/forward_l/lstm_cell/{n}" for n in rnn),
        *(f"bi/backward_l/lstm_cell/{n}" for n in rnn),
        "td/kernel",
        "td/bias",
        *(f"st/stacked_rnn_cells/g/{n}" for n in rnn),
        *(f"st/stacked_rnn_cells/h/{n}" for n in rnn),
        *(f"bn/{n}" for n in ("gamma", "beta", "moving_mean", "moving_variance")),
    ]
    assert target.specs()["bi/forward_l/lstm_cell/kernel"] == TensorSpec.of("float32", (3, 16))


def test_equal_names_are_told_apart_by_their_layers() -> None:
    x = keras.Input((4,))

    def part(name: str) -> Any:
        i = keras.Input((4,))
        return keras.Model(i, layers.Dense(2, name="dense")(i), name=name)

    model = keras.Model(x, [part("a")(x), part("b")(x)])
    assert list(TfKerasTarget(model).specs()) == ["a/dense/kernel", "a/dense/bias", "b/dense/kernel", "b/dense/bias"]


class Twins(layers.Layer):
    def __init__(self, *, keep: bool) -> None:
        super().__init__(name="twins")
        self.keep = keep

    def build(self, _shape: Any = None) -> None:
        one, two = (self.add_weight(shape=(2,), name="w") for _ in range(2))
        if self.keep:
            self.left, self.right = one, two
        self.built = True


def test_equal_names_in_one_layer_are_told_apart_by_attribute_or_refused() -> None:
    assert list(TfKerasTarget(Twins(keep=True)).specs()) == ["left", "right"]
    with pytest.raises(RefusedError, match=r"^model 'twins': two variables are named 'w'; give the layers"):
        TfKerasTarget(Twins(keep=False))


def test_the_states_of_a_stateful_rnn_are_no_weights() -> None:
    x = keras.Input(batch_shape=(2, 5, 3))
    assert list(TfKerasTarget(keras.Model(x, layers.LSTM(3, stateful=True, name="lstm")(x))).specs()) == CELL


@pytest.mark.parametrize(
    "model",
    [lambda: keras.Sequential([layers.Dense(2)], name="m"), lambda: layers.Bidirectional(layers.LSTM(2), name="m")],
)
def test_an_unbuilt_model_is_refused(model: Any) -> None:
    with pytest.raises(RefusedError) as caught:
        TfKerasTarget(model())
    assert str(caught.value).startswith("model 'm': ")
    assert str(caught.value).endswith("; build the model first: call it once on an input or model.build(input_shape)")


class Net(keras.Model):
    def __init__(self) -> None:
        super().__init__(name="net")
        self.rnn, self.head = layers.LSTM(2, name="lstm"), layers.Dense(1, name="head")

    def call(self, x: Any) -> Any:
        return self.head(self.rnn(x))


def test_a_subclassed_model_is_taken_once_it_is_built() -> None:
    model = Net()
    with pytest.raises(RefusedError, match="build the model first"):
        TfKerasTarget(model)
    model(np.zeros((1, 5, 3), np.float32))
    target = TfKerasTarget(model)
    assert len(target.specs()) == 5
    cell = [n for n in target.specs() if "lstm_cell" in n]
    target.assign(constants(drawn(target.specs(), cell)))
    assert [n.split("/")[-2] for n in names(model.trainable_weights)] == ["head", "head"]


def test_what_says_its_input_shape_is_built() -> None:
    assert list(TfKerasTarget(layers.Dense(2, input_shape=(3,), name="d")).specs()) == ["kernel", "bias"]
    assert list(TfKerasTarget(Twins(keep=True)).specs()) == ["left", "right"]


def test_facts_of_cells() -> None:
    model = model_of(
        layers.Bidirectional(
            layers.LSTM(4, return_sequences=True, recurrent_activation="hard_sigmoid", name="l"), name="bi"
        ),
        layers.GRU(3, reset_after=False, activation=tf.nn.tanh, return_sequences=True, name="gru"),
        layers.SimpleRNN(2, activation=lambda x: x, go_backwards=True, name="rnn"),
    )
    target = TfKerasTarget(model)
    forward = [n for n in target.specs() if "forward" in n]
    backward = [n for n in target.specs() if "backward" in n]
    lstm = {
        "class": "LSTMCell",
        "units": 4,
        "use_bias": True,
        "activation": "tanh",
        "recurrent_activation": "hard_sigmoid",
        "forget_bias": 0.0,
    }
    assert target.facts(forward) == {**lstm, "go_backwards": False}
    assert target.facts(backward) == {**lstm, "go_backwards": True}
    assert target.facts(["gru/gru_cell/kernel"]) == {
        "class": "GRUCell",
        "units": 3,
        "use_bias": True,
        "reset_after": False,
        "activation": "tanh",
        "recurrent_activation": "sigmoid",
        "go_backwards": False,
    }
    assert target.facts(["rnn/simple_rnn_cell/kernel"]) == {
        "class": "SimpleRNNCell",
        "units": 2,
        "use_bias": True,
        "go_backwards": True,
    }
    assert target.facts(forward + backward) == {}


def test_values_arrive_bit_for_bit_and_the_model_is_returned() -> None:
    model = encoder_and_head()
    target = TfKerasTarget(model)
    arrays = drawn(target.specs(), target.specs())
    arrays["head/bias"] = np.array([0x7FA00001], np.uint32).view(np.float32)
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
    ]
    with pytest.raises(Error) as caught:
        TfKerasTarget(model).assign(values)
    assert str(caught.value).splitlines() == [
        "tf_keras model 'm': no variable 'head/kernal'; closest: 'head/kernel', 'head/bias'",
        "tf_keras model 'm': variable 'head/kernel': shape [1, 5] for a variable of [5, 1]",
        "tf_keras model 'm': variable 'head/kernel': dtype float64 for a variable of float32",
    ]
    assert same(current(model), before)


@pytest.mark.parametrize("failure", [OSError("gone"), KeyboardInterrupt()])
def test_a_failure_half_way_takes_everything_back(failure: BaseException) -> None:
    model = encoder_and_head()
    target = TfKerasTarget(model)
    before = current(model)
    values = [*constants(drawn(target.specs(), CELL)), failing("head/bias", target.specs()["head/bias"], failure)]
    with pytest.raises(type(failure)):
        target.assign(values)
    assert same(current(model), before)
    assert len(model.trainable_weights) == 5


def test_a_failure_while_freezing_thaws(monkeypatch: pytest.MonkeyPatch) -> None:
    model = encoder_and_head()
    target = TfKerasTarget(model)
    before, order = current(model), names(model.weights)

    def fails(_self: Any, _constants: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(TfKerasTarget, "_require_frozen", fails)
    with pytest.raises(RuntimeError):
        target.assign(constants(drawn(target.specs(), CELL)))
    assert same(current(model), before)
    assert names(model.trainable_weights) == order
    assert all(v.trainable for v in model.weights)


# --- constants --------------------------------------------------------------------------------------------------------


def optimizers() -> dict[str, Any]:
    o = keras.optimizers
    return {
        "adam": lambda: o.Adam(0.02),
        "adamw": lambda: o.AdamW(0.02, weight_decay=0.3),
        "averages": lambda: o.Adam(0.02, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3),
        "legacy adam": lambda: o.legacy.Adam(0.02),
        "loss scaling": lambda: keras.mixed_precision.LossScaleOptimizer(o.Adam(0.02)),
    }


@pytest.mark.parametrize("optimizer", list(optimizers()))
@pytest.mark.parametrize("compile_first", [True, False])
def test_a_constant_encoder_stays_while_the_head_learns(optimizer: str, compile_first: bool) -> None:
    keras.utils.set_random_seed(1)
    model = model_of(layers.LSTM(8, name="lstm", kernel_regularizer="l2"), layers.Dense(1, name="head"))
    target = TfKerasTarget(model)
    arrays = drawn(target.specs(), CELL)
    if compile_first:
        model.compile(optimizers()[optimizer](), "mse")
    target.assign(constants(arrays))
    if not compile_first:
        model.compile(optimizers()[optimizer](), "mse")
    assert names(model.trainable_weights) == ["head/kernel", "head/bias"]
    before = current(model)
    losses = model.fit(*batch(), epochs=12, batch_size=16, verbose=0).history["loss"]
    after = current(model)
    assert same({n: after[n] for n in CELL}, arrays)
    assert after["head/kernel"].tobytes() != before["head/kernel"].tobytes()
    assert losses[-1] < 0.9 * losses[0]


@PARTLY
def test_one_variable_of_a_layer_stays_and_the_others_learn() -> None:
    model = encoder_and_head()
    target = TfKerasTarget(model)
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


@PARTLY
def test_a_constant_is_not_thawed_by_its_layer() -> None:
    model = encoder_and_head()
    target = TfKerasTarget(model)
    arrays = drawn(target.specs(), CELL)
    for _ in range(2):  # a second time changes nothing
        target.assign(constants(arrays, lambda n: n.endswith("/kernel")))
        for owner in (model, model.get_layer("lstm"), model.get_layer("lstm").cell):
            owner.trainable = False
            owner.trainable = True
            assert names(model.trainable_weights) == [*CELL[1:], "head/kernel", "head/bias"]
            assert names(model.non_trainable_weights) == CELL[:1]
            assert names(TfKerasTarget(model)._owned[CELL[0]].chain[-1].trainable_weights) == CELL[1:]


def test_a_constant_cell_saves_and_loads_as_any_other(tmp_path: Any) -> None:
    def square() -> Any:  # kernel and recurrent kernel of one shape: a change of order would pass unseen
        return model_of(layers.LSTM(3, name="lstm"), layers.Dense(1, name="head"))

    model = square()
    target = TfKerasTarget(model)
    arrays = drawn(target.specs(), target.specs())
    target.assign(constants(arrays, lambda n: n in CELL))  # no warning: the order stays
    for name in ("m.h5", "m.weights.h5", "m.keras", "checkpoint"):
        path = str(tmp_path / name)
        (model.save if name == "m.keras" else model.save_weights)(path)
        other = square()
        if name == "m.keras":
            other = keras.models.load_model(path)
        else:
            other.load_weights(path)
        assert same(current(other), arrays), name


def test_a_partly_constant_layer_warns_before_it_changes_the_order_of_its_weights() -> None:
    model = encoder_and_head()
    target = TfKerasTarget(model)
    before = current(model)
    arrays = drawn(target.specs(), CELL)
    with pytest.raises(UserWarning) as caught:  # warnings are errors here
        target.assign(constants(arrays, lambda n: n == CELL[0]))
    assert str(caught.value) == (
        "tf_keras model 'm': only a part of layer 'lstm' becomes constant; Keras 2 saves weights by position, "
        "the trainable ones first: weights files saved before and after do not fit each other"
    )
    assert same(current(model), before)
    assert len(model.trainable_weights) == 5
    target.assign(constants(arrays, lambda n: n == CELL[2]))  # the last one keeps its place: nothing to warn of
    assert names(model.weights)[:3] == CELL


@PARTLY
@pytest.mark.parametrize("wrapper", ["bidirectional", "stacked", "nested", "mixed"])
def test_constants_deep_inside(wrapper: str) -> None:
    inner = model_of(layers.LSTM(4, name="lstm"), layers.Dense(3, name="out"))
    stack = {
        "bidirectional": [layers.Bidirectional(layers.LSTM(4, name="lstm"), name="w")],
        "stacked": [layers.RNN(layers.StackedRNNCells([layers.LSTMCell(4), layers.GRUCell(3)]), name="w")],
        "nested": [inner],
        "mixed": [layers.LSTM(4, name="lstm", dtype=keras.mixed_precision.Policy("mixed_bfloat16"))],
    }[wrapper]
    model = model_of(*stack, layers.Dense(1, name="head", dtype="float32"))
    target = TfKerasTarget(model)
    first = [n for n in target.specs() if "lstm" in n and "backward" not in n]
    assert len(first) == 3
    arrays = drawn(target.specs(), first)
    target.assign(constants(arrays))
    before = current(model)
    model.compile("adam", "mse")
    model.fit(*batch(), epochs=2, verbose=0)
    after = current(model)
    assert {n: after[n].tobytes() == before[n].tobytes() for n in after} == {n: n in first for n in after}
    assert same({n: after[n] for n in first}, arrays)


def test_a_model_that_was_trained_is_refused_until_it_is_compiled_again() -> None:
    model = encoder_and_head()
    model.compile("adam", "mse")
    model.fit(*batch(), verbose=0)
    target = TfKerasTarget(model)
    arrays = drawn(target.specs(), CELL)
    before = current(model)
    with pytest.raises(RefusedError) as caught:
        target.assign(constants(arrays))
    assert str(caught.value) == (
        "tf_keras model 'm': the model has been trained, and its optimizer holds state for variables that are to "
        "become constants; call model.compile(...) with a new optimizer before the transfer"
    )
    assert same(current(model), before)
    model.compile("adam", "mse")
    target.assign(constants(arrays))
    model.fit(*batch(), verbose=0)
    target.assign(constants(arrays))  # they are constants already: nothing to refuse
    assert same({n: current(model)[n] for n in CELL}, arrays)


@pytest.mark.parametrize("legacy", [False, True])
def test_an_optimizer_that_was_built_by_hand_is_noticed(legacy: bool) -> None:
    model = encoder_and_head()
    optimizer = keras.optimizers.legacy.Adam() if legacy else keras.optimizers.Adam()
    model.compile(optimizer, "mse")
    optimizer.apply_gradients([(tf.zeros_like(v), v) for v in model.trainable_weights])
    target = TfKerasTarget(model)
    with pytest.raises(RefusedError, match="the model has been trained"):
        target.assign(constants(drawn(target.specs(), CELL)))


def test_batch_normalization_is_constant_as_a_whole_or_not_at_all() -> None:
    model = model_of(layers.BatchNormalization(name="bn"), layers.Dense(1, name="head"), shape=(3,))
    target = TfKerasTarget(model)
    arrays = {n: np.full(3, i + 1, np.float32) for i, n in enumerate(n for n in target.specs() if n.startswith("bn/"))}
    with pytest.raises(RefusedError, match="layer 'bn' keeps moving its statistics while it trains"):
        target.assign(constants({"bn/moving_mean": arrays["bn/moving_mean"]}))
    target.assign(constants(arrays))
    model.compile("adam", "mse")
    model.fit(np.ones((8, 3)), np.ones((8, 1)), epochs=2, verbose=0)
    assert same({n: current(model)[n] for n in arrays}, arrays)


@PARTLY
def test_variables_in_lists_of_a_layer_are_constants_too() -> None:
    class Listed(layers.Layer):
        def __init__(self) -> None:
            super().__init__(name="listed")
            self.ws = [tf.Variable(tf.ones(2), name=f"w{i}") for i in range(2)]

        def call(self, x: Any) -> Any:
            return x * self.ws[0] + self.ws[1]

    model = model_of(Listed(), shape=(2,))
    target = TfKerasTarget(model)
    assert list(target.specs()) == ["w0", "w1"]
    target.assign([value("w0", np.float32([3, 4]), constant=True)])
    assert names(model.trainable_weights) == ["w1"]
    model.compile("adam", "mse")
    model.fit(np.ones((8, 2)), np.zeros((8, 2)), verbose=0)
    assert current(model)["w0"].tolist() == [3, 4]


def test_graph_mode_is_refused() -> None:
    model = encoder_and_head()
    target = TfKerasTarget(model)
    with tf.Graph().as_default(), pytest.raises(RefusedError) as caught:
        target.assign([value("head/bias", np.ones(1, np.float32))])
    assert str(caught.value) == (
        "tf_keras model 'm': TensorFlow is not executing eagerly; in graph mode transfer into the graph itself"
    )


def test_shards_of_one_variable() -> None:
    """As parameter servers have an embedding's table: one tensor, of which each shard gets its rows."""
    container = importlib.import_module("tensorflow.python.distribute.sharded_variable").ShardedVariable

    class Table(keras.layers.Layer):  # type: ignore[misc, name-defined, unused-ignore]
        def build(self, shape: Any) -> None:  # noqa: ARG002
            parts = [tf.Variable(tf.zeros([n, 2]), name=f"rows/part_{n}") for n in (3, 1)]
            self.rows = container(parts)

        def call(self, x: Any) -> Any:
            return tf.nn.embedding_lookup(self.rows, tf.cast(x, tf.int32)) * 1.0

    layers = [keras.layers.InputLayer((2,)), Table(name="table"), keras.layers.Dense(1, name="head")]
    model = keras.Sequential(layers)
    target = TfKerasTarget(model)
    assert list(target.specs()) == ["table/rows", "head/kernel", "head/bias"]
    rows = np.arange(8, dtype="f4").reshape(4, 2)
    spec = target.specs()["table/rows"]
    target.assign([Value("table/rows", spec, True, lambda index: rows if index is None else rows[index])])
    shards = model.get_layer("table").rows.variables
    assert np.array_equal(np.concatenate([v.numpy() for v in shards]), rows)
    assert [w.name for w in model.trainable_weights] == ["head/kernel:0", "head/bias:0"]
    model.compile("sgd", "mse")
    model.fit(np.ones((4, 2)), np.ones((4, 2, 1)), verbose=0)
    assert np.array_equal(np.concatenate([v.numpy() for v in shards]), rows)
