"""Chunks of HDF5, decoded here: as h5py decodes them, and damaged parameters are errors."""

from __future__ import annotations

import struct
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.formats._arrays import indexed, same
from weightport.errors import FormatError
from weightport.formats import _h5_chunks, _h5_file, keras_h5
from weightport.formats._h5_file import each_chunk, opened
from weightport.formats._io import ByteFile
from weightport.formats._zipmember import Stored

FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"compression": "gzip"},
    {"compression": "gzip", "shuffle": True},
    {"fletcher32": True},
    {"compression": "gzip", "shuffle": True, "fletcher32": True},
    {"compression": "lzf"},  # HDF5's
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(indexed(), st.sampled_from(FILTERS), st.data())
def test_parts_are_those_of_h5py(tmp_path: Path, case: Any, how: dict[str, Any], draw: st.DataObject) -> None:
    array, index = case
    if not array.ndim or not array.size:
        return
    chunks = tuple(draw.draw(st.integers(1, dim)) for dim in array.shape)
    block, order = draw.draw(st.sampled_from([0, 512])), draw.draw(st.sampled_from("<>"))
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", userblock_size=block) as file:
        file.create_dataset("x", data=array.astype(array.dtype.newbyteorder(order)), chunks=chunks, **how)
    with keras_h5.open_source(str(path)) as source:
        assert same(source.read("x", index), np.array(array[index], order="C"))
        assert same(source.read("x"), array)


@pytest.mark.parametrize("fill", [None, 2.5])
def test_chunks_that_were_never_written_have_the_fill_value(tmp_path: Path, fill: float | None) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made = file.create_dataset("x", (6, 4), "f4", chunks=(2, 3), fillvalue=fill, compression="gzip")
        made[2:4] = 1
    with keras_h5.open_source(str(tmp_path / "a.h5")) as source:
        found = source.read("x")
    assert found[2:4].tolist() == [[1] * 4] * 2
    assert set(np.delete(found, [2, 3], 0).reshape(-1).tolist()) == {fill or 0}


def test_a_filter_that_a_chunk_left_out(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made = file.create_dataset("x", (4,), "i2", chunks=(2,), compression="gzip")
        made.id.write_direct_chunk((0,), b"\1\0\2\0", filter_mask=1)
        made[2:] = 3
    with keras_h5.open_source(str(tmp_path / "a.h5")) as source:
        assert source.read("x").tolist() == [1, 2, 3, 3]


def test_few_chunks_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.arange(60, dtype="f4").reshape(20, 3)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=array, chunks=(2, 3))
    monkeypatch.setattr(_h5_chunks, "CACHE", 60)
    with keras_h5.open_source(str(tmp_path / "a.h5")) as source:
        for row in (0, 1, 7, 19, 0):
            assert same(source.read("x", (slice(row, row + 1),)), array[row : row + 1])
        assert source._chunks._last is not None
        chunks = source._chunks._last[1]
        assert chunks is not None
        assert len(chunks._kept) == 2


@pytest.mark.parametrize(
    ("content", "how", "message"),
    [
        (b"\0" * 16, {"compression": "gzip"}, "a chunk does not decompress"),
        (b"x\x9cc\0\0\0\1\0\1", {"compression": "gzip"}, "a chunk has 1 bytes, 16 are needed"),
        (b"x\x9cc\0\0\0\1", {"compression": "gzip"}, "a chunk is longer or shorter than it should be"),
        (b"\0" * 16 + b"abcd", {"fletcher32": True}, "the checksum of a chunk is another"),
        (b"\0" * 15, {}, "a chunk has 15 bytes, 16 are needed"),
    ],
)
def test_damaged_chunks(tmp_path: Path, content: bytes, how: dict[str, Any], message: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (4,), "f4", chunks=(4,), **how).id.write_direct_chunk((0,), content)
    with keras_h5.open_source(str(tmp_path / "a.h5")) as source, pytest.raises(FormatError) as caught:
        source.read("x")
    assert str(caught.value) == f"{tmp_path / 'a.h5'}: tensor 'x': truncated or corrupt: {message}"


def test_chunks_of_other_axes_than_the_values(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (4, 4), "f4", chunks=(2, 2))
    sizes = struct.pack("<3I", 2, 2, 4)  # of a chunk, and of an element
    layout = b"\3\2\3" + b"\xff" * 8
    raw = path.read_bytes()
    assert raw.count(layout + sizes) == 1
    path.write_bytes(raw.replace(layout + sizes, b"\3\2\2" + b"\xff" * 8 + sizes[4:] + bytes(4)))
    with keras_h5.open_source(str(path)) as source, pytest.raises(FormatError) as caught:
        source.read("x")
    assert str(caught.value) == f"{path}: tensor 'x': corrupt: chunks of other axes than the values"


