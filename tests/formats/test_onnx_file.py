from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

import weightport as wp
from tests.formats._arrays import indexed, same
from tests.formats._onnx import attribute, field, fixed32, graph, model, node, raw, tensor, written
from tests.support import fixture, need, says
from weightport.errors import BudgetExceeded, Error, FormatError, TensorNotFound
from weightport.formats import detect, onnx_file
from weightport.formats._onnx_tensor import DTYPES, entry, floats, integers
from weightport.formats._proto import BYTES, FIXED32, VARINT, Memory
from weightport.formats._subbyte import BITS
from weightport.tensors import Budget, Extent, TensorSpec

NUMBERS = {name: number for number, name in DTYPES.items() if name != "object"}
X = np.arange(6, dtype=np.float32).reshape(2, 3)


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def arrays_of(name: str) -> np.ndarray:
    """Every bit pattern that some random bytes have, in an odd number of elements."""
    dtype = dtype_of(name)
    high = 1 << BITS.get(name, 8)
    raw_bytes = np.random.default_rng(5).integers(0, 2 if name == "bool" else high, 15 * dtype.itemsize, np.uint8)
    return raw_bytes.view(dtype).reshape(3, 5)


def read(path: str, name: str, index: Any = None) -> np.ndarray:
    with onnx_file.open_source(path) as source:
        return source.read(name, index)


def told(path: str, name: str = "w") -> str:
    """The error that reading a tensor ends in."""
    with pytest.raises(FormatError) as caught:
        read(path, name)
    return str(caught.value).removeprefix(path)


# Encodings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["raw", "typed"])
@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_reads_what_onnx_writes(tmp_path: Path, name: str, encoding: str) -> None:
    onnx = need("onnx")
    array = arrays_of(name)
    if encoding == "raw":
        made = onnx.numpy_helper.from_array(array, "w")
        assert made.HasField("raw_data")
    else:
        made = onnx.helper.make_tensor("w", NUMBERS[name], array.shape, array.reshape(-1))
        assert not made.HasField("raw_data")
    path = written(tmp_path, onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [made])))
    with onnx_file.open_source(path) as source:
        spec = source.specs()["w"]
        assert (spec.dtype, spec.shape, spec.nbytes) == (array.dtype, array.shape, array.nbytes)
        theirs = onnx.numpy_helper.to_array(made)
        found = source.read("w")
        if encoding == "raw" or name not in ("float16", "bfloat16", "float32", "complex64", "complex128", "float64"):
            assert same(found, array)  # onnx itself loses the bits of NaNs in typed fields
        np.testing.assert_array_equal(found.astype("c16"), theirs.astype("c16"))
        for index in ((slice(1, 3),), (slice(0, 3, 2), slice(1, 4, 2)), (slice(1, 1),)):
            assert same(source.read("w", index), np.array(found[index], order="C"))


@settings(max_examples=60, deadline=None)
@given(indexed())
def test_partial_reads_are_slices(tmp_path_factory: pytest.TempPathFactory, case: tuple) -> None:
    array, index = case
    kind = NUMBERS[array.dtype.name]
    held = [field(9, array.tobytes())]
    path = written(tmp_path_factory.mktemp("onnx"), model(graph(tensor("w", kind, array.shape, *held))))
    assert same(read(path, "w", index), np.array(array[index], order="C"))


def test_bits_of_nans(tmp_path: Path) -> None:
    bits = np.array([0x7FA00001, 0xFFC12345, 0x80000000, 1], np.uint32)
    path = written(tmp_path, model(graph(tensor("w", 1, (4,), field(4, bits.tobytes())))))
    assert read(path, "w").tobytes() == bits.tobytes()
    halves = b"".join(field(5, v) for v in (0x7D01, 0xFE02))
    path = written(tmp_path, model(graph(tensor("w", 10, (2,), halves))))
    assert read(path, "w").view(np.uint16).tolist() == [0x7D01, 0xFE02]


def test_fields_as_protobuf_defines_them(tmp_path: Path) -> None:
    floats = fixed32(4, 1.0) + field(4, np.array([2, 3], "<f4").tobytes()) + fixed32(4, 4.0)  # unpacked, packed
    ints = field(7, b"\1\xff\xff\xff\xff\xff\xff\xff\xff\xff\1") + field(7, 7)
    first = field(9, b"\0\0\0\0") + field(9, np.float32(5).tobytes())  # the last one counts
    packed_dims = field(1, b"\2\1") + field(2, 3) + field(2, 1) + field(9, X[0, :2].tobytes()) + field(8, "p")
    graphs = [
        graph(tensor("f", 1, (4,), floats), tensor("i", 7, (3,), ints)),
        graph(tensor("r", 1, (), first), packed_dims),
    ]
    path = written(tmp_path, model(*graphs))  # a message that occurs twice is one message
    with onnx_file.open_source(path) as source:
        assert list(source.specs()) == ["f", "i", "r", "p"]
        assert source.read("f").tolist() == [1, 2, 3, 4]
        assert source.read("i").tolist() == [1, -1, 7]
        assert source.read("r").tolist() == 5.0
        assert same(source.read("p"), X[0, :2].reshape(2, 1))


