from __future__ import annotations

import contextlib
import io
import struct
import zipfile
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

from tests.formats._arrays import EXTRA, NUMPY, indexed, of_every_dtype, same, specs_of, tiles_of
from weightport.errors import BudgetExceeded, Error, FormatError, TensorNotFound
from weightport.formats import npz
from weightport.tensors import Budget, Extent, TensorSpec

PLAIN = "'fortran_order': False, 'shape': "


def npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    raw = header.encode()
    size = struct.pack("<H" if version == 1 else "<I", len(raw))
    return b"\x93NUMPY" + bytes([version, 0]) + size + raw + data


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        npz.open_source(str(path))
    return str(caught.value).removeprefix(str(path))


def test_round_trip_of_every_dtype(tmp_path: Path) -> None:
    arrays = of_every_dtype([*NUMPY, "complex128", *EXTRA])
    arrays["words"] = np.array([[b"a", b""], [b"\xc3\xa9", b"x\0y"]], object)
    path = str(tmp_path / "a.npz")
    npz.write(path, specs_of(arrays), tiles_of(arrays, 1), metadata={"k": "é"})
    with npz.open_source(path) as source:
        assert (source.format, source.metadata) == ("npz", {"k": "é"})
        assert list(source.specs()) == list(arrays)
        for name, array in arrays.items():
            assert same(source.read(name), array), name
            assert source.specs()[name].shape == array.shape
    with np.load(path) as loaded:  # without pickle
        for name, array in arrays.items():
            if array.dtype.name in NUMPY:
                assert same(loaded[name], array)
        assert loaded["scope/bfloat16"].dtype == np.dtype("V2")
        assert same(loaded["scope/float8_e4m3fn"].view(ml_dtypes.float8_e4m3fn), arrays["scope/float8_e4m3fn"])
        assert loaded["words"].tolist() == arrays["words"].tolist()


def test_same_input_same_bytes(tmp_path: Path) -> None:
    arrays = of_every_dtype(NUMPY)
    for name, rows in (("a", 1), ("b", 5)):
        npz.write(str(tmp_path / name), specs_of(arrays), tiles_of(arrays, rows), metadata={"k": "v"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_member_is_what_numpy_saves(tmp_path: Path) -> None:
    arrays = {"x": np.arange(6.0).reshape(2, 3), "y": np.array(3, np.int8), "z": np.zeros((0,), bool)}
    npz.write(str(tmp_path / "a.npz"), specs_of(arrays), tiles_of(arrays))
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        for name, array in arrays.items():
            expected = io.BytesIO()
            np.save(expected, array)
            assert archive.read(name + ".npy") == expected.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reads_what_numpy_writes(tmp_path: Path, save) -> None:
    arrays = {
        k: v for k, v in of_every_dtype([*NUMPY, "complex128", "bfloat16", "float8_e5m2"]).items() if k != "déjà/vu"
    }
    arrays |= {"fortran": np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)), "big": np.arange(5, dtype=">i4")}
    arrays |= {"é": np.array(["é", "bc"]), "s": np.array([b"ab", b"c"]), "bigtext": np.array(["é", "bc"], ">U2")}
    save(tmp_path / "a.npz", **arrays)
    with npz.open_source(str(tmp_path / "a.npz")) as source:
        assert list(source.specs()) == list(arrays)
        for name, array in arrays.items():
            if array.dtype.kind in "SU":
                expected = [v if isinstance(v, bytes) else v.encode() for v in array.tolist()]
                assert source.read(name).tolist() == expected
                assert source.read(name, (slice(1, 2),)).tolist() == expected[1:]
            else:
                assert same(source.read(name), np.array(array, array.dtype.newbyteorder("="), order="C")), name


@settings(max_examples=60, deadline=None)
@given(indexed())
def test_partial_reads_are_slices(tmp_path_factory: pytest.TempPathFactory, case: tuple) -> None:
    array, index = case
    folder = tmp_path_factory.mktemp("npz")
    swapped = array.astype(array.dtype.newbyteorder(">"))
    np.savez(folder / "stored.npz", c=array, f=np.array(array, order="F"), b=swapped)
    np.savez_compressed(folder / "deflated.npz", c=array, f=np.array(array, order="F"), b=swapped)
    npz.write(str(folder / "own.npz"), specs_of({"c": array}), tiles_of({"c": array}))
    for path in folder.iterdir():
        with npz.open_source(str(path)) as source:
            for name in source.specs():
                assert same(source.read(name, index), np.array(array[index], order="C"))


