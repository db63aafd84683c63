"""PyTorch's ``.pt``, ``.pth`` and ``.bin``, written without PyTorch: a state dict that ``torch.load`` takes.

Promise: the archive that ``torch.save`` makes of an ordered dict of plain tensors, accepted by ``weights_only=True``
and by ``mmap=True`` (every storage begins at a multiple of 64 bytes); values stream; the same input gives the same
bytes, whatever the file is called. Limit: each tensor has a storage of its own; no strings, and no whole numbers of
less than a byte; version 3 of the format, for PyTorch 1.6 and later (dtypes that came later: for versions that have
them).

Sources: torch/serialization.py (``_save``), torch/_tensor.py (``_reduce_ex_internal``), caffe2/serialize/
inline_container.cc (``PyTorchStreamWriter``, ``getPadding``).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping

import numpy as np

from weightport.checksums import CRC32
from weightport.errors import Error
from weightport.formats._ranged import Place, Ranged
from weightport.formats._temporaries import atomic_path
from weightport.formats._torch_tensors import DTYPES
from weightport.formats._zipwrite import Archive
from weightport.tensors import Kept, TensorSpec, Tiles

_PREFIX = "archive"
_VERSION = b"3\n"
#: numpy's or ml_dtypes' name -> the class of its storage; the others are untyped, and name their dtype.
_STORAGES = {
    "float64": "Double", "float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "int64": "Long",
    "int32": "Int", "int16": "Short", "int8": "Char", "uint8": "Byte", "bool": "Bool", "complex64": "ComplexFloat",
    "complex128": "ComplexDouble",
}  # fmt: skip
_NAMES = set(DTYPES.values())


@contextlib.contextmanager
def _destination(
    path: str,
    specs: Mapping[str, TensorSpec],
    tiles: Tiles,  # noqa: ARG001
    *,
    metadata: Mapping[str, str] | None = None,
    kept: Kept | None = None,
) -> Iterator[Place]:
    """Write a state dict. ``metadata`` is the archive's comment (JSON).

    Raises:
        Error: a dtype or name that the format cannot hold, or values that are not as their spec says.
    """
    comment = json.dumps(dict(sorted(metadata.items()))).encode() if metadata else b""
    if len(comment) > 0xFFFF:
        raise Error(f"{path}: {len(comment)} bytes of metadata, a zip archive holds 65535")
    index = _Index()
    data: dict[str, int | bytes] = {}
    for number, (name, spec) in enumerate(specs.items()):
        index.add(path, name, spec, str(number))
        data[f"{_PREFIX}/data/{number}"] = TensorSpec.of(spec.dtype, spec.shape).nbytes
    before = {f"{_PREFIX}/data.pkl": index.done(), f"{_PREFIX}/byteorder": b"little"}
    archive = Archive({**before, **data, f"{_PREFIX}/version": _VERSION}, comment)
    with atomic_path(path, kept) as temporary:
        with open(temporary, "r+b") as out:
            archive.begin(out)
        place = Place({name: (temporary, archive.offsets[key]) for name, key in zip(specs, data, strict=True)}, CRC32)
        yield place
        with open(temporary, "r+b") as out:
            archive.finish(out, {key: place.checksums.get(name, 0) for name, key in zip(specs, data, strict=True)})


write = Ranged(_destination)


class _Index:
    """The pickle of an OrderedDict of tensors, protocol 2."""

    def __init__(self) -> None:
        self._out = bytearray(b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01(")
        self._memo: dict[bytes, bytes] = {b"ccollections\nOrderedDict\n": b"h\x00"}
        self._next = 2

    def add(self, path: str, name: str, spec: TensorSpec, key: str) -> None:
        dtype = np.dtype(spec.dtype).name
        if dtype not in _NAMES:
            what = "strings" if spec.dtype.kind in "OSU" else f"the dtype {dtype}"
            raise Error(f"{path}: tensor {name!r}: a file of PyTorch cannot hold {what}")
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            raise Error(f"{path}: tensor {name!r}: its name is no valid text") from None
        typed = _STORAGES.get(dtype)
        count = TensorSpec.of(spec.dtype, spec.shape).nbytes // (spec.dtype.itemsize if typed else 1)
        self._text(name)
        self._known(b"ctorch._utils\n_rebuild_tensor_v%d\n" % (2 if typed else 3))
        self._out += b"(("
        self._text("storage", keep=True)
        self._known(f"ctorch\n{typed}Storage\n".encode() if typed else b"ctorch.storage\nUntypedStorage\n")
        self._text(key)
        self._text("cpu", keep=True)
        self._int(count)
        self._out += b"tQK\x00"  # the storage; offset 0
        self._ints(spec.shape)
        self._ints(_stride(spec.shape))
        self._out += b"\x89"  # requires_grad
        self._known(b"ccollections\nOrderedDict\n")
        self._out += b")R"  # no hooks
        if not typed:
            self._known(f"ctorch\n{dtype}\n".encode())
        self._out += b"tR"

    def done(self) -> bytes:
        return bytes(self._out + b"u.")

    def _known(self, what: bytes) -> None:
        """An instruction, and from the second time on a reference to what it made."""
        known = self._memo.get(what)
        if known is None:
            self._out += what + b"q" + bytes([self._next])
            self._memo[what] = b"h" + bytes([self._next])
            self._next += 1
        else:
            self._out += known

    def _text(self, text: str, *, keep: bool = False) -> None:
        raw = text.encode("utf-8")
        what = b"X" + len(raw).to_bytes(4, "little") + raw
        if keep:
            self._known(what)
        else:
            self._out += what

    def _ints(self, values: tuple[int, ...]) -> None:
        self._out += b"("
        for value in values:
            self._int(value)
        self._out += b"t"

    def _int(self, value: int) -> None:
        if value < 1 << 8:
            self._out += b"K" + value.to_bytes(1, "little")
        elif value < 1 << 16:
            self._out += b"M" + value.to_bytes(2, "little")
        elif value < 1 << 31:
            self._out += b"J" + value.to_bytes(4, "little")
        else:
            self._out += b"\x8a\x08" + value.to_bytes(8, "little")


def _stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """In elements, as PyTorch counts them: an axis without elements counts as one."""
    steps = [1]
    for dim in reversed(shape[1:]):
        steps.append(steps[-1] * max(dim, 1))
    return tuple(reversed(steps)) if shape else ()
