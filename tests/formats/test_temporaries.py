"""What is written under another name until it is whole: one file, a set of several."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from tests.support import says
from weightport.errors import Error
from weightport.formats import _temporaries
from weightport.formats._temporaries import (
    Parts,
    atomic_file,
    atomic_path,
    atomic_set,
    commit,
    fsync_folder,
    locked_folder,
    temporary,
)


def fill(path: Path, data: bytes) -> None:
    with atomic_file(path) as out:
        out.write(data)


def left(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_new_file_has_the_mode_that_the_umask_says(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        fill(tmp_path / "f", b"new")
    finally:
        assert os.umask(umask) == 0o027
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640
    assert (tmp_path / "f").read_bytes() == b"new"
    assert left(tmp_path) == ["f"]


def test_an_old_file_keeps_its_mode_and_its_links(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "f").write_bytes(b"old")
    (tmp_path / "there" / "f").chmod(0o604)
    (tmp_path / "link").symlink_to("there/f")
    fill(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "f").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "there" / "f").stat().st_mode) == 0o604
    assert left(tmp_path) == ["link", "there"]
    assert left(tmp_path / "there") == ["f"]


def test_beside_a_link_or_beside_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "f").write_bytes(b"old")
    (tmp_path / "link").symlink_to("there/f")
    with temporary(tmp_path / "link") as (_, made), temporary(tmp_path / "link", follow=False) as (_, beside):
        assert Path(made).parent == tmp_path / "there"
        assert Path(beside).parent == tmp_path
    assert left(tmp_path) == ["link", "there"]


def test_it_is_the_old_file_until_the_end(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    with atomic_path(tmp_path / "f") as temporary:
        Path(temporary).write_bytes(b"new")
        assert (tmp_path / "f").read_bytes() == b"old"
        assert os.path.dirname(temporary) == str(tmp_path)
        name = os.path.basename(temporary)
        assert name.startswith(".f.")
        assert name.endswith(".weightport-tmp")
    assert (tmp_path / "f").read_bytes() == b"new"


def test_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are durable before the name, and the name before anybody is told."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (done.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"), fsync(fd))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("rename"), replace(a, b)))
    fill(tmp_path / "f", b"new")
    assert done == ["file", "rename", "folder"]
    done.clear()
    fsync_folder(tmp_path)
    assert done == ["folder"]


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    with says(Error, f"{tmp_path}: is a directory, not a file to write"):
        fill(tmp_path, b"")
    gone = tmp_path / "no"
    with says(Error, f"{gone / 'f'}: cannot be written: there is no folder {gone.resolve()}; make it first"):
        fill(tmp_path / "no" / "f", b"")
    assert left(tmp_path) == []


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(b"old")
    with says(Error, f"{tmp_path / 'f'}: cannot be written: No space left on device"), atomic_file(tmp_path / "f"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with says(Error, f"{tmp_path / 'f'}: cannot be written: of its own making"), atomic_file(tmp_path / "f"):
        raise OSError("of its own making")
    with pytest.raises(KeyError), atomic_file(tmp_path / "f"):
        raise KeyError

    def no(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", no)
    with says(Error, f"{tmp_path / 'f'}: cannot be written: Input/output error"):
        fill(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert left(tmp_path) == ["f"]


def test_what_cannot_be_cleaned_is_no_reason_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(_temporaries, "remove_stale", no)
    fill(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"new"


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    mine = ".f(1).abc_12.weightport-tmp"
    others = [
        ".f1.abc.weightport-tmp",
        ".f(1).a-b.weightport-tmp",
        "f(1).abc.weightport-tmp",
        ".f(1).abc.weightport-tmpx",
    ]
    for name in (mine, *others):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / ".f(1).link.weightport-tmp").symlink_to("elsewhere")
    fill(tmp_path / "f(1)", b"new")
    assert left(tmp_path) == sorted(["f(1)", "elsewhere", ".f(1).link.weightport-tmp", *others])


def test_what_somebody_writes_is_left_alone(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "f") as first:
        Path(first).write_bytes(b"first")
        with open(first, "rb") as handle:
            assert not _temporaries.try_lock(handle.fileno())
        fill(tmp_path / "f", b"second")
        assert Path(first).exists()
        assert (tmp_path / "f").read_bytes() == b"second"
    assert (tmp_path / "f").read_bytes() == b"first"
    assert left(tmp_path) == ["f"]


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no)
    (tmp_path / ".f.abc.weightport-tmp").write_bytes(b"left")
    fill(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"new"
    assert left(tmp_path) == [".f.abc.weightport-tmp", "f"], "nobody can tell whether it is still written"


def test_one_writer_at_a_time_in_a_folder(tmp_path: Path) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        with locked_folder(tmp_path):
            assert not _temporaries.try_lock(handle)
        assert _temporaries.try_lock(handle)
    finally:
        os.close(handle)


# Several files ------------------------------------------------------------------------------------------------------


def write_set(folder: Path, part: str) -> None:
    def stale(name: str) -> bool:
        assert (folder / "set").read_bytes() == part.encode(), "asked after the file was committed"
        return name != part

    with atomic_set(folder / "set", r"p\d+", stale) as out:
        fill(folder / part, b"part")
        out.write(part.encode())


def test_parts_of_the_old_model_are_removed(tmp_path: Path) -> None:
    for name in ("p1", "p22", "other", "p3x", "xp3"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".set.abc.weightport-tmp").write_bytes(b"")
    (tmp_path / "p5").mkdir()
    write_set(tmp_path, "p4")
    assert left(tmp_path) == ["other", "p3x", "p4", "p5", "set", "xp3"]


def test_parts_stay_while_somebody_is_at_work(tmp_path: Path) -> None:
    (tmp_path / "p1").write_bytes(b"")
    with atomic_path(tmp_path / "set"):
        write_set(tmp_path, "p4")
        assert {"p1", "p4", "set"} < set(left(tmp_path))
    write_set(tmp_path, "p4")
    assert left(tmp_path) == ["p4", "set"]


def test_a_set_that_fails_removes_nothing(tmp_path: Path) -> None:
    (tmp_path / "p1").write_bytes(b"")
    with pytest.raises(KeyError), atomic_set(tmp_path / "set", r"p\d+", lambda _: True):
        raise KeyError
    assert left(tmp_path) == ["p1"]


def write_model(folder: Path, parts: list[bytes], *, interrupt: str = "") -> None:
    """A file ``model`` of lines, each the name of a part ``n1``, ``n2``, ... that no model has."""

    def old() -> list[str]:
        return [name for name in os.listdir(folder) if name.startswith("n")]

    def names() -> list[str]:
        taken = old()
        free = (name for number in range(1, 99) if (name := f"n{number}") not in taken)
        return [next(free) for _ in parts]

    def write(out: BinaryIO, chosen: Sequence[str]) -> None:
        if interrupt == "write":
            raise KeyboardInterrupt
        out.write("\n".join(chosen).encode())

    path = str(folder / "model")
    with temporary(path) as (_, made), open(made, "r+b") as out, Parts(made) as held:
        for part in parts:
            Path(held.new()).write_bytes(part)
        held.sync()
        commit(path, out, made, held.paths, old=old, names=names, write=write)


def model(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in (folder / "model").read_text("utf-8").split()]


def test_a_model_of_several_files(tmp_path: Path) -> None:
    write_model(tmp_path, [b"1", b"2"])
    assert left(tmp_path) == ["model", "n1", "n2"]
    write_model(tmp_path, [b"3"])
    assert model(tmp_path) == [b"3"]
    assert left(tmp_path) == ["model", "n3"]


def test_parts_are_no_more_open_than_what_they_replace(tmp_path: Path) -> None:
    write_model(tmp_path, [b"1", b"2"])
    (tmp_path / "n1").chmod(0o640)
    (tmp_path / "n2").chmod(0o604)
    (tmp_path / "model").chmod(0o644)
    write_model(tmp_path, [b"3", b"4"])
    assert {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in left(tmp_path)} == {
        "model": 0o644, "n3": 0o600, "n4": 0o600,
    }  # fmt: skip


def test_a_part_that_is_another_models_file_keeps_its_mode(tmp_path: Path) -> None:
    write_model(tmp_path, [b"1"])
    (tmp_path / "model").chmod(0o600)
    (tmp_path / "theirs").write_bytes(b"shared")
    (tmp_path / "theirs").chmod(0o644)
    path = str(tmp_path / "model")
    with temporary(path) as (_, made), open(made, "r+b") as out, Parts(made) as held:
        os.link(tmp_path / "theirs", held.new())
        commit(
            path, out, made, held.paths,
            old=list, names=lambda: ["n2"], write=lambda out, names: out.write(names[0].encode()) and None,
        )  # fmt: skip
    assert stat.S_IMODE((tmp_path / "theirs").stat().st_mode) == 0o644


def test_interrupted_before_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path, [b"old"])
    with pytest.raises(KeyboardInterrupt):
        write_model(tmp_path, [b"new"], interrupt="write")
    plain = os.replace

    def replace(a: str, b: str) -> None:
        if b.endswith("model"):
            raise KeyboardInterrupt
        plain(a, b)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write_model(tmp_path, [b"new", b"newer"])
    assert model(tmp_path) == [b"old"]
    assert left(tmp_path) == ["model", "n1"]


def test_interrupted_after_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new model is there and stays; what is left of the old one is removed by the next."""
    write_model(tmp_path, [b"old"])
    plain = os.replace

    def replace(a: str, b: str) -> None:
        plain(a, b)
        if b.endswith("model"):
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write_model(tmp_path, [b"new", b"newer"])
    monkeypatch.setattr(os, "replace", plain)
    assert model(tmp_path) == [b"new", b"newer"]
    write_model(tmp_path, [b"next"])
    assert left(tmp_path) == ["model", "n4"]


def test_parts_that_killed_writers_left(tmp_path: Path) -> None:
    mine = [".model.abc.00000.weightport-tmp", ".model.abc.weightport-tmp", ".model.xyz.123456.weightport-tmp"]
    others = [".model.held.00000.weightport-tmp", ".model.held.weightport-tmp", ".model.abc.0.weightport-tmp"]
    for name in (*mine, *others):
        (tmp_path / name).write_bytes(b"")
    with open(tmp_path / others[1], "rb") as handle:
        assert _temporaries.try_lock(handle.fileno())
        write_model(tmp_path, [b"1"])
        assert left(tmp_path) == sorted([*others, "model", "n1"])
    write_model(tmp_path, [b"1"])
    assert left(tmp_path) == sorted([others[2], "model", "n2"])
