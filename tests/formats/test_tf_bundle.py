from __future__ import annotations

import io
import itertools
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import fixture, need, says
from weightport.errors import BudgetExceeded, Error, FormatError, TensorNotFound
from weightport.formats import _slices, tf_bundle, tf_bundle_write
from weightport.formats._io import ByteFile
from weightport.formats._table import TableWriter, mask, put_varint
from weightport.formats._tensorproto import NUMBERS
from weightport.tensors import Budget, Checksum, Extent, TensorSpec, dtype_named

FLOAT = 1


def number_field(number: int, value: int) -> bytes:
    return bytes([number << 3]) + put_varint(value & 0xFFFFFFFFFFFFFFFF) if value else b""


def bytes_field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2]) + put_varint(len(value)) + value


def shape_proto(shape: tuple[int, ...]) -> bytes:
    return b"".join(bytes_field(2, number_field(1, dim)) for dim in shape)


def slice_proto(cut: _slices.Slice) -> bytes:
    return b"".join(
        bytes_field(1, number_field(1, start) + (number_field(2, length) if length != -1 else b""))
        for start, length in cut
    )


def entry(
    shape: tuple[int, ...],
    *,
    dtype: int = FLOAT,
    shard: int = 0,
    offset: int = 0,
    size: int = 0,
    crc: int = 0,
    slices: tuple[_slices.Slice, ...] = (),
) -> bytes:
    return (
        number_field(1, dtype)
        + bytes_field(2, shape_proto(shape))
        + number_field(3, shard)
        + number_field(4, offset)
        + number_field(5, size)
        + (b"\x35" + crc.to_bytes(4, "little") if crc else b"")
        + b"".join(bytes_field(7, slice_proto(cut)) for cut in slices)
    )


HEADER = number_field(1, 1) + bytes_field(3, number_field(1, 1))


def index_bytes(entries: dict[bytes, bytes], header: bytes | None = HEADER, **options: Any) -> bytes:
    handle = io.BytesIO()
    writer = TableWriter(handle, **options)
    if header is not None:
        writer.add(b"", header)
    for key in sorted(entries):
        writer.add(key, entries[key])
    writer.finish()
    return handle.getvalue()


def test_a_large_entry_is_looked_through_once_for_all_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuts = tuple(((n, 1),) for n in range(500))
    entries = {b"v": entry((500,), slices=cuts)}
    entries |= {b"%03d/v/Adam" % n: entry((500,), size=2000) for n in range(50)}
    source = tf_bundle.BundleSource(bundle(tmp_path, entries, bytes(2000)))
    looked: list[str] = []
    monkeypatch.setattr(_slices, "slice_of", lambda *_: looked.append("") or ((0, 1),))
    assert [source.specs()[f"{n:03}/v/Adam"].role for n in range(50)] == ["slot"] * 50
    assert len(looked) == 500


def bundle(folder: Path, entries: dict[bytes, bytes], data: bytes = b"", **options: Any) -> str:
    (folder / "c.index").write_bytes(index_bytes(entries, **options))
    (folder / "c.data-00000-of-00001").write_bytes(data)
    return str(folder / "c")


def stored(value: np.ndarray, data: bytearray, **options: Any) -> bytes:
    """The entry of a value that is appended to the data."""
    raw = value.tobytes()
    offset = len(data)
    data += raw
    number = NUMBERS[value.dtype.name]
    return entry(value.shape, dtype=number, offset=offset, size=len(raw), crc=mask(crc32c.crc32c(raw)), **options)


def write(path: str, tensors: dict[str, np.ndarray]) -> None:
    def tiles(name: str) -> Iterator[np.ndarray]:
        yield tensors[name]

    tf_bundle_write.write(path, {n: TensorSpec.of(a.dtype, a.shape) for n, a in tensors.items()}, tiles)


def same(a: np.ndarray, b: np.ndarray) -> None:
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert (a.tolist() == b.tolist()) if a.dtype.kind == "O" else (a.tobytes() == b.tobytes())


def shapes() -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(st.integers(0, 6), max_size=4).map(tuple)


def random_value(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype == "object":
        flat = [rng.bytes(int(n)) for n in rng.integers(0, 200, int(np.prod(shape)))]
        out = np.empty(len(flat), object)
        out[:] = flat
        return out.reshape(shape)
    resolved = dtype_named(dtype)
    top = {"bool": 2, "int4": 16, "uint4": 16, "int2": 4, "uint2": 4, "float4_e2m1fn": 16}.get(dtype, 256)
    raw = rng.integers(0, top, (int(np.prod(shape)) * resolved.itemsize,), dtype=np.uint8)
    return raw.view(resolved).reshape(shape)


NAMES = st.sampled_from(["a", "a/b", "a/c", "ü", "z" * 300])
HEADERS = st.tuples(st.sampled_from(sorted(NUMBERS)), shapes())


@given(st.dictionaries(NAMES, HEADERS, max_size=4), st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_round_trip_and_parts(
    tmp_path: Path, wanted: dict[str, tuple[str, tuple[int, ...]]], data: st.DataObject
) -> None:
    tensors = {name: random_value(dtype, shape, n) for n, (name, (dtype, shape)) in enumerate(wanted.items())}
    path = str(tmp_path / "c")
    write(path, tensors)
    with tf_bundle.open_source(path) as source:
        assert set(source.specs()) == set(tensors)
        for name, value in tensors.items():
            spec = source.specs()[name]
            assert (spec.dtype, spec.shape, spec.role) == (value.dtype, value.shape, "weight")
            index = tuple(
                slice(
                    data.draw(st.integers(-7, 7)),
                    data.draw(st.none() | st.integers(-7, 7)),
                    data.draw(st.integers(1, 3)),
                )
                for _ in range(data.draw(st.integers(0, value.ndim)))
            )
            same(source.read(name, index), value[index].copy() if value.ndim else value)
            same(source.read(name), value)
            same(source.read(name, index), value[index].copy() if value.ndim else value)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("block_size", [50, 1000])
def test_many_blocks(tmp_path: Path, compress: bool, block_size: int) -> None:
    data = bytearray()
    values = {f"layer_{n}/kernel": np.full((2, n % 3), n, np.int32) for n in range(500)}
    entries = {name.encode(): stored(value, data) for name, value in values.items()}
    source = tf_bundle.open_source(bundle(tmp_path, entries, bytes(data), block_size=block_size, compress=compress))
    assert set(source.specs()) == set(values)
    for name, value in values.items():
        same(source.read(name), value)


def test_reads_what_tensorflow_wrote(tmp_path: Path) -> None:
    tf = need("tensorflow")
    values = {f"{n * 7919 % 9001:05d}/a/long/scope/of/many/parts": np.float32([n, -n]) for n in range(9000)}
    for dtype in sorted(NUMBERS.keys() - {"float4_e2m1fn", "int2", "uint2"}):
        for shape in ((), (0,), (3, 2)):
            values[f"dtypes/{dtype}/{len(shape)}"] = random_value(dtype, shape, 3)
    names = list(values)
    tensors = []
    for name in names:
        value = values[name]
        number = NUMBERS[value.dtype.name]
        tensors.append(tf.constant(value.tolist(), tf.string, value.shape) if number == 7 else tf.constant(value))
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "c"), tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors
    )
    with ByteFile(tmp_path / "c.index") as file:
        assert len(tf_bundle.Table(file, Budget())) > 1  # more than one block
    source = tf_bundle.open_source(str(tmp_path / "c"))
    assert set(source.specs()) == set(values)
    for name, value in values.items():
        same(source.read(name), value)