def test_text_scalars_and_nothing(tmp_path: Path) -> None:
    texts = tensor("déjà/vu", 8, (2, 1), field(6, b"\xff"), field(6, "é"))
    path = written(
        tmp_path, model(graph(texts, tensor("empty", 1, (0, 3)), tensor("one", 11, (), field(10, b"\0" * 8))))
    )
    with onnx_file.open_source(path) as source:
        assert source.specs()["déjà/vu"] == TensorSpec(np.dtype(object), (2, 1), 3, "constant")
        assert source.read("déjà/vu").tolist() == [[b"\xff"], ["é".encode()]]
        assert source.read("déjà/vu", (slice(1, 2),)).tolist() == [["é".encode()]]
        assert same(source.read("empty"), np.zeros((0, 3), np.float32))
        assert same(source.read("one"), np.zeros((), np.float64))


@pytest.mark.parametrize(
    ("given_tensor", "message"),
    [
        (tensor("w", 1, (2,), field(9, b"\0" * 7)), " at byte 15: 7 bytes of raw data for float32[2], which needs 8"),
        (tensor("w", 1, (2,), field(4, b"\0" * 4)), " at byte 9: 1 values for the shape [2]"),
        (tensor("w", 1, (2,), field(4, b"\0" * 5)), ": 5 bytes are no whole number of 4-byte values"),
        (tensor("w", 1, (2,)), " at byte 9: 0 values for the shape [2]"),
        (tensor("w", 7, (1,), field(7, b"\1\2\3")), " at byte 9: 3 values for the shape [1]"),
        (tensor("w", 14, (1,), field(4, b"\0" * 12)), " at byte 9: 3 numbers for complex64, of which each takes two"),
        (tensor("w", 15, (0,), field(10, b"\0" * 8)), " at byte 9: 1 numbers for complex128, of which each takes two"),
        (tensor("w", 7, (1,), field(7, b"\x80" * 11)), " at byte 15: malformed varint"),
        (tensor("w", 8, (1,)), " at byte 9: 0 strings for the shape [1]"),
        (tensor("w", 1, (-2,)), ": negative dimension in shape [-2]"),
        (tensor("w", 1, (1 << 62, 4)), ": tensor bytes: 73,786,976,294,838,206,464 asked for, at most"),
        (tensor("w", 1, (0, 1 << 62, 4)), ": no array can have the shape [0, 4611686018427387904, 4]"),
        (tensor("w", 1, (1,) * 65), ": rank: 65 asked for, at most 64 allowed"),
        (field(1, b"\1" * 700) + field(8, "w"), ": rank: 70 asked for, at most 64 allowed"),
        (field(1, b"\1" * 65) + field(8, "w"), ": rank: 65 asked for, at most 64 allowed"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, given_tensor: bytes, message: str) -> None:
    assert told(written(tmp_path, model(graph(given_tensor)))).startswith(f": tensor 'w'{message}")


def test_what_cannot_be_read_is_listed_and_the_rest_is_read(tmp_path: Path) -> None:
    onnx = need("onnx")
    helper = onnx.helper
    values = helper.make_tensor("sparse", 1, [2], [1.0, 2.0])
    indices = helper.make_tensor("i", 7, [2], [0, 5])
    nodes = [helper.make_node("Constant", [], ["c"], sparse_value=helper.make_sparse_tensor(values, indices, [9]))]
    made = helper.make_model(helper.make_graph(nodes, "g", [], [], [onnx.numpy_helper.from_array(X, "w")]))
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3, 4]))
    made.graph.initializer.add(name="six", data_type=27, dims=[4], raw_data=b"abc")
    made.graph.initializer.add(name="new", data_type=99, dims=[4])
    made.graph.initializer.add(name="segment", data_type=1, dims=[4]).segment.begin = 1
    path = written(tmp_path, made)
    with onnx_file.open_source(path) as source:
        specs = source.specs()
        assert {n: (s.shape, s.unread) for n, s in specs.items() if s.unread} == {
            "sparse": ((3, 4), "a sparse tensor"),
            "c": ((9,), "a sparse tensor"),
            "six": ((4,), "of the type FLOAT6E2M3"),
            "new": ((4,), "of the type 99"),
            "segment": ((4,), "a segment of a tensor"),
        }
        assert same(source.read("w"), X)
        for name in ("sparse", "six"):
            with pytest.raises(FormatError, match=f"tensor '{name}': cannot be read: {specs[name].unread}"):
                source.read(name)
    rules = [{"from": "w", "to": "w"}]
    with pytest.raises(wp.PlanError, match=r"tensor 'c'.* is claimed by no rule"):
        wp.transfer(path, None, {"weightport": 1, "rules": rules}, out=tmp_path / "o.npz")
    ignored = {"weightport": 1, "rules": rules, "ignore": ["c", "sparse", "six", "new", "segment"]}
    wp.transfer(path, None, ignored, out=tmp_path / "o.npz")
    with pytest.raises(wp.PlanError, match=r"tensor 'six' of .* cannot be read: of the type FLOAT6E2M3"):
        wp.transfer(path, None, {**ignored, "ignore": [], "rules": [*rules, {"from": "six", "to": "y"}]}, out="o.npz")


