from __future__ import annotations

import itertools
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.formats.test_table import build, raw_table
from tests.formats.test_tf_bundle import (
    bytes_field,
    cut_points,
    number_field,
    random_value,
    same,
    shape_proto,
    shapes,
    slice_proto,
)
from tests.support import fixture, need, says
from weightport.errors import BudgetExceeded, Error, FormatError, TensorNotFound
from weightport.formats import _slices, tf_v1
from weightport.formats._io import ByteFile
from weightport.formats._table import put_varint
from weightport.tensors import Budget, dtype_named

# What TensorFlow's Save op takes.
WRITTEN = [
    "float32",
    "float64",
    "int32",
    "uint8",
    "int16",
    "int8",
    "complex64",
    "int64",
    "bool",
    "complex128",
    "object",
]
WRITTEN += ["float16", "uint16"]


def packed(values: list[int]) -> bytes:
    return b"".join(put_varint(v & 0xFFFFFFFFFFFFFFFF) for v in values)


Tensor = tuple[int, tuple[int, ...], dict[_slices.Slice, bytes]]


def table(tensors: dict[str, Tensor], **options: Any) -> bytes:
    """A V1 checkpoint: name -> (dtype number, shape, slice -> TensorProto)."""
    meta = b""
    items = {}
    for name, (number, shape, parts) in tensors.items():
        head = bytes_field(1, name.encode()) + bytes_field(2, shape_proto(shape)) + number_field(3, number)
        meta += bytes_field(1, head + b"".join(bytes_field(4, slice_proto(cut)) for cut in parts))
        for cut, proto in parts.items():
            data = bytes_field(1, name.encode()) + bytes_field(2, slice_proto(cut)) + bytes_field(3, proto)
            items[_slices.slice_key(name.encode(), cut)] = bytes_field(2, data)
    items[b""] = bytes_field(1, meta)
    return build(items, **options)


def whole(shape: tuple[int, ...]) -> _slices.Slice:
    return ((0, -1),) * len(shape)


def one(number: int, shape: tuple[int, ...], proto: bytes) -> dict[str, Tensor]:
    return {"v": (number, shape, {whole(shape): proto})}


def save(tf: Any, path: str, tensors: dict[str, np.ndarray]) -> None:
    tf.raw_ops.Save(
        filename=path,
        tensor_names=list(tensors),
        data=[
            tf.constant(v.tolist(), tf.string, v.shape) if v.dtype == object else tf.constant(v)
            for v in tensors.values()
        ],
    )


