from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.support import need
from tests.targets.graphs import initialised, legacy, numbers, value
from weightport.errors import PlanError, RefusedError
from weightport.targets import _tf_session, _tf_values
from weightport.targets.tf_getter import make_getter
from weightport.targets.tf_graph import GraphTarget
from weightport.tensors import Array, Index, Target, TensorSpec, Value

tf = need("tensorflow")
v1 = tf.compat.v1

W = numbers(3, 3, seed=1)


@pytest.fixture
def graph() -> Any:
    with tf.Graph().as_default() as graph:
        yield graph


@pytest.fixture(params=["resource", "reference"])
def resource(request: pytest.FixtureRequest) -> bool:
    return request.param == "resource"


@pytest.fixture(params=["control_flow_v2", "control_flow_v1"])
def flow(request: pytest.FixtureRequest) -> Any:
    before = v1.control_flow_v2_enabled()
    (v1.enable_control_flow_v2 if request.param == "control_flow_v2" else v1.disable_control_flow_v2)()
    yield request.param
    (v1.enable_control_flow_v2 if before else v1.disable_control_flow_v2)()


def trainable() -> list[str]:
    return [v.op.name for v in v1.trainable_variables()]


# --- specs ---


def test_specs_of_a_model_with_its_optimizer(graph: Any, resource: bool) -> None:
    with v1.variable_scope("e", use_resource=resource):
        w = v1.get_variable("w", [3, 4])
        v1.get_variable("emb", [7, 2], partitioner=v1.fixed_size_partitioner(3))
        v1.get_variable("half", [2], tf.bfloat16, trainable=False)
        v1.get_variable("words", [2], tf.string, initializer=v1.constant_initializer([b"a", b"b"]), trainable=False)
        v1.get_variable("m", [2])
    v1.get_variable("one", [4, 2], partitioner=v1.fixed_size_partitioner(1))
    step = v1.train.get_or_create_global_step()
    v1.train.ExponentialMovingAverage(0.9).apply([w])
    with v1.variable_scope("train"):
        v1.train.AdamOptimizer().minimize(tf.reduce_sum(w), global_step=step)
    target: Target = GraphTarget(graph)
    assert target.kind == "tensorflow-graph"
    assert target.facts(["e/w"]) == {}
    specs = target.specs()
    assert {n: (s.dtype.name, s.shape, s.role) for n, s in specs.items()} == {
        "e/w": ("float32", (3, 4), "weight"),
        "e/emb": ("float32", (7, 2), "weight"),
        "e/half": ("bfloat16", (2,), "weight"),
        "e/words": ("object", (2,), "weight"),
        "e/m": ("float32", (2,), "weight"),
        "one": ("float32", (4, 2), "weight"),
        "global_step": ("int64", (), "counter"),
        "e/w/ExponentialMovingAverage": ("float32", (3, 4), "weight"),
        "train/beta1_power": ("float32", (), "optimizer"),
        "train/beta2_power": ("float32", (), "optimizer"),
        "train/e/w/Adam": ("float32", (3, 4), "slot"),
        "train/e/w/Adam_1": ("float32", (3, 4), "slot"),
    }
    assert specs["e/emb"].nbytes == 56
    assert list(specs)[:6] == ["e/w", "e/emb", "e/half", "e/words", "e/m", "one"]


# --- initial values ---


