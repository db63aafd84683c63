"""Folders that appear whole, whatever happens while they are written."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from weightport.errors import Error, RefusedError
from weightport.formats import _folder
from weightport.formats._folder import atomic_folder


def fill(path: Path, text: str) -> None:
    with atomic_folder(path) as made:
        (Path(made) / "a").mkdir()
        for name in ("a/1", "b"):
            (Path(made) / name).write_text(text, encoding="utf-8")


def content(path: Path) -> list[str]:
    return [(path / name).read_text(encoding="utf-8") for name in ("a/1", "b")]


def test_new_empty_and_old(tmp_path: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    fill(tmp_path / "new", "1")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o777 & ~umask
    (tmp_path / "empty").mkdir(mode=0o700)
    fill(tmp_path / "empty", "2")
    (tmp_path / "link").symlink_to("new")
    fill(tmp_path / "link", "3")
    assert (tmp_path / "link").is_symlink()
    assert stat.S_IMODE((tmp_path / "empty").stat().st_mode) == 0o700
    assert content(tmp_path / "new") == ["3", "3"]
    assert content(tmp_path / "empty") == ["2", "2"]
    assert sorted(os.listdir(tmp_path)) == ["empty", "link", "new"]


def test_a_failure_leaves_the_old_one(tmp_path: Path) -> None:
    fill(tmp_path / "f", "old")
    with pytest.raises(KeyError), atomic_folder(tmp_path / "f") as made:
        raise KeyError(made)
    assert content(tmp_path / "f") == ["old", "old"]
    with pytest.raises(Error, match=r"f: cannot be written: No space left"), atomic_folder(tmp_path / "f"):
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == ["f"]


def test_where_two_folders_cannot_be_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "f", "old")
    monkeypatch.setattr(_folder, "_exchange", lambda *_: False)
    with pytest.raises(RefusedError) as caught:
        fill(tmp_path / "f", "new")
    assert str(caught.value) == (
        f"{tmp_path / 'f'}: is there already, and two folders cannot be exchanged at once here; remove it first, or "
        "write to another path"
    )
    assert content(tmp_path / "f") == ["old", "old"]
    assert os.listdir(tmp_path) == ["f"]


KILLED = """
import os, shutil, sys, ctypes
from pathlib import Path
from weightport.formats import _folder
count = 0
def dying(plain):
    def call(*args, **kwargs):
        global count
        count += 1
        if count == int(sys.argv[2]):
            os._exit(9)
        return plain(*args, **kwargs)
    return call
for name in ("mkdir", "chmod", "rename", "fsync", "unlink", "rmdir"):
    setattr(os, name, dying(getattr(os, name)))
_folder._exchange = dying(_folder._exchange)
from tests.formats.test_folder import fill
fill(Path(sys.argv[1]), "new")
os._exit(7)
"""


def test_killed_at_every_step(tmp_path: Path) -> None:
    path = tmp_path / "f"
    codes: list[int] = []
    while 7 not in codes:
        fill(path, "old")
        run = subprocess.run(
            [sys.executable, "-c", KILLED, str(path), str(len(codes) + 1)], cwd=Path(__file__).parents[2], check=False
        )
        codes.append(run.returncode)
        assert content(path) in (["old", "old"], ["new", "new"])
    assert codes[:-1] == [9] * (len(codes) - 1)
    assert len(codes) > 10
    assert content(path) == ["new", "new"]
    fill(path, "last")
    assert os.listdir(tmp_path) == ["f"], "what the killed left is gone"
