from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crc32c
import numpy as np
import pytest

from tests.formats.test_tf_bundle import bundle, bytes_field, entry, random_value, same, stored, texts
from tests.formats.test_tf_objects import node as trackable
from tests.support import fixture, need, says
from weightport.errors import Error, FormatError
from weightport.formats import _tf_bundle_files, tf_bundle, tf_bundle_write
from weightport.formats._io import ByteFile
from weightport.formats._table import Table, mask
from weightport.formats._temporaries import try_lock
from weightport.formats._tensorproto import NUMBERS
from weightport.formats._tf_variants import variants
from weightport.tensors import Budget, TensorSpec, dtype_named


def save(
    path: str,
    tensors: dict[str, np.ndarray],
    rows: int = 2,
    like: str | None = None,
    shard_size: int | None = None,
) -> None:
    """Written in tiles of some rows."""

    def tiles(name: str) -> Iterator[np.ndarray]:
        value = tensors[name]
        if not value.ndim or not value.size:
            yield value
        else:
            for at in range(0, len(value), rows):
                yield value[at : at + rows]

    specs = {n: TensorSpec.of(a.dtype, a.shape) for n, a in tensors.items()}
    tf_bundle_write.write(path, specs, tiles, like=like, shard_size=shard_size)


def everything() -> dict[str, np.ndarray]:
    values = {}
    for dtype in NUMBERS:
        for shape in ((), (0,), (5,), (3, 2), (2, 0, 3)):
            values[f"{dtype}/{len(shape)}x{int(np.prod(shape))}"] = random_value(dtype, shape, 7)
    values["special"] = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-42], np.float32)
    values["special"].view(np.uint32)[0] = 0x7F800001  # a signalling NaN keeps its bits
    return values


def test_golden(tmp_path: Path) -> None:
    """The bytes pinned; that they are TensorFlow's own is the next test's."""
    save(str(tmp_path / "c"), {"b": np.array([1, 2], np.float32), "a": np.array([b"xy"], object)})
    data = (tmp_path / "c.data-00000-of-00001").read_bytes()
    assert data == bytes.fromhex("0000803f00000040 02 d8d81073") + b"xy"
    index = (tmp_path / "c.index").read_bytes()
    assert index.startswith(bytes.fromhex("000006 0801 1a020801".replace(" ", "")) + b"\0\1")
    assert b"a\x08\x07\x12\x04\x12\x02\x08\x01 \x08(\x07\x35" in index
    assert b"b\x08\x01\x12\x04\x12\x02\x08\x02(\x08\x35" in index
    assert sorted(os.listdir(tmp_path)) == ["c.data-00000-of-00001", "c.index"]


def test_same_bytes_as_tensorflow(tmp_path: Path) -> None:
    """Where TensorFlow's own separators of blocks play no role, the files are equal to its own."""
    tf = need("tensorflow")
    values = {f"v/{n:02d}": np.float32([n, n]) for n in range(40)}
    values["w"] = np.array([b"a", b"", b"c" * 300], object)
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "theirs"),
        tensor_names=list(values),
        shape_and_slices=[""] * len(values),
        tensors=[tf.constant(v.tolist(), tf.string if v.dtype == object else tf.float32) for v in values.values()],
    )
    save(str(tmp_path / "ours"), values)
    shard = ".data-00000-of-00001"
    assert (tmp_path / f"ours{shard}").read_bytes() == (tmp_path / f"theirs{shard}").read_bytes()
    ours, theirs = ((tmp_path / f"{n}.index").read_bytes() for n in ("ours", "theirs"))
    block = ours.index(b"w\x08\x07") + 20
    assert ours[:block] == theirs[:block]


def test_tensorflow_reads_it(tmp_path: Path) -> None:
    tf = need("tensorflow")
    values = everything()
    values |= {f"{n * 7919 % 9001:05d}/a/long/scope/of/many/parts": np.float32([n, -n]) for n in range(9000)}
    path = str(tmp_path / "c")
    for _ in range(2):  # new, and overwritten
        save(path, values)
        reader = tf.train.load_checkpoint(path)
        assert set(reader.get_variable_to_shape_map()) == set(values)
        # Quantized and sub-byte types need an op; the reader gives plain numpy.
        restored = tf.raw_ops.RestoreV2(
            prefix=path,
            tensor_names=list(values),
            shape_and_slices=[""] * len(values),
            dtypes=[tf.dtypes.as_dtype(NUMBERS[value.dtype.name]) for value in values.values()],
        )
        for tensor, value in zip(restored, values.values(), strict=True):
            if value.dtype == object:
                assert np.asarray(tensor.numpy(), object).tolist() == value.tolist()
            else:
                same(np.asarray(tensor.numpy()).reshape(value.shape), value)
    assert sorted(os.listdir(tmp_path)) == ["c.data-00001-of-00002", "c.index"]


def test_saver_restores_it(tmp_path: Path) -> None:
    tf = need("tensorflow")
    model = fixture("d_checkpoints/partitioned")
    values = model.variables
    path = str(tmp_path / "model.ckpt")
    save(path, values)
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        variables = {
            name: v1.get_variable(
                name, shape=value.shape, partitioner=tf.compat.v1.fixed_size_partitioner(2) if value.ndim == 2 else None
            )
            for name, value in values.items()
        }
        v1.train.Saver().restore(session, path)
        for name, variable in variables.items():
            assert session.run(tf.convert_to_tensor(variable)).tobytes() == values[name].tobytes()