def test_deflated_rows_in_any_order(tmp_path: Path) -> None:
    array = np.random.default_rng(1).normal(size=(300, 700))
    np.savez_compressed(tmp_path / "a.npz", x=array)
    with npz.open_source(str(tmp_path / "a.npz")) as source:
        for low in (0, 100, 200, 50, 299, 0):
            assert same(source.read("x", (slice(low, low + 60),)), array[low : low + 60])


def test_single_array(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float16).reshape(3, 2)
    np.save(tmp_path / "embedding.npy", array)
    with npz.open_source(str(tmp_path / "embedding.npy")) as source:
        assert source.format == "npy"
        assert list(source.specs()) == ["embedding"]
        assert same(source.read("embedding", (slice(1, 3),)), array[1:])


def test_zip64(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("x.npy", "w", force_zip64=True) as member:
        np.save(member, np.arange(3))
    with npz.open_source(str(tmp_path / "a.npz")) as source:
        assert source.read("x").tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("    ", "the array's header is not as .npy files have it"),
        ("{'descr': '<f4', 'fortran_order': False}", "the array's header is not as .npy files have it"),
        ("{'descr': '<f4', 'descr': '<f4', 'shape': (1,), }", "the array's header says 'descr' twice"),
        ("{'descr': [('a', '<f4')], @(1,), }", "structured arrays are not supported"),
        ("{'descr': '<f4', @(1 2,), }", "the array's shape is no tuple of sizes"),
        ("{'descr': '<M8[ns]', @(1,), }", "the dtype '<M8[ns]' is not supported"),
        ("{'descr': 'f4,f4', @(1,), }", "the dtype 'f4,f4' is not supported"),
        ("{'descr': '<f3', @(1,), }", "the dtype '<f3' is not supported"),
        ("{'descr': '|V1', @(1,), }", "the dtype '|V1' could be several and nothing says which"),
        ("{'descr': '<f4', @(__import__('os'),), }", "the array's header is not as .npy files have it"),
        ("('descr': '<f4', @(1,), }", "the array's header is not as .npy files have it"),
        ("{'descr': '<f4', @(1,), } 1", "the array's header is not as .npy files have it"),
        ("{'descr': '<f4', @(1,), 'more': True, }", "the array's header is not as .npy files have it"),
        ("{'descr': True, @(1,), }", "the array's header is corrupt"),
        ("{'descr': '<f4', 'fortran_order': 'False', 'shape': (1,), }", "the array's header is corrupt"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': True, }", "the array's header is corrupt"),
        ("{'descr': '|m8', @(1,), }", "the dtype '|m8' is not supported"),
        ("{'descr': '<f4[2]', @(1,), }", "the dtype '<f4[2]' is not supported"),
        ("{'descr': '<f', @(1,), }", "the dtype '<f' is not supported"),
        ("{'descr': '<f0', @(1,), }", "the dtype '<f0' is not supported"),
        ("{'descr': '<f1234567890', @(1,), }", "the dtype '<f1234567890' is not supported"),
        ("{'descr': '|S9999999999', @(1,), }", "the dtype '|S9999999999' is not supported"),
        ("{'descr': '<U999999999', @(1,), }", "the dtype '<U999999999' is not supported"),
        ("{'descr': '|V4', @(1,), }", "the dtype '|V4' could be several and nothing says which"),
    ],
)
def test_hostile_headers(tmp_path: Path, header: str, message: str) -> None:
    assert refused(tmp_path / "x.npy", npy(header.replace("@", PLAIN))) == f": tensor 'x' at byte 0: {message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x93NUMPY\1\0\0", " at byte 6: truncated, or an unknown version of .npy"),
        (npy("    ", version=4), " at byte 6: truncated, or an unknown version of .npy"),
        (npy("    ", version=0), " at byte 6: truncated, or an unknown version of .npy"),
        (npy(" " * 65_537, version=2), " at byte 8: an array header of 65,537 bytes, at most 65,536 are read"),
        (npy(" " * 65_536, version=2), " at byte 0: the array's header is not as .npy files have it"),
        (
            npy("{'descr': '|O', " + PLAIN + "(1,), }"),
            " at byte 0: a pickled object array: weightport runs no code of a model file; "
            "load it where you trust it and save its arrays without pickle",
        ),
        (
            npy("{'descr': '<i2', " + PLAIN + "(3,), }", b"12345"),
            " at byte 67: truncated or corrupt: 6 bytes of values are announced, 5 are there",
        ),
        (
            npy("{'descr': '<i2', " + PLAIN + "(3,), }", b"12345678"),
            " at byte 73: 2 bytes follow the values of the array; save several arrays as .npz",
        ),
    ],
)
def test_what_is_wrong_and_where(tmp_path: Path, content: bytes, message: str) -> None:
    assert refused(tmp_path / "x.npy", content) == f": tensor 'x'{message}"