def test_initial_values_come_from_init_ops_made_before_and_after(graph: Any, resource: bool) -> None:
    w = v1.get_variable("w", [3, 3], use_resource=resource)
    emb = v1.get_variable("emb", [7, 2], partitioner=v1.fixed_size_partitioner(3), use_resource=resource)
    own = v1.get_variable("own", [2], initializer=v1.ones_initializer(), use_resource=resource)
    before = v1.global_variables_initializer()
    asked: list[Index] = []
    whole = numbers(7, 2)
    made = GraphTarget(graph).assign([value("w", W), value("emb", whole, asked=asked)])
    assert made is graph
    assert asked == []
    after = v1.variables_initializer([w, *emb])
    for init in (before, tf.group(after, own.initializer), tf.group([v.initializer for v in [w, *emb, own]])):
        with v1.Session() as session:
            session.run(init)
            np.testing.assert_array_equal(session.run(w), W)
            np.testing.assert_array_equal(session.run(tf.concat(emb, 0)), whole)
            np.testing.assert_array_equal(session.run(own), [1, 1])
            session.run(w.assign(tf.zeros([3, 3])))
            session.run(w.initializer)
            np.testing.assert_array_equal(session.run(w), W)
    assert set(map(str, asked)) == {str((slice(a, b), slice(0, 2))) for a, b in ((0, 3), (3, 5), (5, 7))}
    with v1.Session() as session:
        np.testing.assert_array_equal(session.run(w.initial_value), W)
    assert trainable() == ["w", "emb/part_0", "emb/part_1", "emb/part_2", "own"]


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float64", "complex64", "bool", "int8", "uint16", "int64", "uint64", "bytes"]
)
@pytest.mark.parametrize("shape", [(), (2, 3), (0, 2)])
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("lives", [True, False])
def test_every_dtype_arrives_bit_for_bit(
    graph: Any, resource: bool, dtype: str, shape: tuple[int, ...], constant: bool, lives: bool
) -> None:
    count = int(np.prod(shape))
    if dtype == "bytes":
        array = np.array([b"a\0b", b"", b"\xff\0", b"x", b"yy", b"z"][:count], object).reshape(shape)
    else:
        kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
        array = numbers(*shape).astype(kind) if kind.kind not in "iub" else (numbers(*shape) > 0).astype(kind)
    zeros = np.full(shape, b"", object) if dtype == "bytes" else np.zeros_like(array)
    w = v1.get_variable("w", initializer=zeros, use_resource=resource)
    read = tf.identity(w)
    if lives:
        with initialised(tf, graph) as session:
            GraphTarget(graph, session).assign([value("w", array, constant)])
            got = np.asarray(session.run(read), array.dtype)
    else:
        GraphTarget(graph).assign([value("w", array, constant)])
        with initialised(tf, graph) as session:
            got = np.asarray(session.run(read), array.dtype)
    assert got.shape == shape
    assert got.tobytes() == array.tobytes() if dtype != "bytes" else got.tolist() == array.tolist()


def test_monitored_session_and_scaffold_start_with_the_values(graph: Any, resource: bool, tmp_path: Any) -> None:
    w = v1.get_variable("w", [3, 3], use_resource=resource)
    v1.get_variable("b", [3], use_resource=resource)
    v1.train.get_or_create_global_step()
    scaffold = v1.train.Scaffold()
    GraphTarget(graph).assign([value("w", W), value("b", W[0], constant=True)])
    change = tf.group(w.assign(tf.zeros([3, 3])), v1.train.get_global_step().assign_add(1))
    with v1.train.MonitoredTrainingSession(checkpoint_dir=str(tmp_path), scaffold=scaffold) as session:
        np.testing.assert_array_equal(session.run(w), W)
        session.run(change)
        with pytest.raises(RefusedError, match="the graph is finalized, nothing can be added to it"):
            GraphTarget(graph).assign([value("w", W)])
    with tf.Graph().as_default() as again:  # a restored checkpoint wins over the initial value
        w = v1.get_variable("w", [3, 3], use_resource=resource)
        v1.get_variable("b", [3], use_resource=resource)
        v1.train.get_or_create_global_step()
        GraphTarget(again).assign([value("w", W), value("b", W[0], constant=True)])
        with v1.train.MonitoredTrainingSession(checkpoint_dir=str(tmp_path)) as session:
            np.testing.assert_array_equal(session.run(w), np.zeros([3, 3]))


def test_the_graph_does_not_swell_with_the_weights(graph: Any) -> None:
    for i in range(40):  # 10 GB
        v1.get_variable(f"w{i}", [8192, 8192])
    before = graph.as_graph_def().ByteSize()

    def produce(index: Index) -> Array:
        raise AssertionError(f"{index} is not to be read")

    target = GraphTarget(graph)
    target.assign([Value(n, s, False, produce) for n, s in target.specs().items()])
    assert graph.as_graph_def().ByteSize() < before + 40 * 1024


