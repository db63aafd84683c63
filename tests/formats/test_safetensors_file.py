from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.formats._arrays import EXTRA, NUMPY, indexed, of_every_dtype, same, specs_of, tiles_of
from tests.support import need
from weightport.errors import BudgetExceeded, Error, FormatError, TensorNotFound
from weightport.formats import safetensors_file as sf
from weightport.tensors import Budget, Extent, TensorSpec


def raw(header: object, data: bytes = b"", *, text: bytes | None = None) -> bytes:
    body = json.dumps(header).encode() if text is None else text
    return len(body).to_bytes(8, "little") + body + data


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        sf.open_source(str(path))
    return str(caught.value).removeprefix(f"{path}")


def entry(dtype: object = "F32", shape: object = (2,), span: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": span}


def test_same_bytes_as_safetensors(tmp_path: Path) -> None:
    oracle = need("safetensors.numpy")
    arrays = of_every_dtype(NUMPY + EXTRA)
    sf.write(str(tmp_path / "a"), specs_of(arrays), tiles_of(arrays), metadata={"format": 'v "é"'})
    oracle.save_file(arrays, tmp_path / "b", metadata={"format": 'v "é"'})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_metadata_is_what_transformers_takes(tmp_path: Path) -> None:
    oracle = need("safetensors")
    for told, expected in (({"k": "v"}, {"k": "v", "format": "pt"}), ({"format": "flax"}, {"format": "flax"})):
        sf.write(str(tmp_path / "a"), {}, tiles_of({}), metadata=told)
        with oracle.safe_open(tmp_path / "a", "np") as file:
            assert file.metadata() == expected
    sf.write(str(tmp_path / "a"), {}, tiles_of({}))
    with oracle.safe_open(tmp_path / "a", "np") as file:
        assert file.metadata() is None


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    oracle = need("safetensors.numpy")
    arrays = of_every_dtype(NUMPY + EXTRA)
    oracle.save_file(arrays, tmp_path / "a", metadata={"k": "v"})
    with sf.open_source(str(tmp_path / "a")) as source:
        assert source.metadata == {"k": "v"}
        assert set(source.specs()) == set(arrays)
        for name, array in arrays.items():
            assert source.specs()[name] == TensorSpec(array.dtype, array.shape, array.nbytes)
            assert same(source.read(name), array)


def test_golden_bytes(tmp_path: Path) -> None:
    arrays = {"b": np.array([1, 2], "<i2"), "a": np.array(1.0, "<f4")}
    sf.write(str(tmp_path / "a"), specs_of(arrays), tiles_of(arrays))
    header = (
        b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"b":{"dtype":"I16","shape":[2],"data_offsets":[4,8]}}'
    )
    header += b" " * (-len(header) % 8)
    assert (tmp_path / "a").read_bytes() == len(header).to_bytes(8, "little") + header + b"\0\0\x80?\1\0\2\0"


@settings(max_examples=60, deadline=None)
@given(indexed())
def test_partial_reads_are_slices(tmp_path_factory: pytest.TempPathFactory, case: tuple) -> None:
    array, index = case
    path = str(tmp_path_factory.mktemp("st") / "a")
    sf.write(
        path, specs_of({"pad": np.zeros(3, np.uint8), "x": array}), tiles_of({"pad": np.zeros(3, np.uint8), "x": array})
    )
    with sf.open_source(path) as source:
        assert same(source.read("x", index), np.array(array[index], order="C"))