# Structure -----------------------------------------------------------------------------------------------------------


def test_constant_nodes_and_roles(tmp_path: Path) -> None:
    onnx = need("onnx")
    make = onnx.helper.make_node
    nodes = [
        make("Constant", [], ["t"], value=onnx.numpy_helper.from_array(X)),
        make("Constant", [], ["one"], value=onnx.numpy_helper.from_array(X[:1, :1])),
        make("Constant", [], ["float"], value_float=0.1),
        make("Constant", [], ["floats"], value_floats=[0.1, 2.0]),
        make("Constant", [], ["int"], value_int=-3),
        make("Constant", [], ["ints"], value_ints=[1 << 40, -1]),
        make("Constant", [], ["string"], value_string="é"),
        make("Constant", [], ["strings"], value_strings=["a", "bc"]),
        make("Constant", [], ["another"], domain="example", value=onnx.numpy_helper.from_array(X)),
        make("ConstantOfShape", ["ints"], ["shape"], value=onnx.numpy_helper.from_array(X[:1, 0])),
    ]
    tensors = {"scalar": np.float32(2), "byte": np.uint8(7), "codes": np.zeros((2, 2), np.int8), "size": np.arange(2)}
    held = [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in tensors.items()]
    made = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], held))
    with onnx_file.open_source(written(tmp_path, made)) as source:  # its scalars may be literals
        assert [n for n, s in source.specs().items() if s.role == "weight"] == ["t", "floats", "codes"]
    made.producer_name = "pytorch"
    path = written(tmp_path, made)
    with onnx_file.open_source(path) as source:
        specs = source.specs()
        assert [n for n, s in specs.items() if s.role == "weight"] == ["scalar", "codes"]
        assert [n for n, s in specs.items() if s.role == "constant"] == [
            "t", "one", "float", "floats", "int", "ints", "string", "strings", "byte", "size"
        ]  # fmt: skip
        assert same(source.read("t"), X)
        assert same(source.read("float"), np.array(0.1, np.float32))
        assert same(source.read("floats", (slice(1, 2),)), np.array([2], np.float32))
        assert same(source.read("int"), np.array(-3))
        assert same(source.read("ints"), np.array([1 << 40, -1]))
        assert source.read("string").item() == "é".encode()
        assert source.read("strings").tolist() == [b"a", b"bc"]
        assert [(specs[n].dtype.name, specs[n].shape) for n in ("float", "ints", "strings")] == [
            ("float32", ()), ("int64", (2,)), ("object", (2,))
        ]  # fmt: skip


def test_subgraphs_and_functions(tmp_path: Path) -> None:
    onnx = need("onnx")
    helper, held = onnx.helper, onnx.numpy_helper.from_array

    def body(*names: str, nodes: Any = ()) -> Any:
        return helper.make_graph(list(nodes), "b", [], [], [held(X + k, n) for k, n in enumerate(names)])

    inner = helper.make_node("If", ["c"], [], name="/deep/If", then_branch=body("w"), else_branch=body("w"), note=1)
    nodes = [
        helper.make_node("Loop", ["n"], [], body=body("w", "v", nodes=[inner])),
        helper.make_node("Loop", ["n"], [], body=body("w")),
        helper.make_node("Several", [], [], name="many", domain="example", graphs=[body("w"), body("w")]),
    ]
    constant = helper.make_node("Constant", [], ["k"], value=held(X))
    made = helper.make_model(helper.make_graph(nodes, "g", [], [], [held(X + 9, "w")]))
    for domain in ("one", "two", ""):
        made.functions.append(helper.make_function(domain, "Scale", ["x"], ["k"], [constant], []))
    path = written(tmp_path, made)
    with onnx_file.open_source(path) as source:
        assert list(source.specs()) == [
            "w",
            "Loop/body/w",
            "Loop/body/v",
            "Loop/body/deep/If/else_branch/w",
            "Loop/body/deep/If/then_branch/w",
            "Loop_1/body/w",
            "many/graphs_0/w",
            "many/graphs_1/w",
            "Scale/k",
            "Scale.two/k",
            "Scale'/k",
        ]
        assert same(source.read("Loop/body/v"), X + 1)
        assert same(source.read("w"), X + 9)


