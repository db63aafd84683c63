from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import need
from tests.targets.live import constants, drawn, failing, value
from weightport.errors import Error, RefusedError, TensorNotFound
from weightport.targets import keras3, tf_keras_model, tf_module
from weightport.targets.tf_module import TfModuleTarget
from weightport.tensors import Target, TensorSpec, Value

tf = need("tensorflow")


class Dense(tf.Module):
    def __init__(self, n_in: int, n_out: int, prefix: str | None) -> None:
        super().__init__()
        name = (lambda n: f"{prefix}/{n}") if prefix else (lambda _: None)
        self.w = tf.Variable(tf.random.stateless_normal([n_in, n_out], [1, 2]), name=name("w"))
        self.b = tf.Variable(tf.zeros([n_out]), name=name("b"))

    def __call__(self, x: Any) -> Any:
        return x @ self.w + self.b


class Net(tf.Module):
    def __init__(self, *, named: bool = True) -> None:
        super().__init__()
        self.layers = [Dense(3, 4, "encoder" if named else None)]
        self.head = Dense(4, 1, "head" if named else None)
        self.alias = self.head  # met again: still one variable each

    def __call__(self, x: Any) -> Any:
        return self.head(tf.tanh(self.layers[0](x)))


def current(net: Any) -> list[bytes]:
    return [v.numpy().tobytes() for v in net.variables]


def test_accepts_modules_and_lists_of_variables() -> None:
    for obj in (Net(), tf.Module(), [tf.Variable(1.0)], (tf.Variable(1.0),)):
        assert (keras3.accepts(obj), tf_keras_model.accepts(obj), tf_module.accepts(obj)) == (False, False, True)
    for obj in ([], [tf.Variable(1.0), 2], [tf.constant(1.0)], tf.Module, object()):
        assert not tf_module.accepts(obj)
    target: Target = TfModuleTarget(Net())
    assert target.kind == "tf.Module"


def test_names_are_the_variables_names_where_they_differ() -> None:
    target = TfModuleTarget(Net())
    assert dict(target.specs()) == {
        "head/b": TensorSpec.of("float32", (1,)),
        "head/w": TensorSpec.of("float32", (4, 1)),
        "encoder/b": TensorSpec.of("float32", (4,)),
        "encoder/w": TensorSpec.of("float32", (3, 4)),
    }


def test_names_are_paths_of_attributes_where_names_are_alike() -> None:
    net = Net(named=False)
    assert {v.name for v in net.variables} == {"Variable:0"}
    target = TfModuleTarget(net)
    assert sorted(target.specs()) == ["alias/b", "alias/w", "layers/0/b", "layers/0/w"]
    target.assign([value("layers/0/b", np.arange(4, dtype=np.float32))])
    assert net.layers[0].b.numpy().tolist() == [0, 1, 2, 3]


def test_paths_are_those_of_a_checkpoint(tmp_path: Path) -> None:
    net = Net(named=False)
    del net.alias
    stored = tf.train.list_variables(tf.train.Checkpoint(net=net).save(str(tmp_path / "c")))
    paths = {n.removeprefix("net/").split("/.ATTRIBUTES")[0] for n, _ in stored if n.startswith("net/")}
    assert paths == set(TfModuleTarget(net).specs())


def test_optimizers_and_metrics_of_a_module_are_not_listed() -> None:
    tf_keras = need("tf_keras")
    net = Net()
    names = list(TfModuleTarget(net).specs())
    net.optimizer = tf_keras.optimizers.Adam()
    net.optimizer.build(net.trainable_variables)
    net.metric = tf_keras.metrics.Mean()
    assert len(net.variables) > len(names)
    assert list(TfModuleTarget(net).specs()) == names


def test_a_module_in_a_circle() -> None:
    net = Net(named=False)
    net.head.owner = net
    assert len(TfModuleTarget(net).specs()) == 4


def test_a_list_of_variables() -> None:
    variables = [tf.Variable([1.0, 2.0], name="a"), tf.Variable([3], name="b/c")]
    target = TfModuleTarget(variables)
    assert [(n, s.dtype_name) for n, s in target.specs().items()] == [("a", "float32"), ("b/c", "int32")]
    assert target.assign([value("b/c", np.int32([5]))]) is variables
    assert variables[1].numpy().tolist() == [5]
    with pytest.raises(RefusedError) as caught:
        TfModuleTarget([tf.Variable(1.0, name="a"), tf.Variable(1.0, name="a")])
    assert str(caught.value) == "list of tf.Variable: two variables are named 'a'; give them names of their own"


def test_there_are_no_facts() -> None:
    target = TfModuleTarget(Net())
    assert target.facts(["head/w"]) == {}
    with pytest.raises(TensorNotFound, match=r"^tf.Module Net: no tensor 'head/x'; closest: 'head/"):
        target.facts(["head/x"])