def tiny(keras: Any) -> Any:
    layers = keras.layers
    return keras.Sequential([layers.Input((5, 3)), layers.LSTM(4, name="lstm"), layers.Dense(2, name="head")])


def test_the_objects_of_a_target_restore_it(tmp_path: Path) -> None:
    """A TF 2 checkpoint as the target: Keras and ``tf.train.Checkpoint`` take ours as they took theirs."""
    tf, keras = need("tensorflow"), need("tf_keras")
    model = tiny(keras)
    adam = keras.optimizers.Adam()
    adam.apply_gradients([(tf.ones_like(v), v) for v in model.trainable_variables])
    theirs, ours = str(tmp_path / "theirs"), str(tmp_path / "ours")
    tf.train.Checkpoint(model=model, optimizer=adam).write(theirs)
    with tf_bundle.open_source(theirs) as source:
        specs = source.specs()
        weights = {n: source.read(n) * 2 for n, spec in specs.items() if spec.role == "weight"}
        slots = [n for n, spec in specs.items() if spec.role == "slot"]
        slot = source.read(slots[0])
    assert {n.rpartition("/")[2] for n in weights} == {"kernel", "recurrent_kernel", "bias"}
    save(ours, weights, like=theirs)
    with tf_bundle.open_source(ours) as source:
        assert list(source.specs()) == list(specs), "the same tensors under the same names"
        same(source.read(slots[0]), slot)  # the optimizer's are carried over
        for name, value in weights.items():
            same(source.read(name), value)
    other = tiny(keras)
    fresh = keras.optimizers.Adam()
    fresh.build(other.trainable_variables)
    tf.train.Checkpoint(model=other, optimizer=fresh).read(ours).assert_consumed()
    for mine, his in zip(other.weights, model.weights, strict=True):
        same(mine.numpy(), his.numpy() * 2)
    for mine, his in zip(fresh.variables, adam.variables, strict=True):
        same(mine.numpy(), his.numpy())


def test_the_objects_of_a_target_that_is_the_destination(tmp_path: Path) -> None:
    tf = need("tensorflow")
    path = str(tmp_path / "c")
    wide = np.arange(3 << 20, dtype=np.float32).reshape(3, -1)  # in several tiles
    saved = tf.train.Checkpoint(a=tf.Variable(np.float32([1, 2])), b=tf.Variable(wide, name="step_or_so"))
    prefix = saved.save(path)
    save(prefix, {"a": np.float32([5, 6]), "step_or_so": wide}, like=prefix)
    saved.a.assign([0, 0])
    saved.restore(prefix).assert_consumed()
    assert saved.a.numpy().tolist() == [5, 6]
    assert np.array_equal(saved.b.numpy(), wide)
    assert int(saved.save_counter) == 1, "counters are carried over"
    # Keras 2 loads what it saved itself in this format.
    keras = need("tf_keras")
    model = tiny(keras)
    model.save_weights(str(tmp_path / "k"), save_format="tf")
    with tf_bundle.open_source(str(tmp_path / "k")) as source:
        values = {n: source.read(n) + 1 for n, spec in source.specs().items() if spec.role == "weight"}
    expected = [w + 1 for w in model.get_weights()]
    save(str(tmp_path / "k2"), values, like=str(tmp_path / "k"))
    model.load_weights(str(tmp_path / "k2")).assert_consumed()
    for mine, his in zip(model.get_weights(), expected, strict=True):
        same(mine, his)


def test_names_that_are_not_those_of_the_objects(tmp_path: Path) -> None:
    like = fixture("c_keras/v2_lstm").path("checkpoint_object_based")
    with tf_bundle.open_source(like) as source:
        values = {n: source.read(n) for n, spec in source.specs().items() if spec.role == "weight"}
    names = list(values)
    values["lstm/kernal"] = values.pop(names[0])
    values[names[1]] = values[names[1]].T.copy()
    values[names[2]] = values[names[2]].astype(np.float64)
    with pytest.raises(Error) as error:
        save(str(tmp_path / "c"), values, like=like)
    told = "\n".join(str(p) for p in error.value.problems)
    assert len(error.value.problems) == 4
    assert "has no tensor 'lstm/kernal'; closest:" in told
    assert f"no values for {names[0]!r}" in told
    assert f"{names[1]!r} is float32" in told
    assert f"{names[2]!r} is float64" in told
    assert list(tmp_path.iterdir()) == []


def test_a_target_without_objects_makes_no_difference(tmp_path: Path) -> None:
    save(str(tmp_path / "like"), {"x": np.zeros(3)})
    save(str(tmp_path / "c"), {"y": np.ones(2)}, like=str(tmp_path / "like"))
    with tf_bundle.open_source(str(tmp_path / "c")) as source:
        assert list(source.specs()) == ["y"]


def test_shards(tmp_path: Path) -> None:
    """Tensors in their order, none of them cut; TensorFlow reads them from wherever they lie."""
    tf = need("tensorflow")
    path = str(tmp_path / "c")
    values: dict[str, np.ndarray] = {f"v{n}": np.arange(n, dtype=np.float32) for n in range(1, 6)}
    values |= {"large": np.ones((5, 5)), "text": np.array([b"ab", b"c"], object), "empty": np.zeros((0, 3))}
    sizes = []
    for first, count in ((0, 5), (0, 6), (0, 5)):  # new, overwritten, overwritten again
        save(path, values, shard_size=24)
        shards = sorted(n for n in os.listdir(tmp_path) if ".data-" in n)
        total = int(shards[0][-5:])
        sizes.append([(tmp_path / n).stat().st_size for n in shards])
        assert len(shards) == 5
        assert total >= count
        assert shards[first] == f"c.data-{total - 5:05d}-of-{total:05d}"
        reader = tf.train.load_checkpoint(path)
        assert reader.get_variable_to_shape_map() == {n: list(v.shape) for n, v in values.items()}
        with tf_bundle.open_source(path) as source:
            for name, value in values.items():
                same(source.read(name), value)
                assert np.asarray(reader.get_tensor(name)).reshape(-1).tolist() == value.reshape(-1).tolist()
    assert sizes == [[24, 16, 20, 200, 9]] * 3
    assert len(os.listdir(tmp_path)) == 6
    save(path, values)
    assert len(os.listdir(tmp_path)) == 2