def test_shuffled_by_more_than_an_element_has(tmp_path: Path) -> None:
    """HDF5's own filter reads beyond its memory."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.arange(4, dtype="f4"), chunks=(4,), shuffle=True)
    data = path.read_bytes()
    # Of the filter pipeline: the identifier 2, the size of its name, flags, one parameter; the name; the parameter.
    at = data.index(b"\2\0\x08\0\1\0\1\0shuffle\0\4\0\0\0") + 16
    path.write_bytes(data[:at] + b"\0\0\0\x10" + data[at + 4 :])
    with keras_h5.open_source(str(path)) as source, pytest.raises(FormatError, match="shuffled by 268435456"):
        source.read("x")


def test_numbers_that_numpy_does_not_have(tmp_path: Path) -> None:
    """h5py calls them by the nearest that it has; their bytes are others."""
    odd = h5py.h5t.IEEE_F32LE.copy()
    odd.set_fields(31, 24, 7, 0, 24)
    odd.set_ebias(63)
    with h5py.File(tmp_path / "odd", "w") as file:
        h5py.h5d.create(file.id, b"x", odd, h5py.h5s.create_simple((4,)))
    with pytest.raises(FormatError, match="the data type <f8 is not supported"):
        keras_h5.open_source(str(tmp_path / "odd"))
    with h5py.File(tmp_path / "half", "w") as file:
        file["x"] = np.arange(4, dtype="<i4")
    data = (tmp_path / "half").read_bytes()
    kind = bytes.fromhex("10080000 04000000 0000")  # an integer of four bytes, from bit 0; then how many bits it has
    assert data.count(kind + b"\x20\0") == 1
    (tmp_path / "half").write_bytes(data.replace(kind + b"\x20", kind + b"\x0c"))
    with pytest.raises(FormatError, match=r"unusual|not supported"):
        keras_h5.open_source(str(tmp_path / "half"))


def test_fletcher32_is_that_of_hdf5(tmp_path: Path) -> None:
    for size in (1, 2, 7, 721, 5000):
        data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
        with h5py.File(tmp_path / "a.h5", "w") as file:
            made = file.create_dataset("x", data=data, chunks=(size,), fletcher32=True)
            raw = made.id.read_direct_chunk((0,))[1]
        assert _h5_chunks.fletcher32(raw[:-4]) == int.from_bytes(raw[-4:], "little")
    assert _h5_chunks.fletcher32(bytes(10)) == 0
    assert _h5_chunks.fletcher32(b"\xff" * 4) == 0xFFFFFFFF


def with_filter(path: Path, code: int, dtype: str) -> bytes:
    """A dataset ``x`` in chunks of four values, with one of the filters that HDF5 decodes itself."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((4,))
    if code == h5py.h5z.FILTER_SCALEOFFSET:
        plist.set_scaleoffset(h5py.h5z.SO_INT if dtype == "i4" else h5py.h5z.SO_FLOAT_DSCALE, 3)
    elif code == h5py.h5z.FILTER_SZIP:
        plist.set_szip(4, 4)
    else:
        plist.set_filter(code, 0, ())
    with h5py.File(path, "w", libver="earliest") as file:
        kind, space = h5py.h5t.py_create(np.dtype(dtype)), h5py.h5s.create_simple((8,))
        made = h5py.h5d.create(file.id, b"x", kind, space, plist)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(8, dtype=dtype))
    return path.read_bytes()


OTHER = [
    (code, name, dtype)
    for code, name, dtypes in (
        (5, b"nbit", ("u2", "f4", ">i4")),
        (6, b"scaleoffset", ("i4", "f4")),
        (4, b"szip", ("f4",)),
    )
    for dtype in dtypes
]


@pytest.mark.parametrize(("code", "name", "dtype"), OTHER)
def test_filters_that_hdf5_decodes(tmp_path: Path, code: int, name: bytes, dtype: str) -> None:
    """Their parameters have to be those of the values: with any other, HDF5 would crash."""
    path = tmp_path / "a.h5"
    data = with_filter(path, code, dtype)
    with keras_h5.open_source(str(path)) as source:
        assert np.array_equal(source.read("x"), np.arange(8))
    at = data.index(name + b"\0")
    (count,) = struct.unpack_from("<H", data, at - 2)
    values = at + -(-(len(name) + 1) // 8) * 8
    broken = [data[: at - 2] + struct.pack("<H", n) + data[at:] for n in (0, count - 1)]
    sizes = {5: (0, 2, 3, 4, 5, 6, 7), 6: (0, 2, 3, 4, 5, 6, 7), 4: (1, 2, 3)}[code]
    for number in sizes:
        place = values + 4 * number
        broken.append(data[:place] + struct.pack("<I", 77_777) + data[place + 4 :])
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(FormatError) as caught:
            keras_h5.open_source(str(path))
        text = f"{path}: tensor 'x': corrupt: the parameters of its filter are not those of such values"
        assert str(caught.value) == text


def test_where_chunks_lie_is_asked_once() -> None:
    info = namedtuple("info", "chunk_offset byte_offset size filter_mask")

    class Handle:
        """A dataset of which rows were cut off."""

        shape, asked = (5, 4), 0

        def chunk_iter(self, add: Callable[[Any], None]) -> None:
            self.asked += 1
            for start, offset in (((4, 2), 500), ((0, 0), 100), ((2, 0), 300), ((6, 0), 700), ((0, 4), 900)):
                add(info(start, offset, 16, offset // 100))

    handle = Handle()
    index = _h5_chunks._Index(handle, (2, 2))
    assert index.find((0, 0)) == (100, 16, 1)
    assert index.find((2, 0)) == (300, 16, 3)
    assert index.find((4, 2)) == (500, 16, 5)
    assert [index.find(start) for start in ((0, 2), (2, 2), (4, 0))] == [None] * 3
    assert handle.asked == 1
    handle.shape = (2, 2)
    assert _h5_chunks._Index(handle, (2, 2)).find((0, 0)) == (100, 16, 1)


def test_what_calls_back_is_closed_before_python_ends(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.arange(3)
    with ByteFile(tmp_path / "a.h5") as bytes_of_it:
        part = Stored(bytes_of_it, 0, bytes_of_it.size, None)
        one, other = opened(part), opened(part)
        other.close()
        _h5_file._close_all()
        assert not one
        assert not other


def test_chunks_of_an_older_hdf5() -> None:
    """Before 1.12.3 there is no walk through the index."""

    class Handle:
        """A dataset of three chunks."""

        def get_num_chunks(self) -> int:
            return 3

        def get_chunk_info(self, number: int) -> int:
            return 100 + number

    found: list[int] = []
    each_chunk(Handle(), found.append)
    assert found == [100, 101, 102]