def cut_points(data: st.DataObject, dim: int) -> list[tuple[int, int]]:
    inner = sorted(data.draw(st.sets(st.integers(1, dim - 1), max_size=3))) if dim > 1 else []
    return list(itertools.pairwise([0, *inner, dim]))


SOLID = st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple)


@given(SOLID, st.sampled_from(["float32", "int8", "object"]), st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
def test_slices_that_tensorflow_wrote(tmp_path: Path, shape: tuple[int, ...], dtype: str, data: st.DataObject) -> None:
    tf = need("tensorflow")
    value = random_value(dtype, shape, 5)
    names, places, parts = [], [], []
    for box in itertools.product(*[cut_points(data, dim) for dim in shape]):
        names.append("v")
        places.append(f"{' '.join(map(str, shape))} " + ":".join(f"{a},{b - a}" for a, b in box))
        part = value[tuple(slice(a, b) for a, b in box)]
        parts.append(tf.constant(part.tolist(), tf.string) if dtype == "object" else tf.constant(part))
    tf.raw_ops.SaveV2(prefix=str(tmp_path / "c"), tensor_names=names, shape_and_slices=places, tensors=parts)
    source = tf_bundle.open_source(str(tmp_path / "c"))
    assert list(source.specs()) == ["v"]
    assert source.specs()["v"].shape == shape
    index = tuple(slice(data.draw(st.integers(0, 6)), None, data.draw(st.integers(1, 3))) for _ in shape)
    same(source.read("v", index), value[index].copy())
    same(source.read("v"), value)


PINWHEEL = (((0, 1), (0, 2)), ((0, 2), (2, 1)), ((2, 1), (1, 2)), ((1, 2), (0, 1)), ((1, 1), (1, 1)))


def test_any_arrangement_of_slices(tmp_path: Path) -> None:
    """Five boxes around a corner, which no sequence of straight cuts makes."""
    value = np.arange(9, dtype=np.float32).reshape(3, 3)
    data = bytearray()
    entries = {b"v": entry((3, 3), slices=PINWHEEL)}
    for cut in PINWHEEL:
        part = value[tuple(slice(a, a + n) for a, n in cut)]
        entries[_slices.slice_key(b"v", cut)] = stored(part, data)
    source = tf_bundle.open_source(bundle(tmp_path, entries, bytes(data)))
    same(source.read("v"), value)
    same(source.read("v", (slice(1, 2),)), value[1:2])


def test_slice_keys() -> None:
    """Against TensorFlow's own, over the lengths that its ordered code takes."""
    tf = need("tensorflow")
    assert _slices.slice_key(b"mask", ((0, -1), (0, -1))) == b"\0mask\0\1\1\2\x80\x7f\x80\x7f"
    assert _slices.slice_key(b"a\0b\xffc", ((4, 3),)) == b"\0a\0\xffb\xff\0c\0\1\1\1\x84\x83"
    import tempfile

    for start in (1, 63, 64, 8191, 8192, 1 << 20, 1 << 27):
        with tempfile.TemporaryDirectory() as folder:
            tf.raw_ops.SaveV2(
                prefix=f"{folder}/c",
                tensor_names=["v"],
                shape_and_slices=[f"{start + 1} {start},1"],
                tensors=[tf.constant([7], tf.int8)],
            )
            with ByteFile(f"{folder}/c.index") as file:
                keys = [key for key, _ in tf_bundle.Table(file, Budget()).items()]
            assert _slices.slice_key(b"v", ((start, 1),)) in keys


def part_entries(shape: tuple[int, ...], cuts: tuple[_slices.Slice, ...]) -> tuple[dict[bytes, bytes], bytes]:
    data = bytearray()
    entries = {b"v": entry(shape, slices=cuts)}
    for cut in cuts:
        extent = tuple(min(9, max(0, n)) for _, n in cut)
        entries[_slices.slice_key(b"v", cut)] = stored(np.ones(extent, np.float32), data)
    return entries, bytes(data)


@pytest.mark.parametrize(
    ("shape", "cuts", "what"),
    [
        ((4,), (((0, 2),),), "its 1 slices do not tile the shape [4]: they leave gaps"),
        ((4,), (((0, 3),), ((2, 2),)), "its 2 slices do not tile the shape [4]: they overlap"),
        ((4,), (((0, 2),), ((1, 2),)), "its slices overlap in the shape [4]"),
        ((4,), (((-1, 2),), ((2, 3),)), "a slice reaches outside the shape [4]"),
        ((4,), (((0, 2), (0, 1)),), "a slice of 2 axes of the shape [4]"),
        ((1 << 30,), (((0, 2),),), "its 1 slices do not tile the shape [1073741824]: they leave gaps"),
    ],
    ids=itertools.count(),
)
def test_slices_that_do_not_tile(
    tmp_path: Path, shape: tuple[int, ...], cuts: tuple[_slices.Slice, ...], what: str
) -> None:
    with (
        tf_bundle.open_source(bundle(tmp_path, *part_entries(shape, cuts))) as source,
        says(FormatError, f"{tmp_path / 'c.index'}: tensor 'v': {what}"),
    ):
        source.read("v")


def overlapping(folder: Path, **others: bytes) -> str:
    """The bytes 0 to 8 are a tensor, and 8 to 16; another one's begin at 4."""
    data = bytearray()
    entries = {name.encode(): made for name, made in others.items()}
    entries |= {b"a": stored(np.ones(2, np.float32), data), b"b": stored(np.ones(2, np.float32), data)}
    return bundle(folder, entries, bytes(data))


def test_values_that_overlap(tmp_path: Path) -> None:
    path = overlapping(tmp_path, c=entry((2,), size=8, offset=4))
    message = (
        "tensor 'c' at byte 4: corrupt: its 8 bytes overlap the 8 of 'a' at byte 0: tensors share all of their bytes "
        "or none"
    )
    with tf_bundle.open_source(path) as source:
        assert list(source.specs()) == ["a", "b", "c"]  # what is read is compared, and not before
        for call in (source.read, source.extent, lambda _: source.read("b", (slice(0, 1),)), source.stored):
            with says(FormatError, f"{path}.data-00000-of-00001: {message}"):
                call("b")
    path = overlapping(tmp_path, c=entry((2,), size=8, shard=1, offset=4))  # in another file
    with tf_bundle.open_source(path) as source:
        assert source.read("b").tolist() == [1, 1]
    crc = mask(crc32c.crc32c(np.ones(2, np.float32).tobytes()))
    path = overlapping(tmp_path, c=entry((1, 2), size=8, offset=8, crc=crc), d=entry((0,), offset=4, crc=mask(0)))
    with tf_bundle.open_source(path) as source:  # a tie, and nothing
        assert source.read("c").tolist() == [[1, 1]]
        assert source.read("d").tolist() == []
        assert source.extent("b") == source.extent("c")


def test_slices_that_overlap_in_the_file(tmp_path: Path) -> None:
    name, cuts = b"v\0\xff\1\xff\xff", (((0, 2),), ((2, 2),))
    data = bytearray()
    entries = {name: entry((4,), slices=cuts)}
    entries[_slices.slice_key(name, cuts[0])] = stored(np.ones(2, np.float32), data)
    entries[_slices.slice_key(name, cuts[1])] = entry((2,), size=8, offset=4)
    path = bundle(tmp_path, entries, bytes(data) * 2)
    with tf_bundle.open_source(path) as source:
        (shown,) = source.specs()
        assert shown == "v\0\\xff\1\\xff\\xff"
        with says(
            FormatError,
            f"{path}.data-00000-of-00001: tensor {shown!r} at byte 4: corrupt: its 8 bytes overlap the 8 of "
            f"{shown!r} at byte 0: tensors share all of their bytes or none",
        ):
            source.read(shown, (slice(0, 1),))


def test_slices_that_lie(tmp_path: Path) -> None:
    cuts = (((0, 2),), ((2, 2),))
    index = f"{tmp_path / 'c.index'}: tensor 'v'"
    entries, data = part_entries((4,), cuts)
    del entries[_slices.slice_key(b"v", cuts[1])]
    with says(FormatError, f"{index}: the data of slice [(2, 2)] is not there"):
        tf_bundle.open_source(bundle(tmp_path, entries, data)).read("v")
    entries, data = part_entries((4,), cuts)
    entries[_slices.slice_key(b"v", cuts[1])] = entry((3,), size=12, offset=8)
    with says(FormatError, f"{index}: a slice is float32[3], expected float32[2]"):
        tf_bundle.open_source(bundle(tmp_path, entries, data)).read("v")
    entries[_slices.slice_key(b"v", cuts[1])] = entry((2,), size=8, dtype=3)
    with says(FormatError, f"{index}: a slice is int32[2], expected float32[2]"):
        tf_bundle.open_source(bundle(tmp_path, entries, data)).read("v")
    entries[_slices.slice_key(b"v", cuts[1])] = entry((4,), slices=cuts)
    with says(FormatError, f"{index}: slice [(2, 2)] is sliced itself"):
        tf_bundle.open_source(bundle(tmp_path, entries, data)).read("v")
    entries[_slices.slice_key(b"v", cuts[1])] = entry((2,), size=8, offset=9)
    with says(
        FormatError,
        f"{tmp_path / 'c.data-00000-of-00001'}: tensor 'v' at byte 9: truncated or corrupt: bytes 9..17 asked for, "
        "the file has 16",
    ):
        tf_bundle.open_source(bundle(tmp_path, entries, data)).read("v", (slice(0, 1),))
    # Many slices of the same bytes would make much of little.
    cuts = tuple(((n * 1000, 1000),) for n in range(1000))
    entries = {b"v": entry((1_000_000,), slices=cuts)}
    for cut in cuts:
        entries[_slices.slice_key(b"v", cut)] = entry((1000,), size=4000)
    source = tf_bundle.open_source(bundle(tmp_path, entries, bytes(4000)))
    with says(FormatError, f"{index}: its slices claim more bytes than their shards have"):
        source.read("v")
    cuts = tuple(((n, 1),) for n in range(20_001))
    source = tf_bundle.open_source(bundle(tmp_path, {**entries, b"v": entry((20_001,), slices=cuts)}))
    with pytest.raises(FormatError, match="is not there"):
        source.read("v")
    with pytest.raises(BudgetExceeded, match="20,001 slices, at most 20,000 allowed"):
        _slices.boxes(cuts, (20_001,), "f", "v")


def test_checksums(tmp_path: Path) -> None:
    value = np.arange(600_000, dtype=np.float32).reshape(600, 1000)
    path = str(tmp_path / "c")
    write(path, {"a": value, "b": value[:2]})
    data = tmp_path / "c.data-00000-of-00001"
    raw = bytearray(data.read_bytes())
    raw[2_000_000] ^= 1
    data.write_bytes(raw)
    for index in (None, (slice(0, 1),)):  # the part that is asked for is not the part that is damaged
        with (
            tf_bundle.open_source(path) as source,
            pytest.raises(FormatError, match=r"c\.data-00000-of-00001: tensor 'a' at byte 0: corrupt: the checksum of"),
        ):
            source.read("a", index)
        with tf_bundle.open_source(path) as source:
            same(source.read("b"), value[:2])


def test_parts_verify_once_and_read_what_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = np.arange(2_000_000, dtype=np.float32).reshape(2000, 1000)
    write(str(tmp_path / "c"), {"a": value})
    done: list[int] = []
    read, read_into = ByteFile.read, ByteFile.read_into
    monkeypatch.setattr(ByteFile, "read", lambda s, o, n, **k: (done.append(n), read(s, o, n, **k))[1])
    monkeypatch.setattr(ByteFile, "read_into", lambda s, o, b, **k: (done.append(len(b)), read_into(s, o, b, **k))[1])
    source = tf_bundle.open_source(str(tmp_path / "c"))
    assert sum(done) < 1000
    done.clear()
    same(source.read("a", (slice(10, 12),)), value[10:12])
    assert sum(done) == value.nbytes + 8000
    done.clear()
    same(source.read("a", (slice(10, 12),)), value[10:12])
    assert sum(done) == 8000
    done.clear()
    same(source.read("a"), value)
    assert sum(done) == value.nbytes


def test_missing_shard(tmp_path: Path) -> None:
    model = fixture("d_checkpoints/sharded")
    for file in model.folder.glob("model.ckpt.*"):
        shutil.copy(file, tmp_path)
    (tmp_path / "model.ckpt.data-00001-of-00002").unlink()
    source = tf_bundle.open_source(str(tmp_path / "model.ckpt"))
    assert set(source.specs()) == set(model.variables)
    readable, failed = 0, []
    for name, want in model.variables.items():
        try:
            same(source.read(name), want)
            readable += 1
        except FormatError as error:
            failed.append(str(error))
    assert readable
    assert failed
    for message in failed:
        assert "model.ckpt.data-00001-of-00002: tensor" in message
        assert message.endswith("data shard 1 of 2 cannot be opened: No such file or directory")


def test_object_based_without_its_graph(tmp_path: Path) -> None:
    """Names come from the keys where the shard of the object graph is gone."""
    model = fixture("c_keras/v2_lstm")
    shutil.copy(model.path("checkpoint_object_based") + ".index", tmp_path)
    source = tf_bundle.open_source(str(tmp_path / "weights.ckpt"))
    assert list(source.specs()) == [f"layer_with_weights-0/cell/{n}" for n in ("bias", "kernel", "recurrent_kernel")]
    with pytest.raises(FormatError, match=r"weights\.ckpt\.data-00000-of-00001"):
        source.read("layer_with_weights-0/cell/bias")


def test_big_endian(tmp_path: Path) -> None:
    values = {
        "f": np.arange(6, dtype=np.float32).reshape(2, 3),
        "c": np.arange(3).astype(np.complex64),
        "h": np.arange(5).astype(dtype_named("bfloat16")),
        "b": np.arange(5, dtype=np.uint8),
    }
    data = bytearray()
    entries = {}
    for name, value in values.items():
        size = value.itemsize // (2 if value.dtype.kind == "c" else 1)
        big = value.view(f"u{size}").astype(f">u{size}")
        number, shape = NUMBERS[value.dtype.name], value.shape
        entries[name.encode()] = entry(
            shape, dtype=number, offset=len(data), size=value.nbytes, crc=mask(crc32c.crc32c(big.tobytes()))
        )
        data += big.tobytes()
    header = number_field(1, 1) + number_field(2, 1)
    source = tf_bundle.open_source(bundle(tmp_path, entries, bytes(data), header=header))
    for name, value in values.items():
        same(source.read(name), value)
        same(source.read(name, (slice(1, 2),)), value[1:2])


@pytest.mark.parametrize(
    ("header", "what"),
    [
        (None, ": no header: this is a table, but no V2 checkpoint's index"),
        (b"", ": corrupt header: 0 data shards, endianness 0"),
        (number_field(1, -1), ": corrupt header: -1 data shards, endianness 0"),
        (number_field(1, 1) + number_field(2, 2), ": corrupt header: 1 data shards, endianness 2"),
        (
            number_field(1, 1) + bytes_field(3, number_field(2, 2)),
            ": written for readers of version 2, this one knows 1",
        ),
        (bytes_field(1, b"x"), ": this is a V1 checkpoint, not the index of a V2 checkpoint"),
        (b"\x0b", " at byte 0: unknown wire type 3"),
        (number_field(1, 1) + bytes_field(3, b"\x0b"), " at byte 0: unknown wire type 3"),
    ],
    ids=itertools.count(),
)
def test_bad_headers(tmp_path: Path, header: bytes | None, what: str) -> None:
    bundle(tmp_path, {b"v": entry(())}, header=header)
    with says(FormatError, f"{tmp_path / 'c.index'}{what}"):
        tf_bundle.BundleSource(str(tmp_path / "c"))


@pytest.mark.parametrize(
    "header",
    [
        number_field(1, 1),
        HEADER,
        number_field(1, 1) + bytes_field(3, number_field(1, 9) + number_field(2, 1) + number_field(3, 9)),
        number_field(1, 1) + bytes_field(3, bytes_field(2, b"x")) + bytes_field(2, b"x") + number_field(3, 5),
        number_field(7, 5) + number_field(1, 1) + bytes_field(7, number_field(2, 9)) + b"\x0d\5\0\0\0",
    ],
    ids=itertools.count(),
)
def test_headers_of_other_versions(tmp_path: Path, header: bytes) -> None:
    data = bytearray()
    path = bundle(tmp_path, {b"v": stored(np.float32([1, 2]), data)}, bytes(data), header=header)
    same(tf_bundle.open_source(path).read("v"), np.float32([1, 2]))


OUTSIDE = "truncated or corrupt: bytes"


@pytest.mark.parametrize(
    ("data", "where", "what"),
    [
        (
            entry((1 << 31, 1 << 31), size=8),
            ".index: tensor 'bad'",
            "tensor bytes: 18,446,744,073,709,551,616 asked for, at most 70,368,744,177,664 allowed",
        ),
        (entry((-1,), size=4), ".index: tensor 'bad'", "negative dimension in shape [-1]"),
        (entry((1,) * 65, size=4), ".index: tensor 'bad'", "rank: 65 asked for, at most 64 allowed"),
        (entry((2,), size=4), ".index: tensor 'bad'", "4 bytes stored for float32[2], which needs 8"),
        (
            entry((0, 1 << 62)),
            ".index: tensor 'bad'",
            "no array can have the shape [0, 4611686018427387904]",
        ),
        (entry((1 << 20,), size=1 << 22), "0: tensor 'bad' at byte 0", f"{OUTSIDE} 0..4194304 asked for"),
        (entry((2,), size=8, offset=-8), "0: tensor 'bad' at byte 0", f"{OUTSIDE} -8..0 asked for"),
        (entry((2,), size=8, offset=1), "0: tensor 'bad' at byte 1", f"{OUTSIDE} 1..9 asked for"),
        (
            entry((2,), size=8, offset=1 << 62),
            "0: tensor 'bad' at byte 8",
            f"{OUTSIDE} 4611686018427387904..4611686018427387912 asked for",
        ),
        (entry((2,), size=-8, dtype=7), "0: tensor 'bad' at byte 0", f"{OUTSIDE} 0..-8 asked for"),
        (entry((2,), size=8, shard=2), ".index: tensor 'bad'", "data shard 2 of 2"),
        (entry((2,), size=8, shard=-1), ".index: tensor 'bad'", "data shard -1 of 2"),
        (entry((2,), size=8, dtype=99), ".index: tensor 'bad'", "unknown dtype number 99"),
        (entry((2,), size=8, dtype=0), ".index: tensor 'bad'", "unknown dtype number 0"),
        (entry((), size=8, dtype=20), ": tensor 'bad'", "a resource handle has no values to read"),
        (entry((), size=8, dtype=121), ": tensor 'bad'", "a variant has no values to read"),
        (entry((1 << 40,), size=8, dtype=7), "0: tensor 'bad' at byte 0", "8 bytes for 1099511627776 strings"),
        (entry((5,), size=8, dtype=7), "0: tensor 'bad' at byte 0", "8 bytes for 5 strings"),
        (
            entry((2,), size=8, dtype=7),
            "0: tensor 'bad' at byte 0",
            "corrupt: the lengths of the strings do not add up",
        ),
        (
            entry((2,), size=8, crc=1),
            "0: tensor 'bad' at byte 0",
            f"corrupt: the checksum of its 8 bytes is {mask(crc32c.crc32c(b'12345678')):08x}, the index has 00000001",
        ),
        (b"\x12\x7f", ".index at byte 0", "a field of 127 bytes in 0 that are left"),
        (b"\x08" + b"\xff" * 11, ".index at byte 1", "malformed varint"),
        (b"\x3a\x05\x0a\x03\x08\xff\xff", ".index at byte 1", "malformed varint"),
    ],
    ids=itertools.count(),
)
def test_hostile_entries(tmp_path: Path, data: bytes, where: str, what: str) -> None:
    good = bytearray(b"12345678")
    entries = {b"bad": data, b"good": entry((2,), shard=1, size=8, crc=mask(crc32c.crc32c(good)))}
    place = f"{tmp_path / 'c'}{where.replace('0:', '.data-00000-of-00002:', 1)}"
    if what.startswith(OUTSIDE):
        what += ", the file has 8"
    path = bundle(tmp_path, entries, header=number_field(1, 2))
    for shard in range(2):
        (tmp_path / f"c.data-0000{shard}-of-00002").write_bytes(good)
    with tf_bundle.open_source(path) as source:
        assert list(source.specs()) == ["bad", "good"]
        assert source.read("good").tobytes() == good
        with says(BudgetExceeded if " allowed" in what else FormatError, f"{place}: {what}"):
            source.read("bad")


def texts(*values: bytes) -> tuple[bytes, int]:
    """How a tensor of texts is stored, and its checksum (masked)."""
    crc = crc32c.crc32c(b"".join(len(v).to_bytes(4, "little") for v in values))
    check = mask(crc).to_bytes(4, "little")
    crc = crc32c.crc32c(b"".join(values), crc32c.crc32c(check, crc))
    return b"".join(put_varint(len(v)) for v in values) + check + b"".join(values), mask(crc)


@pytest.mark.parametrize(
    ("at", "byte", "what"),
    [
        (None, 0, ""),
        (0, 2, " at byte 3: corrupt: the lengths of the strings do not add up"),
        (0, 0x81, " at byte 3: corrupt: the lengths of the strings do not add up"),
        (2, 0, " at byte 5: corrupt: the checksum of the strings' lengths"),
        (7, 0, " at byte 3: corrupt: the checksum of its 10 bytes is {}, the index has {}"),
    ],
)
def test_texts(tmp_path: Path, at: int | None, byte: int, what: str) -> None:
    raw, crc = texts(b"a", b"bcd")
    data = bytearray(raw)
    if at is not None:
        data[at] = byte
    entries = {b"t": entry((2,), dtype=7, offset=3, size=10, crc=crc)}
    source = tf_bundle.open_source(bundle(tmp_path, entries, b"..." + data))
    assert source.specs()["t"].nbytes == 10
    assert source.extent("t") is None
    if at is None:
        assert source.read("t").tolist() == [b"a", b"bcd"]
        assert source.read("t", (slice(1, 2),)).tolist() == [b"bcd"]
        return
    found = mask(crc32c.crc32c(data[2:], crc32c.crc32c(b"\1\0\0\0\3\0\0\0")))
    what = what.format(f"{found:08x}", f"{crc:08x}")
    with says(FormatError, f"{tmp_path / 'c.data-00000-of-00001'}: tensor 't'{what}"):
        source.read("t")


def test_the_lengths_of_texts_as_the_checksum_takes_them() -> None:
    assert tf_bundle.string_lengths([1, (1 << 32) - 1, 1 << 32]).hex() == "01000000ffffffff0000000001000000"


def test_texts_in_slices(tmp_path: Path) -> None:
    cuts = (((0, 1),), ((1, 1),))
    data, entries = b"", {b"t": entry((2,), dtype=7, slices=cuts)}
    for cut, value in zip(cuts, (b"a", b"bcd"), strict=True):
        raw, crc = texts(value)
        entries[_slices.slice_key(b"t", cut)] = entry((1,), dtype=7, offset=len(data), size=len(raw), crc=crc)
        data += raw
    source = tf_bundle.open_source(bundle(tmp_path, entries, data))
    assert source.specs()["t"] == TensorSpec(np.dtype(object), (2,), 14, "weight")
    assert source.read("t").tolist() == [b"a", b"bcd"]
    assert source.read("t", (slice(1, 2),)).tolist() == [b"bcd"]


def test_entries_that_hold_more_than_is_known(tmp_path: Path) -> None:
    """Unknown fields are passed over, and known ones of another type; a reference type is what it refers to."""
    data = bytearray()
    known = stored(np.float32([1, 2]), data)
    more = bytes_field(1, b"x") + bytes_field(9, b"y") + number_field(2, 3) + number_field(6, 5) + b"\x3d\1\2\3\4"
    halves = entry((), size=8, dtype=101)[:2] + bytes_field(2, shape_proto((2,))) + bytes_field(2, shape_proto((1,)))
    entries = {b"v": more + known, b"w": halves + known[known.index(b"\x28") :]}
    with tf_bundle.open_source(bundle(tmp_path, entries, bytes(data))) as source:
        same(source.read("v"), np.float32([1, 2]))
        assert source.specs()["w"].shape == (2, 1)
        same(source.read("w"), np.float32([[1], [2]]))


def test_many_shapes_are_not_all_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf_bundle, "_MAX_SEEN", 2)
    source = tf_bundle.open_source(bundle(tmp_path, {b"%d" % n: entry((n,), size=4 * n) for n in range(1, 6)}))
    assert [spec.shape for spec in source.specs().values()] == [(n,) for n in range(1, 6)]
    assert len(source._seen) == 2


