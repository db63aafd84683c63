from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weightport as wp
from tests.formats._arrays import indexed, same
from tests.support import need
from weightport.errors import BudgetExceeded, Error, FormatError, TensorNotFound
from weightport.formats import detect, gguf_file
from weightport.formats.gguf_file import BLOCKS, DTYPES
from weightport.tensors import Budget

X = np.arange(6, dtype=np.float32).reshape(2, 3)
NUMBERS = {name: number for number, name in DTYPES.items()}


def u(value: int, size: int = 8, order: str = "little") -> bytes:
    return value.to_bytes(size, order)  # type: ignore[arg-type]


def text(value: str, order: str = "little") -> bytes:
    return u(len(value.encode()), 8, order) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + u(kind, 4) + value


def head(name: str, dims: tuple[int, ...], kind: int, offset: int, order: str = "little") -> bytes:
    """A tensor's header; ``dims`` in the file's order."""
    shape = b"".join(u(d, 8, order) for d in dims)
    return text(name, order) + u(len(dims), 4, order) + shape + u(kind, 4, order) + u(offset, 8, order)


def model(
    *heads: bytes, data: bytes = b"", metadata: tuple[bytes, ...] = (), align: int = 32, version: int = 3
) -> bytes:
    whole = b"GGUF" + u(version, 4) + u(len(heads)) + u(len(metadata)) + b"".join(metadata) + b"".join(heads)
    return whole + bytes(-len(whole) % align) + data


def written(folder: Path, data: bytes) -> str:
    path = folder / "m.gguf"
    path.write_bytes(data)
    return str(path)


def told(folder: Path, data: bytes) -> str:
    path = written(folder, data)
    with pytest.raises(FormatError) as caught:
        gguf_file.open_source(path)
    return str(caught.value).removeprefix(path)


# What the gguf package writes ----------------------------------------------------------------------------------------


