"""Small TensorFlow Lite models, made with the flatbuffers package by the field numbers of schema.fbs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.support import need


@dataclass
class Tensor:
    """A tensor; ``buffer`` is an index into the model's buffers."""

    name: str
    type: int
    shape: Sequence[int]
    buffer: int
    scale: Sequence[float] = ()
    zero: Sequence[int] = ()
    axis: int = 0
    details: int = 0
    sparse: bool = False
    external: int = 0


def model(
    *graphs: Sequence[Tensor], buffers: Sequence[bytes | tuple[int, int]] = (), names: Sequence[str] = ()
) -> bytes:
    """A model of those graphs. Buffer 0 is empty, as ever; a pair is an offset and a size outside of the FlatBuffer."""
    flatbuffers = need("flatbuffers")
    b = flatbuffers.Builder(1024)

    def offsets(items: Sequence[int]) -> int:
        b.StartVector(4, len(items), 4)
        for item in reversed(items):
            b.PrependUOffsetTRelative(item)
        return int(b.EndVector())

    made = []
    for content in (b"", *buffers):
        data = b.CreateByteVector(content) if isinstance(content, bytes) and content else None
        b.StartObject(3)
        if data is not None:
            b.PrependUOffsetTRelativeSlot(0, data, 0)
        elif not isinstance(content, bytes):
            b.PrependUint64Slot(1, content[0], 0)
            b.PrependUint64Slot(2, content[1], 0)
        made.append(b.EndObject())
    held = offsets(made)
    subgraphs = []
    for number, tensors in enumerate(graphs):
        inside = offsets([_tensor(b, t) for t in tensors])
        name = b.CreateString(names[number]) if number < len(names) else None
        b.StartObject(5)
        b.PrependUOffsetTRelativeSlot(0, inside, 0)
        if name is not None:
            b.PrependUOffsetTRelativeSlot(4, name, 0)
        subgraphs.append(b.EndObject())
    whole = offsets(subgraphs)
    b.StartObject(5)
    b.PrependUint32Slot(0, 3, 0)
    b.PrependUOffsetTRelativeSlot(2, whole, 0)
    b.PrependUOffsetTRelativeSlot(4, held, 0)
    b.Finish(b.EndObject(), file_identifier=b"TFL3")
    return bytes(b.Output())


def _tensor(b: Any, tensor: Tensor) -> int:
    name = b.CreateString(tensor.name) if tensor.name else None
    shape = b.CreateNumpyVector(np.array(tensor.shape, np.int32)) if len(tensor.shape) else None
    quantization = None
    if len(tensor.scale) or tensor.details:
        scale = b.CreateNumpyVector(np.array(tensor.scale, np.float32)) if len(tensor.scale) else None
        zero = b.CreateNumpyVector(np.array(tensor.zero, np.int64)) if len(tensor.zero) else None
        b.StartObject(7)
        if scale is not None:
            b.PrependUOffsetTRelativeSlot(2, scale, 0)
        if zero is not None:
            b.PrependUOffsetTRelativeSlot(3, zero, 0)
        b.PrependUint8Slot(4, tensor.details, 0)
        b.PrependInt32Slot(6, tensor.axis, 0)
        quantization = b.EndObject()
    sparsity = None
    if tensor.sparse:
        b.StartObject(3)
        sparsity = b.EndObject()
    b.StartObject(11)
    for slot, offset in ((0, shape), (3, name), (4, quantization), (6, sparsity)):
        if offset is not None:
            b.PrependUOffsetTRelativeSlot(slot, offset, 0)
    b.PrependUint8Slot(1, tensor.type, 0)
    b.PrependUint32Slot(2, tensor.buffer, 0)
    b.PrependUint32Slot(10, tensor.external, 0)
    return int(b.EndObject())


def written(folder: Path, data: bytes, name: str = "m.tflite") -> str:
    path = folder / name
    path.write_bytes(data)
    return str(path)
