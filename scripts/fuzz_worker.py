"""One reader under mutants, in a process that may be lost: started by ``fuzz_readers.py``.

Promise: the same seed runs the same mutants. Each is written over the files of a specimen, opened, and every tensor,
part and fact that it then lists is asked for. What leaves as anything but :class:`weightport.Error` is a finding, as
are memory beyond the bound (``RLIMIT_AS``), values that are not what their spec says, and, where a limit is set, an
input that takes longer (``ITIMER_PROF``, so that a busy machine is no finding). Mutants that end at a place where none
has ended before join the corpus. Limit: that is a hint of coverage, no measure of it.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import re
import resource
import signal
import struct
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Protocol

from framed import mutated
from specimens import FOLDER, OPENED

import weightport.ranges  # noqa: F401  (what dequantizing needs)
from weightport.errors import Error, FormatError
from weightport.formats import _h5_isolated
from weightport.formats._writer import module
from weightport.formats.detect import READERS
from weightport.opening import OpenSource
from weightport.tensors import Array, Budget, Source

#: How far a process may grow beyond what it had when it began.
MEMORY = 64 << 20
#: The same for libraries that start threads when they are used: the address space of a thread's stack and arena is
#: counted, though it is not memory.
THREADED = 2 << 30
CORPUS = 400
#: So many inputs together have the time that one has: to set the clock for each would take longer than most of them do.
TIMED = 16
TENSORS = 24
HEADER = 1 << 23
Files = dict[str, bytes]


class Opener(Protocol):
    """What opens a file."""

    def __call__(self, path: str, /) -> Source:
        """The source, or an error of weightport's."""
        ...


def specimens(reader: str) -> list[tuple[str, Files]]:
    """What a reader begins with: the path to open, and the files."""
    found = []
    for name, opened in OPENED.items():
        kind, _, path = opened.partition(":")
        if kind == reader:
            files = {
                str(f.relative_to(FOLDER / name)): f.read_bytes() for f in (FOLDER / name).rglob("*") if f.is_file()
            }
            found.append((path, dict(sorted(files.items()))))
    return found


def opener(reader: str) -> Opener:
    """The reader; what it would read in a process of its own is refused: to start one takes as long as 300 mutants."""
    made = module(READERS[reader]).open_source
    _h5_isolated.IsolatedH5Source = _left_out  # type: ignore[assignment,misc]  # of HDF5 and Keras; no other has one

    def opened(path: str) -> Source:
        source: Source = made(path, budget=Budget(header_bytes=HEADER, tensors=10_000, tensor_bytes=1 << 20))
        return source

    return opened


def _left_out(path: str, **_: object) -> Source:
    raise FormatError(path, "is read in a process of its own")


def exercise(opened: Opener, path: str) -> str:
    """Everything that a caller may ask of a file. What came of it: ``refused``, ``partly`` or ``read``."""
    try:
        source = opened(path)
    except Error as error:
        return "refused" + _site(error.__traceback__)
    try:
        return _asked(source)
    finally:
        source.close()


def _site(trace: TracebackType | None) -> str:
    """Where an error came from: its last two frames."""
    last = before = trace
    while trace is not None:
        before, last, trace = last, trace, trace.tb_next
    if last is None or before is None:
        return ""
    return f" {before.tb_lineno} {last.tb_frame.f_code.co_name} {last.tb_lineno}"


def _asked(source: Source) -> str:
    sites: set[str] = set()
    try:
        specs = source.specs()
        names = [name for name, _ in zip(specs, range(TENSORS), strict=False)]
    except Error as error:
        return "refused" + _site(error.__traceback__)
    extent = getattr(source, "extent", None)
    whole = OpenSource(source)
    for name in names:
        try:
            spec = specs[name]
            if spec.unread:
                sites.add("unread")
                continue
            value = source.read(name)
            if (value.dtype, value.shape) != (spec.dtype, spec.shape):
                raise AssertionError(f"{name!r}: {value.dtype}{value.shape} was read, {spec} was said")
            sites.add(f"{spec.dtype.name} {len(spec.shape)}")
            if spec.shape:
                part = source.read(name, (slice(0, 1),))
                if part.dtype != value.dtype or not _same(part, value[:1]):
                    raise AssertionError(f"{name!r}: a part is not that of the whole")
            if extent is not None:
                extent(name)
            if spec.quantized is not None:
                whole.read(name, dequantize=True)
        except Error as error:
            sites.add("not read" + _site(error.__traceback__))
    try:
        source.facts(names)
    except Error as error:
        sites.add("no facts" + _site(error.__traceback__))
    kind = "partly" if any(site.startswith("no") for site in sites) else "read"
    return " ".join([kind, *sorted(sites)])


