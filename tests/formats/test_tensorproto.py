from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import need
from weightport.errors import BudgetExceeded, Error, FormatError
from weightport.formats import _strided
from weightport.formats._io import ByteFile
from weightport.formats._proto import Memory
from weightport.formats._tensorproto import DTYPES, NUMBERS, TensorProtoRef, decode, header
from weightport.tensors import Budget, dtype_named


def proto(**fields: Any) -> Any:
    need("tensorflow")
    from tensorflow.core.framework import tensor_pb2

    shape = fields.pop("shape", ())
    message = tensor_pb2.TensorProto(**fields)
    for dim in shape:
        message.tensor_shape.dim.add(size=dim)
    message.tensor_shape.SetInParent()
    return message


def read(message: Any, index: Any = None, budget: Budget | None = None) -> np.ndarray:
    data = message.SerializeToString()
    return header(data, "f.pb", name="t", budget=budget).read(Memory(data, "f.pb"), index)


def same(a: np.ndarray, b: np.ndarray) -> None:
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert a.tobytes() == b.tobytes() if a.dtype.kind != "O" else a.tolist() == b.tolist()


# Those of less than a byte: see test_sub_byte.
FIXED_DTYPES = sorted(NUMBERS.keys() - {"object", "int4", "uint4", "int2", "uint2", "float4_e2m1fn"})


def test_numbers_are_tensorflows() -> None:
    tf = need("tensorflow")
    for number, name in DTYPES.items():
        theirs = tf.dtypes.as_dtype(number)
        if number == 7:
            assert theirs.is_numpy_compatible
            continue
        as_numpy = np.dtype(theirs.as_numpy_dtype)
        as_numpy = as_numpy[0] if as_numpy.names else as_numpy  # quantized: a struct of one
        assert as_numpy == dtype_named(name)


@pytest.mark.parametrize("name", FIXED_DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (5,), (3, 4), (2, 0, 3)])
def test_make_tensor_proto(name: str, shape: tuple[int, ...]) -> None:
    tf = need("tensorflow")
    rng = np.random.default_rng(len(shape))
    dtype = dtype_named(name)
    raw = rng.integers(0, 2 if name == "bool" else 256, (*shape, dtype.itemsize), dtype=np.uint8)
    value = raw.reshape(-1).view(dtype).reshape(shape) if raw.size else np.zeros(shape, dtype)
    if not name.endswith("fnuz"):  # which TensorFlow cannot put into a proto
        same(read(tf.make_tensor_proto(value)), value)
    typed = proto(dtype=NUMBERS[name], shape=shape, tensor_content=value.tobytes())
    same(read(typed), value)


def test_typed_fields() -> None:
    def check(expected: np.ndarray, **fields: Any) -> None:
        message = proto(shape=expected.shape, **fields)
        same(read(message), expected)

    check(np.array([1.5, -0.0, 2], np.float32), dtype=1, float_val=[1.5, -0.0, 2])
    check(np.array([1.5, 2], np.float64), dtype=2, double_val=[1.5, 2])
    check(np.array([-5, 7, -(2**31)], np.int32), dtype=3, int_val=[-5, 7, -(2**31)])
    check(np.array([-5, 127], np.int8), dtype=6, int_val=[-5, 127])
    check(np.array([250, 3], np.uint8), dtype=4, int_val=[250, 3])
    check(np.array([-300], np.int16), dtype=5, int_val=[-300])
    check(np.array([65535], np.uint16), dtype=17, int_val=[65535])
    check(np.array([-5, 5], np.int8), dtype=11, int_val=[-5, 5])
    check(np.array([1, 2], np.float16), dtype=19, half_val=[0x3C00, 0x4000])
    check(np.array([1, 2], dtype_named("bfloat16")), dtype=14, half_val=[0x3F80, 0x4000])
    check(np.array([-(2**63), 2**63 - 1]), dtype=9, int64_val=[-(2**63), 2**63 - 1])
    check(np.array([True, False, True]), dtype=10, bool_val=[True, False, True])
    check(np.array([1 + 2j, 3 - 4j], np.complex64), dtype=8, scomplex_val=[1, 2, 3, -4])
    check(np.array([1 + 2j], np.complex128), dtype=18, dcomplex_val=[1, 2])
    check(np.array([2**32 - 1], np.uint32), dtype=22, uint32_val=[2**32 - 1])
    check(np.array([2**64 - 1], np.uint64), dtype=23, uint64_val=[2**64 - 1])
    check(np.array([1, 2], dtype_named("float8_e5m2")), dtype=24, float8_val=b"\x3c\x40")
    check(np.array([-3, 7], dtype_named("int4")), dtype=29, int_val=[-3, 7])
    check(np.array([15, 1], dtype_named("uint4")), dtype=30, int_val=[15, 1])
    check(np.array([b"a", b"", b"\xff\x00"], object), dtype=7, string_val=[b"a", b"", b"\xff\x00"])


