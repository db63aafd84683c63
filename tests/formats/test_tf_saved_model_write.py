"""SavedModels with other values in them: every loader of TensorFlow and Keras takes the result."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.formats._graphdef import const, graph, meta_graph, node, saved_model, shape_proto
from tests.formats._mutated import mutated
from tests.formats.test_tf_bundle import bytes_field, number_field
from tests.formats.test_tf_bundle_write import save as checkpoint
from tests.formats.test_tf_graph_write import drawn, tiles_of
from tests.support import Fixture, fixture, fixtures, need
from weightport.errors import Error, RefusedError
from weightport.formats import detect, tf_saved_model_write
from weightport.formats._message import Message, fields_of
from weightport.formats._proto import Memory
from weightport.tensors import TensorSpec

Values = dict[str, np.ndarray]
X = np.linspace(-1, 1, 36, dtype=np.float32).reshape(2, 6, 3)


def weights_of(path: str) -> dict[str, TensorSpec]:
    with detect.open_source(path) as source:
        return {n: s for n, s in source.specs().items() if s.role == "weight"}


def put(path: Path, like: str, values: Values, constants: Collection[str] = (), **more: Any) -> str:
    """A SavedModel with those values; what of ``like`` is not among them is kept."""
    with detect.open_source(like) as source:
        specs = {n: s for n, s in source.specs().items() if s.role != "constant" or n in values}
    kept = {n for n in specs if n not in values}
    tf_saved_model_write.write(str(path), specs, tiles_of(values), like=like, constants=constants, kept=kept, **more)
    return str(path)


def some(names: Collection[str], choice: str) -> set[str]:
    return {"all": set(names), "some": set(list(names)[::2]), "none": set()}[choice]


def holds(path: str, values: Values) -> None:
    """The readers find every value under the name that it had."""
    assert set(weights_of(path)) == set(values)
    with detect.open_source(path) as source:
        for name, value in values.items():
            assert source.read(name).tobytes() == value.tobytes()


# TensorFlow 1 --------------------------------------------------------------------------------------------------------


def run_v1(path: str, load: Values | None = None) -> tuple[list[str], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Variables that are left, inputs by key, outputs by key; ``load`` gives the variables other values."""
    tf = need("tensorflow")
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        model = v1.saved_model.load(session, ["serve"], path)
        for variable in v1.global_variables() if load is not None else ():
            variable.load(load[variable.op.name], session)
        signatures = dict(model.signature_def)
        signature = signatures.get("serving_default") or next(iter(signatures.values()))
        inputs = {}
        for key, info in signature.inputs.items():
            shape = [d.size if d.size > 0 else 2 for d in info.tensor_shape.dim]
            inputs[key] = np.linspace(-1, 1, int(np.prod(shape))).reshape(shape)
        feeds = {info.name: inputs[key] for key, info in signature.inputs.items()}
        outputs = session.run({key: info.name for key, info in signature.outputs.items()}, feeds)
        return [v.op.name for v in v1.global_variables()], inputs, outputs


