"""A budget reaches every reader: whatever the format, what goes over one of its bounds is refused."""

from __future__ import annotations

from typing import Any

import pytest

import weightport as wp
from scripts.specimens import FOLDER, OPENED
from weightport.budget import Budget
from weightport.errors import BudgetExceeded

#: Formats in which something does not nest, or whose headers are of a size that the file's own bounds.
NO_DEPTH = {name for name in OPENED if name.startswith(("tf_", "npz", "safetensors", "torch_", "onnx", "orbax"))}
NO_DEPTH = (NO_DEPTH | {"npy", "hdf5_chunked", "gguf", "tflite"}) - {"tf_pbtxt"}
NO_HEADER = {"onnx_external", "onnx_checksum", "flax"}


def read(name: str, **bounds: Any) -> int:
    """The number of tensors of a specimen, all of them read."""
    kind, _, path = OPENED[name].partition(":")
    with wp.open(f"{kind}:{FOLDER / name / path}", budget=Budget(**bounds)) as source:
        for tensor in source.specs():
            source.read(tensor)
        return len(source.specs())


@pytest.mark.parametrize("name", OPENED)
@pytest.mark.parametrize("bound", ["tensors", "header_bytes", "rank", "depth", "tensor_bytes"])
def test_every_bound_of_every_reader(name: str, bound: str) -> None:
    assert read(name)
    never = {"depth": NO_DEPTH, "header_bytes": NO_HEADER, "tensors": {"npy"}}
    if name in never.get(bound, ()):
        assert read(name, **{bound: 0})
        return
    with pytest.raises(BudgetExceeded, match=rf": {bound.replace('_', ' ')}: [\d,]+ asked for, at most 0 allowed$"):
        read(name, **{bound: 0})
