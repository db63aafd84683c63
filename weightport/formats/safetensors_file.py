"""safetensors: one file of named tensors, read by hand and written canonically.

Promise: the header is checked whole before any value is read (duplicate keys, sizes, overlaps, holes), then values are
read by position, whole or in part; writing streams, and gives the very bytes that safetensors' own ``save_file`` gives
for the same tensors and metadata. Limit: the format has no checksum, so a flipped bit in a value cannot be seen; no
dtypes packed below a byte (F4, F6), no strings. Models in several files: :mod:`~weightport.formats.safetensors_index`.

Source: https://github.com/huggingface/safetensors, README ("Format") and safetensors/src/tensor.rs (``Metadata``,
``prepare``, ``Dtype``).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from weightport.errors import Error, FormatError, TensorNotFound
from weightport.formats import _strided
from weightport.formats._io import ByteFile
from weightport.formats._ranged import Place, Ranged
from weightport.formats._temporaries import atomic_path
from weightport.tensors import Array, Budget, Extent, Index, Kept, TensorSpec, Tiles, dtype_named

#: The format's bound on its own header.
MAX_HEADER = 100_000_000
#: In the order of tensor.rs' ``Dtype``: the writer stores the last ones first, which aligns every tensor.
DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
_PACKED = ("F4", "F6_E2M3", "F6_E3M2")
_NAMES = {name: code for code, name in DTYPES.items()}
_RANKS = {code: rank for rank, code in enumerate(DTYPES)}
_KEYS = {"dtype", "shape", "data_offsets"}


class SafetensorsSource:
    """An open ``.safetensors`` file. ``metadata`` is its ``__metadata__``."""

    format = "safetensors"

    def __init__(self, path: str, *, budget: Budget | None = None) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        self._budget = budget or Budget()
        self._specs: dict[str, TensorSpec] = {}
        self._offsets: dict[str, int] = {}
        self._file = ByteFile(path)
        try:
            self._read_header()
        except BaseException:
            self._file.close()
            raise

    def _read_header(self) -> None:
        size = _header_size(self._file)
        self._budget.spend("header_bytes", size, self.path)
        raw = self._file.read(8, size)
        if not raw.startswith(b"{"):
            raise FormatError(self.path, "the header is no JSON object", offset=8)
        try:
            header = json.loads(raw.decode("utf-8"), object_pairs_hook=self._pairs)
        except UnicodeDecodeError as error:
            raise FormatError(self.path, "the header is no UTF-8", offset=8 + error.start) from None
        except json.JSONDecodeError as error:
            at = len(error.doc[: error.pos].encode("utf-8"))
            raise FormatError(self.path, f"the header is no JSON: {error.msg}", offset=8 + at) from None
        except (RecursionError, ValueError):
            raise FormatError(self.path, "the header is no JSON: nested too deep, or too long a number") from None
        if "__metadata__" in header:
            self.metadata = self._metadata(header.pop("__metadata__"))
        self._budget.check("tensors", len(header), self.path)
        spans = []
        data = 8 + size
        for name, entry in header.items():
            spec, start, stop = self._entry(name, entry)
            self._specs[name] = spec
            self._offsets[name] = data + start
            spans.append((start, stop, name))
        spans.sort(key=lambda span: span[:2])
        end = 0
        for start, stop, name in spans:
            if start != end:
                what = "overlaps the one before it" if start < end else f"leaves a hole of {start - end} bytes"
                raise FormatError(self.path, what, tensor=name, offset=data + start)
            end = stop
        if data + end != self._file.size:
            raise FormatError(
                self.path,
                f"truncated or corrupt: the header describes {data + end} bytes, the file has {self._file.size}",
                tensor=next((n for _, stop, n in spans if data + stop > self._file.size), None),
                offset=min(data + end, self._file.size),
            )

    def _pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise FormatError(self.path, f"the header has the key {twice!r} twice", offset=8)
        return found

    def _metadata(self, value: Any) -> dict[str, str]:
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise FormatError(self.path, "the header's __metadata__ is no object of strings", offset=8)
        return value

    def _entry(self, name: str, entry: Any) -> tuple[TensorSpec, int, int]:
        def wrong(what: str) -> FormatError:
            return FormatError(self.path, what, tensor=name)

        if not isinstance(entry, dict) or set(entry) != _KEYS:
            raise wrong("its header entry does not have exactly dtype, shape and data_offsets")
        code, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(code, str) or code not in DTYPES:
            packed = isinstance(code, str) and code in _PACKED
            raise wrong(f"the dtype {code!r} {'is packed below a byte: not supported' if packed else 'is unknown'}")
        if not isinstance(shape, list) or not all(type(dim) is int and dim >= 0 for dim in shape):
            raise wrong("its shape is no list of sizes")
        if not isinstance(span, list) or len(span) != 2 or not all(type(at) is int and at >= 0 for at in span):
            raise wrong("its data_offsets are no pair of offsets")
        dtype = dtype_named(DTYPES[code])
        nbytes = _strided.checked(dtype, tuple(shape), self._budget, self.path, name)
        start, stop = span
        if stop - start != nbytes:
            raise wrong(f"{code} of shape {shape} takes {nbytes} bytes, its data_offsets span {stop - start}")
        return TensorSpec(dtype, tuple(shape), nbytes), start, stop

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec, in the header's order."""
        return self._specs

    def read(self, name: str, index: Index = None) -> Array:
        """The tensor or the part of it that ``index`` cuts out; only its byte ranges are read."""
        spec = self._specs.get(name)
        if spec is None:
            raise TensorNotFound(name, self._specs, self.path)
        cuts = _strided.bounds(index, spec.shape, f"{self.path}: tensor {name!r}")
        return _strided.read_part(self._file, self._offsets[name], spec.dtype, spec.shape, cuts, tensor=name)

    def extent(self, name: str) -> Extent:
        """Where a tensor lies; there is no checksum."""
        spec = self._specs.get(name)
        if spec is None:
            raise TensorNotFound(name, self._specs, self.path)
        return Extent(self.path, self._offsets[name], spec.nbytes)

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:  # noqa: ARG002
        """Nothing: the format stores no cells."""
        return {}

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def __enter__(self) -> SafetensorsSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _header_size(file: ByteFile) -> int:
    if file.size < 8:
        raise FormatError(file.path, f"truncated: {file.size} bytes are no safetensors file", offset=file.size)
    size = int.from_bytes(file.read(0, 8), "little")
    if size > MAX_HEADER:
        raise FormatError(file.path, f"a header of {size:,} bytes, at most {MAX_HEADER:,} are allowed", offset=0)
    if 8 + size > file.size:
        raise FormatError(
            file.path, f"truncated: a header of {size} bytes is announced, the file has {file.size}", offset=file.size
        )
    return size


