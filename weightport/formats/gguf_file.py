"""GGUF models (llama.cpp and others), versions 2 and 3: their tensors, read without a package.

Promise: opening reads the tensors' headers and passes over the metadata, of which only the alignment counts; a tensor,
or a part of it, is read where it lies. Shapes are numpy's: the file has them reversed. Plain types are read as values;
quantized blocks as the bytes they are, and their specs say what these stand for. Limit: one file: of a model that was
split, each part has its own tensors; the format has no checksums.

Sources: https://github.com/ggml-org/ggml, docs/gguf.md; gguf/constants.py (``GGML_QUANT_SIZES``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from weightport.errors import FormatError, TensorNotFound
from weightport.formats import _strided
from weightport.formats._io import ByteFile
from weightport.formats._quantized import Blocks
from weightport.tensors import Array, Budget, Extent, Index, TensorSpec, dtype_named

MAGIC = b"GGUF"
#: ggml's plain types -> numpy's or ml_dtypes' name.
DTYPES: dict[int, str] = {
    0: "float32",
    1: "float16",
    24: "int8",
    25: "int16",
    26: "int32",
    27: "int64",
    28: "float64",
    30: "bfloat16",
}
#: ggml's quantized types -> name, values in a block, bytes of a block.
BLOCKS: dict[int, tuple[str, int, int]] = {
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}
# Metadata: the sizes of plain values; text and arrays besides.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT32, _STRING, _ARRAY = 4, 8, 9
_ALIGNMENT, _DEFAULT_ALIGNMENT = b"general.alignment", 32
_LONGEST, _WINDOW = 1 << 16, 256 * 1024


class _Cursor:
    """Numbers and text from the head of the file, one after another, through a window."""

    def __init__(self, file: ByteFile, at: int, budget: Budget) -> None:
        self._file, self._budget = file, budget
        self.at, self.big = at, False
        self._window, self._start = b"", at

    def take(self, count: int) -> bytes:
        """The next bytes."""
        begin = self.at - self._start
        if begin < 0 or begin + count > len(self._window):
            self._file.check(self.at, count)
            size = max(count, min(_WINDOW, self._file.size - self.at))
            self._budget.spend("header_bytes", size, self._file.path)
            self._start, self._window, begin = self.at, self._file.read(self.at, size), 0
        self.at += count
        return self._window[begin : begin + count]

    def number(self, size: int) -> int:
        """The next unsigned number."""
        return int.from_bytes(self.take(size), "big" if self.big else "little")

    def text(self) -> bytes:
        """The next text: its size, then its bytes."""
        size = self.number(8)
        if size > _LONGEST:
            raise FormatError(self._file.path, f"a name of {size:,} bytes", offset=self.at - 8)
        return self.take(size)

    def skip(self, count: int) -> None:
        """Pass over bytes."""
        self._file.check(self.at, count)
        self.at += count

    def skip_value(self, kind: int, depth: int = 0) -> None:
        """Pass over a value of the metadata."""
        self._budget.check("depth", depth, self._file.path)
        if kind in _SIZES:
            self.skip(_SIZES[kind])
        elif kind == _STRING:
            self.skip(self.number(8))
        elif kind == _ARRAY:
            inner, count = self.number(4), self.number(8)
            if inner in _SIZES:
                self.skip(count * _SIZES[inner])
                return
            self._file.check(self.at, count * 8)  # what each of them takes at least
            for _ in range(count):
                self.skip_value(inner, depth + 1)
        else:
            raise FormatError(self._file.path, f"metadata of the unknown type {kind}", offset=self.at)


class GgufSource:
    """An open GGUF file."""

    format = "gguf"

    def __init__(self, path: str, *, budget: Budget | None = None) -> None:
        self.path = path
        self._budget = budget or Budget()
        self._specs: dict[str, TensorSpec] = {}
        self._offsets: dict[str, int] = {}
        self._big = False
        self._file = ByteFile(path)
        try:
            self._read_header()
        except BaseException:
            self._file.close()
            raise

    def _read_header(self) -> None:
        if self._file.size < 4 or self._file.read(0, 4) != MAGIC:
            raise FormatError(self.path, "is no GGUF file: it does not begin with GGUF")
        cursor = _Cursor(self._file, 4, self._budget)
        version = cursor.number(4)
        if version & 0xFFFF == 0:  # of a machine with the other order of bytes
            self._big = cursor.big = True
            version = int.from_bytes(version.to_bytes(4, "little"), "big")
        if version not in (2, 3):
            raise FormatError(self.path, f"is GGUF of version {version}; 2 and 3 are read", offset=4)
        count, entries = cursor.number(8), cursor.number(8)
        self._budget.check("tensors", count, self.path)
        alignment = _DEFAULT_ALIGNMENT
        for _ in range(entries):
            key, kind = cursor.text(), cursor.number(4)
            if key == _ALIGNMENT and kind == _UINT32:
                alignment = cursor.number(4)
            else:
                cursor.skip_value(kind)
        if not alignment or alignment & (alignment - 1):
            raise FormatError(self.path, f"an alignment of {alignment} is no power of two")
        heads = [self._head(cursor) for _ in range(count)]
        data = -(-cursor.at // alignment) * alignment
        end, last = data, ""
        for offset, name, spec in sorted(heads, key=lambda head: head[:2]):
            start = data + offset
            if offset % alignment:
                raise FormatError(self.path, f"is not aligned to {alignment} bytes", tensor=name, offset=start)
            if start < end:
                raise FormatError(self.path, f"overlaps {last!r}", tensor=name, offset=start)
            self._file.check(start, spec.nbytes, tensor=name)
            end, last = start + spec.nbytes, name
            self._offsets[name] = start

    def _head(self, cursor: _Cursor) -> tuple[int, str, TensorSpec]:
        """Offset, name and spec of the next tensor."""
        at = cursor.at
        name = cursor.text().decode("utf-8", "backslashreplace")
        if name in self._specs:
            raise FormatError(self.path, f"two tensors are named {name!r}", offset=at)
        rank = cursor.number(4)
        self._budget.check("rank", rank, self.path, tensor=name)
        shape = tuple(cursor.number(8) for _ in range(rank))[::-1]
        kind, offset = cursor.number(4), cursor.number(8)
        if kind in DTYPES:
            dtype = dtype_named(DTYPES[kind])
            spec = TensorSpec(dtype, shape, _strided.checked(dtype, shape, self._budget, self.path, name))
        elif kind in BLOCKS:
            spec = self._blocks(name, shape, kind, at)
        else:
            _strided.checked(np.dtype(np.uint8), shape, self._budget, self.path, name)
            spec = TensorSpec(np.dtype(object), shape, 0, unread=f"of the type {kind}")
        self._specs[name] = spec
        return offset, name, spec

    def _blocks(self, name: str, shape: tuple[int, ...], kind: int, at: int) -> TensorSpec:
        title, elements, size = BLOCKS[kind]
        if not shape or shape[-1] % elements:
            what = f"{title} of shape {list(shape)}: the last axis is no whole number of blocks of {elements}"
            raise FormatError(self.path, what, tensor=name, offset=at)
        dtype = np.dtype(np.uint8)
        stored = (*shape[:-1], shape[-1] // elements * size)
        nbytes = _strided.checked(dtype, stored, self._budget, self.path, name)
        _strided.checked(np.dtype(np.float32), shape, self._budget, self.path, name)
        if self._big:
            return TensorSpec(dtype, stored, nbytes, unread=f"quantized: {title}, its bytes in the other order")
        return TensorSpec(dtype, stored, nbytes, quantized=Blocks(title, kind, shape, elements, size))

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec, in the file's order."""
        return self._specs

    def read(self, name: str, index: Index = None) -> Array:
        """The tensor or the part of it that ``index`` cuts out, as it is stored."""
        spec = self._specs.get(name)
        if spec is None:
            raise TensorNotFound(name, self._specs, self.path)
        if spec.unread:
            raise FormatError(self.path, f"cannot be read: {spec.unread}", tensor=name)
        cuts = _strided.bounds(index, spec.shape, f"{self.path}: tensor {name!r}")
        offset = self._offsets[name]
        return _strided.read_part(self._file, offset, spec.dtype, spec.shape, cuts, tensor=name, big_endian=self._big)

    def extent(self, name: str) -> Extent | None:
        """Where a tensor lies; None for what cannot be read, and where the order of bytes is another.

        Raises:
            TensorNotFound: no such name.
        """
        spec = self._specs.get(name)
        if spec is None:
            raise TensorNotFound(name, self._specs, self.path)
        return None if spec.unread or self._big else Extent(self.path, self._offsets[name], spec.nbytes)

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:  # noqa: ARG002
        """Nothing: the format stores no RNN cells."""
        return {}

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def __enter__(self) -> GgufSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sniff(path: str) -> bool:
    """Whether the file begins with ``GGUF``."""
    try:
        with ByteFile(path) as file:
            return file.size >= 4 and file.read(0, 4) == MAGIC
    except FormatError:
        return False


def open_source(path: str, *, budget: Budget | None = None) -> GgufSource:
    """Open a GGUF file.

    Raises:
        FormatError: truncated, malformed, or no GGUF file.
    """
    return GgufSource(path, budget=budget)
