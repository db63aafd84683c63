"""Graphs with other values in them: TensorFlow runs the result, and it computes what the original does with them."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.formats import _graphdef
from tests.formats._graphdef import attr, const, function, graph, meta_graph, node, shape_proto
from tests.formats._graphdef import write as save
from tests.formats._mutated import mutated
from tests.formats.test_tf_bundle import bytes_field, number_field
from tests.support import Fixture, fixture, fixtures, need
from weightport.errors import Error, FormatError, RefusedError
from weightport.formats import _tf_freeze, _tf_uses, detect, tf_graph_write
from weightport.formats._message import MOST_BYTES
from weightport.tensors import TensorSpec

Values = dict[str, np.ndarray]


def tiles_of(values: Values) -> Callable[[str], Iterator[np.ndarray]]:
    """In tiles of two rows."""

    def tiles(name: str) -> Iterator[np.ndarray]:
        value = values[name]
        if not value.ndim or not value.size:
            yield value
        else:
            for at in range(0, len(value), 2):
                yield value[at : at + 2]

    return tiles


def put(path: Path, like: str, values: Values, constants: Collection[str] = (), kept: Collection[str] = ()) -> str:
    """A graph with those values; what of ``like`` is not among them is kept."""
    with detect.open_source(like) as source:
        specs = {n: s for n, s in source.specs().items() if s.role != "constant" or n in values}
    kept = {*kept, *(n for n in specs if n not in values)}
    tf_graph_write.write(str(path), specs, tiles_of(values), like=like, constants=constants, kept=kept)
    return str(path)


def drawn(specs: dict[str, TensorSpec], seed: int = 5) -> Values:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=s.shape).astype(s.dtype) for n, s in specs.items()}


def ops_of(path: str) -> dict[str, Any]:
    """Node -> NodeDef, of a GraphDef or a MetaGraphDef."""
    tf = need("tensorflow")
    if path.endswith(".meta"):
        message = tf.compat.v1.MetaGraphDef.FromString(Path(path).read_bytes()).graph_def
    else:
        message = tf.compat.v1.GraphDef.FromString(Path(path).read_bytes())
    return {n.name: n for n in message.node}


# Models --------------------------------------------------------------------------------------------------------------


def dense(tf: Any, x: Any) -> Any:
    v1 = tf.compat.v1
    with v1.variable_scope("enc"):
        w = v1.get_variable("w", [3, 4])
        b = v1.get_variable("b", [4], initializer=v1.zeros_initializer())
    with v1.variable_scope("head"):
        return tf.nn.relu(x @ w + b) @ v1.get_variable("w", [4, 2])


def embedding(tf: Any, x: Any) -> Any:
    v1 = tf.compat.v1
    table = v1.get_variable("table", [5, 3])
    ids = tf.constant([[0, 1], [4, 2]])
    nd = tf.gather_nd(table, [[1], [3]])
    return tf.gather(table, ids), nd, tf.shape(table), tf.nn.embedding_lookup(table, [2, 2]), x + 1


def partitioned(tf: Any, x: Any) -> Any:
    v1 = tf.compat.v1
    rows = v1.get_variable("rows", [7, 3], partitioner=v1.fixed_size_partitioner(3))
    columns = v1.get_variable("columns", [3, 7], partitioner=v1.fixed_size_partitioner(2, axis=1))
    return x @ tf.convert_to_tensor(columns) @ tf.convert_to_tensor(rows), tf.nn.embedding_lookup(rows, [6, 0, 3])


def branches(tf: Any, x: Any) -> Any:
    v1 = tf.compat.v1
    w, b = v1.get_variable("w", [3, 3]), v1.get_variable("b", [3])
    return tf.cond(tf.reduce_sum(x) > 0, lambda: x @ w + b, lambda: x - tf.matmul(x, w) * b)


def loop(tf: Any, x: Any) -> Any:
    v1 = tf.compat.v1
    w, b = v1.get_variable("w", [3, 3]), v1.get_variable("b", [3])
    _, y = v1.while_loop(lambda i, _: i < 3, lambda i, h: (i + 1, tf.tanh(h @ w + tf.gather(w, 0) + b)), [0, x])
    return y


def trained(tf: Any, x: Any) -> Any:
    y = dense(tf, x)
    v1 = tf.compat.v1
    step = v1.train.get_or_create_global_step()
    loss = tf.reduce_mean(y**2)
    train = v1.train.AdamOptimizer(0.1).minimize(loss, global_step=step, name="train")
    average = tf.compat.v1.train.ExponentialMovingAverage(0.9)
    with tf.control_dependencies([train]):
        v1.add_to_collection("train_op", average.apply(v1.trainable_variables()))
    return y


def sparsely_trained(tf: Any, x: Any) -> Any:
    v1 = tf.compat.v1
    table = v1.get_variable("table", [5, 3])
    w = v1.get_variable("w", [3, 3])
    y = tf.gather(table, [0, 2]) @ w
    for optimizer in (v1.train.AdamOptimizer(0.1), v1.train.GradientDescentOptimizer(0.1)):
        v1.add_to_collection("train_op", optimizer.minimize(tf.reduce_mean(y**2)))
    return y, x * 1


MODELS = {f.__name__: f for f in (dense, embedding, partitioned, branches, loop, trained, sparsely_trained)}
X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


class Built:
    """A model as TensorFlow saves it, and what it computes with other values."""

    def __init__(self, folder: Path, model: str, *, resource: bool, control_flow_v2: bool = False) -> None:
        tf = self.tf = need("tensorflow")
        v1 = tf.compat.v1
        self.meta, self.pb = str(folder / "model.meta"), str(folder / "model.pb")
        (v1.enable_control_flow_v2 if control_flow_v2 else v1.disable_control_flow_v2)()
        try:
            with tf.Graph().as_default() as built:
                with v1.variable_scope("", use_resource=resource):
                    x = v1.placeholder(tf.float32, [None, 3], "x")
                    outputs = tf.nest.flatten(MODELS[model](tf, x))
                self.fetches = [tf.identity(y, f"y{n}").name for n, y in enumerate(outputs)]
                saver = v1.train.Saver()
                v1.add_to_collection("init", v1.global_variables_initializer())
                v1.add_to_collection("report", v1.report_uninitialized_variables())
                v1.train.export_meta_graph(self.meta, saver_def=saver.as_saver_def())
                Path(self.pb).write_bytes(built.as_graph_def(add_shapes=True).SerializeToString())
                with detect.open_source(self.meta) as source:
                    self.specs = {n: s for n, s in source.specs().items() if s.role == "weight"}
                self.values = drawn(self.specs)
                with v1.Session() as session:
                    session.run(v1.global_variables_initializer())
                    full = dict(self.values)
                    for variable in v1.global_variables():
                        info = variable._get_save_slice_info()
                        name = variable.op.name if info is None else info.full_name
                        if name in full:
                            cut = () if info is None else tuple(
                                slice(o, o + s) for o, s in zip(info.var_offset, info.var_shape, strict=True)
                            )  # fmt: skip
                            variable.load(full[name][cut], session)
                    self.expected = session.run(self.fetches, {"x:0": X})
                    self.checkpoint = saver.save(session, str(folder / "model"), write_meta_graph=False)
        finally:
            v1.enable_control_flow_v2()

    def computes(self, session: Any, prefix: str = "") -> None:
        """The outputs are those of the original with these values."""
        found = session.run([prefix + name for name in self.fetches], {f"{prefix}x:0": X})
        for got, want in zip(found, self.expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def some(specs: dict[str, TensorSpec], choice: str) -> set[str]:
    names = [n for n in specs if not n.endswith("/ExponentialMovingAverage")]
    return {"all": set(names), "some": set(names[::2]), "none": set()}[choice]


CASES = [
    (model, resource, v2, choice)
    for model in MODELS
    for resource in (False, True)
    for v2 in (False, True)
    for choice in ("all", "some", "none")
    if (not v2 or (resource and model in ("branches", "loop")))
    and (choice != "none" or model in ("dense", "partitioned"))
]


@pytest.mark.parametrize(("model", "resource", "control_flow_v2", "choice"), CASES)
def test_the_graph_computes_what_the_original_does(
    tmp_path: Path, model: str, resource: bool, control_flow_v2: bool, choice: str
) -> None:
    built = Built(tmp_path, model, resource=resource, control_flow_v2=control_flow_v2)
    tf, v1 = built.tf, built.tf.compat.v1
    constants = some(built.specs, choice)
    out = put(tmp_path / "out.meta", built.meta, built.values, constants)
    left = set(built.specs) - constants
    with tf.Graph().as_default(), v1.Session() as session:
        saver = v1.train.import_meta_graph(out)
        names = {re.sub(r"/part_\d+$", "", v.op.name) for v in v1.global_variables()}
        assert names & set(built.specs) == left
        assert not {re.sub(r"/part_\d+$", "", v.op.name) for v in v1.trainable_variables()} & constants
        session.run(v1.get_collection("init"))
        assert session.run(v1.get_collection("report")[0]).tolist() == []
        built.computes(session)
        if names:
            prefix = saver.save(session, str(tmp_path / "again"), write_meta_graph=False)
            assert {n for n, _ in tf.train.list_variables(prefix)} & set(built.specs) == left
            session.run([v.initializer for v in v1.global_variables()])
            saver.restore(session, prefix)
            built.computes(session)
            saver.restore(session, built.checkpoint)  # one that has the others, too
            built.computes(session)
        else:
            assert saver is None
        for train in v1.get_collection("train_op"):
            session.run(train, {"x:0": X})
    with detect.open_source(out) as source:
        for name in built.specs:
            assert source.read(name).tobytes() == built.values[name].tobytes()


@pytest.mark.parametrize("resource", [False, True])
@pytest.mark.parametrize("model", ["dense", "partitioned", "embedding"])
def test_a_plain_graph(tmp_path: Path, model: str, resource: bool) -> None:
    built = Built(tmp_path, model, resource=resource)
    tf, v1 = built.tf, built.tf.compat.v1
    constants = some(built.specs, "some")
    out = put(tmp_path / "out.pb", built.pb, built.values, constants)
    with tf.Graph().as_default(), v1.Session() as session:
        v1.import_graph_def(v1.GraphDef.FromString(Path(out).read_bytes()), name="in")
        session.run("in/init")
        built.computes(session, "in/")
    with detect.open_source(out) as source:
        assert {n for n, s in source.specs().items() if s.role == "weight"} == set(built.specs)
        for name, value in built.values.items():
            assert source.read(name).tobytes() == value.tobytes()
            assert source.read(name, (slice(1, None),)).tobytes() == value[1:].tobytes()
    # The result as a TARGET: the same values make the same graph, and other ones do not make it grow.
    again = put(tmp_path / "again.pb", out, built.values, constants)
    assert Path(again).stat().st_size <= Path(out).stat().st_size + 8 * len(built.specs)
    third = put(tmp_path / "third.pb", again, drawn(built.specs, 6), constants)
    assert abs(Path(third).stat().st_size - Path(again).stat().st_size) <= 8 * len(built.specs)


# Frozen graphs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [m for m in fixtures("frozen") if m.path("frozen").endswith(".pb")], ids=str)
def test_constants_of_a_frozen_graph(tmp_path: Path, model: Fixture) -> None:
    """Every weight of graphs that TensorFlow 0.12 to 1.15 froze; all else keeps its bytes."""
    like = model.path("frozen")
    with detect.open_source(like) as source:
        weights = {n: s for n, s in source.specs().items() if s.role == "weight"}
        others = {n: source.read(n).tolist() for n, s in source.specs().items() if s.role == "constant"}
    values = drawn(weights)
    out = put(tmp_path / "out.pb", like, values, constants=list(values)[:1])
    with detect.open_source(out) as source:
        for name, value in values.items():
            assert source.read(name).tobytes() == value.tobytes()
        for name, content in others.items():
            np.testing.assert_equal(source.read(name).tolist(), content)
    before, after = ops_of(like), ops_of(out)
    assert list(before) == list(after)
    changed = {n for n in before if before[n] != after[n]}
    assert {re.sub(r"/part_\d+$", "", n).removesuffix("/read") for n in changed} <= set(values)
    own = put(tmp_path / "own.pb", like, {})
    assert Path(own).read_bytes() == Path(like).read_bytes()


@pytest.mark.parametrize(
    "name", ["a_seed_char_lstm", "b_cells/basic_lstm_fb1", "b_cells/gru", "d_checkpoints/partitioned"]
)
def test_a_frozen_fixture_runs_with_the_values_it_had(tmp_path: Path, name: str) -> None:
    """Zeros put in, then the real values again: it computes what that TensorFlow computed."""
    tf = need("tensorflow")
    v1 = tf.compat.v1
    like = fixture(name).path("frozen")
    with detect.open_source(like) as source:
        values = {n: source.read(n) for n, s in source.specs().items() if s.role == "weight"}
    zero = put(tmp_path / "zero.pb", like, {n: np.zeros_like(v) for n, v in values.items()})
    out = put(tmp_path / "out.pb", zero, values)
    outputs = []
    for path in (like, out, zero):
        graph_def = v1.GraphDef.FromString(Path(path).read_bytes())
        taken = {i.partition(":")[0].lstrip("^") for n in graph_def.node for i in n.input}
        last = [n.name for n in graph_def.node if n.name not in taken and n.op not in ("Const", "NoOp", "Placeholder")]
        with tf.Graph().as_default() as made, v1.Session() as session:
            v1.import_graph_def(graph_def, name="")
            feeds = {}
            for op in made.get_operations():
                if op.type == "Placeholder":
                    shape = [d or 2 for d in op.outputs[0].shape.as_list()]
                    size = int(np.prod(shape))
                    ids = op.outputs[0].dtype.is_integer
                    feeds[op.outputs[0]] = (np.arange(size) % 3 if ids else np.linspace(-1, 1, size)).reshape(shape)
            outputs.append(session.run([f"{n}:0" for n in last], feeds))
    for was, again, without in zip(*outputs, strict=True):
        np.testing.assert_array_equal(was, again)
        assert not np.array_equal(was, without)


# Functions, and savers of several shards ------------------------------------------------------------------------------


def test_a_function_of_one_frozen_variable_and_of_one_that_is_left(tmp_path: Path) -> None:
    """Called with either, it is copied for the one; what is only called so is changed in its place."""
    tf = need("tensorflow")
    v1 = tf.compat.v1
    like = str(tmp_path / "model.meta")
    with tf.Graph().as_default():
        with v1.variable_scope("", use_resource=True):
            a, b = v1.get_variable("a", [2, 2]), v1.get_variable("b", [2, 2])
        x = v1.placeholder(tf.float32, [2, 2], "x")

        @tf.function
        def inner(h: Any, w: Any) -> Any:
            return tf.cond(
                tf.reduce_sum(h) > 0, lambda: h @ tf.raw_ops.ReadVariableOp(resource=w, dtype=tf.float32), lambda: h
            )

        @tf.function
        def outer(h: Any) -> Any:
            for _ in tf.range(2):
                h = inner(h, a.handle) + 1
            return h

        only = tf.function(lambda h: h * a)
        y = tf.add_n([outer(x), inner(x, b.handle), inner(x, a.handle), only(x)], name="y")
        v1.train.export_meta_graph(like, saver_def=v1.train.Saver().as_saver_def())
        values = {"a": np.float32([[1, 2], [3, 4]]), "b": np.float32([[-1, 0.5], [0.25, 2]])}
        with v1.Session() as session:
            for variable in (a, b):
                variable.load(values[variable.op.name], session)
            expected = [session.run(y, {x: f}) for f in (np.ones((2, 2)), -np.ones((2, 2)))]
    for constants in ({"a"}, {"b"}, {"a", "b"}):
        out = put(tmp_path / "out.meta", like, values, constants)
        with tf.Graph().as_default(), v1.Session() as session:
            v1.train.import_meta_graph(out)
            session.run(v1.global_variables_initializer())
            for want, f in zip(expected, (np.ones((2, 2)), -np.ones((2, 2))), strict=True):
                np.testing.assert_allclose(session.run("y:0", {"x:0": f}), want, rtol=1e-6)
        names = [
            f.signature.name for f in v1.MetaGraphDef.FromString(Path(out).read_bytes()).graph_def.library.function
        ]
        assert len(names) == len(set(names))
        copies = [n for n in names if "_pretrained_" in n]
        assert all("inner" in n or "cond" in n for n in copies)
        assert bool(copies) == (len(constants) == 1)


def test_functions_of_all_kinds(tmp_path: Path) -> None:
    """Those of TensorFlow 1, whose name is the operation; one branch of several; a loop that hands the variable on."""
    tf = need("tensorflow")
    v1 = tf.compat.v1
    old = importlib.import_module("tensorflow.python.framework.function")
    like = str(tmp_path / "model.meta")
    with tf.Graph().as_default():
        with v1.variable_scope("", use_resource=True):
            w, b = v1.get_variable("w", [2, 2]), v1.get_variable("b", [2])
        x = v1.placeholder(tf.float32, [None, 2], "x")

        @old.Defun(tf.float32, tf.resource, func_name="doubled")
        def doubled(h: Any, handle: Any) -> Any:
            return 2.0 * h @ tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32)

        which = tf.cast(tf.reduce_sum(x), tf.int32)
        branches = [lambda: x @ w, lambda: x + b, lambda: tf.linalg.matvec(w, tf.gather_nd(w, [0]) + b) + x]
        cases = tf.switch_case(which, branches)
        body = tf.function(lambda i, h: (i + 1, h @ w + tf.gather(b, [1, 0])))
        _, looped = tf.while_loop(lambda i, _: i < 3, body, [0, x])
        tf.add_n([doubled(x, w.handle), cases, looped, tf.cast(tf.shape(w)[0], tf.float32) * x], name="y")
        v1.train.export_meta_graph(like, saver_def=v1.train.Saver().as_saver_def())
        values = {"w": np.float32([[1, 2], [3, 4]]), "b": np.float32([-1, 0.5])}
        inputs = [np.float32([[0.5, n - 0.25]]) for n in range(3)]
        with v1.Session() as session:
            for variable in (w, b):
                variable.load(values[variable.op.name], session)
            expected = [session.run("y:0", {x: given}) for given in inputs]
    for constants in ({"w"}, {"b"}, {"w", "b"}):
        out = put(tmp_path / "out.meta", like, values, constants)
        with tf.Graph().as_default(), v1.Session() as session:
            v1.train.import_meta_graph(out)
            session.run(v1.global_variables_initializer())
            for given, want in zip(inputs, expected, strict=True):
                np.testing.assert_allclose(session.run("y:0", {"x:0": given}), want, rtol=1e-6)


def test_a_saver_of_several_shards(tmp_path: Path) -> None:
    """A shard of which nothing is left is not written, nor waited for."""
    tf = need("tensorflow")
    v1 = tf.compat.v1
    like = str(tmp_path / "model.meta")
    with tf.Graph().as_default():
        for n in range(3):
            with tf.device(f"/cpu:{n}"):
                v1.get_variable(f"v{n}", [2, n + 1])
        v1.train.export_meta_graph(like, saver_def=v1.train.Saver(sharded=True).as_saver_def())
    values = {f"v{n}": np.full((2, n + 1), n, np.float32) for n in range(3)}
    out = put(tmp_path / "out.meta", like, values, {"v1"})
    with tf.Graph().as_default(), v1.Session(config=v1.ConfigProto(device_count={"CPU": 3})) as session:
        saver = v1.train.import_meta_graph(out)
        session.run(v1.global_variables_initializer())
        prefix = saver.save(session, str(tmp_path / "again"), write_meta_graph=False)
        assert tf.train.list_variables(prefix) == [("v0", [2, 1]), ("v2", [2, 3])]
        saver.restore(session, prefix)
        assert session.run("v1:0").tolist() == [[1, 1], [1, 1]]


def test_averages_saved_under_the_names_of_the_variables(tmp_path: Path) -> None:
    """Two savers, one of which saves the averages as the variables: the variable is the one of that name."""
    tf = need("tensorflow")
    v1 = tf.compat.v1
    like = str(tmp_path / "model.meta")
    with tf.Graph().as_default():
        v = v1.get_variable("v", [2], initializer=v1.zeros_initializer())
        average = v1.get_variable("v/average", [2], initializer=v1.zeros_initializer())
        x, y = (v1.get_variable(n, [2], initializer=v1.zeros_initializer()) for n in "xy")
        v1.train.Saver({"v": v, "z": x})
        v1.train.Saver({"v": average, "z": y})
        v1.train.export_meta_graph(like)
    out = put(tmp_path / "out.meta", like, {"v": np.float32([1, 2])}, {"v"})
    ops = ops_of(out)
    assert (ops["v"].op, ops["v/average"].op) == ("Const", "VarHandleOp")
    with pytest.raises(
        Error, match=r"^tensor 'z': is what several variables are saved as: 'x', 'y'; keep it: list it under"
    ):
        put(tmp_path / "out.meta", like, {"z": np.float32([1, 2])}, {"z"})


# Refused, with nothing written ---------------------------------------------------------------------------------------

FLOAT = number_field(6, 1)
HANDLE = {"dtype": FLOAT, "shape": bytes_field(7, shape_proto([2]))}


def variable(name: str, op: str = "VarHandleOp", **more: bytes) -> bytes:
    return node(name, op, **HANDLE, **more)


NO_READ = "cannot become a constant: {} uses it in a way that is no read; make it an initial value"
WRITES = "cannot become a constant: {} writes it; make it an initial value, or take a graph without that operation"
RETURNING = bytes_field(
    1, bytes_field(1, b"f") + bytes_field(2, bytes_field(1, b"h")) + bytes_field(3, bytes_field(1, b"r"))
)
RETURNING += bytes_field(4, bytes_field(1, b"r") + bytes_field(2, b"h"))
LOOPING = bytes_field(1, bytes_field(1, b"f") + bytes_field(2, bytes_field(1, b"h"))) + bytes_field(
    3, node("again", "PartitionedCall", "h", f="f", Tin=bytes_field(1, bytes_field(6, b"\x14")))
)
CALL = node("call", "PartitionedCall", "v", f="f", Tin=bytes_field(1, bytes_field(6, b"\x14")))

REFUSED: dict[str, tuple[list[bytes], list[bytes], str]] = {
    "a counter": (
        [variable("v", "VariableV2"), node("up", "AssignAdd", "v", "one")],
        [],
        WRITES.format("AssignAdd 'up'"),
    ),
    "an assignment": (
        [variable("v"), node("set", "AssignVariableOp", "v", "one")],
        [],
        WRITES.format("AssignVariableOp 'set'"),
    ),
    "its slot": (
        [variable("v", "VariableV2"), node("up", "ApplyAdam", "other", "v")],
        [],
        WRITES.format("ApplyAdam 'up'"),
    ),
    "a step that is read": (
        [variable("v", "VariableV2"), node("up", "ApplyAdam", "v", "one"), node("y", "Identity", "up")],
        [],
        WRITES.format("ApplyAdam 'up'"),
    ),
    "an operation nobody knows": ([variable("v"), node("x", "Mystery", "v")], [], NO_READ.format("Mystery 'x'")),
    "a data set": ([variable("v"), node("x", "MapDataset", "one", "v", f="g")], [], NO_READ.format("MapDataset 'x'")),
    "a gather": (
        [variable("v"), node("x", "ResourceGather", "v", "one", batch_dims=1)],
        [],
        "cannot become a constant: ResourceGather 'x' has batch dimensions; make it an initial value",
    ),
    "a function that is not there": (
        [variable("v"), CALL],
        [],
        "cannot become a constant: PartitionedCall 'call' hands it to 'f', which is not in the graph, or takes fewer "
        "arguments",
    ),
    "a function that returns it": (
        [variable("v"), CALL],
        [RETURNING],
        "cannot become a constant: PartitionedCall 'call' returns it; make it an initial value",
    ),
    "a function that calls itself": (
        [variable("v"), CALL],
        [LOOPING],
        "cannot become a constant: PartitionedCall 'f/again' hands it to 'f', which calls itself",
    ),
    "a function that writes": (
        [variable("v"), CALL],
        [
            bytes_field(1, bytes_field(1, b"f") + bytes_field(2, bytes_field(1, b"h")))
            + bytes_field(3, node("sub", "AssignSubVariableOp", "h", "one"))
        ],
        WRITES.format("AssignSubVariableOp 'f/sub'"),
    ),
    "a second holder": (
        [variable("v", shared_name=bytes_field(2, b"s")), variable("w", shared_name=bytes_field(2, b"s"))],
        [],
        "cannot become a constant: VarHandleOp 'w' holds it, too, by its shared name; make it an initial value",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_use_that_forbids_a_constant(tmp_path: Path, case: str) -> None:
    nodes, functions, told = REFUSED[case]
    one = [const("one", 1.0), node("other", "VariableV2", **HANDLE)]
    like = save(tmp_path / "g.pb", graph(*nodes, *one, functions=functions))
    out = tmp_path / "out.pb"
    out.write_bytes(b"old")
    with pytest.raises(Error) as caught:
        put(out, like, {"v": np.float32([1, 2])}, {"v"})
    assert [str(p) for p in caught.value.problems] == [f"variable 'v': {told}"]
    assert out.read_bytes() == b"old"


def test_all_that_is_in_the_way_is_told_at_once(tmp_path: Path) -> None:
    one = const("one", 1.0)
    nodes = [
        variable("v"),
        variable("w"),
        variable("u"),
        node("x", "Mystery", "v"),
        node("set", "AssignVariableOp", "w", "one"),
    ]
    like = save(tmp_path / "g.pb", graph(*nodes, one))
    values = {n: np.float32([1, 2]) for n in "vwu"}
    with pytest.raises(Error) as caught:
        put(tmp_path / "out.pb", like, values, {"v", "w"})
    assert [str(p) for p in caught.value.problems] == [
        f"variable 'u': has no initializer in {like} to give a value to; make it a constant (as: constant), or write a "
        "checkpoint, which holds values of variables",
        "variable 'v': " + NO_READ.format("Mystery 'x'"),
        "variable 'w': " + WRITES.format("AssignVariableOp 'set'"),
    ]
    assert not (tmp_path / "out.pb").exists()


def test_a_graph_that_protobuf_could_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_BYTES == 2**31 - 1
    monkeypatch.setattr(tf_graph_write, "MOST_BYTES", 5000)
    like = save(tmp_path / "g.pb", graph(variable("v"), node("y", "ReadVariableOp", "v", dtype=FLOAT)))

    def never(name: str) -> Iterator[np.ndarray]:
        raise AssertionError(name)

    specs = {"v": TensorSpec.of("float32", (1 << 40,))}
    with pytest.raises(RefusedError) as caught:
        tf_graph_write.write(str(tmp_path / "out.pb"), specs, never, like=like, constants={"v"})
    assert str(caught.value) == (
        f"{tmp_path / 'out.pb'}: would be 4.4 TB, and protobuf reads at most 2 GiB of a graph: 1 tensor does not fit "
        "in; write a checkpoint instead (-o tf-checkpoint:PREFIX), and let the graph keep its variables"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["g.pb"]


def test_values_that_are_not_as_promised(tmp_path: Path) -> None:
    like = save(tmp_path / "g.pb", graph(const("v", np.zeros((3, 2), np.float32))))
    specs = {"v": TensorSpec.of("float32", (3, 2))}
    for tile, told in (
        (np.zeros((2, 2), np.float32), r"2 rows of values for the shape \[3, 2\]"),
        (np.zeros((3, 2)), r"values of float64\[3, 2\] for float32\[3, 2\]"),
    ):
        with pytest.raises(Error, match=told):
            tf_graph_write.write(str(tmp_path / "out.pb"), specs, lambda _, tile=tile: iter([tile]), like=like)
    assert [p.name for p in tmp_path.iterdir()] == ["g.pb"]


# Bytes ---------------------------------------------------------------------------------------------------------------


def test_golden(tmp_path: Path) -> None:
    """A variable, its read and its initializer, and what becomes of them; the rest keeps its bytes."""
    rest = [
        node("init", "NoOp", "^v/Assign"),
        node("y", "Relu", "v/read", T=FLOAT),
        const("zero", np.zeros(2, np.float32)),
    ]
    nodes = [
        variable("v", "VariableV2"),
        node("v/Assign", "Assign", "v", "zero"),
        node("v/read", "Identity", "v", T=FLOAT),
    ]
    versions = bytes_field(4, number_field(1, 134))
    like = save(tmp_path / "g.pb", graph(*nodes, *rest) + versions)
    value = np.float32([1, 2])
    proto = number_field(1, 1) + bytes_field(2, shape_proto([2])) + bytes_field(4, value.tobytes())
    frozen = node("v", "Const", dtype=FLOAT, value=bytes_field(8, proto))
    idle = node("v/Assign", "NoOp")
    out = Path(put(tmp_path / "out.pb", like, {"v": value}, {"v"}))
    assert out.read_bytes() == graph(frozen, idle, nodes[2], *rest[:2]) + versions  # nobody needs the zeros any more
    given = node("v/Initializer/pretrained", "Const", dtype=FLOAT, value=bytes_field(8, proto))
    assign = node("v/Assign", "Assign", "v", "v/Initializer/pretrained")
    out = Path(put(tmp_path / "out.pb", like, {"v": value}))
    assert out.read_bytes() == graph(nodes[0], assign, nodes[2], *rest[:2], given) + versions


def saver(*entries: tuple[str, str, str], names: bytes | None = None) -> list[bytes]:
    """A save operation of (name, slice, tensor)."""
    listed = names or const("names", np.array([n.encode() for n, _, _ in entries], object))
    types = bytes_field(1, bytes_field(6, b"\1" * len(entries)))
    return [
        const("prefix", np.array(b"x", object)),
        listed,
        const("cuts", np.array([c.encode() for _, c, _ in entries], object)),
        node("save", "SaveV2", "prefix", "names", "cuts", *(t for _, _, t in entries), dtypes=types),
    ]


def test_what_is_saved_and_is_no_variable(tmp_path: Path) -> None:
    like = save(
        tmp_path / "g.pb", graph(variable("v"), node("sum", "Add", "v", "v", T=FLOAT), *saver(("s", "", "sum")))
    )
    with pytest.raises(Error) as caught:
        tf_graph_write.write(
            str(tmp_path / "out.pb"), {"s": TensorSpec.of("float32", ())}, lambda _: iter([]), like=like
        )
    assert str(caught.value) == f"tensor 's': is Add 'sum' of {like}, no variable; keep it: list it under keep:"


@pytest.mark.parametrize(
    "cut", ["2 3 0,2", "2 3 0,2:0,4", "2 3 0,-1:-", "2 3 a,b:-", "2 3 1:-", "2 3 -:0,9999999999999999999999"]
)
def test_slices_that_are_none(tmp_path: Path, cut: str) -> None:
    like = save(tmp_path / "g.pb", graph(variable("v"), *saver(("v", cut, "v"))))
    specs = {"v": TensorSpec.of("float32", (2, 3))}
    with pytest.raises(FormatError, match=re.escape(f"tensor 'v': {cut!r} is no shape and slice")):
        tf_graph_write.write(str(tmp_path / "out.pb"), specs, lambda _: iter([]), like=like, constants={"v"})


def test_an_initializer_whose_output_is_used(tmp_path: Path) -> None:
    """The reference that it gives is the variable: a read of it reads the constant, a write forbids it."""
    nodes = [
        variable("v", "VariableV2"),
        node("v/Assign", "Assign", "v", "zero", "^zero"),
        const("zero", np.zeros(2, np.float32)),
    ]
    read = node("y", "Identity", "v/Assign", T=FLOAT)
    out = put(tmp_path / "out.pb", save(tmp_path / "g.pb", graph(*nodes, read)), {"v": np.float32([1, 2])}, {"v"})
    ops = ops_of(out)
    assert (ops["v/Assign"].op, list(ops["v/Assign"].input), ops["y"].op) == ("Identity", ["v", "^zero"], "Identity")
    like = save(tmp_path / "g.pb", graph(*nodes, node("up", "AssignAdd", "v/Assign", "zero")))
    with pytest.raises(Error, match=r"^variable 'v': cannot become a constant: AssignAdd 'up' writes it; "):
        put(tmp_path / "out.pb", like, {"v": np.float32([1, 2])}, {"v"})


def test_names_that_others_use_too(tmp_path: Path) -> None:
    names = [const("names", np.array([b"v", b"w"], object)), node("other", "Identity", "names")]
    both = [
        variable("v", "VariableV2"),
        variable("w", "VariableV2"),
        *saver(("v", "", "v"), ("w", "", "w"), names=names[0]),
        names[1],
    ]
    out = put(tmp_path / "out.pb", save(tmp_path / "g.pb", graph(*both)), {"v": np.float32([1, 2])}, {"v"})
    ops = ops_of(out)
    assert list(ops["save"].input) == ["prefix", "names/left", "cuts", "w"]
    assert list(ops["names"].attr["value"].tensor.string_val) == [b"v", b"w"]
    assert list(ops["names/left"].attr["value"].tensor.string_val) == [b"w"]


def test_strings_and_rare_numbers(tmp_path: Path) -> None:
    from tests.formats.test_tf_bundle import random_value

    values = {d: random_value(d, (2, 3), 3) for d in ("object", "bfloat16", "bool", "int4", "complex64", "float8_e5m2")}
    values |= {"scalar": np.float64(2.5), "empty": np.zeros((0, 3), np.int16)}
    values = {n: np.asarray(v) for n, v in values.items()}
    like = save(tmp_path / "g.pb", graph(*(const(n, v) for n, v in values.items())))
    mine = {n: v[::-1].copy() if v.ndim else v + 1 for n, v in values.items()}
    out = put(tmp_path / "out.pb", like, mine)
    with detect.open_source(out) as source:
        for name, value in mine.items():
            assert source.read(name).tolist() == value.tolist()
            assert source.read(name).dtype == value.dtype


def test_text_is_refused(tmp_path: Path) -> None:
    """Of text, only what reading needs is parsed; what it would lack could not be told from the result."""
    like = fixture("b_cells/lstm_plain").path("frozen_text")
    text = tmp_path / "m.meta"
    text.write_text('meta_info_def { } graph_def { node { name: "v" op: "NoOp" } }', encoding="utf-8")
    for target in (like, str(text)):
        with pytest.raises(RefusedError) as caught:
            put(tmp_path / "out.pb", target, {})
        assert str(caught.value) == (
            f"{target}: is text, of which only a part is read: other values cannot be put into it; write it in binary "
            "first (google.protobuf.text_format, or tf.io.write_graph with as_text=False)"
        )


def test_a_saver_with_too_few_types(tmp_path: Path) -> None:
    nodes = [variable("v", "VariableV2"), variable("w", "VariableV2"), *saver(("v", "", "v"), ("w", "", "w"))]
    nodes[-1] = node(
        "save", "SaveV2", "prefix", "names", "cuts", "v", "w", dtypes=bytes_field(1, bytes_field(6, b"\1"))
    )
    with pytest.raises(FormatError, match=r"the save operation 'save' has 1 types for 2 tensors$"):
        put(tmp_path / "out.pb", save(tmp_path / "g.pb", graph(*nodes)), {"w": np.float32([1, 2])}, {"w"})


def test_a_checkpoint_that_holds_more_than_the_graph(tmp_path: Path) -> None:
    from tests.formats.test_tf_bundle_write import save as checkpoint

    like = save(tmp_path / "m.meta", meta_graph(graph(variable("v"), node("v/Assign", "AssignVariableOp", "v", "v"))))
    checkpoint(str(tmp_path / "m"), {"v": np.zeros(2, np.float32), "w": np.zeros(2, np.float32)})
    with pytest.raises(Error) as caught:
        put(tmp_path / "out.meta", like, {"w": np.float32([1, 2])}, {"w"})
    assert str(caught.value) == f"tensor 'w': is no variable of the graph in {like}; keep it: list it under keep:"


def test_what_takes_references() -> None:
    """TensorFlow's own list of operations: no use of a reference is taken for a read."""
    need("tensorflow")
    from tensorflow.core.framework import op_def_pb2
    from tensorflow.python.client import pywrap_tf_session as session

    ops = op_def_pb2.OpList.FromString(session.TF_GetBuffer(session.TF_GetAllOpList()))
    ours = re.compile("RefIn.*|TwoRefsIn|NegTrain|RefSelect")  # TensorFlow's own tests, and what is refused altogether
    references = 0
    for op in ops.op:
        for at, argument in enumerate(op.input_arg):
            reference = argument.is_ref and argument.type != 7  # references to strings are queues, readers and tables
            references += reference
            if not ours.fullmatch(op.name):
                assert _tf_uses.takes_reference(op.name, at) == reference, (op.name, at)
    assert references > 100