def test_a_name_that_is_another_s_scope_and_name(tmp_path: Path) -> None:
    inner = attribute("body", field(6, graph(raw("w", X))))
    path = written(tmp_path, model(graph(raw("L/body/w", X + 1), nodes=(node("Loop", name="L") + field(5, inner),))))
    with onnx_file.open_source(path) as source:
        assert list(source.specs()) == ["L/body/w", "L/body/w'"]
        assert same(source.read("L/body/w'"), X)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (model(graph(raw("w", X), raw("w", X))), " at byte 46: two constants are named 'w'"),
        (field(1, 8), ": is no ONNX model: it has no graph"),
        (model(graph(tensor("w" * 70_000, 1, ()))), " at byte 19: a name of 70,000 bytes"),
        (field(1, 8) + field(7, b"\x2a\x05abc"), " at byte 4: a field of 5 bytes in 3 that are left"),
        (b"\x0b", " at byte 0: unknown wire type 3"),
    ],
)
def test_what_is_no_model(tmp_path: Path, content: bytes, message: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(FormatError) as caught:
        onnx_file.open_source(path)
    assert str(caught.value) == path + message


def test_nesting_is_bounded(tmp_path: Path) -> None:
    inner = graph(raw("w", X))
    for _ in range(30):
        inner = graph(nodes=(node("Loop", (), (), "l", attribute("body", field(6, inner))),))
    with pytest.raises(BudgetExceeded, match="depth"):
        onnx_file.open_source(written(tmp_path, model(inner)))


def test_budget(tmp_path: Path) -> None:
    path = written(tmp_path, model(graph(raw("v", X), raw("w", X), nodes=(node("Identity", ("v",), ("y",)),))))
    for budget in (Budget(header_bytes=3), Budget(tensors=1)):
        with pytest.raises(BudgetExceeded):
            onnx_file.open_source(path, budget=budget)
    for budget in (Budget(rank=1), Budget(tensor_bytes=23)):
        with onnx_file.open_source(path, budget=budget) as source, pytest.raises(BudgetExceeded):
            source.specs()["w"]


def test_not_there_and_closed(tmp_path: Path) -> None:
    path = written(tmp_path, model(graph(raw("lstm/kernel", X))))
    source = onnx_file.open_source(path)
    with pytest.raises(TensorNotFound, match="closest: 'lstm/kernel'"):
        source.read("lstm/kernal")
    assert source.facts(["lstm/kernel"]) == {}
    assert source.facts(["elsewhere"]) == {}
    source.close()
    for call in (lambda: source.read("lstm/kernel"), lambda: source.facts([])):
        with pytest.raises(Error, match="is closed"):
            call()


# Damage --------------------------------------------------------------------------------------------------------------


def small() -> bytes:
    """Every kind of message."""
    lstm = node("LSTM", ("x", "W", "R", "", "", "", ""), ("y",), "l", attribute("hidden_size", field(3, 1)))
    branch = attribute("then_branch", field(6, graph(raw("b", X[:1, :1]))))
    nodes = (
        node("Constant", (), ("c",), "", attribute("value_ints", field(8, b"\1\2"))),
        node("If", ("p",), ("q",), "i", branch),
        lstm,
    )
    weights = (raw("W", np.ones((1, 4, 1))), raw("R", np.ones((1, 4, 1))), tensor("h", 10, (1,), field(5, 3)))
    function = field(1, "f") + field(
        7, node("Constant", (), ("k",), "", attribute("value", field(5, raw("", X[:1, :1]))))
    )
    return model(graph(*weights, nodes=nodes), functions=(function,))


# Large models --------------------------------------------------------------------------------------------------------


def test_beyond_two_gigabytes_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    """A file of 3 GB, nearly all of it a hole."""
    rows, columns = 3 << 18, 1 << 10
    size = rows * columns * 4
    values = np.arange(columns, dtype=np.float32)
    head = field(1, rows) + field(1, columns) + field(2, 1) + field(8, "w")
    data = b"\x4a" + field(1, size)[1:]  # raw_data and its size
    total = len(head) + len(data) + size
    around = b"\x2a" + field(1, total)[1:]
    prefix = field(1, 8) + b"\x3a" + field(1, len(around) + total)[1:] + around + head + data
    path = tmp_path / "large.onnx"
    with open(path, "wb") as file:
        file.write(prefix)
        file.truncate(len(prefix) + size)
        file.seek(len(prefix) + size - values.nbytes)
        file.write(values.tobytes())
    with detect.open_source(path) as source:
        assert source.format == "onnx"
        assert source.specs()["w"].nbytes == size
        assert same(source.read("w", (slice(rows - 1, rows),)), values[None])


# External data -------------------------------------------------------------------------------------------------------


def external(folder: Path, data: bytes | None, **entries: str) -> str:
    """A model with one tensor of two floats in ``w.bin``."""
    if data is not None:
        (folder / "w.bin").write_bytes(data)
    pairs = b"".join(field(13, field(1, k) + field(2, v)) for k, v in {"location": "w.bin", **entries}.items())
    return written(folder, model(graph(tensor("w", 1, (2,), pairs, field(14, 1)))))


VALUES = np.array([3, 4], "<f4").tobytes()


def test_external_data_as_onnx_writes_it(tmp_path: Path) -> None:
    onnx = need("onnx")
    arrays = {n: arrays_of(n) for n in ("float32", "bfloat16", "int4", "complex64")}
    held = [onnx.numpy_helper.from_array(a, n) for n, a in arrays.items()]
    made = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], held))
    path = str(tmp_path / "m.onnx")
    onnx.save(made, path, save_as_external_data=True, location="d.bin", size_threshold=0)
    with onnx_file.open_source(path) as source:
        for name, array in arrays.items():
            assert same(source.read(name), array)
            assert same(source.read(name, (slice(1, 3), slice(2, 4))), np.array(array[1:3, 2:4], order="C"))
        assert source.files() == [str(tmp_path / "d.bin")]