def test_where_tensors_lie(tmp_path: Path) -> None:
    data = bytearray(b"...")
    value = np.float32([1, 2, 3])
    entries = {
        b"v": stored(value, data),
        b"empty": entry((0,)),
        b"handle": entry((), size=1, dtype=20),
        b"small": stored(np.array([1, 2], dtype_named("int4")), data),
        b"bytes": stored(np.uint8([1, 2]), data),
        b"long": entry((9,), size=36, offset=22),
        b"cut": entry((2,), slices=(((0, 2),),)),
    }
    path = bundle(tmp_path, entries, bytes(data))
    with tf_bundle.open_source(path) as source:
        crc = crc32c.crc32c(value.tobytes())
        assert source.extent("v") == Extent(f"{path}.data-00000-of-00001", 3, 12, Checksum("crc32c", crc, 3, 12))
        assert [source.extent(n) for n in ("empty", "handle", "small", "cut")] == [None] * 4
        assert source.checksum("v") == "crc32c"
        what = f"{OUTSIDE} 22..58 asked for, the file has {len(data)}"
        with says(FormatError, f"{path}.data-00000-of-00001: tensor 'long' at byte 19: {what}"):
            source.extent("long")
    with tf_bundle.open_source(bundle(tmp_path, entries, bytes(data), header=number_field(1, 1) + b"\x10\1")) as source:
        assert source.extent("v") is None, "its bytes are in another order"
        assert source.extent("bytes") is not None