# Hostile -------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
@pytest.mark.parametrize("kind", ["pb", "meta"])
def test_damaged_targets_end_in_an_error(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    """Whatever the TARGET holds: a graph, or an error of ours, and then the old file."""
    call = node("call", "PartitionedCall", "h", "v", f="f", Tin=bytes_field(1, bytes_field(6, b"\x14\x01")))
    body = [node("r", "ReadVariableOp", "a", dtype=FLOAT), node("b", "Identity", "r:value:0")]
    names = np.array([b"v", b"h"], object)
    nodes = [
        variable("v", "VariableV2"), node("v/Assign", "Assign", "v", "zero"), node("v/read", "Identity", "v"),
        variable("h"), node("h/Assign", "AssignVariableOp", "h", "zero"), call,
        const("zero", np.zeros(2, np.float32)),
        const("names", names), const("cuts", np.array([b"", b""], object)), const("prefix", names[0]),
        node("save", "SaveV2", "prefix", "names", "cuts", "v", "h", dtypes=bytes_field(1, bytes_field(6, b"\1\1"))),
        node("restore", "RestoreV2", "prefix", "names", "cuts", dtypes=bytes_field(1, bytes_field(6, b"\1\1"))),
        node("set", "Assign", "v", "restore"), node("set_1", "AssignVariableOp", "h", "restore:1"),
    ]  # fmt: skip
    made = graph(*nodes, functions=[function("f", ["a", "x"], {"o": "b:output:0"}, body)])
    if kind == "meta":
        entry = bytes_field(1, b"v:0") + bytes_field(2, b"v/Assign") + bytes_field(6, b"zero:0")
        listed = bytes_field(1, b"variables") + bytes_field(2, bytes_field(2, bytes_field(1, entry)))
        made = meta_graph(made) + bytes_field(3, bytes_field(1, b"prefix")) + bytes_field(4, listed)
    like = save(tmp_path / f"g.{kind}", mutated(data, made))
    out = tmp_path / "out"
    out.write_bytes(b"old")
    specs = {n: TensorSpec.of("float32", (2,)) for n in "vh"}
    constants = set(data.draw(st.sampled_from(["", "v", "h", "vh"])))
    zeros = np.zeros(2, np.float32)
    try:
        tf_graph_write.write(str(out), specs, lambda _: iter([zeros]), like=like, constants=constants)
    except Error:
        assert out.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"g.{kind}", "out"]


