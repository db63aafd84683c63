"""Carrying out plans: tiles are the whole, memory is bounded, bits are kept, changing files are noticed."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weightport as wp
from tests.plan.stub import Stub, document, numbers, planned
from tests.plan.test_cells import keras, rule
from tests.support import says
from weightport import execute
from weightport.errors import FormatError
from weightport.execute import Reader, Unchanged, reader, write_file
from weightport.execute.tasks import Side
from weightport.formats import _fs
from weightport.plan import plan
from weightport.tensors import Array, Index, TensorSpec, Tiles


class Counting(Stub):
    """A source that knows how many bytes it handed out at once, and in all."""

    def __init__(self, tensors: Mapping[str, Any], **more: Any) -> None:
        super().__init__(tensors, **more)
        self.largest = self.total = 0

    def read(self, name: str, index: Index = None) -> Array:
        part = super().read(name, index)
        self.largest = max(self.largest, part.nbytes)
        self.total += part.nbytes
        return part


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of a few kilobytes are large."""
    monkeypatch.setattr(reader, "WHOLE_BYTES", 1 << 12)
    monkeypatch.setattr(reader, "TILE_BYTES", 1 << 10)
    monkeypatch.setattr(reader, "SCATTERED_BYTES", 1 << 11)


A = numbers(60, 48)
RULES: dict[str, Any] = {
    "renamed": {"from": "a", "to": "b"},
    "transposed": {"from": "a", "to": "b", "rearrange": "i j -> j i"},
    "heads": {"from": "a", "to": "b", "rearrange": {"pattern": "i (h d) -> h i d", "h": 4}},
    "reshaped": {"from": "a", "to": "b", "reshape": [48, 60]},
    "sliced": {"from": "a", "to": "b", "slice": "3:57:2, 5:"},
    "cast and scaled": {"from": "a", "to": "b", "scale": 0.3, "cast": "float16"},
    "padded": {"from": "a", "to": "b", "pad": [[3, 5], [1, 0]]},
    "joined": {"from": ["a", "a"], "to": "b", "concat": 1},
}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(RULES)), st.integers(1, 1 << 14), st.integers(0, 1 << 15))
def test_tiles_of_any_size_are_the_whole(name: str, tile: int, whole: int) -> None:
    source = Stub({"a": A})
    item = planned(source, None, [RULES[name]]).items["b"]
    expected = Reader(source).value(item)
    before = reader.TILE_BYTES, reader.SCATTERED_BYTES, reader.WHOLE_BYTES
    reader.TILE_BYTES = reader.SCATTERED_BYTES = tile
    reader.WHOLE_BYTES = whole
    try:
        tiles = list(Reader(source).tiles(item))
    finally:
        reader.TILE_BYTES, reader.SCATTERED_BYTES, reader.WHOLE_BYTES = before
    assert all(t.flags.c_contiguous and t.flags.writeable for t in tiles)
    np.testing.assert_array_equal(np.concatenate(tiles), expected)


