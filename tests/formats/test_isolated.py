"""Libraries that are not ours, in a process that may be lost: the same values, and no crash, hang or lie gets here."""

from __future__ import annotations

import os
import pickle
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import weightport as wp
from tests.formats._arrays import same
from tests.support import fixtures, need
from weightport.budget import Budget
from weightport.errors import BudgetExceeded, Error, FormatError, TensorNotFound
from weightport.formats import _isolated, detect, keras_h5
from weightport.integrity import checksum_of
from weightport.opening import distrust

LINUX = sys.platform.startswith("linux")


def written(path: Path) -> str:
    """A dataset of each kind of storage, in Keras' structure."""
    with h5py.File(path, "w", userblock_size=512) as file:
        file.attrs["layer_names"] = [b"d", b"none"]
        file.attrs["keras_version"] = "2.15.0"
        file.create_group("none").attrs["weight_names"] = np.array([], "S1")
        names = [b"whole", b"packed", b"swapped", b"half", b"texts", b"fixed", b"scalar", b"empty", b"summed"]
        file.create_group("d").attrs["weight_names"] = names
        group = file["d"]
        group["whole"] = np.arange(12.0).reshape(3, 4)
        group.create_dataset(
            "packed", data=np.arange(5000).reshape(50, 100), chunks=(7, 30), compression="gzip", shuffle=True
        )
        group.create_dataset("swapped", data=np.arange(9, dtype=">i4").reshape(3, 3), chunks=(2, 2))
        half = group.create_dataset("half", (4,), "V2", chunks=(3,))
        half[...] = np.arange(4, dtype=np.uint16).view("V2")
        group.create_dataset("texts", data=["one", "", "drei", "déjà"], chunks=(2,))
        group.create_dataset("fixed", data=np.array([[b"ab", b"c"]]), chunks=(1, 1))
        group["scalar"] = 2.5
        group.create_dataset("summed", data=np.arange(4), chunks=(2,), fletcher32=True)
        group.create_dataset("empty", (0, 3), "f4", chunks=(1, 1), maxshape=(None, 3))
    return str(path)


