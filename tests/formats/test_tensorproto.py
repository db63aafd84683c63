from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import need, says
from weightport.errors import BudgetExceeded, Error, FormatError
from weightport.formats._io import ByteFile
from weightport.formats._proto import Memory
from weightport.formats._table import put_varint
from weightport.formats._tensorproto import (
    DTYPES,
    NUMBERS,
    TensorProtoRef,
    decode,
    dtype_of,
    header,
    is_sub_byte,
    packed_varints,
    shape_of,
    sub_byte,
)
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
    with says(
        BudgetExceeded, "f.pb: tensor 't': a repeated value of 4,398,046,511,104 bytes, at most 2,147,483,648 allowed"
    ):
        read(big)
    with pytest.raises(BudgetExceeded, match="tensor bytes"):
        read(proto(dtype=1, shape=(1 << 40, 1 << 40), float_val=[7]))


def test_more_values_than_elements() -> None:
    for fields in ({"dtype": 1, "float_val": [1, 2, 3]}, {"dtype": 3, "int_val": [1, 2, 3]}):
        with pytest.raises(FormatError, match=r"^f\.pb: tensor 't' at byte 0: 3 values for 2 elements$"):
            read(proto(shape=(2,), **fields))
    with says(FormatError, "f.pb: tensor 't' at byte 0: 3 values for 2 elements"):
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


# By hand: what no writer writes, and what a damaged or hostile file may hold ----------------------------------------


def number(field: int, value: int) -> bytes:
    return put_varint(field << 3) + put_varint(value & 0xFFFFFFFFFFFFFFFF)


def text(field: int, value: bytes) -> bytes:
    return put_varint(field << 3 | 2) + put_varint(len(value)) + value


def message(dtype: int, shape: tuple[int, ...], *fields: bytes) -> bytes:
    return number(1, dtype) + text(2, b"".join(text(2, number(1, dim)) for dim in shape)) + b"".join(fields)


def refused(kind: type[Exception], data: bytes, what: str, budget: Budget | None = None) -> None:
    with says(kind, f"f: tensor 't'{what}"):
        decode(data, "f", name="t", budget=budget)


def test_dtype_numbers() -> None:
    assert dtype_of(1, "f") == np.float32
    assert dtype_of(101, "f") == np.float32, "a reference type is the type that it refers to"
    assert dtype_of(120, "f") == dtype_of(20, "f") == dtype_of(21, "f") == np.dtype(object)
    for wrong, told in ((0, 0), (99, 99), (100, 100), (199, 99)):
        with says(FormatError, f"f: tensor 'a': unknown dtype number {told}"):
            dtype_of(wrong, "f", "a")
    with says(FormatError, "f: unknown dtype number 0"):
        dtype_of(0, "f")


def test_a_type_that_the_ml_dtypes_here_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DTYPES, 98, "float3_nobody")
    with says(FormatError, "f: tensor 'a': unknown dtype number 98"):
        dtype_of(98, "f", "a")


def test_shapes() -> None:
    def shape(data: bytes) -> tuple[int, ...]:
        return shape_of(Memory(b"." + data, "f"), 1, 1 + len(data), "a")

    assert shape(b"") == ()
    # The last size of a dimension counts, none is 0; a dimension's name and a false "unknown rank" say nothing.
    assert shape(text(2, number(1, 3) + number(1, 4)) + text(2, text(2, b"rows")) + number(3, 0)) == (4, 0)
    assert shape(text(2, number(1, -1))) == (-1,)
    # Fields of other types are not these fields.
    assert shape(number(2, 3) + text(3, b"x") + text(2, text(1, b"x") + number(2, 7))) == (0,)
    with says(FormatError, "f: tensor 'a' at byte 1: a stored tensor of unknown rank"):
        shape(number(3, 1))