@pytest.mark.parametrize("version", [1, 2, 3])
def test_headers_that_numpy_takes(tmp_path: Path, version: int) -> None:
    """Of every version, in any order, with Python 2's long numbers and either kind of quotes."""
    header = "{'shape': (2L, 1), \"descr\": '>i2', 'fortran_order': False}"
    (tmp_path / "x.npy").write_bytes(npy(header, b"\0\1\0\2", version))
    with npz.open_source(str(tmp_path / "x.npy")) as source:
        assert source.read("x").tolist() == [[1], [2]]
        assert source.extent("x") is None
    (tmp_path / "x.npy").write_bytes(npy("{'descr': '?', " + PLAIN + "(2,), }", b"\0\1", version))
    with npz.open_source(str(tmp_path / "x.npy")) as source:
        assert same(source.read("x"), np.array([False, True]))
        start = len(npy("{'descr': '?', " + PLAIN + "(2,), }", b"", version))
        assert source.extent("x") == Extent(str(tmp_path / "x.npy"), start, 2)


def test_text_is_read_in_its_version(tmp_path: Path) -> None:
    """Headers of version 3 are UTF-8, older ones Latin-1; what stands in them is said in the error."""
    for version, said in ((3, "é"), (2, "Ã©")):
        message = refused(tmp_path / "x.npy", npy("{'descr': 'é', " + PLAIN + "(1,), }", version=version))
        assert message == f": tensor 'x' at byte 0: the dtype '{said}' is not supported"


@pytest.mark.parametrize(
    ("comment", "size", "found"),
    [
        ("weightport dtype=float8_e4m3fn", 1, "float8_e4m3fn"),
        ("weightport dtype=uint4", 1, "uint4"),
        ("weightport dtype=bfloat16", 2, "bfloat16"),
        ("", 2, "bfloat16"),
        ("somebody's", 2, "bfloat16"),
        ("weightport dtype=float8_e4m3fn", 2, None),
        ("weightport dtype=float7", 1, None),
        ("weightport dtype=object", 8, None),
        ("float8_e4m3fn", 1, None),
    ],
)
def test_what_a_members_comment_says(tmp_path: Path, comment: str, size: int, found: str | None) -> None:
    info = zipfile.ZipInfo("x.npy")
    info.comment = comment.encode()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr(info, npy(f"{{'descr': '|V{size}', {PLAIN}(3,), }}", bytes(3 * size)))
    if found is None:
        with pytest.raises(FormatError, match=rf"the dtype '\|V{size}' could be several and nothing says which$"):
            npz.open_source(str(tmp_path / "a.npz"))
        return
    with npz.open_source(str(tmp_path / "a.npz")) as source:
        assert (source.specs()["x"].dtype.name, source.read("x").shape) == (found, (3,))


