"""Readers of all other files under nearly right ones, and the fuzzer itself."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from random import Random

import h5py
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import framed
import fuzz_readers
import fuzz_worker

from tests.fuzz import test_fuzz_archives, test_fuzz_graphs, test_fuzz_tensorflow
from tests.fuzz.fuzzing import fuzz
from tests.support import need
from weightport.errors import FormatError
from weightport.formats.detect import READERS

ROOT = Path(__file__).parents[2]
EXECUTIONS = {
    "npy": 200_000,
    "safetensors": 200_000,
    "gguf": 200_000,
    "tflite": 200_000,
    "flax-msgpack": 200_000,
    "keras-h5": 5_000,
    "hdf5": 5_000,
    "orbax": 5_000,
}


@pytest.mark.parametrize("reader", EXECUTIONS)
def test_reader(reader: str, tmp_path: Path) -> None:
    if reader == "orbax":
        need("tensorstore")
    fuzz(reader, EXECUTIONS[reader], tmp_path)


def test_every_reader_is_fuzzed() -> None:
    files = test_fuzz_archives, test_fuzz_graphs, test_fuzz_tensorflow
    found = [*EXECUTIONS, *(reader for file in files for reader in file.EXECUTIONS)]
    assert sorted(found) == sorted(READERS)
    assert set(found) == set(fuzz_readers.READERS)


def test_the_checksum_of_hdf5_is_made_right(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        file.attrs["a"] = 1
    data = (tmp_path / "a.h5").read_bytes()
    assert framed.lookup3(data[:44]) == int.from_bytes(data[44:48], "little")
    rng, ends = Random(1), Counter[str]()
    for _ in range(300):
        (tmp_path / "b.h5").write_bytes(framed.hdf5(rng, data))
        try:
            h5py.File(tmp_path / "b.h5").close()
            ends["opened"] += 1
        except OSError as error:
            ends["checksum" if "checksum" in str(error) else "behind it"] += 1
    assert ends["opened"] + ends["behind it"] > ends["checksum"]


@pytest.mark.parametrize("reader", READERS)
def test_mutants_are_others_and_the_same_for_a_seed(reader: str) -> None:
    (_, files), *_ = fuzz_worker.specimens(reader)
    name = next(iter(files))
    mutants = [framed.mutated(Random(n), reader, name, files[name]) for n in range(40)]
    assert mutants == [framed.mutated(Random(n), reader, name, files[name]) for n in range(40)]
    assert len(set(mutants) - {files[name]}) > 20


class _Source:
    format, path = "x", "x"

    def __init__(self, read: object) -> None:
        self._read = read

    def specs(self) -> dict[str, object]:
        import numpy as np

        from weightport.tensors import TensorSpec

        return {"a": TensorSpec.of(np.dtype("f4"), (2,))}

    def read(self, name: str, index: object = None) -> object:
        import numpy as np

        del name
        if self._read == "part" and index is not None:
            return np.ones(1, "f4")
        if isinstance(self._read, BaseException):
            raise self._read
        return np.zeros(3 if self._read == "shape" else (1 if index else 2), "f4")

    def facts(self, names: object) -> dict[str, object]:
        del names
        return {}

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("read", "end"),
    [
        ("fine", "read"),
        (FormatError("x", "no"), "partly"),
        ("part", AssertionError),
        ("shape", AssertionError),
        (KeyError("x"), KeyError),
    ],
)
def test_what_a_finding_is(read: object, end: object) -> None:
    def opened(_: str) -> _Source:
        return _Source(read)

    if isinstance(end, str):
        assert fuzz_worker.exercise(opened, "x").startswith(end)  # type: ignore[arg-type]
    else:
        with pytest.raises(end):  # type: ignore[call-overload]
            fuzz_worker.exercise(opened, "x")  # type: ignore[arg-type]


def test_a_process_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = "import os, struct, sys; open(sys.argv[4] + '/count', 'wb').write(struct.pack('<q', 7)); os.abort()"
    (tmp_path / "fuzz_worker.py").write_text(dead)
    monkeypatch.setattr(fuzz_readers, "HERE", tmp_path)
    monkeypatch.setattr(fuzz_readers, "LOSSES", 3)
    found = fuzz_readers.run("npz", 1000, "1", tmp_path, 0)
    assert found.lost == {"SIGABRT": 3}
    assert found.executions == 21
    assert fuzz_readers.table([found]).splitlines()[-1] == "| npz | 21 | 0 | 0 | 0 | 0 | 0 ms | 0 MB | 3 |"


def test_a_log_is_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    for reader, seed, count in (("npy", "1", 300), ("gguf", "1", 100), ("npy", "2", 200)):
        told = ["--reader", reader, "--seed", seed, "--executions", str(count), "--limit", "0"]
        fuzz_readers.main([*told, "--folder", str(tmp_path / "found"), "--log", str(log)])
    capsys.readouterr()
    fuzz_readers.main(["--summary", str(log)])
    *rows, total = capsys.readouterr().out.splitlines()
    assert total == "600 executions"
    assert [row.split(" | ")[:2] for row in rows[2:]] == [["| npy", "500"], ["| gguf", "100"]]
    for row, count in zip(rows[2:], (500, 100), strict=True):
        assert sum(int(cell) for cell in row.split(" | ")[2:5]) == count
    worse = {"executions": 9, "kinds": {"read": 2}, "endings": 1000, "slowest": 0.5, "growth": 7_000_000}
    with log.open("a") as file:
        file.write(json.dumps({"reader": "npy", "seed": "3", **worse, "findings": {"a": "b"}, "lost": {"SIGABRT": 1}}))
    fuzz_readers.main(["--summary", str(log)])
    assert capsys.readouterr().out.splitlines()[2].endswith(" | 1,000 | 500 ms | 7 MB | 2 |")


def test_every_reader_is_fuzzed_on_every_change() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    groups = jobs["fuzz"]["strategy"]["matrix"]["readers"]
    assert sorted(reader for group in groups for reader in group.split()) == sorted(READERS)
    assert "--executions 200000 " in jobs["fuzz"]["steps"][-2]["run"]