def agree(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        np.testing.assert_allclose(np.asarray(value), np.asarray(other[key]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("choice", ["all", "some", "none"])
@pytest.mark.parametrize("model", [f for f in fixtures("saved_model") if not f.name.startswith("c_keras")], ids=str)
def test_models_of_tensorflow_1(tmp_path: Path, model: Fixture, choice: str) -> None:
    tf = need("tensorflow")
    like = model.path("saved_model")
    values = drawn(weights_of(like))
    constants = some(values, choice)
    out = put(tmp_path / "out", like, values, constants)
    _, inputs, expected = run_v1(like, values)
    left, _, found = run_v1(out)
    assert set(left) == set(values) - constants
    agree(found, expected)
    (function,) = tf.saved_model.load(out).signatures.values()
    agree(function(**{key: tf.constant(value, tf.float32) for key, value in inputs.items()}), expected)
    holds(out, values)
    assert sorted(os.listdir(out)) == sorted(["saved_model.pb", *(["variables"] if choice != "all" else [])])
    if choice == "none":  # nothing in the graph is concerned
        assert Path(out, "saved_model.pb").read_bytes() == Path(like, "saved_model.pb").read_bytes()


@pytest.mark.parametrize("name", ["lstm_impl1", "gru_reset_before", "v2_lstm"])
def test_keras_models_of_tensorflow_1(tmp_path: Path, name: str) -> None:
    """An object-based checkpoint, with a graph of objects beside or, in the first two, with the saver of the graph."""
    tf = need("tensorflow")
    like = fixture(f"c_keras/{name}").path("saved_model")
    values = drawn(weights_of(like))
    expected = run_v1(put(tmp_path / "initial", like, values))[2]
    constants = some(values, "some")
    out = put(tmp_path / "out", like, values, constants)
    left, _, found = run_v1(out)
    agree(found, expected)
    assert not constants & set(left)
    holds(out, values)
    tf.saved_model.load(out)


def test_every_graph_of_a_model_gets_the_constants(tmp_path: Path) -> None:
    """One to train and one to serve share the variables."""
    tf = need("tensorflow")
    v1 = tf.compat.v1
    like = str(tmp_path / "like")
    builder = v1.saved_model.Builder(like)
    for training in (True, False):
        with tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.float32, [None, 2], "x")
            y = tf.identity(x @ v1.get_variable("w", [2, 2]) + v1.get_variable("b", [2]), "y")
            if training:
                v1.train.AdamOptimizer(0.1).minimize(tf.reduce_mean(y**2), name="train")
                session.run(v1.global_variables_initializer())
                builder.add_meta_graph_and_variables(session, ["train"])
            else:
                signature = v1.saved_model.predict_signature_def({"x": x}, {"y": y})
                builder.add_meta_graph(["serve"], {"serving_default": signature})
    builder.save()
    values = {"w": np.float32([[1, 2], [3, 4]]), "b": np.float32([5, 6])}
    out = put(tmp_path / "out", like, values, {"w"})
    for tags in (["train"], ["serve"]):
        with tf.Graph().as_default() as built, v1.Session() as session:
            v1.saved_model.load(session, tags, out)
            assert built.get_operation_by_name("w").type == "Const"
            assert session.run("y:0", {"x:0": [[1, 1]]}).tolist() == [[9, 12]]
            if tags == ["train"]:
                session.run("train", {"x:0": [[1, 1]]})
                assert session.run("y:0", {"x:0": [[0, 0]]}).tolist() != [[5, 6]], "what is left learns"
                assert session.run("w:0").tolist() == [[1, 2], [3, 4]]


def test_shards_of_the_variables(tmp_path: Path) -> None:
    like = fixture("a_seed_char_lstm").path("saved_model")
    values = drawn(weights_of(like))
    out = put(tmp_path / "out", like, values, shard_size=5000)
    assert sum(".data-" in n for n in os.listdir(tmp_path / "out" / "variables")) > 3
    agree(run_v1(out)[2], run_v1(like, values)[2])


# TensorFlow 2 --------------------------------------------------------------------------------------------------------


def module(folder: Path) -> str:
    """Variables in lists and dicts, of the same name, captured by loops and branches; a table, an asset, a constant."""
    tf = need("tensorflow")
    words = folder / "words.txt"
    words.write_text("a\nb\n", encoding="utf-8")

    class Model(tf.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.w = tf.Variable(np.ones((3, 3), np.float32), name="w")
            self.biases = [tf.Variable(np.ones(3, np.float32), name="b"), tf.Variable(np.ones(3, np.float32), name="b")]
            self.parts = {"table": tf.Variable(np.ones((6, 3), np.float32), name="table")}
            self.calls = tf.Variable(0, trainable=False, name="calls")
            self.words = tf.lookup.StaticHashTable(
                tf.lookup.TextFileInitializer(
                    str(words),
                    tf.string,
                    tf.lookup.TextFileIndex.WHOLE_LINE,
                    tf.int64,
                    tf.lookup.TextFileIndex.LINE_NUMBER,
                ),
                -1,
            )
            self.scale = tf.constant(np.float32([1, 2, 3]))

        @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.float32)])
        def serve(self, x: Any) -> Any:
            y = tf.reduce_sum(x, 1) @ self.w + tf.gather(self.parts["table"], [1]) + self.biases[0]
            for _ in tf.range(2):
                y = tf.tanh(y @ self.w) + self.biases[0]
            y = tf.cond(tf.reduce_sum(y) > 3, lambda: y * self.biases[1], lambda: y - self.biases[1])
            return {"y": y * self.scale, "rows": tf.shape(self.parts["table"])[0]}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def numbers(self, words: Any) -> Any:
            self.calls.assign_add(1)
            return {"y": self.words.lookup(words)}

    model = Model()
    path = str(folder / "like")
    tf.saved_model.save(model, path, signatures={"serving_default": model.serve, "numbers": model.numbers})
    return path


