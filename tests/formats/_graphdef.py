"""Graphs written by hand, field by field: GraphDefs, functions, MetaGraphDefs, SavedModels, without TensorFlow."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tests.formats.test_tf_bundle import bytes_field, number_field
from weightport.formats._tensorproto import NUMBERS


def tensor(array: np.ndarray) -> bytes:
    """A TensorProto with its values in ``tensor_content``, or in ``string_val``."""
    out = header(NUMBERS[array.dtype.name], array.shape)
    if array.dtype == object:
        return out + b"".join(bytes_field(8, value) for value in array.reshape(-1))
    return out + bytes_field(4, array.tobytes())


def header(number: int, shape: Sequence[int]) -> bytes:
    """A TensorProto's type and shape."""
    return number_field(1, number) + bytes_field(2, shape_proto(shape))


def shape_proto(shape: Sequence[int]) -> bytes:
    return b"".join(bytes_field(2, number_field(1, dim)) for dim in shape)


def attr(key: str, value: bytes) -> bytes:
    return bytes_field(5, bytes_field(1, key.encode()) + bytes_field(2, value))


def node(name: str, op: str, *inputs: str, **attrs: float | str | bytes) -> bytes:
    """A NodeDef; floats and ints are attributes of that type, a str is a function, bytes are an AttrValue itself."""
    out = bytes_field(1, name.encode()) + bytes_field(2, op.encode())
    out += b"".join(bytes_field(3, i.encode()) for i in inputs)
    for key, value in attrs.items():
        if isinstance(value, bytes):
            out += attr(key, value)
        elif isinstance(value, str):
            out += attr(key, bytes_field(10, bytes_field(1, value.encode())))
        elif isinstance(value, int):
            out += attr(key, number_field(3, value))
        else:
            out += attr(key, b"\x25" + struct.pack("<f", value))
    return out


def const(name: str, value: np.ndarray | float | bytes, *inputs: str) -> bytes:
    """A Const; bytes are its TensorProto."""
    proto = (
        value
        if isinstance(value, bytes)
        else tensor(np.asarray(value, np.float32 if isinstance(value, float) else None))
    )
    return node(name, "Const", *inputs, value=bytes_field(8, proto))


def function(name: str, arguments: Sequence[str], results: Mapping[str, str], nodes: Sequence[bytes]) -> bytes:
    """A FunctionDef."""
    signature = bytes_field(1, name.encode())
    signature += b"".join(bytes_field(2, bytes_field(1, a.encode())) for a in arguments)
    signature += b"".join(bytes_field(3, bytes_field(1, r.encode())) for r in results)
    out = bytes_field(1, signature) + b"".join(bytes_field(3, n) for n in nodes)
    pairs = [bytes_field(1, k.encode()) + bytes_field(2, v.encode()) for k, v in results.items()]
    return out + b"".join(bytes_field(4, pair) for pair in pairs)


def graph(*nodes: bytes, functions: Sequence[bytes] = ()) -> bytes:
    """A GraphDef."""
    library = b"".join(bytes_field(1, f) for f in functions)
    return b"".join(bytes_field(1, n) for n in nodes) + (bytes_field(2, library) if functions else b"")


def meta_graph(graph_def: bytes, *tags: str) -> bytes:
    """A MetaGraphDef."""
    info = b"".join(bytes_field(4, tag.encode()) for tag in tags)
    return bytes_field(1, info) + bytes_field(2, graph_def)


def saved_model(folder: Path, *meta_graphs: bytes) -> str:
    """A SavedModel's folder, without variables."""
    folder.mkdir(exist_ok=True)
    (folder / "saved_model.pb").write_bytes(number_field(1, 1) + b"".join(bytes_field(2, m) for m in meta_graphs))
    return str(folder)


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


# A cell in a loop: what BasicLSTMCell under dynamic_rnn comes down to.


def lstm_nodes(
    *,
    forget_bias: float | None = 1.0,
    gate: str = "Sigmoid",
    act: str = "Tanh",
    out_act: str | None = None,
    clip: float | None = None,
    x: str = "x",
    kernel: str = "kernel/read",
    bias: str = "bias/read",
    h: str = "h",
    c: str = "c",
) -> list[bytes]:
    """One step ``h, c -> h2, c2`` of an LSTM of single operations."""
    nodes = [
        node("xh", "ConcatV2", x, h, "one"),
        node("product", "MatMul", "xh", kernel),
        node("z", "BiasAdd", "product", bias),
        node("split", "Split", "one", "z"),
        node("i", gate, "split"),
        node("g", act, "split:1"),
        node("o", gate, "split:3"),
    ]
    forget = "split:2"
    if forget_bias is not None:
        nodes += [const("forget_bias", forget_bias), node("biased", "Add", "split:2", "forget_bias")]
        forget = "biased"
    nodes += [
        node("f", gate, forget),
        node("kept", "Mul", c, "f"),
        node("new", "Mul", "i", "g"),
        node("c1", "AddV2", "kept", "new"),
    ]
    state = "c1"
    if clip is not None:
        nodes += [const("high", clip), const("low", -clip)]
        nodes += [node("clipped", "Minimum", "c1", "high"), node("c_clip", "Maximum", "clipped", "low")]
        state = "c_clip"
    return [
        *nodes,
        node("c2", "Identity", state),
        node("act_c", out_act or act, "c2"),
        node("h2", "Mul", "o", "act_c"),
    ]


def weights(units: int = 2, inputs: int = 3) -> list[bytes]:
    """Kernel and bias as frozen variables, and the axis."""
    rng = np.random.default_rng(3)
    return [
        const("kernel", rng.normal(size=(inputs + units, 4 * units)).astype(np.float32)),
        node("kernel/read", "Identity", "kernel"),
        const("bias", rng.normal(size=4 * units).astype(np.float32)),
        node("bias/read", "Identity", "bias"),
        const("one", np.array(1, np.int32)),
        node("x", "Placeholder"),
    ]