def test_what_a_function_says_of_its_arguments(tmp_path: Path) -> None:
    """Type, shape and resource of the handle go; what it is called stays; all else is as it was."""
    argument = bytes_field(1, b"h") + number_field(3, 20) + bytes_field(7, bytes_field(1, shape_proto([2])))
    other = bytes_field(1, b"x") + number_field(3, 1)
    result = bytes_field(1, b"r") + number_field(3, 1)
    signature = bytes_field(1, b"f") + bytes_field(2, argument) + bytes_field(2, other) + bytes_field(3, result)
    said = bytes_field(1, attr("_user_specified_name", bytes_field(2, b"w"))[2:]) + bytes_field(
        1, attr("_handle_dtype", FLOAT)[2:]
    )
    shapes = bytes_field(1, bytes_field(7, b"") + bytes_field(7, shape_proto([3])))
    read = node("r", "ReadVariableOp", "h", dtype=FLOAT)
    total = node("t", "Add", "r:value:0", "x", T=FLOAT)
    ret, keep = (
        bytes_field(1, b"r") + bytes_field(2, b"t:z:0"),
        bytes_field(5, bytes_field(1, b"k") + bytes_field(2, FLOAT)),
    )

    def made(head: bytes, body: bytes, shapes: bytes, about: bytes) -> bytes:
        name = bytes_field(1, b"_input_shapes") + bytes_field(2, shapes)
        arguments = bytes_field(7, number_field(1, 0) + bytes_field(2, about)) if about else b""
        return bytes_field(1, head) + body + bytes_field(4, ret) + bytes_field(5, name) + keep + arguments

    before = made(signature, bytes_field(3, read) + bytes_field(3, total), shapes, said)
    before += bytes_field(8, number_field(1, 0) + number_field(2, 5)) + bytes_field(
        8, number_field(1, 1) + number_field(2, 6)
    )
    call = node("call", "PartitionedCall", "v", "x", f="f", Tin=bytes_field(1, bytes_field(6, b"\x14\1")))
    like = save(tmp_path / "g.pb", graph(variable("v"), node("x", "Placeholder"), call, functions=[before]))
    out = Path(put(tmp_path / "out.pb", like, {"v": np.float32([1, 2])}, {"v"}))
    head = bytes_field(1, b"f") + bytes_field(2, bytes_field(1, b"h") + number_field(3, 1)) + bytes_field(2, other)
    shape = bytes_field(1, bytes_field(7, shape_proto([2])))
    about = bytes_field(1, attr("_user_specified_name", bytes_field(2, b"w"))[2:]) + bytes_field(
        1, attr("_output_shapes", shape)[2:]
    )
    body = bytes_field(3, node("r", "Identity", "h", T=FLOAT)) + bytes_field(
        3, node("t", "Add", "r:output:0", "x", T=FLOAT)
    )
    after = made(
        head + bytes_field(3, result),
        body,
        bytes_field(1, bytes_field(7, shape_proto([2])) + bytes_field(7, shape_proto([3]))),
        about,
    )
    after += bytes_field(8, number_field(1, 1) + number_field(2, 6))
    assert bytes_field(1, after) in out.read_bytes()