def test_shards_of_objects(tmp_path: Path) -> None:
    tf, keras = need("tensorflow"), need("tf_keras")
    model, other = tiny(keras), tiny(keras)
    theirs, ours = str(tmp_path / "theirs"), str(tmp_path / "ours")
    tf.train.Checkpoint(model=model).write(theirs)
    with tf_bundle.open_source(theirs) as source:
        weights = {n: source.read(n) + 1 for n, spec in source.specs().items() if spec.role == "weight"}
    save(ours, weights, like=theirs, shard_size=100)
    assert sum(".data-" in n for n in os.listdir(tmp_path)) == 1 + 5  # theirs; and ours: two small ones share a shard
    tf.train.Checkpoint(model=other).read(ours).assert_consumed()
    for mine, his in zip(other.get_weights(), model.get_weights(), strict=True):
        same(mine, his + 1)


def test_what_has_no_values_is_carried_over(tmp_path: Path) -> None:
    """An iterator, a table, a generator of random numbers: they are restored to where they stood."""
    tf = need("tensorflow")
    theirs, ours = str(tmp_path / "theirs"), str(tmp_path / "ours")

    def objects() -> dict[str, Any]:
        table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
        random = tf.random.Generator.from_seed(1)
        return {"w": tf.Variable([1.0]), "data": iter(tf.data.Dataset.range(9)), "table": table, "random": random}

    made = objects()
    for _ in range(3):
        next(made["data"])
    made["table"].insert(["a"], tf.constant([5], tf.int64))
    made["random"].normal([3])
    tf.train.Checkpoint(**made).write(theirs)
    with tf_bundle.open_source(theirs) as source:
        specs = source.specs()
        assert {name: (spec.role, bool(spec.unread)) for name, spec in specs.items()} == {
            "data/.ATTRIBUTES/ITERATOR_STATE": ("constant", True),
            "random/_state_var": ("counter", False),
            "table/.ATTRIBUTES/table-keys": ("constant", False),
            "table/.ATTRIBUTES/table-values": ("constant", False),
            "w": ("weight", False),
        }
        assert specs["data/.ATTRIBUTES/ITERATOR_STATE"].unread == "a variant, which has no values"
        assert source.read("table/.ATTRIBUTES/table-keys").tolist() == [b"a"]
    save(ours, {"w": np.float32([7])}, like=theirs)
    back = objects()
    tf.train.Checkpoint(**back).read(ours).assert_consumed()
    assert (int(next(back["data"])), back["w"].numpy().tolist()) == (3, [7])
    assert back["table"].lookup(tf.constant(["a", "b"])).numpy().tolist() == [5, -1]
    same(back["random"].state.numpy(), made["random"].state.numpy())
    again = str(tmp_path / "again")
    save(again, {"w": np.float32([7])}, like=ours)
    assert Path(f"{again}.data-00000-of-00001").read_bytes() == Path(f"{ours}.data-00000-of-00001").read_bytes()


@pytest.mark.parametrize("fault", ["a bit", "a length", "the end"])
def test_variants_that_are_damaged(tmp_path: Path, fault: str) -> None:
    def element(raw: bytes, crc: int) -> tuple[bytes, int]:
        crc = crc32c.crc32c(raw, crc32c.crc32c(len(raw).to_bytes(8, "little"), crc))
        check = mask(crc).to_bytes(4, "little")
        return bytes([len(raw)]) + raw + check, crc32c.crc32c(check, crc)

    one, crc = element(b"one", 0)
    two, crc = element(b"twos", crc)
    stored = bytearray(one + two)
    told = "a variant does not have its checksum: damaged"
    if fault == "a bit":
        stored[2] ^= 1
    elif fault == "a length":
        stored[0] = 99
        told = "a variant is longer than its place"
    else:
        stored += b"."
        told = "variants do not have their checksum: damaged"
    file = tmp_path / "data"
    file.write_bytes(stored)
    with ByteFile(file) as opened, pytest.raises(FormatError, match=told):
        list(variants(opened, 0, len(stored), 2, mask(crc), "v"))
    if fault == "the end":
        file.write_bytes(stored[:-1])
        with ByteFile(file) as opened:
            assert b"".join(variants(opened, 0, len(stored) - 1, 2, mask(crc), "v")) == stored[:-1]
        with ByteFile(file) as opened, pytest.raises(FormatError, match=told):
            list(variants(opened, 0, len(stored) - 1, 2, mask(crc) ^ 1, "v"))


def test_too_many_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tf_bundle_files, "MOST_SHARDS", 2)
    with pytest.raises(Error, match=r"^more than 2 data shards: a checkpoint cannot have more; choose larger ones$"):
        save(str(tmp_path / "c"), {n: np.zeros(2) for n in "abc"}, shard_size=1)
    assert os.listdir(tmp_path) == []


