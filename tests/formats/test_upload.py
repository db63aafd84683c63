"""Destinations by URL: written here, put there when they are complete, the file that refers to the others last."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving import in_memory
from tests.support import says
from weightport.errors import FormatError, RefusedError
from weightport.formats._upload import destination


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with in_memory(monkeypatch) as fs:
        yield fs


def stored(fs: Any) -> dict[str, bytes]:
    return {path: fs.cat(path) for path in sorted(fs.store)}


def write(local: str, *names: str) -> None:
    """Files beside, or below, a local path; each says its name."""
    for name in names:
        path = Path(local).parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


@pytest.mark.parametrize("out", ["model.pt", "torch:model.pt", "/a/b", "C:\\model.pt", "a:b:c", ""])
def test_local_paths_are_as_they_are(out: str) -> None:
    with destination(out) as found:
        assert found == (out, None)


@pytest.mark.parametrize("kind", ["", "torch:", "tf-bundle:"])
def test_one_file(memory: Any, kind: str) -> None:
    with destination(f"{kind}memory://deep/er/m.pt") as (local, path):
        assert path == "memory://deep/er/m.pt"
        assert local.startswith(kind)
        file = local.removeprefix(kind)
        assert os.path.basename(file) == "m.pt"
        assert os.path.basename(os.path.dirname(file)).startswith("weightport-")
        write(file, "m.pt")
        assert stored(memory) == {}
    assert stored(memory) == {"/deep/er/m.pt": b"m.pt"}
    assert not os.path.exists(os.path.dirname(file))


def test_one_file_takes_the_place_of_another(memory: Any) -> None:
    memory.pipe({"/m.pt": b"old", "/m.pt.weightport.json": b"old"})
    with destination("memory://m.pt") as (local, _):
        write(local, "m.pt", "m.pt.weightport.json")
    assert stored(memory) == {"/m.pt": b"m.pt", "/m.pt.weightport.json": b"m.pt.weightport.json"}


def test_nothing_of_a_dry_run_or_a_failure(memory: Any) -> None:
    with destination("memory://m.pt", dry_run=True) as (local, path):
        assert path == "memory://m.pt"
        write(local, "m.pt")
    with says(KeyboardInterrupt, "stopped"), destination("memory://m.pt") as (local, _):
        write(local, "m.pt")
        raise KeyboardInterrupt("stopped")
    assert stored(memory) == {}


@pytest.mark.parametrize(
    ("out", "files", "last"),
    [
        ("m", ["m.index", "m.data-00000-of-00001", "m.meta"], "/in/m.index"),
        ("m.safetensors", ["m.safetensors.index.json", "m-1.safetensors", "z.json"], "/in/m.safetensors.index.json"),
        ("m.onnx", ["m.onnx", "m.onnx.data"], "/in/m.onnx"),
        ("model", ["model/saved_model.pb", "model/variables/x", "model/zz/y"], "/in/model/saved_model.pb"),
        ("a", ["a", "b", "c"], "/in/a"),
    ],
)
def test_several_files(memory: Any, monkeypatch: pytest.MonkeyPatch, out: str, files: list[str], last: str) -> None:
    order: list[str] = []
    real = type(memory).open

    def watched(self: Any, path: str, mode: str = "rb", **how: Any) -> Any:
        order.append(f"{mode} {path}")
        return real(self, path, mode, **how)

    with destination(f"memory://in/{out}") as (local, _):
        write(local, *files)
        monkeypatch.setattr(type(memory), "open", watched)
    assert stored(memory) == {f"/in/{file}": file.encode() for file in files}
    assert order[-1] == f"wb {last}"
    assert order[:-1] == sorted(order[:-1])
    assert len(order) == len(files)


@pytest.mark.parametrize("there", ["m", "m.index", "m.data", "m.index.weightport.json"])
def test_several_files_take_no_place_of_others(memory: Any, there: str) -> None:
    memory.pipe({f"/in/{there}": b"old"})
    said = f"memory://in/{there}: is there, and several files cannot be replaced at once; "
    with (
        says(RefusedError, said + "remove it first, or write to another path"),
        destination("memory://in/m") as (local, _),
    ):
        write(local, "m.index", "m.data", "m.index.weightport.json")
    assert stored(memory) == {f"/in/{there}": b"old"}


def test_what_appeared_meanwhile_is_seen(memory: Any) -> None:
    said = "memory://in/m.data: is there, and several files cannot be replaced at once; "
    with (
        says(RefusedError, said + "remove it first, or write to another path"),
        destination("memory://in/m") as (local, _),
    ):
        write(local, "m.index", "m.data")
        memory.pipe({"/in/m.data": b"new"})
    assert stored(memory) == {"/in/m.data": b"new"}


def test_a_failure_there_leaves_nothing(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = type(memory).open

    def full(self: Any, path: str, mode: str = "rb", **how: Any) -> Any:
        if path.endswith("m.index"):
            raise OSError(28, "No space left")
        return real(self, path, mode, **how)

    with (
        says(FormatError, "memory://in/m.index: cannot be written: OSError: No space left"),
        destination("memory://in/m") as (local, _),
    ):
        write(local, "m.index", "m.data")
        monkeypatch.setattr(type(memory), "open", full)
    assert stored(memory) == {}


@pytest.mark.parametrize("out", ["zip://m.pt::memory://a.zip", "pt:http://127.0.0.1:1/m.pt"])
def test_what_cannot_be_written_to(memory: Any, out: str) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("m.pt", b"old")
    memory.pipe({"/a.zip": packed.getvalue()})
    path = "zip://memory://a.zip!/m.pt" if "zip" in out else "http://127.0.0.1:1/m.pt"
    said = f"{path}: cannot be written by URL; write to a local path, and copy it there"
    with says(RefusedError, said), destination(out):
        raise AssertionError