def test_headers() -> None:
    ref = header(message(101, (2, 3), text(4, b"")), "f", name="t")
    assert (ref.name, ref.number, ref.shape, ref.nbytes, ref.content) == ("t", 1, (2, 3), 24, None)
    assert (ref.start, ref.end) == (0, len(message(101, (2, 3), text(4, b""))))
    assert header(message(7, (3,), text(8, b"ab"), text(8, b"cde")), "f", name="t").nbytes == 5
    assert header(message(7, (3,), text(4, b"\0\0\0")), "f", name="t").nbytes == 3
    # A shape in two pieces is one message, as protobuf merges them.
    halves = text(2, text(2, number(1, 2))) + text(2, text(2, number(1, 3)))
    assert header(number(1, 1) + halves, "f", name="t").shape == (2, 3)
    assert header(b"\x0a\x01x" + number(2, 5) + number(4, 5) + number(8, 5) + message(1, ()), "f", name="t").shape == ()


def test_a_header_that_is_known() -> None:
    data = text(5, b"\0\0\x80?")

    def parse(data: bytes, known: tuple[int, tuple[int, ...]]) -> TensorProtoRef:
        return TensorProtoRef.parse(Memory(data, "f"), 0, len(data), name="t", known=known)

    assert parse(data, (1, (1,))).spec.shape == (1,)
    assert parse(number(1, 1) + data, (1, (1,))).number == 1
    with says(FormatError, "f: tensor 't' at byte 0: dtype number 2, expected 1"):
        parse(number(1, 2) + data, (1, (1,)))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (message(1, (2,), text(4, b"abc")), " at byte 10: 3 bytes of content for float32[2], which needs 8"),
        (message(1, (2,), text(4, bytes(9))), " at byte 10: 9 bytes of content for float32[2], which needs 8"),
        (message(99, (2,)), ": unknown dtype number 99"),
        (message(20, ()), ": a resource handle has no values to read"),
        (message(121, ()), ": a variant has no values to read"),
        (message(1, (2,), text(5, bytes(12))), " at byte 0: 3 values for 2 elements"),
        (message(3, (2,), number(7, 1), number(7, 1), number(7, 1)), " at byte 0: 3 values for 2 elements"),
        (message(3, (2,), number(7, 1), text(7, b"\1\1\1")), " at byte 0: 4 values for 2 elements"),
        (message(1, (2,), text(5, bytes(7))), " at byte 0: 7 bytes of typed values are no whole number of float32"),
        (message(8, (1,), text(9, bytes(4))), " at byte 0: 4 bytes of typed values are no whole number of complex64"),
        (message(3, (2,), text(7, b"\1\x80")), " at byte 11: malformed varint"),
        (message(3, (2,), text(7, b"\x80")), " at byte 10: malformed varint"),
        (message(9, (2,), text(10, b"\1" + b"\x80" * 10 + b"\1")), " at byte 10: malformed varint"),
        (message(7, (7,), text(4, b"\0" * 6)), " at byte 10: 6 bytes of content for 7 strings"),
        (message(7, (2,), text(4, b"\1\1a")), " at byte 10: the lengths of the strings do not add up"),
        (message(7, (2,), text(4, b"\1\0ab")), " at byte 10: the lengths of the strings do not add up"),
    ],
)
def test_hostile(data: bytes, what: str) -> None:
    refused(FormatError, data, what)


def test_lengths_of_strings_that_are_no_numbers() -> None:
    with says(FormatError, "f at byte 11: malformed varint"):
        decode(message(7, (2,), text(4, b"\1\x80")), "f", name="t")


