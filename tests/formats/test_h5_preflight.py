from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.support import says
from weightport.errors import BudgetExceeded, FormatError
from weightport.formats import keras_h5
from weightport.formats._h5_preflight import MAGIC, Preflight, superblock
from weightport.formats._io import ByteFile
from weightport.tensors import Budget


class Alone(keras_h5.KerasH5Source):
    """A file in a process that may be lost, which this one is not."""

    alone = True


def refused(path: Path) -> str:
    with pytest.raises(FormatError) as caught:
        keras_h5.open_source(str(path))
    return str(caught.value).removeprefix(str(path))


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.arange(4.0)
    return tmp_path / "secret.h5"


def test_external_link(tmp_path: Path, secret: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["deep/x"] = h5py.ExternalLink(str(secret), "/x")
    assert refused(tmp_path / "a.h5") == ": 'deep/x' is an external link, which may lead out of the file: refused"


def test_soft_link_through_an_external_one(tmp_path: Path, secret: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = h5py.SoftLink("/z/x")
        file["z"] = h5py.ExternalLink(str(secret), "/")
    assert "is an external link" in refused(tmp_path / "a.h5")


def test_external_storage(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(32))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (4,), "f8", external=[(str(tmp_path / "secret"), 0, 32)])
    assert refused(tmp_path / "a.h5") == ": tensor 'x': external storage: its values lie in another file: refused"


def test_virtual_dataset(tmp_path: Path, secret: Path) -> None:
    layout = h5py.VirtualLayout((4,), "f8")
    layout[:] = h5py.VirtualSource(str(secret), "x", (4,))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_virtual_dataset("x", layout)
    assert refused(tmp_path / "a.h5") == ": tensor 'x': a virtual dataset, whose values lie in other files: refused"


@pytest.mark.parametrize("target", ["/a", "/nowhere", "a/b"])
def test_soft_links_that_lead_nowhere(tmp_path: Path, target: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = h5py.SoftLink(target)
    assert ": the soft link 'a' leads nowhere, or in a circle: " in refused(tmp_path / "a.h5")


def test_circles_of_hard_links_end(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("g")
        group["up"] = file["/"]
        group["self"] = group
        group["soft"] = h5py.SoftLink("/g")
        file["g/x"] = np.arange(3)
        file["g/again"] = file["g/x"]
    with keras_h5.open_source(str(tmp_path / "a.h5")) as source:
        assert list(source.specs()) == ["g/again", "g/x"]


def moved(folder: Path, by: int, kind: Any = "f4") -> Path:
    """Two datasets of 64 bytes in a file, the second of which is said to begin so many bytes behind the first."""
    path = folder / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("v", (64 // (16 if kind != "f4" else 4),), kind)[:] = 1 if kind == "f4" else "text"
        file["again"], file["soft"] = file["v"], h5py.SoftLink("/v")
        file["w"], file["z"] = np.arange(16, dtype="f4"), np.zeros((0, 4))
        first, second = (file[name].id.get_offset() for name in "vw")
    raw = path.read_bytes()
    place = second.to_bytes(8, "little")
    assert raw.count(place) == 1
    path.write_bytes(raw.replace(place, (first + by).to_bytes(8, "little")))
    return path


@pytest.mark.parametrize("kind", ["f4", h5py.string_dtype()], ids=["numbers", "text"])
@pytest.mark.parametrize("by", [0, 4, 60])
@pytest.mark.parametrize("untrusted", [False, True])
def test_datasets_that_overlap(tmp_path: Path, kind: Any, by: int, untrusted: bool) -> None:
    path = moved(tmp_path, by, kind)
    with h5py.File(path) as file:
        at = file["v"].id.get_offset()
    with pytest.raises(FormatError) as caught:
        keras_h5.open_source(str(path), budget=Budget(isolated=untrusted))
    message = str(caught.value).removeprefix(f"{path}: ")
    assert message == (
        f"tensor 'w' at byte {at + by}: corrupt: its 64 bytes overlap the 64 of 'again' at byte {at}: "
        "tensors share none"
    )


def test_datasets_side_by_side(tmp_path: Path) -> None:
    with keras_h5.open_source(str(moved(tmp_path, 64))) as source:
        assert list(source.specs()) == ["again", "v", "w", "z", "soft"]


def with_chunks(folder: Path, number: int, to: Callable[[h5py.File], int], **options: Any) -> str:
    """Two chunked datasets and one that is not; a chunk of ``x`` moved to another place."""
    path = folder / "a.h5"
    with h5py.File(path, "w", **options) as file:
        for name in "xy":
            file.create_dataset(name, data=np.arange(24, dtype="f4").reshape(4, 6), chunks=(2, 3))
        file["z"] = np.arange(24, dtype="f4")
        old, new = file["x"].id.get_chunk_info(number).byte_offset, to(file)
    block = options.get("userblock_size", 0)
    raw = path.read_bytes()
    assert raw.count((old - block).to_bytes(8, "little")) == 1
    path.write_bytes(raw.replace((old - block).to_bytes(8, "little"), (new - block).to_bytes(8, "little")))
    return str(path)


def chunk(name: str, number: int, by: int = 0) -> Callable[[h5py.File], int]:
    return lambda file: int(file[name].id.get_chunk_info(number).byte_offset) + by


CHUNKS = [
    (chunk("x", 0), "tensor 'x' at byte {at}: corrupt: its 24 bytes overlap the 24 of 'x' at byte {at}"),
    (chunk("x", 0, 20), "tensor 'x' at byte {at}: corrupt: its 24 bytes overlap the 24 of 'x' at byte {before}"),
    (chunk("y", 3, 4), "tensor 'x' at byte {at}: corrupt: its 24 bytes overlap the 24 of 'y' at byte {before}"),
    (lambda file: file["z"].id.get_offset() + 8,
     "tensor 'x' at byte {at}: corrupt: its 24 bytes overlap the 96 of 'z' at byte {before}"),
]  # fmt: skip


@pytest.mark.parametrize(("to", "message"), CHUNKS)
def test_chunks_that_overlap(tmp_path: Path, to: Callable[[h5py.File], int], message: str) -> None:
    path = with_chunks(tmp_path, 2, to)
    with h5py.File(path) as file:
        at = int(file["x"].id.get_chunk_info(2).byte_offset)
    before = at - {"'x' at byte {before}": 20, "'y' at byte {before}": 4, "'z' at byte {before}": 8}.get(
        message[-20:], 0
    )
    with keras_h5.open_source(path) as source:
        assert list(source.specs()) == ["x", "y", "z"]  # what is read is compared, and not before
        assert source.read("z").tolist() == list(range(24))
        for name in "xyx":
            with says(FormatError, f"{path}: {message.format(at=at, before=before)}: tensors share none"):
                source.read(name)


def test_chunks_that_overlap_behind_a_block(tmp_path: Path) -> None:
    path = with_chunks(tmp_path, 2, chunk("x", 0), userblock_size=512)
    with (
        keras_h5.open_source(path) as source,
        pytest.raises(FormatError, match="its 24 bytes overlap the 24 of 'x' at byte"),
    ):
        source.read("y")
    path = with_chunks(tmp_path, 2, chunk("x", 2), userblock_size=512)
    with keras_h5.open_source(path) as source:
        assert all(source.read(name).reshape(-1).tolist() == list(range(24)) for name in "xyz")


def test_unknown_filter(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((4,))
        plist.set_filter(307, h5py.h5z.FLAG_OPTIONAL, ())
        h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_DOUBLE, h5py.h5s.create_simple((4,)), plist)
    assert refused(tmp_path / "a.h5") == (
        ": tensor 'x': the filter 307 is not built in: refused, rather than to load a library for it"
    )


@pytest.mark.parametrize("chunks", [None, (1 << 20,)])
def test_shapes_that_nothing_fills(tmp_path: Path, chunks: Any) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (1 << 40,), "f8", chunks=chunks)
    assert refused(tmp_path / "a.h5") == (
        ": tensor 'x': 8,796,093,022,208 bytes of values are claimed, 0 are stored: refused"
    )


def test_a_chunk_larger_than_all(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (4,), "u1", chunks=(1 << 30,), maxshape=(None,))
    assert "1,073,741,824 bytes of values are claimed, 0 are stored" in refused(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: f.create_dataset("x", data=h5py.Empty("f4")), "a dataset without values (null dataspace)"),
        (lambda f: f.create_dataset("x", (2,), [("a", "f4")]), "the data type [('a', '<f4')] is not supported"),
        (lambda f: f.create_dataset("x", (2,), h5py.ref_dtype), "the data type |O is not supported"),
        (lambda f: f.create_dataset("x", (2,), "V1"), "the data type |V1 is not supported"),
    ],
)
def test_what_is_no_tensor(tmp_path: Path, make: Any, message: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        make(file)
    got = refused(tmp_path / "a.h5")
    assert got.startswith(": tensor 'x': ")
    assert message.split(" [", maxsplit=1)[0] in got


def looked_over(path: Path) -> Preflight:
    return Preflight(ByteFile(path), 0, Budget())


def test_what_is_no_dataset_is_passed_over(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["type"] = np.dtype("f8")
        file["g/x"] = np.arange(3.0)
        file["soft"] = h5py.SoftLink("/type")
        file["again"] = h5py.SoftLink("/g/x")
    found = looked_over(tmp_path / "a.h5")
    with contextlib.closing(found):
        assert (list(found.paths), found.groups) == (["g/x", "again"], ["g"])
        assert (found.paths["again"], found.paths["g/x"].nbytes) == (found.paths["g/x"], 24)
        for name in ("", "/", ".", "g\0", "nowhere", "g/x/y"):
            assert found.dataset(found.root, name) is None
            assert found.group(found.root, name) is None
        assert found.group(found.root, "g/x") is None
        assert found.dataset(found.root, "g") is None
        group = found.group(found.root, "./g/")
        assert group is not None
        assert found.dataset(group, "x") is found.paths["g/x"]


def test_a_data_type_that_numpy_does_not_have(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        h5py.h5d.create(file.id, b"x", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((4,)))
    assert refused(tmp_path / "a.h5") == ": tensor 'x': a data type that numpy does not have"


def test_numbers_of_sizes_that_numpy_does_not_have(tmp_path: Path) -> None:
    """h5py names the nearest that HDF5 could convert them to."""
    for base, size, told in (
        (h5py.h5t.STD_I32LE, 3, "a data type that numpy does not have"),
        (h5py.h5t.IEEE_F32LE, 5, "the data type <f8 is not supported"),
    ):
        kind = base.copy()
        kind.set_size(size)
        with h5py.File(tmp_path / "a.h5", "w") as file:
            h5py.h5d.create(file.id, b"x", kind, h5py.h5s.create_simple((4,)))
        assert refused(tmp_path / "a.h5") == f": tensor 'x': {told}"


@pytest.mark.parametrize(
    ("size", "said", "found"),
    [
        (2, None, "bfloat16"),
        (2, "bfloat16", "bfloat16"),
        (1, "float8_e4m3fn", "float8_e4m3fn"),
        (2, "float8_e4m3fn", None),
        (4, "float32", "float32"),
        (1, None, None),
        (2, "not a dtype", None),
        (2, "nonsense", None),
        (8, "object", None),
        (8, "datetime64", None),
        (1, "S1", None),
    ],
)
def test_opaque_values(tmp_path: Path, size: int, said: str | None, found: str | None) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.zeros(3, f"V{size}")
        if said is not None:
            file["x"].attrs["dtype"] = said
    if found is None:
        assert refused(tmp_path / "a.h5") == f": tensor 'x': the data type |V{size} is not supported"
        return
    with keras_h5.open_source(str(tmp_path / "a.h5")) as source:
        assert source.specs()["x"].dtype.name == found


def test_what_newer_versions_of_hdf5_find_themselves(tmp_path: Path) -> None:
    """Values and attributes beyond the end of the file: HDF5 1.14 and before would believe them."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(4.0)
        file["x"].attrs["a"] = np.arange(3)
        file.create_dataset("y", data=np.arange(4.0), chunks=(4,))
        at = file["x"].id.get_offset()
    found = looked_over(path)
    with contextlib.closing(found):
        for size, name, what in (
            (at + 31, "x", f"truncated or corrupt: 32 bytes of values at byte {at}, the file has {at + 31}"),
            (31, "y", "32 bytes are said to be stored, the file has 31"),
        ):
            found._size = size
            found._checked.clear()
            with pytest.raises(FormatError) as caught:
                found.dataset(found.root, name)
            assert str(caught.value) == f"{path}: tensor {name!r}: {what}"
            found._size = size + 1
            assert found.dataset(found.root, name) is not None
        owner = found.paths["x"].handle
        found._size = 23
        with pytest.raises(FormatError) as caught:
            found.attribute(owner, "a")
        assert str(caught.value) == f"{path}: the attribute 'a' of '/x' is corrupt: 24 bytes are claimed"
        found._size = 24
        assert found.attribute(owner, "a").tolist() == [0, 1, 2]


def test_text_of_every_kind(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["text"] = "é"
        file.attrs["bytes"] = np.bytes_(b"\xc3\xa9\xff")
        file.attrs["one"] = np.array([b"x"])
        file.attrs["two"] = np.array([b"x", b"y"])
        file.attrs["number"] = 3
        file.attrs["names"] = [b"a", "é".encode(), b"\xff"]
        file.attrs["part0"], file.attrs["part1"] = [b"a"], ["b", "c"]
        file.attrs["none"] = np.zeros(0, "S1")
    found = looked_over(tmp_path / "a.h5")
    with contextlib.closing(found):
        told = {name: found.text(found.root, name) for name in ("text", "bytes", "one", "two", "number", "nowhere")}
        assert told == {"text": "é", "bytes": "é\ufffd", "one": "x", "two": None, "number": None, "nowhere": None}
        assert found.strings(found.root, "names") == ["a", "é", "\udcff"]
        assert found.strings(found.root, "part") == ["a", "b", "c"]
        assert found.strings(found.root, "none") == []
        assert found.strings(found.root, "nowhere") is None
        for name in ("number", "text"):
            with pytest.raises(FormatError) as caught:
                found.strings(found.root, name)
            assert str(caught.value) == f"{tmp_path / 'a.h5'}: the attribute {name!r} of '/' is no list of names"


@pytest.mark.parametrize(("at", "found"), [(0, 0), (512, 512), (1024, 1024), (4096, 4096), (256, None), (1, None)])
def test_where_the_signature_stands(tmp_path: Path, at: int, found: int | None) -> None:
    (tmp_path / "x").write_bytes(bytes(at) + MAGIC)
    with ByteFile(tmp_path / "x") as file:
        assert superblock(file) == found


def test_the_budget_of_the_walk(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a/b/x"] = np.arange(3)
    for budget, message in (
        (Budget(tensors=2), "tensors: 3 asked for, at most 2 allowed"),
        (Budget(depth=1), "depth: 2 asked for, at most 1 allowed"),
        (Budget(header_bytes=96), "header bytes: 97 asked for, at most 96 allowed"),
    ):
        with pytest.raises(BudgetExceeded, match=message), ByteFile(tmp_path / "a.h5") as file:
            Preflight(file, 0, budget)


def test_paths_that_multiply(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("g" * 60_000)
        one = group.create_dataset("0", data=np.arange(3))
        for number in range(1, 1300):
            group[str(number)] = one
    assert (tmp_path / "a.h5").stat().st_size < 400_000
    assert refused(tmp_path / "a.h5").startswith(
        ": names: 16,801,006 bytes, at most 16,777,216 for a file of 179,608: "
    )


def text_file(path: Path) -> bytes:
    with h5py.File(path, "w", userblock_size=512) as file:
        file.attrs["layer_names"] = ["déjà", "b"]
        file["déjà/déjà/w"] = np.zeros(2)
        file.create_group("b").attrs["weight_names"] = [b"text"]
        file["déjà"].attrs["weight_names"] = ["déjà/w"]
        file.create_dataset("b/text", data=["first string", "second"])
    return path.read_bytes()


def test_variable_strings(tmp_path: Path) -> None:
    text_file(tmp_path / "a.h5")
    with keras_h5.open_source(str(tmp_path / "a.h5")) as source:
        assert list(source.specs()) == ["déjà/w", "b/text"]
        for _ in range(2):
            assert source.read("b/text").tolist() == [b"first string", b"second"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (5, (1 << 32) - 1, "refers to 4294967295 bytes that the heap does not hold"),
        (12, 100, "corrupt: the tensor 'b/text' refers to 100 bytes that the heap does not hold"),
    ],
)
def test_lengths_that_the_heap_does_not_hold(tmp_path: Path, old: int, new: int, message: str) -> None:
    raw = bytearray(text_file(tmp_path / "a.h5"))
    heap = raw.index(b"GCOL") - 512
    needle = old.to_bytes(4, "little") + heap.to_bytes(8, "little")
    at = raw.index(needle) if old == 12 else raw.index((6).to_bytes(4, "little") + heap.to_bytes(8, "little"))
    raw[at : at + 4] = new.to_bytes(4, "little")
    (tmp_path / "a.h5").write_bytes(raw)
    with pytest.raises(FormatError, match=message), keras_h5.open_source(str(tmp_path / "a.h5")) as source:
        source.read("b/text")


def test_a_heap_that_is_no_chain(tmp_path: Path) -> None:
    raw = bytearray(text_file(tmp_path / "a.h5"))
    at = raw.index(b"GCOL") + 16 + 8
    raw[at : at + 8] = b"\xff" * 8
    (tmp_path / "a.h5").write_bytes(raw)
    assert refused(tmp_path / "a.h5").endswith("the attribute 'layer_names' of '/' refers to is no chain")
    raw = bytearray(text_file(tmp_path / "a.h5"))
    at, end = raw.index(b"GCOL") + 16, raw.index(b"GCOL") + 4096
    while raw[at]:
        at += 16 + -(-int.from_bytes(raw[at + 8 : at + 16], "little") // 8) * 8
    assert int.from_bytes(raw[at + 8 : at + 16], "little") == end - at
    raw[at + 8 : at + 16] = bytes(8)  # free space of no size: HDF5 1.14 walks it for ever
    (tmp_path / "a.h5").write_bytes(raw)
    assert refused(tmp_path / "a.h5").endswith("the attribute 'layer_names' of '/' refers to is no chain")
    raw[raw.index(b"GCOL")] = 0
    (tmp_path / "a.h5").write_bytes(raw)
    assert refused(tmp_path / "a.h5").endswith("the attribute 'layer_names' of '/' refers to a heap that is none")


@pytest.mark.parametrize("order", [False, True])
def test_a_heap_of_newer_files_that_is_no_chain(tmp_path: Path, order: bool) -> None:
    """Their object headers have checksums, their heap has none: HDF5 walks it for ever."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="latest", track_order=order) as file:
        file.attrs["a"] = 1
        file.attrs["keras_version"] = "2.15.0"
        file.attrs["layer_names"] = ["d"]
        file.create_group("d").attrs["weight_names"] = np.array([], "S1")
    with keras_h5.open_source(str(path)) as source:
        assert source.facts([]) == {"keras_version": "2.15.0"}
    raw = bytearray(path.read_bytes())
    at = raw.index(b"GCOL") + 16 + 8
    raw[at : at + 8] = b"\xff" * 8
    path.write_bytes(raw)
    assert refused(path).endswith(" refers to is no chain")


def test_variable_length_of_no_known_kind(tmp_path: Path) -> None:
    """HDF5 1.14 crashes."""
    raw = bytearray(text_file(tmp_path / "a.h5"))
    at = raw.index(b"\x19\x01\1\0\x10\0\0\0")
    raw[at + 1] = 0x09
    (tmp_path / "a.h5").write_bytes(raw)
    assert refused(tmp_path / "a.h5").endswith("corrupt: the attribute 'layer_names' of '/' is of no known type")


def test_variable_length_out_of_the_header(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="latest") as file:
        for number in range(9):
            file.attrs[f"a{number}"] = number
        file.attrs["layer_names"] = ["d"]
    what = "the attribute 'layer_names' of '/' cannot be checked: its length varies, and it is stored apart"
    told = f": {what}; keep at most 8 attributes, or text of fixed length"
    assert refused(path) == told
    with pytest.raises(FormatError) as caught, ByteFile(str(path)) as opened:  # as the process that may be lost does
        Alone(str(path), file=opened)
    assert str(caught.value) == f"{path}{told}"


def test_more_values_than_are_stored(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(16, dtype="f4")
        at = file["x"].id.get_offset()
    raw, place = path.read_bytes(), at.to_bytes(8, "little")
    assert raw.count(place + (64).to_bytes(8, "little")) == 1
    path.write_bytes(raw.replace(place + (64).to_bytes(8, "little"), place + (32).to_bytes(8, "little")))
    assert refused(path) == ": tensor 'x': corrupt: 64 bytes of values, of which 32 are stored"