def test_copy_of_a_fixture(tmp_path: Path) -> None:
    source = tf_bundle.open_source(fixture("d_checkpoints/dtypes").path("checkpoint_v2"))
    path = str(tmp_path / "c.index")  # the suffix is taken off
    tf_bundle_write.write(path, source.specs(), lambda name: iter([source.read(name)]))
    copy = tf_bundle.open_source(path)
    assert list(copy.specs()) == list(source.specs())
    for name in source.specs():
        same(copy.read(name), source.read(name))


def test_overwriting_alternates_and_cleans(tmp_path: Path) -> None:
    path = str(tmp_path / "c[1]*")  # a name with pattern characters is a name
    other = tmp_path / "c1.data-00000-of-00001"
    other.write_bytes(b"another checkpoint's")
    seen = []
    for n in range(3):
        save(path, {"v": np.full(3, n, np.float32)})
        names = sorted(set(os.listdir(tmp_path)) - {other.name})
        seen.append(names[0])
        assert names == [seen[-1], "c[1]*.index"]
        with tf_bundle.open_source(path) as source:
            same(source.read("v"), np.full(3, n, np.float32))
    assert seen == ["c[1]*.data-00000-of-00001", "c[1]*.data-00001-of-00002", "c[1]*.data-00000-of-00001"]
    assert other.exists()


def test_output_is_the_input(tmp_path: Path) -> None:
    path = str(tmp_path / "c")
    save(path, {"v": np.arange(6, dtype=np.float32).reshape(3, 2)})
    with tf_bundle.open_source(path) as source:
        tf_bundle_write.write(path, source.specs(), lambda name: iter([-source.read(name)]))
    same(tf_bundle.open_source(path).read("v"), -np.arange(6, dtype=np.float32).reshape(3, 2))


def test_a_linked_index_is_replaced(tmp_path: Path) -> None:
    save(str(tmp_path / "other"), {"v": np.zeros(2, np.float32)})
    (tmp_path / "c.index").symlink_to("other.index")
    save(str(tmp_path / "c"), {"v": np.ones(2, np.float32)})
    same(tf_bundle.open_source(str(tmp_path / "c")).read("v"), np.ones(2, np.float32))
    same(tf_bundle.open_source(str(tmp_path / "other")).read("v"), np.zeros(2, np.float32))


def test_mode_is_kept(tmp_path: Path) -> None:
    path = str(tmp_path / "c")
    save(path, {"v": np.zeros(2)})
    (tmp_path / "c.index").chmod(0o600)
    save(path, {"v": np.zeros(2)})
    assert stat.S_IMODE((tmp_path / "c.index").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("tiles", "what"),
    [
        ([np.zeros((2, 2), np.float32)], "2 rows of values for the shape [3, 2]"),
        ([np.zeros((2, 2), np.float32)] * 2, "values of float32[2, 2] for float32[3, 2]"),
        ([], "0 rows of values for the shape [3, 2]"),
        ([np.zeros((3, 1), np.float32)], "values of float32[3, 1] for float32[3, 2]"),
        ([np.zeros((3, 2), np.float64)], "values of float64[3, 2] for float32[3, 2]"),
        ([np.zeros(3, np.float32)], "values of float32[3] for float32[3, 2]"),
    ],
)
def test_wrong_tiles_change_nothing(tmp_path: Path, tiles: list[np.ndarray], what: str) -> None:
    path = str(tmp_path / "c")
    save(path, {"old": np.zeros(2)})
    before = {f: (tmp_path / f).read_bytes() for f in os.listdir(tmp_path)}
    with says(Error, f"{path}: tensor 'v': {what}"):
        tf_bundle_write.write(path, {"v": TensorSpec.of("float32", (3, 2))}, lambda _: iter(tiles))
    assert {f: (tmp_path / f).read_bytes() for f in os.listdir(tmp_path)} == before


def test_wrong_texts(tmp_path: Path) -> None:
    texts_of = TensorSpec.of(object, (2, 2))
    for tile, what in (
        (np.array([b"a", b"b"], object), "values of object[2] for object[2, 2]"),
        (np.array([[b"a", b"b"]], object), "1 rows of values for the shape [2, 2]"),
        (np.array([["a", 1], [2, 3]], object), "int where a string was expected"),
    ):
        with says(Error, f"{tmp_path / 'c'}: tensor 'v': {what}"):
            tf_bundle_write.write(str(tmp_path / "c"), {"v": texts_of}, lambda _, t=tile: iter([t]))
    matrix = np.array([["a", "é"], [b"c", b""]], object)
    save(str(tmp_path / "c"), {"v": matrix}, rows=1)
    assert tf_bundle.open_source(str(tmp_path / "c")).read("v").tolist() == [[b"a", "é".encode()], [b"c", b""]]


def test_shapes_of_every_rank(tmp_path: Path) -> None:
    values = {f"v{n}": np.zeros((2,) * n, np.int8) for n in range(5)} | {"e": np.zeros((3, 0, 2))}
    save(str(tmp_path / "c"), values)
    with tf_bundle.open_source(str(tmp_path / "c")) as source:
        assert {n: s.shape for n, s in source.specs().items()} == {n: v.shape for n, v in values.items()}
        for name, value in values.items():
            same(source.read(name), value)
    # Each entry is a dtype, a shape of exactly its dimensions, a place and a checksum.
    with ByteFile(tmp_path / "c.index") as file:
        entries = dict(Table(file, Budget()).items())
    assert entries[b"v2"][:12] == bytes.fromhex("0806 1208 12020802 12020802".replace(" ", ""))