def test_what_is_stored_without_values(tmp_path: Path) -> None:
    data = bytearray()
    element = b"\2ab"
    crc = crc32c.crc32c(b"\2" + bytes(7) + b"ab")
    check = mask(crc).to_bytes(4, "little")
    crc = mask(crc32c.crc32c(check, crc))
    entries = {
        b"state": entry((1,), dtype=21, size=7, crc=crc),
        b"handle": entry((1,), dtype=20, size=7),
        b"cut": entry((1,), dtype=21, slices=(((0, 1),),)),
        b"v": entry((0,)),
    }
    data += element + check
    path = bundle(tmp_path, entries, bytes(data))
    with tf_bundle.open_source(path) as source:
        specs = source.specs()
        assert {n: (specs[n].nbytes, specs[n].role, specs[n].unread) for n in ("state", "handle", "v")} == {
            "state": (7, "constant", "a variant, which has no values"),
            "handle": (7, "constant", "a resource handle, which has no values"),
            "v": (0, "weight", ""),
        }
        number, masked, chunks = source.stored("state")
        assert (number, masked, b"".join(chunks)) == (21, crc, element + check)
        for name in ("handle", "cut", "v"):
            with says(FormatError, f"{path}.index: tensor {name!r}: is no variant, which could be carried over"):
                source.stored(name)