def test_strings_of_characters_that_do_not_exist(tmp_path: Path) -> None:
    content = npy("{'descr': '<U1', " + PLAIN + "(2,), }", b"a\0\0\0\xff\xff\xff\xff")
    (tmp_path / "x.npy").write_bytes(content)
    with npz.open_source(str(tmp_path / "x.npy")) as source:
        assert source.read("x", (slice(0, 1),)).tolist() == [b"a"]
        with pytest.raises(FormatError) as caught:
            source.read("x")
    assert str(caught.value) == (
        f"{tmp_path / 'x.npy'}: tensor 'x': corrupt: a string has a character that does not exist"
    )


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "array",
    [
        np.array([["ab", ""], ["é\ud800", "c"]]),
        np.array([["ab", ""], ["é", "c"]], ">U2"),
        np.array([[b"ab", b""], [b"\xff", b"c"]]),
        np.array(["", ""]),
        np.array("text"),
    ],
    ids=["text", "big-endian", "bytes", "of no characters", "scalar"],
)
def test_strings_are_bytes(tmp_path: Path, save, array: np.ndarray) -> None:
    save(tmp_path / "a.npz", x=array, f=np.array(array, order="F"))
    expected = np.empty(array.shape, object)
    for at in np.ndindex(array.shape):
        value = array[at]
        expected[at] = bytes(value) if array.dtype.kind == "S" else str(value).encode("utf-8", "surrogatepass")
    with npz.open_source(str(tmp_path / "a.npz")) as source:
        for name in ("x", "f"):
            assert source.specs()[name] == TensorSpec(np.dtype(object), array.shape, array.nbytes)
            assert same(source.read(name), expected)
            assert source.extent(name) is None
            if array.ndim:
                assert same(source.read(name, (slice(1, None),)), expected[1:])


def test_strings_without_room_for_a_character(tmp_path: Path) -> None:
    for descr in ("<U0", "|S0", "|S"):
        (tmp_path / "x.npy").write_bytes(npy(f"{{'descr': '{descr}', {PLAIN}(2, 3), }}"))
        with npz.open_source(str(tmp_path / "x.npy")) as source:
            assert source.read("x", (slice(1, 2),)).tolist() == [[b"", b"", b""]]


def test_where_arrays_lie(tmp_path: Path) -> None:
    """A place is told only where the bytes there are the array's own, as it is in memory."""
    arrays = {
        "plain": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "row": np.asfortranarray(np.arange(3.0).reshape(1, 3)),
        "big": np.arange(3, dtype=">i4"),
        "bytes": np.arange(3, dtype=">i1"),
        "empty": np.zeros((0, 2)),
    }
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    whole = path.read_bytes()
    with npz.open_source(str(path)) as source:
        told = {name: source.extent(name) for name in arrays}
        assert {name for name, extent in told.items() if extent} == {"plain", "row", "bytes"}
        for name, extent in told.items():
            if extent:
                assert whole[extent.offset : extent.offset + extent.nbytes] == arrays[name].tobytes()
                assert extent.checksum is not None
                around = whole[extent.checksum.offset :][: extent.checksum.size]
                assert extent.checksum.value == zlib.crc32(around)
        assert source.checksum("plain") == "crc32"
        source.read("plain")
        assert source.extent("plain").checksum is None  # it was compared
        assert source.checksum("nowhere") == ""
        with pytest.raises(TensorNotFound) as caught:
            source.extent("plane")
        assert str(caught.value) == f"{path}: no tensor 'plane'; closest: 'plain'"
        with pytest.raises(TensorNotFound, match="closest: 'plain'"):
            source.read("plane")
        assert source.facts(["plain"]) == {}
    np.savez_compressed(path, **arrays)
    with npz.open_source(str(path)) as source:
        assert [source.extent(name) for name in arrays] == [None] * len(arrays)
    np.save(tmp_path / "a.npy", arrays["plain"])
    with npz.open_source(str(tmp_path / "a.npy")) as source:
        assert source.checksum("a") == ""
        assert source.extent("a") == Extent(str(tmp_path / "a.npy"), 128, 48)