def keras3(folder: Path) -> str:
    keras = need("keras")
    inputs = keras.Input((6, 3), name="x")
    hidden = keras.layers.LSTM(4, name="lstm", return_sequences=True)(inputs)
    hidden = keras.layers.Bidirectional(keras.layers.GRU(3), name="both")(hidden)
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(hidden))
    model.export(str(folder / "like"), verbose=False)
    return str(folder / "like")


def keras3_saved(folder: Path) -> str:
    """Not exported: its functions are given other nodes than those that are saved."""
    tf, keras = need("tensorflow"), need("keras")
    inputs = keras.Input((6, 3), name="x")
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(keras.layers.Dense(4, "tanh", name="body")(inputs)))
    tf.saved_model.save(model, str(folder / "like"))
    return str(folder / "like")


def keras2(folder: Path) -> str:
    """Compiled and trained: the optimizer and its slots are saved, too."""
    keras = need("tf_keras")
    inputs = keras.Input((6, 3), name="x")
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(keras.layers.LSTM(4, name="lstm")(inputs)))
    model.compile(keras.optimizers.legacy.Adam(), "mse")  # whose slots are tied to the variables
    model.fit(np.zeros((4, 6, 3)), np.ones((4, 2)), verbose=0)
    model.save(str(folder / "like"), save_format="tf")
    return str(folder / "like")


def calls(path: str) -> tuple[Any, dict[str, np.ndarray]]:
    tf = need("tensorflow")
    model = tf.saved_model.load(path)
    function = model.signatures["serving_default"]
    (key,) = function.structured_input_signature[1]
    return model, {k: np.asarray(v) for k, v in function(**{key: tf.constant(X)}).items()}


@pytest.mark.parametrize("make", [module, keras3, keras3_saved, keras2], ids=lambda f: f.__name__)
def test_models_of_tensorflow_2(tmp_path: Path, make: Callable[[Path], str]) -> None:
    tf = need("tensorflow")
    v1 = tf.compat.v1
    like = make(tmp_path)
    values = drawn({n: s for n, s in weights_of(like).items() if n != "calls"})
    initial = put(tmp_path / "initial", like, values)
    holds(initial, values | {n: np.int32(0) for n in weights_of(like) if n == "calls"})
    expected = calls(initial)[1]
    before = calls(like)[1]
    assert not all(np.allclose(expected[key], before[key]) for key in expected)
    for choice in ("some", "all") if make is module else ("some",):
        constants = some(values, choice)
        out = put(tmp_path / choice, like, values, constants)
        model, found = calls(out)
        agree(found, expected)
        assert sorted(set(os.listdir(like)) - {"fingerprint.pb"}) == sorted(os.listdir(out))
        if make is keras3_saved:
            continue  # which the loader of TensorFlow 1 never took: nothing restores what its functions are given
        with tf.Graph().as_default(), v1.Session() as session:
            signature = v1.saved_model.load(session, ["serve"], out).signature_def["serving_default"]
            feeds = {info.name: X for info in signature.inputs.values()}
            agree(session.run({k: i.name for k, i in signature.outputs.items()}, feeds), expected)
        if make is module:
            assert type(model.w).__name__ == ("EagerTensor" if "w" in constants else "UninitializedVariable")
            assert model.signatures["numbers"](words=tf.constant(["b", "c"]))["y"].numpy().tolist() == [1, -1]
            assert int(model.calls) == 1
            again = str(tmp_path / f"{choice}-again")
            tf.saved_model.save(model, again, signatures=dict(model.signatures))
            agree(calls(again)[1], expected)
        if make is keras2:  # which makes the layers anew, and finds their values in the checkpoint
            keras = need("tf_keras")
            agree({"y": keras.models.load_model(out).predict(X, verbose=0)}, {"y": next(iter(expected.values()))})


