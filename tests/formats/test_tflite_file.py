from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

import weightport as wp
from tests.formats._arrays import indexed, same
from tests.formats._tflite import Tensor, model, written
from tests.support import need, says
from weightport.errors import BudgetExceeded, Error, FormatError, TensorNotFound
from weightport.formats import detect, tflite_file
from weightport.formats._subbyte import BITS, packed
from weightport.formats.tflite_file import DTYPES
from weightport.tensors import Budget

X = np.arange(6, dtype=np.float32).reshape(2, 3)
NUMBERS = {name: number for number, name in DTYPES.items() if name != "object"}


def one(folder: Path, tensor: Tensor, data: bytes) -> str:
    return written(folder, model([tensor], buffers=[data]))


def told(path: str, name: str = "w") -> str:
    with tflite_file.open_source(path) as source, pytest.raises(FormatError) as caught:
        source.read(name)
    return str(caught.value).removeprefix(path)


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_every_dtype(tmp_path: Path, name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    high = 2 if name == "bool" else 1 << BITS.get(name, 8)
    raw = np.random.default_rng(3).integers(0, high, 15 * dtype.itemsize, np.uint8)
    array = raw.view(dtype).reshape(3, 5)
    data = packed(array.reshape(-1)).tobytes() if name in BITS else array.tobytes()
    path = one(tmp_path, Tensor("w", NUMBERS[name], (3, 5), 1), data)
    with tflite_file.open_source(path) as source:
        spec = source.specs()["w"]
        assert (spec.dtype, spec.shape, spec.nbytes) == (dtype, (3, 5), array.nbytes)
        whole = name in ("int32", "int64", "uint32", "uint64", "bool")
        assert spec.role == ("constant" if whole else "weight")
        assert same(source.read("w"), array)
        assert same(source.read("w", (slice(1, 3, 2), slice(2, 4))), np.array(array[1:3:2, 2:4], order="C"))


@settings(max_examples=40, deadline=None)
@given(indexed())
def test_partial_reads_are_slices(tmp_path_factory: pytest.TempPathFactory, case: tuple) -> None:
    array, index = case
    if array.dtype.name not in NUMBERS or not array.size:
        return
    tensor = Tensor("w", NUMBERS[array.dtype.name], array.shape, 1)
    with tflite_file.open_source(one(tmp_path_factory.mktemp("tfl"), tensor, array.tobytes())) as source:
        assert same(source.read("w", index), np.array(array[index], order="C"))


def test_names_graphs_and_what_is_computed(tmp_path: Path) -> None:
    graphs = [
        [Tensor("w", 0, (2, 3), 1), Tensor("computed", 0, (2, 3), 0), Tensor("w", 0, (2, 3), 2), Tensor("", 0, (), 3)],
        [Tensor("w", 0, (2, 3), 2)],
        [Tensor("déjà/vu", 0, (2, 3), 1)],
        [Tensor("v", 0, (2, 3), 1)],
    ]
    held = [X.tobytes(), (X + 1).tobytes(), X[0, :1].tobytes()]
    path = written(tmp_path, model(*graphs, buffers=held, names=["main", "body", "body"]))
    with tflite_file.open_source(path) as source:
        assert list(source.specs()) == ["w", "w'", "tensor_3", "body/w", "body'/déjà/vu", "subgraph_3/v"]
        assert [s.role for s in source.specs().values()].count("constant") == 1  # the scalar
        assert same(source.read("body/w"), X + 1)
        assert same(source.read("body'/déjà/vu"), X)
        assert same(source.read("tensor_3"), X[0, 0].reshape(()))
        assert source.facts(["w"]) == {}


def test_names_that_others_have_taken(tmp_path: Path) -> None:
    tensors = [Tensor(name, 0, (2, 3), 1) for name in ("w'", "w", "w", "w'", "w")]
    with tflite_file.open_source(written(tmp_path, model(tensors, buffers=[X.tobytes()]))) as source:
        assert list(source.specs()) == ["w'", "w", "w''", "w'''", "w''''"]


def test_buffers_outside_of_the_flatbuffer(tmp_path: Path) -> None:
    """As beyond 2 GB: three gigabytes, nearly all of them a hole."""
    at, rows = 3 << 30, 1 << 18
    head = model([Tensor("w", 0, (rows, 1024), 1)], buffers=[(at - rows * 4096, rows * 4096)])
    path = tmp_path / "m.tflite"
    row = np.arange(1024, dtype=np.float32)
    with open(path, "wb") as file:
        file.write(head)
        file.seek(at - row.nbytes)
        file.write(row.tobytes())
    with detect.open_source(path) as source:
        assert source.format == "tflite"
        assert same(source.read("w", (slice(rows - 1, rows),)), row[None])
    data = head.replace((at - rows * 4096).to_bytes(8, "little"), (at - rows * 4096 + 4).to_bytes(8, "little"))
    with open(path, "r+b") as file:
        file.write(data)
    assert "truncated or corrupt" in told(str(path))


@pytest.mark.parametrize("shift", [0, 4])
def test_buffers_that_overlap(tmp_path: Path, shift: int) -> None:
    data = np.arange(4, dtype=np.float32).tobytes()
    places = [(4096, 8), (4096 + shift, 8)]
    tensors = [Tensor("v", 0, (2,), 1), Tensor("w", 0, (2,), 2), Tensor("x", 0, (1, 2), 2), Tensor("y", 0, (2,), 0)]
    path = written(tmp_path, model(tensors, buffers=places).ljust(4096, b"\0") + data)
    if not shift:
        with tflite_file.open_source(path) as source:
            assert {name: source.read(name).tolist() for name in source.specs()} == {
                "v": [0, 1], "w": [0, 1], "x": [[0, 1]]
            }  # fmt: skip
        return
    with says(
        FormatError,
        f"{path}: tensor 'w' at byte 4100: corrupt: its 8 bytes overlap the 8 of 'v' at byte 4096: "
        "tensors share all of their bytes or none",
    ):
        tflite_file.open_source(path)


def test_text(tmp_path: Path) -> None:
    data = b"".join(n.to_bytes(4, "little") for n in (2, 16, 17, 19)) + b"abc"
    path = one(tmp_path, Tensor("w", 5, (2,), 1), data)
    with tflite_file.open_source(path) as source:
        assert source.read("w").tolist() == [b"a", b"bc"]
        assert source.read("w", (slice(1, 2),)).tolist() == [b"bc"]
        assert source.specs()["w"].role == "constant"
        assert source.extent("w") is None
    square = b"".join(n.to_bytes(4, "little") for n in (4, 24, 24, 25, 25, 27)) + b"abc"
    with tflite_file.open_source(one(tmp_path, Tensor("w", 5, (2, 2), 1), square)) as source:
        assert source.read("w").tolist() == [[b"", b"a"], [b"", b"bc"]]
    empty = b"".join(n.to_bytes(4, "little") for n in (1, 12, 12))
    with tflite_file.open_source(one(tmp_path, Tensor("w", 5, (1,), 1), empty)) as source:
        assert source.read("w").tolist() == [b""]
    for bad, message in (
        (data.replace(b"\x10", b"\x0f"), "the offsets of its strings are in disorder"),
        (data[:-1], "the offsets of its strings are in disorder"),
        (data.replace(b"\x11", b"\x01"), "the offsets of its strings are in disorder"),
        (b"\3" + data[1:], "19 bytes of strings for the shape [2]"),
        (data[:12], "12 bytes of strings for the shape [2]"),
    ):
        path = one(tmp_path, Tensor("w", 5, (2,), 1), bad)
        assert told(path) == f": tensor 'w' at byte {Path(path).read_bytes().index(bad)}: {message}"


def test_quantized(tmp_path: Path) -> None:
    stored = np.array([[-128, 0, 127], [1, 2, 3]], np.int8)
    tensors = [
        Tensor("all", 9, (2, 3), 1, (0.5,), (3,)),
        Tensor("rows", 9, (2, 3), 1, (0.5, 2.0), (0, -1)),
        Tensor("columns", 9, (2, 3), 1, (1.0, 2.0, 0.1), (), 1),
        Tensor("bias", 2, (2,), 2, (0.25,)),
    ]
    path = written(tmp_path, model(tensors, buffers=[stored.tobytes(), np.array([4, -8], "<i4").tobytes()]))
    with wp.open(path) as source:
        specs = source.specs()
        titles = {n: s.quantized.title for n, s in specs.items() if s.quantized is not None}
        assert titles == {
            "all": "quantized: scale 0.5, zero point 3",
            "rows": "quantized: 2 scales along axis 0",
            "columns": "quantized: 3 scales along axis 1",
            "bias": "quantized: scale 0.25, zero point 0",
        }
        assert {s.role for s in specs.values()} == {"weight"}
        assert same(source.read("rows"), stored)
        whole = source.read("rows", dequantize=True)
        assert same(whole, np.array([[-64, 0, 63.5], [4, 6, 8]], np.float32))
        assert same(source.read("all", dequantize=True), (stored.astype("f4") - 3) * np.float32(0.5))
        assert same(source.read("bias", dequantize=True), np.array([1, -2], np.float32))
        columns = source.read("columns", dequantize=True)
        assert same(columns, stored.astype("f4") * np.array([1, 2, 0.1], "f4"))
        cut = source.read("columns", (slice(0, 2), slice(0, 3, 2)), dequantize=True)
        assert same(cut, np.array(columns[:, ::2], order="C"))


def test_what_cannot_be_read_is_listed(tmp_path: Path) -> None:
    tensors = [
        Tensor("w", 0, (2, 3), 1),
        Tensor("sparse", 0, (9, 9), 1, sparse=True),
        Tensor("blocks", 9, (24,), 1, details=2),
        Tensor("variant", 14, (), 1),
        Tensor("outside", 0, (2, 3), 0, external=1),
    ]
    path = written(tmp_path, model(tensors, buffers=[X.tobytes()]))
    with tflite_file.open_source(path) as source:
        assert {n: s.unread for n, s in source.specs().items() if s.unread} == {
            "sparse": "a sparse tensor",
            "blocks": "quantized in blocks",
            "variant": "of the type 14",
            "outside": "in another file",
        }
        assert same(source.read("w"), X)
    assert told(path, "sparse") == ": tensor 'sparse': cannot be read: a sparse tensor"


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (Tensor("w", 0, (2, 2), 1), "24 bytes for float32[2, 2], which needs 16"),
        (Tensor("w", 0, (-1, 2), 1), "negative dimension in shape [-1, 2]"),
        (Tensor("w", 0, (1 << 30, 1 << 30), 1), "tensor bytes: 4,611,686,018,427,387,904 asked for"),
        (Tensor("w", 0, (1,) * 65, 1), "rank: 65 asked for, at most 64 allowed"),
        (Tensor("w", 9, (4, 6), 1, (1.0, 2.0)), "2 scales and 0 zero points along axis 0 of [4, 6]"),
        (Tensor("w", 9, (4, 6), 1, (1.0,) * 4, (1, 2)), "4 scales and 2 zero points along axis 0 of [4, 6]"),
        (Tensor("w", 9, (4, 6), 1, (1.0,) * 4, (), 7), "4 scales and 0 zero points along axis 7 of [4, 6]"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, tensor: Tensor, message: str) -> None:
    assert message in told(one(tmp_path, tensor, X.tobytes()))


def test_what_is_no_model(tmp_path: Path) -> None:
    for content, message in (
        (b"", "is no TensorFlow Lite model: it has no TFL3 at byte 4"),
        (b"\xff\xff\xff\xffTFL3", "bytes 4294967295..4294967299 asked for, the file has 8"),
        (b"\x08\0\0\0TFL3\x08\0\0\0", "malformed table"),
        (model([Tensor("w", 0, (2,), 9)], buffers=[]), "no buffer 9 in a model of 1"),
        (model([Tensor("w" * 70_000, 0, (2,), 1)], buffers=[b"x" * 8]), "a name of 70,000 bytes"),
    ):
        path = written(tmp_path, content)
        with pytest.raises(FormatError) as caught:
            tflite_file.open_source(path)
        assert message in str(caught.value)
        assert str(caught.value).startswith(path)
        if len(content) > 8:
            assert detect.detect(written(tmp_path, content)) == "tflite"
    assert not tflite_file.sniff(str(tmp_path))


def test_a_model_without_any_buffer(tmp_path: Path) -> None:
    """A tensor of buffer 0 has no values, even where there is none of that number."""
    b = need("flatbuffers").Builder(64)
    b.StartObject(11)
    tensor = b.EndObject()
    b.StartVector(4, 1, 4)
    b.PrependUOffsetTRelative(tensor)
    tensors = b.EndVector()
    b.StartObject(5)
    b.PrependUOffsetTRelativeSlot(0, tensors, 0)
    table = b.EndObject()
    b.StartVector(4, 1, 4)
    b.PrependUOffsetTRelative(table)
    graphs = b.EndVector()
    b.StartObject(5)
    b.PrependUOffsetTRelativeSlot(2, graphs, 0)
    b.Finish(b.EndObject(), file_identifier=b"TFL3")
    with tflite_file.open_source(written(tmp_path, bytes(b.Output()))) as source:
        assert dict(source.specs()) == {}


def test_budget_not_there_and_closed(tmp_path: Path) -> None:
    path = written(tmp_path, model([Tensor("v", 0, (2, 3), 1), Tensor("w", 0, (2, 3), 1)], buffers=[X.tobytes()]))
    for budget in (Budget(header_bytes=7), Budget(tensors=1)):
        with pytest.raises(BudgetExceeded):
            tflite_file.open_source(path, budget=budget)
    with tflite_file.open_source(path) as source, pytest.raises(TensorNotFound, match="no tensor 'vw'"):
        source.read("vw")
    with pytest.raises(Error, match="is closed"):
        source.read("w")


def test_where_tensors_lie(tmp_path: Path) -> None:
    tensors = [Tensor("w", 0, (2, 3), 1), Tensor("four", 17, (6, 8), 1), Tensor("new", 99, (1,), 1)]
    path = written(tmp_path, model(tensors, buffers=[X.tobytes()]))
    with tflite_file.open_source(path) as source:
        place = source.extent("w")
        assert place is not None
        assert Path(place.path).read_bytes()[place.offset :][: place.nbytes] == X.tobytes()
        assert [source.extent(n) for n in ("four", "new")] == [None] * 2
        with pytest.raises(TensorNotFound):
            source.extent("v")


# What TensorFlow's converter writes ----------------------------------------------------------------------------------


def converted(folder: Path, made: Any, **options: Any) -> str:
    tf = need("tensorflow")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converter = tf.lite.TFLiteConverter.from_keras_model(made)
        for name, value in options.items():
            setattr(converter, name, value)
        data: bytes = converter.convert()
    return written(folder, data)


@pytest.fixture(scope="module")
def network() -> Any:
    keras = need("keras")
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="conv", bias_initializer="glorot_uniform")(inputs)
    x = keras.layers.Dense(5, activation="relu", name="hidden", bias_initializer="normal")(keras.layers.Flatten()(x))
    return keras.Model(inputs, keras.layers.Dense(300, name="out", bias_initializer="normal")(x))


