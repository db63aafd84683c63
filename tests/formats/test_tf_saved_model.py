"""SavedModels of both generations: variables bit for bit, the graph's constants beside them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.formats._graphdef import const, function, graph, meta_graph, node, saved_model
from tests.formats.test_tf_bundle import number_field
from tests.support import Fixture, fixture, fixtures, need, says
from weightport.errors import BudgetExceeded, Error, FormatError, TensorNotFound
from weightport.formats import detect, tf_bundle, tf_saved_model
from weightport.formats._io import ByteFile
from weightport.formats._proto import Memory
from weightport.formats.tf_saved_model import SavedModelSource
from weightport.tensors import Budget

MODELS = fixtures("saved_model")
W = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_bit_for_bit(model: Fixture) -> None:
    folder = model.path("saved_model")
    expected = model.variables
    for path in (folder, os.path.join(folder, "saved_model.pb"), "tf-saved-model:" + folder):
        source = detect.open_source(path)
        assert (source.format, source.path) == ("tf-saved-model", folder)
        specs = source.specs()
        assert {name for name, spec in specs.items() if spec.role == "weight"} == set(expected)
        for name, want in expected.items():
            got = source.read(name)
            assert (got.dtype, got.shape, got.tobytes()) == (want.dtype, want.shape, want.tobytes())
            assert source.read(name, (slice(1, None, 2),)).tobytes() == want[1::2].tobytes()
        constants = [name for name, spec in specs.items() if spec.role == "constant"]
        assert constants
        for name in constants:
            assert source.read(name).shape == specs[name].shape
        source.close()
        with pytest.raises(Error, match="is closed"):
            source.read(constants[0])
    assert tf_saved_model.sniff(folder)


def test_no_framework_is_imported() -> None:
    code = f"""
import sys
for name in ("tensorflow", "keras", "tf_keras", "torch", "jax", "onnx", "google.protobuf"):
    sys.modules[name] = None  # importing it is an ImportError