def _same(a: Array, b: Array) -> bool:
    # Flat: an array of many axes without a single value would become lists in lists without end.
    return a.reshape(-1)[:8].tolist() == b.reshape(-1)[:8].tolist() if a.dtype == object else a.tobytes() == b.tobytes()


class Place:
    """The files that are opened, in a folder that is memory where the system has one; only what changes is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._handles: dict[str, int] = {}
        self._there: Files = {}

    def put(self, files: Files) -> None:
        """Make these bytes those of the files; bytes that are the same object as before are there already."""
        for name, data in files.items():
            if self._there.get(name) is data:
                continue
            handle = self._handles.get(name)
            if handle is None:
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                handle = self._handles[name] = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o600)
            os.ftruncate(handle, len(data))
            os.pwrite(handle, data, 0)
            self._there[name] = data


def high_water() -> int:
    """The largest resident set of this process so far, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _bound(threaded: bool) -> None:
    """No more address space than this beyond what there is."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (THREADED if threaded else MEMORY)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def finding(error: BaseException) -> str:
    """What tells one finding from another: the kind, and the last places in weightport."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "weightport" in f.filename]
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-2:]))
    return f"{type(error).__name__} at {places}: {re.sub('[0-9]+', 'N', str(error))[:200]}"


def run(reader: str, executions: int, seed: str, folder: Path, limit: float) -> dict[str, Any]:
    """Run mutants; the count of those begun stands in ``folder/count``, for whoever finds the process gone."""
    rng, opened = Random(f"{reader} {seed}"), opener(reader)
    places = [Place(folder / f"files-{n}") for n, _ in enumerate(specimens(reader))]
    corpus: list[tuple[int, Files]] = []
    paths = [str(place.folder / path) for place, (path, _) in zip(places, specimens(reader), strict=True)]
    for n, (_, files) in enumerate(specimens(reader)):
        places[n].put(files)
        found = exercise(opened, paths[n])
        if not found.startswith("read"):
            raise AssertionError(f"{paths[n]}: {found}")
        corpus.append((n, files))
    (folder / "count").write_bytes(bytes(8))
    with (folder / "count").open("r+b") as handle:
        count = mmap.mmap(handle.fileno(), 8)
    seen: set[str] = set()
    kinds: Counter[str] = Counter()
    findings: dict[str, str] = {}
    gc.freeze()
    _bound(threaded=reader == "orbax")
    first, slowest, clock = high_water(), 0.0, time.perf_counter
    for number in range(executions):
        struct.pack_into("<q", count, 0, number + 1)
        n, files = corpus[rng.randrange(len(corpus))] if rng.random() < 0.7 else corpus[rng.randrange(len(places))]
        names = list(files)
        name = names[rng.randrange(len(names))]
        mutant = {**files, name: mutated(rng, reader, name, files[name])}
        places[n].put(mutant)
        if limit and number % TIMED == 0:
            signal.setitimer(signal.ITIMER_PROF, limit)
        before = clock()
        try:
            found = exercise(opened, paths[n])
        except Exception as error:
            found = "finding " + finding(error)
            if found not in findings:
                findings[found] = kept(folder, len(findings), mutant, error)
        slowest = max(slowest, clock() - before)
        kinds[found.partition(" ")[0]] += 1
        if found not in seen and len(seen) < 20_000:
            seen.add(found)
            at = len(corpus) if len(corpus) < CORPUS else rng.randrange(len(places), CORPUS)
            corpus[at : at + 1] = [(n, mutant)]
    signal.setitimer(signal.ITIMER_PROF, 0)
    return {
        "executions": executions,
        "kinds": kinds,
        "endings": len(seen),
        "slowest": slowest,
        "growth": high_water() - first,
        "findings": findings,
    }


def kept(folder: Path, number: int, files: Files, error: BaseException) -> str:
    """Keep a finding's files, and what it was. Returns where."""
    place = folder / f"finding-{number}"
    Place(place).put(files)
    (place / "error.txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    return str(place)


if __name__ == "__main__":
    given = sys.argv[1:]
    print(json.dumps(run(given[0], int(given[1]), given[2], Path(given[3]), float(given[4]))))