@pytest.mark.parametrize("name", RULES)
def test_a_part_reads_what_it_needs(name: str) -> None:
    """Of a small tensor, too: devices and replicas each read their own part, not the whole again and again."""
    source = Counting({"a": A})
    item = planned(source, None, [RULES[name]]).items["b"]
    expected = Reader(source).value(item)
    rows = item.spec.shape[0]
    for low, high in ((0, rows // 2), (rows // 2, rows)):
        source.total = 0
        found = Reader(source).value(item, (slice(low, high),))
        np.testing.assert_array_equal(found, expected[low:high])
        share = 2 if name == "joined" else 1
        assert source.total <= share * (A.nbytes // 2 + A.nbytes // 10)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", RULES)
def test_no_more_than_a_few_tiles_are_read_at_once(name: str) -> None:
    source = Counting({"a": A})
    item = planned(source, None, [RULES[name]]).items["b"]
    tiles = list(Reader(source).tiles(item))
    assert len(tiles) > 3
    assert max(t.nbytes for t in tiles) <= 3 << 10
    assert source.largest <= 6 << 10
    assert source.total <= 3 * A.nbytes


@pytest.mark.usefixtures("small")
def test_a_cell_is_moved_in_tiles() -> None:
    cell = keras("l", inputs=200)
    source = Counting(cell)
    made = planned(source, None, [rule("lstm.keras l", "lstm.tf1 m")])
    item = made.items["m/kernel"]
    whole = Counting(cell)
    tiles = list(Reader(source).tiles(item))
    assert len(tiles) > 8
    assert source.largest <= 2 << 10
    reader.WHOLE_BYTES = 1 << 30
    np.testing.assert_array_equal(np.concatenate(tiles), Reader(whole).value(item))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["truncated_normal", "orthogonal", "zeros"])
def test_initial_values_are_made_row_by_row_or_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from weightport.plan import ops

    inner, sizes = ops.initialize, []

    def counted(*args: Any, **more: Any) -> Array:
        made = inner(*args, **more)
        sizes.append(made.nbytes)
        return made

    monkeypatch.setattr(ops, "initialize", counted)
    source = Stub({})
    item = planned(source, {"h": (100, 32)}, [{"to": "h", "initialize": name}]).items["h"]
    sizes.clear()
    tiles = list(Reader(source).tiles(item))
    np.testing.assert_array_equal(np.concatenate(tiles), inner(name, {}, (100, 32), np.dtype("float32"), "h"))
    assert sum(sizes) == 100 * 32 * 4
    if name == "orthogonal":
        assert len(sizes) == 1
    else:
        assert max(sizes) <= 1 << 10


@pytest.mark.usefixtures("small")
def test_a_mean_is_computed_once(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("".join(f"w{k}\n" for k in range(60)), encoding="utf-8")
    (tmp_path / "new.txt").write_text("".join(f"n{k}\nw{k}\n" for k in range(60)), encoding="utf-8")
    rules = [{"from": "a", "to": "b", "vocab": {"from": "old.txt", "to": "new.txt", "missing": "mean"}}]
    path = tmp_path / "m.yaml"
    path.write_text(str(document(rules)).replace("'", '"'), encoding="utf-8")
    source = Counting({"a": A})
    item = plan(source, None, wp.load_mapping(path)).items["b"]
    tiles = np.concatenate(list(Reader(source).tiles(item)))
    np.testing.assert_array_equal(tiles[1::2], A)
    np.testing.assert_array_equal(tiles[::2], np.broadcast_to(tiles[0], A.shape))
    np.testing.assert_allclose(tiles[0], A.mean(0, dtype=np.float64), rtol=1e-6)
    assert source.total == 2 * A.nbytes


# Bits ----------------------------------------------------------------------------------------------------------------

DTYPES = [
    *("float16", "float32", "float64", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64", "complex128", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "int4"),
]


def bits(dtype: str, *shape: int) -> Array:
    """Every kind of bit pattern that an element can have: signalling NaNs, infinities, minus zero, denormals."""
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    raw = np.random.default_rng(3).integers(0, 256, int(np.prod(shape)) * kind.itemsize, dtype=np.uint8)
    if dtype == "bool":
        raw &= 1
    if dtype == "int4":
        raw &= 7
    array: Array = raw.view(kind).reshape(shape)
    if dtype in ("float32", "complex64") and array.size:
        flat = raw.view(np.uint32)
        flat[:4] = [0x7F800001, 0xFFA12345, 0x80000000, 0x00000001][: len(flat)]
    return array


@pytest.mark.parametrize("shape", [(), (0,), (5,), (6, 10), (0, 3), (2, 3, 4)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_is_kept(dtype: str, shape: tuple[int, ...]) -> None:
    array = bits(dtype, *shape)
    source = Stub({"a": array})
    axes = " ".join("abc"[: len(shape)])
    rules: list[Any] = [{"from": "a", "to": "b"}]
    if len(shape) > 1:
        rules.append({"from": "a", "to": "t", "rearrange": f"{axes} -> {axes[::-1]}"})
    made = planned(source, None, rules)
    value = Reader(source).value(made.items["b"])
    assert isinstance(value, np.ndarray)
    assert value.dtype == array.dtype
    assert value.shape == shape
    assert value.tobytes() == array.tobytes()
    (tile,) = Reader(source).tiles(made.items["b"])
    assert tile.tobytes() == array.tobytes()
    if len(shape) > 1:
        turned = Reader(source).value(made.items["t"])
        assert turned.tobytes() == np.ascontiguousarray(array.T).tobytes()


@pytest.mark.parametrize("values", [[b"a", b"", b"b\0c"], [], b"one"])
def test_strings(values: Any) -> None:
    array = np.array(values, object)
    source = Stub({"a": TensorSpec(np.dtype(object), array.shape, 4)})
    source.arrays["a"] = array
    found = Reader(source).value(planned(source, None, [{"from": "a", "to": "b"}]).items["b"])
    assert isinstance(found, np.ndarray)
    assert found.tolist() == array.tolist()


def test_scalars_through_every_operation() -> None:
    source = Stub({"a": np.array(2.5, np.float32)})
    rules = [
        {"from": "a", "to": "scaled", "scale": 2.0, "cast": "float64"},
        {"from": "a", "to": "shaped", "reshape": [1, 1]},
    ]
    made = planned(source, None, rules)
    for name, want in (("scaled", np.float64(5)), ("shaped", np.array([[2.5]], np.float32))):
        found = Reader(source).value(made.items[name])
        assert isinstance(found, np.ndarray)
        assert found.shape == want.shape
        assert found == want
    one = Stub({"v": np.array([3], np.int32)})
    back = planned(one, None, [{"from": "v", "to": "s", "reshape": []}]).items["s"]
    assert Reader(one).value(back).shape == ()


def test_a_value_is_nobody_elses_memory() -> None:
    class Lending(Stub):
        def read(self, name: str, index: Index = None) -> Array:
            return self.arrays[name][index or ()]

    source = Lending({"a": A})
    made = planned(source, None, [{"from": "a", "to": "b", "slice": "1:"}])
    found = Reader(source).value(made.items["b"])
    assert not np.may_share_memory(found, A)


# Files ---------------------------------------------------------------------------------------------------------------


def written(made: Any, source: Any, kept: Any = None, **more: Any) -> dict[str, Array]:
    found: dict[str, Array] = {}

    def write(path: str, specs: Mapping[str, TensorSpec], tiles: Tiles, **told: Any) -> None:
        del path, told
        for name, spec in specs.items():
            parts = list(tiles(name))
            found[name] = parts[0] if not spec.shape else np.concatenate(parts)

    write_file(made, source, kept, "out", write, **more)
    return found


@pytest.mark.usefixtures("small")
def test_kept_tensors_are_copied_bit_for_bit_and_in_tiles() -> None:
    kept = Counting(
        {"b": A, "k": bits("float32", 50, 40), "s": bits("bfloat16"), "step": np.array(7)}, roles={"step": "counter"}
    )
    source = Stub({"a": A + 1})
    seen: list[int] = []
    made = planned(source, kept, [{"from": "a", "to": "b"}], keep=["k", "s"])
    found = written(made, source, kept, progress=seen.append)
    np.testing.assert_array_equal(found["b"], A + 1)
    for name in ("k", "s", "step"):
        assert found[name].tobytes() == kept.arrays[name].tobytes()
    assert list(found) == ["b", "k", "s", "step"]
    assert kept.largest <= 1 << 10
    assert sum(seen) == sum(a.nbytes for a in found.values())


def test_a_plan_with_problems_is_not_carried_out() -> None:
    source = Stub({"a": A, "z": A})
    with pytest.raises(wp.PlanError, match="'z'"):
        written(planned(source, None, [{"from": "a", "to": "b"}]), source)


def test_a_writer_is_told_what_becomes_constant_and_what_keeps_its_value() -> None:
    seen: dict[str, Any] = {}

    def write(path: str, specs: Mapping[str, TensorSpec], tiles: Tiles, **told: Any) -> None:
        del tiles
        seen.update(told, path=path, specs=list(specs))

    source = Stub({"a": A})
    kept = Stub({"b": A, "c": A, "k": A})
    made = planned(source, kept, [{"from": "a", "to": "b", "as": "constant"}, {"from": "a", "to": "c"}], keep=["k"])
    write_file(made, source, kept, "out", write, metadata={"by": "me"})
    assert seen == {
        "path": "out", "specs": ["b", "c", "k"], "metadata": {"by": "me"}, "constants": {"b"}, "kept": {"k"},
    }  # fmt: skip


def test_constants_of_a_target_are_not_written() -> None:
    kept = Stub({"b": A, "axis": np.array(1)}, roles={"axis": "constant"})
    source = Stub({"a": A})
    assert list(written(planned(source, kept, [{"from": "a", "to": "b"}]), source, kept)) == ["b"]


class Disturbed(Stub):
    """Something happens after the first read."""

    def __init__(self, tensors: Mapping[str, Any], happens: Any) -> None:
        super().__init__(tensors)
        self._happens = happens

    def read(self, name: str, index: Index = None) -> Array:
        found = super().read(name, index)
        happens, self._happens = self._happens, lambda: None
        happens()
        return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.npz"
    path.write_bytes(b"x" * 100)
    return path


def touched(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def grown(path: Path) -> None:
    path.write_bytes(b"x" * 101)


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"y" * 100)
    os.replace(other, path)


def removed(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("happens", [touched, grown, replaced, removed])
def test_a_source_that_changes_is_an_error(file: Path, happens: Any) -> None:
    source = Disturbed({"a": A, "b": A}, lambda: happens(file))
    made = planned(source, None, [{"from": "{x}", "to": "{x}"}])
    with pytest.raises(FormatError) as caught:
        written(made, source, watch=Unchanged([str(file)]))
    assert str(caught.value) == f"{file}: the file changed while it was read; run it again when nothing writes to it"


@pytest.mark.parametrize(("happens", "fine"), [(replaced, True), (removed, True), (grown, False), (touched, False)])
def test_what_is_open_already_may_be_replaced(file: Path, happens: Any, fine: bool) -> None:
    watch = Unchanged([str(file), str(file) + ".not-there"], replaced=True)
    watch.check()
    happens(file)
    if fine:
        watch.check()
    else:
        with pytest.raises(FormatError, match="changed while it was read"):
            watch.check()


def test_values_for_live_models_are_made_when_they_are_asked_for() -> None:
    source = Stub({"a": A})
    made = planned(source, {"b": A.shape}, [{"from": "a", "to": "b", "as": "constant"}])
    (value,) = execute.live_values(made, source)
    assert source.asked == []
    assert (value.name, value.constant, value.spec) == ("b", True, made.specs["b"])
    for _ in range(2):
        np.testing.assert_array_equal(value.produce(None), A)
    np.testing.assert_array_equal(value.produce((slice(3, 9, 2),)), A[3:9:2])


def iterated(tiles: Iterator[Array]) -> Array:
    return np.concatenate(list(tiles))


def test_what_is_read_whole_is_read_once() -> None:
    source = Counting(keras("l"))
    made = planned(source, None, [rule("lstm.keras l", "lstm.tf1 m")])
    for item in made.items.values():
        iterated(Reader(source).tiles(item))
    assert sorted(source.asked) == sorted(keras("l"))


class Lying(Stub):
    """A source whose values are not what its headers say."""

    def read(self, name: str, index: Index = None) -> Array:
        return super().read(name, index).astype(np.float64)


def test_a_reader_that_gives_something_else() -> None:
    source = Lying({"a": A})
    made = planned(source, None, [{"from": "a", "to": "b"}])
    with says(wp.Error, f"'b': float64{list(A.shape)} was made for float32{list(A.shape)}"):
        Reader(source).value(made.items["b"])


def test_a_source_that_cannot_go_to_another_process() -> None:
    class Local(Stub):
        """Of a class that nobody else can import."""

    with says(wp.Error, "model: cannot be opened in another process; give its path instead"):
        pickle.dumps(Side(Local({"a": A}), "key"))
    there = pickle.dumps(Side(Stub({"a": A}), "key"))
    one, two = pickle.loads(there), pickle.loads(there)
    assert one is two, "it is opened once for all tasks of a transfer"
    assert one.read("a", (range(1), range(2))).tolist() == A[:1, :2].tolist()
    assert pickle.loads(pickle.dumps(Side(Stub({"a": A}), "other"))) is not one


def test_who_is_fetched_is_asked_again_only_if_something_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """To ask a server costs a request: it is asked after every fetch, and at the end."""
    marks, fetched, asked = {"far": (1, 1), "near": (5, 5)}, {"far": 3, "near": None}, list[str]()

    def mark(path: str) -> tuple[int, int]:
        asked.append(path)
        return marks[path]

    monkeypatch.setattr(_fs, "mark", mark)
    monkeypatch.setattr(_fs, "fetched", fetched.__getitem__)
    watch = Unchanged(["far", "near"])
    asked.clear()
    watch.check()
    assert asked == ["near"]
    fetched["far"] = 4
    watch.check()
    watch.check()
    assert asked == ["near", "far", "near", "near"]
    watch.check(sure=True)
    assert asked[4:] == ["far", "near"]
    marks["far"] = (2, 1)
    watch.check()
    with says(FormatError, "far: the file changed while it was read; run it again when nothing writes to it"):
        watch.check(sure=True)