def test_truncation_at_every_byte(tmp_path: Path) -> None:
    arrays = {"a": np.arange(3, dtype=np.float32), "b": np.arange(2, dtype=np.int8)}
    sf.write(str(tmp_path / "a"), specs_of(arrays), tiles_of(arrays))
    whole = (tmp_path / "a").read_bytes()
    for size in range(len(whole)):
        assert "truncated" in refused(tmp_path / "cut", whole[:size])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", " at byte 0: truncated: 0 bytes are no safetensors file"),
        (
            b"\xff" * 8 + b"{}",
            " at byte 0: a header of 18,446,744,073,709,551,615 bytes, at most 100,000,000 are allowed",
        ),
        (bytes(7), " at byte 7: truncated: 7 bytes are no safetensors file"),
        (bytes(8), " at byte 8: the header is no JSON object"),
        (
            (100_000_001).to_bytes(8, "little"),
            " at byte 0: a header of 100,000,001 bytes, at most 100,000,000 are allowed",
        ),
        (
            (100_000_000).to_bytes(8, "little"),
            " at byte 8: truncated: a header of 100000000 bytes is announced, the file has 8",
        ),
        (b"\3" + bytes(7) + b"{}", " at byte 10: truncated: a header of 3 bytes is announced, the file has 10"),
        (raw(0, text=b"[]"), " at byte 8: the header is no JSON object"),
        (raw(0, text='{"é":"'.encode()), " at byte 14: the header is no JSON: Unterminated string starting at"),
        (raw(0, text=b'{"a":' + b"1" * 5000 + b"}"), ": the header is no JSON: nested too deep, or too long a number"),
        (raw(0, text=b'{"a":'), " at byte 13: the header is no JSON: Expecting value"),
        (raw(0, text=b'{"\xff":1}'), " at byte 10: the header is no UTF-8"),
        (raw(0, text=b'{"a":' + b"[" * 100_000), ": the header is no JSON: nested too deep, or too long a number"),
        (raw(0, text=b'{"a":1,"a":2}'), " at byte 8: the header has the key 'a' twice"),
        (raw({"__metadata__": {"a": 1}}), " at byte 8: the header's __metadata__ is no object of strings"),
        (raw({"a": 1}), ": tensor 'a': its header entry does not have exactly dtype, shape and data_offsets"),
        (raw({"__metadata__": ["a"]}), " at byte 8: the header's __metadata__ is no object of strings"),
        (raw({"__metadata__": None}), " at byte 8: the header's __metadata__ is no object of strings"),
        (
            raw({"a": {"dtype": "F32", "shape": [2]}}),
            ": tensor 'a': its header entry does not have exactly dtype, shape and data_offsets",
        ),
        (
            raw({"a": {**entry(), "more": 1}}),
            ": tensor 'a': its header entry does not have exactly dtype, shape and data_offsets",
        ),
        (raw({"a": entry(32)}), ": tensor 'a': the dtype 32 is unknown"),
        (raw({"a": entry("F6_E3M2")}), ": tensor 'a': the dtype 'F6_E3M2' is packed below a byte: not supported"),
        (raw({"a": entry(shape=2)}), ": tensor 'a': its shape is no list of sizes"),
        (raw({"a": entry(shape=[2.0])}), ": tensor 'a': its shape is no list of sizes"),
        (raw({"a": entry(span=8)}), ": tensor 'a': its data_offsets are no pair of offsets"),
        (raw({"a": entry(span=[0, 8, 8])}), ": tensor 'a': its data_offsets are no pair of offsets"),
        (raw({"a": entry(span=[-8, 0])}), ": tensor 'a': its data_offsets are no pair of offsets"),
        (raw({"a": entry(span=[False, 8])}), ": tensor 'a': its data_offsets are no pair of offsets"),
        (raw({"a": entry("F31")}), ": tensor 'a': the dtype 'F31' is unknown"),
        (raw({"a": entry("F4")}), ": tensor 'a': the dtype 'F4' is packed below a byte: not supported"),
        (raw({"a": entry(shape=[-1])}), ": tensor 'a': its shape is no list of sizes"),
        (raw({"a": entry(shape=[True])}), ": tensor 'a': its shape is no list of sizes"),
        (raw({"a": entry(span=[0])}), ": tensor 'a': its data_offsets are no pair of offsets"),
        (raw({"a": entry(span=[8, 0])}), ": tensor 'a': F32 of shape [2] takes 8 bytes, its data_offsets span -8"),
        (
            raw({"a": entry(span=[0, 9])}, b"x" * 9),
            ": tensor 'a': F32 of shape [2] takes 8 bytes, its data_offsets span 9",
        ),
        (raw({"a": entry(span=[4, 12])}, b"x" * 12), ": tensor 'a' at byte 74: leaves a hole of 4 bytes"),
        (raw({"a": entry(), "b": entry()}, b"x" * 8), ": tensor 'b' at byte 130: overlaps the one before it"),
        (
            raw({"b": entry(span=(8, 16)), "a": entry()}, b"x" * 12),
            ": tensor 'b' at byte 143: truncated or corrupt: the header describes 147 bytes, the file has 143",
        ),
        (
            raw({"b": entry(span=(8, 16)), "a": entry()}, b"x" * 7),
            ": tensor 'a' at byte 138: truncated or corrupt: the header describes 147 bytes, the file has 138",
        ),
        (
            raw({"a": entry()}, b"x" * 9),
            " at byte 77: truncated or corrupt: the header describes 77 bytes, the file has 78",
        ),
    ],
)
def test_hostile(tmp_path: Path, content: bytes, message: str) -> None:
    assert refused(tmp_path / "x", content) == message