def test_what_the_specs_say(tmp_path: Path) -> None:
    """Of what is in slices, too; and what an optimizer's is, by its name and its shape."""
    cuts = (((0, 2),), ((2, 2),))
    float32 = np.dtype(np.float32)
    texts_cut = entry((4,), dtype=7, slices=cuts)
    entries = {
        b"w": entry((4,), slices=cuts),
        b"w/Momentum": entry((4,), size=16),
        b"x/Momentum": entry((4,), size=16),
        b"global_step": entry((), dtype=9, size=8),
        b"t": texts_cut,
        b"handle": entry((3,), dtype=20, size=5),
    }
    for n, cut in enumerate(cuts):
        entries[_slices.slice_key(b"t", cut)] = entry((2,), dtype=7, size=10 + n)
    source = tf_bundle.open_source(bundle(tmp_path, entries))
    assert dict(source.specs()) == {
        "global_step": TensorSpec(np.dtype(np.int64), (), 8, "counter"),
        "handle": TensorSpec(np.dtype(object), (3,), 5, "constant", "a resource handle, which has no values"),
        "t": TensorSpec(np.dtype(object), (4,), 21, "weight"),
        "w": TensorSpec(float32, (4,), 16, "weight"),
        "w/Momentum": TensorSpec(float32, (4,), 16, "slot"),
        "x/Momentum": TensorSpec(float32, (4,), 16, "weight"),
    }
    assert not source.object_based
    assert source.keys_of("w") == ["w"]
    assert source.facts(["w"]) == {}
    del entries[_slices.slice_key(b"t", cuts[1])]
    source = tf_bundle.open_source(bundle(tmp_path, entries))
    with says(FormatError, f"{tmp_path / 'c.index'}: tensor 't': the data of slice [(2, 2)] is not there"):
        source.specs()["t"]


