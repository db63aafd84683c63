"""Graphs of TensorFlow and ONNX models that lie about nodes, constants, functions and files beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tests.formats import _onnx
from tests.formats._graphdef import attr, const, function, graph, header, meta_graph, node
from tests.formats.test_tf_bundle import HEADER, bytes_field, entry, index_bytes, number_field
from tests.hostile.malformed import Family, Files
from weightport.formats._table import put_varint

ONES = np.ones((2, 2), np.float32)

FROZEN = Family("tf-frozen", "m.pb")
TEXT = Family("tf-frozen, text", "m.pbtxt")
META = Family("tf-meta", "m.meta")
SAVED = Family("tf-saved-model", "m")
ONNX = Family("onnx", "m.onnx")
FAMILIES = (FROZEN, TEXT, META, SAVED, ONNX)


def frozen(*nodes: bytes, functions: Sequence[bytes] = (), behind: bytes = b"") -> Callable[[], bytes]:
    return lambda: graph(*nodes, functions=functions) + behind


def constant(proto: bytes) -> Callable[[], bytes]:
    """A graph of one constant, of that TensorProto, and its read."""
    return frozen(const("w", proto), node("w/read", "Identity", "w"))


# Nodes ----------------------------------------------------------------------------------------------------------------

GOOD = const("w", ONES)
FROZEN.add("a node beyond the file", lambda: graph(GOOD) + b"\x0a\xff\xff\x03")
FROZEN.add("a node of 2**63 bytes", lambda: graph(GOOD) + b"\x0a" + put_varint(1 << 63))
FROZEN.add("a length of eleven bytes", lambda: graph(GOOD) + b"\x0a" + b"\xff" * 11)
FROZEN.add("a field of the number zero", lambda: graph(GOOD) + b"\x02\x00")
FROZEN.add("a group that never ends", lambda: graph(GOOD) + b"\x1b")
FROZEN.add("an end of a group", lambda: graph(GOOD) + b"\x1c")
FROZEN.add("the wire type 7", lambda: graph(GOOD) + b"\x1f")
FROZEN.add("two nodes of one name", frozen(GOOD, const("w", ONES + 1), node("w/read", "Identity", "w")))
FROZEN.add("a node without a name", frozen(GOOD, const("", ONES)))
FROZEN.add("a name that is no text", frozen(GOOD, bytes_field(1, b"\xff\xfe") + bytes_field(2, b"Const")))
FROZEN.add("a constant without a value", frozen(GOOD, node("v", "Const"), node("v/read", "Identity", "v")))
FROZEN.add(
    "a value that is no tensor", frozen(node("w", "Const", value=number_field(3, 1)), node("r", "Identity", "w"))
)
FROZEN.add("an attribute beyond its node", frozen(GOOD, bytes_field(1, b"v") + b"\x2a\x7f"))
FROZEN.add("reads in a circle", frozen(GOOD, node("a", "Identity", "b"), node("b", "Identity", "a")))
FROZEN.add("a node that reads itself", frozen(GOOD, node("a", "Identity", "a")))
FROZEN.add("the output -1", frozen(GOOD, node("a", "Identity", "w:-1")))
FROZEN.add("the output 2**70", frozen(GOOD, node("a", "Identity", f"w:{1 << 70}")))
FROZEN.add(
    "a function that calls itself",
    frozen(GOOD, node("n", "f", "w"), functions=[function("f", ["x"], {"r": "n:r"}, [node("n", "f", "x")])]),
)
FROZEN.add(
    "functions that call each other twice, thirty deep",
    frozen(
        GOOD,
        node("n", "f0", "w"),
        functions=[
            function(f"f{n}", ["x"], {"r": "a:r"}, [node("a", f"f{n + 1}", "x"), node("b", f"f{n + 1}", "x")])
            for n in range(30)
        ],
    ),
)
FROZEN.add(
    "two functions of one name", frozen(GOOD, functions=[function("f", [], {}, []), function("f", ["x"], {}, [])])
)
FROZEN.add("a library that is cut off", lambda: graph(GOOD) + bytes_field(2, b"\x0a\x7f"))

# Constants ------------------------------------------------------------------------------------------------------------

FROZEN.add("an unknown dtype", constant(header(99, (2,)) + bytes_field(4, bytes(8))))
FROZEN.add("a negative dimension", constant(header(1, (-2,)) + bytes_field(4, bytes(8))))
FROZEN.add("a shape that overflows 64 bits", constant(header(1, (1 << 32, 1 << 32)) + bytes_field(4, bytes(8))))
FROZEN.add("65 axes", constant(header(1, (1,) * 65) + bytes_field(4, bytes(4))))
FROZEN.add("an unknown rank", constant(number_field(1, 1) + bytes_field(2, number_field(3, 1))))
FROZEN.add("more content than the shape", constant(header(1, (2,)) + bytes_field(4, bytes(12))))
FROZEN.add("less content than the shape", constant(header(1, (2,)) + bytes_field(4, bytes(4))))
FROZEN.add("more values than the shape", constant(header(1, (2,)) + bytes_field(5, bytes(12))))
FROZEN.add("half a value", constant(header(1, (2,)) + bytes_field(5, bytes(7))))
FROZEN.add("a terabyte of one value", constant(header(1, (1 << 38,)) + bytes_field(5, bytes(4))))
FROZEN.add("a terabyte of one string", constant(header(7, (1 << 38,)) + bytes_field(8, b"a")))
FROZEN.add("a terabyte of nothing", constant(header(1, (1 << 38,))))
FROZEN.add("more strings than the shape", constant(header(7, (1,)) + bytes_field(8, b"a") * 3))
FROZEN.add("varints that are too long", constant(header(3, (1,)) + bytes_field(7, b"\xff" * 11)))
FROZEN.add(
    "a tensor beyond its attribute", frozen(node("w", "Const") + attr("value", b"\x42\x7f"), node("r", "Identity", "w"))
)
FROZEN.add("a graph that is a MetaGraph", lambda: meta_graph(graph(GOOD))[:-1])

# Text -----------------------------------------------------------------------------------------------------------------

_NODE = 'node { name: "w" op: "Const" attr { key: "value" value { tensor { dtype: DT_FLOAT %s } } } }\n'
_SHAPE = "tensor_shape { dim { size: 2 } }"


def text(content: str) -> Callable[[], bytes]:
    return content.encode


TEXT.add("braces that never close", text("node { " * 3))
TEXT.add("a thousand braces deep", text('node { name: "w" op: "Const" ' + "attr { value { list { func { " * 300))
TEXT.add("a brace too many", text(_NODE % _SHAPE + "}"))
TEXT.add("text that never ends", text('node { name: "w'))
TEXT.add("an escape that is none", text(r'node { name: "\q" op: "Const" }'))
TEXT.add("a number that is none", text(_NODE % (_SHAPE + " float_val: 1.2.3")))
TEXT.add("a dimension that is no number", text(_NODE % "tensor_shape { dim { size: x } }"))
TEXT.add("a dimension of 300 digits", text(_NODE % f"tensor_shape {{ dim {{ size: {'9' * 300} }} }} float_val: 1"))
TEXT.add("a negative dimension", text(_NODE % "tensor_shape { dim { size: -2 } } float_val: 1"))
TEXT.add("content of another size", text(_NODE % (_SHAPE + r' tensor_content: "\000\000"')))
TEXT.add("an unknown dtype", text(_NODE.replace("DT_FLOAT", "DT_NONSENSE") % _SHAPE))
TEXT.add("a field nobody has", text(_NODE % (_SHAPE + " nonsense: 1")))
TEXT.add("a value where a message is", text("node: 5"))
TEXT.add("zeros in the text", text(_NODE % _SHAPE + "\0\0"))
TEXT.add("more values than the shape", text(_NODE % (_SHAPE + " float_val: 1" * 3)))

# MetaGraph and SavedModel ---------------------------------------------------------------------------------------------


def variables(*entries: tuple[str, bytes]) -> Files:
    """The variables of a SavedModel."""
    index = index_bytes({key.encode(): value for key, value in entries}, HEADER)
    return {"m/variables/variables.index": index, "m/variables/variables.data-00000-of-00001": bytes(64)}


def saved(content: bytes, files: Files | None = None) -> Callable[[], Files]:
    return lambda: {"m/saved_model.pb": content, **(files or {})}


META.add("nothing in it", lambda: meta_graph(b""))
META.add("a graph beyond the file", lambda: meta_graph(graph(GOOD))[:-5])
META.add("no checkpoint beside it", lambda: meta_graph(graph(node("v", "VariableV2"))))
META.add("two graphs", lambda: meta_graph(graph(GOOD)) + bytes_field(2, graph(const("x", ONES))))
SAVED.add("an empty file", saved(b""))
SAVED.add("no graph", saved(number_field(1, 1)))
SAVED.add("a graph beyond the file", saved(number_field(1, 1) + b"\x12\xff\x7f"))
SAVED.add("a graph that is cut off", saved(number_field(1, 1) + bytes_field(2, meta_graph(graph(GOOD))[:-3])))
SAVED.add(
    "two graphs of the same tags", saved(number_field(1, 1) + bytes_field(2, meta_graph(graph(GOOD), "serve")) * 2)
)
SAVED.add(
    "variables whose index is damaged",
    saved(
        number_field(1, 1) + bytes_field(2, meta_graph(graph(GOOD), "serve")),
        {"m/variables/variables.index": b"x" * 60},
    ),
)
SAVED.add(
    "variables without data",
    saved(
        number_field(1, 1) + bytes_field(2, meta_graph(graph(GOOD), "serve")),
        {"m/variables/variables.index": index_bytes({b"v": entry((2,), size=8)}, HEADER)},
    ),
)
SAVED.add(
    "variables of another size",
    saved(
        number_field(1, 1) + bytes_field(2, meta_graph(graph(GOOD), "serve")), variables(("v", entry((200,), size=800)))
    ),
)

# ONNX -----------------------------------------------------------------------------------------------------------------


def onnx(*tensors: bytes, nodes: tuple[bytes, ...] = ()) -> Callable[[], bytes]:
    return lambda: _onnx.model(_onnx.graph(*tensors, nodes=nodes))


def external(name: str, keys: Mapping[str, str]) -> bytes:
    """A tensor of four floats in another file."""
    pairs = b"".join(_onnx.field(13, _onnx.field(1, key) + _onnx.field(2, value)) for key, value in keys.items())
    return _onnx.tensor(name, 1, (4,), pairs, _onnx.field(14, 1))


def beside(location: str = "w.bin", size: int = 16, **said: str) -> Callable[[], Files]:
    """One of them in a file beside the model."""
    proto = external("w", {"location": location, **said})
    return lambda: {"m.onnx": _onnx.model(_onnx.graph(proto)), "w.bin": bytes(size)}


def both(location: str, offset: int) -> Callable[[], Files]:
    """Two of them, one at byte 8 of a file of 64."""
    first = external("v", {"location": "w.bin", "offset": "8"})
    second = external("w", {"location": location, "offset": str(offset)})
    return lambda: {"m.onnx": _onnx.model(_onnx.graph(first, second)), "w.bin": bytes(64)}


def raw(dims: tuple[int, ...], content: bytes, number: int = 1) -> Callable[[], bytes]:
    return onnx(_onnx.tensor("w", number, dims, _onnx.field(9, content)))


def nested(depth: int) -> bytes:
    """A graph in a graph in a graph."""
    found = _onnx.graph(_onnx.raw("w", np.ones(2)))
    for n in range(depth):
        inner = _onnx.attribute("body", _onnx.field(6, found), _onnx.field(20, 5))
        found = _onnx.graph(nodes=(_onnx.node("Loop", (), (), f"n{n}", inner),))
    return _onnx.model(found)


ONNX.add("a graph beyond the file", lambda: _onnx.model(_onnx.graph(_onnx.raw("w", np.ones(4))))[:-12])
ONNX.add("a tensor of 2**63 bytes", lambda: _onnx.field(7, b"\x2a" + put_varint(1 << 63)))
ONNX.add("graphs in graphs, a hundred deep", lambda: nested(100))
ONNX.add("an unknown dtype", raw((2,), bytes(8), 99))
ONNX.add("a negative dimension", raw((-2,), bytes(8)))
ONNX.add("a shape that overflows 64 bits", raw((1 << 32, 1 << 32), bytes(8)))
ONNX.add("65 axes", raw((1,) * 65, bytes(4)))
ONNX.add("more bytes than the shape", raw((2,), bytes(12)))
ONNX.add("fewer bytes than the shape", raw((2,), bytes(4)))
ONNX.add("a terabyte of nothing", onnx(_onnx.tensor("w", 1, (1 << 38,))))
ONNX.add("fewer values than the shape", onnx(_onnx.tensor("w", 1, (4,), _onnx.field(4, bytes(8)))))
ONNX.add("more values than the shape", onnx(_onnx.tensor("w", 1, (1,), _onnx.field(4, bytes(8)))))
ONNX.add("half a value", onnx(_onnx.tensor("w", 1, (1,), _onnx.field(4, bytes(5)))))
ONNX.add("values in two fields", onnx(_onnx.tensor("w", 1, (1,), _onnx.field(4, bytes(4)), _onnx.field(9, bytes(4)))))
ONNX.add("strings that are fewer", onnx(_onnx.tensor("w", 8, (3,), _onnx.field(6, b"a"))))
ONNX.add("two tensors of one name", onnx(_onnx.raw("w", np.ones(2)), _onnx.raw("w", np.ones(3))))
ONNX.add("a tensor without a name", onnx(_onnx.raw("", np.ones(2))))
ONNX.add("an odd number of halves", onnx(_onnx.tensor("w", 14, (1,), _onnx.field(4, bytes(12)))))
ONNX.add("varints that are too long", onnx(_onnx.tensor("w", 7, (1,), _onnx.field(7, b"\xff" * 11))))
ONNX.add("a segment", onnx(_onnx.tensor("w", 1, (2,), _onnx.field(9, bytes(8)), _onnx.field(3, b"\x08\x01"))))
ONNX.add("a file beside it that is too short", beside(size=15))
ONNX.add("an offset beyond it", beside(offset="16"))
ONNX.add("values beside it that overlap", both("w.bin", 20))
ONNX.add("values beside it that overlap, by another path", both("./w.bin", 0))
ONNX.add("a negative offset", beside(offset="-16"))
ONNX.add("an offset of 2**63", beside(offset=str(1 << 63)))
ONNX.add("an offset that is no number", beside(offset="0x10"))
ONNX.add("another length than the shape", beside(length="12"))
ONNX.add("a length of thousands of digits", beside(length="9" * 5000))
ONNX.add("no place at all", lambda: _onnx.model(_onnx.graph(_onnx.tensor("w", 1, (4,), _onnx.field(14, 1)))))
ONNX.add("a place that is not there", beside("none.bin"))
ONNX.add("another checksum", beside(checksum="0" * 40))
