from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.formats._mutated import mutated
from tests.formats.test_tf_bundle import bytes_field, number_field
from tests.support import fixture, need
from weightport.errors import BudgetExceeded, Error, FormatError
from weightport.formats import _slices, detect, tf_bundle, tf_objects
from weightport.tensors import Budget, TensorSpec

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def node(
    children: dict[str, int] | None = None,
    variable: tuple[str, str] | None = None,
    slots: tuple[tuple[str, int, int], ...] = (),
) -> bytes:
    """A TrackableObject; ``variable`` is its full name and key."""
    out = b"".join(
        bytes_field(1, number_field(1, n) + bytes_field(2, name.encode())) for name, n in (children or {}).items()
    )
    if variable:
        full, key = (text.encode() for text in variable)
        out += bytes_field(2, bytes_field(1, b"VARIABLE_VALUE") + bytes_field(2, full) + bytes_field(3, key))
    for name, original, slot in slots:
        out += bytes_field(3, number_field(1, original) + bytes_field(2, name.encode()) + number_field(3, slot))
    return out


def named(*nodes: bytes, keys: tuple[str, ...], same: bool = False) -> dict[str, tuple[str, str]]:
    graph = b"".join(bytes_field(1, n) for n in nodes)
    return tf_objects.from_graph(graph, "f", keys, lambda *_: same, Budget())[0]


def test_full_names_and_paths() -> None:
    keys = tuple(f"{k}{VALUE}" for k in ("variables/0", "variables/1", "variables/2", "variables/3"))
    result = named(
        node({"variables": 1, "layer_with_weights-0": 2, "layer-1": 2}),
        node({"0": 3, "1": 4, "2": 5, "3": 6}),
        node({"kernel": 3, "bias": 4, "gate": 5}),
        node(variable=("dense/kernel", keys[0])),
        node(variable=("Variable", keys[1])),
        node(variable=("w", keys[2])),
        node(variable=("w", keys[3])),
        keys=(*keys, f"not/in/the/graph{VALUE}"),
    )
    assert result == {
        "dense/kernel": (keys[0], "weight"),
        "layer_with_weights-0/bias": (keys[1], "weight"),  # the default name says nothing
        "layer_with_weights-0/gate": (keys[2], "weight"),  # not unique
        "variables/3": (keys[3], "weight"),  # not unique, and no object holds it
        "not/in/the/graph": (f"not/in/the/graph{VALUE}", "weight"),
    }


def test_names_never_collide() -> None:
    keys = (f"a{VALUE}", f"b{VALUE}", "b", "c")
    result = named(
        node({"x": 1, "y": 2}),
        node(variable=("b", keys[0])),
        node(variable=("c", keys[1])),
        keys=keys,
    )
    assert sorted(key for key, _ in result.values()) == sorted(keys)
    assert len(result) == 4


def test_bad_graphs() -> None:
    # References to objects that are not there, and circles.
    loop = named(
        node({"self": 0, "gone": 99, "before": -1, "v": 1}, slots=(("m", 7, 8),)),
        node({"up": 0}, variable=("v", f"v{VALUE}")),
        keys=(f"v{VALUE}",),
    )
    assert loop == {"v": (f"v{VALUE}", "weight")}
    assert named(keys=("a",)) == {"a": ("a", "weight")}
    # A chain as long as it likes costs no more than its length.
    chain = [node({"next" * 20: n + 1}) for n in range(20_000)]
    key = f"deep{VALUE}"
    assert named(*chain, node(variable=("", key)), keys=(key,)) == {"deep": (key, "weight")}
    for junk in (b"\x0a\x7f", b"\x0a\x02\x0a\x7f", b"\xff"):
        with pytest.raises(FormatError):
            tf_objects.from_graph(junk, "f", ("a",), lambda *_: False, Budget())
    with pytest.raises(BudgetExceeded, match="tensors"):
        tf_objects.from_graph(b"\x0a\0" * 20, "f", (), lambda *_: False, Budget(tensors=10))