def test_external_data_is_verified(tmp_path: Path) -> None:
    data = b"head" + VALUES
    for digest in (hashlib.sha1(data), hashlib.sha1(VALUES)):  # of the file; of the tensor
        path = external(tmp_path, data, offset="4", length="8", checksum=digest.hexdigest())
        assert read(path, "w").tolist() == [3, 4]
        external(tmp_path, data[:-1] + b"\0", offset="4", checksum=digest.hexdigest())
        what = "the SHA-1 of its external data 'w.bin' is not the one that the model has"
        assert told(path) == f": tensor 'w': {what}; this is another file, or a damaged one"
    path = external(tmp_path, data, offset="4", checksum="abc")
    assert told(path) == ": tensor 'w': the checksum 'abc' is no SHA-1"
    path = external(tmp_path, data, offset="4", checksum="g" * 51)
    assert told(path) == f": tensor 'w': the checksum {'g' * 50!r} is no SHA-1"


def test_each_checksum_of_each_file_is_compared(tmp_path: Path) -> None:
    """That one was right says nothing of another file, nor of another checksum of the same file."""
    right, other = hashlib.sha1(VALUES).hexdigest(), hashlib.sha1(VALUES[::-1]).hexdigest()
    held = []
    places = [("v", "a", right), ("w", "b", right), ("x", "a", other), ("y", "b", other), ("z", "a", right.upper())]
    for name, file, digest in places:
        location = f"{file}.bin"
        entries = {"location": location, "checksum": digest}
        pairs = b"".join(field(13, field(1, k) + field(2, v)) for k, v in entries.items())
        held.append(tensor(name, 1, (2,), pairs, field(14, 1)))
    (tmp_path / "a.bin").write_bytes(VALUES)
    (tmp_path / "b.bin").write_bytes(VALUES[::-1])
    with onnx_file.open_source(written(tmp_path, model(graph(*held)))) as source:
        for name in ("v", "w", "x", "y", "z", "w", "x"):
            if name in "vyz":
                source.read(name)
            else:
                location = "b.bin" if name == "w" else "a.bin"
                what = f"tensor {name!r}: the SHA-1 of its external data {location!r} is not the one that the model has"
                with says(FormatError, f"{source.path}: {what}; this is another file, or a damaged one"):
                    source.read(name)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "/etc/passwd"}, "its external data '/etc/passwd' leads out of the folder"),
        ({"location": "../w.bin"}, "its external data '../w.bin' leads out of the folder"),
        ({"location": "a/../../w.bin"}, "its external data 'a/../../w.bin' leads out of the folder"),
        ({"location": "..\\w.bin"}, "its external data '..\\\\w.bin' leads out of the folder"),
        ({"location": "C:\\w.bin"}, "its external data 'C:\\\\w.bin' leads out of the folder"),
        ({"location": "\\w.bin"}, "its external data '\\\\w.bin' leads out of the folder"),
        ({"location": "../" + "x" * 300}, f"its external data {'../' + 'x' * 197!r} leads out of the folder"),
        ({"location": "x" * 201}, f"its external data {'x' * 200!r} is not there; it belongs beside the model"),
        ({"location": "ab:c"}, "its external data 'ab:c' is not there"),
        ({"location": "w.bin\0"}, "its external data 'w.bin\\x00' leads out of the folder"),
        ({"location": ""}, "its values lie in another file, which is not named"),
        ({"location": "none"}, "its external data 'none' is not there; it belongs beside the model"),
        ({"location": "link"}, "its external data 'link' is a link that leads out of the folder; copy the file there"),
        ({"location": "linked/w.bin"}, "its external data 'linked/w.bin' is a link that leads out of the folder"),
        ({"offset": "-4"}, "the offset of its external data is '-4'"),
        ({"offset": "1e3"}, "the offset of its external data is '1e3'"),
        ({"offset": "x" * 41}, f"the offset of its external data is {'x' * 40!r}"),
        ({"length": "4"}, "4 bytes of external data for values of 8"),
    ],
)
def test_external_data_stays_in_its_folder(tmp_path: Path, entries: dict[str, str], message: str) -> None:
    (tmp_path / "w.bin").write_bytes(VALUES)
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(tmp_path / "w.bin")
    (inside / "linked").symlink_to(tmp_path)
    assert told(external(inside, VALUES, **entries)).startswith(f": tensor 'w': {message}")