def test_sub_byte() -> None:
    same(read(proto(dtype=29, shape=(3,), tensor_content=b"\x07\xfd\x0d")), np.array([7, -3, -3], dtype_named("int4")))
    same(read(proto(dtype=30, shape=(2,), tensor_content=b"\xf7\x0d")), np.array([7, 13], dtype_named("uint4")))


def test_splats_and_zeros() -> None:
    same(read(proto(dtype=1, shape=(2, 3), float_val=[1, 2])), np.array([[1, 2, 2], [2, 2, 2]], np.float32))
    same(read(proto(dtype=1, shape=(2, 3), float_val=[7])), np.full((2, 3), 7, np.float32))
    same(read(proto(dtype=3, shape=(2, 3))), np.zeros((2, 3), np.int32))
    same(read(proto(dtype=7, shape=(2,))), np.array([b"", b""], object))
    same(read(proto(dtype=7, shape=(3,), string_val=[b"x", b"y"])), np.array([b"x", b"y", b"y"], object))
    big = proto(dtype=1, shape=(1 << 20, 1 << 20), float_val=[7])
    same(read(big, (slice(5, 7), slice(0, 3))), np.full((2, 3), 7, np.float32))
    with pytest.raises(BudgetExceeded, match="a repeated value of 4,398,046,511,104 bytes"):
        read(big)
    with pytest.raises(BudgetExceeded, match="tensor bytes"):
        read(proto(dtype=1, shape=(1 << 40, 1 << 40), float_val=[7]))


def test_more_values_than_elements() -> None:
    for fields in ({"dtype": 1, "float_val": [1, 2, 3]}, {"dtype": 3, "int_val": [1, 2, 3]}):
        with pytest.raises(FormatError, match=r"^f\.pb: tensor 't' at byte 0: 3 values for 2 elements$"):
            read(proto(shape=(2,), **fields))
    with pytest.raises(FormatError, match="3 values for 2 elements"):
        read(proto(dtype=7, shape=(2,), string_val=[b"", b"", b""]))


def test_unpacked_and_mixed() -> None:
    # float_val unpacked (wire type 5), then a packed run; int64_val unpacked.
    message = bytes([0x08, 1, 0x12, 4, 0x12, 2, 0x08, 3]) + b"\x2d\0\0\x80?" + b"\x2a\x08\0\0\0@\0\0@@"
    same(decode(message, "f", name="t"), np.array([1, 2, 3], np.float32))
    message = bytes([0x08, 9, 0x12, 4, 0x12, 2, 0x08, 3, 0x50, 5, 0x52, 2, 6, 7])
    same(decode(message, "f", name="t"), np.array([5, 6, 7]))


def test_string_content() -> None:
    content = b"\x01\x02\x00abc"
    same(read(proto(dtype=7, shape=(3,), tensor_content=content)), np.array([b"a", b"bc", b""], object))
    with pytest.raises(FormatError, match="do not add up"):
        read(proto(dtype=7, shape=(3,), tensor_content=content + b"x"))