def compare(path: str) -> None:
    with detect.open_source(path) as here, detect.open_source(path, budget=Budget(isolated=True)) as there:  # type: ignore[attr-defined]
        assert dict(here.specs()) == dict(there.specs())
        assert (here.format, here.path) == (there.format, there.path)
        for name, spec in here.specs().items():
            assert same(here.read(name), there.read(name))
            cut = tuple(slice(dim // 3, dim, 2) for dim in spec.shape)
            assert same(here.read(name, cut), there.read(name, cut))
            assert here.facts([name]) == there.facts([name])
            assert checksum_of(here, name) == checksum_of(there, name)


def test_values_are_the_same(tmp_path: Path) -> None:
    compare(written(tmp_path / "m.h5"))


def test_of_kinds_of_files(tmp_path: Path) -> None:
    keras = need("keras")
    warnings.simplefilter("ignore")  # of numpy's, about TensorFlow
    model = keras.Sequential([keras.Input((None, 3)), keras.layers.LSTM(2), keras.layers.Dense(2)])
    for name in ("m.keras", "m.weights.h5"):
        (model.save if name == "m.keras" else model.save_weights)(tmp_path / name)
        compare(str(tmp_path / name))
    model.save_weights(tmp_path / "s.weights.json", max_shard_size=130 / 1024**3)
    compare(str(tmp_path / "s.weights.json"))
    packed = tmp_path / "packed.keras"  # whose weights lie in a file that has no name
    with zipfile.ZipFile(tmp_path / "m.keras") as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    compare(str(packed))
    found = [f.path("keras_h5") for f in fixtures("keras_h5")]
    assert found
    compare(found[0])


@pytest.mark.parametrize("kind", ["ocdbt", "folders", "together"])
def test_of_orbax(kind: str) -> None:
    need("tensorstore")
    folder = Path(__file__).parents[1] / "data" / "orbax" / kind
    compare(str(folder))


def test_the_library_is_not_loaded_here(tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys, weightport as wp\n"
        "with wp.open(sys.argv[1], untrusted=True) as source:\n"
        "    [source.read(name) for name in source.specs()]\n"
        "assert not {'h5py', 'tensorstore'} & set(sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, written(tmp_path / "m.h5")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_ways_to_ask_for_it(tmp_path: Path) -> None:
    path = written(tmp_path / "m.h5")
    with distrust(), wp.open(path) as source:
        assert isinstance(source._inner, keras_h5.KerasH5Source)
        assert type(source._inner) is not keras_h5.KerasH5Source
        again = pickle.loads(pickle.dumps(source))
    assert type(again._inner) is type(source._inner)  # also outside
    again.close()
    with wp.open(path) as trusted:
        assert type(trusted._inner) is keras_h5.KerasH5Source


def test_what_needs_the_library_here_is_refused(tmp_path: Path) -> None:
    path, out = str(tmp_path / "m.h5"), tmp_path / "o.h5"
    with h5py.File(path, "w") as file:
        file["d/w"] = np.arange(6.0)
    mapping = {"weightport": 1, "rules": [{"from": "d/w", "to": "d/w"}]}
    with distrust(), pytest.raises(Error, match="in a process of its own, and repeating its structure"):
        wp.transfer(path, path, mapping, out=out)
    assert not out.exists()


def test_as_any_source(tmp_path: Path) -> None:
    path = written(tmp_path / "m.h5")
    source = keras_h5.open_source(path, budget=Budget(isolated=True))
    with pytest.raises(TensorNotFound):
        source.read("d/packet")
    source.close()
    source.close()
    for name in ("d/packed", "d/whole"):
        with pytest.raises(Error, match="is closed"):
            source.read(name)


def test_errors_are_the_files_own(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file["x"] = h5py.ExternalLink("/etc/passwd", "/x")
    with pytest.raises(FormatError) as caught:
        keras_h5.open_source(str(path), budget=Budget(isolated=True))
    assert str(caught.value) == f"{path}: 'x' is an external link, which may lead out of the file: refused"
    written(path)
    with pytest.raises(BudgetExceeded, match="tensor bytes: 40,000 asked for, at most 1,000 allowed"):
        keras_h5.open_source(str(path), budget=Budget(isolated=True, tensor_bytes=1000))
    raw = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        at = file["d/packed"].id.get_chunk_info(0).byte_offset
    raw[at + 10 : at + 20] = bytes(10)
    path.write_bytes(raw)
    with keras_h5.open_source(str(path), budget=Budget(isolated=True)) as source:
        with pytest.raises(FormatError) as caught:
            source.read("d/packed")
        assert str(caught.value).startswith(f"{path}: tensor 'd/packed': truncated or corrupt: ")
        assert source.read("d/swapped").tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]  # it goes on


# -- the process is lost -----------------------------------------------------------------------------------------------

_BOOT = """
import sys
sys.path[:] = sys.argv[2:]
import os, signal, time
from weightport.formats import _isolated_worker as worker, keras_h5
out = sys.stdout.buffer
def frame(kind, content):
    worker._frame(out, kind, content)
    out.flush()
def read(self, name, index=None):
    ACTION
keras_h5.KerasH5Source.ON = read
worker.main(sys.argv[1])
"""


@pytest.fixture
def doing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets the process do something else when it opens a file, or reads from one."""

    def does(action: str, *, on: str = "read") -> None:
        method = {"read": "read", "open": "_look_over"}[on]
        monkeypatch.setattr(_isolated, "_BOOT", _BOOT.replace("ACTION", action).replace("ON", method))

    return does


def lost(path: str) -> str:
    with keras_h5.open_source(path, budget=Budget(isolated=True)) as source:
        for _ in range(2):  # whoever asks again is told the same
            with pytest.raises(FormatError) as caught:
                source.read("d/packed")
            start = f"{path}: tensor 'd/packed': corrupt or hostile: the HDF5 library, in a process of its own, "
            assert str(caught.value).startswith(start)
        assert source.read("d/whole").tolist() == np.arange(12.0).reshape(3, 4).tolist()  # needs no library
        return str(caught.value).removeprefix(start)


@pytest.mark.parametrize(
    ("action", "told"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashed (SIGSEGV)"),
        ("os.abort()", "crashed (SIGABRT)"),
        ("os._exit(3)", "ended with the code 3"),
        ("os.close(1); time.sleep(100)", "closed its answer"),
        ("out.write(b'HTTP/1.1 '); out.flush(); time.sleep(100)", "said what is no answer"),
        ("frame(b'e', b'[1, 2')", "said what is no answer"),
        ("out.write(b'e' + bytes([255]) * 8); out.flush(); time.sleep(100)", "said what is no answer"),
        ("out.write(b'd' + bytes([255]) * 8); out.flush(); time.sleep(100)", "gave more values than it was asked for"),
        ("frame(b'd', b''); time.sleep(100)", "gave more values than it was asked for"),
    ],
)
def test_whatever_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doing: Any, action: str, told: str) -> None:
    monkeypatch.setattr(_isolated, "_GRACE", 0.1 if "closed" in told else 60.0)
    doing(action)
    assert lost(written(tmp_path / "m.h5")) == told


def test_it_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doing: Any) -> None:
    doing("time.sleep(1000)")
    with keras_h5.open_source(written(tmp_path / "m.h5"), budget=Budget(isolated=True)) as source:
        monkeypatch.setattr(_isolated, "PATIENCE", 0.1)
        with pytest.raises(FormatError, match=r"gave no answer for 0\.1 seconds"):
            source.read("d/packed")


@pytest.mark.skipif(not LINUX, reason="the system bounds a process' time and memory in another way")
def test_it_computes_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doing: Any) -> None:
    monkeypatch.setattr(_isolated, "SECONDS", 1)
    doing("while True: pass")
    assert lost(written(tmp_path / "m.h5")) == "crashed (SIGXCPU)"


@pytest.mark.skipif(not LINUX, reason="the system bounds a process' time and memory in another way")
def test_it_wants_all_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doing: Any) -> None:
    monkeypatch.setattr(_isolated, "MEMORY", 512 << 20)
    doing("bytearray(1 << 40)")
    source = keras_h5.open_source(written(tmp_path / "m.h5"), budget=Budget(isolated=True))
    with source, pytest.raises(FormatError, match="corrupt: MemoryError"):
        source.read("d/packed")


@pytest.mark.skipif(not LINUX, reason="the system bounds what a process may do in another way")
def test_it_can_write_nothing(tmp_path: Path, doing: Any) -> None:
    doing(f"open({str(tmp_path / 'x')!r}, 'w').write('x' * 9999)")
    source = keras_h5.open_source(written(tmp_path / "m.h5"), budget=Budget(isolated=True))
    with source, pytest.raises(FormatError, match="File too large"):
        source.read("d/packed")
    assert not (tmp_path / "x").read_bytes()


FRAMES = "import struct; u = lambda *n: struct.pack(f'<{len(n)}Q', *n); "


@pytest.mark.parametrize(
    ("action", "told"),
    [
        ("frame(b'd', bytes(7))", "gave more values than it was asked for"),
        ("frame(b'd', b'')", "gave more values than it was asked for"),
        ("frame(b'd', u(1, 1, 1, 1, 1))", "gave more values than it was asked for"),
        ("frame(b'd', u(1, 1 << 60))", "gave strings that are longer than the file"),
        ("frame(b'd', u(1, 2)); frame(b'd', b'four')", "gave strings that are longer than the file"),
    ],
)
def test_strings_that_were_not_asked_for(tmp_path: Path, doing: Any, action: str, told: str) -> None:
    doing(f"{FRAMES}{action}; time.sleep(100)")
    with keras_h5.open_source(written(tmp_path / "m.h5"), budget=Budget(isolated=True)) as source:
        with pytest.raises(FormatError) as caught:
            source.read("d/texts")
        start = f"{source.path}: tensor 'd/texts': corrupt or hostile: the HDF5 library, in a process of its own, "
        assert str(caught.value) == start + told


def test_an_error_that_is_none_of_the_file(tmp_path: Path, doing: Any) -> None:
    doing("from weightport.errors import Error, Problem; raise Error(Problem('', 'no room', 'make some'))")
    with keras_h5.open_source(written(tmp_path / "m.h5"), budget=Budget(isolated=True)) as source:
        with pytest.raises(Error) as caught:
            source.read("d/packed")
        assert str(caught.value) == f"{source.path}: no room; make some"
        assert type(caught.value) is Error


def test_it_was_lost_between_two_questions(tmp_path: Path) -> None:
    with keras_h5.open_source(written(tmp_path / "m.h5"), budget=Budget(isolated=True)) as source:
        child = source._child  # type: ignore[attr-defined]
        child._process.kill()
        child._process.wait()
        with pytest.raises(FormatError, match=r"tensor 'd/packed': .* in a process of its own, crashed \(SIGKILL\)$"):
            source.read("d/packed")
        with pytest.raises(FormatError, match=r"in a process of its own, crashed \(SIGKILL\)$"):
            child.described(100)


def test_no_process_can_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise Error("no more processes")

    from weightport.formats import _h5_isolated

    monkeypatch.setattr(_h5_isolated, "Child", full)
    path = written(tmp_path / "m.h5")
    before = os.listdir("/proc/self/fd") if LINUX else []
    with pytest.raises(Error, match=r"^no more processes$"):
        keras_h5.open_source(path, budget=Budget(isolated=True))
    assert (os.listdir("/proc/self/fd") if LINUX else []) == before  # the file is closed


ORBAX = Path(__file__).parents[1] / "data" / "orbax" / "folders"


def test_orbax_as_any_source() -> None:
    need("tensorstore")
    with detect.open_source(str(ORBAX), budget=Budget(isolated=True)) as source:  # type: ignore[attr-defined]
        name = next(iter(source.specs()))
        assert source.facts([name]) == {}
        with pytest.raises(TensorNotFound):
            source.read("none")
    with pytest.raises(Error, match=r"is closed$"):
        source.read(name)


def test_orbax_is_not_believed_either(monkeypatch: pytest.MonkeyPatch) -> None:
    from weightport.formats import _orbax_isolated

    closed: list[bool] = []

    class Said:
        def __init__(self, *asked: Any) -> None:
            assert asked == (str(ORBAX), "tensorstore", {"kind": "orbax", "path": str(ORBAX)}, Budget())

        def described(self, _: int) -> Any:
            return said

        def close(self) -> None:
            closed.append(True)

    monkeypatch.setattr(_orbax_isolated, "Child", Said)
    said: Any
    said = {"tensors": [["w", "float32", [2], 8, "weight", ""], ["v", "float32", [2], 7, "weight", ""]]}
    with pytest.raises(FormatError, match="corrupt or hostile"):
        _orbax_isolated.IsolatedOrbaxSource(str(ORBAX), budget=Budget())
    assert closed == [True]
    for nothing in (7, {}, {"tensors": "w"}):
        said = nothing
        assert _orbax_isolated.IsolatedOrbaxSource(str(ORBAX), budget=Budget()).specs() == {}
    said = {"tensors": [["w", "float32", [2], 8, "weight", "of a dtype that nobody knows"]]}
    with pytest.raises(FormatError) as caught:
        _orbax_isolated.IsolatedOrbaxSource(str(ORBAX), budget=Budget()).read("w")
    assert str(caught.value) == f"{ORBAX}: tensor 'w': is of a dtype that nobody knows"


def test_what_it_is_told_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"PATH": "p", "HOME": "h", "LC_ALL": "C", "XLC_ALL": "C", "KEY": "k", "LANG": "l"}
    monkeypatch.setattr(os, "environ", given)
    assert _isolated._environment() == {
        "PATH": "p",
        "HOME": "h",
        "LANG": "l",
        "LC_ALL": "C",
        "HDF5_PLUGIN_PRELOAD": "::",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def test_it_is_told_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doing: Any) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the user")
    monkeypatch.setenv("HDF5_PLUGIN_PATH", str(tmp_path))
    doing("raise MemoryError(' '.join(sorted(os.environ)))")
    source = keras_h5.open_source(written(tmp_path / "m.h5"), budget=Budget(isolated=True))
    with source, pytest.raises(FormatError) as caught:
        source.read("d/packed")
    seen = set(str(caught.value).rpartition("MemoryError: ")[2].split())
    assert "HDF5_PLUGIN_PRELOAD" in seen
    allowed = {"HDF5_PLUGIN_PRELOAD", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", *_isolated._NEEDED}
    assert {name for name in seen - allowed if not name.startswith("LC_")} <= {"PWD"}


@pytest.mark.parametrize(
    ("action", "told"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the HDF5 library, in a process of its own, crashed (SIGSEGV)"),
        ("frame(b'd', b'{'); time.sleep(100)", "the HDF5 library, in a process of its own, said what is no answer"),
        ("frame(b'd', b'7'); time.sleep(100)", "what was read of it is no structure"),
        ("frame(b'd', b'{}'); time.sleep(100)", "what was read of it is no structure"),
    ],
)
def test_at_opening(tmp_path: Path, doing: Any, action: str, told: str) -> None:
    path = written(tmp_path / "m.h5")
    doing(action, on="open")
    with pytest.raises(FormatError) as caught:
        keras_h5.open_source(path, budget=Budget(isolated=True))
    assert str(caught.value) == f"{path}: corrupt or hostile: {told}"
    doing("out.write(b'd' + bytes([0] * 7 + [1])); out.flush(); time.sleep(100)", on="open")
    with pytest.raises(BudgetExceeded, match=r"a structure of 72,057,594,037,927,936 bytes, at most [\d,]+ allowed"):
        keras_h5.open_source(path, budget=Budget(isolated=True))