def test_reads_what_gguf_writes(tmp_path: Path) -> None:
    gguf = need("gguf")
    rng = np.random.default_rng(1)
    path = str(tmp_path / "m.gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.name", "déjà vu")
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", ""] * 50)
    writer.add_array("scores", [0.5, 1.5])
    writer.add_float64("x", 1.0)
    writer.add_bool("y", True)
    arrays = {"f32": rng.normal(size=(3, 5, 2)).astype("f4"), "f16": rng.normal(size=(4, 3)).astype("f2")}
    arrays |= {"f64": rng.normal(size=7), "i8": np.arange(-3, 3, dtype=np.int8), "i16": np.arange(4, dtype=np.int16)}
    arrays |= {"i32": np.arange(4, dtype=np.int32).reshape(2, 2), "i64": np.arange(4)}
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    half = gguf.quants.quantize(arrays["f32"], gguf.GGMLQuantizationType.BF16)
    writer.add_tensor("bf16", half, raw_dtype=gguf.GGMLQuantizationType.BF16)
    weights = rng.normal(size=(4, 64)).astype("f4")
    kinds = [gguf.GGMLQuantizationType[k] for k in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")]
    for kind in kinds:
        writer.add_tensor(kind.name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with wp.open(path) as source:
        assert source.format == "gguf"
        assert list(source.specs()) == [*arrays, "bf16", *(k.name for k in kinds)]
        for name, array in arrays.items():
            assert same(source.read(name), array)
        assert source.read("bf16").view(np.uint16).tobytes() == half.tobytes()
        assert source.specs()["bf16"].dtype_name == "bfloat16"
        for tensor in gguf.GGUFReader(path).tensors:
            spec = source.specs()[tensor.name]
            values = spec.quantized.shape if spec.quantized is not None else spec.shape
            assert tuple(int(n) for n in tensor.shape) == values[::-1]
            assert source.read(tensor.name).tobytes() == tensor.data.tobytes()
        for kind in kinds:
            spec = source.specs()[kind.name]
            assert spec.quantized is not None
            assert spec.quantized.title == f"quantized: {kind.name} of 4×64"
            expected = gguf.quants.dequantize(source.read(kind.name), kind)
            whole = source.read(kind.name, dequantize=True)
            assert same(whole, expected)
            np.testing.assert_allclose(whole, weights, atol=0.5)
            for index in ((slice(1, 3), slice(30, 40)), (slice(0, 4, 2), slice(1, 64, 7)), (slice(1, 1),)):
                assert same(source.read(kind.name, index, dequantize=True), np.array(expected[index], order="C"))


def test_a_transfer_that_dequantizes(tmp_path: Path) -> None:
    gguf = need("gguf")
    kind = gguf.GGMLQuantizationType.Q8_0
    values = np.random.default_rng(2).normal(size=(96, 64)).astype("f4")
    raw = gguf.quants.quantize(values, kind)
    heads = (head("blk.0.attn.weight", (64, 96), int(kind), 0), head("norm.weight", (3, 2), 0, raw.nbytes))
    path = written(tmp_path, model(*heads, data=raw.tobytes() + X.tobytes()))
    rules = [
        {"from": "blk.{n}.{w}.weight", "to": "layers.{n}.{w}", "dequantize": True, "rearrange": "out in -> in out"},
        {"from": "norm.weight", "to": "norm", "dequantize": True},
    ]
    mapping = {"weightport": 1, "rules": rules}
    out = str(tmp_path / "o.safetensors")
    wp.transfer(path, None, mapping, out=out)
    found = need("safetensors.numpy").load_file(out)
    assert same(found["layers.0.attn"], np.array(gguf.quants.dequantize(raw, kind).T, order="C"))
    assert same(found["norm"], X)
    assert wp.verify(path, out, mapping).equal


def test_the_blocks_are_ggml_s() -> None:
    gguf = need("gguf")
    plain = {number: name for name, number in NUMBERS.items()}
    for kind, (elements, size) in gguf.GGML_QUANT_SIZES.items():
        if int(kind) in plain:
            assert (elements, size) == (1, np.dtype(gguf_file.dtype_named(plain[int(kind)])).itemsize)
        else:
            assert BLOCKS[int(kind)] == (kind.name, elements, size)
    assert len(BLOCKS) + len(plain) == len(gguf.GGML_QUANT_SIZES)


@given(st.sampled_from(sorted(BLOCKS)), st.data())
@settings(max_examples=60, deadline=None)
def test_parts_of_blocks(tmp_path_factory: pytest.TempPathFactory, number: int, draw: st.DataObject) -> None:
    gguf = need("gguf")
    _, elements, size = BLOCKS[number]
    raw = np.random.default_rng(number).integers(0, 64, (3, 2 * size), np.uint8)
    path = written(tmp_path_factory.mktemp("gguf"), model(head("w", (2 * elements, 3), number, 0), data=raw.tobytes()))
    try:
        with np.errstate(all="ignore"):
            expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(number))
    except NotImplementedError:
        with wp.open(path) as source, pytest.raises(Error, match="the installed gguf package cannot dequantize"):
            source.read("w", dequantize=True)
        return
    low = draw.draw(st.integers(0, 2 * elements))
    cut = slice(low, draw.draw(st.integers(low, 2 * elements)), draw.draw(st.sampled_from([1, 3, elements])))
    with wp.open(path) as source:
        assert source.read("w").tobytes() == raw.tobytes()
        assert same(source.read("w", (slice(1, 3), cut), dequantize=True), np.array(expected[1:3, cut], order="C"))


# By hand -------------------------------------------------------------------------------------------------------------


def test_golden_bytes(tmp_path: Path) -> None:
    metadata = (pair("general.alignment", 4, u(64, 4)), pair("a", 9, u(9, 4) + u(1) + u(8, 4) + u(1) + text("x")))
    for version in (2, 3):
        data = model(
            head("w", (3, 2), 0, 0), head("é", (), 27, 64), data=X.tobytes() + bytes(40) + u(7), metadata=metadata,
            align=64, version=version,
        )  # fmt: skip
        with gguf_file.open_source(written(tmp_path, data)) as source:
            assert same(source.read("w"), X)
            assert source.read("é").item() == 7
            assert source.facts(["w"]) == {}


def test_the_other_order_of_bytes(tmp_path: Path) -> None:
    whole = b"GGUF" + u(3, 4, "big") + u(2, 8, "big") + u(1, 8, "big")
    whole += text("k", "big") + u(5, 4, "big") + u(1, 4, "big")
    whole += head("w", (3, 2), 0, 0, "big") + head("q", (32,), 2, 32, "big")
    whole += bytes(-len(whole) % 32) + X.astype(">f4").tobytes() + bytes(8) + bytes(18)
    with gguf_file.open_source(written(tmp_path, whole)) as source:
        assert same(source.read("w"), X)
        assert same(source.read("w", (slice(1, 2),)), X[1:])
        assert source.specs()["q"].unread == "quantized: Q4_0, its bytes in the other order"
        with pytest.raises(FormatError, match="tensor 'q': cannot be read: quantized: Q4_0"):
            source.read("q")


@settings(max_examples=40, deadline=None)
@given(indexed())
def test_partial_reads_are_slices(tmp_path_factory: pytest.TempPathFactory, case: tuple) -> None:
    array, index = case
    if array.dtype.name not in NUMBERS:
        return
    one = head("w", array.shape[::-1], NUMBERS[array.dtype.name], 0)
    with gguf_file.open_source(written(tmp_path_factory.mktemp("g"), model(one, data=array.tobytes()))) as source:
        assert same(source.read("w", index), np.array(array[index], order="C"))


def test_an_unknown_type_is_listed_and_the_rest_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, model(head("new", (32,), 99, 0), head("w", (3, 2), 0, 32), data=bytes(32) + X.tobytes()))
    with gguf_file.open_source(path) as source:
        assert source.specs()["new"].unread == "of the type 99"
        assert same(source.read("w"), X)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GGUX", ": is no GGUF file: it does not begin with GGUF"),
        (model(version=1), " at byte 4: is GGUF of version 1; 2 and 3 are read"),
        (model(head("w", (3,), 0, 0), head("w", (3,), 0, 32), data=bytes(64)),
         " at byte 57: two tensors are named 'w'"),
        (model(head("w", (3,), 0, 0)), ": tensor 'w' at byte 64: truncated or corrupt: bytes 64..76 asked for"),
        (model(head("w", (3,), 0, 4), data=bytes(64)), ": tensor 'w' at byte 68: is not aligned to 32 bytes"),
        (model(head("v", (9,), 0, 0), head("w", (9,), 0, 32), data=bytes(99)),
         ": tensor 'w' at byte 128: overlaps 'v'"),
        (model(head("w", (33,), 2, 0)),
         ": tensor 'w' at byte 24: Q4_0 of shape [33]: the last axis is no whole number of blocks of 32"),
        (model(head("w", (), 8, 0)), ": tensor 'w' at byte 24: Q8_0 of shape []: the last axis is no whole number"),
        (model(head("w", (1 << 60, 8), 0, 0)), ": tensor 'w': tensor bytes: 36,893,488,147,419,103,232 asked for"),
        (model(head("w", (1 << 60, 1 << 5), 8, 0)), ": tensor 'w': tensor bytes"),
        (model(head("w", (1,) * 65, 0, 0)), ": tensor 'w': rank: 65 asked for, at most 64 allowed"),
        (model(head("w" * 70_000, (1,), 0, 0)), " at byte 24: a name of 70,000 bytes"),
        (model(metadata=(pair("k", 13, b""),)), " at byte 37: metadata of the unknown type 13"),
        (model(metadata=(pair("k", 9, u(8, 4) + u(1 << 50)),)), " at byte 49: truncated or corrupt"),
        (model(metadata=(pair("k", 9, u(0, 4) + u(1 << 50)),)), " at byte 49: truncated or corrupt"),
        (model(metadata=(pair("k", 8, u(1 << 63)),)), " at byte 45: truncated or corrupt"),
        (model(metadata=(pair("general.alignment", 4, u(48, 4)),)), ": an alignment of 48 is no power of two"),
        (model(metadata=(pair("general.alignment", 4, u(0, 4)),)), ": an alignment of 0 is no power of two"),
        (b"GGUF" + u(3, 4) + u(1 << 60) + u(0), ": tensors: 1,152,921,504,606,846,976 asked for, at most 20,000,000"),
        (b"GGUF" + u(3, 4) + u(0) + u(1 << 60), " at byte 24: truncated or corrupt"),
        (model(metadata=(pair("k", 9, (u(9, 4) + u(1)) * 70),)), ": depth: 65 asked for, at most 64 allowed"),
    ],
)  # fmt: skip
def test_hostile(tmp_path: Path, data: bytes, message: str) -> None:
    assert told(tmp_path, data).startswith(message)