def test_wrong_scalars(tmp_path: Path) -> None:
    one = np.float32(1)
    for tiles, what in (
        ([], "0 rows of values for the shape []"),
        ([one, one], "values of float32[] for float32[]"),
        ([np.float32([1])], "values of float32[1] for float32[]"),
    ):
        with says(Error, f"{tmp_path / 'c'}: tensor 'v': {what}"):
            tf_bundle_write.write(str(tmp_path / "c"), {"v": TensorSpec.of("float32", ())}, lambda _, t=tiles: iter(t))
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_written(tmp_path: Path) -> None:
    def none(name: str) -> Iterator[np.ndarray]:
        raise AssertionError(name)

    def write(spec: TensorSpec, name: str = "v", to: str = "c") -> None:
        tf_bundle_write.write(str(tmp_path / to), {name: spec}, none)

    scalar = TensorSpec.of("float32", ())
    for name in ("", "\0a"):
        with says(Error, f"{tmp_path / 'c'}: tensor {name!r}: a checkpoint cannot hold a tensor of this name"):
            write(scalar, name)
    with says(Error, f"{tmp_path / 'c'}: tensor '\\udc80': the name is no valid text"):
        write(scalar, "\udc80")
    with says(Error, f"{tmp_path / 'c'}: tensor 'v': a checkpoint cannot hold the dtype datetime64[s]"):
        write(TensorSpec.of(np.dtype("M8[s]"), ()))
    with says(Error, f"{tmp_path / 'no' / 'c'}: cannot be written: no folder '{tmp_path / 'no'}'"):
        write(scalar, to="no/c.index")
    with says(Error, f"{tmp_path / 'c'}: tensor 'v': int where a string was expected"):
        save(str(tmp_path / "c"), {"v": np.array([1], object)})
    assert os.listdir(tmp_path) == []


def test_into_the_folder_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for n in range(2):
        save("c", {"v": np.float32([n])})
        same(tf_bundle.open_source("c").read("v"), np.float32([n]))
    assert sorted(os.listdir()) == ["c.data-00001-of-00002", "c.index"]


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in os.listdir(folder)}


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_rename_that_fails(tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two shards and the index, at each: the old checkpoint stays, and nothing is left over."""
    path, count, plain = str(tmp_path / "c"), 0, os.replace
    save(path, {"v": np.zeros(2), "w": np.zeros(2)}, shard_size=16)
    before = contents(tmp_path)

    def failing(source: str, target: str) -> None:
        nonlocal count
        count += 1
        if count == step:
            raise OSError(5, "Input/output error")
        plain(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with says(Error, f"{path}: cannot be written: Input/output error"):
        save(path, {"v": np.ones(2), "w": np.ones(2)}, shard_size=16)
    assert contents(tmp_path) == before
    assert count == step


def test_an_error_without_a_system_s_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: object) -> None:
        raise OSError("of its own making")

    monkeypatch.setattr(os, "fsync", no)
    with says(Error, f"{tmp_path / 'c'}: cannot be written: of its own making"):
        save(str(tmp_path / "c"), {"v": np.ones(2)})
    assert os.listdir(tmp_path) == []


def test_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data and index are durable before they get their names, the index gets its name last, old data goes after."""
    path = str(tmp_path / "c")
    save(path, {"v": np.zeros(2), "w": np.zeros(2)}, shard_size=16)
    done: list[str] = []

    def kind(name: str) -> str:
        return "index" if name.endswith(".index") else "data" if ".data-" in name else "temporary"

    def fsync(fd: int) -> None:
        done.append("sync folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "sync file")

    replace, unlink = os.replace, os.unlink
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(f"rename {kind(b)}"), replace(a, b)))
    monkeypatch.setattr(os, "unlink", lambda a, **k: (done.append(f"remove {kind(a)}"), unlink(a, **k)))
    save(path, {"v": np.ones(2), "w": np.ones(2)}, shard_size=16)
    assert [d for d in done if d != "remove temporary"] == [
        "sync file", "sync file", "sync file",
        "rename data", "rename data", "sync folder",
        "rename index", "sync folder",
        "remove data", "remove data",
    ]  # fmt: skip


def test_new_files_have_the_mode_that_the_umask_says(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        save(str(tmp_path / "c"), {"v": np.zeros(2)})
    finally:
        assert os.umask(umask) == 0o027
    assert {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in os.listdir(tmp_path)} == {
        "c.index": 0o640,
        "c.data-00000-of-00001": 0o640,
    }


def test_data_is_as_private_as_the_old_one(tmp_path: Path) -> None:
    for _ in range(2):
        save(str(tmp_path / "c"), {"v": np.zeros(2)})
        assert stat.S_IMODE((tmp_path / "c.index").stat().st_mode) == 0o666 & ~umask_of_now()
        for file in tmp_path.iterdir():
            file.chmod(0o600)
        save(str(tmp_path / "c"), {"v": np.ones(2)})
        assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}
        for file in tmp_path.iterdir():
            file.unlink()