def test_repeated_values_are_bounded() -> None:
    two = text(5, bytes(8))
    small = Budget(tensor_bytes=100)
    same(decode(message(1, (25,), two), "f", name="t", budget=small), np.zeros(25, np.float32))
    refused(
        BudgetExceeded, message(1, (26,), two), ": tensor bytes: 104 asked for, at most 100 allowed", small,
    )  # fmt: skip
    # A part of one value for all is made alone, a part of several is cut from the whole.
    ref = header(message(1, (1 << 20, 1 << 10), text(5, bytes(4))), "f", name="t")
    data = message(1, (1 << 20, 1 << 10), text(5, bytes(4)))
    assert ref.read(Memory(data, "f"), (slice(0, 2), slice(0, 2))).shape == (2, 2)
    refused(
        BudgetExceeded,
        message(1, (1 << 20, 1 << 10), two),
        ": a repeated value of 4,294,967,296 bytes, at most 2,147,483,648 allowed",
    )
    refused(
        BudgetExceeded,
        message(7, (1 << 30,), text(8, b"x")),
        ": a repeated value of 8,589,934,592 bytes, at most 2,147,483,648 allowed",
    )
    assert decode(message(7, (2,), text(8, b"x"), text(8, b"y")), "f", name="t").tolist() == [b"x", b"y"]


def test_one_value_more_or_less() -> None:
    same(decode(message(1, (3,), text(5, np.float32([1, 2]).tobytes())), "f", name="t"), np.float32([1, 2, 2]))
    same(decode(message(1, (3,), text(5, np.float32([1, 2, 3]).tobytes())), "f", name="t"), np.float32([1, 2, 3]))
    same(decode(message(1, (1,), text(5, np.float32([1]).tobytes())), "f", name="t"), np.float32([1]))
    same(decode(message(1, (0,)), "f", name="t"), np.float32([]))
    assert decode(message(7, (3,), text(8, b"x"), text(8, b"y")), "f", name="t").tolist() == [b"x", b"y", b"y"]


def test_typed_values_of_every_wire_type() -> None:
    one, two = np.float64([1, 2]).tobytes()[:8], np.float64([1, 2]).tobytes()[8:]
    fixed64 = put_varint(6 << 3 | 1)
    same(decode(message(2, (2,), fixed64 + one, fixed64 + two), "f", name="t"), np.float64([1, 2]))
    same(decode(message(2, (2,), fixed64 + one, text(6, two)), "f", name="t"), np.float64([1, 2]))
    # The numbers of complex values one by one; a field of another type is none of the values.
    pairs = b"".join(put_varint(9 << 3 | 5) + raw.tobytes() for raw in np.float32([1, 2, 3, 4]))
    same(decode(message(8, (2,), pairs, number(9, 5)), "f", name="t"), np.complex64([1 + 2j, 3 + 4j]))
    same(decode(message(1, (1,), put_varint(5 << 3 | 1) + bytes(8)), "f", name="t"), np.float32([0]))
    same(decode(message(3, (2,), put_varint(7 << 3 | 5) + bytes(4), text(7, b"\5\6")), "f", name="t"), np.int32([5, 6]))
    # The bytes of eight-bit floats are not repeated: the last ones count.
    eight = dtype_named("float8_e5m2")
    same(decode(message(24, (1,), text(18, b"\1\2"), text(18, b"\x3c")), "f", name="t"), np.array([1], eight))
    same(decode(message(24, (1,), text(18, b"\x3c"), number(18, 5)), "f", name="t"), np.array([0], eight))


def test_values_without_tensorflow() -> None:
    """Content in one piece and in part; varints of every meaning, loose and packed by turns."""
    data = message(3, (2, 3), text(4, np.arange(6, dtype=np.int32).tobytes()))
    ref, file = header(data, "f", name="t"), Memory(data, "f")
    same(ref.read(file), np.arange(6, dtype=np.int32).reshape(2, 3))
    same(ref.read(file, (slice(1, 2), slice(0, 3, 2))), np.int32([[3, 5]]))
    same(decode(message(30, (2,), text(4, b"\x13\x8f")), "f", name="t"), np.array([3, 15], dtype_named("uint4")))
    same(
        decode(message(3, (4,), number(7, 1), text(7, b"\2"), number(7, 3), text(7, b"\4")), "f", name="t"),
        np.int32([1, 2, 3, 4]),
    )
    same(decode(message(10, (3,), text(11, b"\0\1\2")), "f", name="t"), np.array([False, True, True]))
    one, half = put_varint(0x3C00), put_varint(0xB800)
    same(decode(message(19, (2,), text(13, one + half)), "f", name="t"), np.float16([1, -0.5]))
    one, half = put_varint(0x3F80), put_varint(0xBF00)
    same(decode(message(14, (2,), text(13, one + half)), "f", name="t"), np.array([1, -0.5], dtype_named("bfloat16")))
    eight = dtype_named("float8_e5m2")
    for fields in ([b"\x3c"], [b"\0", b"\1\2", b"\x3c"]):
        same(decode(message(24, (1,), *(text(18, f) for f in fields)), "f", name="t"), np.array([1], eight))
    refused(
        BudgetExceeded,
        message(1, (1 << 20, 1 << 20), text(5, bytes(4))),
        ": a repeated value of 4,398,046,511,104 bytes, at most 2,147,483,648 allowed",
    )