def test_parts_of_deflated_arrays(tmp_path: Path) -> None:
    array = np.arange(24, dtype="f4").reshape(4, 3, 2)
    np.savez_compressed(tmp_path / "a.npz", x=array, big=array.astype(">f4"), one=np.array(2.5), none=np.zeros((0, 3)))
    with npz.open_source(str(tmp_path / "a.npz")) as source:
        for index in ((slice(2, 2),), (slice(1, 4, 2), slice(0, 2)), (slice(3, 4), slice(1, 3), slice(1, 2))):
            for name in ("x", "big"):
                assert same(source.read(name, index), np.array(array[index], order="C"))
        assert same(source.read("one"), np.array(2.5))
        assert same(source.read("none"), np.zeros((0, 3)))
        rows = source.read("x", (slice(0, 4, 2),))
        assert rows.base is None  # a part of its own: the rest is not kept in memory with it


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\x93NUMPY", True),
        (b"\x93NUMP", False),
        (b"PK\5\6" + bytes(18), True),
        (b"PK\3\4", False),
        (b"PK\3\4" + bytes(22) + b"\5\0\0\0" + b"x.npy", True),
        (b"PK\3\4" + bytes(22) + b"\5\0\0\0" + b"x.npx", False),
        (b"PK\3\4" + bytes(22) + b"\6\0\0\0" + b"x.npy", False),
        (b"PK\1\2" + bytes(22) + b"\5\0\0\0" + b"x.npy", False),
        (b"", False),
    ],
)
def test_told_by_its_first_bytes(tmp_path: Path, content: bytes, expected: bool) -> None:
    (tmp_path / "x").write_bytes(content)
    assert npz.sniff(str(tmp_path / "x")) is expected


def test_what_cannot_be_opened_is_none(tmp_path: Path) -> None:
    assert not npz.sniff(str(tmp_path))
    assert not npz.sniff(str(tmp_path / "nowhere"))


def test_huge_claims(tmp_path: Path) -> None:
    big = "{'descr': '<f8', 'fortran_order': False, 'shape': (%s,), }"
    assert refused(tmp_path / "x.npy", npy(big % (1 << 40))).endswith(
        "truncated or corrupt: 8796093022208 bytes of values are announced, 0 are there"
    )
    assert "tensor bytes" in refused(tmp_path / "x.npy", npy(big % ", ".join([str(1 << 60)] * 3)))
    assert "an array header of 4,294,967,295 bytes" in refused(
        tmp_path / "x.npy", b"\x93NUMPY\2\0\xff\xff\xff\xff" + b" " * 20
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy(big % 4, b"\0" * 32))
    raw = bytearray((tmp_path / "a.npz").read_bytes())
    at = raw.rindex(b"PK\1\2")
    raw[at + 24 : at + 28] = (1 << 31).to_bytes(4, "little")
    assert "cannot decompress to 2147483648" in refused(tmp_path / "b.npz", bytes(raw))


