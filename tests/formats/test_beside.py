"""Remarks beside a file: they are of the file that is there, or are none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from weightport.checksums import crc32c
from weightport.formats import _beside

SAID = {"weightport.version": "1", "weightport.source": "m.npz"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "m.pb"
    path.write_bytes(b"values")
    _beside.put(str(path), SAID)
    return path


def test_what_is_written(file: Path) -> None:
    assert json.loads((file.parent / "m.pb.weightport.json").read_text("utf-8")) == {
        "of": {"size": 6, "crc32c": f"{crc32c(b'values'):08x}"},
        "provenance": SAID,
    }
    assert _beside.said_of(str(file)) == SAID
    before = (file.parent / "m.pb.weightport.json").read_bytes()
    _beside.put(str(file), dict(reversed(SAID.items())))
    assert (file.parent / "m.pb.weightport.json").read_bytes() == before, "whatever the order"


def test_of_another_file_now(file: Path) -> None:
    for content in (b"valueS", b"values and more"):
        file.write_bytes(content)
        assert _beside.said_of(str(file)) == {}
    file.write_bytes(b"values")
    assert _beside.said_of(str(file)) == SAID
    renamed = file.rename(file.with_name("n.pb"))
    (file.parent / "m.pb.weightport.json").rename(file.with_name("n.pb.weightport.json"))
    assert _beside.said_of(str(renamed)) == SAID


def test_through_a_link(file: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "there" / "link.pb"
    link.symlink_to(file)
    assert _beside.said_of(str(link)) == SAID
    _beside.put(str(link), {"weightport.version": "2"})
    assert _beside.said_of(str(file)) == {"weightport.version": "2"}
    assert os.listdir(tmp_path / "there") == ["link.pb"]


def test_large_files_by_their_ends(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as out:
        out.truncate(20 << 20)
    _beside.put(str(path), SAID)
    with path.open("r+b") as out:
        for at, known in ((10 << 20, True), (0, False)):
            out.seek(at)
            out.write(b"x")
            out.flush()
            assert _beside.said_of(str(path)) == (SAID if known else {})


def test_nothing_to_say(file: Path) -> None:
    for said in (None, {}):
        _beside.put(str(file), said)
        assert os.listdir(file.parent) == ["m.pb"]
        assert _beside.said_of(str(file)) == {}


def test_what_cannot_be_written_is_not_said(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no)
    _beside.put(str(file), {"weightport.version": "2"})
    assert _beside.said_of(str(file)) == SAID
    assert sorted(os.listdir(file.parent)) == ["m.pb", "m.pb.weightport.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 60_000,
        b'{"of": 1}',
        b" " * 70_000,
        b'{"of": {"file": "m.pb"}, "provenance": {}}',
    ],
)
def test_what_is_no_remark(file: Path, content: bytes) -> None:
    (file.parent / "m.pb.weightport.json").write_bytes(content)
    assert _beside.said_of(str(file)) == {}


def test_only_texts_count(file: Path) -> None:
    beside = file.parent / "m.pb.weightport.json"
    document = json.loads(beside.read_text("utf-8"))
    for said, known in (({"a": 1, "b": "c"}, {"b": "c"}), (["a"], {})):
        beside.write_text(json.dumps({**document, "provenance": said}))
        assert _beside.said_of(str(file)) == known


def test_a_remark_that_is_no_file(file: Path) -> None:
    beside = file.parent / "m.pb.weightport.json"
    beside.unlink()
    os.mkfifo(beside)
    assert _beside.said_of(str(file)) == {}
