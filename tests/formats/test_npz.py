from __future__ import annotations

import contextlib
import io
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

from tests.formats._arrays import EXTRA, NUMPY, indexed, of_every_dtype, same, specs_of, tiles_of
from weightport.errors import BudgetExceeded, Error, FormatError
from weightport.formats import npz
from weightport.tensors import Budget, TensorSpec

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
    ],
)
def test_hostile_headers(tmp_path: Path, header: str, message: str) -> None:
    assert refused(tmp_path / "x.npy", npy(header.replace("@", PLAIN))) == f": tensor 'x' at byte 0: {message}"


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