def interpreted(path: str) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    """What TensorFlow's interpreter says of the constants: values and quantization parameters."""
    tf = need("tensorflow")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interpreter = tf.lite.Interpreter(path)
    interpreter.allocate_tensors()
    found = {}
    for detail in interpreter.get_tensor_details():
        with contextlib.suppress(ValueError):  # what is computed has no values yet
            found[detail["name"]] = (interpreter.get_tensor(detail["index"]), detail["quantization_parameters"])
    return found


def test_a_converted_keras_model(network: Any, tmp_path: Path) -> None:
    path = converted(tmp_path, network)
    theirs = interpreted(path)
    with wp.open(path) as source:
        for name in source.specs():
            assert same(source.read(name), theirs[name][0])
        weights = [n for n, s in source.specs().items() if s.role == "weight"]
        by_shape = {source.specs()[n].shape: n for n in weights}
    rules = [
        {"from": by_shape[4, 3, 3, 3], "to": "conv/kernel", "rearrange": "o h w i -> h w i o"},
        {"from": by_shape[4,], "to": "conv/bias"},
        {"from": by_shape[5, 144], "to": "hidden/kernel", "rearrange": "out in -> in out"},
        {"from": by_shape[5,], "to": "hidden/bias"},
        {"from": by_shape[300, 5], "to": "out/kernel", "rearrange": "out in -> in out"},
        {"from": by_shape[300,], "to": "out/bias"},
    ]
    keras = need("keras")
    other = keras.models.clone_model(network)
    wp.transfer(path, other, {"weightport": 1, "rules": rules})
    assert all(np.array_equal(a, b) for a, b in zip(network.get_weights(), other.get_weights(), strict=True))


def test_a_quantized_keras_model(network: Any, tmp_path: Path) -> None:
    tf = need("tensorflow")

    def samples() -> Any:
        for _ in range(3):
            yield [np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)]

    options = {"optimizations": [tf.lite.Optimize.DEFAULT], "representative_dataset": samples}
    path = converted(tmp_path, network, **options)
    theirs = interpreted(path)
    kernels = {w.shape: w for w in network.get_weights()}
    with wp.open(path) as source:
        found = {n: s for n, s in source.specs().items() if s.quantized is not None}
        assert len(found) == 6
        for name, spec in found.items():
            stored, parameters = theirs[name]
            assert same(source.read(name), stored)
            along = [1] * stored.ndim
            along[parameters["quantized_dimension"]] = -1
            scale = parameters["scales"].reshape(along) if parameters["scales"].size > 1 else parameters["scales"]
            values = source.read(name, dequantize=True)
            np.testing.assert_array_equal(values, stored.astype(np.float32) * scale.astype(np.float32))
            if len(spec.shape) == 2:  # as far from the weights as a step of the scale
                np.testing.assert_allclose(values.T, kernels[spec.shape[::-1]], atol=float(scale.max()))