def test_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    class Boom:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    np.savez(tmp_path / "a.npz", w=np.zeros(2), evil=np.array([Boom()], object))
    with pytest.raises(FormatError) as caught:
        npz.open_source(str(tmp_path / "a.npz"))
    assert "tensor 'evil'" in str(caught.value)
    assert "a pickled object array: weightport runs no code of a model file" in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_odd_archives(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", npy("{'descr': '|b1', 'fortran_order': False, 'shape': (), }", b"\1"))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("x.npy", npy("{'descr': '|b1', 'fortran_order': False, 'shape': (), }", b"\0"))
    with pytest.raises(FormatError, match=r"tensor 'x' at byte \d+: two members have this name"):
        npz.open_source(str(tmp_path / "a.npz"))
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(
        FormatError, match=r"tensor 'readme.txt' at byte 40: the member is no .npy array; is this a zip"
    ):
        npz.open_source(str(tmp_path / "b.npz"))
    with zipfile.ZipFile(tmp_path / "c.npz", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x.npy", b"")
    with pytest.raises(FormatError, match="the compression method 12 is not supported"):
        npz.open_source(str(tmp_path / "c.npz"))
    assert refused(tmp_path / "d", b"hello").startswith(" at byte 5: is no archive: ")


def test_budget(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros((2, 2)), b=np.zeros(2))
    for budget in (Budget(header_bytes=10), Budget(tensors=1), Budget(rank=1), Budget(tensor_bytes=16)):
        with pytest.raises(BudgetExceeded):
            npz.open_source(str(tmp_path / "a.npz"), budget=budget)


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800", "a.npy", "x" * 70_000])
def test_names_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(Error, match="tensor "):
        npz.write(str(tmp_path / "a.npz"), {name: TensorSpec.of("float32", ())}, lambda _: iter([np.float32(0)]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "tensor '': a .npz cannot hold a tensor of this name"),
        ("x" * 65_532, f"tensor '{'x' * 65_532}': a .npz cannot hold a tensor of this name"),
        ("\ud800", "tensor '\\ud800': a .npz cannot hold a tensor of this name"),
        ("\udfff", "tensor '\\udfff': a .npz cannot hold a tensor of this name"),
        ("a.npy", "tensor 'a.npy': a name that ends in .npy would lose its ending"),
    ],
)
def test_what_is_wrong_with_a_name(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(Error) as caught:
        npz.write(str(tmp_path / "a.npz"), {name: TensorSpec.of("float32", ())}, lambda _: iter([np.float32(0)]))
    assert str(caught.value) == f"{tmp_path / 'a.npz'}: {message}"


def test_the_longest_names_and_metadata(tmp_path: Path) -> None:
    path = str(tmp_path / "a.npz")
    arrays = {"x" * 65_531: np.array([1.5]), "\ud7ff\ue000": np.array([2])}
    npz.write(path, specs_of(arrays), tiles_of(arrays), metadata={"k": "v" * (65_535 - 9)})
    with npz.open_source(path) as source:
        assert source.metadata == {"k": "v" * 65_526}
        assert {name: source.read(name).tolist() for name in source.specs()} == {
            "x" * 65_531: [1.5],
            "\ud7ff\ue000": [2],
        }
    with pytest.raises(Error) as caught:
        npz.write(path, specs_of(arrays), tiles_of(arrays), metadata={"k": "v" * (65_536 - 9)})
    assert str(caught.value) == f"{path}: 65536 bytes of metadata, a .npz holds 65535"


def test_strings_that_would_lose_their_end(tmp_path: Path) -> None:
    arrays = {"a": np.array([b"x\0"], object)}
    with pytest.raises(Error, match="a string that ends in a NUL byte cannot be stored here"):
        npz.write(str(tmp_path / "a.npz"), specs_of(arrays), tiles_of(arrays))


def test_no_flipped_bit_of_the_directory_drops_a_member(tmp_path: Path) -> None:
    """zipfile takes the entries that a damaged one swallows for its comment, and says nothing."""
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(3), b=np.arange(4), c=np.arange(5))
    data = path.read_bytes()
    start = data.index(b"PK\x01\x02")
    dropped = 0
    for position in range(start, len(data)):
        for bit in range(8):
            path.write_bytes(data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :])
            with contextlib.suppress(Exception), zipfile.ZipFile(path) as archive:
                dropped += len(archive.namelist()) < 3
            try:
                source = npz.open_source(str(path))
            except FormatError:
                continue
            with contextlib.closing(source):
                assert len(source.specs()) == 3, (position, bit)
    assert dropped > 5  # the library by itself does drop them


def test_golden_bytes(tmp_path: Path) -> None:
    """The archive itself, head by head: nothing of the day or the machine is in it."""
    arrays = {"a": np.array([1, 2], "<i2"), "b": np.array([3], np.uint8).view(ml_dtypes.float8_e4m3fn)}
    npz.write(str(tmp_path / "a.npz"), specs_of(arrays), tiles_of(arrays), metadata={"k": "v"})
    members, records, at = b"", b"", 0
    for name, descr, dims, data, comment in (
        (b"a.npy", "<i2", "(2,)", b"\1\0\2\0", b""),
        (b"b.npy", "|V1", "(1,)", b"\3", b"weightport dtype=float8_e4m3fn"),
    ):
        text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {dims}, }}".encode().ljust(117) + b"\n"
        content = b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data
        head = struct.pack("<HHHHIII", 0, 0, 0, 0x21, zlib.crc32(content), len(content), len(content))
        members += b"PK\3\4" + struct.pack("<H", 20) + head + struct.pack("<HH", 5, 0) + name + content
        records += b"PK\1\2" + struct.pack("<BBH", 20, 3, 20) + head
        records += struct.pack("<HHHHHII", 5, 0, len(comment), 0, 0, 0o600 << 16, at) + name + comment
        at = len(members)
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 2, 2, len(records), at, 10) + b'{"k": "v"}'
    assert (tmp_path / "a.npz").read_bytes() == members + records + end


