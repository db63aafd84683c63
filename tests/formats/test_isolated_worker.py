"""The worker in this process, on streams of bytes: what it answers, frame by frame, and what it gives up."""

from __future__ import annotations

import json
import struct
import sys
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from tests.support import need
from weightport.formats import _isolated_worker as worker

LINUX = sys.platform.startswith("linux")
DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def asks() -> Any:
    """Gives a worker what it is told and asked; returns its frames. It keeps what it has here."""

    def answered(told: dict[str, Any], *requests: dict[str, Any]) -> list[tuple[bytes, bytes]]:
        out = BytesIO()
        lines = b"".join(json.dumps(request).encode() + b"\n" for request in requests)
        given: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(worker, "_confine", lambda told: given.append(told["memory"]))
            patch.setattr(worker, "_give_time", given.append)
            patch.setattr(sys, "stdin", SimpleNamespace(buffer=BytesIO(lines)))
            patch.setattr(sys, "stdout", SimpleNamespace(buffer=out))
            worker.main(json.dumps({"budget": {}, "memory": 1 << 30, "seconds": 5, **told}))
        found = frames(out.getvalue())
        opened = found[0][0] == b"d"
        assert given == [1 << 30, *([5] * len(requests) if opened else [])]  # every answer has its own time
        return found

    return answered