def umask_of_now() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_what_killed_writers_left(tmp_path: Path) -> None:
    """It is removed by the next, unless somebody holds a lock of its index; the files of others stay."""
    mine = [".c.index.abc.weightport-tmp", ".c.index.abc.00000.weightport-tmp", ".c.index.xyz.00012.weightport-tmp"]
    held = [".c.index.held.weightport-tmp", ".c.index.held.00000.weightport-tmp"]
    other = [
        ".d.index.abc.weightport-tmp",
        ".c.index.a-c.weightport-tmp",
        ".c.index.abc.0.weightport-tmp",
        "c.data-1-of-2",
    ]
    for name in (*mine, *held, *other):
        (tmp_path / name).write_bytes(b"")
    with open(tmp_path / held[0], "rb") as handle:
        assert try_lock(handle.fileno())
        save(str(tmp_path / "c"), {"v": np.zeros(2)})
        assert sorted(os.listdir(tmp_path)) == sorted([*held, *other, "c.index", "c.data-00000-of-00001"])
    save(str(tmp_path / "c"), {"v": np.zeros(2)})
    assert sorted(os.listdir(tmp_path)) == sorted([*other, "c.index", "c.data-00001-of-00002"])


def test_a_writer_at_work_is_seen(tmp_path: Path) -> None:
    seen = []

    def tiles(_: str) -> Iterator[np.ndarray]:
        temporary = [n for n in os.listdir(tmp_path) if n.startswith(".c.index.") and n.count(".") == 4]
        with open(tmp_path / temporary[0], "rb") as handle:
            seen.append(try_lock(handle.fileno()))
        yield np.zeros(2)

    tf_bundle_write.write(str(tmp_path / "c"), {"v": TensorSpec.of("float64", (2,))}, tiles)
    assert seen == [False]


def test_temporaries_go_by_the_name_of_their_index(tmp_path: Path) -> None:
    """By which the next writer tells whose they are."""
    seen: list[str] = []

    def tiles(_: str) -> Iterator[np.ndarray]:
        seen.extend(sorted(os.listdir(tmp_path)))
        yield np.array([b"text"], object)

    tf_bundle_write.write(str(tmp_path / "c"), {"v": TensorSpec.of(object, (1,))}, tiles)
    data, index = seen
    stem = index.removesuffix(".weightport-tmp")
    assert re.fullmatch(r"\.c\.index\.\w+", stem)
    assert data == f"{stem}.00000.weightport-tmp"


def test_what_cannot_be_removed_is_no_reason_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, plain = str(tmp_path / "c"), os.unlink
    save(path, {"v": np.zeros(2)})
    left = tmp_path / ".c.index.abc.weightport-tmp"
    left.write_bytes(b"")

    def unlink(name: Any, **more: Any) -> None:
        if ".data-" in str(name) or str(name) == str(left):
            raise PermissionError(13, "Permission denied")
        plain(name, **more)

    monkeypatch.setattr(os, "unlink", unlink)
    save(path, {"v": np.ones(2)})
    same(tf_bundle.open_source(path).read("v"), np.ones(2))
    assert len(os.listdir(tmp_path)) == 4


@pytest.mark.parametrize(("shard_size", "sizes"), [(32, [32, 16]), (31, [16, 16, 16]), (48, [48]), (1, [16, 16, 16])])
def test_a_shard_is_as_full_as_it_may_be(tmp_path: Path, shard_size: int, sizes: list[int]) -> None:
    save(str(tmp_path / "c"), {n: np.zeros(2) for n in "abc"}, shard_size=shard_size)
    found = [(tmp_path / n).stat().st_size for n in sorted(os.listdir(tmp_path)) if ".data-" in n]
    assert found == sizes


def test_some_of_the_names_of_several_shards_are_taken(tmp_path: Path) -> None:
    path = str(tmp_path / "c")
    save(path, {n: np.zeros(2) for n in "ab"}, shard_size=16)
    (tmp_path / "c.data-00002-of-00003").write_bytes(b"")  # of the next count, the second of two names
    save(path, {n: np.ones(2) for n in "ab"}, shard_size=16)
    assert sorted(os.listdir(tmp_path)) == ["c.data-00002-of-00004", "c.data-00003-of-00004", "c.index"]


def test_names_that_are_taken_are_passed_over(tmp_path: Path) -> None:
    path = str(tmp_path / "c")
    save(path, {"v": np.zeros(2)})
    (tmp_path / "c.data-00001-of-00002").write_bytes(b"")
    (tmp_path / "c.data-00002-of-00003").symlink_to("nowhere")
    save(path, {"v": np.ones(2)})
    assert sorted(os.listdir(tmp_path)) == ["c.data-00003-of-00004", "c.index"]
    same(tf_bundle.open_source(path).read("v"), np.ones(2))


def test_what_is_carried_over_passes_in_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = np.arange(60, dtype=np.float32).reshape(10, 6)
    save(str(tmp_path / "c"), {"v": value, "s": np.float32(1)})
    with tf_bundle.open_source(str(tmp_path / "c")) as source:
        for spooled, rows in ((240, [10]), (239, [9, 1]), (72, [3, 3, 3, 1]), (1, [1] * 10)):
            monkeypatch.setattr(tf_bundle_write, "_SPOOLED", spooled)
            tiles = list(tf_bundle_write.tiles_of(source, "v", source.specs()["v"]))
            assert [len(tile) for tile in tiles] == rows
            same(np.concatenate(tiles), value)
            (scalar,) = tf_bundle_write.tiles_of(source, "s", source.specs()["s"])
            assert scalar.shape == ()