def test_what_a_function_writes_is_no_constant(tmp_path: Path) -> None:
    like = module(tmp_path)
    with pytest.raises(Error) as caught:
        put(tmp_path / "out", like, {"calls": np.int32(3)}, {"calls"})
    (problem,) = caught.value.problems
    assert problem.where == "variable 'calls'"
    assert problem.what.startswith("cannot become a constant: AssignAddVariableOp '__inference_numbers_")
    assert problem.what.endswith("AssignAddVariableOp' writes it")
    assert problem.hint == "make it an initial value, or take a graph without that operation"
    assert not (tmp_path / "out").exists()


def test_a_constant_that_a_function_captures(tmp_path: Path) -> None:
    """It has a name, and may be moved by it."""
    like = module(tmp_path)
    with detect.open_source(like) as source:
        (name,) = (n for n, s in source.specs().items() if s.role == "constant" and s.shape == (3,) and "/" not in n)
    out = put(tmp_path / "out", like, {name: np.float32([0, 0, 0])})
    assert not calls(out)[1]["y"].any()
    assert calls(like)[1]["y"].any()


# Hand-made, without TensorFlow ---------------------------------------------------------------------------------------

KIND = {"dtype": number_field(6, 1), "shape": bytes_field(7, shape_proto([2]))}
VALUE = np.float32([1, 2])


def hand_made(folder: Path, *extra: bytes, tags: tuple[str, ...] = ("serve",)) -> str:
    made = graph(node("v", "VariableV2", **KIND), node("v/read", "Identity", "v"), const("c", VALUE), *extra)
    path = saved_model(folder, *(meta_graph(made, tag) for tag in tags))
    (folder / "variables").mkdir()
    checkpoint(str(folder / "variables" / "variables"), {"v": VALUE, "w": VALUE})
    (folder / "assets").mkdir()
    (folder / "assets" / "words.txt").write_text("a", encoding="utf-8")
    (folder / "fingerprint.pb").write_bytes(b"1")
    return path


def test_what_belongs_to_it_is_copied(tmp_path: Path) -> None:
    out = put(tmp_path / "out", hand_made(tmp_path / "like"), {"v": VALUE + 1}, {"v"})
    assert (tmp_path / "out" / "assets" / "words.txt").read_text(encoding="utf-8") == "a"
    assert sorted(os.listdir(out)) == ["assets", "saved_model.pb", "variables"]
    with detect.open_source(out) as source:
        assert {n: source.read(n).tolist() for n, s in source.specs().items() if s.role == "weight"} == {
            "v": [2, 3], "w": [1, 2],
        }  # fmt: skip


def test_a_dry_run_refuses_what_writing_would(tmp_path: Path) -> None:
    like = hand_made(tmp_path / "like", node("x", "AssignAdd", "v", "c"))
    specs = {"v": TensorSpec.of("float32", (2,))}
    out = str(tmp_path / "out")
    tf_saved_model_write.check(out, specs, like=like)
    tf_saved_model_write.check(out, specs, like=like, constants={"v"}, kept={"v"})
    with pytest.raises(Error) as caught:
        tf_saved_model_write.check(out, specs, like=like, constants={"v"})
    assert str(caught.value) == (
        "variable 'v': cannot become a constant: AssignAdd 'x' writes it; make it an initial value, or take a graph "
        "without that operation"
    )
    with pytest.raises(RefusedError, match="is in the place of"):
        tf_saved_model_write.check(like, specs, like=like)
    assert sorted(os.listdir(tmp_path)) == ["like"]


