from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.support import need
from tests.targets.graphs import initialised, legacy, lookup, numbers, value
from weightport.errors import Error, PlanError, RefusedError
from weightport.targets import _tf_values
from weightport.targets.tf_getter import make_getter
from weightport.tensors import Array, Index, TensorSpec, Value

tf = need("tensorflow")
v1 = tf.compat.v1

W = numbers(3, 4, seed=1)


def names(graph: Any) -> list[str]:
    return [v.name for v in graph.get_collection("variables")]


@pytest.fixture
def graph() -> Any:
    with tf.Graph().as_default() as graph:
        yield graph


@pytest.mark.parametrize("resource", [True, False, None])
def test_an_initial_value_is_what_the_initializer_yields_each_time(graph: Any, resource: bool | None) -> None:
    with v1.variable_scope("encoder", custom_getter=make_getter(lookup({"encoder/w": W})), use_resource=resource):
        w = v1.get_variable("w", [3, 4])
        own = v1.get_variable("own", [2], initializer=v1.ones_initializer())
    assert names(graph) == ["encoder/w:0", "encoder/own:0"]
    assert [v.name for v in v1.trainable_variables()] == names(graph)
    with initialised(tf, graph) as session:
        np.testing.assert_array_equal(session.run(w), W)
        np.testing.assert_array_equal(session.run(own), [1, 1])
        session.run(w.assign(tf.zeros([3, 4])))
        session.run(w.initializer)
        np.testing.assert_array_equal(session.run(w), W)


def test_the_variable_asks_for_whole_value_only_when_the_initializer_runs(graph: Any) -> None:
    asked: list[Index] = []
    with v1.variable_scope("e", custom_getter=make_getter(lambda name, _: value(name, W, asked=asked))):
        v1.get_variable("w", [3, 4])
    assert asked == []
    with initialised(tf, graph):
        assert asked == [None]


@pytest.mark.parametrize("resource", [True, False])
def test_a_constant_is_one_const_op_and_no_variable(graph: Any, resource: bool) -> None:
    with v1.variable_scope("encoder", custom_getter=make_getter(lookup({"encoder/w": W}, True)), use_resource=resource):
        w = v1.get_variable("w", [3, 4], regularizer=tf.nn.l2_loss)
    assert w.op.type == "Const"
    assert w.name == "encoder/w:0"
    assert names(graph) == []
    assert v1.trainable_variables() == []
    assert graph.get_collection("regularization_losses") == []
    np.testing.assert_array_equal(tf.get_static_value(w), W)
    with v1.Session() as session:
        np.testing.assert_array_equal(session.run(w @ tf.ones([4, 1])), W @ np.ones([4, 1], np.float32))


def test_the_lookup_gets_the_full_name_and_the_spec(graph: Any) -> None:
    seen: list[tuple[str, TensorSpec]] = []

    def look(name: str, spec: TensorSpec) -> None:
        seen.append((name, spec))

    with v1.variable_scope("a", custom_getter=make_getter(look)), v1.variable_scope("b"):
        v1.get_variable("w", [3, 4])
        v1.get_variable("h", [], dtype=tf.bfloat16)
        v1.get_variable("v", initializer=np.zeros([2, 5]))
        v1.get_variable("i", initializer=tf.constant([1, 2]))
        v1.get_variable("l", initializer=[1.5, 2.5])
        v1.get_variable("f", initializer=lambda: tf.zeros([7], tf.int64))
        v1.get_variable("p", [6, 2], partitioner=v1.fixed_size_partitioner(3))
    assert seen == [
        ("a/b/w", TensorSpec.of("float32", [3, 4])),
        ("a/b/h", TensorSpec.of("bfloat16", [])),
        ("a/b/v", TensorSpec.of("float64", [2, 5])),
        ("a/b/i", TensorSpec.of("int32", [2])),
        ("a/b/l", TensorSpec.of("float32", [2])),
        ("a/b/f", TensorSpec.of("int64", [7])),
        ("a/b/p", TensorSpec.of("float32", [6, 2])),
    ]
    assert len(names(graph)) == 9


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("given", [np.zeros([3, 4], np.float32), "tensor", "callable", [[0.0] * 4] * 3])
def test_the_models_own_initial_value_is_ignored(graph: Any, given: Any, constant: bool) -> None:
    if isinstance(given, str):
        given = tf.zeros([3, 4]) if given == "tensor" else lambda: tf.zeros([3, 4])
    with v1.variable_scope("e", custom_getter=make_getter(lookup({"e/w": W}, constant))):
        w = v1.get_variable("w", initializer=given)
    with initialised(tf, graph) as session:
        np.testing.assert_array_equal(session.run(w), W)