def test_every_way_to_a_damaged_entry_names_the_tensor(tmp_path: Path) -> None:
    cuts = (((0, 1),),)
    entries = {b"bad": entry((1,), dtype=99), b"far": entry((1,), size=4, shard=3), b"cut": entry((1,), slices=cuts)}
    entries[b"state"] = entry((), dtype=21, size=4, shard=3)
    entries[_slices.slice_key(b"cut", cuts[0])] = entry((1,), dtype=98)
    source = tf_bundle.open_source(bundle(tmp_path, entries))
    index = tmp_path / "c.index"
    for call in (lambda: source.specs()["bad"], lambda: source.extent("bad"), lambda: source.stored("bad")):
        with says(FormatError, f"{index}: tensor 'bad': unknown dtype number 99"):
            call()
    with says(FormatError, f"{index}: tensor 'cut': unknown dtype number 98"):
        source.read("cut")
    with says(FormatError, f"{index}: tensor 'far': data shard 3 of 1"):
        source.extent("far")
    with says(FormatError, f"{index}: tensor 'state': data shard 3 of 1"):
        source.stored("state")


def test_variants_that_are_damaged_are_named(tmp_path: Path) -> None:
    source = tf_bundle.open_source(bundle(tmp_path, {b"state": entry((1,), dtype=21, size=3)}, b"\x09ab"))
    path = tmp_path / "c.data-00000-of-00001"
    with says(FormatError, f"{path}: tensor 'state' at byte 0: a variant is longer than its place"):
        list(source.stored("state")[2])


