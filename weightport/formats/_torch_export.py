"""The weights of ``torch.export`` archives (``.pt2``, PyTorch 2.7 and later): a table in JSON, and their bytes.

Promise: the table is checked entry by entry; names are those of the exported module's state dict, and its constants' in
a table of their own. Limit: entries that are pickled (subclasses of tensors) are listed and not read; objects that are
no tensors are left out.

Sources: torch/_export/serde/schema.py (``PayloadMeta``, ``TensorMeta``, ``ScalarType``),
torch/export/pt2_archive/_package.py.
"""

from __future__ import annotations

import json
from typing import Any

from weightport.formats._pickle import Malformed
from weightport.formats._torch_tensors import Storage, Tensor, itemsize, view_of

#: ``ScalarType`` -> torch's name.
_DTYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
    9: "complex32", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16", 29: "float8_e4m3fn",
    30: "float8_e5m2", 31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz", 33: "float8_e8m0fnu", 34: "uint32", 35: "uint64",
}  # fmt: skip
_STRIDED = 7


def table(text: bytes, folder: str) -> list[tuple[str, Tensor]]:
    """The tensors of one table, in its order.

    Args:
        text: ``..._weights_config.json`` or ``..._constants_config.json``.
        folder: where the archive has their bytes.

    Raises:
        Malformed: no such table.
    """
    try:
        document = json.loads(text)
        entries = list(document["config"].items())
        found = ((name, _entry(entry, folder)) for name, entry in entries)
        return [(name, tensor) for name, tensor in found if tensor is not None]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise Malformed("the table of weights is not as torch.export writes it") from None


def _entry(entry: Any, folder: str) -> Tensor | None:
    meta = entry["tensor_meta"]
    if meta is None:
        return None
    dtype = _DTYPES[meta["dtype"]]
    shape, stride = ([dim["as_int"] for dim in meta[key]] for key in ("sizes", "strides"))
    storage = Storage(folder + str(entry["path_name"]), dtype, 1 << 61, 0, 0)
    made = view_of(storage, meta["storage_offset"]["as_int"], shape, stride)
    if entry["use_pickle"] or meta["layout"] != _STRIDED:
        return Tensor(None, dtype, 0, made.shape, (), "pickled by itself" if entry["use_pickle"] else "sparse")
    numel = made.extent
    return made.of(Storage(storage.key, dtype, numel, 0, numel * itemsize(dtype)))