def test_refusals() -> None:
    for message, what in (
        (proto(dtype=1, shape=(2,), tensor_content=b"abc"), "3 bytes of content for float32"),
        (proto(dtype=1, shape=(-2,)), "negative dimension"),
        (proto(dtype=0, shape=(2,)), "unknown dtype number 0"),
        (proto(dtype=20, shape=(2,)), "a resource handle has no values to read"),
        (proto(dtype=21, shape=()), "a variant has no values to read"),
        (proto(dtype=1, shape=(0, 1 << 62)), "no array can have the shape"),
    ):
        with pytest.raises(FormatError, match=what):
            read(message)
    with pytest.raises(FormatError, match="rank"):
        read(proto(dtype=1, shape=(1,) * 65))
    unknown = proto(dtype=1)
    unknown.tensor_shape.unknown_rank = True
    with pytest.raises(FormatError, match="unknown rank"):
        read(unknown)
    with pytest.raises(FormatError, match="no whole number"):
        decode(bytes([0x08, 1, 0x12, 0, 0x2A, 3, 1, 2, 3]), "f", name="t")
    with pytest.raises(FormatError, match="malformed varint"):
        decode(bytes([0x08, 3, 0x12, 0, 0x3A, 2, 0x80, 0x80]), "f", name="t")


def test_from_a_file_span(tmp_path: Any) -> None:
    value = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    body = proto(dtype=5, shape=value.shape, tensor_content=value.tobytes()).SerializeToString()
    (tmp_path / "f").write_bytes(b"before" + body + b"after")
    with ByteFile(tmp_path / "f") as file:
        ref = TensorProtoRef.parse(file, 6, 6 + len(body), name="t")
        assert ref.spec.shape == (3, 4, 5)
        assert ref.spec.nbytes == 120
        assert ref.content == (6 + len(body) - 120, 120)
        same(ref.read(file, (slice(1, 3), slice(None), slice(0, 5, 2))), value[1:3, :, 0:5:2])


@given(st.binary(max_size=80))
def test_any_bytes(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        decode(data, "f", name="t", budget=Budget(tensor_bytes=1 << 16))


@given(st.data())
@settings(deadline=None)
def test_strided_reads_are_slices(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 6), max_size=4)))
    value = np.random.default_rng(0).integers(0, 255, shape).astype(np.int32)
    cuts = tuple(
        slice(*data.draw(st.tuples(*[st.none() | st.integers(-7, 7)] * 2, st.none() | st.integers(1, 3))))
        for _ in data.draw(st.lists(st.just(0), max_size=len(shape)))
    )
    file = Memory(b"xy" + value.tobytes(), "f")
    part = _strided.read_part(file, 2, value.dtype, shape, _strided.bounds(cuts, shape, "f"))
    same(part, value[cuts].copy())


def test_strided_reads_only_what_is_needed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    value = np.arange(300 * 40_000, dtype=np.float32).reshape(300, 40_000)
    (tmp_path / "f").write_bytes(value.tobytes())
    done: list[int] = []
    with ByteFile(tmp_path / "f") as file:
        plain_read, plain_into = file.read, file.read_into
        monkeypatch.setattr(file, "read", lambda o, n, **k: (done.append(n), plain_read(o, n, **k))[1])
        monkeypatch.setattr(file, "read_into", lambda o, b, **k: (done.append(len(b)), plain_into(o, b, **k))[1])
        for index in (
            (slice(10, 13),),
            (slice(None), slice(7, 9)),
            (slice(0, 300, 50), slice(0, 40_000, 3)),
            (slice(0, 300, 50), slice(0, 40_000, 30_000)),
        ):
            done.clear()
            part = _strided.read_part(file, 0, value.dtype, value.shape, _strided.bounds(index, value.shape, "f"))
            same(part, value[index].copy())
            assert sum(done) <= 3 * part.nbytes + 8192


def test_bad_index() -> None:
    with pytest.raises(Error, match="an index of 2 axes for a tensor of 1"):
        _strided.bounds((slice(None), slice(None)), (3,), "f")
    with pytest.raises(Error, match="may not have the step -1"):
        _strided.bounds((slice(None, None, -1),), (3,), "f")


def test_big_endian() -> None:
    for dtype in (np.int32, np.complex64, np.uint8, np.float64):
        value = np.arange(6).astype(dtype).reshape(2, 3)
        big = value.astype(value.dtype.newbyteorder(">"))
        file = Memory(big.tobytes(), "f")
        same(
            _strided.read_part(file, 0, value.dtype, (2, 3), _strided.bounds(None, (2, 3), "f"), big_endian=True),
            value,
        )