def test_without_variables_there_is_no_checkpoint(tmp_path: Path) -> None:
    like = saved_model(
        tmp_path / "like", meta_graph(graph(const("c", VALUE), node("c/read", "Identity", "c")), "serve")
    )
    out = put(tmp_path / "out", like, {"c": VALUE + 1})
    assert os.listdir(out) == ["saved_model.pb"]
    with detect.open_source(out) as source:
        assert source.read("c").tolist() == [2, 3]


def with_objects(folder: Path, change: Callable[[bytes], bytes]) -> str:
    """A model of TensorFlow 2 whose graph of objects is another one."""
    shutil.copytree(fixture("c_keras/v2_lstm").path("saved_model"), folder)
    described = folder / "saved_model.pb"
    file = Memory(described.read_bytes(), "s")
    out = Message()
    for found in fields_of(file, 0, file.size):
        if found.number != 2:
            out.copied(found)
            continue
        meta = Message()
        for inner in fields_of(file, found.value, found.end):
            if inner.number == 7:
                meta.bytes_field(7, change(inner.read()))
            else:
                meta.copied(inner)
        out.bytes_field(2, meta)
    described.write_bytes(bytes(out))
    return str(folder)


def test_objects_that_are_not_those_of_the_checkpoint(tmp_path: Path) -> None:
    like = with_objects(tmp_path / "like", lambda _: b"")
    values = drawn(weights_of(like))
    first, second = sorted(values)[:2]
    with pytest.raises(Error) as caught:
        put(tmp_path / "out", like, values, {first, second})
    assert sorted(map(str, caught.value.problems)) == [
        f"variable {name!r}: cannot become a constant: the model does not say for certain which node and which object "
        "it is; make it an initial value"
        for name in (first, second)
    ]
    assert not (tmp_path / "out").exists()
    holds(put(tmp_path / "out", like, values), values)


def test_a_function_that_only_the_objects_know(tmp_path: Path) -> None:
    """It captures something, and is not in the graph: nothing becomes of it."""
    extra = bytes_field(2, bytes_field(1, b"nowhere") + bytes_field(2, bytes_field(2, b"\1\2\3")))
    plain, like = (with_objects(tmp_path / name, lambda o, e=e: o + e) for name, e in (("plain", b""), ("like", extra)))
    values = drawn(weights_of(like))
    found, other = (
        Path(put(tmp_path / f"out{n}", path, values, set(values)), "saved_model.pb").read_bytes()
        for n, path in enumerate((plain, like))
    )
    assert extra in other
    assert len(other) >= len(found) + len(extra)


@pytest.mark.parametrize("where", ["out", "folder", "inside", "pipe"])
def test_links_and_other_oddities_among_the_assets(tmp_path: Path, where: str) -> None:
    like = hand_made(tmp_path / "like")
    (tmp_path / "secret").write_text("key", encoding="utf-8")
    (tmp_path / "like" / "assets" / "more").mkdir()
    odd = tmp_path / "like" / "assets" / "more" / "odd"
    if where == "pipe":
        os.mkfifo(odd)
        told = "is not a regular file"
    else:
        odd.symlink_to({"out": "../../../secret", "folder": "..", "inside": "../words.txt"}[where])
        told = "is a link to a folder, or out of the model's own folder; copy the model with the files in place of"
    if where == "inside":
        put(tmp_path / "out", like, {"v": VALUE})
        assert (tmp_path / "out" / "assets" / "more" / "odd").read_text(encoding="utf-8") == "a"
        assert not (tmp_path / "out" / "assets" / "more" / "odd").is_symlink()
        return
    with pytest.raises(Error, match=re.escape(f"{odd}: {told}")):
        put(tmp_path / "out", like, {"v": VALUE})
    assert not (tmp_path / "out").exists()


def test_a_variable_that_no_graph_has(tmp_path: Path) -> None:
    like = hand_made(tmp_path / "like")
    with pytest.raises(Error) as caught:
        put(tmp_path / "out", like, {"w": VALUE}, {"w"})
    assert str(caught.value) == f"tensor 'w' of {like}: is in no graph as a variable, so it cannot become a constant"