@given(
    st.dictionaries(st.sampled_from(["a", "a/b", "c"]), st.tuples(st.sampled_from(WRITTEN), shapes()), min_size=1),
    st.data(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
def test_what_tensorflow_wrote(
    tmp_path: Path, wanted: dict[str, tuple[str, tuple[int, ...]]], data: st.DataObject
) -> None:
    tf = need("tensorflow")
    tensors = {name: random_value(dtype, shape, n) for n, (name, (dtype, shape)) in enumerate(wanted.items())}
    path = str(tmp_path / "c")
    save(tf, path, tensors)
    with tf_v1.open_source(path) as source:
        assert set(source.specs()) == set(tensors)
        for name, value in tensors.items():
            spec = source.specs()[name]
            assert (spec.dtype, spec.shape) == (value.dtype, value.shape)
            same(source.read(name), value)
            index = tuple(slice(data.draw(st.integers(0, 4)), None, data.draw(st.integers(1, 3))) for _ in value.shape)
            same(source.read(name, index), value[index].copy() if value.ndim else value)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple), st.sampled_from(["float32", "int16"]), st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
def test_slices_that_tensorflow_wrote(tmp_path: Path, shape: tuple[int, ...], dtype: str, data: st.DataObject) -> None:
    tf = need("tensorflow")
    value = random_value(dtype, shape, 5)
    places, parts = [], []
    for box in itertools.product(*[cut_points(data, dim) for dim in shape]):
        places.append(f"{' '.join(map(str, shape))} " + ":".join(f"{a},{b - a}" for a, b in box))
        parts.append(tf.constant(value[tuple(slice(a, b) for a, b in box)]))
    path = str(tmp_path / "c")
    tf.raw_ops.SaveSlices(filename=path, tensor_names=["v"] * len(parts), shapes_and_slices=places, data=parts)
    source = tf_v1.open_source(path)
    index = tuple(slice(data.draw(st.integers(0, 6)), None, data.draw(st.integers(1, 3))) for _ in shape)
    same(source.read("v", index), value[index].copy())
    same(source.read("v"), value)


def test_many_tensors_and_blocks(tmp_path: Path) -> None:
    tf = need("tensorflow")
    values = {f"{n * 7919 % 3001:05d}/a/long/scope/of/many/parts": np.full(50, n, np.float32) for n in range(3000)}
    values["big"] = np.arange(2_000_000, dtype=np.float32).reshape(2000, 1000)
    save(tf, str(tmp_path / "c"), values)
    source = tf_v1.open_source(str(tmp_path / "c"))
    assert set(source.specs()) == set(values)
    for name, value in values.items():
        same(source.read(name), value)
    same(source.read("big", (slice(7, 9),)), values["big"][7:9])


def test_parts_read_what_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = np.arange(2_000_000, dtype=np.float32).reshape(2000, 1000)
    proto = bytes_field(5, value.tobytes())
    (tmp_path / "c").write_bytes(table(one(1, value.shape, proto)))
    done: list[int] = []
    read, read_into = ByteFile.read, ByteFile.read_into
    monkeypatch.setattr(ByteFile, "read", lambda s, o, n, **k: (done.append(n), read(s, o, n, **k))[1])
    monkeypatch.setattr(ByteFile, "read_into", lambda s, o, b, **k: (done.append(len(b)), read_into(s, o, b, **k))[1])
    source = tf_v1.open_source(str(tmp_path / "c"))
    assert source.specs()["v"].shape == (2000, 1000)
    assert sum(done) < 100_000  # the head shares its block with eight megabytes
    same(source.read("v", (slice(10, 12),)), value[10:12])  # verifies
    done.clear()
    same(source.read("v", (slice(10, 12),)), value[10:12])
    assert sum(done) < 100_000


def test_every_encoding(tmp_path: Path) -> None:
    floats = struct.pack("<3f", 1, 2, 3)
    tensors: dict[str, Tensor] = {}
    expected = {}

    def add(name: str, number: int, value: np.ndarray, proto: bytes) -> None:
        tensors[name] = (number, value.shape, {whole(value.shape): proto})
        expected[name] = value

    three = np.array([1, 2, 3], np.float32)
    add("packed", 1, three, bytes_field(5, floats))
    add("content", 1, three, bytes_field(4, floats))
    add("unpacked", 1, three, b"".join(b"\x2d" + floats[n : n + 4] for n in (0, 4, 8)))
    add("with dtype and shape", 1, three, b"\x08\1" + bytes_field(2, shape_proto((3,))) + bytes_field(5, floats))
    add("int32", 3, np.array([-1, 2, -(2**31)], np.int32), bytes_field(7, packed([-1, 2, -(2**31)])))
    add("int64", 9, np.array([-1, 2**62]), bytes_field(10, packed([-1, 2**62])))
    add("uint64", 23, np.array([2**64 - 1], np.uint64), bytes([0x8A, 1]) + bytes([10]) + packed([2**64 - 1]))
    add("half", 19, np.array([1, -2], np.float16), bytes_field(13, packed([0x3C00, 0xC000])))
    add("bfloat16", 14, np.array([1, -2], dtype_named("bfloat16")), bytes_field(13, packed([0x3F80, 0xC000])))
    add("bool", 10, np.array([True, False]), bytes_field(11, b"\1\0"))
    add("string", 7, np.array([b"a", b"\xff"], object), bytes_field(8, b"a") + bytes_field(8, b"\xff"))
    add("complex", 8, np.array([1 + 2j], np.complex64), bytes_field(9, floats[:8]))
    add("scalar", 9, np.array(99), bytes_field(10, b"\x63"))
    for options in ({}, {"compress": True}, {"compress": True, "block_size": 30}, {"block_size": 1}):
        (tmp_path / "c").write_bytes(table(tensors, **options))
        source = tf_v1.open_source(str(tmp_path / "c"))
        for name, value in expected.items():
            same(source.read(name), value)
            if value.ndim:
                same(source.read(name, (slice(1, None),)), value[1:])


def test_slices_over_shards(tmp_path: Path) -> None:
    value = np.arange(12, dtype=np.float32).reshape(4, 3)
    halves = [((0, 2), (0, -1)), ((2, 2), (0, -1))]
    for n, cut in enumerate(halves):
        part = bytes_field(5, value[2 * n : 2 * n + 2].tobytes())
        tensors: dict[str, Tensor] = {"v": (1, (4, 3), {cut: part}), f"only {n}": one(1, (), b"")["v"]}
        (tmp_path / f"m.ckpt-{n:05d}-of-00002").write_bytes(table(tensors))
    for path in ("m.ckpt", "m.ckpt-?????-of-00002", "m.ckpt-00001-of-00002"):
        source = tf_v1.open_source(str(tmp_path / path))
        assert list(source.specs()) == ["v", "only 0", "only 1"]
        same(source.read("v"), value)
        same(source.read("v", (slice(1, 3), slice(0, 2))), value[1:3, 0:2].copy())
    (tmp_path / "m.ckpt-00001-of-00002").unlink()
    with says(FormatError, f"{tmp_path}/m.ckpt: 1 of 2 shards missing: '{tmp_path}/m.ckpt-00001-of-00002'"):
        tf_v1.open_source(str(tmp_path / "m.ckpt"))
    (tmp_path / "m.ckpt-00001-of-00002").write_bytes(table({"v": (3, (4, 3), {halves[1]: b""})}))
    source = tf_v1.open_source(str(tmp_path / "m.ckpt"))
    what = "dtype 1 of shape [4, 3] in one shard, dtype 3 of shape [4, 3] in another"
    with says(FormatError, f"{tmp_path / 'm.ckpt'}: tensor 'v': {what}"):
        source.read("v")


def test_missing_shard_of_a_fixture(tmp_path: Path) -> None:
    model = fixture("d_checkpoints/sharded")
    shutil.copy(model.folder / "model_v1.ckpt-00000-of-00002", tmp_path)
    for path in ("model_v1.ckpt", "model_v1.ckpt-?????-of-00002", "model_v1.ckpt-00000-of-00002"):
        with pytest.raises(FormatError, match=r"1 of 2 shards missing: .*model_v1\.ckpt-00001-of-00002"):
            tf_v1.open_source(str(tmp_path / path))


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        (
            one(1, (1 << 31, 1 << 31), b""),
            ": tensor bytes: 18,446,744,073,709,551,616 asked for, at most 70,368,744,177,664 allowed",
        ),
        (
            one(1, (1 << 20, 1 << 18), bytes_field(5, b"\0\0\x80?")),
            " at byte 115: 6 bytes for 274877906944 elements",
        ),
        (one(1, (-1,), b""), ": negative dimension in shape [-1]"),
        (one(99, (2,), b""), ": unknown dtype number 99"),
        (one(20, (), b""), ": a resource handle has no values to read"),
        (one(121, (), b""), ": a variant has no values to read"),
        (one(1, (2,), b"\x08\3"), " at byte 101: dtype number 3, expected 1"),
        (one(1, (2,), bytes_field(5, b"123")), " at byte 101: 3 bytes of typed values are no whole number of float32"),
        (one(1, (2,), bytes_field(5, bytes(12))), " at byte 101: 3 values for 2 elements"),
        (one(3, (2,), bytes_field(7, b"\xff" * 12)), " at byte 103: malformed varint"),
        # Nothing repeats, as it does in a graph's constants: TensorFlow writes every value.
        (one(1, (5,), bytes_field(5, bytes(16))), " at byte 101: 4 values for 5 elements"),
        (one(1, (2,), b""), " at byte 101: 0 bytes for 2 elements"),
        (one(7, (2,), bytes_field(8, b"a")), " at byte 101: 1 values for 2 elements"),
        ({"v": (1, (4,), {((0, 2),): b""})}, ": its 1 slices do not tile the shape [4]: they leave gaps"),
        ({"v": (1, (4,), {((0, 2),): b"", ((1, 2),): b""})}, ": its slices overlap in the shape [4]"),
        ({"v": (1, (4,), {((0, 2), (0, 1)): b""})}, ": a slice of 2 axes of the shape [4]"),
        ({"v": (1, (4,), {})}, ": its 0 slices do not tile the shape [4]: they leave gaps"),
        (
            {"v": (1, (1 << 30,), {((0, 1 << 29),): b"", ((1 << 29, 1 << 29),): b""})},
            " at byte 137: 0 bytes for 536870912 elements",
        ),
    ],
    ids=itertools.count(),
)
def test_hostile(tmp_path: Path, tensors: dict[str, Tensor], what: str) -> None:
    good = one(1, (2,), bytes_field(5, bytes(8)))["v"]
    (tmp_path / "c").write_bytes(table({**tensors, "good": good}))
    with tf_v1.open_source(str(tmp_path / "c")) as source:
        same(source.read("good"), np.zeros(2, np.float32))
        with says(BudgetExceeded if " allowed" in what else FormatError, f"{tmp_path / 'c'}: tensor 'v'{what}"):
            source.read("v")


