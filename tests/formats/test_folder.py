"""Folders that appear whole, whatever happens while they are written."""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.support import says
from weightport.errors import Error, RefusedError
from weightport.formats import _folder
from weightport.formats._folder import atomic_folder
from weightport.formats._temporaries import try_lock


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
    with says(Error, f"{tmp_path / 'f'}: cannot be written: No space left on device"), atomic_folder(tmp_path / "f"):
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


class Library:
    """A C library of another system: it exchanges two folders in three steps, or cannot."""

    def __init__(self, *functions: str, fails: bool = False) -> None:
        self.asked: list[tuple[object, ...]] = []
        for name in functions:
            setattr(self, name, self._exchange)
        self._fails = fails

    def _exchange(self, *given: object) -> int:
        self.asked.append(given)
        if self._fails:
            return -1
        one, other = (os.fsdecode(path) for path in given if isinstance(path, bytes))
        os.rename(one, f"{one}-")
        os.rename(other, one)
        os.rename(f"{one}-", other)
        return 0


@pytest.mark.parametrize(
    ("platform", "function", "given"), [("darwin", "renamex_np", [2]), ("linux", "renameat2", [-100, -100, 2])]
)
def test_the_call_of_each_system(
    platform: str, function: str, given: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    library = Library(function)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: library)
    fill(tmp_path / "f", "old")
    fill(tmp_path / "f", "new")
    assert content(tmp_path / "f") == ["new", "new"]
    assert os.listdir(tmp_path) == ["f"]
    (asked,) = library.asked
    assert [n for n in asked if isinstance(n, int)] == given
    for other in (Library(), Library(function, fails=True)):  # none of that name, or of this file system
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, library=other, **__: library)
        with pytest.raises(RefusedError, match="two folders cannot be exchanged at once here"):
            fill(tmp_path / "f", "newer")
        assert content(tmp_path / "f") == ["new", "new"]
        assert os.listdir(tmp_path) == ["f"]


def test_what_killed_writers_left(tmp_path: Path) -> None:
    """It is removed by the next, unless somebody holds its lock; what is no folder, and what is another's, stays."""
    others = [".f.a-b.weightport-tmp", ".g.abc.weightport-tmp", ".f.file.weightport-tmp", ".f.link.weightport-tmp"]
    for name in (".f.abc.weightport-tmp", ".f.held.weightport-tmp", *others[:2]):
        (tmp_path / name / "deep").mkdir(parents=True)
    (tmp_path / others[2]).write_bytes(b"")
    (tmp_path / others[3]).symlink_to(".g.abc.weightport-tmp")
    handle = os.open(tmp_path / ".f.held.weightport-tmp", os.O_RDONLY)
    assert try_lock(handle)
    fill(tmp_path / "f", "new")
    assert sorted(os.listdir(tmp_path)) == sorted(["f", ".f.held.weightport-tmp", *others])
    os.close(handle)
    fill(tmp_path / "f", "newer")
    assert sorted(os.listdir(tmp_path)) == sorted(["f", *others])


def test_one_at_work_is_seen(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "f") as first:
        (Path(first) / "a").mkdir()
        fill(tmp_path / "f", "second")
        assert Path(first).exists()
        for name in ("a/1", "b"):
            (Path(first) / name).write_text("first", encoding="utf-8")
    assert content(tmp_path / "f") == ["first", "first"]
    assert os.listdir(tmp_path) == ["f"]


def test_nobody_meets_it_before_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is created, and while others look for what is left, the folder above is locked."""
    seen: list[bool] = []
    above = os.open(tmp_path, os.O_RDONLY)

    def noted(plain: Any) -> Any:
        def call(*given: Any, **more: Any) -> Any:
            seen.append(try_lock(above))
            return plain(*given, **more)

        return call

    monkeypatch.setattr(tempfile, "mkdtemp", noted(tempfile.mkdtemp))
    monkeypatch.setattr(_folder, "_remove_stale", noted(_folder._remove_stale))
    fill(tmp_path / "f", "1")
    assert seen == [False, False]
    os.close(above)


def test_files_are_as_private_as_those_they_replace(tmp_path: Path) -> None:
    fill(tmp_path / "f", "old")
    (tmp_path / "f" / "a" / "1").chmod(0o640)
    (tmp_path / "f" / "b").chmod(0o600)
    with atomic_folder(tmp_path / "f") as made:
        (Path(made) / "a").mkdir()
        for name in ("a/1", "a/2", "b", "c"):
            (Path(made) / name).write_text("new", encoding="utf-8")
    modes = {name: stat.S_IMODE((tmp_path / "f" / name).stat().st_mode) for name in ("a/1", "a/2", "b", "c")}
    assert modes == {"a/1": 0o640, "a/2": 0o640, "b": 0o600, "c": 0o600}


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    with says(Error, f"{tmp_path / 'no' / 'f'}: cannot be written: No such file or directory"):
        fill(tmp_path / "no" / "f", "")
    with says(Error, f"{tmp_path / 'f'}: cannot be written: of its own making"), atomic_folder(tmp_path / "f"):
        raise OSError("of its own making")


def test_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file and folder is durable before the name, and the name before anybody is told."""
    done: list[str] = []
    plain, rename = os.fsync, os.rename

    def fsync(fd: int) -> None:
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        plain(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", lambda a, b: (done.append("rename"), rename(a, b)))
    fill(tmp_path / "f", "new")
    temporary = next(name for name in done if name.startswith(".f."))
    assert done == ["b", temporary, "1", "a", "rename", tmp_path.name]


KILLED = """
import os, shutil, sys, ctypes
from pathlib import Path
from typing import Any
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