OPS = sorted(
    {*_tf_uses.CALLERS, *_tf_uses.PASSES, *_tf_uses.REF_PASSES, *_tf_uses.READS, *_tf_uses.ASKS, *_tf_uses.NEEDLESS}
    | {
        *_tf_uses.ASSIGNS,
        *_tf_uses.RESTORES,
        *_tf_uses.SAVES,
        "Const",
        "VarHandleOp",
        "VariableV2",
        "MergeV2Checkpoints",
    }
    | {"Pack", "ApplyAdam", "NoOp", "f", "g"}
)
NAMES = ["v", "v/Assign", "v/read", "a", "b", "c", "update_v/a"]


@st.composite
def any_nodes(draw: st.DrawFn, names: list[str], most: int) -> list[bytes]:
    """Some nodes."""
    return [
        draw(any_node(names, name)) for name in draw(st.lists(st.sampled_from(NAMES[1:]), max_size=most, unique=True))
    ]


@st.composite
def any_node(draw: st.DrawFn, names: list[str], name: str) -> bytes:
    """Any operation, of any inputs, with attributes that may be those it needs."""
    op = draw(st.sampled_from(OPS))
    given = draw(st.lists(st.sampled_from(names), max_size=5))
    types = bytes_field(1, bytes_field(6, bytes(draw(st.lists(st.sampled_from([1, 7, 20]), max_size=5)))))
    attrs: dict[str, Any] = {
        "dtype": FLOAT,
        "shape": bytes_field(7, shape_proto([2])),
        "Tin": types,
        "T": types,
        "dtypes": types,
    }
    attrs |= {
        key: draw(st.sampled_from(["f", "g", "none"])) for key in ("f", "body", "cond", "then_branch", "else_branch")
    }
    if op == "Const":
        attrs["value"] = bytes_field(8, _graphdef.tensor(np.array([b"v", b"w"][: draw(st.integers(0, 2))], object)))
    kept = draw(st.sets(st.sampled_from(sorted(attrs))))
    return node(name, op, *given, **{key: value for key, value in attrs.items() if key in kept or draw(st.booleans())})


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_graph_ends_in_a_graph_or_an_error(tmp_path: Path, data: st.DataObject) -> None:
    inputs = [n for name in NAMES for n in (name, f"{name}:1", f"^{name}")]
    inner = [n for name in [*NAMES, "x"] for n in (name, f"{name}:output:0", f"{name}:value:0", f"^{name}")]
    main = [variable("v", data.draw(st.sampled_from(["VarHandleOp", "VariableV2"])))]
    main += data.draw(any_nodes(inputs, 6))
    bodies = [
        function(f, ["x", "y"], {"r": data.draw(st.sampled_from(inner))}, data.draw(any_nodes(inner, 4))) for f in "fg"
    ]
    like = save(tmp_path / "g.pb", graph(*main, functions=bodies))
    specs = {"v": TensorSpec.of("float32", (2,))}
    constants = data.draw(st.sampled_from([{"v"}, set()]))
    with contextlib.suppress(Error):
        tf_graph_write.write(
            str(tmp_path / "out"), specs, tiles_of({"v": np.zeros(2, np.float32)}), like=like, constants=constants
        )
        with contextlib.suppress(Error):
            put(tmp_path / "out2", str(tmp_path / "out"), {})


