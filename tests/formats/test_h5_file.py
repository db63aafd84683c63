"""HDF5 opened by a path or in place, whose checksums it compares, and chunks that may not share bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from tests.support import says
from weightport.errors import FormatError
from weightport.formats import _h5_file
from weightport.formats._h5_values import Values
from weightport.formats._io import ByteFile
from weightport.formats._zipmember import Stored


def made(path: Path, **how: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.arange(12, dtype="<f4").reshape(3, 4), **how)
    return path


def test_a_file_is_opened_by_its_path(tmp_path: Path) -> None:
    path = made(tmp_path / "a.h5")
    with ByteFile(path) as file, _h5_file.opened(file) as found:
        assert found.filename == str(path)
        assert (found.mode, found.driver) == ("r", "sec2")
        assert found.id.get_access_plist().get_cache()[2] == 8 << 20
        assert found["x"][1].tolist() == [4, 5, 6, 7]


def test_a_part_of_a_file_is_opened_in_place(tmp_path: Path) -> None:
    whole = made(tmp_path / "a.h5").read_bytes()
    (tmp_path / "b").write_bytes(b"before" + whole + b"behind")
    with ByteFile(tmp_path / "b") as file:
        found = _h5_file.opened(Stored(file, 6, len(whole), "a.h5"))
        assert (found.mode, found.driver) == ("r", "fileobj")
        assert found.id.get_access_plist().get_cache()[2] == 8 << 20
        assert found["x"][1].tolist() == [4, 5, 6, 7]
        assert any(kept is found for kept in _h5_file._calling_back.values())
        _h5_file._close_all()  # as at the end of the process
        assert not found


def test_a_read_beyond_the_part_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(bytes(range(20)))
    with ByteFile(tmp_path / "b") as file:
        stream = _h5_file._Strict(Stored(file, 5, 10, "member"))
        stream.seek(2)
        buffer = np.zeros((2, 2), np.uint8)
        assert stream.readinto(buffer) == 4
        assert buffer.tolist() == [[7, 8], [9, 10]]
        assert (stream.readinto(bytearray(3)), stream.tell()) == (3, 9)
        with pytest.raises(FormatError):
            stream.readinto(bytearray(2))


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({}, ""),
        ({"chunks": (2, 3)}, ""),
        ({"chunks": (2, 3), "compression": "gzip"}, ""),
        ({"chunks": (2, 3), "fletcher32": True}, "fletcher32"),
        ({"chunks": (3, 4), "fletcher32": True, "compression": "gzip", "shuffle": True}, "fletcher32"),
    ],
)
def test_whose_checksums_are_compared(tmp_path: Path, how: Any, told: str) -> None:
    with h5py.File(made(tmp_path / "a.h5", **how)) as file:
        assert _h5_file.checksum(file["x"].id, elsewhere=False) == told
        assert _h5_file.checksum(file["x"].id, elsewhere=True) == ""


def dataset(chunks: int, masks: list[int], *filters: int) -> Any:
    """What h5py says of a dataset of 12 values in chunks of 4, of which so many exist."""
    from h5py import h5z

    known = [h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32, *filters]
    plist = SimpleNamespace(
        get_nfilters=lambda: len(known), get_filter=lambda n: (known[n], 9, (), b""), get_chunk=lambda: (4,)
    )
    infos = [SimpleNamespace(filter_mask=masks[n]) for n in range(chunks)]
    return SimpleNamespace(
        get_create_plist=lambda: plist,
        shape=(11,),
        get_num_chunks=lambda: chunks,
        get_chunk_info=infos.__getitem__,
    )


def test_chunks_may_do_without_it() -> None:
    """Filters are bits by their place; and of a library that cannot walk over the chunks, they are asked one by one."""
    assert _h5_file.checksum(dataset(3, [0, 0, 0]), elsewhere=False) == "fletcher32"
    assert _h5_file.checksum(dataset(3, [1, 0, 4]), elsewhere=False) == "fletcher32"  # others are left out
    assert _h5_file.checksum(dataset(3, [0, 0, 2]), elsewhere=False) == ""
    assert _h5_file.checksum(dataset(2, [0, 0]), elsewhere=False) == ""  # one was never written: it is the header's


def chunked(*places: tuple[int, int]) -> Any:
    infos = [SimpleNamespace(byte_offset=offset, size=size) for offset, size in places]
    return SimpleNamespace(chunk_iter=lambda tell: [tell(info) for info in infos])


def test_runs_share_no_bytes() -> None:
    values = Values("f.h5", 0)
    values.add_run(100, 10, "a")
    values.add_run(110, 10, "b")
    values.compare()
    values.add_run(119, 4, "c")
    said = "f.h5: tensor 'c' at byte 119: corrupt: its 4 bytes overlap the 10 of 'b' at byte 110: tensors share none"
    with says(FormatError, said):
        values.compare()
    one = Values("f.h5", 0)
    one.add_run(100, 10, "a")
    one.add_run(100, 10, "b")  # all of them: a second name would be a link
    with pytest.raises(FormatError):
        one.compare()


@pytest.mark.parametrize("base", [0, 512])
def test_chunks_share_no_bytes(base: int) -> None:
    values = Values("f.h5", base)
    values.add_run(100, 10, "a")
    values.add_chunked(chunked((200, 8), (208, 8)), "b")
    values.compare_chunks()
    values = Values("f.h5", base)
    values.add_chunked(chunked((200, 8), (204, 8)), "b")
    said = "f.h5: tensor 'b' at byte 204: corrupt: its 8 bytes overlap the 8 of 'b' at byte 200: tensors share none"
    for _ in range(2):  # an error is no comparison
        with says(FormatError, said):
            values.compare_chunks()


def test_chunks_and_runs_share_no_bytes() -> None:
    """But where the file does not begin with the signature: offsets may count from either."""
    for base, told in ((0, pytest.raises(FormatError)), (512, contextlib.nullcontext())):
        values = Values("f.h5", base)
        values.add_run(100, 10, "a")
        values.add_chunked(chunked((104, 8)), "b")
        with told:
            values.compare_chunks()


def test_chunks_are_compared_once() -> None:
    asked = []
    handle = SimpleNamespace(chunk_iter=asked.append)
    values = Values("f.h5", 0)
    values.add_chunked(handle, "b")
    values.compare_chunks()
    values.compare_chunks()
    assert len(asked) == 1


@pytest.mark.parametrize("error", [RuntimeError, OSError])
def test_an_index_that_cannot_be_read_is_an_error_when_it_is(error: type[Exception]) -> None:
    def fails(_: Callable[[Any], object]) -> None:
        raise error("corrupt")

    values = Values("f.h5", 0)
    values.add_chunked(SimpleNamespace(chunk_iter=fails), "a")
    values.add_chunked(chunked((100, 8), (104, 8)), "b")
    with pytest.raises(FormatError):
        values.compare_chunks()
    values.close()
    values.compare_chunks()