def sniff(path: str) -> bool:
    """Whether the file begins as safetensors does: a plausible header size, then ``{"``."""
    try:
        with ByteFile(path) as file:
            if file.size < 10:
                return False
            head = file.read(0, 10)
            return int.from_bytes(head[:8], "little") <= MAX_HEADER and head[8:10] in (b'{"', b"{}")
    except (FormatError, OSError):
        return False


def open_source(path: str, *, budget: Budget | None = None) -> SafetensorsSource:
    """Open a ``.safetensors`` file.

    Raises:
        FormatError: truncated, corrupt, or no safetensors file.
    """
    return SafetensorsSource(path, budget=budget)


@contextlib.contextmanager
def _destination(
    path: str,
    specs: Mapping[str, TensorSpec],
    tiles: Tiles,  # noqa: ARG001
    *,
    metadata: Mapping[str, str] | None = None,
    kept: Kept | None = None,
) -> Iterator[Place]:
    """Write a ``.safetensors`` file. Its order is the format's canonical one, not that of ``specs``.

    ``metadata`` gets ``format: pt`` beside it unless it says another: transformers takes no file that has metadata
    without it (``src/transformers/modeling_utils.py``, ``load_state_dict``).

    Raises:
        Error: a dtype or name that the format cannot hold, or values that are not as their spec says.
    """
    with atomic_path(path, kept) as made:
        yield Place(begin(path, made, specs, metadata))


write = Ranged(_destination)


def begin(
    path: str, made: str, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str] | None
) -> dict[str, tuple[str, int]]:
    """Write all but the values of a file.

    Args:
        path: what errors name.
        made: the file, which is there; what it has in the places of tensors stays.
        specs, metadata: see :data:`write`.

    Returns:
        where each tensor's values belong: the file, and the offset in it.

    Raises:
        Error: a dtype or name that the format cannot hold.
    """
    head, offsets, size = _head(path, specs, metadata)
    with open(made, "r+b") as out:
        out.write(head)
        out.truncate(size)
    return {name: (made, offset) for name, offset in offsets.items()}


def _head(
    path: str, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str] | None
) -> tuple[bytes, dict[str, int], int]:
    """What stands before the values, where in the file each tensor's begin, and the size of it all."""
    codes = {name: _code(path, name, spec) for name, spec in specs.items()}
    order = sorted(specs, key=lambda name: (-_RANKS[codes[name]], name))
    said = {"format": "pt", **metadata} if metadata else {}
    header: dict[str, Any] = {"__metadata__": dict(sorted(said.items()))} if said else {}
    offsets: dict[str, int] = {}
    at = 0
    for name in order:
        spec = specs[name]
        nbytes = TensorSpec.of(spec.dtype, spec.shape).nbytes
        header[name] = {"dtype": codes[name], "shape": list(spec.shape), "data_offsets": [at, at + nbytes]}
        offsets[name] = at
        at += nbytes
    try:
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError:
        raise Error(f"{path}: a tensor's name or the metadata is no valid text") from None
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise Error(f"{path}: a header of {len(text):,} bytes, safetensors allows {MAX_HEADER:,}")
    data = 8 + len(text)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: data + offset for name, offset in offsets.items()}, data + at


def _code(path: str, name: str, spec: TensorSpec) -> str:
    code = _NAMES.get(np.dtype(spec.dtype).name)
    if code is None:
        dtype = "strings" if spec.dtype.kind in "OSU" else f"the dtype {spec.dtype.name}"
        raise Error(f"{path}: tensor {name!r}: safetensors cannot hold {dtype}")
    if name == "__metadata__":
        raise Error(f"{path}: safetensors keeps the name '__metadata__' for itself")
    return code