def test_a_model_and_its_data_that_are_links_into_one_folder(tmp_path: Path) -> None:
    """As a hub's cache has them: names lead to blobs."""
    from weightport.formats.files import files_of

    for name in ("blobs", "snapshot", "elsewhere"):
        (tmp_path / name).mkdir()
    Path(external(tmp_path / "blobs", None)).rename(tmp_path / "blobs" / "0a")
    (tmp_path / "blobs" / "0b").write_bytes(VALUES)
    (tmp_path / "snapshot" / "m.onnx").symlink_to("../blobs/0a")
    (tmp_path / "snapshot" / "w.bin").symlink_to("../blobs/0b")
    path = str(tmp_path / "snapshot" / "m.onnx")
    assert read(path, "w").tolist() == [3, 4]
    assert files_of(path) == [path, str(tmp_path / "snapshot" / "w.bin")]
    (tmp_path / "elsewhere" / "w.bin").write_bytes(VALUES)
    (tmp_path / "snapshot" / "w.bin").unlink()
    (tmp_path / "snapshot" / "w.bin").symlink_to("../elsewhere/w.bin")
    assert "is a link that leads out of the folder" in told(path)


def test_external_data_that_is_no_file_or_too_short(tmp_path: Path) -> None:
    path = external(tmp_path, VALUES[:7])
    beside = str(tmp_path / "w.bin")
    with pytest.raises(FormatError) as caught:
        read(path, "w")
    assert str(caught.value) == (
        f"{beside}: tensor 'w' at byte 0: truncated or corrupt: bytes 0..8 asked for, the file has 7"
    )
    os.unlink(beside)
    os.mkfifo(beside)
    with pytest.raises(FormatError, match="is not a regular file"):
        read(path, "w")


def beside(folder: Path, *others: bytes, checked: bool = False, **places: tuple[str, int]) -> str:
    """A model of tensors of two floats, each at a place in a file of eight, and of others."""
    (folder / "w.bin").write_bytes(VALUES * 4)
    checksum = {"checksum": hashlib.sha1(VALUES * 4).hexdigest()} if checked else {}
    held = []
    for name, (location, offset) in places.items():
        entries = {"location": location, "offset": str(offset), **checksum}
        pairs = b"".join(field(13, field(1, k) + field(2, v)) for k, v in entries.items())
        held.append(tensor(name, 1, (2,), pairs, field(14, 1)))
    return written(folder, model(graph(*held, *others)))


@pytest.mark.parametrize("location", ["w.bin", "./w.bin", ".\\\\w.bin"])
def test_external_data_that_overlaps(tmp_path: Path, location: str) -> None:
    path = beside(tmp_path, v=("w.bin", 0), w=(location, 4), x=("w.bin", 16))
    message = (
        f"{tmp_path / 'w.bin'}: tensor 'w' at byte 4: corrupt: its 8 bytes overlap the 8 of 'v' at byte 0: "
        "tensors share all of their bytes or none"
    )
    with onnx_file.open_source(path) as source:
        assert list(source.specs()) == ["v", "w", "x"]  # what is read is compared, and not before
        for call in (source.read, source.extent, source.extent):
            with says(FormatError, message):
                call("x")


@pytest.mark.parametrize("checked", [False, True])
def test_external_data_that_is_shared(tmp_path: Path, checked: bool) -> None:
    places = {"v": ("w.bin", 8), "w": ("./w.bin", 8), "x": ("w.bin", 16), "y": ("other.bin", 20), "z": ("", 0)}
    with onnx_file.open_source(beside(tmp_path, raw("inside", X), checked=checked, **places)) as source:
        assert [source.read(name).tolist() for name in "vwx"] == [[3, 4]] * 3
        assert same(source.read("inside"), X)
        with pytest.raises(FormatError, match="its values lie in another file, which is not named"):
            source.read("z")


def test_a_model_in_a_folder_without_its_data_can_be_looked_at(tmp_path: Path) -> None:
    path = external(tmp_path, None)
    with wp.open(path) as source:
        assert source.specs()["w"].shape == (2,)


def test_the_digest_is_of_all_files(tmp_path: Path) -> None:
    from weightport.formats.files import digest, files_of

    path = external(tmp_path, VALUES)
    assert files_of(path) == [path, str(tmp_path / "w.bin")]
    lines = [f"{hashlib.sha256((tmp_path / n).read_bytes()).hexdigest()}  {n}\n" for n in ("m.onnx", "w.bin")]
    assert digest(path) == hashlib.sha256("".join(lines).encode()).hexdigest()