def test_misfits_change_nothing() -> None:
    net = Net()
    before = current(net)
    with pytest.raises(Error) as caught:
        TfModuleTarget(net).assign([value("head/b", np.ones(1, np.float32)), value("head/w", np.ones(4, np.float32))])
    assert str(caught.value) == "tf.Module Net: variable 'head/w': shape [4] for a variable of [4, 1]"
    assert current(net) == before


def test_a_failure_half_way_takes_everything_back() -> None:
    net = Net()
    target = TfModuleTarget(net)
    before = current(net)
    values = constants(drawn(target.specs(), ["encoder/w", "encoder/b"]))
    with pytest.raises(OSError, match="gone"):
        target.assign([*values, failing("head/b", target.specs()["head/b"], OSError("gone"))])
    assert current(net) == before
    assert len(net.trainable_variables) == 4


def test_a_constant_encoder_stays_while_the_head_learns() -> None:
    net = Net()
    target = TfModuleTarget(net)
    arrays = drawn(target.specs(), ["encoder/w", "encoder/b"])
    assert target.assign(constants(arrays)) is net
    assert [v.name for v in net.trainable_variables] == ["head/b:0", "head/w:0"]
    assert len(net.variables) == 4
    x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    y = x.sum(1, keepdims=True)

    @tf.function
    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((net(x) - y) ** 2)
        watched = tape.watched_variables()
        assert {v.name for v in watched} == {"head/b:0", "head/w:0"}
        for v, g in zip(watched, tape.gradient(loss, watched), strict=True):
            v.assign_sub(0.1 * g)
        return loss

    losses = [float(step()) for _ in range(40)]
    assert losses[-1] < 0.8 * losses[0]
    assert net.layers[0].w.numpy().tobytes() == arrays["encoder/w"].tobytes()
    assert net.layers[0].b.numpy().tobytes() == arrays["encoder/b"].tobytes()
    assert not net.layers[0].w.trainable


def test_graph_mode_is_refused() -> None:
    target = TfModuleTarget(Net())
    with tf.Graph().as_default(), pytest.raises(RefusedError, match="TensorFlow is not executing eagerly"):
        target.assign([value("head/b", np.ones(1, np.float32))])


def sharded(rows: tuple[int, ...], name: str) -> Any:
    """A variable as parameter servers have it: its rows in several variables."""
    container = importlib.import_module("tensorflow.python.distribute.sharded_variable").ShardedVariable
    parts = [tf.Variable(tf.zeros([n, 2]), name=f"{name}/part_{at}") for at, n in enumerate(rows)]
    return container(parts)  # without a name of its own, as a strategy makes it


def test_shards_of_one_variable_read_their_own_rows() -> None:
    module = tf.Module()
    module.table, module.b = sharded((3, 1, 2), "emb/table"), tf.Variable([1.0], name="b")
    target = TfModuleTarget(module)
    assert {n: s.shape for n, s in target.specs().items()} == {"b": (1,), "emb/table": (6, 2)}
    rows = np.arange(12, dtype="f4").reshape(6, 2)
    asked: list[Any] = []

    def produce(index: Any) -> np.ndarray:
        asked.append(index)
        return rows[index]

    assert target.assign([Value("emb/table", target.specs()["emb/table"], True, produce)]) is module
    assert asked == [(slice(0, 3),), (slice(3, 4),), (slice(4, 6),)]
    assert np.array_equal(np.concatenate([v.numpy() for v in module.table.variables]), rows)
    assert [v.name for v in module.trainable_variables] == ["b:0"]
    listed = TfModuleTarget([*module.table.variables, module.b])
    assert list(listed.specs()) == ["emb/table", "b"]


def test_shards_that_get_the_wrong_rows_have_their_old_ones_again() -> None:
    module = tf.Module()
    module.table = sharded((2, 2), "table")
    module.table.assign(np.ones((4, 2), "f4"))
    target = TfModuleTarget(module)

    def produce(index: Any) -> np.ndarray:
        return np.zeros((2, 2) if index == (slice(0, 2),) else (1, 2), "f4")

    with pytest.raises(Error, match=r"variable 'table': float32 \[2, 2\] was planned, float32 \[1, 2\] was produced"):
        target.assign([Value("table", target.specs()["table"], False, produce)])
    assert np.array_equal(tf.convert_to_tensor(module.table), np.ones((4, 2)))


def test_paths_of_shards_without_names() -> None:
    module = tf.Module()
    module.first, module.second = sharded((1, 1), "Variable"), sharded((1, 2), "Variable")
    assert {n: s.shape for n, s in TfModuleTarget(module).specs().items()} == {"first": (2, 2), "second": (3, 2)}
