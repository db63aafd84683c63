"""Paths of here and beneath URLs: what ``os.path`` answers, and nothing outside the folder of a URL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving import in_memory
from weightport.errors import FormatError
from weightport.formats import _fs


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with in_memory(monkeypatch) as fs:
        fs.pipe({"/models/m.npz": b"model", "/models/deep/n.npz": b"other", "/secret.txt": b"secret"})
        yield fs


@pytest.mark.parametrize("outside", ["../secret.txt", "deep/../../secret.txt", "a\\b", "a\0b"])
def test_nothing_leads_out_of_the_folder_of_a_url(memory: Any, outside: str) -> None:
    _fs.placed("memory://models/m.npz")
    path = f"memory://models/{outside}"
    memory.pipe({f"/models/{outside}": b"there"})
    assert (_fs.isfile(path), _fs.isdir(path), _fs.exists(path), _fs.lexists(path)) == (False,) * 4
    assert (_fs.mark(path), _fs.denied(path), _fs.fetched(path)) == (None, None, 0)
    with pytest.raises(FileNotFoundError):
        _fs.listdir(path)
    assert list(_fs.walk(path)) == []
    _fs.fresh(path)
    assert _fs.is_remote(path)  # and so no local path either


def test_a_folder_of_a_url(memory: Any) -> None:
    del memory
    path = _fs.placed("memory://models/m.npz")
    folder = os.path.dirname(path)
    assert (_fs.isfile(path), _fs.isdir(path), _fs.isdir(folder), _fs.islink(path)) == (True, False, True, False)
    assert sorted(_fs.listdir(folder)) == ["deep", "m.npz"]
    deep = os.path.join(folder, "deep")
    assert list(_fs.walk(folder)) == [(folder, ["deep"], ["m.npz"]), (deep, [], ["n.npz"])]
    assert _fs.realpath(folder + "/") == _fs.abspath(folder + "/") == _fs.normpath(folder + "/") == folder
    assert _fs.samefile(path, path)
    assert _fs.typed(path) == path


def test_another_process_is_told_the_path(memory: Any) -> None:
    del memory
    _fs.place_as("memory://models.2/m.npz", "memory://models/m.npz")  # as it is called there
    for text in ("memory://models.2/m.npz", "memory://models/m.npz"):
        assert _fs.placed(text) == "memory://models.2/m.npz"
    assert _fs.typed("memory://models.2/m.npz") == "memory://models/m.npz"
    assert _fs.isfile("memory://models.2/m.npz")
    _fs.place_as("local", "local")
    assert not _fs.is_remote("local")


def test_local_paths_stay_local_beside_urls(memory: Any, tmp_path: Path) -> None:
    del memory
    _fs.placed("memory://models/m.npz")
    (tmp_path / "a").write_bytes(b"abc")
    os.symlink(tmp_path / "a", tmp_path / "link")
    here, link = str(tmp_path / "a"), str(tmp_path / "link")
    assert (_fs.is_remote(here), _fs.fetched(here), _fs.denied(here)) == (False, None, None)
    assert (_fs.isfile(link), _fs.islink(link), _fs.samefile(here, link)) == (True, True, True)
    assert _fs.realpath(link) == os.path.realpath(here)
    assert _fs.mark(here) == _fs.mark(link)
    assert _fs.mark(here + "x") is None
    assert not _fs.is_remote("other://models/m.npz")  # nobody placed it


def test_a_name_that_no_file_can_have() -> None:
    with pytest.raises(FormatError) as caught:
        _fs.realpath("a\0b")
    assert str(caught.value) == r"a\x00b: cannot be opened: no file can have this name"


def test_what_is_there_by_now(memory: Any) -> None:
    path = _fs.placed("memory://models/m.npz")
    later = os.path.join(os.path.dirname(path), "later.npz")
    assert "later.npz" not in _fs.listdir(os.path.dirname(path))
    memory.pipe({"/models/later.npz": b"new"})
    assert not _fs.isfile(later)  # a listing is asked for once
    _fs.fresh(path)
    assert _fs.isfile(later)
    _fs.fresh("local")  # of which nothing is remembered


def test_a_destination_whose_folder_is_not_there(memory: Any, tmp_path: Path) -> None:
    del memory
    path = _fs.placed("memory://models/m.npz")
    assert _fs.no_folder(f"{path}.out") is None
    assert _fs.no_folder(tmp_path / "a") is None
    (tmp_path / "link").symlink_to(tmp_path / "none" / "a")
    for missing in (tmp_path / "none" / "a", tmp_path / "link"):
        problem = _fs.no_folder(missing)
        assert problem is not None
        told = f"{missing}: cannot be written: there is no folder {tmp_path / 'none'}; make it first"
        assert str(problem) == told


@pytest.mark.parametrize(
    ("path", "folder", "beneath"),
    [
        ("/a/b", "/a", True),
        ("/a/b", "/a/", True),
        ("/a", "/a", True),
        ("/ab", "/a", False),
        ("/b", "/a", False),
        ("/a", "/", True),
        ("/a /b", "/a ", True),
        ("/a/b", "/a ", False),
    ],
)
def test_beneath(path: str, folder: str, beneath: bool) -> None:
    assert _fs.is_beneath(path, folder) is beneath