def test_budget_not_there_and_closed(tmp_path: Path) -> None:
    path = written(tmp_path, model(head("lstm/w", (3, 2), 0, 0), head("v", (3, 2), 0, 32), data=bytes(99)))
    for budget in (Budget(header_bytes=9), Budget(tensors=1), Budget(rank=1), Budget(tensor_bytes=23)):
        with pytest.raises(BudgetExceeded):
            gguf_file.open_source(path, budget=budget)
    with gguf_file.open_source(path) as source, pytest.raises(TensorNotFound, match="closest: 'lstm/w'"):
        source.read("lstm/q")
    with pytest.raises(Error, match="is closed"):
        source.read("v")


def test_told_by_its_first_bytes(tmp_path: Path) -> None:
    for data, expected in ((b"GGUF", True), (b"GGU", False), (b"GGUX", False), (b"", False)):
        assert gguf_file.sniff(written(tmp_path, data)) is expected
    assert not gguf_file.sniff(str(tmp_path))


def test_where_tensors_lie(tmp_path: Path) -> None:
    heads = (head("w", (3, 2), 0, 0), head("q", (32,), 2, 32), head("new", (1,), 99, 64))
    path = written(tmp_path, model(*heads, data=X.tobytes() + bytes(8) + bytes(range(18)) + bytes(32)))
    with gguf_file.open_source(path) as source:
        for name, values in (("w", X.tobytes()), ("q", bytes(range(18)))):
            place = source.extent(name)
            assert place is not None
            assert Path(place.path).read_bytes()[place.offset :][: place.nbytes] == values
        assert source.extent("new") is None
        with pytest.raises(TensorNotFound):
            source.extent("v")


def test_three_gigabytes_of_which_a_row_is_read(tmp_path: Path) -> None:
    rows = 3 << 18
    start = model(head("w", (1024, rows), 0, 0))
    row = np.arange(1024, dtype=np.float32)
    path = tmp_path / "m.gguf"
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(len(start) + rows * 4096)
        file.seek(len(start) + (rows - 1) * 4096)
        file.write(row.tobytes())
    with detect.open_source(path) as source:
        assert same(source.read("w", (slice(rows - 1, rows),)), row[None])
