"""Protobuf's text format: the same graph as text and in binary, every way of writing a value, and mistakes by line."""

from __future__ import annotations

import contextlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import Fixture, fixtures, need
from weightport.errors import Error, FormatError
from weightport.formats import tf_pbtxt
from weightport.formats._proto import Memory, fields
from weightport.formats.tf_graph import GraphDef
from weightport.tensors import Budget

GRAPHS = [f for f in fixtures() if "frozen" in f.files]


def parse(text: str | bytes, message: str = "GraphDef") -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return tf_pbtxt.parse(data, message, "g.pbtxt", Budget())


def values(text: str) -> list[object]:
    """The fields of a tensor, written as text."""
    data = parse(f'node {{ name: "n" attr {{ key: "value" value {{ tensor {{ {text} }} }} }} }}')
    for path in (1, 5, 2, 8):
        data = next(v for f, _, v in fields(data, "g") if f == path and isinstance(v, bytes))
    return [v for _, _, v in fields(data, "g")]


@pytest.mark.parametrize("model", GRAPHS, ids=str)
def test_as_tensorflow_writes_it(model: Fixture) -> None:
    tf = need("tensorflow")
    text_format = need("google.protobuf.text_format")
    with open(model.path("frozen"), "rb") as file:
        binary = file.read()
    message = tf.compat.v1.GraphDef.FromString(binary)
    text = text_format.MessageToString(message).encode()
    assert tf_pbtxt.kind_of(Memory(text, "g")) == "GraphDef"
    for written in (text, text_format.MessageToString(message, as_one_line=True).encode()):
        parsed = parse(written)
        found, expected = (GraphDef(Memory(d, "g"), 0, len(d)) for d in (parsed, binary))
        assert found.main.nodes.keys() == expected.main.nodes.keys()
        for name, node in found.main.nodes.items():
            other = expected.main.nodes[name]
            assert (node.op, node.inputs) == (other.op, other.inputs)
            if node.op == "Const":
                a, b = found.const(node, name), expected.const(other, name)
                assert (a.dtype, a.shape) == (b.dtype, b.shape)
                assert a.read(found.file).tobytes() == b.read(expected.file).tobytes() or a.dtype == object
        # And TensorFlow reads what the parser makes of it: what is left out is not needed.
        tf.compat.v1.GraphDef.FromString(parsed)


def test_functions_as_tensorflow_writes_them() -> None:
    tf = need("tensorflow")
    text_format = need("google.protobuf.text_format")

    @tf.function
    def double(x: object) -> object:
        return x + x  # type: ignore[operator]

    @tf.function(input_signature=[tf.TensorSpec((2,), tf.float32)])
    def outer(x: object) -> object:
        return double(x)

    message = outer.get_concrete_function().graph.as_graph_def()
    assert message.library.function
    data = parse(text_format.MessageToString(message))
    found = GraphDef(Memory(data, "g"), 0, len(data))
    binary = message.SerializeToString()
    expected = GraphDef(Memory(binary, "g"), 0, len(binary))
    for name, body in expected.functions.items():
        assert body.arguments
        assert body.results
        assert (found.functions[name].arguments, found.functions[name].results) == (body.arguments, body.results)
    call = next(n for n in found.main.nodes.values() if found.callees(n))
    assert set(found.callees(call).values()) <= found.functions.keys()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int_val: 7", [7]),
        ("int_val: -1", [(1 << 64) - 1]),
        ("int_val: - 1", [(1 << 64) - 1]),
        ("int_val: 0x1F int_val: 017", [31, 15]),
        ("int_val: [1, 2], int_val: 3; int_val: []", [1, 2, 3]),
        ("bool_val: true bool_val: False bool_val: 1 bool_val: t", [1, 0, 1, 1]),
        ("dtype: DT_FLOAT dtype: DT_INT32_REF dtype: 9", [1, 103, 9]),
        ('string_val: "a" \'b\'\n  "c"', [b"abc"]),
        (r'string_val: "\n\t\r\a\b\f\v\\\'\"\?"', [b"\n\t\r\a\b\f\v\\'\"?"]),
        (r'tensor_content: "\000\1\12x\377\x41\xAg"', [b"\0\1\nx\xffA\x0ag"]),
        (r'string_val: "\u00e9\U0001F600é"', ["é\U0001f600é".encode()]),
        ("tensor_shape < dim { size: 3 } > # comment\n", [b"\x12\x02\x08\x03"]),
        ("tensor_shape: { dim [ { size: 1 }, < size: 2 > ] }", [b"\x12\x02\x08\x01\x12\x02\x08\x02"]),
        ('unknown_field: "x" other { deep { a: [1, "b"] } } [ext.name/x] { a: 1 } int_val: 5', [5]),
    ],
)
def test_values(text: str, expected: list[object]) -> None:
    assert values(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("1", 1), ("-1.5e-3", -1.5e-3), ("1.5f", 1.5), (".5F", 0.5), ("3e38", 3e38), ("1E+2", 100), ("5e-324", 0)),
        *(("inf", np.inf), ("-inf", -np.inf), ("-infinity", -np.inf), ("1e400", np.inf), ("4e38", np.inf)),
    ],
)
def test_reals(text: str, expected: float) -> None:
    bits = struct.unpack("<I", struct.pack("<f", np.float32(expected)))[0]
    assert values(f"float_val: {text}") == [bits]
    with np.errstate(over="ignore"):
        wide = float(text.rstrip("fF") if "inf" not in text else text)
    assert values(f"double_val: {text}") == [struct.unpack("<Q", struct.pack("<d", wide))[0]]