@pytest.mark.usefixtures("graph")
def test_an_initializer_whose_shape_is_open_is_an_error_that_names_the_variable() -> None:
    with (
        v1.variable_scope("e", custom_getter=make_getter(lookup({"e/w": W}))),
        pytest.raises(PlanError, match=r"variable 'e/w': its shape is known to its initializer only, which says: "),
    ):
        v1.get_variable("w", initializer=lambda shape: tf.zeros(shape))
    with (
        v1.variable_scope("e", custom_getter=make_getter(lookup({"e/w": W}))),
        pytest.raises(PlanError, match=r"variable 'e/w': its shape \(None, 4\) is not fully defined"),
    ):
        v1.get_variable("w", [None, 4], validate_shape=False, initializer=v1.zeros_initializer())


@pytest.mark.parametrize("constant", [True, False])
def test_a_mismatch_names_the_variable_and_both_sides_and_creates_nothing(graph: Any, constant: bool) -> None:
    getter = make_getter(lookup({"e/w": W, "e/d": W.astype(np.float64)}, constant))
    with v1.variable_scope("e", custom_getter=getter):
        with pytest.raises(PlanError) as caught:
            v1.get_variable("w", [4, 3])
        assert str(caught.value) == "variable 'e/w': shape [4, 3] in the model, [3, 4] in the pretrained value"
        with pytest.raises(PlanError) as caught:
            v1.get_variable("d", [3, 4])
        assert str(caught.value) == (
            "variable 'e/d': dtype float32 in the model, float64 in the pretrained value; 'cast' converts the dtype"
        )
    assert graph.get_operations() == []


@pytest.mark.parametrize("constant", [True, False])
def test_reuse_gives_the_same_tensor_in_nested_and_reentered_scopes(graph: Any, constant: bool) -> None:
    getter = make_getter(lookup({"a/b/w": W}, constant))
    with v1.variable_scope("a", custom_getter=getter) as a, v1.variable_scope("b") as b:
        first = v1.get_variable("w", [3, 4])
    with v1.name_scope("tower_1"), v1.variable_scope(a, reuse=True), v1.variable_scope("b"):
        assert v1.get_variable("w", [3, 4]) is first
        assert v1.get_variable("w") is first
    with v1.variable_scope(b, reuse=v1.AUTO_REUSE):
        assert v1.get_variable("w", [3, 4]) is first
        assert first.name == "a/b/w:0"
    # A second getter over the same graph, as a second call of the model function makes it.
    again = make_getter(lookup({"a/b/w": W}, constant))
    with v1.variable_scope("a", custom_getter=again, reuse=v1.AUTO_REUSE), v1.variable_scope("b"):
        assert v1.get_variable("w", [3, 4]) is first
    assert len([op for op in graph.get_operations() if op.name.startswith("a/b/w") and op.type == "Const"]) == constant