def test_roles_by_name() -> None:
    shapes: dict[str, tuple[int, ...]] = {"rnn/kernel": (3, 4), "bias": (4,)}

    def role(name: str, shape: tuple[int, ...], dtype: str = "float32") -> str:
        return tf_objects.role_of(name, TensorSpec.of(dtype, shape), shapes.get)

    for suffix in (
        "Adam",
        "Adam_1",
        "Adam_3",
        "Momentum",
        "RMSProp",
        "RMSProp_1",
        "Adagrad",
        "Adadelta_1",
        "Ftrl",
        "adam_m",
    ):
        assert role(f"rnn/kernel/{suffix}", (3, 4)) == "slot"
        assert role(f"optimize/rnn/kernel/{suffix}", (3, 4)) == "slot"  # made inside a scope
        assert role(f"rnn/kernel/{suffix}", (4, 3)) == "weight"
        assert role(f"rnn/other/{suffix}", (3, 4)) == "weight"
    assert role("rnn/kernel/ExponentialMovingAverage", (3, 4)) == "weight"
    assert role("rnn/kernel", (3, 4)) == "weight"
    assert role("Adam", (3, 4)) == "weight"
    assert role("beta1_power", ()) == role("train/beta2_power_1", ()) == "optimizer"
    assert role("beta1_power", (2,)) == "weight"
    assert role("global_step", (), "int64") == role("train/global_step", (), "int32") == "counter"
    assert role("global_step", (), "float32") == "weight"


def listing(path: Path | str) -> dict[str, str]:
    """Name -> role, after reading everything by both of its names."""
    with tf_bundle.open_source(str(path)) as source:
        for key, name in source.raw_names().items():
            assert source.read(key).tobytes() == source.read(name).tobytes()
        return {name: spec.role for name, spec in source.specs().items()}


@contextlib.contextmanager
def quiet() -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the frameworks' own
        yield


