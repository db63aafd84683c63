"""ONNX models made by hand: fields of protobuf's wire format, and the messages of onnx.proto."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from weightport.formats._table import put_varint


def field(number: int, value: int | bytes | str) -> bytes:
    """A field: an integer as a varint, anything else as bytes."""
    if isinstance(value, int):
        return put_varint(number << 3) + put_varint(value % (1 << 64))
    raw = value.encode() if isinstance(value, str) else value
    return put_varint(number << 3 | 2) + put_varint(len(raw)) + raw


def fixed32(number: int, value: float) -> bytes:
    return put_varint(number << 3 | 5) + np.float32(value).tobytes()


def tensor(name: str, number: int, dims: tuple[int, ...], *values: bytes) -> bytes:
    """A TensorProto whose values are those fields."""
    return b"".join(field(1, d) for d in dims) + field(2, number) + b"".join(values) + field(8, name)


def raw(name: str, array: np.ndarray) -> bytes:
    """A TensorProto of float32."""
    return tensor(name, 1, array.shape, field(9, array.astype("<f4").tobytes()))


def attribute(name: str, *fields: bytes) -> bytes:
    return field(1, name) + b"".join(fields)


def node(
    op: str, inputs: tuple[str, ...] = (), outputs: tuple[str, ...] = (), name: str = "", *attributes: bytes
) -> bytes:
    parts = [field(1, i) for i in inputs] + [field(2, o) for o in outputs]
    parts += [field(3, name)] if name else []
    return b"".join([*parts, field(4, op), *(field(5, a) for a in attributes)])


def graph(*initializers: bytes, nodes: tuple[bytes, ...] = ()) -> bytes:
    return b"".join([*(field(1, n) for n in nodes), field(2, "g"), *(field(5, i) for i in initializers)])


def model(*graphs: bytes, functions: tuple[bytes, ...] = ()) -> bytes:
    parts = [field(1, 8), *(field(7, g) for g in graphs), field(8, field(2, 17)), *(field(25, f) for f in functions)]
    return b"".join(parts)


def written(folder: Path, data: bytes | Any, name: str = "m.onnx") -> str:
    """A file of those bytes, or of an onnx.ModelProto."""
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.SerializeToString())
    return str(path)