def test_empty_tensors_lie_between_others(tmp_path: Path) -> None:
    """In any order: they take no bytes, wherever the header says that they begin."""
    empty = entry(shape=(0,), span=(8, 8))
    content = raw(
        {"z": empty, "b": entry(span=(8, 16)), "a": entry(), "e": entry(shape=(0, 3), span=(0, 0))}, bytes(16)
    )
    (tmp_path / "x").write_bytes(content)
    with sf.open_source(str(tmp_path / "x")) as source:
        assert list(source.specs()) == ["z", "b", "a", "e"]
        assert source.read("z").tolist() == []
        assert source.extent("b") == Extent(str(tmp_path / "x"), len(content) - 8, 8)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\2" + bytes(7) + b"{}", True),
        (b"\0\xe1\xf5\5" + bytes(4) + b'{"', True),
        (b"\1\xe1\xf5\5" + bytes(4) + b'{"', False),
        (b"\2" + bytes(7) + b"{ ", False),
        (b"\2" + bytes(7) + b"{", False),
        (b"", False),
    ],
)
def test_told_by_its_first_bytes(tmp_path: Path, content: bytes, expected: bool) -> None:
    (tmp_path / "x").write_bytes(content)
    assert sf.sniff(str(tmp_path / "x")) is expected
    assert not sf.sniff(str(tmp_path))


def test_a_header_above_the_formats_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    sf.write(str(path), specs_of({"a": np.zeros(2)}), tiles_of({"a": np.zeros(2)}))
    size = int.from_bytes(path.read_bytes()[:8], "little")
    monkeypatch.setattr(sf, "MAX_HEADER", size)
    sf.write(str(path), specs_of({"a": np.ones(2)}), tiles_of({"a": np.ones(2)}))
    monkeypatch.setattr(sf, "MAX_HEADER", size - 1)
    with pytest.raises(Error) as caught:
        sf.write(str(path), specs_of({"a": np.zeros(2)}), tiles_of({"a": np.zeros(2)}))
    assert str(caught.value) == f"{path}: a header of {size} bytes, safetensors allows {size - 1}"
    monkeypatch.undo()
    with sf.open_source(str(path)) as source:
        assert source.read("a").tolist() == [1, 1]


def test_huge_shapes_are_refused_by_arithmetic(tmp_path: Path) -> None:
    huge = 1 << 62
    message = refused(tmp_path / "x", raw({"a": entry(shape=[huge, huge], span=[0, 0])}))
    assert "tensor bytes" in message
    assert "no array can have the shape" in refused(
        tmp_path / "x", raw({"a": entry(shape=[0, huge, huge], span=[0, 0])})
    )


def test_budget(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(raw({"a": entry(), "b": entry(span=(8, 16))}, b"x" * 16))
    for budget in (Budget(header_bytes=10), Budget(tensors=1), Budget(rank=0), Budget(tensor_bytes=4)):
        with pytest.raises(BudgetExceeded):
            sf.open_source(str(tmp_path / "x"), budget=budget)


def test_not_there_and_closed(tmp_path: Path) -> None:
    arrays = {"lstm/kernel": np.zeros(2, np.float32)}
    path = str(tmp_path / "x")
    sf.write(path, specs_of(arrays), tiles_of(arrays))
    source = sf.open_source(path)
    with pytest.raises(TensorNotFound, match="closest: 'lstm/kernel'"):
        source.read("lstm/kernal")
    with pytest.raises(TensorNotFound) as caught:
        source.extent("lstm/kernal")
    assert str(caught.value) == f"{path}: no tensor 'lstm/kernal'; closest: 'lstm/kernel'"
    with pytest.raises(Error) as refused:
        source.read("lstm/kernel", (slice(1), slice(1)))
    assert str(refused.value) == f"{path}: tensor 'lstm/kernel': an index of 2 axes for a tensor of 1"
    assert source.facts(["lstm/kernel"]) == {}
    source.close()
    with pytest.raises(Error, match="is closed"):
        source.read("lstm/kernel")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.array([b"x"], object)}, "tensor 'a': safetensors cannot hold strings"),
        ({"a": np.zeros(2, np.complex128)}, "tensor 'a': safetensors cannot hold the dtype complex128"),
        ({"__metadata__": np.zeros(2)}, "safetensors keeps the name '__metadata__' for itself"),
        ({"\ud800": np.zeros(2)}, "a tensor's name or the metadata is no valid text"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, arrays: dict, message: str) -> None:
    path = tmp_path / "x"
    with pytest.raises(Error) as caught:
        sf.write(str(path), specs_of(arrays), tiles_of(arrays))
    assert str(caught.value) == f"{path}: {message}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("give", [[np.zeros((2, 3), "f4")], [np.zeros((3, 2), "f4")], [np.zeros((3, 3), "f8")], []])
def test_tiles_that_are_not_the_tensor(tmp_path: Path, give: list) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(Error, match="tensor 'a': "):
        sf.write(str(path), {"a": TensorSpec.of("float32", (3, 3))}, lambda _: iter(give))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=60))
def test_any_header_is_an_error_or_a_source(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    path = tmp_path_factory.mktemp("st") / "x"
    path.write_bytes(raw(0, text=b"{" + text))
    try:
        sf.open_source(str(path)).close()
    except FormatError:
        return
    assert text.strip() == b"}"