def test_numbers_of_two_bytes_in_another_order(tmp_path: Path) -> None:
    path = bundle(tmp_path, {b"v": entry((1,), dtype=5, size=2)}, b"ab", header=number_field(1, 1) + b"\x10\1")
    assert tf_bundle.open_source(path).extent("v") is None


GRAPH = b"_CHECKPOINTABLE_OBJECT_GRAPH"


def test_an_object_graph_whose_shard_is_not_there(tmp_path: Path) -> None:
    data = bytearray()
    entries = {GRAPH: entry((), dtype=7, size=9, shard=1), b"v": stored(np.float32([1]), data)}
    path = bundle(tmp_path, entries, header=number_field(1, 2))
    (tmp_path / "c.data-00000-of-00002").write_bytes(data)
    with tf_bundle.open_source(path) as source:
        assert source.object_based
        assert list(source.specs()) == ["v"]
        assert source.objects() == ([], {})


def test_an_object_graph_that_is_damaged(tmp_path: Path) -> None:
    raw, crc = texts(b"\x0a\x09")
    path = bundle(tmp_path, {GRAPH: entry((), dtype=7, size=len(raw), crc=crc)}, raw)
    with says(FormatError, f"{path} at byte 0: a field of 9 bytes in 0 that are left"):
        tf_bundle.open_source(path).specs()
    path = bundle(tmp_path, {GRAPH: entry((), dtype=7, size=len(raw), crc=crc ^ 1)}, raw)
    what = f"corrupt: the checksum of its {len(raw)} bytes is {crc:08x}, the index has {crc ^ 1:08x}"
    with says(FormatError, f"{path}.data-00000-of-00001: tensor {GRAPH.decode()!r} at byte 0: {what}"):
        tf_bundle.open_source(path).specs()
    path = bundle(tmp_path, {GRAPH: entry((), dtype=97, size=len(raw))}, raw)
    with says(FormatError, f"{path}.index: tensor {GRAPH.decode()!r}: unknown dtype number 97"):
        tf_bundle.open_source(path).specs()