@pytest.mark.usefixtures("graph")
def test_reuse_of_a_constant_is_refused_as_of_a_variable() -> None:
    getter = make_getter(lookup({"a/w": W}, True))
    with v1.variable_scope("a", custom_getter=getter, reuse=True), pytest.raises(ValueError, match="does not exist"):
        v1.get_variable("w", [3, 4])
    with v1.variable_scope("a", custom_getter=getter):
        v1.get_variable("w", [3, 4])
        with pytest.raises(ValueError, match="it exists already, as a constant"):
            v1.get_variable("w", [3, 4])
    free = make_getter(lambda name, spec: Value(name, spec, True, lambda _: np.zeros(spec.shape, spec.dtype)))
    with v1.variable_scope("a", custom_getter=free, reuse=True):
        with pytest.raises(
            ValueError, match=re.escape("float32 [4] is asked for, and it exists as a constant float32 [3, 4]")
        ):
            v1.get_variable("w", [4])
        with pytest.raises(Error, match="float64"):
            v1.get_variable("w", [3, 4], dtype=tf.float64)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("resource", [True, False])
@pytest.mark.parametrize("shape", [[3, 4], None])
@pytest.mark.usefixtures("graph")
def test_a_variable_made_without_the_getter_is_an_error(
    constant: bool, resource: bool, shape: list[int] | None
) -> None:
    with v1.variable_scope("a", use_resource=resource):
        v1.get_variable("w", [3, 4])
    with (
        v1.variable_scope("a", custom_getter=make_getter(lookup({"a/w": W}, constant)), reuse=True),
        pytest.raises(PlanError, match="variable 'a/w': it exists already, with an initial value of its own"),
    ):
        v1.get_variable("w", shape)


def test_two_graphs_have_a_constant_each() -> None:
    getter = make_getter(lookup({"a/w": W}, True))
    made = []
    for _ in range(2):
        with tf.Graph().as_default() as graph, v1.variable_scope("a", custom_getter=getter):
            made.append(v1.get_variable("w", [3, 4]))
            assert made[-1].graph is graph
    assert made[0] is not made[1]