def test_nan() -> None:
    (bits,) = values("float_val: nan")
    assert np.isnan(struct.unpack("<f", struct.pack("<I", bits))[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("node {", "line 1: the text ends where '}' is expected"),
        ("node {\n  name: 5\n}", "line 2: a value expected, found '5'"),
        ('node { name: "a" >', "line 1: the name of a field expected, found '>'"),
        ("node: 3", "line 1: a message expected, found '3'"),
        ("version { }", "line 1: a value expected, found '{'"),
        ("version 3", "line 1: ':' or a message expected, found '3'"),
        ('version: "a"', "line 1: a number expected, found"),
        ("version: 1.5", "line 1: an integer expected, found '1.5'"),
        ("version: 99999999999999999999", "line 1: '99999999999999999999' is out of range"),
        ("version: [1 2]", "line 1: ',' or ']' expected, found '2'"),
        ("version: [1,]", "line 1: a value expected, found ']'"),
        ("version [1]", "line 1: a message expected, found '1'"),
        ("node [ { } { } ]", "line 1: ']' expected, found '{'"),
        ("node [ { }, 3 ]", "line 1: a message expected, found '3'"),
        ("node { input { } }", "line 1: a value expected, found '{'"),
        ('\n\nnode { name: "a\n" }', "line 3: cannot read what begins with"),
        (r'node { name: "\q" }', r"line 1: unknown escape"),
        (r'node { name: "\400" }', r"line 1: the escape \\400 is no byte"),
        (r'node { name: "\ud800" }', r"line 1: the escape \\ud800 is no character"),
        ("[ext", "line 1: the name of an extension does not end"),
        ("%", "line 1: cannot read what begins with b'%'"),
        ("node { attr { value { type: DT_FLAOT } } }", "line 1: a known name or an integer expected, found 'DT_FLAOT'"),
        ("a " + "{ b " * 70, "depth: "),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse(text)


def test_numbers_of_tensors_are_no_names() -> None:
    for text in ("float_val: 1_0", "float_val: x", "bool_val: 2", "bool_val: yes"):
        with pytest.raises(FormatError, match=r"expected|range"):
            values(text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("node { }", "GraphDef"),
        ("# saved by hand\n\nlibrary {", "GraphDef"),
        ("\ufeffversions <", "GraphDef"),
        ("meta_info_def {", "MetaGraphDef"),
        ("saved_model_schema_version: 1", "SavedModel"),
        ('model_checkpoint_path: "x"', None),
        ("", None),
        ('{"node": 1}', None),
    ],
)
def test_kinds(text: str, kind: str | None) -> None:
    assert tf_pbtxt.kind_of(Memory(text.encode(), "g")) == kind
    assert parse(text, kind) is not None if kind == "SavedModel" else True


PIECES = ["node", "name", ":", "{", "}", "<", ">", "[", "]", ",", ";", '"a"', "'b'", "1", "-", "0x", "#", "\n", "attr"]
PIECES += ["value", "tensor", "float_val", "1e", "\\", "key", "tensor_shape", "dim", "size", "é", "/", "nan"]


@given(st.lists(st.sampled_from(PIECES), max_size=40), st.sampled_from(["", " "]))
@settings(max_examples=400, deadline=None)
def test_any_text(pieces: list[str], space: str) -> None:
    with contextlib.suppress(Error):
        parse(space.join(pieces))


@given(st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_bytes(data: bytes) -> None:
    tf_pbtxt.kind_of(Memory(data, "g"))
    with contextlib.suppress(Error):
        parse(data)


def test_long_texts_take_linear_time() -> None:
    for text in ("#" * 200_000, " " * 200_000, '"' + "\\" * 200_000, "a" * 200_000, "- " * 100_000, "1e" * 100_000):
        with contextlib.suppress(Error):
            parse(text)
        with contextlib.suppress(Error):
            parse("version: " + text)


def test_a_file_that_is_gone_is_of_no_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> bytes:
        raise FormatError("g", "the file shrank while it was read")

    file = Memory(b"node {", "g")
    assert tf_pbtxt.kind_of(file) == "GraphDef"
    monkeypatch.setattr(file, "read", gone)
    assert tf_pbtxt.kind_of(file) is None