from weightport.formats import detect
for path in {[m.path("saved_model") for m in MODELS] + [m.path("meta_graph") for m in fixtures("meta_graph")]!r}:
    source = detect.open_source(path)
    for name in source.specs():
        source.read(name)
    source.facts([name for name, spec in source.specs().items() if spec.role == "weight"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == 0, done.stderr


def test_roles_and_keys_are_the_checkpoint_s() -> None:
    folder = fixture("c_keras/v2_lstm").path("saved_model")
    with tf_saved_model.open_source(folder) as source, tf_bundle.open_source(folder + "/variables/variables") as bundle:
        for name, spec in bundle.specs().items():
            assert source.specs()[name] == spec
        for key, name in bundle.raw_names().items():
            assert source.read(key).tobytes() == source.read(name).tobytes()
        with pytest.raises(TensorNotFound, match="closest: 'lstm/kernel'"):
            source.read("lstm/kernal")


@pytest.mark.filterwarnings("ignore")
def test_constants_of_functions_as_tensorflow_writes_them(tmp_path: Path) -> None:
    tf = need("tensorflow")

    class Model(tf.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.w = tf.Variable(W, name="scale")
            self.fixed = tf.constant(W + 10)

        @tf.function(input_signature=[tf.TensorSpec((2, 3), tf.float32)])
        def call(self, x):  # type: ignore[no-untyped-def]
            return x * self.w + self.fixed + tf.constant(np.arange(7, 13, dtype=np.float32).reshape(2, 3))

    model = Model()
    tf.saved_model.save(model, str(tmp_path / "s"), signatures=model.call)
    with tf_saved_model.open_source(str(tmp_path / "s")) as source:
        specs = source.specs()
        assert {n for n, spec in specs.items() if spec.role == "weight"} == {"scale"}
        assert source.read("scale").tolist() == W.tolist()
        found = {n: source.read(n) for n, spec in specs.items() if spec.shape == (2, 3) and spec.role == "constant"}
    captured = [n for n, value in found.items() if value.tolist() == (W + 10).tolist()]
    assert "Const" in captured  # captured from outside: a constant of the main graph
    inner = [n for n, value in found.items() if value.flat[0] == 7]
    assert inner
    assert all(n.startswith("__inference_") and "/" in n for n in inner)


def test_the_graph_for_serving_is_taken(tmp_path: Path) -> None:
    def tagged(*tags: str) -> bytes:
        return meta_graph(graph(const("_".join(tags) or "none", W)), *tags)

    for graphs, wanted in (
        ((("train",), ("serve", "gpu"), ("serve",)), "serve"),
        ((("train",), ("serve", "gpu")), "serve_gpu"),
        ((("train",), ("eval",)), "train"),
        (((),), "none"),
    ):
        source = tf_saved_model.open_source(saved_model(tmp_path / "s", *(tagged(*tags) for tags in graphs)))
        assert source.tags == graphs
        assert list(source.specs()) == [wanted]


def test_without_variables_it_is_a_frozen_graph(tmp_path: Path) -> None:
    nodes = [const("w", W), node("w/read", "Identity", "w"), const("c", W)]
    inner = function("f", ["x"], {"o": "k:output:0"}, [const("k", W)])
    folder = saved_model(tmp_path / "s", meta_graph(graph(*nodes, functions=[inner]), "serve"))
    with tf_saved_model.open_source(folder) as source:
        roles = {name: spec.role for name, spec in source.specs().items()}
        assert roles == {"w": "weight", "c": "constant", "f/k": "constant"}
        assert source.read("f/k", (slice(1, 2),)).tolist() == W[1:].tolist()
        assert source.facts(["w"]) == {}


def test_constants_do_not_hide_variables(tmp_path: Path) -> None:
    model = fixture("b_cells/gru")
    name = next(iter(model.variables))
    shutil.copytree(model.path("saved_model"), tmp_path / "s")
    saved_model(tmp_path / "s", meta_graph(graph(const(name, W), const(name + "'", W + 1)), "serve"))
    with tf_saved_model.open_source(str(tmp_path / "s")) as source:
        assert source.read(name).tobytes() == model.variables[name].tobytes()
        assert source.read(name + "'").tolist() == W.tolist()
        assert source.read(name + "''").tolist() == (W + 1).tolist()


def test_mistakes(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "s", meta_graph(graph(node("w", "VarHandleOp"), const("c", 1.0)), "serve"))
    with pytest.raises(FormatError) as caught:
        tf_saved_model.open_source(folder)
    index = os.path.join(folder, "variables", "variables.index")
    assert str(caught.value) == f"{index}: is not there: the graph has variables ('w', ...)"
    (tmp_path / "empty").mkdir()
    assert not tf_saved_model.sniff(str(tmp_path / "empty"))
    with pytest.raises(FormatError, match=r"is no SavedModel: it has neither saved_model.pb nor saved_model.pbtxt$"):
        tf_saved_model.open_source(str(tmp_path / "empty"))
    Path(folder, "saved_model.pb").write_bytes(graph(const("c", 1.0)))
    with pytest.raises(FormatError, match="is a GraphDef, not a SavedModel"):
        tf_saved_model.open_source(folder)


def test_without_a_graph(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "s")
    assert not tf_saved_model.sniff(folder)
    with says(FormatError, f"{folder}/saved_model.pb: is a SavedModel without a graph"):
        SavedModelSource(folder, folder, Memory(number_field(1, 1), f"{folder}/saved_model.pb"), ByteFile(__file__))


def test_a_checkpoint_is_closed_if_the_graph_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fixture("b_cells/gru")
    shutil.copytree(model.path("saved_model"), tmp_path / "s")
    many = [const(f"c{n}", 1.0) for n in range(50)]
    saved_model(tmp_path / "s", meta_graph(graph(*many), "serve"))
    closed: list[str] = []
    monkeypatch.setattr(tf_bundle.BundleSource, "close", lambda self: closed.append(self.path))
    with says(BudgetExceeded, f"{tmp_path}/s/saved_model.pb: tensors: 50 asked for, at most 49 allowed"):
        tf_saved_model.open_source(str(tmp_path / "s"), budget=Budget(tensors=49))
    assert closed == [f"{tmp_path}/s/variables/variables"]
    alone = saved_model(tmp_path / "alone", meta_graph(graph(*many), "serve"))
    with says(BudgetExceeded, f"{alone}/saved_model.pb: tensors: 50 asked for, at most 49 allowed"):
        tf_saved_model.open_source(alone, budget=Budget(tensors=49))


def test_checksums_and_parts(tmp_path: Path) -> None:
    """Variables have checksums, under the names of the checkpoint, too; constants have none."""
    with tf_saved_model.open_source(fixture("c_keras/v2_lstm").path("saved_model")) as source:
        constant = next(iter(source.constants))
        assert [source.checksum(name) for name in ("lstm/kernel", constant, "nowhere")] == ["crc32c", "", ""]
        assert source.variables is not None
        keys = [key for key, name in source.variables.raw_names().items() if key != name]
        assert keys
        assert {source.checksum(key) for key in keys} == {"crc32c"}
        with pytest.raises(TensorNotFound):
            source.read("nowhere")
    with says(Error, f"{source.path}: is closed"):
        source.facts(["lstm/kernel"])
    parts = [
        n for k in range(2) for n in (const(f"v/part_{k}", W + k), node(f"v/part_{k}/read", "Identity", f"v/part_{k}"))
    ]
    folder = saved_model(tmp_path / "s", meta_graph(graph(*parts, node("look", "Gather", "v/part_0/read")), "serve"))
    with tf_saved_model.open_source(folder) as source:
        assert list(source.specs()) == ["v"]
        assert source.read("v").tolist() == [*W.tolist(), *(W + 1).tolist()]
        assert source.read("v/part_1").tolist() == (W + 1).tolist()
        assert [source.checksum(name) for name in ("v", "v/part_1")] == ["", ""]


@pytest.mark.filterwarnings("ignore")
def test_as_text(tmp_path: Path) -> None:
    text_format = need("google.protobuf.text_format")
    message_type = need("tensorflow.core.protobuf.saved_model_pb2").SavedModel
    model = fixture("b_cells/basic_lstm_fb1")
    shutil.copytree(model.path("saved_model"), tmp_path / "s")
    binary = tmp_path / "s" / "saved_model.pb"
    message = message_type.FromString(binary.read_bytes())
    with tf_saved_model.open_source(str(tmp_path / "s")) as source:
        expected = {n: (spec, source.read(n).tolist()) for n, spec in source.specs().items()}
        facts = source.facts(list(model.variables))
    binary.unlink()
    (tmp_path / "s" / "saved_model.pbtxt").write_text(text_format.MessageToString(message), encoding="utf-8")
    with detect.open_source(tmp_path / "s") as source:  # type: ignore[attr-defined]
        assert {n: (spec, source.read(n).tolist()) for n, spec in source.specs().items()} == expected
        assert source.facts(list(model.variables)) == facts
        assert facts["forget_bias"] == 1.0
