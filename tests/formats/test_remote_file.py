"""Byte ranges of files by URL: what is fetched, what is kept, and a server that does not keep its word."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.serving import Served, in_memory, serving
from tests.support import need, says
from weightport.errors import Error, FormatError
from weightport.formats import _fs, _remote, _remote_file
from weightport.formats._io import ByteFile
from weightport.formats._remote_file import RemoteFile

fsspec = need("fsspec")
DATA = np.random.default_rng(0).bytes(3 << 20)


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with in_memory(monkeypatch) as fs:
        fs.pipe({"/f/file": DATA, "/f/deep/more": b"more", "/secret": b"secret"})
        yield fs


@pytest.fixture
def web() -> Iterator[Served]:
    need("aiohttp")
    with serving({"file": DATA}) as served:
        yield served


def opened(url: str) -> RemoteFile:
    found = ByteFile(_fs.placed(url))
    assert isinstance(found, RemoteFile)
    return found


def test_what_is_no_file_there() -> None:
    folder = _fs.placed("memory://f/file").removesuffix("/file")
    for path, what in (
        ("../secret", "leads out of the folder of its URL"),
        ("deep", "is not a regular file"),
        ("none", "cannot be opened: no such file"),
    ):
        with pytest.raises(FormatError) as caught:
            ByteFile(f"{folder}/{path}")
        assert str(caught.value) == f"{folder}/{path}: {what}"
    with pytest.raises(FormatError, match="leads out of the folder of its URL"):
        RemoteFile("/f/file")  # nothing of this path is remote


def test_neighbours_are_fetched_together(web: Served) -> None:
    with opened(f"{web.url}/file") as file:
        file.read(1 << 20, 1)  # from the middle: the server has ranges
        web.asked.clear()
        block = _remote_file.BLOCK
        file.expect_near([2 << 20, (2 << 20) + block, (2 << 20) + 5 * block, len(DATA) + 7])
        spans = [span for _, span in web.gets()]
        first = 2 << 20
        assert sorted(spans) == [
            f"bytes={first}-{first + 2 * block - 1}",
            f"bytes={first + 5 * block}-{first + 6 * block - 1}",
        ]
        assert file.read(first + 5, 100) == DATA[first + 5 : first + 105]
        file.expect_near([first])  # is there
        assert len(web.gets()) == 2


def test_large_rows_are_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_remote_file, "PART", 1000)
    rows = np.zeros((3, 1500), np.uint8)
    with opened("memory://f/file") as file:
        sums = file.read_rows([5000, 0, 9000], rows, lambda row, start: int(row.sum()) + start)
    assert [row.tobytes() for row in rows] == [DATA[at : at + 1500] for at in (5000, 0, 9000)]
    assert sums == [sum(DATA[at : at + 1500]) for at in (5000, 0, 9000)]


def test_rows_of_a_file_that_had_to_be_downloaded(web: Served) -> None:
    web.ranges = False
    rows = np.zeros((2, 50), np.uint8)
    with opened(f"{web.url}/file") as file:
        assert file.read(2 << 20, 10) == DATA[2 << 20 : (2 << 20) + 10]
        assert file.read_rows([2_000_000, 1_000_000], rows, None) == [0, 0]
        assert [row.tobytes() for row in rows] == [DATA[at : at + 50] for at in (2_000_000, 1_000_000)]
        file.expect_near([0])
        with open(file.fileno(), "rb", closefd=False) as local:  # is not downloaded a second time
            local.seek(0)
            assert local.read() == DATA
    assert len([span for _, span in web.gets() if not span]) == 1


def test_a_server_that_gives_less_than_it_was_asked_for(memory: Any) -> None:
    with opened("memory://f/file") as file:
        memory.pipe_file("/f/file", DATA[:1000])
        with pytest.raises(FormatError) as caught:
            file.read(1 << 20, 300_000, tensor="w")
    what = "0 bytes came for 300000: the file changed, or its server errs"
    assert str(caught.value) == f"memory://f/file: tensor 'w' at byte 1048576: {what}"


def test_one_of_many_threads_asks_whether_a_server_has_ranges(web: Served) -> None:
    """The others wait for it, and then take its word."""

    class Turn:
        def __enter__(self) -> None:
            shared.ranged = True  # the one before was that one

        def __exit__(self, *_: object) -> None: ...

    with opened(f"{web.url}/file") as file:
        shared = file._shared
        shared.lock = Turn()
        web.asked.clear()
        assert file._fetch([(5, 9)], None) == [DATA[5:9]]
        assert web.gets() == [("file", "bytes=5-8")]


class Streams:
    """A file system whose files cannot be read from the middle, and which says little of them."""

    protocol = "streams"
    async_impl = False

    def __init__(self, content: bytes, size: int | None) -> None:
        self.content, self.size, self.opened = content, size, 0

    def info(self, path: str) -> dict[str, Any]:
        return {"name": path, "type": "file", "size": self.size, "partial": False}

    def open(self, path: str, **_: Any) -> Any:
        import io

        assert path == "base/file"
        self.opened += 1
        return io.BytesIO(self.content)


def streamed(content: bytes, size: int | None) -> str:
    place = _remote.Remote("streams://base/file", Streams(content, size), "base", "streams://base/")
    _fs._places["streams://base/"] = place
    return "streams://base/file"


def test_what_cannot_be_read_from_the_middle_is_downloaded_once() -> None:
    path = streamed(DATA, None)
    for _ in range(2):
        with ByteFile(path) as file:
            assert file.size == len(DATA)
            assert file.read(7, 9) == DATA[7:16]
    fs: Any = _fs._places["streams://base/"].fs  # type: ignore[attr-defined]
    assert fs.opened == 2  # nothing tells whether the file is still the same


def test_downloads_that_go_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = streamed(DATA[:1000], 1001)
    with pytest.raises(FormatError) as caught:
        ByteFile(path)
    assert str(caught.value) == f"{path}: the download broke off: 1,000 bytes came of 1,001"
    monkeypatch.setattr(_remote_file.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 5 << 20})())
    monkeypatch.setattr(_remote_file.tempfile, "gettempdir", lambda: str(tmp_path))
    with pytest.raises(Error) as failed:
        ByteFile(streamed(DATA, None))
    what = "cannot be read in parts there, and has to be downloaded whole: larger than half of what is free in"
    assert str(failed.value) == f"{path}: {what} {tmp_path}"
    assert os.listdir(tmp_path) == []


def test_folders_are_copied_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _fs.placed("memory://f/file").removesuffix("/file")
    _remote_file.copy_folder(folder, str(tmp_path / "copy"))
    found = {f.relative_to(tmp_path / "copy").as_posix(): f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    assert found == {"file": DATA, "deep/more": b"more"}
    monkeypatch.setattr(_remote_file.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2 << 20})())
    with pytest.raises(Error) as caught:
        _remote_file.copy_folder(folder, str(tmp_path / "other"))
    assert str(caught.value) == f"{folder}: has to be downloaded, and is larger than half of what is free for that"


# What the file system says ------------------------------------------------------------------------------------------


def test_another_process_makes_its_own_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    path = _fs.placed("memory://f/file")
    assert _fs.fetched(path) == 0
    with ByteFile(path) as file:
        file.read(0, 10)
    place = _fs._places["memory://f/"]
    assert isinstance(place, _remote.Remote)
    assert _fs.fetched(path) == 1
    monkeypatch.setattr(place, "_pid", -1)  # as after a fork
    assert isinstance(place.fs, type(fsspec.filesystem("memory")))
    assert place._pid == os.getpid()
    assert (_fs.fetched(path), place.shared) == (0, {})
    assert _fs.isfile(path)


def test_a_listing_of_a_folder_says_nothing_of_what_is_deeper() -> None:
    root = _fs.placed("memory://f/file").removesuffix("/file")
    assert _fs.listdir(root) == ["deep", "file"]
    assert _fs.isfile(f"{root}/deep/more")
    assert not _fs.isfile(f"{root}/more")
    assert _fs.listdir(f"{root}/deep") == ["more"]
    assert not _fs.isfile(f"{root}/deep/none")


def test_the_network_gets_more_and_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost(Streams):
        def info(self, path: str) -> dict[str, Any]:
            raise TimeoutError(path)

    waited: list[float] = []
    monkeypatch.setattr(_remote, "WAIT", 0.5)
    monkeypatch.setattr(_remote, "TRIES", 5)
    monkeypatch.setattr(_remote.time, "sleep", waited.append)
    _fs._places["streams://base/"] = _remote.Remote("streams://base/file", Lost(b"", 0), "base", "streams://base/")
    with says(FormatError, "streams://base/file: cannot be read: TimeoutError: base/file"):
        ByteFile("streams://base/file")
    assert waited == [0.5, 1, 2, 4]


def test_names_that_are_no_names() -> None:
    class Listing(Streams):
        def ls(self, path: str, detail: bool) -> list[dict[str, Any]]:
            assert detail
            return [
                {"name": name, "type": "file", "size": 3}
                for name in (path, "base/.", "base/..", "base/a?b=1", "base/good", "base/good", "base/")
            ]

    _fs._places["streams://base/"] = _remote.Remote("streams://base/file", Listing(b"", 0), "base", "streams://base/")
    assert _fs.listdir("streams://base") == ["good"]


def test_a_page_is_a_folder_only_if_it_lists_something(web: Served) -> None:
    web.files = {"m/a.npz": b"abc", "page": b"<html></html>"}
    path = _fs.placed(f"{web.url}/m/a.npz")
    assert _fs.isdir(path.removesuffix("/a.npz"))
    assert _fs.isfile(path)
    assert not _fs.exists(path + "x")


def test_a_page_without_links_is_a_file() -> None:
    class Pages(Streams):
        protocol = "https"

        def info(self, path: str) -> dict[str, Any]:
            return {"name": path, "type": "file", "size": 9, "mimetype": "text/html", "url": "https://host/base/page/"}

        def ls(self, path: str, detail: bool) -> list[dict[str, Any]]:
            assert detail
            return [{"name": path, "type": "file", "size": 9}]

    _fs._places["https://host/"] = _remote.Remote("https://host/page/", Pages(b"", 0), "base", "https://host/")
    assert _fs.isfile("https://host/page")
    assert not _fs.isdir("https://host/page")


def test_a_file_that_its_system_calls_otherwise_has_nothing_beside_it(
    memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_remote, "_made", lambda *_: (memory, "/f/file"))
    path = _fs.placed("memory://by/number-7")
    assert list(_fs._places) == [path] == ["memory://by/number-7"]
    with ByteFile(path) as file:
        assert file.read(0, 9) == DATA[:9]
    assert not _fs.exists("memory://by/file")


def test_a_url_that_cannot_be_taken_apart() -> None:
    with pytest.raises(FormatError) as caught:
        _fs.placed("zip://a.npz::memory://none.zip")
    assert str(caught.value) == "zip://memory://none.zip!/a.npz: no such file"
    with pytest.raises(Error, match="no kind of URL that fsspec knows"):
        _fs.placed("nobody://knows/this")


def test_an_error_of_ours_is_not_asked_again() -> None:
    class Refusing(Streams):
        def info(self, path: str) -> dict[str, Any]:
            self.opened += 1
            raise Error(f"{path}: refused")

    fs = Refusing(b"", 0)
    _fs._places["streams://base/"] = _remote.Remote("streams://base/file", fs, "base", "streams://base/")
    with pytest.raises(Error, match=r"^base/file: refused$"):
        ByteFile("streams://base/file")
    assert fs.opened == 1