def test_texts_without_tensorflow() -> None:
    def values(*shape: int, fields: tuple[bytes, ...] = ()) -> list[Any]:
        found = decode(message(7, shape, *fields), "f", name="t")
        assert found.dtype == object
        assert found.shape == shape
        return found.reshape(-1).tolist()

    three = (text(8, b"longer"), text(8, b""), text(8, b"x"))
    assert values(3, fields=three) == [b"longer", b"", b"x"]
    assert values(2, 2, fields=three) == [b"longer", b"", b"x", b"x"]
    assert values(2) == [b"", b""]
    assert values(3, fields=(text(4, b"\1\0\3abcd"),)) == [b"a", b"", b"bcd"]
    assert values(0, fields=()) == []
    refused(FormatError, message(7, (2,), *three), " at byte 0: 3 values for 2 elements")


def test_parts_of_typed_values() -> None:
    data = message(3, (2, 3), text(7, b"\0\1\2\3\4\5"))
    ref, file = header(data, "f", name="t"), Memory(data, "f")
    same(ref.read(file, (slice(1, 2), slice(0, 3, 2))), np.int32([[3, 5]]))
    same(ref.read(file), np.arange(6, dtype=np.int32).reshape(2, 3))
    texts = message(7, (3,), text(8, b"a"), text(8, b"b"), text(8, b"c"))
    part = header(texts, "f", name="t").read(Memory(texts, "f"), (slice(1, 3),))
    assert part.tolist() == [b"b", b"c"]
    assert part.base is None, "a part does not hold the whole in memory"
    floats = message(1, (4,), text(5, np.arange(4, dtype=np.float32).tobytes()))
    same(header(floats, "f", name="t").read(Memory(floats, "f"), (slice(1, 4, 2),)), np.float32([1, 3]))
    with says(Error, "f: tensor 't': an index of 2 axes for a tensor of 1"):
        header(floats, "f", name="t").read(Memory(floats, "f"), (slice(None), slice(None)))


@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=30), st.integers(1, 20))
def test_packed_numbers_in_any_chunks(values: list[int], chunk: int) -> None:
    data = b"".join(map(put_varint, values))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weightport.formats._tensorproto._CHUNK", 10 + chunk)
        found = list(packed_varints(Memory(b"xx" + data, "f"), 2, len(data), "t"))
    assert [int(n) for part in found for n in part] == values
    assert len(found) <= -(-len(data) // (1 + chunk))


def test_bits_that_are_none_of_the_number_s() -> None:
    for name, mask in (("int4", 15), ("uint4", 15), ("int2", 3), ("uint2", 3)):
        dtype = dtype_named(name)
        assert is_sub_byte(dtype)
        raw = np.arange(256, dtype=np.uint8)
        assert (sub_byte(raw.view(dtype)).view(np.uint8) == raw & mask).all()
    plain = np.arange(3, dtype=np.uint8)
    assert sub_byte(plain) is plain
    assert not is_sub_byte(plain.dtype)
    same(decode(message(30, (2,), text(7, b"\x8f\x01\x13")), "f", name="t"), np.array([15, 3], dtype_named("uint4")))