def test_slice_without_data(tmp_path: Path) -> None:
    head = (
        bytes_field(1, b"v") + bytes_field(2, shape_proto((2,))) + b"\x18\1" + bytes_field(4, slice_proto(((0, -1),)))
    )
    items = {b"": bytes_field(1, bytes_field(1, head))}
    (tmp_path / "c").write_bytes(build(items))
    with says(FormatError, f"{tmp_path / 'c'}: tensor 'v': the data of slice [(0, -1)] is not there"):
        tf_v1.open_source(str(tmp_path / "c")).read("v")
    items[_slices.slice_key(b"v", ((0, -1),))] = bytes_field(2, bytes_field(1, b"v"))
    (tmp_path / "c").write_bytes(build(items))
    with says(FormatError, f"{tmp_path / 'c'}: tensor 'v' at byte 0: slice [(0, -1)] holds no data"):
        tf_v1.open_source(str(tmp_path / "c")).read("v")


def test_names_and_closing(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(table(one(1, (2,), b"")))
    source = tf_v1.open_source(str(tmp_path / "c"))
    assert source.raw_names() == {"v": "v"}
    assert source.facts(["v"]) == {}
    with pytest.raises(TensorNotFound, match="no tensor 'w'"):
        source.read("w")
    source.close()
    with pytest.raises(Error, match="is closed"):
        source.read("v")
    with pytest.raises(BudgetExceeded, match="tensors"):
        tf_v1.open_source(str(tmp_path / "c"), budget=Budget(tensors=0))


def test_a_table_that_is_no_checkpoint(tmp_path: Path) -> None:
    none = ": no list of tensors: this is a table, but no V1 checkpoint"
    for data, what in (
        (raw_table([]), ": an empty table, no V1 checkpoint"),
        (build({}), none),
        (build({b"a": b"b"}), none),
        (build({b"": b""}), none),
        (build({b"": number_field(1, 5) + bytes_field(2, b"x")}), none),
        (build({b"": b"\x0a\x7f"}), " at byte 0: a field of 127 bytes in 0 that are left"),
    ):
        (tmp_path / "c").write_bytes(data)
        before = len(os.listdir("/dev/fd"))
        with says(FormatError, f"{tmp_path / 'c'}{what}"):
            tf_v1.V1Source(str(tmp_path / "c"), [str(tmp_path / "c")])
        assert len(os.listdir("/dev/fd")) == before, "the file is closed again"


def test_a_path_that_leads_elsewhere(tmp_path: Path) -> None:
    path = fixture("d_checkpoints/sharded").path("checkpoint_v2")
    with says(FormatError, f"{path}: is no V1 checkpoint but a V2 checkpoint"):
        tf_v1.open_source(path)
    assert not tf_v1.sniff(path)
    assert tf_v1.sniff(str(fixture("d_checkpoints/sharded").folder / "model_v1.ckpt"))
    assert not tf_v1.sniff(str(tmp_path / "none"))
    (tmp_path / "c").write_bytes(table(one(1, (2,), b"")))
    assert tf_v1.sniff(str(tmp_path / "c"))


def test_what_the_specs_say(tmp_path: Path) -> None:
    """A reference type is the type that it refers to; what has no values has no bytes; texts have those in the file."""
    tensors = {
        "a": one(101, (2,), b"")["v"],
        "h": one(20, (3,), b"")["v"],
        "t": one(7, (2,), bytes_field(8, b"text"))["v"],
        "a/Momentum": one(1, (2,), b"")["v"],
        "b/Momentum": one(1, (2,), b"")["v"],
    }
    (tmp_path / "c").write_bytes(table(tensors))
    with tf_v1.open_source(str(tmp_path / "c")) as source:
        specs = source.specs()
        assert {n: (s.dtype.name, s.shape, s.nbytes, s.role) for n, s in specs.items()} == {
            "a": ("float32", (2,), 8, "weight"),
            "h": ("object", (3,), 0, "weight"),
            # The whole item: the name, its slice, and the text with the headers of their fields.
            "t": ("object", (2,), 17, "weight"),
            "a/Momentum": ("float32", (2,), 8, "slot"),
            "b/Momentum": ("float32", (2,), 8, "weight"),
        }
        assert source.checksum("a") == "crc32c"
        assert source.path == str(tmp_path / "c")


def test_heads_that_hold_more_than_is_known(tmp_path: Path) -> None:
    """Unknown fields are passed over, and known ones of another type; a shape in pieces is one."""
    head = bytes_field(1, b"v") + number_field(2, 1) + bytes_field(3, b"x") + number_field(4, 1) + bytes_field(9, b"x")
    head += bytes_field(2, shape_proto((2,))) + bytes_field(2, shape_proto((1,))) + number_field(3, 1)
    meta = number_field(1, 7) + bytes_field(2, b"x") + bytes_field(1, head + bytes_field(4, slice_proto(whole((2, 1)))))
    data = number_field(2, 1) + bytes_field(
        2, number_field(3, 1) + bytes_field(1, b"v") + bytes_field(3, bytes_field(5, bytes(8)))
    )
    items = {
        b"": number_field(1, 1) + bytes_field(2, b"x") + bytes_field(1, meta),
        _slices.slice_key(b"v", whole((2, 1))): data,
    }
    (tmp_path / "c").write_bytes(build(items))
    with tf_v1.V1Source(str(tmp_path / "c"), [str(tmp_path / "c")]) as source:
        same(source.read("v"), np.zeros((2, 1), np.float32))


def test_the_slices_of_a_tensor_may_have_heads_of_their_own(tmp_path: Path) -> None:
    one_head = bytes_field(1, b"v") + bytes_field(2, shape_proto((2,))) + number_field(3, 1)
    cuts: list[_slices.Slice] = [((0, 1),), ((1, 1),)]
    meta = b"".join(bytes_field(1, one_head + bytes_field(4, slice_proto(cut))) for cut in cuts)
    items = {b"": bytes_field(1, meta)}
    for n, cut in enumerate(cuts):
        proto = bytes_field(5, struct.pack("<f", n))
        items[_slices.slice_key(b"v", cut)] = bytes_field(2, bytes_field(3, proto))
    (tmp_path / "c").write_bytes(build(items))
    same(tf_v1.open_source(str(tmp_path / "c")).read("v"), np.float32([0, 1]))


def test_a_block_that_is_read_later_is_verified_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {f"v{n}": one(1, (3,), bytes_field(5, struct.pack("<3f", n, n, n)))["v"] for n in range(3)}
    data = bytearray(table(tensors, block_size=1))
    data[data.index(struct.pack("<3f", 1, 1, 1))] ^= 1
    (tmp_path / "c").write_bytes(data)
    with tf_v1.open_source(str(tmp_path / "c")) as source:
        same(source.read("v0"), np.float32([0, 0, 0]))
        same(source.read("v2"), np.float32([2, 2, 2]))
        with pytest.raises(FormatError, match=r"c at byte \d+: corrupt: the checksum of a block does not match$"):
            source.read("v1")
    # The list of tensors is verified when the file is opened, if its block is small; else when the first is read.
    data = bytearray(table(tensors))
    data[data.index(struct.pack("<3f", 1, 1, 1))] ^= 1
    (tmp_path / "c").write_bytes(data)
    what = f"{tmp_path / 'c'} at byte 0: corrupt: the checksum of a block does not match"
    size = int(tf_v1.Table(ByteFile(tmp_path / "c"), Budget()).block(0).handle.size)
    monkeypatch.setattr(tf_v1, "_VERIFY_AT_OPEN", size)
    with says(FormatError, what):
        tf_v1.open_source(str(tmp_path / "c"))
    monkeypatch.setattr(tf_v1, "_VERIFY_AT_OPEN", size - 1)
    with tf_v1.open_source(str(tmp_path / "c")) as source, says(FormatError, what):
        source.read("v0")


def test_few_blocks_are_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were compressed; what lies in the file as it is costs nothing."""
    loaded = []
    plain = tf_v1.Table.block

    def counted(self: tf_v1.Table, number: int) -> tf_v1.Block:
        loaded.append(number)
        return plain(self, number)

    monkeypatch.setattr(tf_v1.Table, "block", counted)
    value = bytes_field(5, bytes(4000))
    tensors = {f"v{n}": one(1, (1000,), value)["v"] for n in range(7)}
    for compress in (True, False):
        (tmp_path / "c").write_bytes(table(tensors, block_size=1, compress=compress))
        with tf_v1.open_source(str(tmp_path / "c")) as source:
            loaded.clear()
            for name in ("v0", "v1", "v2", "v3", "v3", "v0", "v1", "v4", "v1", "v0"):
                source.read(name)
            # The first goes for the fifth, and the second for the first.
            assert loaded == ([1, 2, 3, 4, 5, 1] if compress else [1, 2, 3, 4, 5])


def test_the_head_counts_against_the_budget(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(table(one(1, (2,), b"")))
    with ByteFile(tmp_path / "c") as file:
        first = tf_v1.Table(file, Budget()).block(0)
        (_, _, head), *_ = first.places()
        index = file.size - 48 - 5 - (first.handle.size + 5 + 8 + 5)
    budget = index + head
    tf_v1.open_source(str(tmp_path / "c"), budget=Budget(header_bytes=budget)).close()
    what = f"header bytes: {budget:,} asked for, at most {budget - 1:,} allowed"
    with says(BudgetExceeded, f"{tmp_path / 'c'}: {what}"):
        tf_v1.open_source(str(tmp_path / "c"), budget=Budget(header_bytes=budget - 1))
