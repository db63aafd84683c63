"""The process that may be lost: opens one file with the library that reads it, and answers on its standard output.

It is told what to open by its argument, a JSON object: ``kind`` (``hdf5`` or ``orbax``), ``path``, the bounds of the
:class:`~weightport.budget.Budget`, ``memory`` (bytes of address space beyond what it has when it begins), ``seconds``
(of the processor's time for one answer), and of a part of a file (``part``) its ``offset`` and ``size``. The answer is
a row of frames, each a letter and the number of bytes that follow (8 bytes): ``d`` data, ``e`` an error in JSON.
First comes one with the file's structure as JSON; then, for each line of its standard input, ``{"read": NAME, "cuts":
[[start, stop, step] ...]}``, the values in C order in as many as it takes; of strings, in turns a frame of lengths and
one of text.

Promise: it writes no file, starts no process and opens nothing but what it was told. Limit: the library is not ours.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from math import prod
from typing import Any, BinaryIO

import numpy as np

from weightport.errors import Error, FormatError
from weightport.formats import _h5_isolated, _strided, keras_h5
from weightport.formats._io import ByteFile
from weightport.tensors import Budget, Source, TensorSpec

#: Bytes of values in one frame, or one row of chunks where that is more.
TILE = 8 << 20
_STRINGS_AT_ONCE = 4096


def main(text: str) -> None:
    """Answer until the other side has no more to ask."""
    told = json.loads(text)
    _confine(told)
    out = sys.stdout.buffer
    try:
        source, said = _opened(told)
    except BaseException as error:
        _fail(out, error)
        return
    _frame(out, b"d", json.dumps(said).encode())
    out.flush()
    for line in sys.stdin.buffer:
        _give_time(told["seconds"])
        asked = json.loads(line)
        try:
            for piece in _values(source, asked["read"], tuple(tuple(cut) for cut in asked["cuts"])):
                _frame(out, b"d", piece)
        except BaseException as error:
            _fail(out, error)
        out.flush()


def _confine(told: Mapping[str, Any]) -> None:
    """Give up what reading a file does not need."""
    _give_time(told["seconds"])
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_NOFILE: 256}
    if told["kind"] == "hdf5":  # tensorstore has threads, which are counted alike
        limits[resource.RLIMIT_NPROC] = 0
    if sys.platform.startswith("linux"):
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[0])
        limits[resource.RLIMIT_AS] = pages * resource.getpagesize() + told["memory"]
    for limit, value in limits.items():
        _, hard = resource.getrlimit(limit)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (value, value))


def _give_time(seconds: int) -> None:
    """Let the system end this process if it computes for so long from now on."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(used.ru_utime + used.ru_stime) + seconds
    if hard == resource.RLIM_INFINITY or soft < hard:
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


class _Alone(keras_h5.KerasH5Source):
    alone = True


def _opened(told: Mapping[str, Any]) -> tuple[Source, dict[str, Any]]:
    budget = Budget(**{k: v for k, v in told["budget"].items() if k in asdict(Budget())}, isolated=False)
    if told["kind"] == "orbax":
        from weightport.formats.orbax_folder import OrbaxSource

        folder = OrbaxSource(told["path"], budget=budget)
        return folder, {"tensors": [_tensor(*item) for item in folder.specs().items()]}
    from weightport.formats._zipmember import Stored

    whole = ByteFile(told["path"])
    # What is in a file that has no name any more, HDF5 opens through Python only.
    part = Stored(whole, told["offset"], told["size"], None) if told["part"] else whole
    source = _Alone(told["path"], budget=budget, file=part)
    return source, {**_h5_isolated.structure(source), "tensors": [_tensor(*item) for item in source.specs().items()]}


def _tensor(name: str, spec: TensorSpec) -> list[Any]:
    return [name, spec.dtype_name, list(spec.shape), spec.nbytes, spec.role, spec.unread]


def _values(source: Source, name: str, cuts: _strided.Bounds) -> Iterator[bytes | memoryview]:
    spec = source.specs()[name]
    rows = _rows(source, name, spec, cuts)
    first = cuts[:1] or ((0, 1, 1),)
    start, stop, step = first[0]
    for at in range(start, stop, rows * step):
        here = (slice(at, min(stop, at + rows * step), step), *_strided.as_slices(cuts[1:])) if cuts else None
        values = source.read(name, here)
        if spec.dtype.kind == "O":
            texts = values.reshape(-1).tolist()
            yield np.array([len(text) for text in texts], "<u8").tobytes()
            yield b"".join(texts)
        else:
            yield _strided.byte_view(np.ascontiguousarray(values))


def _rows(source: Source, name: str, spec: TensorSpec, cuts: _strided.Bounds) -> int:
    """How many rows are read at once: as many as lie in the chunks that are decoded for the first of them."""
    inner = max(1, prod(_strided.counts(cuts)[1:]))
    if spec.dtype.kind == "O":
        return max(1, _STRINGS_AT_ONCE // inner)
    rows = max(1, TILE // (inner * spec.dtype.itemsize))
    deep = max(1, _h5_isolated.chunk_rows(source, name)) if isinstance(source, keras_h5.KerasH5Source) else 1
    return -(-rows // deep) * deep


def _fail(out: BinaryIO, error: BaseException) -> None:
    if not isinstance(error, Error):
        error = FormatError("", f"corrupt: {type(error).__name__}: {error}")
    problem = error.problems[0]
    kind = type(error).__name__ if isinstance(error, FormatError) else "Error"
    said = {
        "kind": kind,
        "what": problem.what,
        "hint": problem.hint,
        "tensor": getattr(error, "tensor", None),
        "offset": getattr(error, "offset", None),
    }
    _frame(out, b"e", json.dumps(said).encode()[: 1 << 20])
    out.flush()


def _frame(out: BinaryIO, kind: bytes, content: bytes | memoryview) -> None:
    out.write(kind + len(content).to_bytes(8, "little"))
    out.write(content)