def test_modules(tmp_path: Path) -> None:
    tf = need("tensorflow")

    class Model(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.a = tf.Variable([1.0])
            self.b = tf.Variable([1.0])
            self.cells = [tf.Variable(1.0), tf.Variable(2.0, name="named")]

    checkpoint = tf.train.Checkpoint(model=Model(), step=tf.Variable(3), **{"odd.name/x": tf.Variable(5.0)})
    checkpoint.save(str(tmp_path / "c"))
    assert listing(tmp_path) == {
        "model/a": "weight",
        "model/b": "weight",
        "model/cells/0": "weight",
        "named": "weight",
        "odd.name/x": "weight",
        "save_counter": "counter",
        "step": "counter",
    }


def expected_slots(variables: list[str], optimizer: str, slots: tuple[str, str]) -> dict[str, str]:
    return {f"{v}/.OPTIMIZER_SLOT/{optimizer}/{slot}": "slot" for v in variables for slot in slots}


LAYERS = [
    "lstm/lstm_cell/kernel",
    "lstm/lstm_cell/recurrent_kernel",
    "lstm/lstm_cell/bias",
    "dense/kernel",
    "dense/bias",
]


@pytest.mark.parametrize("legacy", [False, True])
def test_tf_keras(tmp_path: Path, legacy: bool) -> None:
    tf, keras = need("tensorflow"), need("tf_keras")
    with quiet():
        keras.backend.clear_session()
        model = keras.Sequential(
            [keras.layers.Input((6, 5)), keras.layers.LSTM(7, name="lstm"), keras.layers.Dense(2, name="dense")]
        )
        optimizer = keras.optimizers.legacy.Adam() if legacy else keras.optimizers.Adam()
        model.compile(optimizer, "mse")
        optimizer.apply_gradients([(tf.ones_like(v), v) for v in model.trainable_variables])
        model.save_weights(str(tmp_path / "w.ckpt"), save_format="tf")
        tf.train.Checkpoint(net=model, optimizer=optimizer).write(str(tmp_path / "both"))
    own = ("iter", "beta_1", "beta_2", "decay", "learning_rate") if legacy else ("_iterations", "_learning_rate")
    wanted = dict.fromkeys(LAYERS, "weight")
    wanted |= {f"optimizer/{name}": "optimizer" for name in own}
    wanted |= expected_slots(LAYERS, "optimizer", ("m", "v"))
    assert listing(tmp_path / "w.ckpt") == wanted
    assert listing(tmp_path / "both") == wanted
    with tf_bundle.open_source(str(tmp_path / "w.ckpt")) as source:
        for variable, name in zip(model.variables, LAYERS, strict=True):
            assert source.read(name).tobytes() == variable.numpy().tobytes()


def test_keras_3(tmp_path: Path) -> None:
    tf, keras = need("tensorflow"), need("keras")
    with quiet():
        keras.backend.clear_session()
        model = keras.Sequential(
            [keras.layers.Input((6, 5)), keras.layers.LSTM(7, name="lstm"), keras.layers.Dense(2, name="dense")],
            name="net",
        )
        model.compile("adam", "mse")
        model.optimizer.build(model.trainable_variables)
        model.export(str(tmp_path / "exported"), verbose=False)
        tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(str(tmp_path / "c"))
    layers = [f"net/{name}" for name in LAYERS]
    values = {v.path: np.asarray(v) for v in model.trainable_variables}
    assert list(values) == layers

    # The export has every weight twice, and a seed.
    exported = listing(tmp_path / "exported" / "variables" / "variables")
    seeds = {name for name in exported if "seed" in name}
    assert exported == {**dict.fromkeys(layers, "weight"), **dict.fromkeys(seeds, "counter")}
    assert seeds

    # The checkpoint has the weights under the optimizer's keys.
    wanted = dict.fromkeys(layers, "weight")
    wanted |= {f"optimizer/{name}": "optimizer" for name in ("_iterations", "_learning_rate")}
    wanted |= expected_slots(layers, "optimizer", ("momentum", "velocity"))
    assert listing(tmp_path / "c") == wanted
    for path in ("c", "exported/variables/variables"):
        with tf_bundle.open_source(str(tmp_path / path)) as source:
            for name, value in values.items():
                assert source.read(name).tobytes() == value.tobytes()


def test_copies_that_differ_are_all_listed() -> None:
    keys = (f"_all_variables/0{VALUE}", f"variables/0{VALUE}")
    nodes = (
        node({"variables": 1, "_all_variables": 2}),
        node({"0": 3}),
        node({"0": 4}),
        node(variable=("net/kernel", keys[1])),
        node(variable=("net/kernel", keys[0])),
    )
    assert set(named(*nodes, keys=keys)) == {"_all_variables/0", "variables/0"}
    assert named(*nodes, keys=keys, same=True) == {"net/kernel": (keys[1], "weight")}


def test_where_keras_random_numbers_stand_is_no_weight() -> None:
    spec = TensorSpec.of("uint32", (2,))
    assert tf_objects.role_of("dropout/seed_generator/seed_generator_state", spec, lambda _: None) == "counter"


def test_what_others_keep_beside_their_variables() -> None:
    """The state that tables and iterators save themselves is no weight; nor is where a generator stands."""
    state, sharded = f"random/_state_var{VALUE}", f"wide{VALUE}"
    result = named(
        node({"random": 1, "wide": 3}),
        node({"_state_var": 2}),
        node(variable=("StateVar", state)),
        node(variable=("ShardedVariable", sharded)),
        keys=(state, sharded, "data/.ATTRIBUTES/ITERATOR_STATE", "table/.ATTRIBUTES/table-keys"),
    )
    assert {name: role for name, (_, role) in result.items()} == {
        "random/_state_var": "counter",
        "wide": "weight",
        "data/.ATTRIBUTES/ITERATOR_STATE": "constant",
        "table/.ATTRIBUTES/table-keys": "constant",
    }


def test_keras_random_numbers_below_a_mere_collection() -> None:
    """Where a model was exported, its variables have no path but the collection of all of them."""
    key = f"variables/0{VALUE}"
    nodes = node({"variables": 1}), node({"0": 2}), node(variable=("seed/seed_generator_state", key))
    assert named(*nodes, keys=(key,)) == {"seed/seed_generator_state": (key, "counter")}


def test_however_a_checkpoint_was_saved(tmp_path: Path) -> None:
    """By a manager, asynchronously, in shards of a size; of lists, dicts, tuples, and state that is Python's."""
    tf = need("tensorflow")

    class State(tf.train.experimental.PythonState):  # type: ignore[name-defined, misc]
        def serialize(self) -> bytes:
            return b"state"

        def deserialize(self, text: bytes) -> None:
            raise AssertionError(text)

    value = np.arange(400, dtype=np.float32).reshape(100, 4)
    rows = [tf.Variable(value[:60], name="w/part_0"), tf.Variable(value[60:], name="w/part_1")]
    sharded = importlib.import_module("tensorflow.python.distribute.sharded_variable").ShardedVariable(rows)
    policies = importlib.import_module("tensorflow.python.checkpoint.sharding.sharding_policies")
    objects = {
        "net": {"a": [tf.Module(), tf.Module()], "b/c": (tf.Variable(["x", "y"]),)},
        "wide": sharded,
        "large": tf.Variable(value),
        "state": State(),
    }
    for n, part in enumerate(objects["net"]["a"]):
        part.v = tf.Variable([float(n)])
    checkpoint = tf.train.Checkpoint(**objects)
    manager = tf.train.CheckpointManager(checkpoint, str(tmp_path / "managed"), max_to_keep=2)
    for step in (5, 10, 15):
        manager.save(checkpoint_number=step)
    checkpoint.save(str(tmp_path / "later" / "c"), options=tf.train.CheckpointOptions(enable_async=True))
    checkpoint.sync()
    policy = policies.MaxShardSizePolicy(500)
    checkpoint.save(
        str(tmp_path / "shards" / "c"), options=tf.train.CheckpointOptions(experimental_sharding_callback=policy)
    )
    assert sum(".data-" in f.name for f in (tmp_path / "shards").iterdir()) > 5
    for folder in ("managed", "later", "shards"):
        with detect.open_source(tmp_path / folder) as source:
            assert {n: (s.shape, s.role) for n, s in source.specs().items()} == {
                "net/a/0/v": ((1,), "weight"),
                "net/a/1/v": ((1,), "weight"),
                "net/b/c/0": ((2,), "weight"),
                "wide": ((100, 4), "weight"),
                "large": ((100, 4), "weight"),
                "state/.ATTRIBUTES/py_state": ((), "constant"),
                "save_counter": ((), "counter"),
            }
            assert source.path.endswith("-15") == (folder == "managed")
            assert source.read("net/a/1/v").tolist() == [1]
            assert source.read("net/b/c/0").tolist() == [b"x", b"y"]
            for name in ("wide", "large"):
                assert source.read(name).tobytes() == value.tobytes()
                assert source.read(name, (slice(58, 63), slice(1, 2))).tobytes() == value[58:63, 1:2].tobytes()


# Whatever is in a graph ----------------------------------------------------------------------------------------------

QUICK = settings(deadline=None, max_examples=150)
SMALL = Budget(tensor_bytes=1 << 24, header_bytes=1 << 24)
GRAPHS = {}
for _name in ("masked_text_classifier", "v2_lstm"):
    with tf_bundle.open_source(fixture(f"c_keras/{_name}").path("checkpoint_object_based")) as _source:
        GRAPHS[_name] = (_source.read(tf_objects.GRAPH_KEY).item(), list(_source.raw_names()))


@given(st.sampled_from(sorted(GRAPHS)), st.data())
@QUICK
def test_object_graphs(which: str, draw: st.DataObject) -> None:
    graph, keys = GRAPHS[which]
    with contextlib.suppress(Error):
        named, aliases = tf_objects.from_graph(mutated(draw, graph), "f", keys, lambda *_: True, SMALL)
        # Whatever the names, no tensor is lost and none is listed twice.
        assert sorted([key for key, _ in named.values()] + list(aliases)) == sorted(keys)


def test_paths_that_multiply() -> None:
    """An object with a long name and many children: each child's path has it."""
    children = 300
    nodes = [node({"a" * 60_000: 1}), node({f"c{n}": 2 + n for n in range(children)}), *[b""] * children]
    graph = b"".join(bytes_field(1, n) for n in nodes)
    assert len(graph) < 70_000
    with pytest.raises(BudgetExceeded, match=r"^f: names: 16,8\d\d,\d{3} bytes, at most 16,777,216 for a file of 6"):
        tf_objects.from_graph(graph, "f", (), lambda *_: True, Budget())
    assert tf_objects.from_graph(graph, "f", (), lambda *_: True, Budget(spread=1000)) == ({}, {})


def test_a_slot_of_very_many_scopes() -> None:
    """The scopes around a name are looked up, but not without end: each is as long as the name."""
    asked: list[str] = []

    def shape_of(name: str) -> None:
        asked.append(name)

    spec = TensorSpec.of(np.dtype("f4"), (2,))
    assert tf_objects.role_of("a/" * 5000 + "Adam", spec, shape_of) == "weight"
    assert len(asked) == 100
    assert tf_objects.role_of("a/" * 100 + "w/Adam", spec, lambda name: (2,) if name == "w" else None) == "weight"
    assert tf_objects.role_of("a/" * 99 + "w/Adam", spec, lambda name: (2,) if name == "w" else None) == "slot"
    full = "adam/" + "_x" * 5000
    found = tf_objects._optimizer_name("o/_variables/0", full, None, {}, {}, {"_x": "w"})
    assert found == ("o/_variables/0", "optimizer")


@given(st.binary(max_size=60))
@QUICK
def test_slices_and_keys(data: bytes) -> None:
    with contextlib.suppress(Error):
        cut = _slices.slice_of(data, "f")
        _slices.slice_key(data, cut)
        _slices.boxes([cut], (3,) * len(cut), "f", "v")
    with contextlib.suppress(Error):
        tf_objects.from_graph(bytes_field(1, data), "f", ("a",), lambda *_: True, SMALL)


@pytest.mark.parametrize(
    ("full", "known", "found"),
    [
        ("Adam/m/lstm/kernel", {"lstm/kernel": "net/kernel"}, ("net/kernel/.OPTIMIZER_SLOT/optimizer/m", "slot")),
        ("adam/lstm_kernel_v", {"lstm_kernel": "net/kernel"}, ("net/kernel/.OPTIMIZER_SLOT/optimizer/v", "slot")),
        ("adam/lstm_kernel_a_b", {"lstm_kernel": "net/kernel"}, ("net/kernel/.OPTIMIZER_SLOT/optimizer/a_b", "slot")),
        ("adam/lstm_kernel_v", {"kernel": "net/kernel"}, ("optimizer/_variables/3", "optimizer")),
        ("adam/_v", {"kernel": "net/kernel"}, ("optimizer/_variables/3", "optimizer")),
        ("adam/iteration", {"iteration": "net/kernel"}, ("optimizer/_variables/3", "optimizer")),
        ("", {"": "net/kernel"}, ("optimizer/_variables/3", "optimizer")),
    ],
)
def test_whose_slot_it_is(full: str, known: dict[str, str], found: tuple[str, str]) -> None:
    """The longest variable's name before an underscore; what names none is the optimizer's own."""
    key = "optimizer/_variables/3/.ATTRIBUTES/VARIABLE_VALUE"
    assert tf_objects._optimizer_name(key, full, None, {}, known, known) == found


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("a/kernel", "weight"),
        ("step", "counter"),
        ("a/step", "weight"),
        ("save_counter", "counter"),
        ("keras_api/metrics/0/total", "counter"),
        ("model/keras_api/metrics/0/total", "counter"),
        ("keras_api/layers/0/total", "weight"),
        ("optimizer/rate", "optimizer"),
        ("a/optimizer/rate", "weight"),
    ],
)
def test_roles_by_path(path: str, role: str) -> None:
    assert tf_objects._plain_role(path) == role