@pytest.mark.parametrize("package", ["keras", "tf_keras"])
@pytest.mark.parametrize("constant", [True, False])
def test_a_keras_lstm_in_a_graph_takes_values(package: str, constant: bool) -> None:
    keras = need(package)
    if package == "keras" and keras.backend.backend() != "tensorflow":
        pytest.skip("Keras runs on another backend")
    data = numbers(2, 5, 3)
    found = []
    for freeze in (False, constant):
        with tf.Graph().as_default() as graph:
            x = v1.placeholder(tf.float32, [2, 5, 3])
            out = keras.layers.LSTM(4, name="l")(x)
            target = GraphTarget(graph)
            weights = {n: s for n, s in target.specs().items() if s.role == "weight"}
            assert list(weights) == [f"l/lstm_cell/{n}" for n in ("kernel", "recurrent_kernel", "bias")]
            target.assign([value(n, numbers(*s.shape), freeze) for n, s in weights.items()])
            assert trainable() == [] if freeze else len(trainable()) == 3
            slope = tf.gradients(out, [x])
            with initialised(tf, graph) as session:
                found.append(session.run([out, *slope], {x: data}))
    for left, right in zip(*found, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_a_saved_model_holds_constants_and_restores_the_rest(
    graph: Any, resource: bool, flow: str, tmp_path: Any
) -> None:
    w = v1.get_variable("w", [3, 3], use_resource=resource)
    b = v1.get_variable("b", [3, 3], use_resource=resource)
    x = v1.placeholder(tf.float32, [None, 3])
    out = tf.identity(loop(w, b, x))
    GraphTarget(graph).assign([value("w", W, constant=True), value("b", numbers(3, 3, seed=4))])
    ones = np.ones([2, 3], np.float32)
    with initialised(tf, graph) as session:
        expected = session.run(out, {x: ones})
        v1.saved_model.simple_save(session, str(tmp_path / flow), {"x": x}, {"y": out})
    assert [n for n, _ in tf.train.list_variables(str(tmp_path / flow / "variables/variables"))] == ["b"]
    with tf.Graph().as_default(), v1.Session() as session:
        v1.saved_model.load(session, ["serve"], str(tmp_path / flow))
        np.testing.assert_array_equal(session.run(out.name, {x.name: ones}), expected)


# --- validation ---


def test_all_problems_are_in_one_error_and_nothing_changes(graph: Any, resource: bool) -> None:
    w = v1.get_variable("scope/kernel", [3, 3], use_resource=resource)
    v1.get_variable("scope/bias", [3], use_resource=resource)
    v1.get_variable("scope/count", [], tf.int32, initializer=v1.zeros_initializer(), use_resource=resource)
    c = v1.get_variable("scope/c", [3, 3], use_resource=resource)
    v1.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_sum(c))
    c.assign(tf.zeros([3, 3]))
    before = graph.as_graph_def()
    with pytest.raises(PlanError) as caught:
        GraphTarget(graph).assign(
            [
                value("scope/kernal", W),
                value("scope/bias", W),
                value("scope/count", np.float32(1)),
                value("scope/kernel", W),
                value("scope/kernel", W),
                value("scope/c", W, constant=True),
            ]
        )
    apply = "ResourceApplyGradientDescent" if resource else "ApplyGradientDescent"
    assign = "AssignVariableOp 'AssignVariableOp" if resource else "Assign 'Assign"
    told = str(caught.value).split("\n")
    assert told[:5] == [
        "variable 'scope/kernal': the graph has no such variable; closest: 'scope/kernel', 'scope/bias', 'scope/c'",
        "variable 'scope/bias': shape [3] in the model, [3, 3] in the pretrained value",
        "variable 'scope/count': dtype int32 in the model, float32 in the pretrained value; 'cast' converts the dtype",
        "variable 'scope/kernel': it was given a value twice",
        f"variable 'scope/c': {apply} 'GradientDescent/update_scope/c/{apply}' already exists; "
        "make constants before the optimizer is built",
    ]
    assert told[5].startswith(f"variable 'scope/c': {assign}")
    assert told[5].endswith(
        "' writes it; a constant cannot be written: make it an initial value, or make constants before that op is built"
    )
    assert len(told) == 6
    assert graph.as_graph_def() == before
    assert trainable() == ["scope/kernel", "scope/bias", "scope/count", "scope/c"]
    assert w.initializer.inputs[1] is w.initial_value


