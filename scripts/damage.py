"""What comes of a file of which one bit is flipped, or the end is missing: for the tests and the comparison.

Promise: every bit and every length of every file of a specimen, unless ``sparse`` leaves out most of long runs of
zeros, which in HDF5 are room for more. Each ends as ``seen`` (an error of weightport's, at the latest when a value is
read), ``harmless`` (all names, dtypes, shapes and values in the order as they were), ``values`` (another value came
back silently) or ``names`` (another name, dtype, shape or order did). Anything else that is raised is raised here, too.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from specimens import Specimen

from weightport.errors import Error
from weightport.formats._writer import module
from weightport.formats.detect import READERS

#: Names, dtypes and shapes in order; and the values.
Content = tuple[tuple[tuple[str, str, tuple[int, ...]], ...], tuple[bytes, ...]]
#: The first bytes of a run of zeros may be of a structure; of what follows, one bit in sixteen bytes is enough.
_ZEROS = re.compile(rb"\0{64,}")
_HEAD, _APART = 32, 16


@dataclass
class Outcome:
    """How many ended how; and for the silent ones, whether the digest that a mapping may pin is another, too."""

    ends: Counter[str] = field(default_factory=Counter)
    unpinned: int = 0


def content(specimen: Specimen) -> Content:
    """All that a reader gives of a model.

    Raises:
        Error: it does not give all of it.
    """
    with module(READERS[specimen.format]).open_source(specimen.path) as source:
        specs = source.specs()
        heads = tuple((name, spec.dtype_name, spec.shape) for name, spec in specs.items())
        values = []
        for name in specs:
            value = source.read(name)
            values.append(repr(value.tolist()).encode() if value.dtype == object else value.tobytes())
        return heads, tuple(values)


def _end(specimen: Specimen, whole: Content) -> str:
    try:
        found = content(specimen)
    except Error:
        return "seen"
    if found == whole:
        return "harmless"
    return "values" if found[0] == whole[0] else "names"


def bits(data: bytes, sparse: bool) -> Iterator[int]:
    """The bits to flip, as numbers."""
    spared: set[int] = set()
    for run in _ZEROS.finditer(data) if sparse else ():
        spared.update(range(run.start() + _HEAD, run.end()))
    for at in range(len(data)):
        if at not in spared:
            yield from range(8 * at, 8 * at + 8)
        elif at % _APART == 0:
            yield 8 * at


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, bytes]]:
    data = path.read_bytes()
    handle = os.open(path, os.O_RDWR)
    try:
        yield handle, data
    finally:
        os.ftruncate(handle, len(data))
        os.pwrite(handle, data, 0)
        os.close(handle)


def flipped(
    specimen: Specimen, pinned: Callable[[], str] | None = None, *, sparse: bool = False, ending: str = ""
) -> Outcome:
    """Flip each bit of each file, one at a time.

    Args:
        pinned: the digest of the model, or what is said of it where it has none.
        ending: only in files whose names end so.
    """
    whole, out = content(specimen), Outcome()
    before = pinned() if pinned is not None else ""
    for path in (file for file in specimen.files if file.name.endswith(ending)):
        with _opened(path) as (handle, data):
            for bit in bits(data, sparse):
                at = bit // 8
                os.pwrite(handle, bytes([data[at] ^ 1 << bit % 8]), at)
                _count(out, _end(specimen, whole), pinned, before)
                os.pwrite(handle, data[at : at + 1], at)
    return out


def cut(specimen: Specimen, pinned: Callable[[], str] | None = None, *, step: int = 1) -> Outcome:
    """Truncate each file at each byte (or each ``step``-th, and the last sixteen)."""
    whole, out = content(specimen), Outcome()
    before = pinned() if pinned is not None else ""
    for path in specimen.files:
        with _opened(path) as (handle, data):
            for size in sorted({*range(0, len(data), step), *range(max(0, len(data) - 16), len(data))}, reverse=True):
                os.ftruncate(handle, size)
                _count(out, _end(specimen, whole), pinned, before)
    return out


def _count(out: Outcome, end: str, pinned: Callable[[], str] | None, before: str) -> None:
    out.ends[end] += 1
    if end in ("values", "names") and pinned is not None and pinned() == before:
        out.unpinned += 1