# Detection -----------------------------------------------------------------------------------------------------------


def test_told_by_content(tmp_path: Path) -> None:
    path = written(tmp_path, small(), "model.bin")
    assert detect.detect(path) == "onnx"
    with wp.open(f"onnx:{path}") as source:
        assert source.format == "onnx"
    for kind in ("frozen", "saved_model"):
        assert not onnx_file.sniff(
            fixture("a_seed_char_lstm").path(kind) + ("/saved_model.pb" if "saved" in kind else "")
        )
    assert detect.detect(written(tmp_path, field(900, "newer") + model(field(901, 3) + graph(raw("w", X))))) == "onnx"
    for content in (b"", b"\x08\x08", field(7, graph(raw("w", X))), model(b""), model(field(3, "x")), b"\x3a\x05ab"):
        assert not onnx_file.sniff(written(tmp_path, content))
    assert not onnx_file.sniff(str(tmp_path))


def test_where_tensors_lie(tmp_path: Path) -> None:
    four = tensor("four", 22, (2,), field(9, b"\x21"))
    typed = tensor("typed", 1, (1,), fixed32(4, 1.0))
    path = written(tmp_path, model(graph(raw("w", X), typed, four, tensor("text", 8, (1,), field(6, "a")))))
    with onnx_file.open_source(path) as source:
        place = source.extent("w")
        assert place is not None
        assert Path(place.path).read_bytes()[place.offset :][: place.nbytes] == X.tobytes()
        assert [source.extent(n) for n in ("typed", "four", "text")] == [None] * 3
        with pytest.raises(TensorNotFound):
            source.extent("v")
    with onnx_file.open_source(external(tmp_path, b"head" + VALUES, offset="4")) as source:
        assert source.extent("w") == Extent(str(tmp_path / "w.bin"), 4, 8)
    with onnx_file.open_source(external(tmp_path, VALUES, checksum=hashlib.sha1(VALUES).hexdigest())) as source:
        assert source.extent("w") is None  # which is verified on the way


def test_graphs_of_a_training(tmp_path: Path) -> None:
    """``training_info``: the graphs that initialize and that train."""
    trainings = b"".join(
        field(20, field(1, graph(raw("w", X + k))) + field(2, graph(raw("w", X - k))) + field(3, b"")) for k in (1, 2)
    )
    with onnx_file.open_source(written(tmp_path, model(graph(raw("w", X))) + trainings)) as source:
        assert {name: source.read(name)[0, 0] - X[0, 0] for name in source.specs()} == {
            "w": 0,
            "training_0/initialization/w": 1,
            "training_0/algorithm/w": -1,
            "training_1/initialization/w": 2,
            "training_1/algorithm/w": -2,
        }


def test_nodes_of_any_size(tmp_path: Path) -> None:
    """What a large node is shows when all of it is read: a constant, or nothing."""
    large = np.arange(3000, dtype=np.float32).reshape(30, 100)
    value = attribute("value", field(5, raw("", large)))
    inert = node("Custom", ("x" * 20_000,), ("y",))
    made = model(graph(raw("w", X), nodes=(inert, node("Constant", (), ("k",), "", value))))
    with onnx_file.open_source(written(tmp_path, made)) as source:
        assert list(source.specs()) == ["k", "w"]
        assert same(source.read("k"), large)
    nobody = (node("Constant", (), (), "", value), node("Constant", (), ("",), "", value))
    empty = attribute("value", field(4, "no tensor"))
    made = model(graph(nodes=(*nobody, node("Constant", (), ("k",), "", empty))))
    with onnx_file.open_source(written(tmp_path, made)) as source:
        assert dict(source.specs()) == {}


def test_what_newer_versions_of_onnx_may_say(tmp_path: Path) -> None:
    """Fields, attributes and encodings that nobody knows are passed over, in nodes of every kind and in tensors."""
    new = field(14, 7) + field(15, "new")
    values = attribute("value", field(5, raw("", X)) + new)
    nodes = (
        node("Constant", (), ("k",), "", attribute("remark", field(4, "no tensor")), values) + new,
        node("Relu", ("x",), ("y",), "relu") + new,
        node("LSTM", ("x", "lw", "lr"), ("z",), "lstm") + new,
    )
    cell = [raw("lw", np.ones((1, 8, 3))), raw("lr", np.ones((1, 8, 2)))]
    dims = fixed32(1, 5.0) + raw("w", X) + new
    path = written(tmp_path, model(graph(dims, *cell, nodes=nodes)))
    with onnx_file.open_source(path) as source:
        assert {n: s.shape for n, s in source.specs().items()} == {
            "k": (2, 3),
            "w": (2, 3),
            "lstm/W": (1, 8, 3),
            "lstm/R": (1, 8, 2),
        }
        assert same(source.read("k"), X)
        assert same(source.read("w"), X)