def test_a_value_that_cannot_be_produced_leaves_the_graph_as_it_was(graph: Any, resource: bool) -> None:
    v1.get_variable("a", [3, 3], use_resource=resource)
    v1.get_variable("b", [3, 3], use_resource=resource)
    before = graph.as_graph_def()
    bad = Value("b", TensorSpec.of("float32", [3, 3]), True, lambda _: W[:2])
    with pytest.raises(
        PlanError, match=re.escape("variable 'b': float32 [3, 3] was planned, float32 [2, 3] was produced")
    ):
        GraphTarget(graph).assign([value("a", W, constant=True), bad])
    assert graph.as_graph_def() == before
    assert trainable() == ["a", "b"]


def test_a_session_of_another_graph_is_refused(graph: Any) -> None:
    with v1.Session(graph=tf.Graph()) as session, pytest.raises(RefusedError, match="made for another graph"):
        GraphTarget(graph, session)


# --- a session that lives ---


def test_variables_initialised_in_a_session_are_assigned_there(graph: Any, resource: bool) -> None:
    w = v1.get_variable("w", [3, 3], use_resource=resource)
    c = v1.get_variable("c", [3, 3], use_resource=resource)
    emb = v1.get_variable("emb", [7, 2], partitioner=v1.fixed_size_partitioner(3), use_resource=resource)
    out = w @ c
    whole = numbers(7, 2)
    with initialised(tf, graph) as session:  # the default session, so it need not be given
        GraphTarget(graph).assign([value("w", W), value("c", W + 1, constant=True), value("emb", whole)])
        np.testing.assert_array_equal(session.run(w), W)
        np.testing.assert_array_equal(session.run(tf.concat(list(emb), 0)), whole)
        np.testing.assert_allclose(session.run(out), W @ (W + 1), rtol=1e-5)
    with initialised(tf, graph) as session:
        np.testing.assert_allclose(session.run(out), W @ (W + 1), rtol=1e-5)


def test_a_session_that_has_run_nothing_initialises_with_the_values(graph: Any, resource: bool) -> None:
    w = v1.get_variable("w", [3, 3], use_resource=resource)
    c = v1.get_variable("c", [3, 3], use_resource=resource)
    with v1.Session() as session:
        GraphTarget(graph).assign([value("c", W + 1, constant=True), value("w", W)])
        session.run(v1.global_variables_initializer())
        np.testing.assert_array_equal(session.run([w, c]), [W, W + 1])


@pytest.mark.parametrize("constant", [True, False])
def test_a_session_that_would_initialise_with_other_values_is_refused(
    graph: Any, resource: bool, constant: bool
) -> None:
    a = v1.get_variable("a", [3, 3], use_resource=resource)
    w = v1.get_variable("w", [3, 3], use_resource=resource)
    with v1.Session() as session:
        session.run(a.initializer)
        old = session.run(a)
        with pytest.raises(RefusedError) as caught:
            GraphTarget(graph, session).assign([value("a", W), value("w", W, constant=constant)])
        assert str(caught.value) == (
            "variable 'w': it is not initialised in the session, and the session has run the graph already: it would "
            "initialise the variable with the model's own value; run the initializer before the transfer, or transfer "
            "before the session runs anything"
        )
        np.testing.assert_array_equal(session.run(a), old)
        assert trainable() == ["a", "w"]
    with initialised(tf, graph) as session:
        assert not (session.run(w) == W).all()


@pytest.mark.parametrize("batch", [1, 40, 1 << 20])
def test_a_failure_half_way_through_a_session_rolls_back(
    graph: Any, resource: bool, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tf_session, "BATCH", batch)
    variables = [
        v1.get_variable("a", [3, 3], use_resource=resource),
        v1.get_variable("s", initializer=np.array([b"x"], object), use_resource=resource, trainable=False),
        v1.get_variable("e", [0, 3], use_resource=resource),
        v1.get_variable("h", [2], tf.bfloat16, initializer=v1.ones_initializer(), use_resource=resource),
        v1.get_variable("c", [3, 3], use_resource=resource),
    ]
    out = tf.identity(variables[-1])
    bad = Value("c", TensorSpec.of("float32", [3, 3]), False, lambda _: W[:2])
    with initialised(tf, graph) as session:
        old = session.run(variables)
        with pytest.raises(PlanError, match="was produced"):
            GraphTarget(graph, session).assign(
                [
                    value("a", W),
                    value("s", np.array([b"y"], object)),
                    value("e", np.zeros([0, 3], np.float32)),
                    value("h", np.array([3, 4], ml_dtypes.bfloat16), constant=True),
                    bad,
                ]
            )
        for left, right in zip(old, session.run(variables), strict=True):
            np.testing.assert_array_equal(left, right)
    assert trainable() == ["a", "e", "h", "c"]
    assert variables[3].initializer.inputs[1] is variables[3].initial_value
    assert out.op.inputs[0].op.type != "Const"
    with initialised(tf, graph) as session:
        np.testing.assert_array_equal(session.run(variables[3]), [1, 1])