# With the objects of another, by hand --------------------------------------------------------------------------------

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def object_based(folder: Path, variant: bytes = b"ab") -> tuple[str, dict[str, np.ndarray]]:
    """Two weights, of which one has a slot, a counter, and an iterator's state."""
    values = {
        f"w{VALUE}": np.arange(6, dtype=np.float32).reshape(2, 3),
        f"gamma{VALUE}": np.float64([1, 2]),
        f"w/.OPTIMIZER_SLOT/opt/m{VALUE}": np.arange(60, dtype=np.float32).reshape(20, 3),
        f"save_counter{VALUE}": np.array(7),
    }
    data = bytearray()
    entries = {key.encode(): stored(value, data) for key, value in values.items()}
    crc = crc32c.crc32c(bytes([len(variant)]) + bytes(7) + variant)
    check = mask(crc).to_bytes(4, "little")
    state = bytes([len(variant)]) + variant + check
    entries[b"it/.ATTRIBUTES/ITERATOR_STATE"] = entry(
        (), dtype=21, offset=len(data), size=len(state), crc=mask(crc32c.crc32c(check, crc))
    )
    data += state
    keys = list(values)
    objects = [
        trackable({"w": 1, "gamma": 2, "save_counter": 3, "it": 4, "opt": 5}),
        *(trackable(variable=(name, keys[n])) for n, name in ((0, "w"), (1, "gamma"), (3, "save_counter"))),
        trackable(variable=("it", "it/.ATTRIBUTES/ITERATOR_STATE")),
        trackable(slots=(("m", 1, 6),)),
        trackable(variable=("m", keys[2])),
    ]
    raw, crc = texts(b"".join(bytes_field(1, node) for node in objects))
    entries[b"_CHECKPOINTABLE_OBJECT_GRAPH"] = entry((), dtype=7, offset=len(data), size=len(raw), crc=crc)
    data += raw
    return bundle(folder, entries, bytes(data)), values


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("shard_size", [None, 100])
def test_what_is_not_given_is_carried_over(
    tmp_path: Path, small: bool, shard_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small:
        monkeypatch.setattr(tf_bundle_write, "_SPOOLED", 50)
        monkeypatch.setattr(tf_bundle_write, "CHUNK", 20)
    theirs, values = object_based(tmp_path)
    ours = str(tmp_path / "ours")
    new = {"w": np.full((2, 3), 5, np.float32), "gamma": np.float64([8, 9])}
    save(ours, new, like=theirs, shard_size=shard_size)
    with tf_bundle.open_source(theirs) as before, tf_bundle.open_source(ours) as after:
        assert after.raw_names() == before.raw_names()
        assert {n: (s.shape, s.role, s.unread) for n, s in after.specs().items()} == {
            n: (s.shape, s.role, s.unread) for n, s in before.specs().items()
        }
        for key, value in values.items():
            same(after.read(key), new.get(key.removesuffix(VALUE), value))
        same(after.read("_CHECKPOINTABLE_OBJECT_GRAPH"), before.read("_CHECKPOINTABLE_OBJECT_GRAPH"))
        assert after.specs()["it"].unread
        for source in (before, after):
            assert b"".join(source.stored("it")[2])[:3] == b"\2ab"
    shards = [name for name in os.listdir(tmp_path) if name.startswith("ours.data-")]
    assert len(shards) > 2 if shard_size else len(shards) == 1


def test_a_state_that_is_damaged_is_not_carried_over(tmp_path: Path) -> None:
    theirs, values = object_based(tmp_path)
    path = Path(f"{theirs}.data-00000-of-00001")
    data = bytearray(path.read_bytes())
    at = sum(value.nbytes for value in values.values())
    data[at + 1] ^= 1
    path.write_bytes(data)
    what = "a variant does not have its checksum: damaged"
    with says(FormatError, f"{path}: tensor 'it/.ATTRIBUTES/ITERATOR_STATE' at byte {at + 3}: {what}"):
        save(str(tmp_path / "ours"), {"w": values[f"w{VALUE}"], "gamma": values[f"gamma{VALUE}"]}, like=theirs)
    assert not [name for name in os.listdir(tmp_path) if "ours" in name]


def test_all_that_does_not_fit_the_objects_is_told(tmp_path: Path) -> None:
    theirs, _ = object_based(tmp_path)
    ours = str(tmp_path / "ours")
    with pytest.raises(Error) as caught:
        save(ours, {"x": np.zeros(2), "gamma": np.zeros(3), "w": np.zeros((2, 3))}, like=theirs)
    assert [str(problem) for problem in caught.value.problems] == [
        f"{ours}: {theirs} has no tensor 'x'",
        f"{ours}: 'gamma' is float64[3], in {theirs} float64[2]",
        f"{ours}: 'w' is float64[2, 3], in {theirs} float32[2, 3]",
    ]
    with pytest.raises(Error) as caught:
        save(ours, {"gama": np.zeros(2), "w": np.zeros((2, 3), np.float32)}, like=theirs)
    assert [str(problem) for problem in caught.value.problems] == [
        f"{ours}: {theirs} has no tensor 'gama'; closest: 'gamma'",
        f"{ours}: no values for 'gamma' of {theirs}; closest: 'gama'",
    ]


# Adopted ------------------------------------------------------------------------------------------------------------


def adopt(source: str, path: str, names: list[str], *, link: bool = True) -> None:
    with tf_bundle.open_source(source) as opened:
        extents = {name: opened.extent(name) for name in names}
        specs = {name: opened.specs()[name] for name in names}
    assert all(extents.values())
    tf_bundle_write.adopt(path, specs, {n: e for n, e in extents.items() if e is not None}, link=link)


def test_several_shards_are_adopted(tmp_path: Path) -> None:
    values = {"v": np.float32([1, 2]), "w": np.float32([3, 4]), "x": np.float32([5, 6])}
    save(str(tmp_path / "a"), values, shard_size=8)
    adopt(str(tmp_path / "a"), str(tmp_path / "b.index"), ["x", "w"])
    assert sorted(n for n in os.listdir(tmp_path) if not n.startswith("a")) == [
        "b.data-00000-of-00002",
        "b.data-00001-of-00002",
        "b.index",
    ]
    assert os.path.samefile(tmp_path / "b.data-00000-of-00002", tmp_path / "a.data-00002-of-00003")
    with tf_bundle.open_source(str(tmp_path / "b")) as source:
        assert list(source.specs()) == ["w", "x"]
        for name in ("w", "x"):
            same(source.read(name), values[name])


def test_what_cannot_be_adopted(tmp_path: Path) -> None:
    with says(Error, f"{tmp_path / 'c'}: tensor '': a checkpoint cannot hold a tensor of this name"):
        tf_bundle_write.adopt(str(tmp_path / "c"), {"": TensorSpec.of("float32", ())}, {})
    assert os.listdir(tmp_path) == []


def test_clones_are_asked_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    asked = []

    def ioctl(target: int, request: int, source: int) -> None:
        asked.append(request)
        os.write(target, os.pread(source, 99, 0))

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    monkeypatch.setattr(sys, "platform", "linux")
    save(str(tmp_path / "a"), {"v": np.float32([1, 2])})
    adopt(str(tmp_path / "a"), str(tmp_path / "b"), ["v"], link=False)
    assert asked == [0x40049409]
    same(tf_bundle.open_source(str(tmp_path / "b")).read("v"), np.float32([1, 2]))
    assert not os.path.samefile(tmp_path / "b.data-00000-of-00001", tmp_path / "a.data-00000-of-00001")
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(OSError, match=r"^\[Errno 95\] no clones on this system$"):
        adopt(str(tmp_path / "a"), str(tmp_path / "c"), ["v"], link=False)
    assert len(os.listdir(tmp_path)) == 4


def test_strings_of_any_kind(tmp_path: Path) -> None:
    path = str(tmp_path / "c")
    save(path, {"s": np.array([b"a", b"bc"]), "u": np.array(["é", "b"]), "big": np.array([b"x" * 9_000_000], object)})
    source = tf_bundle.open_source(path)
    assert source.read("s").tolist() == [b"a", b"bc"]
    assert source.read("u").tolist() == ["é".encode(), b"b"]
    assert source.read("big").tolist() == [b"x" * 9_000_000]


def test_byte_order_and_strides(tmp_path: Path) -> None:
    value = np.arange(12, dtype=">f4").reshape(3, 4)
    save(str(tmp_path / "c"), {"v": value, "t": np.arange(12, dtype=np.int16).reshape(3, 4).T})
    source = tf_bundle.open_source(str(tmp_path / "c"))
    same(source.read("v"), value.astype("<f4"))
    same(source.read("t"), np.arange(12, dtype=np.int16).reshape(3, 4).T.copy())


def test_empty_checkpoint(tmp_path: Path) -> None:
    save(str(tmp_path / "c"), {})
    assert len(tf_bundle.open_source(str(tmp_path / "c")).specs()) == 0


def test_two_writers(tmp_path: Path) -> None:
    path = str(tmp_path / "c")

    def work(n: int) -> None:
        for _ in range(10):
            save(path, {"v": np.full((100, 10), n, np.float32), "n": np.full((), n, np.float32)}, rows=10)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    source = tf_bundle.open_source(path)
    assert (source.read("v") == source.read("n")).all()
    assert len(os.listdir(tmp_path)) == 2


KILLED = """
import os, sys
import numpy as np
from weightport.formats import tf_bundle_write
from weightport.tensors import TensorSpec
path, step = sys.argv[1], int(sys.argv[2])
count = 0
def dying(plain):
    def call(*args, **kwargs):
        global count
        count += 1
        if count == step:
            os._exit(9)
        return plain(*args, **kwargs)
    return call
for name in ("replace", "fsync", "unlink", "chmod"):
    setattr(os, name, dying(getattr(os, name)))
specs = {n: TensorSpec.of("float32", (3,)) for n in "vw"}
tf_bundle_write.write(path, specs, lambda name: iter([np.full(3, 2, np.float32)]), shard_size=int(sys.argv[3]))
os._exit(7)
"""


@pytest.mark.parametrize("shard_size", [100, 12])
def test_killed_at_every_step(tmp_path: Path, shard_size: int) -> None:
    path = str(tmp_path / "c")
    (tmp_path / ".c.index.x.tmp").write_text("another's")
    codes: list[int] = []
    while 7 not in codes:
        save(path, {n: np.full(3, 1, np.float32) for n in "vw"}, shard_size=shard_size)
        done: Any = subprocess.run(
            [sys.executable, "-c", KILLED, path, str(len(codes) + 1), str(shard_size)],
            cwd=Path(__file__).parents[2],
            check=False,
        )
        codes.append(done.returncode)
        with tf_bundle.open_source(path) as source:
            value = source.read("v")
            assert source.read("w").tolist() == value.tolist()
        assert value.tolist() in ([1, 1, 1], [2, 2, 2])
    assert codes[:-1] == [9] * (len(codes) - 1)
    assert len(codes) > 6
    assert value.tolist() == [2, 2, 2]
    save(path, {"v": np.zeros(1)})
    # What the killed left behind is gone; the files of others are not.
    left = sorted(os.listdir(tmp_path))
    assert [n for n in left if ".data-" not in n] == [".c.index.x.tmp", "c.index"]
    assert len(left) == 3


def test_numbers_have_dtypes() -> None:
    for name in NUMBERS:
        assert dtype_named(name).name == name
