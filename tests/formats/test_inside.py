"""Links are followed as far as the folder of a model, as it is named or as it really lies, and no further."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import says
from weightport.errors import FormatError
from weightport.formats import _inside


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A model in the cache of a hub: a folder of links into the folder where the files are."""
    blobs, model, secret = tmp_path / "blobs", tmp_path / "snapshots" / "abc", tmp_path / "secret"
    for folder in (blobs, model, secret):
        folder.mkdir(parents=True)
    (secret / "key").write_text("a key")
    for number, name in enumerate(("index", "part", "mark")):
        (blobs / str(number)).write_text(name)
        (model / name).symlink_to(f"../../blobs/{number}")
    (model / "own").write_text("own")
    (model / "out").symlink_to(secret / "key")
    (tmp_path / "blobs2").mkdir()
    (tmp_path / "blobs2" / "0").write_text("of another model")
    return tmp_path


def test_the_folders_of_a_file(hub: Path) -> None:
    folders = _inside.folders_of(str(hub / "snapshots" / "abc" / "index"))
    assert folders == {str(hub / "snapshots" / "abc"), str(hub / "blobs")}
    assert _inside.folders_of(str(hub / "blobs" / "0")) == {str(hub / "blobs")}


def test_the_folders_of_a_folder(hub: Path) -> None:
    model = str(hub / "snapshots" / "abc")
    assert _inside.roots_of(model) == {model}
    assert _inside.roots_of(model, "mark") == {model, str(hub / "blobs")}
    assert _inside.roots_of(model, "own", "none") == {model}
    (hub / "link").symlink_to("snapshots/abc")
    assert _inside.roots_of(str(hub / "link"), "index") == {model, str(hub / "blobs")}


def test_what_lies_outside(hub: Path) -> None:
    model = hub / "snapshots" / "abc"
    folders = _inside.folders_of(str(model / "index"))
    for path in (model / "part", model / "own", model / "deep" / "not there", hub / "blobs" / "1"):
        assert _inside.is_inside(str(path), folders)
        assert _inside.refuse_outside(str(path), folders) == str(path)
    for path in (model / "out", hub / "secret" / "key", model / ".." / "x", hub / "blobs2" / "0"):
        assert not _inside.is_inside(str(path), folders)
    said = f"{model}/out: tensor 't': is a link that leads out of the model's folder; copy the file there"
    with says(FormatError, said):
        _inside.refuse_outside(str(model / "out"), folders, tensor="t")
    with says(FormatError, said.replace(" tensor 't':", "")):
        _inside.refuse_outside(str(model / "out"), folders)


def test_names_beside_the_caller(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hub / "snapshots" / "abc")
    assert _inside.folders_of("index") == {str(hub / "snapshots" / "abc"), str(hub / "blobs")}
    assert _inside.is_inside("part", _inside.folders_of("own")) is False
    assert _inside.is_inside("own", _inside.folders_of("index")) is True