def test_a_session_runs_once_for_many_variables(graph: Any, resource: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tf.zeros([3, 3])
    variables = [v1.get_variable(f"v{n}", [3, 3], use_resource=resource) for n in range(20)]
    twins = [v1.get_variable(f"t{n}", initializer=first, use_resource=resource) for n in range(2)]
    monkeypatch.setattr(_tf_session, "BATCH", 10 * W.nbytes)
    with initialised(tf, graph) as session:
        real, runs = session.run, []
        monkeypatch.setattr(session, "run", lambda *given: runs.append(given) or real(*given))
        given = [*(value(f"v{n}", W + n) for n in range(20)), *(value(f"t{n}", W - n) for n in range(2))]
        GraphTarget(graph, session).assign(given)
        assert len(runs) == 1 + 2 * 2 + 2 * 2  # two batches; the twins are fed by one tensor, so one after the other
        for variable, one in zip([*variables, *twins], given, strict=True):
            np.testing.assert_array_equal(real(variable), one.produce(None))


# --- constants ---


def test_a_constant_is_read_everywhere_and_is_no_variable_any_more(graph: Any, resource: bool) -> None:
    w = v1.get_variable("w", [3, 3], use_resource=resource, regularizer=tf.nn.l2_loss)
    emb = v1.get_variable("emb", [7, 2], partitioner=v1.fixed_size_partitioner(3), use_resource=resource)
    graph.add_to_collection("model_variables", w)
    x = v1.placeholder(tf.float32, [None, 3])
    whole = numbers(7, 2)
    with tf.control_dependencies([w.read_value()]):
        out = x @ w
    rows = v1.nn.embedding_lookup(emb, [0, 3, 6], partition_strategy="div")
    one_row, point, size = tf.gather(w, [2]), tf.gather_nd(w, [[1, 2]]), tf.shape(w)
    init = v1.global_variables_initializer()
    GraphTarget(graph).assign([value("w", W, constant=True), value("emb", whole, constant=True)])
    for key in ("variables", "trainable_variables", "model_variables"):
        assert graph.get_collection(key) == []
    assert GraphTarget(graph).specs() == {}
    assert tf.gradients(out, [w]) == [None]
    late = tf.transpose(w)
    with v1.variable_scope("", reuse=True):
        assert v1.get_variable("w", [3, 3]) is w
    with v1.Session() as session:  # nothing is initialised
        for _ in range(2):
            got = session.run([out, rows, one_row, point, size, late, w], {x: np.eye(3)})
            for left, right in zip(got, [W, whole[[0, 3, 6]], W[[2]], W[1, [2]], [3, 3], W.T, W], strict=True):
                np.testing.assert_array_equal(left, right)
            session.run(init)  # made before, for variables that nothing reads any more
    with v1.variable_scope("", reuse=True, custom_getter=make_getter(lambda n, _: value(n, W, constant=True))):
        assert v1.get_variable("w", [3, 3]).op.type == "Const"


def loop(w: Any, b: Any, x: Any) -> Any:
    def step(i: Any, h: Any) -> Any:
        h = tf.cond(i < 1, lambda: h @ w, lambda: h @ w + tf.gather(b, [0]) * tf.cast(tf.shape(b)[0], tf.float32))
        return i + 1, h + tf.gather_nd(b, [[1]])

    return tf.while_loop(lambda i, _: i < tf.cast(tf.shape(w)[0], tf.int32) - 1, step, [0, x])[1]


def expected_loop(w: np.ndarray, b: np.ndarray, x: np.ndarray) -> np.ndarray:
    for i in range(2):
        x = x @ w if i < 1 else x @ w + b[0] * 3
        x = x + b[1]
    return x


@pytest.mark.usefixtures("flow")
def test_a_constant_inside_loops_and_branches(graph: Any, resource: bool) -> None:
    w = v1.get_variable("w", [3, 3], use_resource=resource)
    b = v1.get_variable("b", [3, 3], use_resource=resource)
    x = v1.placeholder(tf.float32, [None, 3])
    out = loop(w, b, x)
    with tf.control_dependencies([out]):
        done = tf.constant(1.0)
    outside = out * 2
    bias = numbers(3, 3, seed=4)
    GraphTarget(graph).assign([value("w", W, constant=True), value("b", bias, constant=True)])
    (gradient,) = tf.gradients(outside, [x])
    frozen = v1.graph_util.extract_sub_graph(graph.as_graph_def(), [outside.op.name])
    assert not {n.op for n in frozen.node} & {"VarHandleOp", "VariableV2"}
    ones = np.ones([2, 3], np.float32)
    with v1.Session() as session:
        got, _, slope = session.run([outside, done, gradient], {x: ones})
    np.testing.assert_allclose(got, 2 * expected_loop(W, bias, ones), rtol=1e-5)
    np.testing.assert_allclose(slope, 2 * ones @ W.T @ W.T, rtol=1e-4)


@pytest.mark.usefixtures("flow")
def test_a_gradient_and_the_heads_optimizer_may_exist_already(graph: Any, resource: bool) -> None:
    w = v1.get_variable("w", [3, 3], use_resource=resource)
    b = v1.get_variable("b", [3, 3], use_resource=resource)
    top = v1.get_variable("head", [3, 1], use_resource=resource, initializer=v1.zeros_initializer())
    x = v1.placeholder(tf.float32, [None, 3])
    h = tf.cond(tf.reduce_sum(x) > 0, lambda: loop(w, b, x), lambda: x @ w)
    loss = tf.reduce_mean((h @ top - 1.0) ** 2)
    train = v1.train.AdamOptimizer(0.1).minimize(loss, var_list=[top])
    gradients = tf.gradients(h, [x, w])
    bias = numbers(3, 3, seed=4)
    GraphTarget(graph).assign([value("w", W, constant=True), value("b", bias, constant=True)])
    assert [v.op.name for v in v1.global_variables()][:1] == ["head"]
    ones = np.ones([2, 3], np.float32)
    with initialised(tf, graph) as session:
        first, got, slopes = session.run([loss, h, gradients], {x: ones})
        for _ in range(20):
            session.run(train, {x: ones})
        last, again, other = session.run([loss, h, h * 2], {x: ones})
        negative = session.run(h, {x: -ones})
    np.testing.assert_allclose(got, expected_loop(W, bias, ones), rtol=1e-5)
    np.testing.assert_allclose(slopes[0], ones @ W.T @ W.T, rtol=1e-4)
    np.testing.assert_allclose(negative, -ones @ W, rtol=1e-5)
    np.testing.assert_array_equal(got, again)
    np.testing.assert_array_equal(got * 2, other)
    assert last < first


def test_a_read_that_the_model_still_holds_gives_the_constant(graph: Any) -> None:
    w = v1.get_variable("w", [3, 3], use_resource=True)
    held = [w.value(), tf.gather(w, [1]), tf.gather_nd(w, [[0, 2]])]
    GraphTarget(graph).assign([value("w", W, constant=True)])
    used_later = [t * 2 for t in held]
    with v1.Session() as session:  # nothing is initialised
        for got, wanted in zip(session.run(used_later), [W, W[[1]], W[0, [2]]], strict=True):
            np.testing.assert_array_equal(got, wanted * 2)


def test_a_gather_with_batch_dimensions_is_refused(graph: Any) -> None:
    w = v1.get_variable("w", [3, 3], use_resource=True)
    tf.raw_ops.ResourceGather(resource=w.handle, indices=[[0], [1], [2]], dtype=tf.float32, batch_dims=1, name="g")
    with pytest.raises(
        PlanError, match="ResourceGather 'g' has batch dimensions; build the scope with the custom getter"
    ):
        GraphTarget(graph).assign([value("w", W, constant=True)])


def test_a_variable_whose_handle_goes_elsewhere_is_refused(graph: Any, resource: bool) -> None:
    w = v1.get_variable("w", [3, 3], use_resource=resource)
    if resource:
        tf.raw_ops.IdentityN(input=[w.handle], name="n")
        op = "IdentityN 'n'"
    else:
        tf.raw_ops.RefIdentity(input=w._ref(), name="n")
        op = "RefIdentity 'n'"
    with pytest.raises(PlanError) as caught:
        GraphTarget(graph).assign([value("w", W, constant=True)])
    assert str(caught.value) == (
        f"variable 'w': {op} uses it in a way that is no read; build the scope with the custom getter instead"
    )


def test_strings_over_the_limit_are_refused(graph: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tf_values, "EMBED_LIMIT", 100)
    words = np.array([b"x" * 101], object)
    v1.get_variable("w", initializer=words, trainable=False)
    with pytest.raises(
        RefusedError, match="constant 'w/pretrained': its strings come to 101 bytes, a GraphDef can hold 100"
    ):
        GraphTarget(graph).assign([value("w", words, constant=True)])


def test_a_function_that_calls_a_function(graph: Any) -> None:
    w = v1.get_variable("w", [3, 3], use_resource=True)

    @tf.function
    def inner(x: Any) -> Any:
        return x @ w

    @tf.function
    def outer(x: Any) -> Any:
        return inner(x) + inner(x)

    out = outer(tf.eye(3))
    GraphTarget(graph).assign([value("w", W, constant=True)])
    with v1.Session() as session:
        np.testing.assert_array_equal(session.run(out), W + W)


def test_a_loop_that_writes_the_variable_is_refused(graph: Any) -> None:
    w = v1.get_variable("w", [3], use_resource=True)

    @tf.function
    def count() -> Any:
        return w.assign_add(tf.ones([3]))

    count()
    before = graph.as_graph_def()
    with pytest.raises(
        PlanError, match=r"uses a constant in a way that is no read: AssignAddVariableOp 'AssignAddVariableOp"
    ):
        GraphTarget(graph).assign([value("w", W[0], constant=True)])
    assert graph.as_graph_def() == before


def test_a_saver_made_before_saves_the_constant_and_restores_past_it(graph: Any, resource: bool, tmp_path: Any) -> None:
    w = v1.get_variable("w", [3, 3], use_resource=resource)
    v1.get_variable("own", [2], use_resource=resource)
    saver = v1.train.Saver()
    GraphTarget(graph).assign([value("w", W, constant=True)])
    with initialised(tf, graph) as session:
        path = saver.save(session, str(tmp_path / "m.ckpt"))
        saver.restore(session, path)
        np.testing.assert_array_equal(session.run(w), W)
    np.testing.assert_array_equal(tf.train.load_checkpoint(path).get_tensor("w"), W)
    assert [
        n for n, _ in tf.train.list_variables(v1.train.Saver().save(initialised(tf, graph), str(tmp_path / "n")))
    ] == ["own"]


def test_large_constants_are_refused_or_held_as_variables(graph: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tf_values, "EMBED_LIMIT", 40)
    for name in "abc":
        v1.get_variable(name, [3, 3] if name != "c" else [])
    new = [value("a", W, True), value("b", W + 1, True), value("c", np.float32(7), True)]
    before = graph.as_graph_def()
    with pytest.raises(
        PlanError, match=r"constant 'c': the constants of this graph come to 76 bytes, a GraphDef can hold 40"
    ):
        GraphTarget(graph).assign(new)
    assert graph.as_graph_def() == before
    GraphTarget(graph, large_constants="variable").assign(new)
    assert [v.op.name for v in v1.global_variables()] == ["b"]
    assert trainable() == []
    with initialised(tf, graph) as session:
        np.testing.assert_array_equal(session.run(v1.global_variables()[0]), W + 1)


# --- a real training run ---


def encoder(x: Any) -> Any:
    cells = legacy("rnn_cell")
    _, state = v1.nn.dynamic_rnn(cells.LSTMCell(4, name="lstm"), x, dtype=tf.float32)
    return state.h


def head(h: Any) -> Any:
    w = v1.get_variable("head/w", [4, 1], initializer=v1.zeros_initializer())
    return h @ w


@pytest.mark.parametrize("way", ["getter", "graph"])
@pytest.mark.parametrize("monitored", [True, False])
def test_a_frozen_encoder_stays_bit_identical_while_the_head_learns(
    graph: Any, resource: bool, way: str, monitored: bool, tmp_path: Any
) -> None:
    arrays = {"encoder/rnn/lstm/kernel": numbers(7, 16, seed=5), "encoder/rnn/lstm/bias": numbers(16, seed=6)}
    frozen = [value(n, a, constant=True) for n, a in arrays.items()]
    getter = make_getter(lambda n, _: {v.name: v for v in frozen}.get(n)) if way == "getter" else None
    x = v1.placeholder(tf.float32, [None, 5, 3], name="x")
    with v1.variable_scope("encoder", custom_getter=getter, use_resource=resource):
        h = tf.identity(encoder(x), name="h")
    if way == "graph":
        GraphTarget(graph).assign(frozen)
    with v1.variable_scope("", use_resource=resource):
        y = head(h)
    data = numbers(32, 5, 3, seed=7)
    loss = tf.reduce_mean((y - 1.0) ** 2)
    step = v1.train.get_or_create_global_step()
    train = v1.train.AdamOptimizer(0.05).minimize(loss, global_step=step)
    assert trainable() == ["head/w"]
    assert tf.gradients(loss, [v for v in v1.global_variables() if "lstm" in v.name]) == []

    kernels = [
        op for op in graph.get_operations() if op.type == "Const" and re.match(r"encoder/rnn/lstm/[^I]*$", op.name)
    ]
    assert len(kernels) == 2
    make: Any = (lambda: v1.train.MonitoredTrainingSession(checkpoint_dir=str(tmp_path))) if monitored else v1.Session
    init = v1.global_variables_initializer()
    with make() as session:
        if not monitored:
            session.run(init)
        first = session.run([loss, h, *(op.outputs[0] for op in kernels)], {x: data})
        for _ in range(50):
            session.run(train, {x: data})
        last = session.run([loss, h, *(op.outputs[0] for op in kernels)], {x: data})
        graph_def = graph.as_graph_def()
        if not monitored:
            exported = v1.graph_util.convert_variables_to_constants(session, graph_def, [y.op.name])
            result = session.run(y, {x: data})
    assert last[0] < first[0] / 2
    for left, right in zip(first[1:], last[1:], strict=True):
        assert left.tobytes() == right.tobytes()
    assert sorted(a.tobytes() for a in last[2:]) == sorted(a.tobytes() for a in arrays.values())
    if not monitored:
        with tf.Graph().as_default() as again:
            tf.import_graph_def(exported, name="")
            with v1.Session() as session:
                np.testing.assert_array_equal(session.run(y.name, {"x:0": data}), result)
            assert not {op.type for op in again.get_operations()} & {"VarHandleOp", "VariableV2", "PyFunc"}


def test_an_initial_encoder_trains_on_from_the_values(graph: Any, resource: bool) -> None:
    with v1.variable_scope("encoder", use_resource=resource):
        h = encoder(tf.constant(numbers(8, 5, 3)))
    kernel = numbers(7, 16, seed=5)
    loss = tf.reduce_mean((h - 1.0) ** 2)
    train = v1.train.AdamOptimizer(0.05).minimize(loss)  # built before: fine for initial values
    GraphTarget(graph).assign([value("encoder/rnn/lstm/kernel", kernel)])
    (variable,) = [v for v in v1.trainable_variables() if "kernel" in v.name]
    with initialised(tf, graph) as session:
        np.testing.assert_array_equal(session.run(variable), kernel)
        session.run(train)
        assert not (session.run(variable) == kernel).any()


def test_a_saver_made_before_saves_the_parts_of_a_constant(graph: Any, resource: bool, tmp_path: Any) -> None:
    emb = v1.get_variable("emb", [7, 2], partitioner=v1.fixed_size_partitioner(3), use_resource=resource)
    other = v1.get_variable("other", [2], use_resource=resource)
    saver = v1.train.Saver()
    rows = v1.nn.embedding_lookup(emb, [0, 3, 6], partition_strategy="div")
    array = numbers(7, 2, seed=3)
    GraphTarget(graph).assign([value("emb", array, constant=True)])
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        np.testing.assert_array_equal(session.run(rows), array[[0, 3, 6]])
        prefix = saver.save(session, str(tmp_path / "model.ckpt"))
        session.run(other.assign([5.0, 6.0]))
        saver.restore(session, prefix)
        np.testing.assert_array_equal(session.run(rows), array[[0, 3, 6]])
    np.testing.assert_array_equal(tf.train.load_variable(prefix, "emb"), array)