def test_errors_name_the_file_and_the_tensor(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, a=np.zeros((2, 2)), b=np.zeros(2))
    for budget, message in (
        (Budget(tensors=1), ": tensors: 2 asked for, at most 1 allowed"),
        (Budget(header_bytes=117), ": header bytes: 118 asked for, at most 117 allowed"),
        (Budget(rank=1), ": tensor 'a': rank: 2 asked for, at most 1 allowed"),
        (Budget(tensor_bytes=16), ": tensor 'a': tensor bytes: 32 asked for, at most 16 allowed"),
    ):
        with pytest.raises(BudgetExceeded) as exceeded:
            npz.open_source(str(path), budget=budget)
        assert str(exceeded.value) == f"{path}{message}"
    with npz.open_source(str(path)) as source, pytest.raises(Error) as many:
        source.read("b", (slice(1), slice(1)))
    assert str(many.value) == f"{path}: tensor 'b': an index of 2 axes for a tensor of 1"
    deflated = tmp_path / "b.npz"
    np.savez_compressed(deflated, a=np.arange(4))
    for archive in (path, deflated):
        raw = bytearray(archive.read_bytes())
        at = raw.index(b"PK\1\2") + 16
        raw[at] ^= 1
        archive.write_bytes(raw)
        with npz.open_source(str(archive)) as source, pytest.raises(FormatError) as corrupt:
            source.read("a")
        assert str(corrupt.value).startswith(f"{archive}: tensor 'a' at byte ")
    patched = bytearray(deflated.read_bytes())
    patched[30:31] = b"x"
    deflated.write_bytes(patched)
    assert refused(deflated, bytes(patched)).startswith(": tensor 'a' at byte 0: corrupt: the member is 'x.npy'")
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("x.npy", b"\x93NUMPY")
    assert refused(path, path.read_bytes()) == (": tensor 'x' at byte 41: truncated, or an unknown version of .npy")


def test_damaged_text_is_read_with_replacements(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("x.npy")
    info.comment = b"\xff"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr(info, npy("{'descr': '<i2', " + PLAIN + "(1,), }", b"\1\0"))
    with npz.open_source(str(tmp_path / "a.npz")) as source:
        assert source.read("x").tolist() == [1]
    content = npy("{'descr': '~', " + PLAIN + "(1,), }", version=3).replace(b"~", b"\xff")
    message = ": tensor 'x' at byte 0: the dtype '\ufffd' is not supported"
    assert refused(tmp_path / "x.npy", content) == message


def test_a_file_without_a_name_is_an_array(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(2))
    (tmp_path / "x.npy").rename(tmp_path / ".npy")
    with npz.open_source(str(tmp_path / ".npy")) as source:
        assert (list(source.specs()), source.metadata) == (["array"], {})
    assert refused(tmp_path / "x.npy", b"\x93NUMPY") == (
        ": tensor 'x' at byte 6: truncated, or an unknown version of .npy"
    )


def test_the_last_character_there_is(tmp_path: Path) -> None:
    array = np.array(["a\U0010ffff"])
    np.savez(tmp_path / "a.npz", x=array, big=array.astype(">U2"))
    with npz.open_source(str(tmp_path / "a.npz")) as source:
        assert source.read("x").tolist() == source.read("big").tolist() == ["a\U0010ffff".encode()]


def test_big_endian_values_of_every_kind(tmp_path: Path) -> None:
    arrays = {kind: np.arange(3).astype(f">{kind}") for kind in ("i1", "u1", "i2", "u4", "f2", "f8", "c8", "U1")}
    np.savez(tmp_path / "a.npz", **arrays)
    (tmp_path / "x.npy").write_bytes(npy("{'descr': '>b1', " + PLAIN + "(1,), }", b"\1"))
    with npz.open_source(str(tmp_path / "a.npz")) as source:
        for kind, array in arrays.items():
            expected = [b"0", b"1", b"2"] if kind == "U1" else array.tolist()
            assert source.read(kind).tolist() == expected
    with npz.open_source(str(tmp_path / "x.npy")) as source:
        assert source.read("x").tolist() == [True]
        assert source.extent("x") is not None


@pytest.mark.parametrize("kind", ["|S0", "<U0"])
def test_empty_strings_without_end(tmp_path: Path, kind: str) -> None:
    """Nothing in the file stands for them: only memory says how many there may be."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': (1099511627776,), }}\n".encode()
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header)
    with npz.open_source(str(tmp_path / "a.npy")) as source:
        assert source.read("a", (slice(5, 8),)).tolist() == [b""] * 3
        with pytest.raises(BudgetExceeded, match="8,796,093,022,208 asked for, at most 268,435,456 allowed"):
            source.read("a")