@pytest.mark.parametrize(
    ("inside", "known"),
    [
        (field(2, "g"), True),
        (field(30, "new") + field(1, ""), True),
        (field(30, "new"), False),
        (field(5, 3), False),
        (field(2, "g") + field(16, 1), False),
        (b"\x0a\x05", False),
    ],
)
def test_a_graph_that_is_told_by_its_fields(tmp_path: Path, inside: bytes, known: bool) -> None:
    path = written(tmp_path, field(1, 8) + field(7, inside))
    assert onnx_file.sniff(path) == known


def test_names_that_are_too_long(tmp_path: Path) -> None:
    content = model(graph(raw("w" * 70_000, X)))
    with pytest.raises(FormatError, match=r" at byte \d+: a name of 70,000 bytes$"):
        onnx_file.open_source(written(tmp_path, content))


def test_integers_packed_and_loose() -> None:
    """Of one field, in any mixture; no more are read than are needed."""
    packed = b"\x01\x02\xff\x01"
    file = Memory(packed, "file")
    run = (BYTES, 0, 4)
    assert integers(file, [(VARINT, 7, 0), run, (VARINT, 8, 0), (VARINT, 9, 0), (1, 5, 0), run], 99, "w").tolist() == [
        7, 1, 2, 255, 8, 9, 1, 2, 255,
    ]  # fmt: skip
    assert integers(file, [], 9, "w").tolist() == []
    assert integers(file, [(VARINT, at, 0) for at in range(100)], 5, "w").tolist() == [0, 1, 2, 3, 4, 5]
    assert integers(file, [run, run, run], 2, "w").tolist() == [1, 2, 255]


def test_floats_packed_and_loose() -> None:
    raw_bytes = np.array([1.5, -2.5], "<f4").tobytes()
    file = Memory(raw_bytes + b"x", "file")
    one = int.from_bytes(raw_bytes[:4], "little")
    assert floats(file, [(FIXED32, one, 0), (BYTES, 0, 8), (VARINT, 3, 0)], 4, "w").tolist() == [1.5, 1.5, -2.5]
    with pytest.raises(FormatError) as caught:
        floats(file, [(BYTES, 0, 9)], 4, "w")
    assert str(caught.value) == "file: tensor 'w': 9 bytes are no whole number of 4-byte values"


def test_entries_of_external_data() -> None:
    data = field(1, "key") + field(2, "old") + field(3, "other") + field(1, 5) + field(2, b"v\xff")
    assert entry(Memory(data, "file"), 0, len(data), "w") == ("key", "v\\xff")
    data = field(2, "v" * 65_537)
    with pytest.raises(FormatError) as caught:
        entry(Memory(data, "file"), 0, len(data), "w")
    assert str(caught.value) == "file: tensor 'w' at byte 4: an entry of 65,537 bytes"
    data = field(2, "v" * 65_536)
    assert entry(Memory(data, "file"), 0, len(data), "w") == ("", "v" * 65_536)


def test_where_only_tensors_lie(tmp_path: Path) -> None:
    literal = node("Constant", (), ("k",), "", attribute("value_int", field(3, 5)))
    with onnx_file.open_source(written(tmp_path, model(graph(raw("w", X), nodes=(literal,))))) as source:
        assert source.extent("k") is None
        assert source.extent("w") is not None
        with pytest.raises(TensorNotFound, match=r"no tensor 'W'; closest: 'w'$"):
            source.extent("W")


def test_metadata_are_pairs(tmp_path: Path) -> None:
    """Entries without a key or a value are none; a later one wins."""
    entries = (field(1, "a") + field(2, "b"), field(1, "only"), field(2, "alone"), field(1, "a") + field(2, "c"))
    made = model(graph(raw("w", X))) + b"".join(field(14, entry) for entry in entries)
    with onnx_file.open_source(written(tmp_path, made)) as source:
        assert source.metadata == {"a": "c"}


def test_values_in_two_places(tmp_path: Path) -> None:
    twice = tensor("w", 1, (1,), field(9, bytes(4)), field(4, bytes(4)))
    path = written(tmp_path, model(graph(twice)))
    with onnx_file.open_source(path) as source, pytest.raises(FormatError) as caught:
        source.read("w")
    what = "its values stand in more than one place, which need not be the same"
    assert str(caught.value) == f"{path}: tensor 'w' at byte 9: {what}"


def test_literals_that_say_nothing(tmp_path: Path) -> None:
    nodes = [
        node("Constant", (), (kind,), "", attribute(kind)) for kind in ("value_int", "value_float", "value_string")
    ]
    with onnx_file.open_source(written(tmp_path, model(graph(nodes=tuple(nodes))))) as source:
        assert {name: source.read(name).tolist() for name in source.specs()} == {
            "value_int": 0,
            "value_float": 0.0,
            "value_string": b"",
        }