HANDLES = bytes_field(1, bytes_field(6, b"\x14" * 3))


def chain(length: int, *calls: tuple[str, str, str]) -> bytes:
    """Functions f0, f1, ... of three arguments, each of which calls the next one with them, as often as is said."""
    functions = []
    for n in range(length):
        nodes = [node(f"n{k}", "PartitionedCall", *given, f=f"f{n + 1}", Tin=HANDLES) for k, given in enumerate(calls)]
        functions.append(function(f"f{n}", ["a", "b", "c"], {}, nodes if n < length - 1 else []))
    call = node("call", "PartitionedCall", "v", "other", "other", f="f0", Tin=HANDLES)
    return graph(variable("v"), node("other", "Placeholder"), call, functions=functions)


def test_functions_that_are_too_deep(tmp_path: Path) -> None:
    like = save(tmp_path / "g.pb", chain(2000, ("a", "b", "c")))
    with pytest.raises(Error, match=r"hands it to 'f64', which is more than 64 functions deep$"):
        put(tmp_path / "out.pb", like, {"v": np.float32([1, 2])}, {"v"})
    put(tmp_path / "out.pb", save(tmp_path / "g.pb", chain(60, ("a", "b", "c"))), {"v": np.float32([1, 2])}, {"v"})


def test_functions_that_call_each_other_in_too_many_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    like = save(tmp_path / "g.pb", chain(8, ("a", "b", "c"), ("b", "a", "a"), ("a", "a", "c")))
    put(tmp_path / "out.pb", like, {"v": np.float32([1, 2])}, {"v"})
    monkeypatch.setattr(_tf_freeze, "_MOST_WALKS", 20)
    with pytest.raises(Error, match=r"g.pb: its functions call each other in more than 20 ways$"):
        put(tmp_path / "out.pb", like, {"v": np.float32([1, 2])}, {"v"})