def test_constants_of_one_of_several_graphs(tmp_path: Path) -> None:
    like = hand_made(tmp_path / "like", tags=("serve", "train"))
    with pytest.raises(Error) as caught:
        put(tmp_path / "out", like, {"c": VALUE})
    assert str(caught.value) == f"tensor 'c' of {like}: is a constant, and there are several graphs (serve, train)"


def test_a_graph_that_protobuf_could_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf_saved_model_write, "MOST_BYTES", 50)
    with pytest.raises(RefusedError) as caught:
        put(tmp_path / "out", hand_made(tmp_path / "like"), {"v": VALUE}, {"v"})
    told = str(caught.value).partition("would be ")[2].partition(" bytes")[2]
    assert told == ", and protobuf reads at most 2 GiB; make some of the constants initial values: as: initial"
    assert not (tmp_path / "out").exists()


def test_destinations_that_are_refused(tmp_path: Path) -> None:
    like = hand_made(tmp_path / "like")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    (tmp_path / "link").symlink_to("like")
    for out, told in {
        "like": f"is in the place of {like}, which is only read; write to another path",
        "link": f"is in the place of {like}, which is only read; write to another path",
        "like/assets": f"is in the place of {like}, which is only read; write to another path",
        ".": f"is in the place of {like}, which is only read; write to another path",
        "other": "holds something else than a SavedModel ('thesis.txt'), which would be lost; write to another path",
        "file": "is a file, not the folder of a SavedModel; write to another path",
    }.items():
        with pytest.raises(RefusedError) as caught:
            put(tmp_path / out, like, {"v": VALUE})
        assert str(caught.value) == f"{tmp_path / out}: {told}"
    with pytest.raises(Error, match=r"no/out: cannot be written: No such file or directory$"):
        put(tmp_path / "no" / "out", like, {"v": VALUE})


def test_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "like").mkdir()
    (tmp_path / "like" / "saved_model.pbtxt").write_text(
        'meta_graphs { graph_def { node { name: "c" op: "NoOp" } } }', encoding="utf-8"
    )
    with pytest.raises(RefusedError, match=r"saved_model.pbtxt: is text, of which only a part is read: "):
        put(tmp_path / "out", str(tmp_path / "like"), {})


def test_one_that_is_there_is_replaced_whole(tmp_path: Path) -> None:
    like = hand_made(tmp_path / "like")
    out = tmp_path / "out"
    shutil.copytree(like, out)
    (out / "keras_metadata.pb").write_bytes(b"old")
    put(out, like, {"v": VALUE + 5})
    assert sorted(os.listdir(out)) == ["assets", "saved_model.pb", "variables"]
    with detect.open_source(str(out)) as source:
        assert source.read("v").tolist() == [6, 7]

    def torn(name: str) -> Any:
        raise Error(f"{name} is torn")

    specs = {n: TensorSpec.of("float32", (2,)) for n in "vw"}
    with pytest.raises(Error, match="v is torn"):
        tf_saved_model_write.write(str(out), specs, torn, like=like)
    with detect.open_source(str(out)) as source:
        assert source.read("v").tolist() == [6, 7]
    assert sorted(os.listdir(tmp_path)) == ["like", "out"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_targets_end_in_an_error(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever the TARGET's graph and objects are: a SavedModel, or an error of ours and nothing."""
    like = tmp_path / "like"
    shutil.rmtree(like, ignore_errors=True)
    shutil.copytree(fixture("c_keras/v2_lstm").path("saved_model"), like)
    values = drawn(weights_of(str(like)))
    specs = {n: TensorSpec.of("float32", v.shape) for n, v in values.items()}
    described = like / "saved_model.pb"
    described.write_bytes(mutated(data, described.read_bytes()))
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    try:
        tf_saved_model_write.write(str(out), specs, tiles_of(values), like=str(like), constants=set(values))
    except Error:
        assert not out.exists()
    assert sorted(os.listdir(tmp_path)) == ["like", *(["out"] if out.exists() else [])]