def test_a_nested_getter_of_the_model_is_called(graph: Any) -> None:
    calls = []

    def outer(getter: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return getter(name, *args, **kwargs)

    def renames(getter: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        return getter(name + "_ema", *args, **kwargs)

    def positional(getter: Any, name: str, shape: Any, dtype: Any, initializer: Any, **kwargs: Any) -> Any:
        return getter(name, shape, dtype, initializer, **kwargs)

    ours = make_getter(lookup({"a/b/w_ema": W}))
    with v1.variable_scope("a", custom_getter=outer), v1.variable_scope("b", custom_getter=ours) as scope:
        pass
    with v1.variable_scope(scope, custom_getter=positional) as inner, v1.variable_scope(inner, custom_getter=renames):
        w = v1.get_variable("w", [3, 4])
    assert w.name == "a/b/w_ema:0"
    assert calls == ["a/b/w_ema"]
    with initialised(tf, graph) as session:
        np.testing.assert_array_equal(session.run(w), W)


@pytest.mark.parametrize("resource", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
def test_each_part_of_a_partitioned_variable_reads_its_own_slice(graph: Any, resource: bool, axis: int) -> None:
    whole = numbers(7, 5)
    asked: list[Index] = []
    with v1.variable_scope(
        "e",
        custom_getter=make_getter(lambda name, _: value(name, whole, asked=asked)),
        partitioner=v1.fixed_size_partitioner(3, axis),
        use_resource=resource,
    ):
        emb = v1.get_variable("emb", [7, 5])
        scalarless = tf.convert_to_tensor(emb)
    assert len(names(graph)) == 3
    with initialised(tf, graph) as session:
        np.testing.assert_array_equal(session.run(scalarless), whole)
    cuts = [(0, 3), (3, 5), (5, 7)] if axis == 0 else [(0, 2), (2, 4), (4, 5)]
    full = slice(0, 5) if axis == 0 else slice(0, 7)
    wanted = [(slice(*c), full) if axis == 0 else (full, slice(*c)) for c in cuts]
    assert sorted(asked, key=str) == sorted(wanted, key=str)


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("strategy", ["mod", "div"])
def test_a_partitioned_constant_finds_the_rows_that_the_variable_would(graph: Any, strategy: str, shards: int) -> None:
    whole = numbers(7, 5)
    found = []
    ids = tf.constant([[0, 1, 2], [6, 5, 3]])
    for scope, constant in (("v", False), ("c", True)):
        getter = make_getter(lookup({f"{scope}/emb": whole, f"{scope}/s": np.float32(4)}, constant))
        with v1.variable_scope(scope, custom_getter=getter, partitioner=v1.fixed_size_partitioner(shards)):
            emb = v1.get_variable("emb", [7, 5])
            assert v1.get_variable_scope().partitioner is not None
            assert v1.get_variable("s", []).shape == []
        found.append((v1.nn.embedding_lookup(emb, ids, partition_strategy=strategy), tf.concat([emb, emb], 1)))
        assert len(list(emb)) == shards
        assert emb.dtype == tf.float32
        assert emb.get_shape() == [7, 5]
    with v1.variable_scope("c", custom_getter=getter, reuse=True):
        assert v1.get_variable("emb", [7, 5]) is emb
    assert names(graph) == [f"v/emb/part_{i}:0" for i in range(shards)] + ["v/s:0"]
    with initialised(tf, graph) as session:
        variable, constant_one = session.run(found)
    for left, right in zip(variable, constant_one, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.usefixtures("graph")
def test_a_partitioner_gone_wrong_is_an_error() -> None:
    getter = make_getter(lookup({"e/emb": W}, True))
    with (
        v1.variable_scope("e", custom_getter=getter, partitioner=lambda shape, dtype: [2, 2]),  # noqa: ARG005
        pytest.raises(
            PlanError, match=re.escape("variable 'e/emb': its partitioner returned [2, 2] for the shape [3, 4]")
        ),
    ):
        v1.get_variable("emb", [3, 4])


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float64", "complex64", "bool", "int8", "uint16", "int64", "uint64", "bytes"]
)
@pytest.mark.parametrize("shape", [(), (2, 3), (0, 2)])
@pytest.mark.parametrize("constant", [True, False])
def test_every_dtype_arrives_bit_for_bit(graph: Any, dtype: str, shape: tuple[int, ...], constant: bool) -> None:
    count = int(np.prod(shape))
    if dtype == "bytes":
        array = np.array([b"a\0b", b"", b"\xff\0", b"x", b"yy", b"z"][:count], object).reshape(shape)
    else:
        kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
        array = numbers(*shape).astype(kind) if kind.kind not in "iub" else (numbers(*shape) > 0).astype(kind)
    with v1.variable_scope("e", custom_getter=make_getter(lookup({"e/w": array}, constant))):
        w = v1.get_variable("w", shape, dtype=tf.as_dtype(array.dtype))
    with initialised(tf, graph) as session:
        got = np.asarray(session.run(w), array.dtype)
    assert got.shape == shape
    assert got.tobytes() == array.tobytes() if dtype != "bytes" else got.tolist() == array.tolist()


@pytest.mark.parametrize("shape", [(), (1,), (2,)])
@pytest.mark.parametrize("constant", [True, False])
def test_a_signalling_nan_survives(graph: Any, shape: tuple[int, ...], constant: bool) -> None:
    array = np.full(shape, 0x7FA00001, np.uint32).view(np.float32)
    with v1.variable_scope("e", custom_getter=make_getter(lookup({"e/w": array}, constant))):
        w = v1.get_variable("w", shape)
    with initialised(tf, graph) as session:
        assert session.run(w).tobytes() == array.tobytes()


@pytest.mark.parametrize("resource", [True, False])
def test_training_never_writes_into_what_produce_returned(graph: Any, resource: bool) -> None:
    room = np.empty(64 * 4 + 64, np.uint8)  # aligned: TensorFlow would borrow it
    start = -room.ctypes.data % 64
    kept = room[start : start + 256].view(np.float32)
    kept[:] = 1
    with v1.variable_scope("e", custom_getter=make_getter(lookup({"e/w": kept})), use_resource=resource):
        w = v1.get_variable("w", [64])
        add = w.assign_add(tf.ones([64]))
    with initialised(tf, graph) as session:
        kept[:] = 5
        np.testing.assert_array_equal(session.run(w), np.ones(64))
        session.run(add)
        np.testing.assert_array_equal(session.run(w), np.full(64, 2))
        np.testing.assert_array_equal(kept, np.full(64, 5))
        session.run(w.initializer)
        np.testing.assert_array_equal(session.run(w), np.full(64, 5))


def test_what_is_produced_must_be_what_was_planned(graph: Any) -> None:
    wrong = Value("e/w", TensorSpec.of("float32", [3, 4]), False, lambda _: np.zeros([4, 3], np.float32))
    with v1.variable_scope("e", custom_getter=make_getter(lambda *_: wrong)):
        v1.get_variable("w", [3, 4])
    with pytest.raises(
        tf.errors.OpError, match=r"variable 'e/w': float32 \[3, 4\] was planned, float32 \[4, 3\] was produced"
    ):
        initialised(tf, graph)


def test_the_graph_does_not_swell_with_the_weights(graph: Any) -> None:
    def look(name: str, spec: TensorSpec) -> Value:
        def produce(index: Index) -> Array:
            raise AssertionError(f"{name} {index} is not to be read")

        return Value(name, spec, False, produce)

    with v1.variable_scope("e", custom_getter=make_getter(look)):
        for i in range(40):  # 10 GB
            v1.get_variable(f"w{i}", [8192, 8192])
    ours = graph.as_graph_def().ByteSize()
    with tf.Graph().as_default() as plain:
        for i in range(40):
            v1.get_variable(f"w{i}", [8192, 8192])
    assert ours < plain.as_graph_def().ByteSize() + 40 * 1024


def test_constants_over_the_limit_are_refused_with_the_choice_or_held_outside(
    graph: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tf_values, "EMBED_LIMIT", 100)
    weights = {"e/a": W, "e/b": W + 1, "e/c": np.float32(1)}  # 48 bytes, 48 bytes, 4 bytes: the third fits exactly
    weights["e/d"] = np.float32(2)
    with v1.variable_scope("e", custom_getter=make_getter(lookup(weights, True))):
        for name in "ab":
            v1.get_variable(name, [3, 4])
        v1.get_variable("c", [])
        with pytest.raises(RefusedError) as caught:
            v1.get_variable("d", [])
    assert str(caught.value) == (
        "constant 'e/d': the constants of this graph come to 104 bytes, a GraphDef can hold 100; "
        "large_constants='variable' holds them outside the graph as variables that are not trainable, "
        "or give some of them as: initial"
    )
    assert names(graph) == []
    with v1.variable_scope("e", custom_getter=make_getter(lookup(weights, True), large_constants="variable")):
        held = v1.get_variable("d", [])
    assert names(graph) == ["e/d:0"]
    assert v1.trainable_variables() == []
    with initialised(tf, graph) as session:
        assert session.run(held) == 2
    with pytest.raises(RefusedError, match="large_constants is 'embed': it can be 'refuse' or 'variable'"):
        make_getter(lookup({}), large_constants="embed")


@pytest.mark.parametrize("v2", [True, False])
@pytest.mark.parametrize("constant", [True, False])
def test_a_variable_asked_for_inside_a_loop_stands_outside(graph: Any, v2: bool, constant: bool) -> None:
    getter = make_getter(lookup({"e/w": W[:3, :3], "e/b": W[:, 0]}, constant))
    before = v1.control_flow_v2_enabled()
    (v1.enable_control_flow_v2 if v2 else v1.disable_control_flow_v2)()
    try:
        with v1.variable_scope("e", custom_getter=getter, reuse=v1.AUTO_REUSE):

            def step(i: Any, h: Any) -> Any:
                def branch() -> Any:
                    return h @ v1.get_variable("w", [3, 3])

                h = tf.cond(i < 5, branch, lambda: h)
                return i + 1, h + v1.get_variable("b", [3])

            _, h = tf.while_loop(lambda i, _: i < 3, step, [0, tf.ones([2, 3])])
            w, b = v1.get_variable("w", [3, 3]), v1.get_variable("b", [3])
    finally:
        (v1.enable_control_flow_v2 if before else v1.disable_control_flow_v2)()
    assert w.graph is graph
    expected = np.ones([2, 3], np.float32)
    for _ in range(3):
        expected = expected @ W[:3, :3] + W[:, 0]
    with initialised(tf, graph) as session:
        got, w_value, b_value = session.run([h, w, b])
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_array_equal(w_value, W[:3, :3])
    np.testing.assert_array_equal(b_value, W[:, 0])


def build_cells(kind: str) -> Any:
    cells = legacy("rnn_cell")
    x = tf.constant(numbers(2, 5, 3, seed=9))
    if kind == "dynamic":
        return v1.nn.dynamic_rnn(cells.LSTMCell(4, use_peepholes=True, num_proj=2), x, dtype=tf.float32)[0]
    if kind == "static":
        return v1.nn.static_rnn(cells.BasicLSTMCell(4), tf.unstack(x, axis=1), dtype=tf.float32)[0]
    if kind == "multi":
        stack = cells.MultiRNNCell([cells.GRUCell(4), cells.BasicRNNCell(3)])
        return v1.nn.dynamic_rnn(stack, x, dtype=tf.float32)[0]
    if kind == "bidirectional":
        return v1.nn.bidirectional_dynamic_rnn(cells.GRUCell(4), cells.LSTMCell(3), x, dtype=tf.float32)[0]
    layers = legacy("layers")
    h = layers.conv1d(x, 4, 2, name="conv")
    h = layers.dense(h, 4, kernel_regularizer=tf.nn.l2_loss, name="dense")
    return layers.batch_normalization(layers.dense(h, 4, name="dense", reuse=True), name="norm")


@pytest.mark.parametrize("kind", ["dynamic", "static", "multi", "bidirectional", "layers"])
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("resource", [True, False])
def test_tf1_cells_and_layers_compute_with_the_pretrained_values(kind: str, constant: bool, resource: bool) -> None:
    arrays: dict[str, np.ndarray] = {}
    with tf.Graph().as_default() as graph, v1.variable_scope("encoder"):
        out = build_cells(kind)
        for i, v in enumerate(v1.global_variables()):
            arrays[v.op.name] = np.abs(numbers(*v.shape.as_list(), seed=i)) / 2
        with v1.Session() as session:
            for v in v1.global_variables():
                v.load(arrays[v.op.name], session)
            expected = session.run(out)
    with tf.Graph().as_default() as graph:
        with v1.variable_scope("encoder", custom_getter=make_getter(lookup(arrays, constant)), use_resource=resource):
            out = build_cells(kind)
        assert names(graph) == ([] if constant else [f"{name}:0" for name in arrays])
        assert v1.trainable_variables() == [] or not constant
        with initialised(tf, graph) as session:
            got = session.run(out)
    for left, right in zip(tf.nest.flatten(expected), tf.nest.flatten(got), strict=True):
        np.testing.assert_array_equal(left, right)


def test_constants_are_made_in_graph_mode_only() -> None:
    with (
        v1.variable_scope("e", custom_getter=make_getter(lookup({"e/w": W}, True))),
        pytest.raises(RefusedError, match="variable 'e/w': the getter makes constants in graph mode only"),
    ):
        v1.get_variable("w", [3, 4])


def test_a_restored_checkpoint_wins(graph: Any, tmp_path: Any) -> None:
    with v1.variable_scope("e", custom_getter=make_getter(lookup({"e/w": W}))):
        w = v1.get_variable("w", [3, 4])
    saver = v1.train.Saver()
    with initialised(tf, graph) as session:
        session.run(w.assign(tf.zeros([3, 4])))
        saver.save(session, str(tmp_path / "m.ckpt"))
        session.run(w.initializer)
        saver.restore(session, str(tmp_path / "m.ckpt"))
        np.testing.assert_array_equal(session.run(w), np.zeros([3, 4]))


def test_a_finished_module_that_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorflow", None)
    with pytest.raises(Error, match=re.escape("needs tensorflow; pip install 'weightport[tensorflow]'")):
        _tf_values.tensorflow()
