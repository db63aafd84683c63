"""Over a corpus of files that lie about what they hold: each ends with the words that it has to, in bounded memory.

The files are those of :mod:`tests.hostile.malformed`; they are read by :mod:`tests.hostile.ended`, in a process that
may grow by 64 MB (``RLIMIT_AS``) and take 20 s of processor time for each.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.hostile import ended, malformed
from tests.hostile.malformed import ENDS, Malformed
from tests.support import need

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import specimens

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is bounded by RLIMIT_AS")

CASES = list(malformed.cases())
#: tensorstore starts threads, whose stacks count as memory.
THREADED = [case for case in CASES if case.name.startswith("orbax")]
HDF5 = [case for case in CASES if case.name.startswith(("hdf5", "keras"))]


def read(folder: Path, cases: Sequence[Malformed], *, bounded: bool = True, untrusted: bool = False) -> dict[str, str]:
    """How reading each of them ended; nothing is written beside them."""
    first = [
        str(specimens.FOLDER / name / opened.partition(":")[2])
        for name, opened in specimens.OPENED.items()
        if bounded == (not opened.startswith("orbax"))
    ]
    paths = [str(case.write(folder / "files" / str(number))) for number, case in enumerate(cases)]
    told = {"first": first, "cases": paths, "bounded": bounded, "untrusted": untrusted}
    (folder / "cases.json").write_text(json.dumps(told), encoding="utf-8")
    before = digest(folder / "files")
    run = subprocess.run(
        [sys.executable, ended.__file__, folder / "cases.json", folder / "report"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    lines = (folder / "report").read_text(encoding="utf-8").splitlines()
    begun = cases[len(lines)].name if len(lines) < len(cases) else "the end"
    assert run.returncode == 0, f"{run.returncode} at {begun}: {run.stderr[-2000:]}"
    assert digest(folder / "files") == before
    return {
        case.name: case.told(folder / "files" / str(number), json.loads(line))
        for number, (case, line) in enumerate(zip(cases, lines, strict=True))
    }


def digest(folder: Path) -> dict[str, str]:
    """Every file in a folder, by what it holds."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def test_each_ends_as_it_has_to(tmp_path: Path) -> None:
    cases = [case for case in CASES if case not in THREADED]
    assert read(tmp_path, cases) == {case.name: ENDS[case.name] for case in cases}


def test_each_ends_as_it_has_to_where_threads_read(tmp_path: Path) -> None:
    need("tensorstore")
    assert read(tmp_path, THREADED, bounded=False) == {case.name: ENDS[case.name] for case in THREADED}


def test_the_same_where_the_library_has_a_process_of_its_own(tmp_path: Path) -> None:
    """There, an error of reading a value always names the tensor."""
    found = read(tmp_path, HDF5, untrusted=True)
    assert {name: _unnamed(end) for name, end in found.items()} == {
        case.name: _unnamed(ENDS[case.name]) for case in HDF5
    }


def _unnamed(end: str) -> str:
    return end.replace(": tensor 'x'", "")


def test_the_corpus() -> None:
    """At least 200 files, no two of them the same, each with its words; hardly any of them can be read."""
    assert sorted(ENDS) == sorted(case.name for case in CASES)
    contents = [tuple(sorted(case.build().items())) for case in CASES]
    assert len(set(contents)) == len(contents) >= 200
    assert sum(re.fullmatch(r"\d+ read", end) is not None for end in ENDS.values()) < 20


def test_a_file_that_takes_too_much_is_told(tmp_path: Path) -> None:
    """The bound is one: an array of 40 MB is read, and one of 80 MB is not."""
    big = Malformed("sound", "m.npy", lambda: {"m.npy": _sound(40 << 20)})
    assert read(tmp_path / "a", [big]) == {"sound": "1 read"}
    bigger = Malformed("sound", "m.npy", lambda: {"m.npy": _sound(80 << 20)})
    with pytest.raises(AssertionError, match=r"(?s)at sound: .*MemoryError"):
        read(tmp_path / "b", [bigger])


def _sound(size: int) -> bytes:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d,), }" % size
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + bytes(size)