def test_copies_of_a_variable(tmp_path: Path) -> None:
    """Two keys of the same value are one tensor, of two different values two."""
    value = "/.ATTRIBUTES/VARIABLE_VALUE"

    def node(children: dict[str, int] | None = None, key: str = "") -> bytes:
        out = b"".join(
            bytes_field(1, number_field(1, n) + bytes_field(2, name.encode())) for name, n in (children or {}).items()
        )
        attribute = bytes_field(1, b"VARIABLE_VALUE") + bytes_field(2, b"w") + bytes_field(3, key.encode())
        return bytes_field(1, out + (bytes_field(2, attribute) if key else b""))

    keys = f"_all_variables/0{value}", f"w{value}"
    objects = node({"w": 1, "_all_variables": 2}) + node(key=keys[1]) + node({"0": 3}) + node(key=keys[0])
    raw, crc = texts(objects)
    for second, copies in ((np.float32([1, 2]), 1), (np.float32([1, 3]), 2), (np.int32([1, 2]), 2)):
        data = bytearray(raw)
        entries = {GRAPH: entry((), dtype=7, size=len(raw), crc=crc)}
        entries[keys[1].encode()] = stored(np.float32([1, 2]), data)
        entries[keys[0].encode()] = stored(second, data)
        with tf_bundle.open_source(bundle(tmp_path, entries, bytes(data))) as source:
            assert len(source.specs()) == copies
            same(source.read(keys[1]), np.float32([1, 2]))
            same(source.read(keys[0]), second)
            assert set(source.raw_names()) == set(keys)
            if copies == 1:
                (name,) = source.specs()
                assert sorted(source.keys_of(name)) == sorted(keys)


def test_two_names_that_read_alike(tmp_path: Path) -> None:
    path = bundle(tmp_path, {b"\xff": entry((0,)), rb"\xff": entry((0,))})
    with says(FormatError, f"{path}.index: two tensors have the same name"):
        tf_bundle.open_source(path).specs()


@pytest.mark.parametrize("wrong", [entry((0,), dtype=7), entry((), size=4)])
def test_an_object_graph_that_is_none(tmp_path: Path, wrong: bytes) -> None:
    path = bundle(tmp_path, {b"_CHECKPOINTABLE_OBJECT_GRAPH": wrong}, bytes(8))
    with says(FormatError, f"{path}.index: tensor '_CHECKPOINTABLE_OBJECT_GRAPH': is no scalar string"):
        tf_bundle.open_source(path).specs()


def test_an_object_graph_counts_against_the_budget(tmp_path: Path) -> None:
    raw, crc = texts(b"")
    path = bundle(tmp_path, {b"_CHECKPOINTABLE_OBJECT_GRAPH": entry((), dtype=7, size=len(raw), crc=crc)}, raw)
    with ByteFile(f"{path}.index") as file:
        table = tf_bundle.Table(file, Budget())
        first = table.block(0).handle.size
        spent = first + file.size - 48 - 5 - (first + 5 + 8 + 5)
    assert len(tf_bundle.open_source(path, budget=Budget(header_bytes=spent + len(raw))).specs()) == 0
    source = tf_bundle.open_source(path, budget=Budget(header_bytes=spent + len(raw) - 1))
    with says(BudgetExceeded, f"{path}: header bytes: {spent + 5:,} asked for, at most {spent + 4:,} allowed"):
        source.specs()


def test_a_path_that_leads_elsewhere(tmp_path: Path) -> None:
    path = fixture("d_checkpoints/sharded").folder / "model_v1.ckpt-?????-of-00002"
    with says(FormatError, f"{path}: is no V2 checkpoint but a sharded V1 checkpoint"):
        tf_bundle.open_source(str(path))
    assert not tf_bundle.sniff(str(path))
    assert not tf_bundle.sniff(str(tmp_path / "none"))
    write(str(tmp_path / "c"), {})
    assert tf_bundle.sniff(str(tmp_path / "c"))


def test_closed(tmp_path: Path) -> None:
    write(str(tmp_path / "c"), {"a": np.float32([1]), "b": np.float32([2])})
    source = tf_bundle.open_source(str(tmp_path / "c"))
    source.read("a")
    before = len(os.listdir("/dev/fd"))
    source.close()
    assert len(os.listdir("/dev/fd")) == before - 1
    for call in (lambda: source.read("b"), lambda: source.extent("b"), lambda: source._shard(0, "b")):
        with says(Error, f"{tmp_path / 'c'}: is closed"):
            call()
    source.close()


def test_names(tmp_path: Path) -> None:
    path = str(tmp_path / "c")
    write(path, {"a/kernel": np.zeros(2, np.float32), "a/bias": np.zeros(2, np.float32)})
    source = tf_bundle.open_source(path)
    assert list(source.specs()) == ["a/bias", "a/kernel"]
    assert source.raw_names() == {"a/bias": "a/bias", "a/kernel": "a/kernel"}
    assert "a/bias" in source.specs()
    with pytest.raises(TensorNotFound, match="no tensor 'a/kernal'; closest: 'a/kernel'"):
        source.read("a/kernal")
    for name in ("", "\0a"):
        with pytest.raises(TensorNotFound):
            source.read(name)
    with pytest.raises(KeyError):
        source.specs()["nothing"]
    source.close()
    with pytest.raises(Error, match="is closed"):
        source.read("a/bias")


def test_names_that_are_not_text(tmp_path: Path) -> None:
    data = bytearray()
    entries = {b"\xff\xfe": stored(np.zeros(2, np.float32), data), b"\xc3\xa9": stored(np.ones(2, np.float32), data)}
    source = tf_bundle.open_source(bundle(tmp_path, entries, bytes(data)))
    assert set(source.specs()) == {r"\xff\xfe", "é"}
    for name in source.specs():
        assert source.read(name).shape == (2,)


def test_number_of_tensors_is_bounded(tmp_path: Path) -> None:
    path = bundle(tmp_path, {b"%d" % n: entry(()) for n in range(20)})
    with says(BudgetExceeded, f"{path}.index: tensors: 20 asked for, at most 19 allowed"):
        tf_bundle.open_source(path, budget=Budget(tensors=19))
    tf_bundle.open_source(path, budget=Budget(tensors=20)).close()


def test_threads(tmp_path: Path) -> None:
    path = str(tmp_path / "c")
    values = {f"v{n}": np.full((50, 50), n, np.float32) for n in range(40)}
    write(path, values)
    source = tf_bundle.open_source(path)
    wrong: list[Any] = []

    def work() -> None:
        for name, value in values.items():
            if source.read(name).tobytes() != value.tobytes():
                wrong.append(name)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