def frames(raw: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 0
    while at < len(raw):
        kind, size = struct.unpack_from("<cQ", raw, at)
        found.append((kind, raw[at + 9 : at + 9 + size]))
        at += 9 + size
    assert at == len(raw)
    return found


def hdf5(path: Path, **told: Any) -> dict[str, Any]:
    return {"kind": "hdf5", "path": str(path), "offset": 0, "part": False, "size": path.stat().st_size, **told}


def written(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("d/packed", data=np.arange(5000, dtype="<i4").reshape(50, 100), chunks=(7, 30))
        file.create_dataset("d/texts", data=["one", "", "drei", "déjà"], chunks=(2,))
        file["d/whole"] = np.arange(6, dtype=">f4")
        file["d/scalar"] = 2.5
    return path


def test_structure_and_values(tmp_path: Path, asks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "TILE", 3200)  # eight rows: two rows of chunks
    (kind, said), *values = asks(
        hdf5(written(tmp_path / "m.h5")),
        {"read": "d/packed", "cuts": [[1, 49, 2], [0, 100, 1]]},
        {"read": "d/scalar", "cuts": []},
        {"read": "d/whole", "cuts": [[0, 6, 1]]},
    )
    assert kind == b"d"
    structure = json.loads(said)
    assert structure["tensors"] == [
        ["d/packed", "int32", [50, 100], 20000, "weight", ""],
        ["d/scalar", "float64", [], 8, "weight", ""],
        ["d/texts", "object", [4], 32, "weight", ""],
        ["d/whole", "float32", [6], 24, "weight", ""],
    ]
    assert structure["keras"] is False
    assert [kind for kind, _ in values] == [b"d"] * 4
    packed = np.arange(5000, dtype="<i4").reshape(50, 100)[1:49:2]
    assert [len(part) for _, part in values] == [14 * 400, 10 * 400, 8, 24]
    assert values[0][1] + values[1][1] == packed.tobytes()
    assert struct.unpack("<d", values[2][1]) == (2.5,)
    assert np.frombuffer(values[3][1], "f4").tolist() == [0, 1, 2, 3, 4, 5]


def test_strings_go_in_turns_of_lengths_and_text(tmp_path: Path, asks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_STRINGS_AT_ONCE", 3)
    _, *values = asks(hdf5(written(tmp_path / "m.h5")), {"read": "d/texts", "cuts": [[0, 4, 1]]})
    assert values == [
        (b"d", struct.pack("<3Q", 3, 0, 4)),
        (b"d", b"onedrei"),
        (b"d", struct.pack("<Q", 6)),
        (b"d", "déjà".encode()),
    ]


def test_a_part_of_a_file(tmp_path: Path, asks: Any) -> None:
    raw = written(tmp_path / "m.h5").read_bytes()
    whole = tmp_path / "archive"
    whole.write_bytes(b"before" + raw + b"behind")
    _, value = asks(
        hdf5(whole, offset=6, part=True, size=len(raw)), {"read": "d/packed", "cuts": [[0, 50, 1], [0, 100, 1]]}
    )
    assert value == (b"d", np.arange(5000, dtype="<i4").tobytes())


def test_what_is_wrong_is_said_and_it_goes_on(tmp_path: Path, asks: Any) -> None:
    path = written(tmp_path / "m.h5")
    raw = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        at = file["d/texts"].id.get_chunk_info(0).byte_offset
    raw[at + 4 : at + 12] = b"\xff" * 8  # the address of the strings
    path.write_bytes(raw)
    _, texts, missing, scalar = asks(
        hdf5(path),
        {"read": "d/texts", "cuts": [[0, 4, 1]]},
        {"read": "d/none", "cuts": []},
        {"read": "d/scalar", "cuts": []},
    )
    assert texts[0] == b"e"
    assert {key: json.loads(texts[1])[key] for key in ("kind", "tensor")} == {
        "kind": "FormatError",
        "tensor": "d/texts",
    }
    assert missing[0] == b"e"
    assert json.loads(missing[1]) == {
        "kind": "FormatError", "what": "corrupt: KeyError: 'd/none'", "hint": "", "tensor": None, "offset": None,
    }  # fmt: skip
    assert scalar == (b"d", struct.pack("<d", 2.5))


def test_a_file_that_is_refused_is_one_frame(tmp_path: Path, asks: Any) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file["x"] = h5py.ExternalLink("/etc/passwd", "/x")
    ((kind, said),) = asks(hdf5(path), {"read": "x", "cuts": []})
    assert kind == b"e"
    assert json.loads(said) == {
        "kind": "FormatError", "what": "'x' is an external link, which may lead out of the file: refused", "hint": "",
        "tensor": None, "offset": None,
    }  # fmt: skip
    written(path)
    ((kind, said),) = asks(hdf5(path, budget={"tensor_bytes": 1000, "unknown": 7}))
    assert (kind, json.loads(said)["kind"]) == (b"e", "BudgetExceeded")
    ((kind, said),) = asks({"kind": "hdf5", "path": str(tmp_path / "none"), "offset": 0, "part": False, "size": 0})
    assert (kind, json.loads(said)["kind"]) == (b"e", "FormatError")


def test_orbax(asks: Any) -> None:
    need("tensorstore")
    from weightport.formats.orbax_folder import open_source

    folder = DATA / "orbax" / "folders"
    with open_source(str(folder)) as source:
        name, spec = next((n, s) for n, s in source.specs().items() if len(s.shape) == 2)
        there = source.read(name)
    cuts = [[0, dim, 1] for dim in spec.shape]
    (_, said), *parts = asks({"kind": "orbax", "path": str(folder)}, {"read": name, "cuts": cuts})
    assert [name, spec.dtype_name, list(spec.shape), spec.nbytes, spec.role, ""] in json.loads(said)["tensors"]
    assert {kind for kind, _ in parts} == {b"d"}
    assert b"".join(part for _, part in parts) == there.tobytes()


# -- what it gives up --------------------------------------------------------------------------------------------------


class Resource:
    """A system whose limits are numbers."""

    RLIM_INFINITY = -1
    RLIMIT_CORE, RLIMIT_FSIZE, RLIMIT_NOFILE, RLIMIT_NPROC, RLIMIT_AS, RLIMIT_CPU = range(6)
    RUSAGE_SELF = 0

    def __init__(self, **hard: int) -> None:
        self.hard = {getattr(self, name): value for name, value in hard.items()}
        self.set: dict[int, tuple[int, int]] = {}

    def getpagesize(self) -> int:
        return 4096

    def getrusage(self, _: int) -> SimpleNamespace:
        return SimpleNamespace(ru_utime=2.25, ru_stime=1.5)

    def getrlimit(self, limit: int) -> tuple[int, int]:
        return -1, self.hard.get(limit, -1)

    def setrlimit(self, limit: int, value: tuple[int, int]) -> None:
        if limit == self.RLIMIT_CORE:
            raise ValueError("not permitted")
        self.set[limit] = value


@pytest.mark.parametrize(
    ("kind", "processes"), [("hdf5", {Resource.RLIMIT_NPROC: (0, 0)}), ("orbax", {})], ids=["hdf5", "orbax"]
)
def test_limits(monkeypatch: pytest.MonkeyPatch, kind: str, processes: dict[int, tuple[int, int]]) -> None:
    system = Resource(RLIMIT_NOFILE=64)
    monkeypatch.setattr(worker, "resource", system)
    monkeypatch.setattr(sys, "platform", "darwin")
    worker._confine({"kind": kind, "seconds": 10, "memory": 1 << 40})
    files = {Resource.RLIMIT_FSIZE: (0, 0), Resource.RLIMIT_NOFILE: (64, 64)}  # no more than it may have
    assert system.set == {**files, **processes, Resource.RLIMIT_CPU: (13, -1)}


@pytest.mark.skipif(not LINUX, reason="address space is bounded on Linux")
def test_memory_is_what_it_has_and_what_it_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    system = Resource()
    monkeypatch.setattr(worker, "resource", system)
    worker._confine({"kind": "hdf5", "seconds": 10, "memory": 1 << 40})
    soft, hard = system.set[Resource.RLIMIT_AS]
    assert soft == hard
    assert (1 << 40) + (1 << 20) < soft < (1 << 40) + (1 << 39)


@pytest.mark.parametrize(("hard", "left"), [(-1, (13, -1)), (14, (13, 14)), (13, None), (5, None)])
def test_time_is_counted_from_now(monkeypatch: pytest.MonkeyPatch, hard: int, left: tuple[int, int] | None) -> None:
    system = Resource(RLIMIT_CPU=hard)
    monkeypatch.setattr(worker, "resource", system)
    worker._give_time(10)
    assert system.set.get(Resource.RLIMIT_CPU) == left
